"""What does the C core cost against what the machine allows? (two processes, one a core; memory-only topics with a tethered reader, lossless like
the ring)"""

from __future__ import annotations

import json
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

from . import harness, measure
from .harness import HERE, IN_TREE, ROOT, Cell, Failed, Noise, Plan, Round
from .native import compile_c, directory
from .peers import Peer, program
from .peers.jvm import Java

FIGURE, UNIT, LESS_IS_BETTER = "records_per_s", "/s", False
FIGURES = {"64 B": ("p50_us", "us", True), "wake": ("p50_us", "us", True)}

# case -> {candidate: (who, mode, bytes, count in a round of a second, batch)}
CASES: dict[str, dict[str, tuple[str, str, int, int, int]]] = {
    "64 B there and back": {
        "shmlog (C)": ("shmlog", "pingpong", 64, 1_000_000, 1),
        "minimal ring (C)": ("floor", "pingpong", 64, 2_000_000, 1),
        "two cache lines": ("floor", "bounce", 64, 2_000_000, 1),
    },
    "100 B, one an append": {
        "shmlog (C)": ("shmlog", "stream", 100, 8_000_000, 1),
        "minimal ring (C)": ("floor", "stream", 100, 20_000_000, 1),
    },
    "32 x 100 B an append": {
        "shmlog (C)": ("shmlog", "stream", 100, 20_000_000, 32),
        "minimal ring (C)": ("floor", "stream", 100, 32_000_000, 32),
    },
    "100 B appends, nobody reads": {
        "shmlog (C), one producer": ("shmlog", "appends", 100, 8_000_000, 1),
        "shmlog (C), two on one partition": ("shmlog", "appends", 100, 3_000_000, 2),
        "shmlog (C), two on two partitions": ("shmlog", "appends", 100, 6_000_000, 3),
        "bare claim, one": ("floor", "claim", 100, 20_000_000, 1),
        "bare claim, two": ("floor", "claim", 100, 8_000_000, 2),
    },
    "1 MiB copied in": {"shmlog (C)": ("shmlog", "stream", 1 << 20, 3_000, 1)},
    "wake a sleeper, 10 k/s": {"bare futex (C)": ("floor", "futex", 64, 10_000, 1)},
}


def build() -> tuple[Path, bool]:
    """The program, and whether it has the core in it (an installed wheel has not its sources)."""
    sources = [HERE / "c_bench.c"]
    flags: list[str] = []
    if IN_TREE:
        sources += sorted(p for p in (ROOT / "csrc").glob("*.c") if p.name != "pyext.c")
        flags = [f"-I{ROOT / 'csrc'}", "-DSHMLOG_CORE"]
    parts = [p.read_bytes() for p in [*sources, HERE / "minimal_ring.h", *(sorted((ROOT / "csrc").glob("*.h")) if IN_TREE else [])]]
    found = directory(*parts, *flags) / "c_bench"
    if not found.exists():
        compile_c(sources, found, ["-Wall", "-Wextra", *flags])
    return found, IN_TREE


def cells(plan: Plan, peers: list[type[Peer]]) -> list[Cell]:
    if program("gcc") is None:
        return []
    ours = any(p.name == "shmlog" for p in peers)
    found = [
        Cell("core", case, name, partial(one, who, mode, value_bytes, max(100, int(count * plan.seconds)), batch))
        for case, candidates in CASES.items()
        for name, (who, mode, value_bytes, count, batch) in candidates.items()
        if who == "floor" or (ours and IN_TREE)
    ]
    if plan.full:  # the same rounds as in `latency` and `rate`, beside ends that are no more in Python than theirs
        for peer in peers:
            if issubclass(peer, Java):
                found.append(Cell("core", "64 B there and back", peer.name, partial(measure.pingpong, peer, 64, plan.seconds), plan.rounds_of(peer)))
                found.append(Cell("core", "100 B, one an append", peer.name, partial(measure.stream, peer, 100, plan.seconds), plan.rounds_of(peer)))
    return found


def one(who: str, mode: str, value_bytes: int, count: int, batch: int) -> Round:
    build()
    noise = Noise()
    arguments = [who, mode, value_bytes, count, batch]
    if who == "floor":
        noise.start()
        found = call(*arguments)
        noise.stop()
    else:
        found = on_cluster(noise, arguments)
    figures = {name.replace("_ns", "_us"): value / 1e3 if name.endswith("_ns") else value for name, value in found.items()}
    return noise.into(Round(figures))


def on_cluster(noise: Noise, arguments: list[Any]) -> dict[str, float]:
    from shmlog import Admin, Cluster, NewTopic, shm
    from shmlog._ffi import ffi, lib
    from shmlog.client.session import attach

    with Cluster() as cluster, attach(cluster.address) as session:
        topics = ["bench-a", "bench-b"]
        admin = Admin(bootstrap_servers=cluster.address)
        admin.create_topics([NewTopic(t, config={"shmlog.spill": "false"}) for t in topics])
        admin.close()
        rows = [session.take_row(kind) for kind in (1, 2, 1, 2)]
        blocks = [view.partitions[0].block for t in topics if (view := session.topic(t))]
        ids = [ffi.buffer(lib.sl_cluster_partition(session.cluster, b).topic_id, 16)[:].hex() for b in blocks]
        try:
            noise.start()
            found = call(*arguments, shm.prefix(cluster.name), *blocks, *rows, *ids)
            noise.stop()
        finally:
            for row in rows:
                session.give_row(row)
    return found


def call(*arguments: object) -> dict[str, float]:
    command, _ = build()
    try:
        done = subprocess.run([str(command), *map(str, arguments)], capture_output=True, text=True, timeout=harness.limit_s, check=False)
    except subprocess.TimeoutExpired:
        raise Failed(f"c_bench {' '.join(map(str, arguments[:5]))}: no answer within {harness.limit_s:g} s") from None
    if done.returncode:
        raise Failed(f"c_bench {' '.join(map(str, arguments[:5]))}: {done.stderr.strip()}")
    return json.loads(done.stdout)  # type: ignore[no-any-return]
