"""Which partitions a consumer reads: subscribed by name or pattern, or assigned by hand, and followed as the cluster view changes.

`_parts` is made from one version of the view. Whoever reads compares that version first (one load), so that a topic that appears or grows is taken up
by the next call. A partition goes away only by the user's call, or when it came by a pattern.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from shmlog import errors
from shmlog._ffi import ffi, lib
from shmlog.client import handle
from shmlog.client.consumer_row import Assigned, ConsumerRow
from shmlog.client.encoding import partition_number
from shmlog.client.record_batch import timestamp_type_of
from shmlog.config import topic_config, topic_name
from shmlog.types import Record, TopicPartition

_LEADER_NS = 10_000_000_000


class Assignment(ConsumerRow):
    """The layer that knows which partitions are read."""

    _reset: str  # auto_offset_reset
    _missing: str
    _tether: bool
    _topics: set[str]  # subscribed by name
    _pattern: re.Pattern[str] | None
    _listener: Any
    _wanted: dict[TopicPartition, None] | None  # assigned by hand
    _version: int  # of the cluster view that _parts was made from
    _ready: Iterator[Record]  # what iteration has fetched and not handed out
    _ready_part: Assigned | None

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

    def pause(self, *partitions: TopicPartition) -> None:
        """Hands out nothing of these until resume(); the position stays."""
        self._set_paused(partitions, True)

    def resume(self, *partitions: TopicPartition) -> None:
        self._set_paused(partitions, False)

    def paused(self) -> set[TopicPartition]:
        self._check_open()
        return {tp for tp, part in self._parts.items() if part.paused}

    # --- inside ---

    def _topic(self, name: str) -> Any:
        view = self._session.topic(name)
        if view is None:
            raise errors.UnknownTopicOrPartitionError(f"there is no topic {name!r}", topic=name)
        return view

    def _take_up_view(self) -> None:
        """New partitions, and files that are another broker's now."""
        if self._version != self._session.version_word[0]:
            self._refresh(first=False)

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
        for tp, part in old.items():
            if part.directory is not None and tp not in gone and tp in wanted:
                self._move_files(tp, part, wanted[tp])
        if not gone and not new:
            return
        if gone and self._listener is not None:
            self._listener.on_partitions_revoked(set(gone))
        opened: dict[TopicPartition, Assigned] = {}
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

    def _open(self, tp: TopicPartition, view: Any, start: str) -> Assigned:
        """A reader and, unless there is none by auto_offset_reset="none", a position: so that nothing sent after subscribe() is missed."""
        config = topic_config(view.config)
        directory = self._directory(tp) if config.shmlog_spill and self._session.has_disk else None
        part = Assigned(
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
        part.address = int(ffi.cast("uintptr_t", out[0]))
        part.directory = directory
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

    def _move_files(self, tp: TopicPartition, part: Assigned, view: Any) -> None:
        """Another replica leads: its files are read from now on. Both have all that was committed, so nothing changes for the reader."""
        if view.topic_id != part.topic_id:
            return
        directory = self._session.partition_directory(tp.topic, tp.partition)
        if directory is not None and directory != part.directory:
            code = lib.sl_reader_directory(part.reader, os.fsencode(directory))
            if code < 0:
                self._raise(part, code)
            part.directory = directory

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

    def _assigned(self, tp: TopicPartition) -> Assigned:
        self._check_open()
        part = self._parts.get(tp)
        if part is None:
            raise errors.IllegalStateError(f"{tp!r} is not assigned to this consumer")
        return part

    def _chosen(self, partitions: Iterable[TopicPartition]) -> list[Assigned]:
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

    def _drop_ready(self) -> None:
        """What iteration has fetched and not handed out is fetched again: the position says from where."""
        self._ready = iter(())
        self._ready_part = None
