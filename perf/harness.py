"""Rounds: ends in processes of their own, interleaved candidates, what else the machine was doing, and what is finished already.

A *cell* is one candidate in one case of one question; a *round* of it is one run, a fraction of a second to a few seconds. The rounds of a case
are interleaved (A B C A B C ...), so that a machine that gets slower is so for all. A round in which the host or strangers took more than QUIET
allows is *polluted*: it is run again, a bounded number of times, and counts only where no quiet one is to be had, which is then said. Every
finished round is a line in the run's file; a run that was interrupted goes on behind it.

Nothing is left behind: ends and servers die with this process (PR_SET_PDEATHSIG), are ended by pid in `finally`, and what they keep lies in
temporary directories of the run (after a kill -9 the next run removes these).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import multiprocessing
import os
import platform
import secrets
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

MARK = "SHMLOG_BENCH_MARK"
DIRECTORY = "shmlog-bench-"  # and the pid: how temporary directories begin
QUIET_STOLEN_PERCENT = 2.0
QUIET_STRANGERS_PERCENT = 8.0  # of all cores together
limit_s = 60.0  # no round takes longer (--limit): what has not answered by then is ended and the round failed
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent  # of the source tree, if this is one
IN_TREE = (ROOT / "csrc" / "core.h").exists() and HERE.name == "perf"


class Failed(Exception):
    """A round that gave no figures; the message is one line."""


# --- plans -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """How much is measured. `seconds` is how long one round of a cell runs, apart from starting and stopping its processes."""

    name: str
    rounds: int
    seconds: float
    budget_s: float  # when it is used up, cells get one round each, and none when 1.4 of it are; the report says so
    full: bool = False

    def rounds_of(self, peer: Any) -> int | None:
        """Half of the plan's for a peer whose rounds take seconds whatever they measure."""
        return (self.rounds + 1) // 2 if peer.slow_rounds else None


PLANS = {
    "tiny": Plan("tiny", 1, 0.05, 1200),
    "quick": Plan("quick", 3, 0.2, 200),
    "full": Plan("full", 5, 1.0, 2500, full=True),
}


@dataclass
class Round:
    """One run of a cell."""

    figures: dict[str, float] = field(default_factory=dict)
    histogram: str | None = None  # base64, HdrHistogram V2, ns
    stolen_percent: float = 0.0
    strangers_percent: float = 0.0
    seconds: float = 0.0
    error: str | None = None

    @property
    def quiet(self) -> bool:
        return self.error is None and self.stolen_percent <= QUIET_STOLEN_PERCENT and self.strangers_percent <= QUIET_STRANGERS_PERCENT


@dataclass(frozen=True)
class Cell:
    question: str
    case: str
    peer: str
    run: Callable[[], Round]
    rounds: int | None = None  # instead of the plan's: for what takes long and varies little

    @property
    def id(self) -> str:
        return f"{self.question}/{self.case}/{self.peer}"


# --- noise -------------------------------------------------------------------------------------------------------------


@dataclass
class Usage:
    """CPU ticks so far: of everybody, taken by the host, and of the processes that carry this run's mark."""

    total: int
    idle: int
    stolen: int
    own: int

    @staticmethod
    def now() -> Usage:
        with open("/proc/stat") as f:
            user, nice, system, idle, iowait, irq, softirq, stolen = (int(v) for v in f.readline().split()[1:9])
        return Usage(user + nice + system + idle + iowait + irq + softirq + stolen, idle + iowait, stolen, own_ticks())


def own_ticks() -> int:
    mark = f"{MARK}={os.environ.get(MARK, '?')}".encode()
    ticks = 0
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/environ", "rb") as f:
                if int(entry) != os.getpid() and mark not in f.read():
                    continue
            fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += sum(int(f) for f in fields[11:15])  # user and system, with children that were waited for
    return ticks


class Noise:
    """What others took of the machine between start() and stop(), percent of all cores' time."""

    stolen_percent = 0.0
    strangers_percent = 0.0

    def start(self) -> None:
        self._before = Usage.now()

    def stop(self) -> None:
        a, b = self._before, Usage.now()
        total = b.total - a.total
        if total < 4:  # shorter than the clock of /proc can tell
            return
        busy = total - (b.idle - a.idle) - (b.stolen - a.stolen)
        self.stolen_percent = round(100 * (b.stolen - a.stolen) / total, 2)
        self.strangers_percent = round(max(0.0, 100 * (busy - (b.own - a.own)) / total), 2)

    def into(self, done: Round) -> Round:
        done.stolen_percent, done.strangers_percent = self.stolen_percent, self.strangers_percent
        return done


# --- processes ---------------------------------------------------------------------------------------------------------


def cores() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def core(n: int) -> int | None:
    """The n-th core that this process may use; None (do not pin) where there is but one."""
    have = cores()
    return have[n % len(have)] if len(have) > 1 else None


