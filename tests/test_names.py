"""The steps of the models and those of the core have the same names, so that one can be read beside the other."""
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODELS = ROOT / "tests" / "models"
CORE = ROOT / "csrc"

# A step that has another name in C: {name in C: step in the models}.
OTHERWISE_NAMED = {
    "announce": "wait_announce",
    "announce_bit": "wait_announce",
    "announce_recheck": "wait_recheck",
    "cell": "cell_cas",
    "loan_copy": "payload_copy",
    "pin": "pin_store",
    "pin_handover": "view_pin_store",
    "recycle_tethers": "recycle_tether_recheck",
    "tether": "tether_store",
    "wake_check": "wake_load_bitmap",
    "wake_counted": "wake_futex",
}
# What no model has, and why.
NOT_MODELLED = {
    "bell": "the broker's own sleep, an announce and a look as in wakeup.pml",
    "durable": "files",
    "object_ready": "the making of a shared object",
    "room": "producers that wait for a successor: as in wakeup.pml",
    "sync_wanted": "files",
    "view_changed": "the coordinator's view",
}
# Failpoints of files and of the broker's own order of work: the fault tests have them, by these prefixes.
NOT_MODELLED_PREFIXES = ("add_", "file_", "ring_", "spill_", "sync_")


def in_core(pattern):
    names = {}
    for file in sorted(CORE.glob("*.[ch]")):
        if file.name == "atomic.h":  # it explains the words
            continue
        for name in re.findall(pattern, file.read_text()):
            names.setdefault(name, file.name)
    return names


def steps():
    """Those that a process can stand at: the names of mtype that are the `pc` of some step."""
    text = "".join(file.read_text() for file in MODELS.glob("*.pml"))
    named = {name for names in re.findall(r"mtype = \{(.*?)\}", text, re.S) for name in re.findall(r"\w+", names)}
    return named & set(re.findall(r"STEP(?:IF)?\((\w+)", text))


def names_of_core():
    return in_core(r"SL_FAILPOINT\((\w+)\)") | in_core(r"SYNC (\w+)")


def test_every_step_of_the_core_is_one_of_the_models_or_is_listed_with_a_reason():
    known = steps() | set(OTHERWISE_NAMED) | set(NOT_MODELLED)
    unknown = {name: file for name, file in names_of_core().items() if name not in known and not name.startswith(NOT_MODELLED_PREFIXES)}
    assert not unknown, f"no step of tests/models/ has these names: {unknown}"


def test_the_lists_have_nothing_that_is_no_more():
    core, models = set(names_of_core()), steps()
    assert not (set(OTHERWISE_NAMED) | set(NOT_MODELLED)) - core
    assert not set(OTHERWISE_NAMED.values()) - models
    assert not (set(OTHERWISE_NAMED) | set(NOT_MODELLED)) & models, "these have the models' names by now"


def test_the_models_have_every_step_at_which_the_core_writes_a_claim_or_the_directory():
    assert {"recycle_claim", "recycle_takeout", "recycle_scan", "recycle_reset", "recycle_publish", "clean_taint"} <= steps() & set(names_of_core())
