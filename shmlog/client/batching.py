"""Many records with few calls into C: array frames where values have one size and no keys, else Kafka record batches.

Each frame is one append, so all its records become visible at once.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from shmlog import arrays, errors
from shmlog._binding import take_over
from shmlog._ffi import ffi, lib, raise_code
from shmlog.client import handle
from shmlog.client.acknowledging import Acknowledging
from shmlog.client.append import Place, Route, Thread
from shmlog.client.delivery import Deliveries, Delivery
from shmlog.client.encoding import NULL, SL_RECORD, U8, array_bytes, bytes_of, expected_of, fill, from_buffer, timestamp
from shmlog.client.routing import append

if TYPE_CHECKING:
    import numpy as np

BATCH_MAX_RECORDS = lib.SL_CELL_MAX_COUNT  # 14 bits of a cell hold the count of a frame
_BATCH_RECORD_SPARE_BYTES = 24  # upper bound of a record's own fields in a batch v2, varints included
_BATCH_SPARE_BYTES = 128


class Batching(Acknowledging):
    """The layer that makes frames of many records."""

    _serialize_key: Any
    _serialize_value: Any

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

    def _append_frame(self, thread: Thread, place: Place, record: Any, result: Any, expected_offset: int | None) -> Delivery:
        """Any frame: the way of send() without its short cuts."""
        code = append(place.appender, record, -1 if expected_offset is None else expected_of(expected_offset), 0, result)
        if code:
            self._append_slowly(thread, place, record, result, code, expected_offset)
        return self._appended(thread, place, result, record.rows or 1, record.value_bytes)

    def _appended(self, thread: Thread, place: Place, result: Any, count: int, nbytes: int) -> Delivery:
        delivery = Delivery(place.topic, place.partition, result.offset, result.timestamp_ns, count)
        thread.records += count
        thread.nbytes += nbytes
        if place.acks:
            self._watch(delivery, place)
        return delivery

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


def _not_one_batch(place: Place, rows: int, most: int) -> errors.ShmlogError:
    return errors.MessageSizeTooLargeError(
        f"{rows} records do not fit one batch of {place.topic}-{place.partition}, which takes {most} of them; expected_offset needs them in one",
        topic=place.topic, partition=place.partition, size=rows, limit=most,
    )  # fmt: skip


take_over(
    Batching,
    "send_many",
    "_send_many_any",
    "($self, topic, values, keys=None, *, partition=None, timestamp_ms=None, timestamp_ns=None, expected_offset=None)",
)
