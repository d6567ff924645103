"""Consumer: reads partitions straight from the log's memory, or where that has moved on, from its files.

Each assigned partition has a reader of the C core, and a *position*: the offset of the next record to hand out. The reader may be ahead of it
(records are fetched in portions); whenever the two differ the reader is moved before its next use. So the position is the only truth about where a
consumer stands, and it changes in one store, when records are handed over: an exception or a Ctrl-C anywhere else leaves them to be delivered again
by the next call.

The layers under this one, each a file: consumer_row.py, assignment.py, positions.py, fetching.py.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any, NoReturn, Self

from shmlog import errors
from shmlog._binding import fast, take_over
from shmlog._ffi import ffi, lib
from shmlog.client import handle
from shmlog.client.fetching import Fetching
from shmlog.client.record_batch import Leases, RecordBatch
from shmlog.client.session import attach
from shmlog.types import Record, TopicPartition

_NO_OFFSETS = "this version of shmlog has no consumer groups yet"
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


class Consumer(Fetching):
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
        self._generation = handle.CLOSED  # the layers below declare what is set here
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
        self._plain = self._key_of is None and self._value_of is None
        self._timeout_ms = consumer_timeout_ms
        self._timeout_ns = int(min(consumer_timeout_ms, 1e12) * 1_000_000)
        self._max_poll_records = max_poll_records
        self._fetch_bytes = max_partition_fetch_bytes
        self._check = 1 if check_crcs else 0
        self._tether = tether
        self.client_id = client_id

        self._parts = {}
        self._turn = 0
        self._topics = set()
        self._pattern = None
        self._listener = None
        self._wanted = None
        self._version = -1
        self._readers = None
        self._views = ffi.new("sl_view[]", max_poll_records)
        self._ready = iter(())
        self._ready_part = None
        self._polled = None
        self._fetched = 0
        self._woken = False
        self._wake_lock = threading.RLock()
        self._owner = None
        self._fifo = None
        self._counts = dict.fromkeys(("batches", "copied_batches", "resets", "skipped_records"), 0)
        self._records_total = self._bytes_total = self._polls_total = 0

        session = attach(bootstrap_servers)
        try:
            self._leases = Leases(session, session.take_row(session.CONSUMER), max_leased_bytes)
        except BaseException:
            session.close()
            raise
        self._session = session
        self._version_at = int(ffi.cast("uintptr_t", session.version_word))
        self._cluster = session.cluster
        self._row = self._leases.row
        self._generation = handle.generation
        if topics:
            try:
                self.subscribe(topics)
            except BaseException:
                self.close()
                raise

    # --- records ---

    def poll(self, timeout_ms: float = 0, max_records: int | None = None, update_offsets: bool = True) -> dict[TopicPartition, list[Record]]:
        """Up to max_records records, at once if there are any, else as soon as there are, else {} after timeout_ms.

        All partitions get their turn: the one that comes first moves on with each poll. update_offsets=False leaves the positions (the same records
        come again).

        OffsetOutOfRangeError, NoOffsetForPartitionError (auto_offset_reset="none"), CorruptRecordError (the position stays at the damaged record:
        seek to the error's end_offset, behind all that is damaged or lost there), UnknownTopicOrPartitionError when a topic was deleted,
        BrokerNotRunningError while waiting for a dead cluster. What a deserializer raises comes through, once the records before it are delivered.
        """
        most = self._max_poll_records if max_records is None else max_records
        if most < 1:
            raise errors.IllegalArgumentError(f"max_records={max_records} is not at least 1")
        self._enter()
        try:
            self._polls_total += 1
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
                self._take_up_view()
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
                        self._records_total += 1
                        return record
                    if at == part.position:
                        break
                    back *= 2
                if not self._sleep(deadline):
                    return None
        finally:
            self._leave()

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

    # --- the rest ---

    def metrics(self) -> dict[str, float]:
        """Counters since this Consumer was made: records, bytes (of keys, values and headers), polls, batches, batches that had to be copied, positions
        that were reset, records that were skipped by resets or latest(); and the memory that batches keep now."""
        self._check_open()
        c = self._counts
        return {
            "records_total": self._records_total,
            "bytes_total": self._bytes_total,
            "polls_total": self._polls_total,
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
        if self._busy:
            self._refuse_busy()
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
        if not getattr(handle, "exiting", True) and getattr(self, "_generation", handle.CLOSED) == handle.generation and not self._session.forked():
            self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (type(self), *self._recipe)

    def __repr__(self) -> str:
        if self._generation == handle.CLOSED:
            return "<Consumer closed>"
        return f"<Consumer {self._session.address} {len(self._parts)} partitions of {sorted({tp.topic for tp in self._parts})}>"

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


def _one_of(name: str, given: str, *allowed: str) -> str:
    if given not in allowed:
        raise errors.InvalidConfigurationError(f"{name}={given!r}: allowed are {', '.join(allowed)}", key=name)
    return given


take_over(Consumer, "poll", "_poll_any", "($self, timeout_ms=0, max_records=None, update_offsets=True)")
if fast is not None:
    del Consumer.__iter__, Consumer.__next__  # the extension's; they come back to _fetch_ready()


def _reopen(cls: type[Consumer], topics: tuple[str, ...], recipe: dict[str, Any]) -> Consumer:
    return cls(*topics, **recipe)


__all__ = ["Consumer", "RecordBatch"]
