"""Does an append or a read cost more when the cluster has grown: thousands of partitions, a long log, many idle consumers?"""

from __future__ import annotations

import contextlib
from functools import partial

from .harness import Cell, Plan, Round, core, started, together
from .peers import Peer, Shmlog, Task
from .words import size

FIGURE, UNIT, LESS_IS_BETTER = "append_us", "us", True


class Grown(Shmlog):
    name = "shmlog"
    more_partitions = 0
    log_bytes = 0
    idle_consumers = 0

    def start(self) -> None:
        super().start()
        from shmlog import Admin, NewTopic

        with contextlib.closing(Admin(bootstrap_servers=self.address)) as admin:
            if self.more_partitions:
                admin.create_topics([NewTopic("more", num_partitions=self.more_partitions)])
            if self.idle_consumers:
                admin.create_topics([NewTopic("quiet")])
        if self.log_bytes:
            import numpy as np

            from shmlog import Producer

            rows = np.zeros((1024, 1024), "u1")
            with Producer(bootstrap_servers=self.address) as producer:
                for _ in range(self.log_bytes >> 20):
                    producer.send_many("bench", rows, partition=0)


def grown(seconds: float, more_partitions: int = 0, log_bytes: int = 0, idle_consumers: int = 0) -> Round:
    peer = Grown(Task(100))
    peer.more_partitions, peer.log_bytes, peer.idle_consumers = more_partitions, log_bytes, idle_consumers
    peer.reset = "latest" if log_bytes else "earliest"
    with started(peer):
        ends = [("cost", {"core": core(0), "seconds": seconds})]
        if idle_consumers:
            ends.append(("idlers", {"n": idle_consumers}))
        results, noise = together(peer, ends, 240)
    return noise.into(Round({"append_us": results[0]["send_ns"] / 1e3, "read_us": results[0]["receive_ns"] / 1e3}))


def cells(plan: Plan, peers: list[type[Peer]]) -> list[Cell]:
    if not any(p.name == "shmlog" for p in peers):
        return []
    partitions, log_bytes = (10_000, 10 << 30) if plan.full else (1_000, 256 << 20)
    small = {"small": partial(grown, plan.seconds)}
    candidates = {
        **small,
        f"{partitions:,} partitions": partial(grown, plan.seconds, more_partitions=partitions),
        f"a log of {size(log_bytes)}": partial(grown, plan.seconds, log_bytes=log_bytes),
        "32 idle consumers": partial(grown, plan.seconds, idle_consumers=32),
    }
    return [Cell("growth", "100 B, append and read", name, run, None if name == "small" else 2 if plan.full else 1) for name, run in candidates.items()]
