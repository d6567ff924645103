"""A thread's way into the log: its row, an appender for each partition it sends to, and what the C core's answers mean.

Who owns what: a Thread belongs to one thread of one Producer and is used by it alone, so nothing here takes a lock; it is freed, and its row given
back, when the thread ends or the Producer goes.
"""

from __future__ import annotations

import os
from typing import Any, NoReturn

from shmlog import errors
from shmlog._binding import fast
from shmlog._ffi import ffi, lib, raise_code
from shmlog.client import handle
from shmlog.client.session import Session
from shmlog.partitioner import Sticky

_RECORD = ffi.typeof("sl_record *")
_RESULT = ffi.typeof("sl_append_result *")

# --- a thread's way into the log ---------------------------------------------------------------------------------------


class Place:
    """One partition as one thread appends to it."""

    __slots__ = ("topic", "topic_id", "partition", "block", "appender", "acks")

    def __init__(self, topic: str, topic_id: bytes, partition: int, block: int, appender: Any, acks: int) -> None:
        self.topic = topic
        self.topic_id = topic_id
        self.partition = partition
        self.block = block
        self.appender = appender
        self.acks = acks


class Route:
    """One topic as one thread appends to it: its places, opened as they are used."""

    __slots__ = ("topic", "topic_id", "blocks", "count", "places", "version", "acks", "sticky", "lane")

    def __init__(self, topic: str, topic_id: bytes) -> None:
        self.topic = topic
        self.topic_id = topic_id
        self.blocks: list[int] = []
        self.count = 0
        self.places: list[Place | None] = []
        self.version = -1  # of the cluster view that this was made from
        self.acks: list[int] = []
        # Producers start at different partitions, or all of them crowd the same one at the same time.
        start = int.from_bytes(os.urandom(2), "little")
        self.lane: Any = None if fast is None else fast.Lane(start)  # the extension's form of this, kept by who changes it
        self.sticky = self.lane or Sticky(start)


class Thread:
    """What one thread of a Producer owns: a row, appenders and C structs. Freed when the thread ends or the Producer goes, in __del__."""

    __slots__ = ("session", "cluster", "row", "routes", "lanes", "free", "version", "records", "nbytes", "waits", "made_in", "ended", "__weakref__")

    def __init__(self, session: Session, ended: list[int]) -> None:
        self.made_in = handle.CLOSED
        self.ended = ended
        self.session = session = session.keep()
        self.cluster = session.cluster
        try:
            self.row = session.take_row(session.PRODUCER)
        except BaseException:
            session.close()
            raise
        self.routes: dict[str, Route] = {}
        # The extension's sends do not come by here: it has the lanes of the routes, and counts for itself.
        self.lanes: Any = None if fast is None else fast.Lanes(int(ffi.cast("uintptr_t", session.version_word)))
        self.free: list[tuple[Any, Any]] = []
        self.version = session.version_word  # a pointer: [0] is the version of the cluster view in force
        self.records = 0
        self.nbytes = 0
        self.waits = 0
        self.made_in = handle.generation

    def counts(self) -> tuple[int, int, int]:
        """Records and bytes sent, and sends that had to wait."""
        if self.lanes is None:
            return self.records, self.nbytes, self.waits
        return self.records + self.lanes.records, self.nbytes + self.lanes.nbytes, self.waits

    def structs(self) -> tuple[Any, Any]:
        record, result = ffi.new(_RECORD), ffi.new(_RESULT)
        record.producer_id = -1
        return record, result

    def close(self) -> None:
        """By its own thread, or when no thread can use it any more."""
        if self.made_in != handle.generation:
            return  # closed before, or the parent's, whose row a child must not touch
        self.made_in = handle.CLOSED
        for i, n in enumerate(self.counts()):
            self.ended[i] += n
        if self.lanes is not None:
            self.lanes.close()
        for route in self.routes.values():
            for place in route.places:
                if place is not None:
                    lib.sl_appender_close(place.appender)
        self.routes.clear()
        self.session.give_row(self.row)
        self.session.close()

    def __del__(self) -> None:
        if not getattr(handle, "exiting", True):
            self.close()


