"""Libraries for Java: Aeron over IPC, Chronicle Queue.

Their ends are processes in Java (perf/java), not adapters in Python: what is asked is what one who uses them from their own language gets. Here each
role is a process in Python that starts one in Java, passes the stops on, and sleeps while it measures.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np

from ..servers import AERON, CHRONICLE, Artifact, jars
from ..worker import die_with_parent
from .base import Peer

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_THREAD = "bench end"  # that measures (Bench.java names it so); the compiler's and the collector's are left to the scheduler
WARM_S = 5.0  # no longer than this are records exchanged that are not measured, until nothing is compiled any more
# -Xbatch: Bench.java says why. One collector's thread (once they run, neither library makes garbage), no file that tools find this by.
_JAVA = ("java", "-Xbatch", "-Xms256m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:-UsePerfData")


class Java(Peer):
    programs = ("java", "javac")
    slow_rounds = True  # until all is compiled
    artifact: ClassVar[Artifact]
    library: ClassVar[str]  # the class in perf/java that knows it
    flags: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def missing(cls) -> str | None:
        return super().missing() or (None if jars(cls.artifact).exists() else "no jars (`shmlog bench --fetch` gets them with mvn)")

    @classmethod
    def version(cls) -> str:
        return cls.artifact.version

    def start(self) -> None:
        from ..native import java_classes

        self.classes = str(java_classes(self.library, jars(self.artifact)))
        self.cores = sorted(os.sched_getaffinity(0))

    def role(self, role: str, options: dict[str, Any]) -> Iterator[dict[str, Any] | None]:
        return _end(self, role, options)


def _end(peer: Java, role: str, options: dict[str, Any]) -> Iterator[dict[str, Any] | None]:
    """A role of worker.py, played in Java."""
    name = f"{peer.memory_directory}/{role}.{os.getpid()}"
    told: dict[str, Any] = {k: v for k, v in options.items() if isinstance(v, int | float)} | {
        "library": peer.library, "role": role, "directory": peer.directory, "memory_directory": peer.memory_directory, "latencies": f"{name}.latencies",
        "value_bytes": peer.task.value_bytes, "wait": peer.task.wait,
        "warm_s": min(WARM_S, 25 * (options["seconds"] if "seconds" in options else float(np.sum(options.get("gaps_ns", 1e9))) / 1e9)),
    }  # fmt: skip
    if "channels" in options:
        (told["channel"],) = options["channels"]
    for numbers in ("gaps_ns", "sizes"):
        if options.get(numbers) is not None:
            told[numbers] = f"{name}.{numbers}"
            np.asarray(options[numbers], "<i8").tofile(told[numbers])
    os.sched_setaffinity(0, peer.cores)  # Java inherits this; pinned is, below, the thread that measures and no other
    log = f"{peer.directory}/{role}.{os.getpid()}.log"
    with open(log, "wb") as errors:
        process = subprocess.Popen(
            [*_JAVA, *peer.flags, f"-Djava.io.tmpdir={peer.directory}", "-cp", f"{peer.classes}:{jars(peer.artifact)}/*", "Bench",
             *(f"{k}={v}" for k, v in told.items())],
            cwd=peer.directory, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, preexec_fn=die_with_parent,
        )  # fmt: skip
    assert process.stdin and process.stdout
    try:
        for i in range(3):
            _said(process.stdout, log)
            if i == 0 and options.get("core") is not None:
                _pin(process.pid, options["core"])
            yield None
            before_s = _cpu_s(process.pid)
            _go(process.stdin)
        result = json.loads(_said(process.stdout, log))
        result["cpu_s"] = _cpu_s(process.pid) - before_s
        if os.path.exists(told["latencies"]):
            result["latencies_ns"] = np.fromfile(told["latencies"], "<i8")
        yield result
    finally:
        with contextlib.suppress(OSError):  # it has ended
            _go(process.stdin)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # what could not be written to it
                pipe.close()


def _go(pipe: IO[str]) -> None:
    pipe.write("go\n")
    pipe.flush()


def _said(pipe: IO[str], log: str) -> str:
    """The next line. It is waited for as long as the harness waits for this process."""
    if line := pipe.readline():
        return line
    last = Path(log).read_text(errors="replace").strip().splitlines()[-1:]
    raise RuntimeError(f"Java ended: {' '.join(last) or 'it gave no reason'}")


def _pin(pid: int, core: int) -> None:
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that ended
            if (task / "comm").read_text().strip() == _THREAD:
                os.sched_setaffinity(int(task.name), {core})


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


class Aeron(Java):
    name = "Aeron IPC (Java)"
    artifact = AERON
    library = "AeronEnds"
    flags = ("--add-opens=java.base/jdk.internal.misc=ALL-UNNAMED",)
    can = frozenset({"latency", "rate", "batch", "paced", "blocking"})
    note = "both ends in Java, driver embedded in one; a batch is a loop of offer(); asleep: its backoff (parks to 1 ms), nothing wakes it"


class Chronicle(Java):
    name = "Chronicle Queue (Java)"
    artifact = CHRONICLE
    library = "ChronicleEnds"
    flags = (
        *(f"--add-exports=java.base/{p}=ALL-UNNAMED" for p in ("jdk.internal.ref", "sun.nio.ch")),
        "--add-exports=jdk.unsupported/sun.misc=ALL-UNNAMED",
        *(f"--add-opens=java.base/{p}=ALL-UNNAMED" for p in ("java.io", "java.lang", "java.lang.reflect", "java.nio", "java.util", "sun.nio.ch")),
        "-Dchronicle.analytics.disable=true",  # nor is its jar among what is fetched
    )
    can = frozenset({"latency", "rate", "batch", "paced", "blocking", "durable"})
    note = "both ends in Java; files in the page cache; a batch is a loop of appends; durable: msync(); asleep: its balanced pauser, nothing wakes it"
