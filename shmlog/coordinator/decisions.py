"""Decisions: how a view comes into force, and how the disk follows it.

In force is what control.view_version names (one CAS); blocks, the store and those who sleep on a change follow, and a successor does all that again.
The flip is a CAS from the version this coordinator saw last, so even one that lost its lock (somebody removed the file) decides nothing.
"""

from __future__ import annotations

import os
import selectors
from collections.abc import Callable
from typing import Any

from shmlog import messages as m
from shmlog import shm
from shmlog._ffi import lib
from shmlog.clock import NS, monotonic_ns
from shmlog.coordinator import metadata
from shmlog.coordinator.memory import Memory
from shmlog.coordinator.store import BackgroundStore, Store
from shmlog.errors import StorageError

STORE_REPLY_NS = 10 * NS  # how long a reply to a topic change waits for the disk before it says so

Reply = Callable[[Any], None]


class Decisions:
    def __init__(self, prefix: str, selector: selectors.BaseSelector, memory: Memory, epoch: int, view: m.ClusterView, fresh: bool) -> None:
        self.prefix = prefix
        self.selector = selector
        self.memory = memory
        self.epoch = epoch
        self.view = view  # in force, or for fresh memory about to be
        self.fresh = fresh  # memory was made by this coordinator, which may remove it if the start fails
        self.store: BackgroundStore | None = None
        self.store_wake = -1
        self.waiting_for_store: list[tuple[int, int, Reply, Any]] = []  # version, deadline, reply, message
        self.tell: Callable[[int], None] = lambda version: None  # the brokers, which sleep on their sockets

    @property
    def control(self) -> Any:
        return self.memory.control

    def decide(self, view: m.ClusterView) -> m.ClusterView:
        """Puts the contents of `view` in force as the next version. ShmSpaceError: nothing was decided.

        Killed before the flip: v<n> lies there unnamed (the successor overwrites it), blocks of new topics are marked LIVE but no view knows them
        (they are free, and are wiped when they are given out). Killed after it: the decision is in force; the successor brings blocks and disk up.
        """
        old = self.view
        new = metadata.next_view(view, self.epoch)
        for topic in new.topics.values():
            was = old.topics.get(topic.name)
            if was is topic:
                continue
            known = {p.block for p in was.partitions} if was and was.topic_id == topic.topic_id else set()
            for number, partition in enumerate(topic.partitions):
                if partition.block not in known:
                    self.memory.wipe_block(partition.block)
                    self.memory.write_block(new, topic, number, first=True)
        self.memory.flip(self.epoch, old.version, new)
        self.view = new
        self._after_flip(old, new)
        return new

    def _after_flip(self, old: m.ClusterView, new: m.ClusterView) -> None:
        """Idempotent: a successor does all of it again (Memory.reconcile_blocks)."""
        for topic in old.topics.values():
            now = new.topics.get(topic.name)
            if now is topic:
                continue
            if now is None or now.topic_id != topic.topic_id:
                for partition in topic.partitions:
                    self.memory.mark_deleted(partition.block, topic.topic_id)
        for topic in new.topics.values():
            was = old.topics.get(topic.name)
            if was is not topic and was is not None and was.topic_id == topic.topic_id:
                for number, partition in enumerate(topic.partitions):
                    self.memory.write_block(new, topic, number, first=False)
                    if number < len(was.partitions) and partition.isr != was.partitions[number].isr:
                        lib.sl_wake_all(self.memory.handle, partition.block)  # SYNC below_min_isr: who waits for acks=all looks at the flags again
        lib.sl_view_changed(self.control)
        if self.store:
            self.store.submit(new)
            behind = new.version - self.store.stored_version
            if behind >= metadata.UNSTORED_DECISIONS_MAX - 1:
                # At a new boot epochs jump by that many: further ahead of the disk a grant could be given twice after a power cut.
                self.store.wait_stored(new.version - metadata.UNSTORED_DECISIONS_MAX // 2, 5.0)
        shm.unlink(shm.view_name(self.prefix, new.version - 2))
        self.tell(new.version)

    def run_store(self, store: Store, stored_version: int) -> None:
        self.store_wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.store = BackgroundStore(store, stored_version, lambda: os.eventfd_write(self.store_wake, 1))
        self.selector.register(self.store_wake, selectors.EVENT_READ, self.store_progress)

    def decided(self, decision: metadata.Decision, reply: Reply) -> None:
        """Replies when what was decided is durable too (where there is a disk)."""
        if decision.view is not self.view:
            self.decide(decision.view)
        failures = tuple(None if exc is None else m.failure_of(exc) for exc in decision.failures)
        self.reply_when_stored(reply, m.Results(failures, self.view.version))

    def reply_when_stored(self, reply: Reply, message: Any) -> None:
        if self.store is None or self.store.stored_version >= self.view.version:
            reply(message)
        else:
            self.waiting_for_store.append((self.view.version, monotonic_ns() + STORE_REPLY_NS, reply, message))

    def store_progress(self) -> None:
        assert self.store is not None
        try:
            os.eventfd_read(self.store_wake)
        except BlockingIOError:
            pass
        stored, now, left = self.store.stored_version, monotonic_ns(), []
        for version, deadline, reply, message in self.waiting_for_store:
            if version <= stored:
                reply(message)
            elif now > deadline:
                why = self.store.error or "the disk is slow"
                reply(m.failure_of(StorageError(f"the change is in force but not on disk yet: {why}", path=self.view.data_dirs[0])))
            else:
                left.append((version, deadline, reply, message))
        self.waiting_for_store = left
