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
    "loan_copy": "payload_copy",
    "pin_handover": "view_pin_store",
    "recycle_tethers": "recycle_tether_recheck",
    "tether": "tether_store",
    "wake_check": "wake_load_bitmap",
    "wake_counted": "wake_futex",
}
# What no model has, and why.
NOT_MODELLED = {
    "below_min_isr": "an announce and a look, as in wakeup.pml; the other side is the coordinator's Python",
    "bell": "the broker's own sleep, an announce and a look as in wakeup.pml; its orders are in loom/",
    "durable": "files",
    "meter_owner": "measuring; nothing depends on it",
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


# {name: [(where, the line)]}
def sites():
    found = {}
    for file in sorted(CORE.glob("*.[ch]")):
        if file.name == "atomic.h":
            continue
        for number, line in enumerate(file.read_text().splitlines(), 1):
            for name in re.findall(r"SYNC ([\w-]+)", line):
                found.setdefault(name, []).append((f"{file.name}:{number}", line))
    return found


def test_every_sync_name_stands_at_both_ends_or_names_its_partner():
    alone = {name: where for name, where in sites().items() if len(where) == 1 and not re.search(r"pairs (with|as) \w", where[0][1])}
    assert not alone, f"no second place has these names, and their comments name no partner: {[w[0][0] for w in alone.values()]}"


def test_every_sync_name_has_its_row_in_the_table_of_orders():
    table = (MODELS / "ORDERS.md").read_text()
    missing = {name: where[0][0] for name, where in sites().items() if not re.search(rf"\b{name}\b", table)}
    assert not missing, f"tests/models/ORDERS.md does not have: {missing}"


def test_every_failpoint_of_the_log_is_a_label_of_a_model():
    points = in_core(r"SL_FAILPOINT\(((?:attach|base|cell|cur|seal|rotate|recycle|fence|open|wait|wake|announce|pin|clean|hint|payload|chunk)_\w+)\)")
    known = steps() | set(OTHERWISE_NAMED)
    assert not {name: file for name, file in points.items() if name not in known}