@contextlib.contextmanager
def no_interrupt() -> Iterator[None]:
    """Children begun inside never get SIGINT: on Ctrl-C the harness ends them, in order."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


@functools.cache
def process_context() -> Any:
    """A server made by exec that has imported what all ends need, and forks them: an end is there in 20 ms instead of 300."""
    resource_tracker.ensure_running()  # begun later, it would unblock the SIGINT that no_interrupt() blocks
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["numpy", f"{__package__}.peers", f"{__package__}.worker", *(m for m in ("shmlog.tools.cli",) if m in sys.modules)])
    return context


def together(peer: Any, ends: Sequence[tuple[str, dict[str, Any]]], limit: float | None = None,
             during: Callable[[], None] | None = None) -> tuple[list[dict[str, Any]], Noise]:  # fmt: skip
    """Runs these roles with a peer that was started, each in a process of its own. Returns what each measured, in order, and the noise of that time.

    during: called once they run."""
    from .worker import main

    context = process_context()
    limit = limit_s if limit is None else limit
    deadline = time.monotonic() + limit
    noise = Noise()
    processes: list[Any] = []
    pipes: list[Any] = []

    def answers(stop: str) -> list[Any]:
        got = []
        for (role, _), pipe, process in zip(ends, pipes, processes, strict=True):
            if not pipe.poll(max(0.0, deadline - time.monotonic())):
                raise Failed(f"{role} of {peer.name} was not {stop} within {limit:g} s")
            try:
                kind, what = pipe.recv()
            except (EOFError, ConnectionError):
                process.join(5)
                raise Failed(f"{role} of {peer.name} ended with exit code {process.exitcode}") from None
            if kind == "error":
                raise Failed(f"{role} of {peer.name}: {what.strip().splitlines()[-1]}")
            got.append(what)
        return got

    def go_on() -> None:
        for pipe in pipes:
            with contextlib.suppress(OSError):
                pipe.send(None)

    try:
        for role, options in ends:
            here, there = context.Pipe()
            process = context.Process(target=main, args=(there, peer, role, options), daemon=True)
            with no_interrupt():
                process.start()
            there.close()
            processes.append(process)
            pipes.append(here)
        for _ in range(2):
            answers("open")
            go_on()
        answers("open")
        noise.start()
        go_on()
        if during is not None:
            during()
        results = answers("done")
        noise.stop()
        go_on()
        answers("closed")
        return results, noise
    finally:
        for process in processes:
            process.join(0.5)
            if process.is_alive():
                process.kill()
                process.join()
        for pipe in pipes:
            pipe.close()


@contextlib.contextmanager
def started(peer: Any) -> Iterator[Any]:
    """A peer between start() and stop(). Temporary directories are made and removed here: one on the disk, one in memory."""
    disk, memory = (tempfile.mkdtemp(prefix=f"{DIRECTORY}{os.getpid()}-", dir=where) for where in (scratch(), "/dev/shm"))
    peer.directory, peer.memory_directory = disk, memory
    try:
        peer.start()
        yield peer
    finally:
        try:
            peer.stop()
        finally:
            for directory in (disk, memory):
                shutil.rmtree(directory, ignore_errors=True)
            for name in os.listdir("/dev/shm"):  # what a peer names by its id and does not remove itself
                if peer.id in name:
                    with contextlib.suppress(OSError):
                        os.unlink(f"/dev/shm/{name}")


def sweep() -> None:
    """Removes directories of runs that were killed: their names hold the pid of one that does not live any more."""
    for where in (scratch(), "/dev/shm"):
        for entry in Path(where).glob(f"{DIRECTORY}*"):
            pid = entry.name[len(DIRECTORY) :].partition("-")[0]
            if pid.isdigit() and not Path(f"/proc/{pid}").exists():
                shutil.rmtree(entry, ignore_errors=True)


def scratch() -> str:
    """Where peers keep what must be on a disk: where the results are, for /tmp may be memory."""
    path = results_directory() / "scratch"
    path.mkdir(parents=True, exist_ok=True)
    return str(path)


def results_directory() -> Path:
    if named := os.environ.get("SHMLOG_BENCH_DIR"):
        return Path(named)
    if IN_TREE:
        return ROOT / "build" / "perf"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shmlog" / "bench"


# --- runs, and where they stopped --------------------------------------------------------------------------------------


class Store:
    """A run's file: a line of JSON for its head, one for each finished round, one when it ended. A line cut off by a kill is left out."""

    def __init__(self, directory: Path, head: dict[str, Any], resume: bool) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.done: dict[str, list[Round]] = {}
        self.resumed = 0
        self.head = head
        key = hashlib.sha1(json.dumps(head["key"], sort_keys=True).encode()).hexdigest()[:12]
        self.path = directory / f"run-{head['key']['plan']}-{key}.jsonl"
        if resume and self.path.exists():
            lines = []
            for text in self.path.read_text().splitlines():
                with contextlib.suppress(ValueError):
                    lines.append(json.loads(text))
            if lines and "head" in lines[0] and not any("ended" in line for line in lines):
                self.head = lines[0]["head"]
                for line in lines[1:]:
                    self.done.setdefault(line["cell"], []).append(Round(**line["round"]))
                    self.resumed += 1
        self._file = open(self.path, "a" if self.resumed else "w")  # noqa: SIM115 (as long as the run)
        if not self.resumed:
            self._write({"head": self.head})
        elif not self.path.read_bytes().endswith(b"\n"):
            self._file.write("\n")  # behind a line that a kill cut off

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def add(self, cell: Cell, done: Round) -> None:
        self.done.setdefault(cell.id, []).append(done)
        self._write({"cell": cell.id, "round": asdict(done)})

    def end(self) -> None:
        self._write({"ended": time.strftime("%Y-%m-%dT%H:%M:%S%z")})
        self._file.close()


