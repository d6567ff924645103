"""Kills and stops random processes of a private cluster that is in use, then asks whether what was promised held (`shmlog torture`).

A topic for each kind of acknowledgement, with producers and a consumer of its own (workload.py), each a process that writes down what it did and saw.
A seeded nemesis kills and stops brokers, coordinators and clients, all brokers at once, and in the end everything; after each fault it waits until
every topic's producers have had acknowledgements again, so a fault that holds somebody up for ever is found where it happens. Then everything is read,
and the checker of history.py and `verify` say what cannot be. Beside it the same kills of the users of a multiprocessing.Queue.

Only kills and stops: the machine stays up. What a power cut leaves is tested elsewhere (tests/), not on a user's machine.
"""

from __future__ import annotations

import collections
import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from shmlog import errors, lifecycle, proc
from shmlog.client.admin import Admin
from shmlog.embedded import Cluster
from shmlog.testing import history
from shmlog.testing.processes import kill_all, pids_of
from shmlog.testing.waiting import Hang, until
from shmlog.testing.workload import NOTE, Ledger, end_with, read_all
from shmlog.types import NewTopic

LEADER, FOLLOWER, PRODUCER, CONSUMER = "leader killed", "follower killed", "producer killed", "consumer killed"
CONTROL = ("coordinator", "standby", "spare")

BATCH = 20
PRODUCERS = 2  # of each topic
LIVES_MAX = 100_000  # of one in its place: its records bear a number of which 24 bits say who sent them
HANG_S = 120.0  # what comes back takes milliseconds
STOPPED_S = (0.02, 1.5)
QUEUE_KILL_S = 0.4
QUEUE_SHARE = 0.15  # of the time


class Kind(NamedTuple):
    topic: str
    acks: str
    means: str


KINDS = (
    Kind("appended", "1", "appended to the leader's memory"),
    Kind("committed", "all", "at every in-sync replica"),
    Kind("durable", "disk", "synced at every in-sync replica"),
)


class Observed(NamedTuple):
    """What was seen of one promise."""

    promise: str
    seen: str
    held: bool


class Report(NamedTuple):
    seed: int
    took_s: float
    brokers: int
    faults: dict[str, int]
    observed: list[Observed]
    anomalies: list[str]  # of the history, of verify, and who hung
    queue: dict[str, int]
    kept: str | None  # where the histories are, if something did not hold

    @property
    def held(self) -> bool:
        return not self.anomalies and all(o.held for o in self.observed)


# --- the clients -------------------------------------------------------------------------------------------------------


