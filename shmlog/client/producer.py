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
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from shmlog import arrays, errors
from shmlog._ffi import ffi, lib, raise_code
from shmlog.client import handle
from shmlog.client.append import WAITING, Place, Route, Thread, append_error, raise_append
from shmlog.client.delivery import Deliveries, Delivery
from shmlog.client.encoding import (
    NULL,
    SL_RECORD,
    U8,
    array_bytes,
    bytes_of,
    clear,
    expected_of,
    fill,
    from_buffer,
    partition_number,
    timestamp,
    value_of,
)
from shmlog.client.loan import Loan
from shmlog.client.session import Session, attach
from shmlog.config import topic_config

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike

Headers = Sequence[tuple[str, bytes | None]]

BATCH_MAX_RECORDS = lib.SL_CELL_MAX_COUNT  # 14 bits of a cell hold the count of a frame
_BATCH_RECORD_SPARE_BYTES = 24  # upper bound of a record's own fields in a batch v2, varints included
_BATCH_SPARE_BYTES = 128
_REAP_EVERY = 64  # sends with acks pending between two looks at what was acknowledged meanwhile

_append = lib.sl_append

# How far a record must have come before it is acknowledged.
_APPENDED, _COMMITTED, _DURABLE = 0, 1, 2

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


class Producer:
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
        self._generation = handle.CLOSED
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
        self._max_block_ms = max_block_ms
        self._delivery_timeout_ms = delivery_timeout_ms
        self.client_id = client_id
        self._local = threading.local()
        self._threads: list[weakref.ref[Thread]] = []
        self._lock = (
            threading.RLock()
        )  # of the three below; reentrant, because a signal handler may send; not on the way of a send that waits for nothing
        self._topic_ids: dict[str, bytes] = {}
        self._pending: deque[Delivery] = deque()
        self._failed: deque[Delivery] = deque()
        self._ended = [0, 0, 0]  # records, bytes and waits of threads that are gone
        self._session: Session | None = attach(bootstrap_servers)
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
                n = _check_partition(topic, partition, route.count)
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
        code = _append(place.appender, record, -1 if expected_offset is None else expected_of(expected_offset), 0, result)
        if code:
            self._append_slowly(thread, place, record, result, code, expected_offset)
        delivery = Delivery(topic, n, result.offset, result.timestamp_ns)
        if kept is not None:
            clear(record)
        thread.free.append(structs)
        thread.records += 1
        thread.nbytes += value_bytes
        if place.acks:
            self._watch(thread, delivery, place)
        return delivery

    def send_many(
        self,
        topic: str,
        values: Iterable[Any] | np.ndarray[Any, Any],
        keys: Sequence[Any] | None = None,
        *,
        partition: int | None = None,
        timestamp_ms: int | None = None,
        timestamp_ns: int | None = None,
        expected_offset: int | None = None,
    ) -> Deliveries:
        """Appends many records with few calls into C; all of a batch becomes visible at once.

        values   a numpy array: a record for each row (along the first axis), with dtype and row shape; else an iterable of what send() takes (bytes,
                 buffers, None; arrays lose their dtype here)
        keys     one for each value; records of a partition keep their order
        expected_offset   as for send(); all must then go to one partition and fit one batch

        Values of different sizes, and those with keys, are kept as one Kafka record batch, whose timestamps are whole milliseconds.
        Without keys all go to one partition. A partition's records are one atomic batch, up to 16,383 records and max.message.bytes; above that
        several, listed in the result in the order written. If one fails, the exception's `written` holds the Deliveries of the batches before it.
        """
        if self._generation != handle.generation:
            handle.refuse(self._generation, "Producer")
        thread = self._thread()
        route = self._route(thread, topic)
        stamp = timestamp(timestamp_ms, timestamp_ns)
        written: list[Delivery] = []
        try:
            if arrays.is_array(values) and keys is None:
                self._send_rows(thread, route, values, partition, stamp, expected_offset, written)
            else:
                self._send_values(thread, route, values, keys, partition, stamp, expected_offset, written)
        except BaseException as error:
            error.written = Deliveries(written)  # type: ignore[attr-defined]
            raise
        return Deliveries(written)

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

    def metrics(self) -> dict[str, float]:
        """Counters since this Producer was made: records and bytes sent (values only), sends that had to wait, records not acknowledged yet, threads
        with a row."""
        totals = list(self._ended)
        threads = [thread for thread in (t() for t in self._threads) if thread is not None]
        for thread in threads:
            totals = [totals[0] + thread.records, totals[1] + thread.nbytes, totals[2] + thread.waits]
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

    # --- threads and topics ---

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
            replicated = len(p.replicas) > 1
            if self._acks != _APPENDED and config.min_insync_replicas > len(p.replicas):
                raise errors.NotEnoughReplicasError(
                    f"{topic}-{n} has {len(p.replicas)} replicas, min.insync.replicas is {config.min_insync_replicas}",
                    in_sync=len(p.replicas), required=config.min_insync_replicas,
                )  # fmt: skip
            if self._acks == _DURABLE and not (config.shmlog_spill and session.has_disk):
                raise errors.InvalidConfigurationError(
                    f'acks="disk": topic {topic!r} lives in memory only' + ("" if session.has_disk else " (the cluster runs with --data none)"),
                    key="acks", hint='use acks="all", or a topic with shmlog.spill=true in a cluster with a data directory',
                )  # fmt: skip
            acks.append(_APPENDED if self._acks == _COMMITTED and not replicated else self._acks)
        route.blocks = [p.block for p in view.partitions]
        route.acks = acks
        route.places += [None] * (len(acks) - len(route.places))
        route.count = len(acks)
        route.version = version
        thread.routes[topic] = route
        return route

    def _open(self, thread: Thread, route: Route, n: int) -> Place:
        out = ffi.new("sl_appender **")
        code = lib.sl_appender_open(thread.cluster, thread.row, route.blocks[n], route.topic_id, out)
        if code:
            raise_append(thread, route.topic, n, code, None, None)
        place = Place(route.topic, route.topic_id, n, route.blocks[n], out[0], route.acks[n])
        route.places[n] = place
        return place

    def _partition_of(self, topic: str, key: bytes, partition: int | None, count: int) -> int:
        if partition is not None:
            return _check_partition(topic, partition, count)
        if self._partitioner is not None:
            return self._ask_partitioner(topic, key, count)
        if count == 1:
            return 0
        return int((lib.sl_murmur2(key, len(key)) & 0x7FFFFFFF) % count)

    def _ask_partitioner(self, topic: str, key: bytes | None, count: int) -> int:
        assert self._partitioner is not None
        everything = list(range(count))
        return _check_partition(topic, self._partitioner(key, everything, everything), count)

    # --- appending when it is not done at once ---

    def _append_slowly(self, thread: Thread, place: Place, record: Any, result: Any, code: int, expected_offset: int | None) -> None:
        """Goes on with an append that did not happen at once, in slices, up to max_block_ms. Raises, or has appended."""
        expected = expected_of(expected_offset)
        self._wait_for(thread, place.topic, place.partition, code, result, lambda d: _append(place.appender, record, expected, d, result))

    def _wait_for(self, thread: Thread, topic: str, partition: int, code: int, result: Any, attempt: Callable[[int], int]) -> None:
        start = time.monotonic_ns()
        deadline = start + int(self._max_block_ms * 1_000_000)
        thread.waits += 1
        while code:
            if code not in WAITING:
                raise_append(thread, topic, partition, code, result, None)
            now = time.monotonic_ns()
            if now >= deadline and code != lib.SL_E_INTR:
                raise_append(thread, topic, partition, code, result, self._max_block_ms)
            handle.check_cluster(thread.cluster, thread.session.name)
            until = min(deadline, now + handle.SLICE_NS)
            if code == lib.SL_E_FENCED:  # fails at once; a new leader bumps the word that sl_view_wait() sleeps on
                lib.sl_view_wait(thread.cluster, lib.sl_cluster_control(thread.cluster).view_changes, min(until, now + 2_000_000))
            code = attempt(until)

    def _append_frame(self, thread: Thread, place: Place, record: Any, result: Any, expected_offset: int | None) -> Delivery:
        """Any frame: the way of send() without its short cuts."""
        code = _append(place.appender, record, -1 if expected_offset is None else expected_of(expected_offset), 0, result)
        if code:
            self._append_slowly(thread, place, record, result, code, expected_offset)
        return self._appended(thread, place, result, record.rows or 1, record.value_bytes)

    def _appended(self, thread: Thread, place: Place, result: Any, count: int, nbytes: int) -> Delivery:
        delivery = Delivery(place.topic, place.partition, result.offset, result.timestamp_ns, count)
        thread.records += count
        thread.nbytes += nbytes
        if place.acks:
            self._watch(thread, delivery, place)
        return delivery

    # --- many ---

    def _one_partition(self, route: Route, partition: int | None, nbytes: int) -> int:
        """Where records without keys go."""
        if partition is not None:
            return _check_partition(route.topic, partition, route.count)
        if self._partitioner is not None:
            return self._ask_partitioner(route.topic, None, route.count)
        return 0 if route.count == 1 else route.sticky.choose(nbytes, time.monotonic_ns(), route.count)

    def _max_message_bytes(self, thread: Thread, place: Place) -> int:
        return int(lib.sl_cluster_partition(thread.cluster, place.block).max_message_bytes)

    def _send_rows(self, thread: Thread, route: Route, values: Any, partition: int | None, stamp: int, expected_offset: int | None,
                   written: list[Delivery]) -> None:  # fmt: skip
        """A numpy array: array frames, one for as many rows as may be in one."""
        if values.ndim == 0:
            raise TypeError("send_many() takes an array of at least one dimension; send() takes a single value")
        rows = len(values)
        if rows == 0:
            return
        values = arrays.contiguous(values)
        row_bytes = values.nbytes // rows
        if row_bytes == 0:
            raise errors.IllegalArgumentError(f"rows of shape {values.shape[1:]} and dtype {values.dtype} have no bytes")
        n = self._one_partition(route, partition, values.nbytes)
        place = route.places[n] or self._open(thread, route, n)
        extension = arrays.encode(values.dtype, values.shape[1:])
        self._append_rows(thread, place, array_bytes(values), rows, row_bytes, extension, stamp, expected_offset, written)

    def _append_rows(self, thread: Thread, place: Place, data: Any, rows: int, row_bytes: int, extension: bytes | None, stamp: int,
                     expected_offset: int | None, written: list[Delivery]) -> None:  # fmt: skip
        """data: a buffer of rows * row_bytes bytes."""
        most = min(BATCH_MAX_RECORDS, max(1, self._max_message_bytes(thread, place) // row_bytes))
        if expected_offset is not None and rows > most:
            raise _not_one_batch(place, rows, most)
        buffer = from_buffer(U8, data)
        record, result = thread.structs()
        kept = fill(record, None, None, extension, stamp)
        record.kind = lib.SL_FF_ARRAY
        record.row_bytes = row_bytes
        for first in range(0, rows, most):
            record.rows = min(most, rows - first)
            record.value = buffer + first * row_bytes
            record.value_bytes = record.rows * row_bytes
            written.append(self._append_frame(thread, place, record, result, expected_offset))
        del kept

    def _send_values(self, thread: Thread, route: Route, values: Iterable[Any], keys: Sequence[Any] | None, partition: int | None, stamp: int,
                     expected_offset: int | None, written: list[Delivery]) -> None:  # fmt: skip
        if isinstance(values, bytes | bytearray | memoryview | str):
            raise TypeError(f"send_many() takes many values; {type(values).__name__} is one: send() takes it")
        topic = route.topic
        plain = list(values)
        if self._serialize_value is not None:
            plain = [v if v is None else self._serialize_value(topic, v) for v in plain]
        for i, v in enumerate(plain):
            if type(v) is not bytes and v is not None:
                plain[i] = bytes_of(v, "value")
        if not plain:
            return
        if keys is None:
            nbytes = sum(len(v) for v in plain if v is not None)
            n = self._one_partition(route, partition, nbytes)
            self._send_group(thread, route, n, plain, None, stamp, expected_offset, written)
            return
        if len(keys) != len(plain):
            raise errors.IllegalArgumentError(f"{len(keys)} keys for {len(plain)} values")
        if self._serialize_key is not None:
            keys = [k if k is None else self._serialize_key(topic, k) for k in keys]
        plain_keys = [k if k is None else bytes_of(k, "key") for k in keys]
        unkeyed = self._one_partition(route, partition, 0) if None in plain_keys else -1
        groups: dict[int, tuple[list[Any], list[Any]]] = {}
        for k, v in zip(plain_keys, plain, strict=True):
            n = unkeyed if k is None else self._partition_of(topic, k, partition, route.count)
            group = groups.get(n)
            if group is None:
                group = groups[n] = ([], [])
            group[0].append(v)
            group[1].append(k)
        if expected_offset is not None and len(groups) > 1:
            raise errors.IllegalArgumentError(f"expected_offset names one partition's end, but the keys go to partitions {sorted(groups)}")
        for n, (group_values, group_keys) in groups.items():
            self._send_group(thread, route, n, group_values, group_keys, stamp, expected_offset, written)

    def _send_group(self, thread: Thread, route: Route, n: int, values: list[Any], keys: list[Any] | None, stamp: int, expected_offset: int | None,
                    written: list[Delivery]) -> None:  # fmt: skip
        """One partition's values: array frames if they are of one size and have no keys, else batches."""
        place = route.places[n] or self._open(thread, route, n)
        if keys is None and len(values) > 1 and None not in values:
            size = len(values[0])
            if size and all(len(v) == size for v in values):
                self._append_rows(thread, place, b"".join(values), len(values), size, None, stamp, expected_offset, written)
                return
        limit = self._max_message_bytes(thread, place)
        start, total = 0, _BATCH_SPARE_BYTES
        pieces = []
        for i, v in enumerate(values):
            size = _BATCH_RECORD_SPARE_BYTES + (len(v) if v is not None else 0)
            if keys is not None and keys[i] is not None:
                size += len(keys[i])
            if i > start and (total + size > limit or i - start == BATCH_MAX_RECORDS):
                pieces.append((start, i))
                start, total = i, _BATCH_SPARE_BYTES
            total += size
        pieces.append((start, len(values)))
        if expected_offset is not None and len(pieces) > 1:
            raise _not_one_batch(place, len(values), pieces[0][1])
        for start, end in pieces:
            chunk, chunk_keys = values[start:end], None if keys is None else keys[start:end]
            written.append(self._append_batch(thread, place, chunk, chunk_keys, stamp, expected_offset))

    def _append_batch(
        self, thread: Thread, place: Place, values: list[Any], keys: list[Any] | None, stamp: int, expected_offset: int | None
    ) -> Delivery:
        """One record batch v2; a single value as a plain record."""
        record, result = thread.structs()
        if len(values) == 1:
            buffer = NULL if values[0] is None else from_buffer(U8, values[0])
            record.value = buffer
            record.value_bytes = 0 if values[0] is None else len(values[0])
            kept = fill(record, None if keys is None else keys[0], None, None, stamp)
            delivery = self._append_frame(thread, place, record, result, expected_offset)
            del kept
            return delivery
        stamp = stamp or time.time_ns()
        parts = [v for v in values if v is not None]
        if keys is not None:
            parts += [k for k in keys if k is not None]
        blob = b"".join(parts) or b"\0"
        blob_buffer = from_buffer(U8, blob)
        value_at = int(ffi.cast("uintptr_t", blob_buffer))
        key_at = value_at + sum(len(v) for v in values if v is not None)
        packed = bytearray(SL_RECORD.size * len(values))
        pack_into, position = SL_RECORD.pack_into, 0
        for i, v in enumerate(values):
            k = None if keys is None else keys[i]
            v_bytes, k_bytes = 0 if v is None else len(v), 0 if k is None else len(k)
            pack_into(
                packed, position, 0 if k is None else key_at, 0 if v is None else value_at, 0, 0, k_bytes, v_bytes, 0, 0, stamp, 0, 0, 0, 0, -1, 0, 0
            )
            value_at += v_bytes
            key_at += k_bytes
            position += SL_RECORD.size
        packed_buffer = from_buffer("sl_record[]", packed)
        size = lib.sl_batch_measure(packed_buffer, len(values))
        if size < 0:
            raise_code(size)
        batch = bytearray(size)
        batch_buffer = from_buffer(U8, batch)
        size = lib.sl_batch_build(batch_buffer, size, packed_buffer, len(values))
        if size < 0:
            raise_code(size)
        record.kind = lib.SL_FF_BATCH
        record.rows = len(values)
        record.value = batch_buffer
        record.value_bytes = size
        record.timestamp_ns = stamp
        return self._append_frame(thread, place, record, result, expected_offset)

    # --- acknowledgements ---

    def _watch(self, thread: Thread, delivery: Delivery, place: Place) -> None:
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
        wait = lib.sl_wait_durable if place.acks == _DURABLE else lib.sl_wait_committed
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
                what = "on disk at every in-sync replica" if place.acks == _DURABLE else "at every in-sync replica"
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


# --- arguments ---------------------------------------------------------------------------------------------------------


def _acks(given: int | str) -> int:
    if given in (0, 1, "0", "1"):
        return _APPENDED
    if given in (-1, "-1", "all"):
        return _COMMITTED
    if given == "disk":
        return _DURABLE
    raise errors.InvalidConfigurationError(f'acks={given!r}: allowed are 0, 1, "all" (or -1) and "disk"', key="acks")


def _check_partition(topic: str, partition: int, count: int) -> int:
    if 0 <= partition_number(partition) < count:
        return int(partition)
    raise errors.no_partition(topic, partition, count)


# --- errors ----------------------------------------------------------------------------------------------------------


def _not_one_batch(place: Place, rows: int, most: int) -> errors.ShmlogError:
    return errors.MessageSizeTooLargeError(
        f"{rows} records do not fit one batch of {place.topic}-{place.partition}, which takes {most} of them; expected_offset needs them in one",
        topic=place.topic, partition=place.partition, size=rows, limit=most,
    )  # fmt: skip


def _reopen(cls: type[Producer], recipe: dict[str, Any]) -> Producer:
    return cls(**recipe)


__all__ = ["BATCH_MAX_RECORDS", "Deliveries", "Delivery", "Loan", "Producer"]
