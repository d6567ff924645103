"""Consumer: reads partitions straight from the log's memory, or where that has moved on, from its files.

Each assigned partition has a reader of the C core, and a *position*: the offset of the next record to hand out. The reader may be ahead of it
(records are fetched in portions); whenever the two differ the reader is moved before its next use. So the position is the only truth about where a
consumer stands, and it changes in one store, when records are handed over: an exception or a Ctrl-C anywhere else leaves them to be delivered again
by the next call.

A consumer belongs to one thread at a time (wakeup() may come from any); a second one gets IllegalStateError. It has one row: one poll pin, set by
sl_reader_poll() and cleared before poll() sleeps or returns, and one wake word, so that one sleep covers all its partitions.
"""

from __future__ import annotations

import math
import os
import re
import sys
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

from shmlog import errors
from shmlog._ffi import ffi, lib, raise_code
from shmlog.client import handle
from shmlog.client.encoding import partition_number
from shmlog.client.record_batch import VIEW_BYTES, Leases, RecordBatch, make_records, span_of, timestamp_type_of
from shmlog.client.session import Session, attach
from shmlog.config import topic_config, topic_name
from shmlog.types import OffsetAndTimestamp, Record, TopicPartition

_NO_OFFSETS = "this version of shmlog has no consumer groups yet"
_LEADER_NS = 10_000_000_000
AUTO_SPIN_NS = 100_000  # a wake from a futex costs 20-50 us: less than this is better spun through

_WITHOUT_EFFECT = handle.CONNECTION_KEYWORDS | {
    "allow_auto_create_topics",
    "auto_commit_interval_ms",
    "client_rack",
    "default_offset_commit_callback",
    "enable_auto_commit",
    "exclude_internal_topics",
    "fetch_max_bytes",
    "fetch_max_wait_ms",
    "fetch_min_bytes",
    "group_instance_id",
    "heartbeat_interval_ms",
    "leave_group_on_close",
    "legacy_iterator",
    "max_poll_interval_ms",
    "partition_assignment_strategy",
    "session_timeout_ms",
}


class _Assigned:
    """A partition that is being read."""

    __slots__ = ("tp", "topic_id", "block", "spills", "timestamp_type", "reader", "reader_at", "position", "start", "paused")

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


