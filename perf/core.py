"""What does the C core cost against a minimal ring?

Two processes, one a core, both polling; memory-only topics with a tethered reader (lossless, like the ring); broker and coordinator run beside them.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from perf.harness import rounds

HERE = Path(__file__).parent
ROOT = HERE.parent
SIZES = {"pingpong 64 B": ("pingpong", 64, 200_000), "stream 100 B": ("stream", 100, 5_000_000), "stream 1 MiB": ("stream", 1 << 20, 2_000)}


def build() -> Path:
    program = ROOT / "build" / "perf" / "c_bench"
    program.parent.mkdir(parents=True, exist_ok=True)
    sources = [str(HERE / "c_bench.c"), *(str(p) for p in sorted((ROOT / "csrc").glob("*.c")) if p.name != "pyext.c")]
    subprocess.run(["gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", f"-I{ROOT / 'csrc'}", "-o", str(program), *sources, "-lpthread"], check=True)
    return program


def run(n: int) -> dict[str, Any]:
    from shmlog import Admin, Cluster, NewTopic, shm
    from shmlog._ffi import ffi, lib
    from shmlog.client.session import attach

    program = build()
    out: dict[str, Any] = {}
    with Cluster() as cluster, attach(cluster.address) as session:
        rows = [session.take_row(kind) for kind in (1, 2, 1, 2)]
        for name, (mode, value_bytes, count) in SIZES.items():

            def shmlog_round(mode: str = mode, value_bytes: int = value_bytes, count: int = count) -> dict[str, float]:
                topics = ["bench-a", "bench-b"]
                admin = Admin(bootstrap_servers=cluster.address)
                admin.create_topics([NewTopic(t, config={"shmlog.spill": "false"}) for t in topics])
                views = [session.topic(t) for t in topics]
                blocks = [v.partitions[0].block for v in views if v]
                ids = [ffi.buffer(lib.sl_cluster_partition(session.cluster, b).topic_id, 16)[:].hex() for b in blocks]
                try:
                    return call(program, "shmlog", mode, value_bytes, count, shm.prefix(cluster.name), *blocks, *rows, *ids)
                finally:
                    admin.delete_topics(topics)
                    admin.close()

            def ring_round(mode: str = mode, value_bytes: int = value_bytes, count: int = count) -> dict[str, float]:
                return call(program, "ring", mode, value_bytes, count)

            candidates: dict[str, Callable[[], dict[str, float]]] = {"shmlog C": shmlog_round}
            if value_bytes < 1 << 18:  # the ring holds 2 MiB in all
                candidates["minimal ring C"] = ring_round
            out[name] = rounds(candidates, n)
        for row in rows:
            session.give_row(row)
    return out


def call(program: Path, *arguments: object) -> dict[str, float]:
    done = subprocess.run([str(program), *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise RuntimeError(f"c_bench {' '.join(map(str, arguments))}: {done.stderr.strip()}")
    return json.loads(done.stdout)  # type: ignore[no-any-return]
