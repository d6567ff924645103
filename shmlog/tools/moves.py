"""`topic move` and `broker retire`, watched: how far the new replicas are behind, from the cluster view, shared memory and the files, asking nobody.

A move goes on by itself; who watches it may leave at any moment. On a terminal it is a bar on stderr, elsewhere a line a second on stdout, with --json
an object a line."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from shmlog import clock, messages
from shmlog._ffi import lib
from shmlog.errors import BrokerNotRunningError, ClosedError, KafkaTimeoutError
from shmlog.messages import ClusterView, PartitionView, TopicView
from shmlog.tools import status

LOOK_NS = 200 * clock.MS
LINE_NS = clock.NS  # between two lines
BAR_CELLS = 24


class Move(NamedTuple):
    """A partition on its way."""

    topic: str
    partition: int
    view: PartitionView
    records_behind: int  # of all that are not in sync yet, together
    bytes_behind: int

    def to_json(self) -> dict[str, Any]:
        p = self.view
        return {
            "topic": self.topic, "partition": self.partition, "state": "moving" if p.target else "moved", "leader": p.leader,
            "replicas": list(p.replicas), "isr": list(p.isr), "adding_replicas": list(p.adding), "removing_replicas": list(p.removing),
            "records_behind": self.records_behind, "bytes_behind": self.bytes_behind,
        }  # fmt: skip

    def __str__(self) -> str:
        place, p = f"{self.topic}-{self.partition}", self.view
        if not p.target:
            return f"{place} is at {_ids(p.replicas)}, led by broker {p.leader}"
        wait = [r for r in p.target if r not in p.isr]
        behind = f"{_ids(wait)} {self.records_behind:,} records ({status.size(self.bytes_behind)}) behind" if wait else "in sync"
        return f"{place} goes from {_ids(p.before)} to {_ids(p.target)}: {behind}"


def _ids(brokers: Sequence[int]) -> str:
    return ("broker " if len(brokers) == 1 else "brokers ") + ",".join(map(str, brokers))


def _look(attached: status.Attached, view: ClusterView, topic: TopicView, n: int, namespace: str) -> Move:
    p = topic.partitions[n]
    records = size = 0
    waited = [r for r in p.target if r not in p.isr]
    if waited:
        _, offsets = attached.offsets(p.block)
        there = _log_bytes(status.directory_of(view, topic, n))
        for broker in waited:
            directory = status.directory_of(view, topic, n, broker)
            records += max(0, int(offsets.end) - max(status.file_offsets(directory)[1], int(offsets.log_start)))
            size += max(0, there - _log_bytes(directory))
    name = topic.name[len(namespace) + 1 :] if namespace else topic.name
    return Move(name, n, p, records, size)


def _log_bytes(directory: str) -> int:
    return status.used_bytes(directory) if directory else 0


def watch(cluster: str, namespace: str, chosen: Callable[[ClusterView], list[tuple[str, int]] | None], timeout: float | None) -> Iterator[list[Move]]:
    """What is on its way, again and again, until `chosen` (the partitions, by internal name; None: it is over) says so."""
    deadline = clock.monotonic_ns() + int(timeout * clock.NS) if timeout is not None else 2**63
    with status.Attached(cluster) as attached:
        while True:
            changes = attached.control.view_changes
            if attached.control.cluster_state == lib.SL_CLUSTER_DOWN:
                raise ClosedError(f"cluster {cluster} was shut down; the move goes on when it is up again")
            view = attached.view()
            wanted = chosen(view)
            if wanted is None:
                return
            yield [_look(attached, view, view.topics[name], n, namespace) for name, n in wanted if name in view.topics]
            now = clock.monotonic_ns()
            if now >= deadline:
                raise KafkaTimeoutError(f"not at its end after {timeout:g} s; it goes on, `shmlog topic describe` shows how far", timeout=timeout)
            if not attached.live():
                raise BrokerNotRunningError(f"no process of cluster {cluster} lives any more", hint="`shmlog up` goes on where they stopped")
            lib.sl_view_wait(attached.handle, changes, min(deadline, now + LOOK_NS))


def wait_moved(cluster: str, namespace: str, partitions: Sequence[tuple[str, int]], timeout: float | None, shown: Shown) -> list[Move]:
    """Until none of these is on its way; what they are then."""
    names = [(messages.internal_name(namespace, topic), n) for topic, n in partitions]
    last: list[Move] = []

    def chosen(view: ClusterView) -> list[tuple[str, int]] | None:
        return [(name, n) for name, n in names if name in view.topics and n < len(view.topics[name].partitions)]

    with shown:
        for last in watch(cluster, namespace, chosen, timeout):
            going = [move for move in last if move.view.target]
            if not going:
                break
            shown(going)
    return last


def wait_retired(cluster: str, broker_id: int, timeout: float | None, shown: Shown) -> None:
    """Until the cluster has forgotten the broker."""

    def chosen(view: ClusterView) -> list[tuple[str, int]] | None:
        if broker_id not in view.brokers:
            return None
        return [(t.name, n) for t in view.topics.values() for n, p in enumerate(t.partitions) if broker_id in p.replicas]

    with shown:
        for moves in watch(cluster, "", chosen, timeout):
            shown(moves)


class Shown:
    """Progress, in the way that suits who reads it."""

    def __init__(self, what: str, show: Callable[[Any], None] | None) -> None:
        """show: prints an object of --json; None: for people."""
        self.what = what
        self.show = show
        self.bar = show is None and sys.stderr.isatty()
        self.most = 1
        self.last: list[Move] = []
        self.at_ns = 0

    def __enter__(self) -> Shown:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.bar:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def __call__(self, moves: list[Move]) -> None:
        now = time.monotonic_ns()
        if self.bar:
            behind, records = sum(m.bytes_behind for m in moves), sum(m.records_behind for m in moves)
            self.most = max(self.most, behind)
            full = BAR_CELLS - round(BAR_CELLS * behind / self.most)
            text = f"{self.what} [{'#' * full}{'.' * (BAR_CELLS - full)}] {records:,} records, {status.size(behind)} behind"
            print(f"\r{text}\x1b[K", end="", file=sys.stderr, flush=True)
        elif now - self.at_ns >= LINE_NS and moves != self.last:
            self.at_ns, self.last = now, moves
            for move in moves:
                if self.show is not None:
                    self.show(move.to_json())
                else:
                    print(move, flush=True)
