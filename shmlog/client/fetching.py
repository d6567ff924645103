"""What lies at a consumer's positions: a partition's turn, one poll of its reader, and Records or batches of what that found.

Nothing here moves a position over a record, but for a batch; Consumer does when it hands records out. So an exception or a Ctrl-C anywhere in here
leaves them to be delivered again by the next call.
"""

from __future__ import annotations

import time
from typing import Any

from shmlog import errors
from shmlog._ffi import ffi, lib, raise_code
from shmlog.client import handle
from shmlog.client.consumer_row import Assigned
from shmlog.client.positions import Positions
from shmlog.client.record_batch import VIEW_BYTES, RecordBatch, make_records, span_of
from shmlog.types import Record


class Fetching(Positions):
    """The layer that reads."""

    _turn: int  # which partition comes first in the next poll
    _views: Any  # sl_view[]
    _fetched: int  # bytes of one partition in the poll that is going on
    _fetch_bytes: int
    _check: int  # check_crcs
    _spin_ns: int
    _key_of: Any
    _value_of: Any
    _counts: dict[str, int]  # of what is rare
    _records_total: int
    _bytes_total: int
    _polls_total: int

    def _in_turn(self) -> list[Assigned]:
        """The partitions to look at, beginning with the one whose turn it is. Takes up new partitions first."""
        self._take_up_view()
        parts = [part for part in self._parts.values() if not part.paused]
        if not parts:
            return parts
        self._turn %= len(parts)
        return parts[self._turn :] + parts[: self._turn] if self._turn else parts

    def _fetch(self, part: Assigned, most: int, max_bytes: int) -> int:
        """Views of up to `most` records at the position, in self._views. 0: nothing there. Moves the position only over what holds no record."""
        if part.position < 0:
            self._find_position(part)
        if len(self._views) < most:
            self._views = ffi.new("sl_view[]", most)
        for _ in range(8):
            self._align(part)
            n = self._poll_reader(part, most, max_bytes)
            if n > 0:
                part.reader_at = int(lib.sl_reader_position(part.reader))
                return n
            if n == 0:
                part.position = part.reader_at = int(lib.sl_reader_position(part.reader))  # past markers
                return 0
            if n == lib.SL_E_RANGE:
                if self._out_of_range(part):
                    continue
                return 0
            if n in (lib.SL_E_AGAIN, lib.SL_E_INTR, lib.SL_E_TIMEOUT, lib.SL_E_FENCED):
                return 0
            if self._version != self._session.version_word[0]:
                return 0  # another broker may lead, and the files that we read be gone: first by the new view
            self._raise(part, n)
        return 0

    def _poll_reader(self, part: Assigned, most: int, max_bytes: int) -> int:
        self._unpin(but=part)
        self._polled = part
        part.reader_at = -1  # unknown until the caller says: a Ctrl-C may come between the poll and that
        return int(lib.sl_reader_poll(part.reader, self._views, most, max_bytes, self._check))

    def _out_of_range(self, part: Assigned) -> bool:
        """The position lies outside the log: by auto_offset_reset to one end of it, or an error. False: it does not any more."""
        low, end = self._ends(part)
        if low <= part.position <= end:
            return True  # the log moved meanwhile: look again
        if self._reset == "none":
            raise errors.OffsetOutOfRangeError(
                f"{part.tp.topic}-{part.tp.partition}: offset {part.position} is outside the log, which holds {low} to {end}",
                topic=part.tp.topic, partition=part.tp.partition, offset=part.position, log_start_offset=low, log_end_offset=end,
            )  # fmt: skip
        target = low if self._reset == "earliest" else end
        self._counts["resets"] += 1
        self._counts["skipped_records"] += max(0, target - part.position)
        part.position = target
        return True

    def _gather(self, most: int) -> list[tuple[Assigned, list[Record], int]]:
        """Up to `most` records of all partitions in turn, each with the position after them. Moves no position."""
        found: list[tuple[Assigned, list[Record], int]] = []
        left = most
        for part in self._in_turn():
            try:
                n = self._fetch(part, left, self._fetch_bytes)
                if not n:
                    continue
                records, error = self._records(part, n)
            except errors.ShmlogError:
                if found:
                    break  # first those that were found; this comes again
                raise
            after = part.reader_at
            # A poll of the reader ends with a batch or with its buffer of the file: there may be more.
            while error is None and len(records) < left and self._fetched < self._fetch_bytes:
                n = self._poll_reader(part, left - len(records), self._fetch_bytes)
                if n <= 0:
                    if n == 0:
                        after = part.reader_at = int(lib.sl_reader_position(part.reader))
                    break  # an error comes again with the next call
                more, error = self._records(part, n, self._fetched)
                records += more
                after = part.reader_at = int(lib.sl_reader_position(part.reader))
            if error is not None:
                part.reader_at = -1
                if not records:
                    if found:
                        break
                    raise error
                after = records[-1].offset + 1
            found.append((part, records, after))
            left -= len(records)
            if left <= 0:
                break
        if found:
            self._turn += 1
        return found

    def _records(self, part: Assigned, n: int, fetched: int = 0) -> tuple[list[Record], BaseException | None]:
        low, span, total = span_of(self._views, n)
        rows = ffi.buffer(self._views, n * VIEW_BYTES)
        data = ffi.buffer(ffi.cast("char *", low), span)
        tp = part.tp
        records, error = make_records(tp.topic, tp.partition, rows, low, data, part.timestamp_type, self._key_of, self._value_of)
        self._records_total += len(records)
        self._bytes_total += total
        self._fetched = fetched + total
        return records, error

    def _batch(self, part: Assigned, n: int) -> RecordBatch:
        """What _fetch() found as a batch: leased if the bounds allow, else copied. Then the position moves."""
        low, span, total = span_of(self._views, n)
        owner = self._leases.take(part.reader, low, span) if span else ffi.cast("char *", 0)
        if owner is not None:
            rows = bytes(ffi.buffer(self._views, n * VIEW_BYTES))
            view = memoryview(ffi.buffer(owner, span)).cast("B").toreadonly()
        else:
            data = bytearray(max(1, total))
            to = ffi.from_buffer("uint8_t[]", data)
            lib.sl_views_copy(self._views, n, to, total)
            low = int(ffi.cast("uintptr_t", to))
            rows = bytes(ffi.buffer(self._views, n * VIEW_BYTES))
            view = memoryview(data).toreadonly()
            self._counts["copied_batches"] += 1
        batch = RecordBatch(part.tp, n, rows, low, view, owner is not None, part.reader_at, part.timestamp_type, self._key_of, self._value_of)
        self._counts["batches"] += 1
        self._records_total += n
        self._bytes_total += total
        part.position = part.reader_at
        return batch

    def _newest(self, part: Assigned, at: int, end: int) -> Record | None:
        """The last record of [at, end)."""
        newest = None
        while at < end:
            lib.sl_reader_seek(part.reader, at)
            n = self._poll_reader(part, len(self._views), 1)
            if n == lib.SL_E_RANGE or n in (0, lib.SL_E_AGAIN, lib.SL_E_INTR):
                return newest
            if n < 0:
                self._raise(part, n)
            low, span, _ = span_of(self._views + (n - 1), 1)
            rows = ffi.buffer(self._views + (n - 1), VIEW_BYTES)
            data = ffi.buffer(ffi.cast("char *", low), span)
            records, error = make_records(*part.tp, rows, low, data, part.timestamp_type, self._key_of, self._value_of)
            if error is not None:
                raise error
            newest = records[0]
            at = int(lib.sl_reader_position(part.reader))
        return newest

    def _sleep(self, deadline: int) -> bool:
        """A slice of waiting. True: look again. False: the time is over, or wakeup() ended it."""
        if self._woken:
            self._woken = False
            return False
        now = time.monotonic_ns()
        if now >= deadline:
            return False
        handle.check_cluster(self._cluster, self._session.name)
        until = min(deadline, now + handle.SLICE_NS)
        readers, n = self._reader_array()
        if n == 0:
            control = lib.sl_cluster_control(self._cluster)
            seen = control.view_changes
            if self._version == self._session.version_word[0]:
                lib.sl_view_wait(self._cluster, seen, until if not self._woken else 0)
            return True
        for part in self._parts.values():
            if part.reader_at != part.position:
                self._align(part)
        code = lib.sl_readers_wait(self._cluster, self._row, readers, n, self._spin_ns, until)
        if code == lib.SL_E_GONE:
            raise errors.ClosedError(f"cluster {self._session.name} was shut down")
        if code < 0 and code not in (lib.SL_E_TIMEOUT, lib.SL_E_INTR, lib.SL_E_AGAIN):
            raise_code(code)
        return True
