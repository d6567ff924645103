"""What acks waits for beyond the append: Deliveries that are pending, and how they are settled.

There is no thread in the background: whichever call of the producer finds a delivery acknowledged finishes it.
"""

from __future__ import annotations

import time
from collections import deque

from shmlog import errors
from shmlog._ffi import lib
from shmlog.client import handle
from shmlog.client.append import WAITING, Place, Thread, append_error
from shmlog.client.delivery import Delivery
from shmlog.client.routing import DURABLE, Routing

_REAP_EVERY = 64  # sends with acks pending between two looks at what was acknowledged meanwhile


class Acknowledging(Routing):
    """The layer that knows deliveries."""

    _delivery_timeout_ms: float
    _pending: deque[Delivery]
    _failed: deque[Delivery]

    def flush(self, timeout: float | None = None) -> None:
        """Waits until acks is satisfied for all that was sent, by all threads; up to `timeout` seconds (default: delivery_timeout_ms).

        KafkaTimeoutError names how many are not acknowledged. DeliveryError (count, first) tells failures that nobody looked at; each is told once.
        """
        self._check_open()
        deadline = handle.deadline_of(timeout, self._delivery_timeout_ms)
        while True:
            try:
                delivery = self._pending[0]
            except IndexError:
                break
            if delivery._producer is not None:
                self._await_until(delivery, deadline)
            self._reap()
        self._raise_failures()

    def _watch(self, delivery: Delivery, place: Place) -> None:
        delivery._place = place
        delivery._producer = self
        self._pending.append(delivery)
        if len(self._pending) % _REAP_EVERY == 0:
            self._reap()

    def _settle(self, delivery: Delivery) -> None:
        """Finishes it if it is acknowledged or has failed; never waits."""
        self._check_open()
        thread, place = self._thread(), delivery._place
        code = self._wait_call(thread, place, delivery, 0)
        if code == 0:
            self._finish(delivery, None)
        elif code not in WAITING:
            self._finish(delivery, append_error(thread, place.topic, place.partition, code, None, None))

    @staticmethod
    def _wait_call(thread: Thread, place: Place, delivery: Delivery, deadline_ns: int) -> int:
        wait = lib.sl_wait_durable if place.acks == DURABLE else lib.sl_wait_committed
        return int(wait(thread.cluster, thread.row, place.block, place.topic_id, delivery.offset + delivery.count, deadline_ns))

    def _await(self, delivery: Delivery, timeout: float | None) -> None:
        self._check_open()
        self._await_until(delivery, handle.deadline_of(timeout, self._delivery_timeout_ms))

    def _await_until(self, delivery: Delivery, deadline: int) -> None:
        """Waits until it is acknowledged or has failed; KafkaTimeoutError leaves it pending."""
        thread, place = self._thread(), delivery._place
        while delivery._producer is not None:
            now = time.monotonic_ns()
            code = self._wait_call(thread, place, delivery, min(deadline, now + handle.SLICE_NS))
            if code == 0:
                self._finish(delivery, None)
                return
            if code not in WAITING:
                self._finish(delivery, append_error(thread, place.topic, place.partition, code, None, None))
                return
            if code != lib.SL_E_INTR and time.monotonic_ns() >= deadline:
                what = "on disk at every in-sync replica" if place.acks == DURABLE else "at every in-sync replica"
                why = ": the disk is full" if code == lib.SL_E_DISK_FULL else ": the disk fails" if code == lib.SL_E_IO else ""
                raise errors.KafkaTimeoutError(
                    f"{place.topic}-{place.partition}@{delivery.offset} is in the log but not yet {what}{why}",
                    topic=place.topic,
                    partition=place.partition,
                )
            handle.check_cluster(thread.cluster, thread.session.name)

    def _finish(self, delivery: Delivery, error: BaseException | None) -> None:
        with self._lock:
            if delivery._producer is None:
                return  # another thread was first
            if error is not None:
                self._failed.append(delivery)
            delivery._error = error
            delivery._seen = False
            delivery._producer = None
        if hasattr(delivery, "_callbacks"):
            delivery._call_back()

    def _reap(self) -> None:
        """Finishes what was acknowledged meanwhile, from the oldest on, and forgets it."""
        pending = self._pending
        while True:
            try:
                delivery = pending[0]
            except IndexError:
                return
            if delivery._producer is not None:
                self._settle(delivery)
                if delivery._producer is not None:
                    return  # later ones of other partitions may be done: they are found when this one is
            with self._lock:
                if pending and pending[0] is delivery:
                    pending.popleft()

    def _raise_failures(self) -> None:
        with self._lock:
            unseen = [d for d in self._failed if not d._seen]
            self._failed.clear()
        if unseen:
            count = sum(d.count for d in unseen)
            first = unseen[0]._error
            raise errors.DeliveryError(f"{count} records were not acknowledged; the first: {first}", count=count, first=first) from first
