#!/usr/bin/env python3
"""Checks the Promela models in this folder: `run.py` everything, `--quick` a subset of about two minutes on a free core.

A model passes when pan has searched its whole state space (no depth cut, no memory cut, never bitstate) without an error.
A wrong variant (W_...) passes when pan finds a counterexample in it; a model that cannot tell wrong from right shows nothing.
"""
import argparse
import dataclasses
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
MEMORY_MB = 9500                    # at most, of one long search
QUICK_MB = 2500                     # and of a quick one: as many run side by side as fit into the memory that is free
CPU_S = 1800                        # of one search: on a busy machine more than that passes on the clock, and means nothing


@dataclasses.dataclass(frozen=True)
class Run:
    name: str
    file: str
    defines: str
    says: str                       # right: what holds; wrong: what is done wrong
    wrong: bool = False
    quick: bool = False
    cycles: bool = False            # look for non-progress cycles under weak fairness instead of assertions
    hash_bits: int = 24

    @property
    def memory_mb(self):
        return QUICK_MB if self.quick else MEMORY_MB


def right(name, file, defines, says, **more):
    return Run(name, file, defines, says, **more)


def wrong(name, file, defines, says, quick=True, **more):
    return Run(name, file, f"{defines} {name.split('/')[-1]}", says, wrong=True, quick=quick, **more)


