"""How heavy is a cluster that does nothing? (the table "Own weight" of the public contract)"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from .harness import Cell, Plan, rounds, scratch
from .peers import Peer

FIGURE, UNIT, LESS_IS_BETTER = "up_ms", "ms", True
PROMISED: dict[str, float | None] = {
    "up_ms": 500,
    "cluster_cold_ms": 400,
    "import_ms": 80,
    "import_and_first_use_ms": None,  # what the first program that produces, consumes and administers pays: promised nowhere, watched all the same
    "status_ms": 200,
    "pss_mib": 60,
    "idle_cpu_percent": 0.2,
    "shm_kib_after_up": 2048,
    "idle_partition_kib": 64,
}


def shmlog(*arguments: str) -> tuple[float, str]:
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "shmlog", *arguments], capture_output=True, text=True, check=True, timeout=60)
    return (time.perf_counter() - begin) * 1e3, done.stdout


def python(code: str) -> float:
    command = [sys.executable, "-c", f"import time; t = time.perf_counter(); {code}; print((time.perf_counter() - t) * 1e3)"]
    return float(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)


def pss_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    return 0


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def shm_kib(name: str) -> float:
    return sum(p.stat().st_blocks for p in Path("/dev/shm").glob(f"shmlog.{os.geteuid()}.{name}*")) / 2


def one(idle_s: float) -> dict[str, float]:
    name = f"w{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory(dir=scratch()) as data:
        up_ms, _ = shmlog("up", "--cluster", name, "--data", data)
        try:
            before_kib = shm_kib(name)
            status_ms, text = shmlog("status", "--cluster", name, "--json")
            pids = [p["pid"] for p in json.loads(text)["processes"] if p["role"] != "client"]
            shmlog("topic", "create", "idle", "-p", "16", "--cluster", name)
            after_kib = shm_kib(name)
            pss = sum(map(pss_kib, pids)) / 1024
            begin, ticks = time.monotonic(), sum(map(cpu_ticks, pids))
            time.sleep(idle_s)  # the thing measured: what an idle cluster uses in this time
            cpu = 100 * (sum(map(cpu_ticks, pids)) - ticks) / os.sysconf("SC_CLK_TCK") / (time.monotonic() - begin)
        finally:
            shmlog("down", "--cluster", name, "--wipe")
    cold = python("import shmlog\nwith shmlog.Cluster(): ready = time.perf_counter()\nt += time.perf_counter() - ready")
    return {
        "up_ms": up_ms,
        "cluster_cold_ms": cold,
        "import_ms": python("import shmlog"),
        "import_and_first_use_ms": python("import shmlog; shmlog.Producer, shmlog.Consumer, shmlog.Admin"),
        "status_ms": status_ms,
        "pss_mib": pss,
        "idle_cpu_percent": cpu,
        "shm_kib_after_up": before_kib,
        "idle_partition_kib": (after_kib - before_kib) / 16,
    }


def cells(plan: Plan, peers: list[type[Peer]]) -> list[Cell]:
    if not any(p.name == "shmlog" for p in peers):
        return []
    return rounds({"shmlog": partial(one, 1 if plan.name == "tiny" else 10)}, "weight", "one broker", 3 if plan.full else 1)
