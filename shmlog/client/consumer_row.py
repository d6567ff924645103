"""What a consumer has one of, whatever it reads: a row of the cluster, a call that is going on, and ways to be woken.

The row has one poll pin, set by sl_reader_poll() and cleared before a call sleeps or returns, and one wake word, so that one sleep covers all its
partitions. A consumer belongs to one thread at a time (wakeup() may come from any); a second one gets IllegalStateError.

Consumer is made of layers, each a file that knows those above it here: ConsumerRow, Assignment (assignment.py: which partitions), Positions
(positions.py: where in them), Fetching (fetching.py: what lies there), Consumer (consumer.py: handing it out). Consumer.__init__ sets what they share.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from threading import RLock, get_ident
from types import FrameType
from typing import Any, NoReturn

from shmlog import errors
from shmlog._binding import Receiver, in_c
from shmlog._ffi import ffi, lib, raise_code
from shmlog.client import handle
from shmlog.client.record_batch import Leases
from shmlog.client.session import Session
from shmlog.types import TopicPartition

_NESTED = "a Consumer's call within its own call (a signal handler, a deserializer, a listener)"
_SECOND = "a Consumer belongs to one thread at a time; only wakeup() may be called by another"


@in_c
class Assigned:
    """A partition that is being read."""

    __slots__ = ("tp", "topic_id", "block", "spills", "timestamp_type", "reader", "reader_at", "position", "start", "paused", "address", "directory")

    def __init__(self, tp: TopicPartition, topic_id: bytes, block: int, spills: bool, timestamp_type: int, reader: Any, start: str) -> None:
        self.tp = tp
        self.topic_id = topic_id
        self.block = block
        self.spills = spills
        self.timestamp_type = timestamp_type
        self.reader = reader
        self.reader_at = -1  # where the reader stands; unlike `position`, not what the user sees
        self.position = -1  # of the next record to hand out; -1: not known yet, `start` says how to find it
        self.start = start  # earliest, latest or none
        self.paused = False
        self.address = 0  # of the reader, for the extension
        self.directory: str | None = None  # where the leader has the files


class ConsumerRow(Receiver):
    """The layer that knows the row: one call at a time, the poll pin, waking."""

    _generation: int
    _session: Session
    _cluster: Any
    _row: int
    _leases: Leases
    _parts: dict[TopicPartition, Assigned]
    _readers: Any  # sl_reader *[] of those that are not paused; None: make it anew
    _polled: Assigned | None  # whose reader may hold the row's poll pin
    _owner: FrameType | None  # the call that is going on
    _fifo: tuple[int, int] | None
    _woken: bool
    # wakeup() says "awake" before it touches the row, and whoever woke may close at once, which unmaps the row. Reentrant: a signal handler may
    # call wakeup() in the middle of either.
    _wake_lock: RLock

    # --- waking ---

    def fileno(self) -> int:
        """A file descriptor for select, poll or an event loop: readable when poll(0) may find records. The consumer owns it.

        From the first call on, each poll(), latest() and step of iteration empties it and makes it readable again for what comes after: so read until
        poll() returns {} and then wait for it.
        """
        self._enter()
        try:
            if self._fifo is None:
                path = f"{self._session.run_dir.rstrip('/')}/w{self._row}"
                try:
                    os.unlink(path)  # of a row's earlier life
                except FileNotFoundError:
                    pass
                os.mkfifo(path, 0o600)
                # Read and write: never an end of file while no producer has it open, and this consumer can make itself readable.
                self._fifo = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC), handle.generation
            return self._fifo[0]
        finally:
            self._leave()

    def wakeup(self) -> None:
        """From any thread, or a signal handler: ends the poll() or step of iteration that waits now, or the next that would wait; it finds nothing
        then."""
        self._check_open()  # in a forked child the lock may be held by a thread that is not there
        with self._wake_lock:
            self._check_open()
            self._woken = True
            lib.sl_row_wakeup(self._cluster, self._row)

    # --- one thread at a time ---

    def _check_open(self) -> None:
        if self._generation != handle.generation:
            handle.refuse(self._generation, "Consumer")

    def _enter(self) -> None:
        if self._generation != handle.generation:
            handle.refuse(self._generation, "Consumer")
        frame = sys._getframe(1)
        if self._busy:
            self._refuse_busy()
        if self._owner is not None:
            self._refuse_second(self._owner, frame)
        self._owner = frame  # between the look and this store no other thread runs, nor a signal handler
        if self._fifo is not None:
            self._disarm()

    def _refuse_busy(self) -> NoReturn:
        """A call of the extension is going on: it ends its being busy itself, however it ends."""
        raise errors.IllegalStateError(_NESTED if self._busy == get_ident() else _SECOND)

    def _refuse_second(self, owner: FrameType, mine: FrameType) -> None:
        """Raises if the call `owner` is going on. A lock would not do: a Ctrl-C between its release and its bookkeeping would leave it taken for
        ever. A frame that is on no thread's stack has ended, however it did."""
        for frame in sys._current_frames().values():
            f: FrameType | None = frame
            while f is not None:
                if f is owner:
                    nested = frame is sys._getframe() or any(f is g for g in _stack(mine))
                    raise errors.IllegalStateError(_NESTED if nested else _SECOND)
                f = f.f_back

    def _leave(self) -> None:
        """No pin is held outside a call; who waits by fileno() is told what to wait for."""
        self._unpin()
        if self._fifo is not None:
            self._arm()
        self._owner = None

    def _unpin(self, but: Assigned | None = None) -> None:
        """The row has one poll pin, and a reader that was polled believes that it is its own: so it is told before another one is polled."""
        last = self._polled
        if last is not None and last is not but:
            lib.sl_reader_done(last.reader)
            self._polled = None

    def _arm(self) -> None:
        assert self._fifo is not None
        for part in self._parts.values():
            self._align(part)
        readers, n = self._reader_array()
        if lib.sl_readers_arm(self._cluster, self._row, readers, n) != 0 or self._woken:
            try:
                os.write(self._fifo[0], b"\0")
            except BlockingIOError:
                pass  # full: readable in any case

    def _disarm(self) -> None:
        """Of all partitions, also those paused since: a bit that stays set makes every append there look after this row."""
        assert self._fifo is not None
        everything = [part.reader for part in self._parts.values()]
        lib.sl_readers_disarm(self._cluster, self._row, ffi.new("sl_reader *[]", everything), len(everything))
        try:
            while len(os.read(self._fifo[0], 4096)) == 4096:
                pass
        except BlockingIOError:
            pass

    # --- readers ---

    def _reader_array(self) -> tuple[Any, int]:
        if self._readers is None:
            active = [part.reader for part in self._parts.values() if not part.paused]
            self._readers = ffi.new("sl_reader *[]", active), len(active)
        readers: tuple[Any, int] = self._readers
        return readers

    def _align(self, part: Assigned) -> None:
        """The reader goes to the position, if it is elsewhere."""
        if part.position >= 0 and part.reader_at != part.position:
            part.reader_at = -1
            code = lib.sl_reader_seek(part.reader, part.position)
            if code < 0 and code != lib.SL_E_RANGE:  # RANGE: the next poll says so too, and resets
                self._raise(part, code)
            part.reader_at = part.position

    def _ends(self, part: Assigned) -> tuple[int, int]:
        return self._ends_of(part.tp, part.block)

    def _ends_of(self, tp: TopicPartition, block: int) -> tuple[int, int]:
        """(log start, end visible to consumers)"""
        out = ffi.new("sl_offsets *")
        code = lib.sl_log_offsets(self._cluster, self._row, block, out)
        if code < 0:
            raise_code(code, f"{tp.topic}-{tp.partition}: {_sentence(code)}")
        words = lib.sl_cluster_partition(self._cluster, block)
        if words.storage_state == lib.SL_STORAGE_DISK_ERROR:
            handle.check_files(self._cluster, self._session.topic(tp.topic), tp.topic, tp.partition)
        flags = words.flags
        end = out.high_watermark if flags & lib.SL_PF_REPLICATED and not flags & lib.SL_PF_APPENDED else out.end
        return int(out.log_start), max(int(end), int(out.log_start))

    def _raise(self, part: Assigned, code: int) -> NoReturn:
        topic, partition = part.tp
        where = f"{topic}-{partition}"
        if code == lib.SL_E_CORRUPT:
            at = int(lib.sl_reader_position(part.reader))
            if at > part.position:
                part.position = at  # what lies between held no record
            behind = int(lib.sl_reader_damage_end(part.reader))
            lost = f"{behind - part.position:,} records" if behind > part.position + 1 else "the record"
            raise errors.CorruptRecordError(
                f"{where}@{part.position}: {lost} failed the check or got lost, and cannot be delivered",
                topic=topic,
                partition=partition,
                offset=part.position,
                end_offset=behind,
                hint=f"seek({part.tp!r}, {behind}) goes on behind it; `shmlog verify` lists all damage",
            )
        if code == lib.SL_E_DELETED:
            raise errors.UnknownTopicIdError(f"topic {topic!r} was deleted", topic=topic, partition=partition)
        if code == lib.SL_E_GONE:
            raise errors.ClosedError(f"cluster {self._session.name} was shut down")
        raise_code(code, f"{where}: {_sentence(code)}")
        raise AssertionError(code)


def _stack(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _sentence(code: int) -> str:
    text: bytes = ffi.string(lib.sl_strerror(code))
    return text.decode()