RUNS = [
    # (a) append, seal, rotate, spill, recycle
    right("append", "append.pml", "B=2 Q=2 NC=3 KEEP", "two producers x 2, two buffers, hazard words kept between calls", quick=True),
    right("append-two-buffers", "append.pml", "B=2 Q=3 NC=3 KEEP", "two producers x 3, two buffers, hazard words kept between calls"),
    right("append-six-lives", "append.pml", "B=2 Q=3 NC=2", "two producers x 3, two buffers that live three times each, everybody recycles"),
    right("append-three-buffers", "append.pml", "B=3 Q=2 NC=2", "two producers x 2, three buffers, everybody recycles"),
    right("append-three-buffers-long", "append.pml", "B=3 Q=3 NC=2 BROKERIDLE",
          "two producers x 3, three buffers, producers recycle, the broker only looks at limbo", hash_bits=27),
    right("append-death", "append.pml", "B=2 Q=1 Q1=2 NC=2 KILLS=1", "the first producer may be killed at any step", quick=True),
    right("append-death-first", "append.pml", "B=2 Q=2 NC=2 KILLS=1 VICTIM=0", "one producer killed anywhere, cleaned up after its certificate"),
    right("append-death-second", "append.pml", "B=2 Q=2 NC=2 KILLS=1 VICTIM=1", "the same for the producer that is scanned last"),
    right("append-death-three-buffers", "append.pml", "B=3 Q=2 NC=2 BROKERIDLE KILLS=1", "one producer killed, three buffers"),
    right("append-stop", "append.pml", "B=4 D=4 Q=1 Q1=3 NC=2 BROKERIDLE KILLS=1 STOPS",
          "one producer stopped for ever at any step: the other is never blocked"),
    right("append-late-store", "append.pml", "B=2 Q=1 Q1=3 NC=2 LATESTORE KILLS=1",
          "a store of the dead that lands late meets only unlinked memory", quick=True),
    right("append-late-row", "append.pml", "B=2 Q=2 NC=2 LATEREG", "rows registered at any time", quick=True),
    right("append-claim-in-directory", "append.pml", "B=2 Q=2 NC=3 DIRCLAIM",
          "the claim in the directory word is safe too while nobody dies or stops", quick=True),
    wrong("append/W_SCANSEALED", "append.pml", "B=2 Q=2", "scan when the segment is sealed, before cur has left it"),
    wrong("append/W_BASE", "append.pml", "B=3 Q=1 Q1=3 NC=2", "a helper rotates without a hazard word on the next segment"),
    wrong("append/W_EARLYCLR", "append.pml", "B=2 Q=2", "hazard word cleared before the hint is stored"),
    wrong("append/W_TIMEOUT", "append.pml", "B=2 Q=2", "hazard word of a silent process cleared"),
    wrong("append/W_HINT", "append.pml", "B=2 Q=2", "hint left from the last life"),
    wrong("append/W_PUBEARLY", "append.pml", "B=2 Q=2", "published before the reset"),
    wrong("append/W_CLAIM", "append.pml", "B=2 Q=2", "claimed by look and store instead of CAS"),
    wrong("append/W_LATECOUNT", "append.pml", "B=2 Q=2 NC=2 LATEREG", "rows counted at the seal instead of now"),
    wrong("append/W_NOTAINT", "append.pml", "B=2 Q=1 Q1=3 NC=2 LATESTORE KILLS=1", "a segment somebody died in is used again"),
    wrong("append/W_ORPHAN", "append.pml", "B=2 Q=2 NC=2 KILLS=1",
          "after a death only buffers that the directory names are cleaned: one held between take-out and publish is lost"),
    wrong("append/W_POOL", "append.pml", "B=1 Q=2", "a pool of one buffer: everybody is stuck"),
    Run("append/claim-in-directory-death", "append.pml", "B=2 Q=2 NC=2 DIRCLAIM KILLS=1",
        "claim in the directory word: a claimer's death loses the buffer", wrong=True, quick=True),
    wrong("append/W_NOHELP", "append.pml", "B=4 D=4 NC=2 BROKERIDLE KILLS=1 STOPS Q=1 Q1=4",
          "nobody takes out for a stopped claimer: his slot blocks the ring", quick=False),
    wrong("append/W_SKIP", "append.pml", "B=4 D=4 NC=2 BROKERIDLE KILLS=1 STOPS Q=2 Q1=3",
          "first number whose slot is free, skipping an occupied one: a stopped recycler blocks cur", quick=False),
    # ... with the steps that log.c takes where they differ: no eviction but the pool, limbo for the broker alone, sl_row_clean()
    right("as-built", "append.pml", "B=2 Q=2 NC=3 ASBUILT", "two producers x 2, two buffers, the steps of log.c", quick=True),
    right("as-built-six-lives", "append.pml", "B=2 Q=3 NC=2 ASBUILT", "the same, two buffers that live three times each"),
    right("as-built-directory-full", "append.pml", "B=3 D=2 SPARE=1 Q=1 Q1=4 NC=2 ASBUILT BROKERIDLE",
          "more buffers than slots: what finds no slot goes through the pool"),
    right("as-built-death", "append.pml", "B=2 Q=1 Q1=2 NC=2 KILLS=1 ASBUILT", "a producer killed anywhere, sl_row_clean() and audit", quick=True),
    right("as-built-late-store", "append.pml", "B=2 Q=1 Q1=3 NC=2 LATESTORE KILLS=1 ASBUILT",
          "the second clearing waits until what the word names is dead"),
    wrong("as-built/W_AGAIN", "append.pml", "B=2 Q=1 Q1=3 NC=2 LATESTORE KILLS=1 ASBUILT",
          "sl_row_clean() called again clears every word (its reason is time, which is no step)", quick=False),
    # (h) the directory alone, many turns round
    right("slot", "slot.pml", "", "two publishers, stopped for any number of turns of the ring, block no slot", quick=True),
    right("slot-discard", "slot.pml", "DISCARD", "a topic deleted at any moment: every publisher ends", cycles=True, quick=True),
    wrong("slot/W_STALESLOT", "slot.pml", "", "any empty slot that does not carry the number itself: an old look at cur blocks it"),
    wrong("slot/W_NOSTATE", "slot.pml", "DISCARD", "the partition's state is not looked at while a number is chosen", cycles=True),
    # (b) a consumer
    right("reader", "reader.pml", "NP=1 B=3 Q=5 NC=2",
          "one producer x 5, a consumer with poll pin and view pin, three buffers", quick=True),
    right("reader-two-producers", "reader.pml", "NP=2 B=2 Q=2 NC=2 BROKERIDLE", "two producers x 2 and the consumer"),
    wrong("reader/W_CNOREVAL", "reader.pml", "NP=1 B=2 Q=4 NC=2", "pin without looking at the directory again"),
    wrong("reader/W_XFER", "reader.pml", "NP=1 B=2 Q=4 NC=2", "view pin stored after the poll pin is cleared"),
    wrong("reader/W_PINSCAN", "reader.pml", "NP=1 B=2 Q=4 NC=2", "view pin scanned before the poll pin"),
    wrong("reader/W_SCANEARLY", "reader.pml", "NP=1 B=2 Q=4 NC=2", "scan before the take-out"),
    wrong("reader/W_LATECOUNT", "reader.pml", "NP=1 B=2 Q=4 NC=2", "rows counted at the seal instead of now"),
    # (c) memory-only, tethered
    right("tether", "tether.pml", "NP=1 B=3 Q=4 NC=2",
          "a consumer that registers late loses nothing from then on; nobody is stuck", quick=True),
    right("tether-two-producers", "tether.pml", "NP=2 B=2 Q=2 NC=2", "the same with two producers that recycle"),
    wrong("tether/W_TETHER", "tether.pml", "NP=1 B=3 Q=4 NC=2", "registered without looking at the segment again"),
    wrong("tether/W_NORESCAN", "tether.pml", "NP=1 B=3 Q=4 NC=2", "the claimer does not look at the tethers again"),
    # (e) loans
    right("loan", "loan.pml", "NP=2 B=3 Q=1 Q1=2 NC=2", "a loan displaced by a seal is copied from a chunk that stays its own", quick=True),
    right("loan-long", "loan.pml", "NP=2 B=3 Q=1 Q1=3 NC=2", "the same with three records of the other producer, the size of the wrong variants"),
    wrong("loan/W_LOAN", "loan.pml", "NP=2 B=3 Q=1 Q1=3 NC=2", "the old chunk is not pinned while it is copied"),
    wrong("loan/W_LOANSCAN", "loan.pml", "NP=2 B=3 Q=1 Q1=3 NC=2", "loan pins scanned before the hazard words"),
    Run("loan/pool-of-two", "loan.pml", "NP=2 B=2 Q=2 NC=2", "a loan out and only two buffers: stuck", wrong=True, quick=True),
    # (f) records above half an arena
    right("bigrecord", "bigrecord.pml", "BOUND=3", "a wait that doubles with each displacement: always progress", cycles=True, quick=True),
    right("bigrecord-stop", "bigrecord.pml", "BOUND=3 STOPS", "the same with a copier stopped for ever", cycles=True, quick=True),
    wrong("bigrecord/W_NOWAIT", "bigrecord.pml", "", "seal at once", cycles=True),
    wrong("bigrecord/W_CONSTWAIT", "bigrecord.pml", "", "a fixed wait shorter than a copy", cycles=True),
    wrong("bigrecord/W_FOREVER", "bigrecord.pml", "STOPS", "wait until the copier is done: he may be stopped", cycles=True),
    # (i) leader change and fencing
    right("leader", "leader.pml", "NL=2 Q=3 KILLS=1 STOPFENCE", "one change, the old leader killed anywhere or fencing in order to stop; files too", quick=True),
    right("leader-three", "leader.pml", "NL=3 Q=3 KILLS=2 STOPFENCE", "two changes, two leaders killed anywhere"),
    right("leader-two-producers", "leader.pml", "NP=2 NL=2 Q=2 KILLS=1 STOPFENCE", "one change while two producers help each other to rotate"),
    right("leader-producer-death", "leader.pml", "NP=2 NL=2 Q=2 NC=2 PKILL KILLS=2", "one change, and a producer killed anywhere", quick=True),
    right("leader-zombie", "leader.pml", "NL=2 Q=3 ZOMBIE STOPFENCE", "the old leader lives on for ever: bases, epochs, words, directory stay right"),
    right("leader-zombie-three", "leader.pml", "NL=3 Q=1 ZOMBIE", "three that all live on"),
    right("leader-twice", "leader.pml", "NL=2 Q=1 ZOMBIE TWICE", "one epoch granted twice: the last CAS on cur decides", quick=True),
    wrong("leader/W_STALELOOK", "leader.pml", "NL=2 Q=2 KILLS=1", "no buffer for the number seen in cur is taken for no memory"),
    wrong("leader/W_STALENUMBER", "leader.pml", "NL=2 Q=2 KILLS=1", "the number is kept from before the fence"),
    wrong("leader/W_PLAINEPOCH", "leader.pml", "NL=3 Q=1 ZOMBIE", "the epoch of ready segments is a plain store"),
    wrong("leader/W_NOEPOCH", "leader.pml", "NL=3 Q=1 ZOMBIE", "a failed CAS on cur is tried again without a look at the epoch"),
    wrong("leader/W_SEALFIRST", "leader.pml", "NL=2 Q=2 ZOMBIE", "sealed, then fenced"),
    wrong("leader/W_BASEFIRST", "leader.pml", "NL=2 Q=2 KILLS=1", "the end is read before the seal"),
    wrong("leader/W_NOBUMP", "leader.pml", "NL=2 Q=2 ZOMBIE", "words are not moved to the new epoch before it opens"),
    wrong("leader/W_PLAINWORD", "leader.pml", "NL=2 Q=2 ZOMBIE", "words are stored, without CAS and epoch"),
    wrong("leader/W_SHOWS", "leader.pml", "NL=2 Q=1 ZOMBIE TWICE", "cur shows my epoch, so I am the leader"),
    wrong("leader/W_NODIR", "leader.pml", "NL=2 Q=2 ZOMBIE", "directory words keep the old epoch"),
    wrong("leader/W_UNFENCED", "leader.pml", "NL=2 Q=2 ZOMBIE", "cur is not fenced before the seal"),
    wrong("leader/W_NOCERT", "leader.pml", "NL=2 Q=2", "files recovered while the old leader lives"),
    # (g) waiting and waking
    right("wakeup", "wakeup.pml", "NW=1 Q=2", "two producers x 2, one sleeper", quick=True),
    right("wakeup-death", "wakeup.pml", "NW=1 Q=2 KILLS", "a waker killed anywhere, then the death notice", quick=True),
    right("wakeup-stop", "wakeup.pml", "NW=1 Q=2 KILLS STOPS", "a waker stopped anywhere hides only its own last record", quick=True),
    right("wakeup-two-sleepers", "wakeup.pml", "NW=2 Q=1", "two producers x 1, two sleepers"),
    right("wakeup-poller", "wakeup.pml", "NW=1 Q=2 POLLER", "a sleeper in select() on its FIFO", quick=True),
    right("wakeup-poller-death", "wakeup.pml", "NW=1 Q=2 POLLER KILLS", "the same with a waker killed anywhere, between the count and the byte too"),
    right("wakeup-poller-stop", "wakeup.pml", "NW=1 Q=2 POLLER KILLS STOPS", "the same with a waker stopped anywhere"),
    wrong("wakeup/W_DRAINLATE", "wakeup.pml", "NW=1 Q=2 POLLER", "the FIFO is read empty behind the last look"),
    wrong("wakeup/W_EDGE", "wakeup.pml", "NW=1 KILLS STOPS", "wake only if the log was empty"),
    wrong("wakeup/W_TAKEBIT", "wakeup.pml", "NW=1 KILLS STOPS", "the waker clears the bits first"),
    wrong("wakeup/W_NORECHECK", "wakeup.pml", "NW=1", "sleep without a look after the announcement"),
    wrong("wakeup/W_LATEWORD", "wakeup.pml", "NW=1", "the futex word is read after the re-check"),
    wrong("wakeup/W_SKIPLOAD", "wakeup.pml", "NW=1 Q=3", "the sleeper only loads its word, and wakers skip by its value"),
    wrong("wakeup/W_NONOTICE", "wakeup.pml", "NW=1 KILLS", "no wake-all after a death"),
]


