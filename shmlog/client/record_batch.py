"""RecordBatch: records of one partition as they lie in the log, without a copy; and how Records are made of what the C core found.

The C core describes a record by an sl_view of 96 bytes: offset, timestamp, pointers. A batch keeps these rows as bytes and unpacks them only when
somebody asks. The bytes of the records stay where they are: the *lease* keeps the segment (or the file's buffer) from being reused. Whatever shows
those bytes (memoryviews, numpy arrays, slices of slices) keeps the lease alive, and the last of them that dies gives it back. So there is no way to
reach freed memory, and release() only drops the batch's own hold.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from shmlog import arrays, errors
from shmlog._binding import fast
from shmlog._ffi import ffi, lib
from shmlog.client import handle
from shmlog.client.encoding import decode_headers, decode_kafka_headers
from shmlog.types import CREATE_TIME, LOG_APPEND_TIME, Record, TopicPartition

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike

    from shmlog.client.session import Session

# sl_view as struct and numpy read it: one statement for both, checked against C.
_FIELDS = (
    ("offset", "q"),
    ("timestamp_ns", "q"),
    ("key", "Q"),
    ("value", "Q"),
    ("headers", "Q"),
    ("dtype", "Q"),
    ("key_bytes", "I"),
    ("value_bytes", "I"),
    ("headers_bytes", "I"),
    ("dtype_bytes", "I"),
    ("producer_id", "q"),
    ("sequence", "i"),
    ("producer_epoch", "i"),
    ("flags", "I"),
    ("leader_epoch", "I"),
    ("frame_row", "I"),
    ("frame_rows", "I"),
)
VIEW = struct.Struct("=" + "".join(code for _, code in _FIELDS))
VIEW_BYTES = VIEW.size
assert ffi.sizeof("sl_view") == VIEW_BYTES
assert all(ffi.offsetof("sl_view", name) == struct.calcsize("=" + "".join(code for _, code in _FIELDS[:i])) for i, (name, _) in enumerate(_FIELDS))
_VALUE, _VALUE_BYTES = 3, 7  # indices in an unpacked row

_LOG_APPEND_TIME = lib.SL_FF_LOG_APPEND_TIME
_KAFKA_HEADERS = lib.SL_VIEW_KAFKA_HEADERS
_new_span = ffi.typeof("uintptr_t[2]")

Conversion = Callable[[str, Any], Any] | None


def span_of(views: Any, n: int) -> tuple[int, int, int]:
    """(lowest address, bytes from there to the highest, bytes that the records take) of n views."""
    found = ffi.new(_new_span)
    total = lib.sl_views_span(views, n, found, found + 1)
    low = int(found[0])
    return low, int(found[1]) - low, int(total)


def make_records(
    topic: str,
    partition: int,
    rows: Any,
    low: int,
    data: Any,
    timestamp_type: int,
    key_of: Conversion,
    value_of: Conversion,
) -> tuple[list[Record], BaseException | None]:
    """Records of rows (packed sl_views) whose pointers count from `low` into data (slicing it gives bytes).

    The second result is what a deserializer, or damage in headers or dtype, raised; the list then ends before that record.
    """
    records: list[Record]
    error: BaseException | None
    if fast is not None:
        records, error = fast.records(rows, topic, partition, timestamp_type, key_of, value_of)
        if isinstance(error, errors.CorruptRecordError):
            error.topic, error.partition, error.offset = topic, partition, VIEW.unpack_from(rows, VIEW_BYTES * len(records))[0]
        return records, error
    records = []
    append = records.append
    headers: list[tuple[str, bytes | None]]
    try:
        for offset, ts, key_at, value_at, headers_at, dtype_at, key_n, value_n, headers_n, dtype_n, _, _, _, flags, epoch, _, _ in VIEW.iter_unpack(
            rows
        ):
            key: Any = None
            value: Any = None
            if value_at:
                value_at -= low
                value = data[value_at : value_at + value_n] if value_n else b""
                if value_of is not None:
                    value = value_of(topic, value)
            if key_at:
                key_at -= low
                key = data[key_at : key_at + key_n] if key_n else b""
                if key_of is not None:
                    key = key_of(topic, key)
            if headers_n:
                encoded = data[headers_at - low : headers_at - low + headers_n]
                headers = decode_kafka_headers(encoded) if flags & _KAFKA_HEADERS else decode_headers(encoded)
            else:
                headers = []
            if flags & _LOG_APPEND_TIME:
                kind = LOG_APPEND_TIME
            else:
                kind = timestamp_type
            if dtype_n:
                dtype, shape = arrays.decode(data[dtype_at - low : dtype_at - low + dtype_n])
                append(Record(topic, partition, offset, ts, kind, key, value, headers, epoch, dtype, shape))
            else:
                append(Record(topic, partition, offset, ts, kind, key, value, headers, epoch))
    except Exception as error:
        if isinstance(error, errors.CorruptRecordError):
            error.topic, error.partition, error.offset = topic, partition, offset
        return records, error
    return records, None


def _finish(record: Record, headers: bytes | None, kafka: bool, dtype: bytes | None) -> None:
    """The rare fields of a record that the extension made."""
    if headers is not None:
        record.headers = decode_kafka_headers(headers) if kafka else decode_headers(headers)
    if dtype is not None:
        record.dtype, record.shape = arrays.decode(dtype)


if fast is not None:
    fast.use(finish=_finish)


class Leases:
    """A consumer's row and the leases that hang on it. The row is given back when the consumer is closed and the last lease has ended, whichever is
    later."""

    def __init__(self, session: Session, row: int, max_bytes: int) -> None:
        self.session = session
        self.cluster = session.cluster
        self.row = row
        self.max_bytes = max_bytes
        self.bytes = 0
        self.count = 0
        self.made_in = handle.generation
        self._closed = False
        self._lock = threading.RLock()  # reentrant: the garbage collector may end a lease while this thread takes one

    def take(self, reader: Any, low: int, nbytes: int) -> Any | None:
        """Keeps what the reader's last poll returned. cdata of its first byte, whose death ends the lease; None if there are too many: copy."""
        with self._lock:
            if self.bytes + nbytes > self.max_bytes:
                return None
            lease = lib.sl_reader_lease(reader)
            if lease < 0:
                return None
            self.bytes += nbytes
            self.count += 1

        def let_go(_: Any) -> None:
            if not getattr(handle, "exiting", True):
                self._release(lease, nbytes)

        return ffi.gc(ffi.cast("char *", low), let_go, nbytes)

    def _release(self, lease: int, nbytes: int) -> None:
        if self.made_in != handle.generation or self.session.forked():
            return  # in a forked child: the parent's pin covers this memory and is the parent's to end
        lib.sl_lease_release(self.cluster, self.row, lease)
        with self._lock:
            self.bytes -= nbytes
            self.count -= 1
            if self._closed and self.count == 0:
                self._end()

    def close(self) -> None:
        if self.session.forked():
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self.count == 0:
                self._end()

    def _end(self) -> None:
        if self.made_in == handle.generation:
            self.session.give_row(self.row)
            self.session.close()


