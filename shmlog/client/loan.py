"""Loan: writing a record's value straight into the log's memory.

The C core takes room in the segment's arena and pins the segment (a loan outlives the call); publishing is then one compare-and-swap, or a copy if the
log has moved on to another segment meanwhile. Whoever dies in between leaves nothing: no cell names the bytes yet.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from shmlog import arrays, errors
from shmlog._ffi import ffi, lib
from shmlog.client import handle
from shmlog.client.delivery import Delivery
from shmlog.client.encoding import bytes_of, expected_of, fill
from shmlog.types import RecordMetadata

if TYPE_CHECKING:
    from shmlog.client.producer import Producer

_LOAN = ffi.typeof("sl_loan *")
RESULT = ffi.typeof("sl_append_result *")


class Loan:
    """A record's value, written in the log's own memory; made by Producer.loan(), used in a `with` block by the thread that entered it.

    array       a writable numpy array of the shape and dtype asked for (or a memoryview of nbytes), 64-byte aligned, not zeroed. At the end of the
                block it becomes read-only (a memoryview is released). Views derived from it before stay writable: writing through them then would
                damage the log. What it shows later is undefined, because the log's memory is reused: read the record from a Consumer instead
    key         the record's key (bytes); may be set inside the block. If that changes its size or the partition, the value is copied once
    offset, partition, delivery      known after the block
    """

    __slots__ = ("key", "delivery", "_producer", "_topic", "_nbytes", "_dtype", "_shape", "_headers", "_wanted", "_stamp", "_expected", "_thread",
    "_place", "_loan", "_record",
                 "_kept", "_key_taken", "_array", "_ident", "_size")  # fmt: skip

    def __init__(
        self,
        producer: Producer,
        topic: str,
        shape: int | tuple[int, ...] | None,
        dtype: Any,
        nbytes: int | None,
        key: bytes | None,
        headers: Any,
        partition: int | None,
        stamp: int,
        expected_offset: int | None,
    ) -> None:
        self._loan: Any = None
        self._producer = producer
        self._topic = topic
        self._dtype: Any = None
        self._shape: tuple[int, ...] | None = None
        if shape is not None:
            self._shape = (int(shape),) if isinstance(shape, int) else tuple(int(n) for n in shape)
            self._dtype, self._size = arrays.item_bytes(dtype, self._shape)
            arrays.text_of(self._dtype)  # refuses Python objects before anything is taken
        else:
            assert nbytes is not None
            self._size = nbytes
        self._nbytes = self._size
        if self._size > 0xFFFFFFFE:
            raise errors.MessageSizeTooLargeError(f"a value of {self._size} bytes is too large", size=self._size)
        self.key = key
        self._headers = headers
        self._wanted = partition
        self._stamp = stamp
        self._expected = expected_offset
        self.delivery: Delivery | None = None
        self._array: Any = None

    @property
    def array(self) -> Any:
        """numpy array of `shape` and `dtype`, or with nbytes= a memoryview; IllegalStateError before the block."""
        if self._array is None:
            raise errors.IllegalStateError("a loan has its memory inside a `with` block only")
        return self._array

    @property
    def offset(self) -> int:
        """The record's offset, once the block has ended; IllegalStateError before."""
        return self._written().offset

    @property
    def partition(self) -> int:
        return self._written().partition

    def result(self, timeout: float | None = None) -> RecordMetadata:
        """As Delivery.result(), once the block has ended."""
        return self._written().result(timeout)

    get = result

    def truncate(self, nbytes: int) -> None:
        """Makes the record shorter: `nbytes` of what was lent, from its start; array shrinks too. An array with a shape is cut along its first axis,
        so nbytes must be whole rows."""
        if self._loan is None:
            raise errors.IllegalStateError("truncate() belongs inside the `with` block")
        if not 0 <= nbytes <= self._size:
            raise errors.IllegalArgumentError(f"truncate({nbytes}): the loan has {self._size} bytes")
        if self._shape is None:
            self._array = self._array[:nbytes]
        else:
            row_bytes = self._size // self._shape[0] if self._shape and self._shape[0] else 0
            if row_bytes == 0 or nbytes % row_bytes:
                raise errors.IllegalArgumentError(f"truncate({nbytes}): not whole rows of {row_bytes} bytes of an array of shape {self._shape}")
            self._shape = (nbytes // row_bytes, *self._shape[1:])
            self._array = self._array[: self._shape[0]]
        self._size = nbytes

    def __enter__(self) -> Self:
        producer = self._producer
        if self._array is not None:
            raise errors.IllegalStateError("a loan is used once")
        producer._check_open()
        thread = producer._thread()
        route = producer._route(thread, self._topic)
        n = (
            producer._one_partition(route, self._wanted, self._size)
            if self.key is None
            else producer._partition_of(self._topic, self.key, self._wanted, route.count)
        )
        place = route.places[n] or producer._open(thread, route, n)
        record, result = thread.structs()
        self._key_taken = self.key
        self._fill(record)
        loan = ffi.new(_LOAN)
        self._ident = threading.get_ident()
        self._thread = thread
        self._place = place
        self._record = record
        self._loan = loan  # before it is taken (an empty one is nothing to drop): a Ctrl-C behind that must find what to give back
        try:
            code = lib.sl_loan_take(place.appender, record, 0, loan, result)
            if code:
                producer._wait_for(thread, self._topic, n, code, result, lambda d: lib.sl_loan_take(place.appender, record, d, loan, result))
            self._array = self._map(loan)
        except BaseException:
            self._drop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._loan is None:
            return
        if error is not None or self._producer._generation != handle.generation:
            self._drop()
            if error is None:
                handle.refuse(self._producer._generation, "Producer")
            return
        if threading.get_ident() != self._ident:
            raise errors.IllegalStateError("a loan is ended by the thread that began it")
        try:
            self._publish()
        except BaseException:
            self._drop()
            raise

    def __del__(self) -> None:
        if not getattr(handle, "exiting", True):
            self._drop()

    def _map(self, loan: Any) -> Any:
        """The lent bytes as a numpy array or memoryview. The mapping stays for as long as anything shows it, also after the loan's end, so that a
        late look is never a fault."""
        cluster, session, made_in = self._thread.cluster, self._thread.session.keep(), handle.generation
        buffer_id = loan.buffer
        if lib.sl_buffer_hold(cluster, buffer_id):
            raise errors.ShmlogError("the loan's memory is not mapped")  # cannot be: the loan itself holds it

        def let_go(_: Any) -> None:
            if not getattr(handle, "exiting", True) and made_in == handle.generation and not session.forked():
                lib.sl_buffer_drop(cluster, buffer_id)
                session.close()

        owner = ffi.gc(ffi.cast("uint8_t *", loan.value), let_go)
        view = memoryview(ffi.buffer(owner, self._size)).cast("B")
        if self._shape is None:
            return view
        import numpy as np

        return np.frombuffer(view, np.uint8).view(self._dtype).reshape(self._shape) if self._size else np.empty(self._shape, self._dtype)

    def _fill(self, record: Any) -> None:
        record.flags = lib.SL_RECORD_LOAN  # the value's place does not depend on its size, so that it may be cut
        record.value_bytes = self._size
        record.value = ffi.cast("uint8_t *", 1)  # not null; sl_loan_take() looks at its size alone
        extension = None if self._shape is None else arrays.encode(self._dtype, self._shape)
        self._kept = fill(record, self.key, self._headers, extension, self._stamp)

    def _publish(self) -> None:
        producer, thread, place, record, loan = self._producer, self._thread, self._place, self._record, self._loan
        if self.key is not None:
            self.key = bytes_of(self.key, "key")
        result = ffi.new(RESULT)
        expected = expected_of(self._expected)
        if self.key != self._key_taken and self.key is not None:
            route = producer._route(thread, self._topic)
            n = producer._partition_of(self._topic, self.key, self._wanted, route.count)
            place = route.places[n] or producer._open(thread, route, n)
        self._fill(record)
        if place is self._place:
            code = lib.sl_loan_publish(place.appender, loan, record, expected, 0, result)
            if code:
                producer._wait_for(thread, self._topic, place.partition, code, result,
                                   lambda d: lib.sl_loan_publish(place.appender, loan, record, expected, d, result))  # fmt: skip
            self._loan = None
        else:  # the key leads elsewhere now
            record.value = loan.value
            code = lib.sl_append(place.appender, record, expected, 0, result)
            if code:
                producer._append_slowly(thread, place, record, result, code, self._expected)
            self._drop()
        self._seal()
        self.delivery = producer._appended(thread, place, result, 1, self._size)

    def _drop(self) -> None:
        loan, self._loan = self._loan, None
        if loan is None or self._thread.made_in != handle.generation:
            return
        lib.sl_loan_drop(self._place.appender, loan)
        self._seal()

    def _seal(self) -> None:
        """Nobody writes through the array any more. What was derived from it earlier cannot be reached."""
        if self._array is None:
            return
        if self._shape is None:
            try:
                self._array.release()
            except BufferError:  # somebody holds a view of it
                self._array = self._array.toreadonly()
        else:
            self._array.flags.writeable = False

    def _written(self) -> Delivery:
        if self.delivery is None:
            raise errors.IllegalStateError("the loan is not appended: its block has not ended, or ended with an exception")
        return self.delivery