# What pan prints, said in words: the first that is in its message.
MEANINGS = {
    "non-progress cycle": "for ever without an append, with a fair schedule",
    "acting[s]==segepoch": "an append after the fence, or under another epoch than its segment says, or at an offset that is not the next",
    "segepoch[": "the next segment opens with another base or epoch than it should, or before the last is sealed",
    "opened[e]": "one epoch is opened twice",
    "opened[": "the last leader does not come into office, or an earlier one moves its words",
    "over[q]||pdead": "somebody is stuck for ever",
    ">=wpos[": "a new file begins below what was acknowledged as durable",
    "onum[b]==s": "a life is read or written that is not the one meant",
    "onum[b2]==": "a helper writes into a life that is not the one he means",
    "onum[lb]==": "a loan is copied from another life",
    "onum[vb]==": "the memory under a view lives another life",
    "onum[b]==r": "a reader looks at a life that is not the one he means",
    "cells[": "a cell after SEAL or after an empty one",
    "base[b2]==bs": "two bases for one segment",
    "base[": "a base that is not the end of the segment before",
    "dead[q]||over[q]": "somebody is stuck for ever",
    "cur==": "the ring is stuck for ever",
    "dnum[(r%3)]==r": "a segment that a tether names is no longer in memory",
    "oph[q]": "a buffer is lost for good",
    "pay[": "arena bytes are overwritten",
    "t==(": "a loan's bytes have changed",
    "seen[q]==acked[q]": "the file lacks a record that was acknowledged, or has one twice",
    "s%8": "the file lacks a record, or has one twice or in another's place",
    "q%8": "a consumer misses a record or gets one twice",
    "holding": "a consumer that was told it is registered misses records",
    "displaced": "displacements without bound",
    "pos[q]": "a consumer sleeps although there are records",
}