class RecordBatch:
    """Records of one partition, read only, where they lie in the log; consumers make them.

    topic, partition, base_offset, next_offset; `leased` says whether this is a view (else a private copy, because max_leased_bytes or the pins were
    used up).

    len(b); iteration and b[i] give Records (with copies of their bytes); values() memoryviews; offsets, timestamps, sizes numpy arrays; array() one
    array of all values. Use `with`, release() or let it go out of scope. Anything got from the batch stays valid, and keeps its memory, for as long
    as it is referenced.
    """

    __slots__ = (
        "topic",
        "partition",
        "base_offset",
        "next_offset",
        "leased",
        "nbytes",
        "_n",
        "_rows",
        "_low",
        "_view",
        "_timestamp_type",
        "_key_of",
        "_value_of",
    )

    def __init__(
        self,
        tp: TopicPartition,
        n: int,
        rows: bytes,
        low: int,
        view: memoryview,
        leased: bool,
        next_offset: int,
        timestamp_type: int,
        key_of: Conversion,
        value_of: Conversion,
    ) -> None:
        self.topic, self.partition = tp
        self._n = n
        self._rows: bytes | None = rows
        self._low = low
        self._view: memoryview | None = view  # read-only, of bytes; keeps the lease
        self.nbytes = len(view)  # the range of memory that this batch keeps
        self.leased = leased
        self.base_offset = VIEW.unpack_from(rows)[0]
        self.next_offset = next_offset
        self._timestamp_type = timestamp_type
        self._key_of = key_of
        self._value_of = value_of

    # --- whole records ---

    def __len__(self) -> int:
        return self._n

    def __iter__(self) -> Iterator[Record]:
        """Records with bytes of their own, through the consumer's deserializers. 256 at a time."""
        for first in range(0, self._n, 256):
            records, error = self._records(first, min(first + 256, self._n))
            yield from records
            if error is not None:
                raise error

    def __getitem__(self, index: int) -> Record:
        if index < 0:
            index += self._n
        if not 0 <= index < self._n:
            raise IndexError(f"record {index} of {self._n}")
        records, error = self._records(index, index + 1)
        if error is not None:
            raise error
        return records[0]

    def _records(self, first: int, end: int) -> tuple[list[Record], BaseException | None]:
        rows, view = self._held()
        part = memoryview(rows)[first * VIEW_BYTES : end * VIEW_BYTES]
        return make_records(self.topic, self.partition, part, self._low, _Bytes(view), self._timestamp_type, self._key_of, self._value_of)

    def values(self, copy: bool = False) -> list[Any]:
        """The values: read-only memoryviews of the log's memory (copy=True: bytes), None for null. No deserializer."""
        rows, view = self._held()
        low = self._low
        if fast is not None:
            return fast.values(rows) if copy else fast.value_views(rows, view, low)  # type: ignore[no-any-return]
        found: list[Any] = []
        for row in VIEW.iter_unpack(rows):
            at = row[_VALUE] - low
            found.append(None if row[_VALUE] == 0 else view[at : at + row[_VALUE_BYTES]] if row[_VALUE_BYTES] else view[:0])
        return [None if v is None else v.tobytes() for v in found] if copy else found

    # --- columns ---

    @property
    def offsets(self) -> np.ndarray[Any, Any]:
        """int64, one for each record; dense but for records that compaction or transactions took out."""
        return self._column("offset", "i8")

    @property
    def timestamps(self) -> np.ndarray[Any, Any]:
        """int64 nanoseconds since 1970 (`.view("M8[ns]")` makes dates of them)."""
        return self._column("timestamp_ns", "i8")

    @property
    def sizes(self) -> np.ndarray[Any, Any]:
        """int64 bytes of each value, -1 for null."""
        column = self._column("value_bytes", "i8")
        null = self._column("value", "u8") == 0
        if null.any():
            column.flags.writeable = True
            column[null] = -1
            column.flags.writeable = False
        return column

    def _column(self, name: str, dtype: str) -> np.ndarray[Any, Any]:
        import numpy as np

        column = np.frombuffer(self._held()[0], _view_dtype())[name].astype(dtype)
        column.flags.writeable = False
        return column

    def array(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        """All values as one array, first axis the records.

        dtype   None: as sent (loan and array sends carry dtype and shape; all records must have the same). Else each value is a row of items of this
                dtype: shape (n,) if a value is one item, else (n, items)
        copy    None: a read-only view if all values lie at one distance (rows of one frame always do), else one gathered copy. False: a view, or
                BufferError. True: a writable copy

        IllegalStateError if nothing says the dtype; ValueError if sizes differ or do not fit it.
        """
        import numpy as np

        rows, view = self._held()
        made, shape = self._type(rows, view, dtype)
        views = ffi.from_buffer("sl_view[]", rows)
        stride = lib.sl_views_stride(views, self._n)
        if stride < 0:
            size = self._one_size()
        else:
            size = VIEW.unpack_from(rows)[_VALUE_BYTES]
        if shape is None:
            items, rest = divmod(size, made.itemsize) if made.itemsize else (0, size)
            if rest:
                raise ValueError(f"values of {size} bytes are not items of {made} ({made.itemsize} bytes)")
            shape = () if items == 1 else (items,)
        if np.prod(shape, dtype=np.int64) * made.itemsize != size:
            raise ValueError(f"values of {size} bytes are not arrays of shape {shape} and dtype {made}")
        if copy is not True and stride >= 0 and size:
            start = VIEW.unpack_from(rows)[_VALUE] - self._low
            inner = np.empty(shape, made).strides
            # By way of frombuffer(), which remembers that the memory is read-only; ndarray(buffer=) looks behind the memoryview, at what is not.
            return np.ndarray((self._n, *shape), made, np.frombuffer(view, "u1"), start, (stride, *inner))
        if copy is False:
            raise BufferError("the values do not lie at one distance in memory; copy=None or True gathers them")
        out = np.empty((self._n, *shape), made)
        if out.nbytes:
            to = ffi.from_buffer("uint8_t[]", out.reshape(-1).view("u1"), require_writable=True)
            lib.sl_views_gather(views, self._n, to, out.nbytes)
        return out

    def _type(self, rows: bytes, view: memoryview, dtype: DTypeLike | None) -> tuple[np.dtype[Any], tuple[int, ...] | None]:
        import numpy as np

        if dtype is not None:
            return np.dtype(dtype), None
        table = np.frombuffer(rows, _view_dtype())
        at, sizes = table["dtype"], table["dtype_bytes"]
        if at[0] == 0 or sizes[0] == 0:
            raise errors.IllegalStateError(
                f"{self.topic}-{self.partition}@{self.base_offset} was not sent as an array", hint="name the type: b.array(dtype=...)"
            )
        extensions = {view[a - self._low : a - self._low + n].tobytes() for a, n in set(zip(at.tolist(), sizes.tolist(), strict=True)) if a}
        if len(extensions) != 1 or not at.all():
            raise ValueError("the records of this batch were sent with different dtypes or shapes; arrays() gives them one by one")
        text, shape = arrays.decode(extensions.pop())
        return arrays.parse(text), shape

    def _one_size(self) -> int:
        sizes = set(self.sizes.tolist())
        if len(sizes) != 1 or -1 in sizes:
            raise ValueError(
                f"the values of this batch have different sizes ({min(sizes)} to {max(sizes)} bytes, -1 is null): values() gives them one by one"
            )
        return int(sizes.pop())

    def arrays(self) -> list[np.ndarray[Any, Any] | None]:
        """Each value as an array of its own dtype and shape, read-only and without a copy; None for null. Records that were not sent as arrays come
        as bytes ("u1")."""
        import numpy as np

        rows, view = self._held()
        low = self._low
        found: list[np.ndarray[Any, Any] | None] = []
        for row in VIEW.iter_unpack(rows):
            if row[_VALUE] == 0:
                found.append(None)
                continue
            start, size = row[_VALUE] - low, row[_VALUE_BYTES]
            flat = np.frombuffer(view[start : start + size] if size else b"", "u1")
            if row[5] and row[9]:
                text, shape = arrays.decode(view[row[5] - low : row[5] - low + row[9]].tobytes())
                dtype = arrays.parse(text)
                if np.prod(shape, dtype=np.int64) * dtype.itemsize != size:
                    raise errors.CorruptRecordError(
                        f"{self.topic}-{self.partition}@{row[0]}: {size} bytes are not an array of {shape} {dtype}",
                        topic=self.topic, partition=self.partition, offset=row[0],
                    )  # fmt: skip
                flat = flat.view(dtype).reshape(shape) if size else np.empty(shape, dtype)
            found.append(flat)
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        array = self.array(copy=copy)
        return array if dtype is None or array.dtype == dtype else array.astype(dtype)

    def __dlpack__(self, **keywords: Any) -> Any:
        return self.array().__dlpack__(**keywords)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)  # the CPU's memory

    def to_arrow(self) -> Any:
        """A pyarrow.RecordBatch with columns offset, timestamp (ns), key, value (large_binary; one copy). Needs pyarrow."""
        import pyarrow as pa

        rows, view = self._held()
        low = self._low
        keys, values = [], []
        for row in VIEW.iter_unpack(rows):
            values.append(
                None if row[_VALUE] == 0 else view[row[_VALUE] - low : row[_VALUE] - low + row[_VALUE_BYTES]].tobytes() if row[_VALUE_BYTES] else b""
            )
            keys.append(None if row[2] == 0 else view[row[2] - low : row[2] - low + row[6]].tobytes() if row[6] else b"")
        return pa.record_batch(
            [
                pa.array(self.offsets),
                pa.array(self.timestamps, type=pa.timestamp("ns", tz="UTC")),
                pa.array(keys, type=pa.large_binary()),
                pa.array(values, type=pa.large_binary()),
            ],
            names=["offset", "timestamp", "key", "value"],
        )

    # --- life ---

    def copy(self) -> RecordBatch:
        """The same records in private memory: nothing of the log is held by it."""
        rows, view = self._held()
        table = bytearray(rows)
        views = ffi.from_buffer("sl_view[]", table)
        low, span, total = span_of(views, self._n)
        data = bytearray(max(1, total))
        to = ffi.from_buffer("uint8_t[]", data)
        lib.sl_views_copy(views, self._n, to, total)
        low = int(ffi.cast("uintptr_t", to))
        del view, span
        return RecordBatch(
            TopicPartition(self.topic, self.partition), self._n, bytes(table), low, memoryview(data).toreadonly(), False, self.next_offset,
            self._timestamp_type, self._key_of, self._value_of,
        )  # fmt: skip

    def release(self) -> None:
        """The batch lets go of its memory; what was got from it keeps its own hold. Again: nothing."""
        self._rows = None
        self._view = None

    @property
    def released(self) -> bool:
        return self._view is None

    def _held(self) -> tuple[bytes, memoryview]:
        if self._rows is None or self._view is None:
            raise errors.ClosedError("this batch was released")
        return self._rows, self._view

    def __enter__(self) -> Self:
        self._held()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.release()

    def __repr__(self) -> str:
        kind = "released" if self.released else "leased" if self.leased else "copied"
        return f"<RecordBatch {self.topic}-{self.partition} {self._n} records from {self.base_offset}, {kind}>"


class _Bytes:
    """A memoryview whose slices are bytes."""

    __slots__ = ("view",)

    def __init__(self, view: memoryview) -> None:
        self.view = view

    def __getitem__(self, part: slice) -> bytes:
        return self.view[part].tobytes()


_dtype: Any = None


def _view_dtype() -> Any:
    global _dtype
    if _dtype is None:
        import numpy as np

        _dtype = np.dtype([(name, f"={code}") for name, code in _FIELDS])
    return _dtype


def timestamp_type_of(config_value: str) -> int:
    return LOG_APPEND_TIME if config_value == "LogAppendTime" else CREATE_TIME