def run_cells(cells: Sequence[Cell], plan: Plan, store: Store, begun: float, say: Callable[[str], None]) -> None:
    """All rounds of all cells, interleaved within a case."""
    cases: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        cases.setdefault((cell.question, cell.case), []).append(cell)
    for n, ((question, case), candidates) in enumerate(cases.items()):
        say(f"[{n + 1}/{len(cases)}] {question}: {case} ({', '.join(c.peer for c in candidates)})")
        most = max(c.rounds or plan.rounds for c in candidates)
        for attempt in range(2 * most):
            for cell in candidates:
                wanted = cell.rounds or plan.rounds
                have = store.done.get(cell.id, [])
                quiet = sum(r.quiet for r in have)
                late = time.monotonic() - begun > plan.budget_s
                if quiet >= wanted or sum(r.error is not None for r in have) >= 2 or len(have) >= (wanted + (wanted + 1) // 2) or (late and have):
                    continue
                if time.monotonic() - begun > 1.4 * plan.budget_s:
                    continue
                if attempt and len(have) > attempt:
                    continue  # of an earlier, interrupted run
                store.add(cell, one(cell))


def one(cell: Cell) -> Round:
    begin = time.monotonic()
    try:
        done = cell.run()
    except Failed as error:
        done = Round(error=str(error))
    except Exception as error:
        done = Round(error=f"{type(error).__name__}: {' '.join(str(error).split())}"[:300])
    done.seconds = round(time.monotonic() - begin, 3)
    return done


def summary(cell: Cell, done: Sequence[Round]) -> dict[str, Any]:
    """What the rounds of a cell say together: of its quiet rounds if there are any, else of all."""
    from . import histogram

    good = [r for r in done if r.error is None]
    quiet = [r for r in good if r.quiet]
    used = quiet or good
    names = dict.fromkeys(name for r in used for name in r.figures)
    figures = {}
    for name in names:
        values = [r.figures[name] for r in used if name in r.figures]
        figures[name] = {"median": statistics.median(values), "low": min(values), "high": max(values), "rounds": len(values)}
    texts = [r.histogram for r in used if r.histogram]
    return {
        "id": cell.id,
        "question": cell.question,
        "case": cell.case,
        "peer": cell.peer,
        "figures": figures,
        "histogram": histogram.encode(histogram.merged(texts)) if texts else None,
        "quiet": bool(quiet),
        "dropped": len(good) - len(used),
        "error": None if good else done[-1].error if done else "not measured: the time of the plan was used up",
        "rounds": [asdict(r) | {"quiet": r.quiet, "histogram": None} for r in done],
    }


# --- the machine -------------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith(("model name", "Model"))), platform.machine())
    memory = next(int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    return {
        "cpu": model,
        "cores": len(cores()),
        "memory_gib": round(memory / (1 << 20), 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "disk": file_system(scratch()),
        "load": os.getloadavg()[0],
    }


def file_system(path: str) -> str:
    """The type of the file system that holds path."""
    found, kind = "", "?"
    path = os.path.realpath(path)
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, name, *_ = line.split()
        if (path + "/").startswith(where.rstrip("/") + "/") and len(where) >= len(found):
            found, kind = where, name
    return kind


def mark() -> None:
    """Everything started from here on is known as this run's. What a killed one left goes."""
    sweep()
    os.environ[MARK] = secrets.token_hex(8)


def rounds(candidates: Mapping[str, Callable[[], dict[str, float]]], question: str, case: str, n: int | None = None) -> list[Cell]:
    """Cells of functions that return figures and measure no noise of their own: it is measured around them."""

    def around(run: Callable[[], dict[str, float]]) -> Callable[[], Round]:
        def measured() -> Round:
            noise = Noise()
            noise.start()
            figures = run()
            noise.stop()
            return noise.into(Round(figures))

        return measured

    return [Cell(question, case, name, around(run), n) for name, run in candidates.items()]


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