@dataclasses.dataclass
class Outcome:
    name: str
    ok: bool
    verdict: str
    states: float = 0
    transitions: float = 0
    depth: int = 0
    seconds: float = 0
    violated: str = ""
    trail: str = ""


CHILDREN = set()


def command(*words, cwd, **more):
    with subprocess.Popen(words, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more) as child:
        CHILDREN.add(child)
        try:
            out, err = child.communicate()
        finally:
            CHILDREN.discard(child)
    return subprocess.CompletedProcess(words, child.returncode, out, err)


def limit_cpu():
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))


def number(pattern, text):
    found = re.search(pattern, text, re.M)
    return float(found.group(1)) if found else 0.0


def check(run, want_trail):
    with tempfile.TemporaryDirectory(prefix="shmlog-models-") as folder:
        return check_in(folder, run, want_trail and run.wrong)


def check_in(folder, run, want_trail):
    for file in HERE.glob("*.pml"):
        shutil.copy(file, folder)
    defines = [f"-D{word}" for word in run.defines.split()] + (["-DTRAIL"] if want_trail else [])
    made = command("spin", "-a", *defines, run.file, cwd=folder)
    if made.returncode or "rror" in made.stdout:
        return Outcome(run.name, False, "spin refuses the model: " + (made.stdout + made.stderr).strip().splitlines()[0])
    kind = ["-DNP"] if run.cycles else ["-DSAFETY"]
    options = [*kind, "-DNOREDUCE", "-DCOLLAPSE", "-DVECTORSZ=512", f"-DMEMLIM={run.memory_mb}"]
    made = command("gcc", "-O1" if run.quick else "-O2", "-w", *options, "-o", "pan", "pan.c", cwd=folder)
    if made.returncode:
        return Outcome(run.name, False, "gcc refuses pan.c: " + made.stderr.strip().splitlines()[0])
    begun = time.monotonic()
    cycles = ["-l", "-f"] if run.cycles else []
    searched = command("./pan", "-m100000", f"-w{run.hash_bits}", *cycles, cwd=folder, preexec_fn=limit_cpu)
    if searched.returncode < 0:
        ended = signal.Signals(-searched.returncode).name
        return Outcome(run.name, False, f"pan ended by {ended}" + (f": not done in {CPU_S} s of CPU" if ended in ("SIGXCPU", "SIGKILL") else ""))
    text = searched.stdout + searched.stderr
    outcome = Outcome(
        run.name, False, "",
        states=number(r"^\s*([\d.e+]+) states, stored", text),
        transitions=number(r"^\s*([\d.e+]+) transitions", text),
        depth=int(number(r"depth reached (\d+)", text)),
        seconds=round(time.monotonic() - begun, 1),
    )
    errors = re.search(r"errors: (\d+)", text)
    first = re.search(r"^pan:\d+: (.*?)(?: \(at depth \d+\))?$", text, re.M)
    outcome.violated = first.group(1) if first else ""
    if re.search(r"max search depth too small|out of memory|MEMLIM|memory limit|Search not completed", text) and not outcome.violated:
        outcome.verdict = "the search was cut short: depth or memory"
    elif not errors:
        outcome.verdict = "pan ended without a verdict: " + (text.strip().splitlines() or ["no output"])[-1]
    elif run.wrong:
        outcome.ok = errors.group(1) != "0" and bool(outcome.violated)
        outcome.verdict = "counterexample" if outcome.ok else "NO COUNTEREXAMPLE in a wrong variant"
    else:
        outcome.ok = errors.group(1) == "0" and not outcome.violated
        outcome.verdict = "holds" if outcome.ok else "VIOLATED"
    if want_trail and outcome.violated:
        replay = command("spin", "-t", *defines, run.file, cwd=folder).stdout
        outcome.trail = "\n".join(re.findall(r"^\s*(\d+ [a-z_]+)$", replay, re.M))
    return outcome