class Consumer:
    """Reads topics of a cluster. `for record in consumer`, poll(), batches() and latest() hand out records.

    *topics                 topics to subscribe to; none: subscribe() or assign() later
    bootstrap_servers       "shm://name" or "shm://name/namespace"; None: $SHMLOG_CLUSTER, else "shm://default"
    group_id                None. Groups come with a later version: anything else raises UnsupportedVersionError
    auto_offset_reset       where to begin, and to go on after records were deleted under it: "latest" (what is sent from now on), "earliest", or "none"
                            (NoOffsetForPartitionError, OffsetOutOfRangeError). Partitions that appear later are read from their beginning
    key_deserializer, value_deserializer   callables, or objects with deserialize(topic, bytes); null keys and values stay None
    wait                    "spin" (a core at 100 % for the least latency), "block" (futex) or "auto" (spin 100 us, then block)
    missing                 a topic that does not exist: "raise" UnknownTopicOrPartitionError, or "wait" until it appears
    consumer_timeout_ms     ends iteration when no record came for so long; default never
    max_poll_records        records in one poll(), if it is not told
    max_partition_fetch_bytes   about how much is taken from a partition before the next gets its turn
    max_leased_bytes        memory that batches may keep from being reused; beyond it the next batch is a private copy (counted in metrics())
    check_crcs              check records against their CRC: CorruptRecordError names the record; seek to its end_offset to go on
    isolation_level         "read_uncommitted" or "read_committed" (the same until transactions exist)
    tether                  for memory-only topics with shmlog.full=block: producers wait for this consumer instead of overwriting what it has not read

    kafka-python's connection, fetch, session and commit keywords are accepted without effect. NoBrokersAvailable when no cluster runs.
    """

    def __init__(
        self,
        *topics: str,
        bootstrap_servers: str | list[str] | None = None,
        group_id: str | None = None,
        auto_offset_reset: str = "latest",
        key_deserializer: Any = None,
        value_deserializer: Any = None,
        wait: str = "auto",
        missing: str = "raise",
        consumer_timeout_ms: float = math.inf,
        max_poll_records: int = 500,
        max_partition_fetch_bytes: int = 1 << 20,
        max_leased_bytes: int = 64 << 20,
        check_crcs: bool = True,
        isolation_level: str = "read_uncommitted",
        tether: bool = False,
        client_id: str = "",
        **without_effect: Any,
    ) -> None:
        self._generation = handle.CLOSED
        handle.check_keywords(type(self), without_effect, Consumer.__init__.__kwdefaults__, _WITHOUT_EFFECT)
        self._recipe: tuple[tuple[str, ...], dict[str, Any]] = (
            topics,
            {
                "bootstrap_servers": bootstrap_servers,
                "auto_offset_reset": auto_offset_reset,
                "key_deserializer": key_deserializer,
                "value_deserializer": value_deserializer,
                "wait": wait,
                "missing": missing,
                "consumer_timeout_ms": consumer_timeout_ms,
                "max_poll_records": max_poll_records,
                "max_partition_fetch_bytes": max_partition_fetch_bytes,
                "max_leased_bytes": max_leased_bytes,
                "check_crcs": check_crcs,
                "isolation_level": isolation_level,
                "tether": tether,
                "client_id": client_id,
            },
        )
        if group_id is not None:
            raise errors.UnsupportedVersionError(
                f"group_id={group_id!r}: {_NO_OFFSETS}", hint="leave group_id out, and keep positions yourself: seek()"
            )
        self._reset = _one_of(
            "auto_offset_reset", {"smallest": "earliest", "largest": "latest"}.get(auto_offset_reset, auto_offset_reset), "earliest", "latest", "none"
        )
        self._missing = _one_of("missing", missing, "raise", "wait")
        self._spin_ns = {"auto": AUTO_SPIN_NS, "block": 0, "spin": handle.SLICE_NS}[_one_of("wait", wait, "auto", "spin", "block")]
        _one_of("isolation_level", isolation_level, "read_uncommitted", "read_committed")
        if max_poll_records < 1 or max_partition_fetch_bytes < 1:
            raise errors.InvalidConfigurationError("max_poll_records and max_partition_fetch_bytes are at least 1")
        self._key_of = handle.conversion(key_deserializer, "deserialize")
        self._value_of = handle.conversion(value_deserializer, "deserialize")
        self._timeout_ms = consumer_timeout_ms
        self._max_poll_records = max_poll_records
        self._fetch_bytes = max_partition_fetch_bytes
        self._check = 1 if check_crcs else 0
        self._tether = tether
        self.client_id = client_id

        self._parts: dict[TopicPartition, _Assigned] = {}
        self._turn = 0  # which partition comes first in the next poll
        self._topics: set[str] = set()  # subscribed by name
        self._pattern: re.Pattern[str] | None = None
        self._listener: Any = None
        self._wanted: dict[TopicPartition, None] | None = None  # assigned by hand
        self._version = -1  # of the cluster view that _parts was made from
        self._readers: Any = None  # sl_reader *[] of those that are not paused; None: make it anew
        self._views = ffi.new("sl_view[]", max_poll_records)
        self._ready: Iterator[Record] = iter(())  # what iteration has fetched and not handed out
        self._ready_part: _Assigned | None = None
        self._polled: _Assigned | None = None  # whose reader may hold the row's poll pin
        self._fetched = 0  # bytes of one partition in the poll that is going on
        self._woken = False
        # wakeup() says "awake" before it touches the row, and whoever woke may close at once, which unmaps the row. Reentrant: a signal handler may
        # call wakeup() in the middle of either.
        self._wake_lock = threading.RLock()
        self._owner: FrameType | None = None  # the call that is going on
        self._fifo: tuple[int, int] | None = None
        self._counts = dict.fromkeys(("records", "bytes", "polls", "batches", "copied_batches", "resets", "skipped_records"), 0)

        session = attach(bootstrap_servers)
        try:
            self._leases = Leases(session, session.take_row(session.CONSUMER), max_leased_bytes)
        except BaseException:
            session.close()
            raise
        self._session: Session = session
        self._cluster = session.cluster
        self._row = self._leases.row
        self._generation = handle.generation
        if topics:
            try:
                self.subscribe(topics)
            except BaseException:
                self.close()
                raise

    # --- what is read ---

    def subscribe(self, topics: Iterable[str] | str = (), pattern: str | None = None, listener: Any = None) -> None:
        """Reads all partitions of these topics, or of those whose name matches the regular expression `pattern` (re.match), now and as they appear.

        When it returns the partitions are assigned and their positions known: what is sent from now on is not missed. listener: an object with
        on_partitions_assigned(set) and on_partitions_revoked(set).
        """
        self._check_open()
        if isinstance(topics, str):
            topics = (topics,)
        names = set(topics)
        if bool(names) == (pattern is not None):
            raise errors.IllegalArgumentError("subscribe() takes either topics or a pattern")
        if self._wanted is not None:
            raise errors.IllegalStateError("partitions were assigned by hand; unsubscribe() first")
        for name in names:
            topic_name(name)  # one that cannot be a topic would be waited for without end
            if self._missing == "raise":
                self._topic(name)
        self._topics = names
        self._pattern = None if pattern is None else re.compile(pattern)
        self._listener = listener
        self._refresh(first=True)

    def assign(self, partitions: Iterable[TopicPartition]) -> None:
        """Reads exactly these partitions, instead of those before. Positions of partitions that stay are kept."""
        self._check_open()
        if self._topics or self._pattern is not None:
            raise errors.IllegalStateError("topics are subscribed; unsubscribe() first")
        wanted = {TopicPartition(topic_name(topic), partition_number(n)): None for topic, n in partitions}
        if self._missing == "raise":
            for topic, partition in wanted:
                count = len(self._topic(topic).partitions)
                if not 0 <= partition < count:
                    raise errors.no_partition(topic, partition, count)
        self._wanted = wanted
        self._refresh(first=True)

    def unsubscribe(self) -> None:
        """Reads nothing any more."""
        self._check_open()
        self._topics = set()
        self._pattern = None
        self._wanted = None
        self._refresh(first=True)

    def assignment(self) -> set[TopicPartition]:
        self._check_open()
        return set(self._parts)

    def subscription(self) -> set[str] | None:
        """The subscribed topics (with a pattern: those that match now); None if nothing is subscribed."""
        self._check_open()
        if self._pattern is not None:
            return {tp.topic for tp in self._parts}
        return set(self._topics) or None

    def topics(self) -> set[str]:
        """All topics of the cluster (of the namespace)."""
        self._check_open()
        return set(self._session.topics())

    def partitions_for_topic(self, topic: str) -> set[int] | None:
        """The partitions of a topic; None if there is no such topic (as in kafka-python)."""
        self._check_open()
        view = self._session.topic(topic)
        return None if view is None else set(range(len(view.partitions)))

    # --- records ---

    def poll(self, timeout_ms: float = 0, max_records: int | None = None, update_offsets: bool = True) -> dict[TopicPartition, list[Record]]:
        """Up to max_records records, at once if there are any, else as soon as there are, else {} after timeout_ms.

        All partitions get their turn: the one that comes first moves on with each poll. update_offsets=False leaves the positions (the same records
        come again).

        OffsetOutOfRangeError, NoOffsetForPartitionError (auto_offset_reset="none"), CorruptRecordError (the position stays at the damaged record:
        seek to the error's end_offset, behind all that is damaged or lost there), UnknownTopicOrPartitionError when a topic was deleted, BrokerNotRunningError while waiting for a dead cluster. What a
        deserializer raises comes through, once the records before it are delivered.
        """
        most = self._max_poll_records if max_records is None else max_records
        if most < 1:
            raise errors.IllegalArgumentError(f"max_records={max_records} is not at least 1")
        self._enter()
        try:
            self._counts["polls"] += 1
            self._drop_ready()
            deadline = handle.deadline_of(None, min(timeout_ms, 1e12))
            while True:
                found = self._gather(most)
                if found:
                    for part, _records, after in found:
                        if update_offsets:
                            part.position = after
                    return {part.tp: records for part, records, _ in found}
                if not self._sleep(deadline):
                    return {}
        finally:
            self._leave()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Record:
        """The next record of any partition. Ends after consumer_timeout_ms without one, and by wakeup(); iteration may go on later."""
        if self._generation != handle.generation:
            handle.refuse(self._generation, "Consumer")
        for record in self._ready:
            self._ready_part.position = record.offset + 1  # type: ignore[union-attr]
            return record
        self._fetch_ready()
        for record in self._ready:
            self._ready_part.position = record.offset + 1  # type: ignore[union-attr]
            return record
        raise StopIteration

    def batches(self, max_records: int = 4096, max_bytes: int = 1 << 20) -> Iterator[RecordBatch]:
        """RecordBatches, each of one partition, with up to max_records records and about max_bytes (at least one record): views of the log's memory.

        Ends as iteration does. The position is past a batch when it is handed out. What is not released keeps memory from being reused: up to
        max_leased_bytes and 8 segments; beyond that batches are copies.
        """
        while True:
            batch = self.poll_batch(self._timeout_ms, max_records, max_bytes)
            if batch is None:
                return
            yield batch

    def poll_batch(self, timeout_ms: float = 0, max_records: int = 4096, max_bytes: int = 1 << 20) -> RecordBatch | None:
        """One RecordBatch, None after timeout_ms without a record."""
        if max_records < 1 or max_bytes < 1:
            raise errors.IllegalArgumentError(f"max_records={max_records} and max_bytes={max_bytes} are at least 1")
        self._enter()
        try:
            self._drop_ready()
            deadline = handle.deadline_of(None, min(timeout_ms, 1e12))
            while True:
                for part in self._in_turn():
                    n = self._fetch(part, max_records, max_bytes)
                    if n:
                        self._turn += 1
                        return self._batch(part, n)
                if not self._sleep(deadline):
                    return None
        finally:
            self._leave()

    def latest(self, tp: TopicPartition, timeout_ms: float = 0) -> Record | None:
        """The newest record of an assigned partition, skipping what lies before it; the position is then behind it.

        None if nothing was appended since the position, for timeout_ms: so each record comes at most once.
        """
        part = self._assigned(tp)
        self._enter()
        try:
            self._drop_ready()
            deadline = handle.deadline_of(None, min(timeout_ms, 1e12))
            while True:
                self._find_position(part)
                _, end = self._ends(part)
                back = 1
                while part.position < end:  # the last offsets may hold no record (markers): look a little further back, then twice as far
                    at = max(part.position, end - back)
                    part.reader_at = -1
                    record = self._newest(part, at, end)
                    if record is not None:
                        self._counts["skipped_records"] += record.offset - part.position
                        part.position = record.offset + 1
                        self._counts["records"] += 1
                        return record
                    if at == part.position:
                        break
                    back *= 2
                if not self._sleep(deadline):
                    return None
        finally:
            self._leave()

    # --- positions ---

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

    def pause(self, *partitions: TopicPartition) -> None:
        """Hands out nothing of these until resume(); the position stays."""
        self._set_paused(partitions, True)

    def resume(self, *partitions: TopicPartition) -> None:
        self._set_paused(partitions, False)

    def paused(self) -> set[TopicPartition]:
        self._check_open()
        return {tp for tp, part in self._parts.items() if part.paused}

    # --- groups: not yet ---

    def commit(self, offsets: Any = None) -> None:
        self._no_group("commit()")

    def commit_async(self, offsets: Any = None, callback: Any = None) -> NoReturn:
        self._no_group("commit_async()")

    def committed(self, tp: TopicPartition, metadata: bool = False) -> NoReturn:
        self._no_group("committed()")

    def _no_group(self, what: str) -> NoReturn:
        self._check_open()
        raise errors.IllegalStateError(f"{what} needs a group_id, and {_NO_OFFSETS}")

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

    # --- the rest ---

    def metrics(self) -> dict[str, float]:
        """Counters since this Consumer was made: records, bytes (of keys, values and headers), polls, batches, batches that had to be copied, positions
        that were reset, records that were skipped by resets or latest(); and the memory that batches keep now."""
        self._check_open()
        c = self._counts
        return {
            "records_total": c["records"],
            "bytes_total": c["bytes"],
            "polls_total": c["polls"],
            "batches_total": c["batches"],
            "lease_fallback_copies_total": c["copied_batches"],
            "resets_total": c["resets"],
            "skipped_records_total": c["skipped_records"],
            "leased_bytes": self._leases.bytes,
            "leases": self._leases.count,
            "assigned_partitions": len(self._parts),
        }

    def close(self, autocommit: bool = True, timeout_ms: float | None = None) -> None:
        """Gives everything back. Again: nothing. Batches and what was got from them stay valid."""
        if self._generation == handle.CLOSED:
            return
        if self._generation != handle.generation:
            handle.refuse(self._generation, "Consumer")
        frame = sys._getframe()
        if self._owner is not None:
            self._refuse_second(self._owner, frame)
        self._owner = frame
        try:
            self._generation = handle.CLOSED
            self._ready = iter(())
            self._unpin()
            if self._fifo is not None:
                self._disarm()
            parts, self._parts, self._readers = self._parts, {}, None
            for part in parts.values():
                lib.sl_reader_close(part.reader)
            if self._fifo is not None:
                os.close(self._fifo[0])
                self._fifo = None
                try:
                    os.unlink(f"{self._session.run_dir.rstrip('/')}/w{self._row}")
                except FileNotFoundError:
                    pass
            with self._wake_lock:
                self._leases.close()
        finally:
            self._owner = None

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(handle, "exiting", True) and getattr(self, "_generation", handle.CLOSED) == handle.generation:
            self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (type(self), *self._recipe)

    def __repr__(self) -> str:
        if self._generation == handle.CLOSED:
            return "<Consumer closed>"
        return f"<Consumer {self._session.address} {len(self._parts)} partitions of {sorted({tp.topic for tp in self._parts})}>"

    # --- one thread at a time ---

    def _check_open(self) -> None:
        if self._generation != handle.generation:
            handle.refuse(self._generation, "Consumer")

    def _enter(self) -> None:
        if self._generation != handle.generation:
            handle.refuse(self._generation, "Consumer")
        frame = sys._getframe(1)
        if self._owner is not None:
            self._refuse_second(self._owner, frame)
        self._owner = frame  # between the look and this store no other thread runs, nor a signal handler
        if self._fifo is not None:
            self._disarm()

    def _refuse_second(self, owner: FrameType, mine: FrameType) -> None:
        """Raises if the call `owner` is going on. A lock would not do: a Ctrl-C between its release and its bookkeeping would leave it taken for
        ever. A frame that is on no thread's stack has ended, however it did."""
        for frame in sys._current_frames().values():
            f: FrameType | None = frame
            while f is not None:
                if f is owner:
                    nested = frame is sys._getframe() or any(f is g for g in _stack(mine))
                    raise errors.IllegalStateError(
                        "a Consumer's call within its own call (a signal handler, a deserializer, a listener)"
                        if nested
                        else "a Consumer belongs to one thread at a time; only wakeup() may be called by another"
                    )
                f = f.f_back

    def _leave(self) -> None:
        """No pin is held outside a call; who waits by fileno() is told what to wait for."""
        self._unpin()
        if self._fifo is not None:
            self._arm()
        self._owner = None

    def _unpin(self, but: _Assigned | None = None) -> None:
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

    # --- assignment ---

    def _topic(self, name: str) -> Any:
        view = self._session.topic(name)
        if view is None:
            raise errors.UnknownTopicOrPartitionError(f"there is no topic {name!r}", topic=name)
        return view

    def _refresh(self, first: bool) -> None:
        """Makes _parts what is subscribed, by the cluster view in force. first: by the user's call; else partitions that are new are read from their
        beginning."""
        session = self._session
        self._version = int(session.version_word[0])
        wanted: dict[TopicPartition, Any] = {}
        if self._wanted is not None:
            for tp in self._wanted:
                view = session.topic(tp.topic)
                if view is not None and 0 <= tp.partition < len(view.partitions):
                    wanted[tp] = view
        else:
            names: Collection[str] = self._topics
            if self._pattern is not None:
                names = [name for name in session.topics() if self._pattern.match(name)]
            for name in sorted(names):
                view = session.topic(name)
                if view is not None:
                    wanted.update((TopicPartition(name, n), view) for n in range(len(view.partitions)))
        old = self._parts
        # A partition whose topic was deleted (and perhaps made anew) stays, and reading it says so; unless it came by a pattern, which means
        # what there is.
        follow = first or self._pattern is not None
        gone = [tp for tp, part in old.items() if follow and (tp not in wanted or wanted[tp].topic_id != part.topic_id)]
        new = [tp for tp in wanted if tp not in old or tp in gone]
        if not gone and not new:
            return
        if gone and self._listener is not None:
            self._listener.on_partitions_revoked(set(gone))
        opened: dict[TopicPartition, _Assigned] = {}
        try:
            for tp in new:
                opened[tp] = self._open(tp, wanted[tp], self._reset if first else "earliest")
        except BaseException:
            for part in opened.values():
                lib.sl_reader_close(part.reader)
            raise
        if self._fifo is not None:
            self._disarm()
        self._parts = {**{tp: part for tp, part in old.items() if tp not in gone}, **opened}
        self._readers = None
        if self._ready_part is not None and self._ready_part.tp in gone:
            self._drop_ready()
        self._unpin()
        for tp in gone:
            lib.sl_reader_close(old[tp].reader)
        if new and self._listener is not None:
            self._listener.on_partitions_assigned(set(new))

    def _open(self, tp: TopicPartition, view: Any, start: str) -> _Assigned:
        """A reader and, unless there is none by auto_offset_reset="none", a position: so that nothing sent after subscribe() is missed."""
        config = topic_config(view.config)
        directory = self._directory(tp) if config.shmlog_spill and self._session.has_disk else None
        part = _Assigned(
            tp,
            view.topic_id,
            view.partitions[tp.partition].block,
            directory is not None,
            timestamp_type_of(config.message_timestamp_type),
            None,
            start,
        )
        out = ffi.new("sl_reader **")
        path = ffi.new("char[]", os.fsencode(directory)) if directory is not None else ffi.NULL
        code = lib.sl_reader_open(self._cluster, self._row, part.block, part.topic_id, path, out)
        if code:
            self._raise(part, code)
        part.reader = out[0]
        try:
            if start != "none":
                low, end = self._ends(part)
                part.position = low if start == "earliest" else end
            if self._tether and not part.spills:
                self._align(part)
                code = lib.sl_reader_tether(part.reader, 1)
                if code < 0:
                    self._raise(part, code)
        except BaseException:
            lib.sl_reader_close(part.reader)
            raise
        return part

    def _directory(self, tp: TopicPartition) -> str:
        """Where the partition's files are: its leader knows, so while there is none (a broker that is being restarted) this waits."""
        deadline = time.monotonic_ns() + _LEADER_NS
        while True:
            version = int(self._session.version_word[0])
            directory = self._session.partition_directory(tp.topic, tp.partition)
            if directory is not None:
                return directory
            now = time.monotonic_ns()
            if now >= deadline or self._session.topic(tp.topic) is None:
                raise errors.LeaderNotAvailableError(f"{tp.topic}-{tp.partition} has no leader", topic=tp.topic, partition=tp.partition)
            handle.check_cluster(self._cluster, self._session.name)
            self._session.wait_view(version, min(deadline, now + handle.SLICE_NS))

    def _assigned(self, tp: TopicPartition) -> _Assigned:
        self._check_open()
        part = self._parts.get(tp)
        if part is None:
            raise errors.IllegalStateError(f"{tp!r} is not assigned to this consumer")
        return part

    def _chosen(self, partitions: Iterable[TopicPartition]) -> list[_Assigned]:
        self._check_open()
        chosen: list[TopicPartition] = []
        for tp in partitions:  # a list of them is what older clients pass
            if isinstance(tp, TopicPartition):
                chosen.append(tp)
            else:
                chosen.extend(tp)
        return [self._assigned(tp) for tp in chosen] if chosen else list(self._parts.values())

    def _set_paused(self, partitions: Iterable[TopicPartition], paused: bool) -> None:
        for part in self._chosen(partitions):
            part.paused = paused
            if part is self._ready_part:
                self._drop_ready()
        self._readers = None

    def _reader_array(self) -> tuple[Any, int]:
        if self._readers is None:
            active = [part.reader for part in self._parts.values() if not part.paused]
            self._readers = ffi.new("sl_reader *[]", active), len(active)
        readers: tuple[Any, int] = self._readers
        return readers

    # --- positions, inside ---

    def _move(self, part: _Assigned, offset: int) -> None:
        part.position = offset
        if part is self._ready_part:
            self._drop_ready()

    def _drop_ready(self) -> None:
        """What iteration has fetched and not handed out is fetched again: the position says from where."""
        self._ready = iter(())
        self._ready_part = None

    def _find_position(self, part: _Assigned) -> None:
        if part.position >= 0:
            return
        if part.start == "none":
            raise errors.NoOffsetForPartitionError(
                f'{part.tp.topic}-{part.tp.partition}: no position, and auto_offset_reset is "none"', topic=part.tp.topic, partition=part.tp.partition,
                hint="seek() to one",
            )  # fmt: skip
        low, end = self._ends(part)
        part.position = low if part.start == "earliest" else end

    def _align(self, part: _Assigned) -> None:
        """The reader goes to the position, if it is elsewhere."""
        if part.position >= 0 and part.reader_at != part.position:
            part.reader_at = -1
            code = lib.sl_reader_seek(part.reader, part.position)
            if code < 0 and code != lib.SL_E_RANGE:  # RANGE: the next poll says so too, and resets
                self._raise(part, code)
            part.reader_at = part.position

    def _ends(self, part: _Assigned) -> tuple[int, int]:
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

    # --- fetching ---

    def _in_turn(self) -> list[_Assigned]:
        """The partitions to look at, beginning with the one whose turn it is. Takes up new partitions first."""
        if self._version != self._session.version_word[0]:
            self._refresh(first=False)
        parts = [part for part in self._parts.values() if not part.paused]
        if not parts:
            return parts
        self._turn %= len(parts)
        return parts[self._turn :] + parts[: self._turn] if self._turn else parts

    def _fetch(self, part: _Assigned, most: int, max_bytes: int) -> int:
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
            self._raise(part, n)
        return 0

    def _poll_reader(self, part: _Assigned, most: int, max_bytes: int) -> int:
        self._unpin(but=part)
        self._polled = part
        part.reader_at = -1  # unknown until the caller says: a Ctrl-C may come between the poll and that
        return int(lib.sl_reader_poll(part.reader, self._views, most, max_bytes, self._check))

    def _out_of_range(self, part: _Assigned) -> bool:
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

    def _gather(self, most: int) -> list[tuple[_Assigned, list[Record], int]]:
        """Up to `most` records of all partitions in turn, each with the position after them. Moves no position."""
        found: list[tuple[_Assigned, list[Record], int]] = []
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

    def _records(self, part: _Assigned, n: int, fetched: int = 0) -> tuple[list[Record], BaseException | None]:
        low, span, total = span_of(self._views, n)
        rows = ffi.buffer(self._views, n * VIEW_BYTES)
        data = ffi.buffer(ffi.cast("char *", low), span)
        tp = part.tp
        records, error = make_records(tp.topic, tp.partition, rows, low, data, part.timestamp_type, self._key_of, self._value_of)
        self._counts["records"] += len(records)
        self._counts["bytes"] += total
        self._fetched = fetched + total
        return records, error

    def _fetch_ready(self) -> None:
        """Waits for records of one partition, for iteration."""
        self._enter()
        try:
            if self._ready_part is not None:
                part = self._ready_part
                if part.reader_at > part.position:
                    part.position = part.reader_at  # all was handed out; what lies between are markers
                self._drop_ready()
            deadline = handle.deadline_of(None, min(self._timeout_ms, 1e12))
            while True:
                for part in self._in_turn():
                    n = self._fetch(part, self._max_poll_records, self._fetch_bytes)
                    if not n:
                        continue
                    records, error = self._records(part, n)
                    if error is not None:
                        if not records:
                            raise error
                        part.reader_at = -1
                    self._turn += 1
                    self._ready_part = part
                    self._ready = iter(records)
                    return
                if not self._sleep(deadline):
                    return
        finally:
            self._leave()

    def _batch(self, part: _Assigned, n: int) -> RecordBatch:
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
        self._counts["records"] += n
        self._counts["bytes"] += total
        part.position = part.reader_at
        return batch

    def _newest(self, part: _Assigned, at: int, end: int) -> Record | None:
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

    def _raise(self, part: _Assigned, code: int) -> NoReturn:
        topic, partition = part.tp
        where = f"{topic}-{partition}"
        if code == lib.SL_E_CORRUPT:
            at = int(lib.sl_reader_position(part.reader))
            if at > part.position:
                part.position = at  # what lies between held no record
            behind = int(lib.sl_reader_damage_end(part.reader))
            lost = f"{behind - part.position:,} records failed" if behind > part.position + 1 else "the record failed"
            raise errors.CorruptRecordError(
                f"{where}@{part.position}: {lost} the check or were lost, and cannot be delivered",
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


def _tp(tp: Any) -> TopicPartition:
    return tp if isinstance(tp, TopicPartition) else TopicPartition(*tp)


def _one_of(name: str, given: str, *allowed: str) -> str:
    if given not in allowed:
        raise errors.InvalidConfigurationError(f"{name}={given!r}: allowed are {', '.join(allowed)}", key=name)
    return given


def _reopen(cls: type[Consumer], topics: tuple[str, ...], recipe: dict[str, Any]) -> Consumer:
    return cls(*topics, **recipe)


__all__ = ["Consumer", "RecordBatch"]
