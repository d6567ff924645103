"""What would a topic of yours cost through every peer at hand? (its real sizes and gaps, replayed; open loop)

A bounded sample of the topic's end is read: the newest records, as many as fit the time that a round may take. Where even a hundred of them would
take longer, the gaps are divided by a number, and the case says by which.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from . import measure
from .harness import Cell, Plan
from .peers import Peer
from .words import number, size

FIGURE, UNIT, LESS_IS_BETTER = "p50_us", "us", True

MOST_RECORDS = 20_000
FEW = 100


@dataclass
class Sample:
    topic: str
    sizes: list[int]  # key and value, bytes, in the order of the timestamps
    gaps_ns: list[int]  # before each of them
    divided_by: float

    @property
    def words(self) -> str:
        seconds = sum(self.gaps_ns) / 1e9
        rate = len(self.sizes) / seconds if seconds else float("inf")
        faster = f", gaps divided by {number(self.divided_by)}" if self.divided_by > 1 else ""
        return f"{self.topic}: {len(self.sizes):,} records, median {size(int(np.median(self.sizes)))}, {number(rate).strip()}/s{faster}"


def sample(address: str | None, topic: str, limit_s: float) -> Sample:
    from shmlog import Consumer, TopicPartition
    from shmlog.errors import NoOffsetForPartitionError

    consumer = Consumer(bootstrap_servers=address)
    try:
        partitions = [TopicPartition(topic, p) for p in sorted(consumer.partitions_for_topic(topic) or ())]
        consumer.assign(partitions or [TopicPartition(topic, 0)])  # raises what is wrong with the topic
        ends, begins = consumer.end_offsets(partitions), consumer.beginning_offsets(partitions)
        found: list[tuple[int, int]] = []
        for tp in partitions:
            first = max(begins[tp], ends[tp] - MOST_RECORDS)
            consumer.assign([tp])
            consumer.seek(tp, first)
            while consumer.position(tp) < ends[tp]:
                for records in consumer.poll(timeout_ms=1000, max_records=2000).values():
                    found += [(r.timestamp_ns, len(r.key or b"") + len(r.value or b"")) for r in records]
    finally:
        consumer.close()
    found = sorted(found)[-MOST_RECORDS:]
    if len(found) < 2:
        raise NoOffsetForPartitionError(f"{topic} holds {len(found)} records; two are the least that have a gap", topic=topic)
    stamps = np.array([t for t, _ in found], np.int64)
    gaps = np.diff(stamps)
    fits = int(np.searchsorted(np.cumsum(gaps[::-1]), limit_s * 1e9)) + 1  # records from the end
    keep = max(min(fits, len(found)), min(FEW, len(found)))
    gaps = gaps[len(gaps) - (keep - 1) :]
    divided_by = max(1.0, float(gaps.sum()) / (limit_s * 1e9))
    return Sample(topic, [n for _, n in found[-keep:]], [0, *(gaps / divided_by).astype(np.int64).tolist()], divided_by)


def cells(plan: Plan, peers: list[type[Peer]], taken: Sample) -> list[Cell]:
    gaps: Any = np.array(taken.gaps_ns, np.int64)
    sizes = [max(8, n) for n in taken.sizes]
    needs = {"paced"} | ({"large"} if max(sizes) > 1 << 16 else set())
    return [
        Cell(
            "like",
            f"{taken.words}; receiver {'sleeping' if wait == 'block' else 'polling'}",
            peer.name,
            partial(measure.open_loop, peer, max(sizes), gaps, wait, sizes),
        )
        for wait in ("block", "spin")
        for peer in peers
        if needs <= peer.can and (wait == "spin" or "blocking" in peer.can)
    ]
