"""How long is a broker away after kill -9, and who notices? (shared memory intact, the next broker comes from the warm spare)"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np

from .harness import Cell, Plan, Round, core, started, together
from .measure import latencies
from .peers import Peer, Shmlog, ShmlogDisk, Task

FIGURE, UNIT, LESS_IS_BETTER = "longest_gap_ms", "ms", True
FIGURES = {"restart": ("restart_ms", "ms", True)}


def restart(unspilled_mib: int) -> Round:
    """From the kill until a record is acknowledged on the disk again."""
    from shmlog import Producer

    from .harness import Noise

    with started(ShmlogDisk(Task(100))) as peer:
        rows = np.zeros((1024, 1024), "u1")
        noise = Noise()
        with Producer(bootstrap_servers=peer.address, acks="disk") as producer:
            producer.send("bench", b"x", partition=0).result(30)
            noise.start()
            for _ in range(unspilled_mib):
                producer.send_many("bench", rows, partition=0)
            begin = time.perf_counter()
            peer._cluster.kill("broker", 0)
            producer.send("bench", b"x", partition=0).result(60)
            took_ms = 1e3 * (time.perf_counter() - begin)
            noise.stop()
    return noise.into(Round({"restart_ms": took_ms, "unspilled_mib": float(unspilled_mib), "allowed_ms": 50.0 + unspilled_mib}))


def feed(seconds: float, kill: bool) -> Round:
    gaps = np.full(int(10_000 * seconds), 100_000, np.int64)
    with started(Shmlog(Task(64, wait="block"))) as peer:

        def during() -> None:
            if kill:
                time.sleep(seconds / 2)  # the plan of this measurement: the broker dies half-way
                peer._cluster.kill("broker", 0)

        ends: list[tuple[str, dict[str, Any]]] = [("clock", {"core": core(0), "gaps_ns": gaps}), ("watch", {"core": core(1), "most": len(gaps)})]
        (clock, watch), noise = together(peer, ends, during=during)
    figures = {
        "longest_gap_ms": watch["longest_gap_ns"] / 1e6,
        "failed_sends": float(len(gaps) - clock["sent"]),
        "missing": float(len(gaps) - watch["received"]),
    }
    text = latencies(figures, watch["latencies_ns"])
    return noise.into(Round(figures, text))


def cells(plan: Plan, peers: list[type[Peer]]) -> list[Cell]:
    if not any(p.name == "shmlog" for p in peers):
        return []
    seconds = max(0.2, 2 * plan.seconds)
    return [
        Cell("faults", "10 k/s feed, longest gap", "undisturbed", partial(feed, seconds, False)),
        Cell("faults", "10 k/s feed, longest gap", "broker killed", partial(feed, seconds, True)),
        Cell("faults", "restart until a record is on the disk", "nothing unspilled", partial(restart, 0)),
        Cell("faults", "restart until a record is on the disk", "up to 32 MiB unspilled", partial(restart, 32)),
    ]
