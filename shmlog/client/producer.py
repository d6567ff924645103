"""Producer: appends records straight into the log's memory.

The way of a record: send() finds the thread's appender for the partition, points a C struct at the value's own bytes and calls sl_append(), which
copies them into the log and publishes them by one compare-and-swap. When send() returns the record has its place: the offset is known, no buffer or
background thread holds it. What may still be open is what `acks` asks for beyond that (copies at the replicas, fdatasync), and that is what a
Delivery waits for.

Threads share a Producer. Each thread has a row (its hazard words) and appenders of its own, made at its first send and given back when it ends, so the
hot path takes no lock. The struct that the C call reads is taken off a free list and put back: a signal handler that sends in the middle of a send
gets another.

Errors: an append happens or fails within the call, so send(), send_many() and the end of a loan raise what went wrong with it. Only what acks waits for
can fail later: result() raises that, or flush(), close() and the end of a `with` block, as DeliveryError, if nobody looked.

The layers under this one, each a file: routing.py, acknowledging.py, batching.py.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from shmlog import errors
from shmlog._binding import take_over
from shmlog.client import handle
from shmlog.client.batching import BATCH_MAX_RECORDS, Batching
from shmlog.client.delivery import Deliveries, Delivery
from shmlog.client.encoding import (
    NULL,
    U8,
    bytes_of,
    clear,
    expected_of,
    fill,
    from_buffer,
    timestamp,
    value_of,
)
from shmlog.client.loan import Loan
from shmlog.client.routing import APPENDED, COMMITTED, DURABLE, append, check_partition
from shmlog.client.session import attach

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

Headers = Sequence[tuple[str, bytes | None]]

_WITHOUT_EFFECT = handle.CONNECTION_KEYWORDS | {
    "allow_auto_create_topics",
    "batch_size",
    "buffer_memory",
    "delivery_report",
    "enable_idempotence",
    "linger_ms",
    "max_request_size",
    "partitioner_ignore_keys",
    "retries",
    "transaction_timeout_ms",
}


class Producer(Batching):
    """Sends records to topics of a cluster. Threads may share one.

    bootstrap_servers       "shm://name" or "shm://name/namespace"; None: $SHMLOG_CLUSTER, else "shm://default"
    acks                    what result(), flush() and close() wait for: 0 and 1 nothing beyond the append (which has happened when send() returns),
                            "all" (or -1) committed at all in-sync replicas, "disk" fdatasync at all of them
    key_serializer, value_serializer   callables, or objects with serialize(topic, value); None keys and values stay null
    partitioner             None: murmur2 of the key exactly as Java's client; without a key sticky (the next partition after 64 KiB or 1 ms). Else
                            partitioner(key_bytes, all_partitions, available_partitions) -> partition
    max_block_ms            how long a send waits for room, for a leader, or for an unknown topic to be made
    delivery_timeout_ms     how long result(), flush() and close() wait when they are given no timeout
    client_id               shown by nothing yet; kept for kafka-python's sake

    Also accepted, without effect (there is no connection, no send buffer, and an append is never repeated): batch_size, linger_ms, buffer_memory,
    retries, enable_idempotence, max_request_size, compression_type=None and all of kafka-python's connection and security keywords.

    NoBrokersAvailable when no cluster runs. InvalidConfigurationError for a Kafka address. TypeError for an unknown keyword.
    """

    def __init__(
        self,
        bootstrap_servers: str | list[str] | None = None,
        *,
        acks: int | str = "all",
        key_serializer: Any = None,
        value_serializer: Any = None,
        partitioner: Callable[[bytes | None, list[int], list[int]], int] | None = None,
        max_block_ms: float = 60_000,
        delivery_timeout_ms: float = 120_000,
        compression_type: str | None = None,
        transactional_id: str | None = None,
        client_id: str = "",
        **without_effect: Any,
    ) -> None:
        self._generation = handle.CLOSED  # the layers below declare what is set here
        handle.check_keywords(type(self), without_effect, Producer.__init__.__kwdefaults__, _WITHOUT_EFFECT)
        self._recipe = {
            "bootstrap_servers": bootstrap_servers,
            "acks": acks,
            "key_serializer": key_serializer,
            "value_serializer": value_serializer,
            "partitioner": partitioner,
            "max_block_ms": max_block_ms,
            "delivery_timeout_ms": delivery_timeout_ms,
            "client_id": client_id,
        }
        self._acks = _acks(acks)
        if compression_type not in (None, "none", "uncompressed"):
            raise errors.UnsupportedCodecError(
                f"compression_type={compression_type!r}: records are kept as they are sent; memory is shared, so nothing is gained on the way"
            )
        if transactional_id is not None:
            raise errors.IllegalArgumentError(f"transactional_id={transactional_id!r}: transactions come with a later version of shmlog")
        self._serialize_key = handle.conversion(key_serializer, "serialize")
        self._serialize_value = handle.conversion(value_serializer, "serialize")
        self._partitioner = partitioner
        self._plain = self._serialize_key is None and self._serialize_value is None and partitioner is None
        self._max_block_ms = max_block_ms
        self._delivery_timeout_ms = delivery_timeout_ms
        self.client_id = client_id
        self._local = threading.local()
        self._threads = []
        self._lock = threading.RLock()
        self._topic_ids = {}
        self._pending = deque()
        self._failed = deque()
        self._ended = [0, 0, 0]
        self._session = attach(bootstrap_servers)
        self._generation = handle.generation

    # --- sending ---

    def send(
        self,
        topic: str,
        value: Any = None,
        key: Any = None,
        headers: Headers | None = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
        *,
        timestamp_ns: int | None = None,
        expected_offset: int | None = None,
    ) -> Delivery:
        """Appends one record and returns a Delivery whose offset is known.

        value            bytes, any buffer, or a numpy array (its dtype and shape travel along); None is null, a tombstone. Copied before send() returns
        key              bytes or any buffer; None is null
        headers          [(str, bytes or None), ...]
        timestamp_ms, timestamp_ns   wall clock; default now
        expected_offset  append only if this is exactly the end of the partition's log, else OffsetConflictError; needs partition or key

        Raises at once what keeps the record out of the log: MessageSizeTooLargeError; KafkaTimeoutError when there was no room or no leader for
        max_block_ms; StorageFullError, ShmSpaceError with the numbers; UnknownTopicOrPartitionError (also for ever after the topic was deleted: a
        handle never writes to a later topic of the same name); TypeError for str without a serializer. A topic that does not exist is made
        (auto.create.topics.enable).
        """
        if self._generation != handle.generation:
            handle.refuse(self._generation, "Producer")
        try:
            thread = self._local.thread
        except AttributeError:
            thread = self._enter()
        if self._serialize_value is not None and value is not None:
            value = self._serialize_value(topic, value)
        if self._serialize_key is not None and key is not None:
            key = self._serialize_key(topic, key)
        try:
            route = thread.routes[topic]
            if route.version != thread.version[0]:
                route = self._find_route(thread, topic)
        except KeyError:
            route = self._find_route(thread, topic)
        dtype = None
        if type(value) is bytes:
            value_bytes = len(value)
            value_buffer = from_buffer(U8, value)  # points into the value and keeps it alive; so do `kept`s below
        elif value is None:
            value_bytes = 0
            value_buffer = NULL
        else:
            value_buffer, value_bytes, dtype = value_of(value)
        if key is None:
            if partition is not None:
                n = check_partition(topic, partition, route.count)
            elif self._partitioner is not None:
                n = self._ask_partitioner(topic, None, route.count)
            elif route.count == 1:
                n = 0
            else:
                n = route.sticky.choose(value_bytes, time.monotonic_ns(), route.count)
        else:
            if type(key) is not bytes:
                key = bytes_of(key, "key")
            n = self._partition_of(topic, key, partition, route.count)
        place = route.places[n] or self._open(thread, route, n)
        try:
            structs = thread.free.pop()
        except IndexError:
            structs = thread.structs()
        record, result = structs
        record.value = value_buffer
        record.value_bytes = value_bytes
        if key is None and headers is None and dtype is None and timestamp_ms is None and timestamp_ns is None:
            kept = None
        else:
            kept = fill(record, key, headers, dtype, timestamp(timestamp_ms, timestamp_ns))
        code = append(place.appender, record, -1 if expected_offset is None else expected_of(expected_offset), 0, result)
        if code:
            self._append_slowly(thread, place, record, result, code, expected_offset)
        delivery = Delivery(topic, n, result.offset, result.timestamp_ns)
        if kept is not None:
            clear(record)
        thread.free.append(structs)
        thread.records += 1
        thread.nbytes += value_bytes
        if place.acks:
            self._watch(delivery, place)
        return delivery

    def loan(
        self,
        topic: str,
        *,
        shape: int | tuple[int, ...] | None = None,
        dtype: DTypeLike = "u1",
        nbytes: int | None = None,
        key: Any = None,
        headers: Headers | None = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
        timestamp_ns: int | None = None,
        expected_offset: int | None = None,
    ) -> Loan:
        """Lends memory of the log itself to write a record's value into: `with producer.loan("frames", shape=(480, 640, 3)) as loan: loan.array[...]
        = ...`

        shape, dtype    loan.array is a numpy array of them, and they travel with the record
        nbytes          instead of shape: loan.array is a memoryview of so many bytes

        The memory is not zeroed. At the end of the block the record is appended, after an exception it is dropped. Up to 8 loans of a thread at a
        time. Raises as send() does.
        """
        if self._generation != handle.generation:
            handle.refuse(self._generation, "Producer")
        if (shape is None) == (nbytes is None):
            raise TypeError("loan() takes either shape (with dtype) or nbytes")
        if nbytes is not None and nbytes < 0:
            raise errors.IllegalArgumentError(f"nbytes={nbytes} is negative")
        expected_of(expected_offset)  # before anything is written into the loan
        if self._serialize_key is not None and key is not None:
            key = self._serialize_key(topic, key)
        stamp = timestamp(timestamp_ms, timestamp_ns)
        return Loan(self, topic, shape, dtype, nbytes, None if key is None else bytes_of(key, "key"), headers, partition, stamp, expected_offset)

    # --- the rest of the public side ---

    def partitions_for(self, topic: str) -> set[int]:
        """The partitions of a topic. UnknownTopicOrPartitionError if there is none; looking makes no topic."""
        self._check_open()
        view = self._attached().topic(topic)
        if view is None:
            raise errors.UnknownTopicOrPartitionError(f"there is no topic {topic!r}", topic=topic)
        return set(range(len(view.partitions)))

    def metrics(self) -> dict[str, float]:
        """Counters since this Producer was made: records and bytes sent (values only), sends that had to wait, records not acknowledged yet, threads
        with a row."""
        totals = list(self._ended)
        threads = [thread for thread in (t() for t in self._threads) if thread is not None]
        for thread in threads:
            totals = [total + n for total, n in zip(totals, thread.counts(), strict=True)]
        return {
            "records_total": totals[0],
            "bytes_total": totals[1],
            "waits_total": totals[2],
            "pending": sum(d.count for d in list(self._pending) if d._producer is not None),
            "threads": len(threads),
        }

    def close(self, timeout: float | None = None) -> None:
        """flush(), then gives everything back. Again: nothing. The handle is closed also when flush() raises. Other threads' rows go when they end."""
        if self._generation == handle.CLOSED:
            return
        if self._generation != handle.generation:
            handle.refuse(self._generation, "Producer")
        try:
            self.flush(timeout)
        finally:
            self._release()

    def _release(self) -> None:
        self._generation = handle.CLOSED
        self._local = threading.local()  # frees what this and the other threads own, each when its last call has returned
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close(timeout=0)  # the block failed: its exception is the one to see
        except errors.ShmlogError:
            pass

    def __del__(self) -> None:
        if not getattr(handle, "exiting", True) and getattr(self, "_generation", handle.CLOSED) == handle.generation:
            self._release()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (type(self), self._recipe)

    def __repr__(self) -> str:
        state = "closed" if self._generation == handle.CLOSED else str(self._session.address) if self._session else ""
        return f"<Producer {state} acks={self._recipe['acks']!r}>"


# --- arguments ---------------------------------------------------------------------------------------------------------


def _acks(given: int | str) -> int:
    if given in (0, 1, "0", "1"):
        return APPENDED
    if given in (-1, "-1", "all"):
        return COMMITTED
    if given == "disk":
        return DURABLE
    raise errors.InvalidConfigurationError(f'acks={given!r}: allowed are 0, 1, "all" (or -1) and "disk"', key="acks")


take_over(
    Producer,
    "send",
    "_send_any",
    "($self, topic, value=None, key=None, headers=None, partition=None, timestamp_ms=None, *, timestamp_ns=None, expected_offset=None)",
)


def _reopen(cls: type[Producer], recipe: dict[str, Any]) -> Producer:
    return cls(**recipe)


__all__ = ["BATCH_MAX_RECORDS", "Deliveries", "Delivery", "Loan", "Producer"]