def report(run, outcome, trail):
    what = outcome.verdict
    if outcome.violated:
        meaning = next((words for sign, words in MEANINGS.items() if sign in outcome.violated), "")
        what += f": {meaning or outcome.violated}" + (f"   [{outcome.violated}]" if meaning else "")
    print(f"{'ok  ' if outcome.ok else 'FAIL'} {run.name:32} {outcome.states:>12,.0f} states {outcome.seconds:6.1f} s  {run.says}\n"
          f"     {what}; depth {outcome.depth}, {outcome.transitions:,.0f} transitions", flush=True)
    if trail and outcome.trail:
        print("     process and step, in order:\n       " + outcome.trail.replace("\n", "\n       "))


def free_mb():
    found = re.search(r"^MemAvailable: +(\d+) kB", pathlib.Path("/proc/meminfo").read_text(), re.M)
    return int(found.group(1)) // 1024 if found else MEMORY_MB


def shard_of(runs, k, n):
    """The long ones are dealt out first, so that each part has its share of them."""
    dealt = [run for run in runs if not run.quick] + [run for run in runs if run.quick]
    return dealt[k - 1::n]


def check_all(runs, jobs, trail, done):
    """The long ones first; side by side as far as processors and memory go, one at least."""
    waiting = sorted(runs, key=lambda run: run.quick)
    room_mb, active, changed, outcomes = free_mb() - 500, [], threading.Condition(), []

    def work(run):
        try:
            outcome = check(run, trail)
        except Exception as exc:  # else nobody would hear of it, and the run would count as done
            outcome = Outcome(run.name, False, f"{type(exc).__name__}: {exc}")
        with changed:
            active.remove(run)
            outcomes.append(outcome)
            done(run, outcome)
            changed.notify()

    with changed:
        while waiting or active:
            used = sum(run.memory_mb for run in active)
            fits = next((run for run in waiting if not active or used + run.memory_mb <= room_mb), None) if len(active) < jobs else None
            if fits is None:
                changed.wait()
                continue
            waiting.remove(fits)
            active.append(fits)
            threading.Thread(target=work, args=(fits,), daemon=True).start()
    return outcomes


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the subset that ends within about two minutes on a free core")
    parser.add_argument("--only", metavar="NAME", help="only the runs with NAME in their name")
    parser.add_argument("--list", action="store_true", help="name the runs and stop")
    parser.add_argument("--json", action="store_true", help="the outcome as JSON")
    parser.add_argument("--shard", metavar="K/N", default="1/1", help="the K-th of N parts")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="searches side by side, memory permitting (the number of processors)")
    parser.add_argument("--trail", action="store_true", help="print each counterexample step by step")
    options = parser.parse_args()

    runs = [run for run in RUNS if (run.quick or not options.quick) and (not options.only or options.only in run.name)]
    part = re.fullmatch(r"(\d+)/(\d+)", options.shard)
    if not part or not 1 <= int(part[1]) <= int(part[2]):
        print(f"--shard {options.shard}: it is K/N with 1 <= K <= N.", file=sys.stderr)
        return 1
    runs = shard_of(runs, int(part[1]), int(part[2]))
    if not runs:
        print(f"No run has {options.only!r} in its name; see --list.", file=sys.stderr)
        return 1
    if options.list:
        for run in runs:
            print(f"{run.name:32} {run.file:14} {'wrong' if run.wrong else 'right'} {'quick' if run.quick else '     '} {run.says}")
        return 0
    for tool, package in (("spin", "spin"), ("gcc", "gcc")):
        if not shutil.which(tool):
            print(f"The models need {tool}: install the Debian package {package} (apt-get install {package}).", file=sys.stderr)
            return 1

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))     # unwinds: ends what runs and removes its folders
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="shmlog-models.") as scratch:
        tempfile.tempdir = scratch
        try:
            outcomes = check_all(runs, options.jobs, options.trail, lambda run, outcome: None if options.json else report(run, outcome, options.trail))
        finally:
            for child in list(CHILDREN):
                child.kill()
    failed = [outcome.name for outcome in outcomes if not outcome.ok]
    if options.json:
        print(json.dumps([dataclasses.asdict(outcome) for outcome in outcomes], indent=1))
    else:
        print(f"{len(outcomes)} runs in {time.monotonic() - begun:.0f} s: " + (f"FAILED: {', '.join(failed)}" if failed else "all as expected."))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
