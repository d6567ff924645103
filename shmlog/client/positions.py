"""Where a consumer stands in its partitions, and where it could.

A *position* is the offset of the next record to hand out. It is the only truth: the reader of the C core may be ahead of it, and is moved before its
next use if the two differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from shmlog import errors
from shmlog._ffi import ffi, lib
from shmlog.client.assignment import Assignment
from shmlog.client.consumer_row import Assigned
from shmlog.types import OffsetAndTimestamp, TopicPartition


class Positions(Assignment):
    """The layer that knows positions."""

    def position(self, tp: TopicPartition) -> int:
        """The offset of the next record to be handed out."""
        part = self._assigned(tp)
        self._find_position(part)
        return part.position

    def seek(self, tp: TopicPartition, offset: int) -> None:
        """The next record comes from `offset`. An offset outside the log is noticed by the next read (auto_offset_reset)."""
        if not isinstance(offset, int) or not 0 <= offset < 2**63:
            raise errors.IllegalArgumentError(f"an offset is an int from 0 on, not {offset!r}")
        self._move(self._assigned(tp), offset)

    def seek_to_beginning(self, *partitions: TopicPartition) -> None:
        """To the oldest record there is, of these partitions (default: all assigned)."""
        for part in self._chosen(partitions):
            self._move(part, self._ends(part)[0])

    def seek_to_end(self, *partitions: TopicPartition) -> None:
        """Behind the newest record there is now, of these partitions (default: all assigned)."""
        for part in self._chosen(partitions):
            self._move(part, self._ends(part)[1])

    def beginning_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """Offset of the oldest record of each partition, assigned or not."""
        self._check_open()
        return {tp: self._log_offsets(tp)[0] for tp in map(_tp, partitions)}

    def end_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """The offset that the next record visible to consumers will have, of each partition, assigned or not."""
        self._check_open()
        return {tp: self._log_offsets(tp)[1] for tp in map(_tp, partitions)}

    def offsets_for_times(self, timestamps: Mapping[TopicPartition, int]) -> dict[TopicPartition, OffsetAndTimestamp | None]:
        """For each partition the first record whose timestamp (ms since 1970) is at least this; None if there is none."""
        self._enter()
        try:
            self._take_up_view()
            found: dict[TopicPartition, OffsetAndTimestamp | None] = {}
            for tp, ms in timestamps.items():
                if ms < 0:
                    raise errors.IllegalArgumentError(f"{ms} ms is before 1970")
                found[tp] = self._offset_for_time(_tp(tp), ms)
            return found
        finally:
            self._leave()

    def lag(self, *partitions: TopicPartition) -> dict[TopicPartition, int]:
        """Records between the position and the end, of these partitions (default: all assigned)."""
        lags = {}
        for part in self._chosen(partitions):
            self._find_position(part)
            lags[part.tp] = max(0, self._ends(part)[1] - part.position)
        return lags

    def highwater(self, tp: TopicPartition) -> int:
        """kafka-python's name for the end offset of an assigned partition."""
        return self._ends(self._assigned(tp))[1]

    # --- inside ---

    def _move(self, part: Assigned, offset: int) -> None:
        part.position = offset
        if part is self._ready_part:
            self._drop_ready()

    def _find_position(self, part: Assigned) -> None:
        if part.position >= 0:
            return
        if part.start == "none":
            raise errors.NoOffsetForPartitionError(
                f'{part.tp.topic}-{part.tp.partition}: no position, and auto_offset_reset is "none"', topic=part.tp.topic, partition=part.tp.partition,
                hint="seek() to one",
            )  # fmt: skip
        low, end = self._ends(part)
        part.position = low if part.start == "earliest" else end

    def _log_offsets(self, tp: TopicPartition) -> tuple[int, int]:
        part = self._parts.get(tp)
        return self._ends(part) if part is not None else self._ends_of(tp, self._partition_view(tp).block)

    def _partition_view(self, tp: TopicPartition) -> Any:
        partitions = self._topic(tp.topic).partitions
        if not 0 <= tp.partition < len(partitions):
            raise errors.no_partition(tp.topic, tp.partition, len(partitions))
        return partitions[tp.partition]

    def _offset_for_time(self, tp: TopicPartition, ms: int) -> OffsetAndTimestamp | None:
        part = self._parts.get(tp)
        mine = part is None
        if part is None:
            self._partition_view(tp)
            part = self._open(tp, self._topic(tp.topic), "none")
        try:
            self._unpin()
            found_ns = ffi.new("int64_t *")
            part.reader_at = -1  # the search moves it
            offset = lib.sl_reader_offset_for_time(part.reader, ms * 1_000_000, found_ns)
            if offset == -1:
                return None
            if offset < 0:
                self._raise(part, offset)
            return OffsetAndTimestamp(int(offset), int(found_ns[0]) // 1_000_000)
        finally:
            if mine:
                lib.sl_reader_close(part.reader)


def _tp(tp: Any) -> TopicPartition:
    return tp if isinstance(tp, TopicPartition) else TopicPartition(*tp)