# --- errors ------------------------------------------------------------------------------------------------------------

# Codes that time may cure: the append is tried again while max_block_ms lasts.
WAITING = frozenset(
    {lib.SL_E_AGAIN, lib.SL_E_TIMEOUT, lib.SL_E_INTR, lib.SL_E_FENCED, lib.SL_E_BEHIND, lib.SL_E_DISK_FULL, lib.SL_E_SHM_FULL, lib.SL_E_IO}
)


def raise_append(thread: Thread, topic: str, partition: int, code: int, result: Any, waited_ms: float | None, expected: int | None = None) -> NoReturn:
    raise append_error(thread, topic, partition, code, result, waited_ms, expected)


def append_error(
    thread: Thread, topic: str, partition: int, code: int, result: Any, waited_ms: float | None, expected: int | None = None
) -> errors.ShmlogError:
    """The exception for a result code, with its numbers. waited_ms: the time ran out."""
    where = f"{topic}-{partition}"
    place: dict[str, Any] = {"topic": topic, "partition": partition}
    waited = "" if waited_ms is None else f" for {waited_ms:g} ms"
    needed, free = (int(result.needed_bytes), int(result.free_bytes)) if result is not None else (0, 0)
    room = {"needed_bytes": needed, "free_bytes": free}
    if code == lib.SL_E_TOO_BIG:
        if free and needed > free:
            return errors.MessageSizeTooLargeError(
                f"{where}: a record of {needed} bytes; max.message.bytes is {free}", size=needed, limit=free, **place
            )
        return errors.MessageSizeTooLargeError(f"{where}: the record is larger than a segment can be", **place)
    if code == lib.SL_E_CONFLICT:
        end = int(result.offset)
        message = f"{where}: the log ends at offset {end}, not at {expected}"
        return errors.OffsetConflictError(message, expected_offset=expected, log_end_offset=end, **place)
    if code == lib.SL_E_DELETED:
        return errors.UnknownTopicIdError(f"topic {topic!r} was deleted", **place)
    if code == lib.SL_E_DISK_FULL:
        return errors.StorageFullError(f"{where}: no room on the log's disk{waited}: {needed} bytes needed, {free} free", **room, **place)
    if code == lib.SL_E_SHM_FULL:
        return errors.ShmSpaceError(f"{where}: no room in shared memory{waited}: {needed} bytes needed, {free} free", **room, **place)
    if code == lib.SL_E_RING_FULL:
        return errors.RingFullError(
            f"{where}: the partition's memory is full and shmlog.full=raise: {needed} bytes needed, {free} free", **room, **place
        )
    if code == lib.SL_E_IO:
        return errors.StorageError(f"{where}: the log's disk failed{waited}", **place)
    if code == lib.SL_E_BEHIND:
        return errors.KafkaTimeoutError(f"{where}: no room{waited}: its disk, or a tethered consumer, is slower than the producers", **place)
    if code == lib.SL_E_FENCED:
        handle.check_files(thread.cluster, thread.session.topic(topic), topic, partition)
        return errors.KafkaTimeoutError(f"{where}: no leader{waited}", **place)
    if code in (lib.SL_E_TIMEOUT, lib.SL_E_AGAIN):
        return errors.KafkaTimeoutError(f"{where}: no room{waited}", **place)
    if code == lib.SL_E_GONE:
        return errors.ClosedError(f"cluster {thread.session.name} was shut down")
    if code == lib.SL_E_NO_SLOT:
        return errors.LimitError(f"{where}: more than {lib.SL_VIEW_PINS} loans of one thread at a time", hint="end loans before taking more")
    try:
        raise_code(code)
    except errors.ShmlogError as error:
        error.topic, error.partition = topic, partition
        return error
    raise AssertionError(code)
