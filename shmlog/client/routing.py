"""A producer's way to a partition: the calling thread's row and appenders, the topic's route, and an append that may have to wait.

Producer is made of layers, each a file that knows those above it here: Routing, Acknowledging (acknowledging.py: what acks waits for), Batching
(batching.py: many records a call), Producer (producer.py). Producer.__init__ sets what they share.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from shmlog import errors
from shmlog._binding import Sender
from shmlog._ffi import ffi, lib
from shmlog.client import handle
from shmlog.client.append import WAITING, Place, Route, Thread, raise_append
from shmlog.client.encoding import expected_of, partition_number
from shmlog.client.session import Session
from shmlog.config import topic_config

append = lib.sl_append

# How far a record must have come before it is acknowledged.
APPENDED, COMMITTED, DURABLE = 0, 1, 2


class Routing(Sender):
    """The layer that knows threads, topics and partitions."""

    _generation: int
    _session: Session | None
    _acks: int
    _partitioner: Callable[[bytes | None, list[int], list[int]], int] | None
    _max_block_ms: float
    _local: threading.local
    _threads: list[weakref.ref[Thread]]
    # RLock of _topic_ids, _pending and _failed; reentrant, because a signal handler may send; not on the way of a send that waits for nothing
    _lock: Any
    _topic_ids: dict[str, bytes]
    _ended: list[int]  # records, bytes and waits of threads that are gone

    def _check_open(self) -> None:
        if self._generation != handle.generation:
            handle.refuse(self._generation, "Producer")

    def _attached(self) -> Session:
        session = self._session
        if session is None:
            handle.refuse(self._generation, "Producer")
        return session

    def _thread(self) -> Thread:
        try:
            thread: Thread = self._local.thread
            return thread
        except AttributeError:
            return self._enter()

    def _enter(self) -> Thread:
        """The first call of a thread: its row."""
        thread = Thread(self._attached(), self._ended)
        self._threads = [t for t in self._threads if t() is not None] + [weakref.ref(thread)]
        self._local.thread = thread
        return thread

    def _route(self, thread: Thread, topic: str) -> Route:
        route = thread.routes.get(topic)
        if route is None or route.version != thread.version[0]:
            return self._find_route(thread, topic)
        return route

    def _find_route(self, thread: Thread, topic: str) -> Route:
        """The route by the cluster view in force. Makes an unknown topic; refuses one that was deleted, or made anew, since this handle first used
        it."""
        session = thread.session
        version = int(thread.version[0])
        view = session.topic(topic)
        with self._lock:
            known = self._topic_ids.get(topic)
        if view is None and known is None:
            view = session.create_topic(topic, handle.deadline_of(None, self._max_block_ms))
        if view is None or (known is not None and view.topic_id != known):
            raise errors.UnknownTopicIdError(f"topic {topic!r} was deleted" + (" and made anew" if view else ""), topic=topic)
        with self._lock:
            known = self._topic_ids.setdefault(topic, view.topic_id)
        route = thread.routes.get(topic)
        if route is None:
            route = Route(topic, view.topic_id)
        config = topic_config(view.config)
        acks = []
        for n, p in enumerate(view.partitions):
            # Also as long as readers stop at the high watermark: an acknowledgement says that they may see the record (broker/factor.py).
            replicated = len(p.replicas) > 1 or lib.sl_cluster_partition(thread.cluster, p.block).flags & lib.SL_PF_REPLICATED
            if self._acks != APPENDED and config.min_insync_replicas > len(p.replicas):
                raise errors.NotEnoughReplicasError(
                    f"{topic}-{n} has {len(p.replicas)} replicas, min.insync.replicas is {config.min_insync_replicas}",
                    in_sync=len(p.replicas), required=config.min_insync_replicas,
                )  # fmt: skip
            if self._acks != APPENDED and config.min_insync_replicas > len(p.isr):
                raise errors.NotEnoughReplicasError(
                    f"{topic}-{n}: {len(p.isr)} of its replicas are in sync, min.insync.replicas is {config.min_insync_replicas}",
                    in_sync=len(p.isr), required=config.min_insync_replicas,
                )  # fmt: skip
            if self._acks == DURABLE and not (config.shmlog_spill and session.has_disk):
                raise errors.InvalidConfigurationError(
                    f'acks="disk": topic {topic!r} lives in memory only' + ("" if session.has_disk else " (the cluster runs with --data none)"),
                    key="acks", hint='use acks="all", or a topic with shmlog.spill=true in a cluster with a data directory',
                )  # fmt: skip
            acks.append(APPENDED if self._acks == COMMITTED and not replicated else self._acks)
        route.blocks = [p.block for p in view.partitions]
        route.acks = acks
        route.places += [None] * (len(acks) - len(route.places))
        changed = [place for place in route.places if place is not None and place.acks != acks[place.partition]]
        for place in changed:  # from one replica to several, or back: what acks=all has to wait for is another
            place.acks = acks[place.partition]
        route.count = len(acks)
        route.version = version
        thread.routes[topic] = route
        if route.lane is not None:
            route.lane.refresh(version, route.count)
            for place in changed:
                route.lane.open(place.partition, int(ffi.cast("uintptr_t", place.appender)), place if place.acks else None)
            thread.lanes.add(topic, route.lane)
        return route

    def _open(self, thread: Thread, route: Route, n: int) -> Place:
        out = ffi.new("sl_appender **")
        code = lib.sl_appender_open(thread.cluster, thread.row, route.blocks[n], route.topic_id, out)
        if code:
            raise_append(thread, route.topic, n, code, None, None)
        place = Place(route.topic, route.topic_id, n, route.blocks[n], out[0], route.acks[n])
        route.places[n] = place
        if route.lane is not None:
            route.lane.open(n, int(ffi.cast("uintptr_t", place.appender)), place if place.acks else None)
        return place

    def _partition_of(self, topic: str, key: bytes, partition: int | None, count: int) -> int:
        if partition is not None:
            return check_partition(topic, partition, count)
        if self._partitioner is not None:
            return self._ask_partitioner(topic, key, count)
        if count == 1:
            return 0
        return int((lib.sl_murmur2(key, len(key)) & 0x7FFFFFFF) % count)

    def _one_partition(self, route: Route, partition: int | None, nbytes: int) -> int:
        """Where records without keys go."""
        if partition is not None:
            return check_partition(route.topic, partition, route.count)
        if self._partitioner is not None:
            return self._ask_partitioner(route.topic, None, route.count)
        return 0 if route.count == 1 else route.sticky.choose(nbytes, time.monotonic_ns(), route.count)

    def _ask_partitioner(self, topic: str, key: bytes | None, count: int) -> int:
        assert self._partitioner is not None
        everything = list(range(count))
        return check_partition(topic, self._partitioner(key, everything, everything), count)

    def _max_message_bytes(self, thread: Thread, place: Place) -> int:
        return int(lib.sl_cluster_partition(thread.cluster, place.block).max_message_bytes)

    # --- appending when it is not done at once ---

    def _append_slowly(self, thread: Thread, place: Place, record: Any, result: Any, code: int, expected_offset: int | None) -> None:
        """Goes on with an append that did not happen at once, in slices, up to max_block_ms. Raises, or has appended."""
        expected = expected_of(expected_offset)
        self._wait_for(thread, place.topic, place.partition, code, result, lambda d: append(place.appender, record, expected, d, result), expected)

    def _wait_for(
        self, thread: Thread, topic: str, partition: int, code: int, result: Any, attempt: Callable[[int], int], expected: int | None = None
    ) -> None:
        deadline = handle.deadline_of(None, self._max_block_ms)
        thread.waits += 1
        while code:
            if code not in WAITING:
                raise_append(thread, topic, partition, code, result, None, expected)
            now = time.monotonic_ns()
            if now >= deadline and code != lib.SL_E_INTR:
                raise_append(thread, topic, partition, code, result, self._max_block_ms)
            handle.check_cluster(thread.cluster, thread.session.name)
            until = min(deadline, now + handle.SLICE_NS)
            if code == lib.SL_E_FENCED:  # fails at once; a new leader bumps the word that sl_view_wait() sleeps on
                lib.sl_view_wait(thread.cluster, lib.sl_cluster_control(thread.cluster).view_changes, min(until, now + 2_000_000))
            code = attempt(until)


def check_partition(topic: str, partition: int, count: int) -> int:
    if 0 <= partition_number(partition) < count:
        return int(partition)
    raise errors.no_partition(topic, partition, count)