class Worker:
    """One producer or consumer, and all that were in its place before it."""

    def __init__(self, directory: Path, address: str, kind: Kind, role: str, number: int) -> None:
        self.kind, self.role = kind, role
        self._directory, self._address, self._number = directory, address, number
        self._first_id = (KINDS.index(kind) * (PRODUCERS + 1) + number) * LIVES_MAX
        self._lives = 0
        self.process: subprocess.Popen[bytes]
        self.ledgers: list[Ledger] = []
        self.start()

    def start(self) -> None:
        name = f"{self.kind.topic}-{self.role}-{self._number}-{self._lives}"
        path = self._directory / f"{name}.ledger"
        self.ledgers.append(Ledger(path, create=True))
        # A producer's number is never used twice: what its predecessor sent last is of unknown outcome.
        more = [self.kind.acks, str(path), str(self._first_id + self._lives), str(BATCH)] if self.role == "produce" else [str(path)]
        self._lives += 1
        command = [sys.executable, "-m", "shmlog.testing.workload", self.role, str(os.getpid()), self._address, self.kind.topic, *more]
        with (self._directory / f"{name}.log").open("wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

    @property
    def done(self) -> int:
        return sum(ledger.done for ledger in self.ledgers)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def check_alive(self) -> None:
        if self.process.poll() is not None:
            raise Hang(f"a {self.role}r of {self.kind.topic} ended by itself with code {self.process.returncode}")


# --- the nemesis -------------------------------------------------------------------------------------------------------


class Nemesis:
    def __init__(self, cluster: Cluster, brokers: int, workers: list[Worker], rng: random.Random, patience_s: float = HANG_S) -> None:
        self.cluster, self.brokers, self.workers, self.rng, self.patience_s = cluster, brokers, workers, rng, patience_s
        self.faults: collections.Counter[str] = collections.Counter()

    def owes(self, at_least: Mapping[str, int]) -> list[str]:
        return [fault for fault, count in at_least.items() if self.faults[fault] < count]

    def choose(self) -> Callable[[], str]:
        several = self.brokers > 1
        actions: list[tuple[int, Callable[[], str]]] = [
            (6, self.kill_leader),
            (3 if several else 0, self.kill_follower),
            (3, lambda: self.kill_role("coordinator")),
            (2, lambda: self.kill_role("standby")),
            (1, lambda: self.kill_role("spare")),
            (3, lambda: self.kill_client("produce")),
            (3, lambda: self.kill_client("consume")),
            (2, lambda: self.stop("broker")),
            (1, lambda: self.stop("coordinator")),
            (2, self.stop_client),
            (1, self.kill_all_brokers),
        ]
        return self.rng.choices([a for _, a in actions], [w for w, _ in actions])[0]

    def leader(self) -> int | None:
        with Admin(self.cluster.address) as admin:
            [topic] = admin.describe_topics([self.rng.choice(KINDS).topic])
        return topic["partitions"][0]["leader"]  # type: ignore[no-any-return]

    def kill_leader(self) -> str:
        leader = self.leader()
        return self._kill("broker", LEADER, leader) if leader is not None else ""

    def kill_follower(self) -> str:
        leader = self.leader()
        others = [b for b in range(self.brokers) if b != leader]
        return self._kill("broker", FOLLOWER, self.rng.choice(others))

    def _is_last(self) -> bool:
        """The cluster heals as long as one of these lives; without any it is `up` that does."""
        return sum(bool(self.cluster.pid(role)) for role in CONTROL) < 2

    def kill_role(self, role: str) -> str:
        if self._is_last():
            return ""
        return self._kill(role, f"{role} killed")

    def _kill(self, role: str, fault: str, id: int = 0) -> str:
        with contextlib.suppress(errors.IllegalStateError):  # it does not live at the moment
            self.cluster.kill(role, id)
            return fault
        return ""

    def kill_all_brokers(self) -> str:
        killed = [self._kill("broker", "broker", id) for id in range(self.brokers)]  # all, so no generator that stops at the first
        return "all brokers killed" if any(killed) else ""

    def kill_client(self, role: str) -> str:
        worker = self.rng.choice([w for w in self.workers if w.role == role])
        worker.kill()
        worker.start()
        return PRODUCER if role == "produce" else CONSUMER

    def stop(self, role: str) -> str:
        if role in CONTROL and self._is_last():
            return ""
        id = self.rng.randrange(self.brokers) if role == "broker" else 0
        with contextlib.suppress(errors.IllegalStateError):
            pid = self.cluster.kill(role, id, signal.SIGSTOP)
            self._rest()
            with contextlib.suppress(ProcessLookupError):  # it was replaced meanwhile
                os.kill(pid, signal.SIGCONT)
            return f"{role} stopped and resumed"
        return ""

    def stop_client(self) -> str:
        process = self.rng.choice(self.workers).process
        process.send_signal(signal.SIGSTOP)
        self._rest()
        process.send_signal(signal.SIGCONT)
        return "client stopped and resumed"

    def _rest(self) -> None:
        threading.Event().wait(self.rng.uniform(*STOPPED_S))

    def kill_everything(self) -> None:
        for worker in self.workers:
            worker.kill()
        until(lambda: kill_all(self.cluster.name), "everything to be dead")
        self.faults["everything killed"] += 1

    def strike(self, owed: list[str]) -> str:
        """The fault that there was, "" if its victim did not live. owed: what there were too few of; each is one that kills."""
        if not owed:
            what = self.choose()()
        elif (fault := self.rng.choice(owed)) == LEADER:
            what = self.kill_leader()
        elif fault == FOLLOWER:
            what = self.kill_follower()
        elif fault in (PRODUCER, CONSUMER):
            what = self.kill_client("produce" if fault == PRODUCER else "consume")
        else:
            what = self.kill_role(fault.removesuffix(" killed"))
        if what:
            self.faults[what] += 1
        return what

    def wait_for_progress(self) -> None:
        """Every topic's producers have had acknowledgements since, and its consumer has read on."""
        begun = {w: w.done for w in self.workers}

        def moved(worker: Worker) -> bool:
            worker.check_alive()
            return worker.done >= begun[worker] + BATCH

        for worker in self.workers:
            until(lambda worker=worker: moved(worker), f"a {worker.role}r of {worker.kind.topic} to go on", self.patience_s)  # type: ignore[misc]


# --- the end -----------------------------------------------------------------------------------------------------------


def observed(kind: Kind, workers: list[Worker], records: int, anomalies: list[history.Anomaly]) -> Iterator[Observed]:
    ledgers = [ledger for w in workers if w.kind == kind and w.role == "produce" for ledger in w.ledgers]
    acknowledged, failures = sum(ledger.done for ledger in ledgers), sum(ledger.failures for ledger in ledgers)
    longest_ms = max(ledger.longest_ns for ledger in ledgers) / 1e6
    kinds = collections.Counter(a.kind for a in anomalies if a.log == f"{kind.topic}-0")
    bad = ", ".join(f"{n} {k.replace('_', ' ')}" for k, n in sorted(kinds.items())) or "none lost, none twice, none out of order"
    yield Observed(f"acks={kind.acks}: {kind.means}", f"{acknowledged:,} acknowledged, {records:,} in the log: {bad}", not kinds)
    yield Observed("  no send fails, none waits for ever", f"{failures} failed; the longest batch of {BATCH} took {longest_ms:,.0f} ms", failures == 0)


Progress = Callable[[str, float], None]


def run(
    minutes: float,
    brokers: int = 3,
    seed: int | None = None,
    keep: str | None = None,
    progress: Progress | None = None,
    at_least: Mapping[str, int] | None = None,
) -> Report:
    """progress(what happened last, share of the time that is over). keep: a directory for data and histories, which stay; else they stay only if
    something did not hold. at_least: goes on, however long that takes, until there were as many of these faults."""
    seed = random.randrange(2**32) if seed is None else seed
    rng, began = random.Random(seed), time.monotonic()
    seconds = minutes * 60
    directory = Path(keep or tempfile.mkdtemp(prefix="shmlog-torture-"))
    directory.mkdir(parents=True, exist_ok=True)
    problems: list[str] = []
    rows: list[Observed] = []
    tell = progress or (lambda what, share: None)
    data = directory / "data"
    cluster = Cluster(brokers, data_dir=str(data))
    workers: list[Worker] = []
    try:
        with Admin(cluster.address) as admin:
            admin.create_topics([NewTopic(kind.topic, 1, min(3, brokers)) for kind in KINDS])
        workers += [Worker(directory, cluster.address, kind, "produce", n) for kind in KINDS for n in range(1, PRODUCERS + 1)]
        workers += [Worker(directory, cluster.address, kind, "consume", 0) for kind in KINDS]
        nemesis = Nemesis(cluster, brokers, workers, rng)
        ends = began + seconds * (1 - QUEUE_SHARE)
        try:
            nemesis.wait_for_progress()
            while time.monotonic() < ends or nemesis.owes(at_least or {}):
                if what := nemesis.strike(nemesis.owes(at_least or {}) if time.monotonic() >= ends else []):
                    tell(what, (time.monotonic() - began) / seconds)
                    nemesis.wait_for_progress()
            tell("everything killed", (time.monotonic() - began) / seconds)
            nemesis.kill_everything()
            lifecycle.start_cluster(cluster.name, brokers, [str(data)], owner=(os.getpid(), proc.start_ticks(os.getpid())))
            counts = {kind: read_all(cluster.address, kind.topic, directory / f"{kind.topic}-final.history") for kind in KINDS}
            tell("everything read; checking", (time.monotonic() - began) / seconds)
            operations = history.load(sorted(directory.glob("*.history")))
            anomalies = history.check(operations)
            problems += map(str, anomalies)
            for kind in KINDS:
                rows += observed(kind, workers, counts[kind], anomalies)
            command = [sys.executable, "-m", "shmlog", "verify", "--cluster", cluster.name]
            verify = subprocess.run(command, capture_output=True, text=True, check=False)
            *found, verdict = (verify.stdout or verify.stderr).strip().splitlines()
            rows.append(Observed("memory, files and replicas are sound (verify)", verdict, verify.returncode == 0))
            problems += found if verify.returncode else []
        except (Hang, errors.ShmlogError) as exc:
            problems.append(f"{type(exc).__name__} after {sum(nemesis.faults.values())} faults: {exc}")
    finally:
        for worker in workers:
            worker.kill()
        try:
            cluster.stop()
        except errors.ShmlogError as exc:  # the report is what one wants to see then
            problems.append(f"down: {exc}")
        if not keep and isinstance(sys.exc_info()[1], KeyboardInterrupt):
            shutil.rmtree(directory, ignore_errors=True)
    with contextlib.suppress(Exception):
        lifecycle.stop_cluster(cluster.name, force=True)
    left = [name for name in os.listdir("/dev/shm") if f".{cluster.name}" in name] + [f"pid {pid}" for pid in pids_of(cluster.name)]
    rows.append(Observed("nothing is left behind", ", ".join(left) or "/dev/shm is clean, no process lives", not left))
    tell("the same kills for a multiprocessing.Queue", (time.monotonic() - began) / seconds)
    beside = queue_under_kills(max(4.0, seconds * QUEUE_SHARE), rng, directory)
    report = Report(seed, time.monotonic() - began, brokers, dict(nemesis.faults.most_common()), rows, problems, beside, str(directory))
    if report.held and not keep:
        shutil.rmtree(directory, ignore_errors=True)
        report = report._replace(kept=None)
    return report


# --- beside it ---------------------------------------------------------------------------------------------------------


def _put(q: Any, parent: int, number: int, path: str) -> None:
    end_with(parent)
    ledger, sequence = Ledger(Path(path)), 0
    while True:
        q.put(NOTE.pack(number, sequence))
        sequence += 1
        ledger.add(1, 0)
        if sequence % BATCH == 0:
            threading.Event().wait(0.01)


def _get(q: Any, parent: int, path: str) -> None:
    end_with(parent)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    while True:
        os.write(file, q.get())


def queue_under_kills(seconds: float, rng: random.Random, directory: Path) -> dict[str, int]:
    """Two producers and two consumers of a multiprocessing.Queue, one of them killed now and then and replaced. A put that returned is acknowledged:
    the queue has no other word for it. `stuck`: at the end, with nobody else there, what is put does not come out any more."""
    context = multiprocessing.get_context("spawn")
    q = context.Queue()
    ledgers: list[Ledger] = []
    files: list[Path] = []
    kills = 0

    def start(role: str) -> Any:
        n = len(ledgers) + len(files)
        path = directory / f"queue-{role}-{n}"
        if role == "put":
            ledgers.append(Ledger(path, create=True))
        else:
            files.append(path)
        parent = os.getpid()
        process: Any
        if role == "put":
            process = context.Process(target=_put, args=(q, parent, n, str(path)), daemon=True)
        else:
            process = context.Process(target=_get, args=(q, parent, str(path)), daemon=True)
        process.start()
        return process

    living = [(role, start(role)) for role in ("put", "put", "get", "get")]
    try:
        ends = time.monotonic() + seconds
        with contextlib.suppress(Hang):
            until(lambda: sum(ledger.done for ledger in ledgers) > 100, "the first puts", 30)
        while time.monotonic() < ends:
            threading.Event().wait(QUEUE_KILL_S)
            at = rng.randrange(len(living))
            role, victim = living[at]
            victim.kill()
            victim.join()
            kills += 1
            living[at] = (role, start(role))
    finally:
        for _, process in living:
            process.kill()
            process.join()
    got: list[bytes] = [part for path in files if path.exists() for part in _parts(path.read_bytes())]
    probe = NOTE.pack(2**64 - 1, 0)
    q.put(probe)
    came = False
    with contextlib.suppress(Exception):  # Empty; or half a message of somebody who was killed, behind which nothing can be read
        while not came:
            came = (value := q.get(timeout=2)) == probe
            got += [] if came else [value]
    acknowledged, received = sum(ledger.done for ledger in ledgers), len(set(got))
    q.close()
    q.cancel_join_thread()
    lost = max(0, acknowledged - received)
    return {"kills": kills, "acknowledged": acknowledged, "received": received, "lost": lost, "stuck": int(not came)}


def _parts(data: bytes) -> Iterator[bytes]:
    for at in range(0, len(data) - NOTE.size + 1, NOTE.size):
        yield data[at : at + NOTE.size]
