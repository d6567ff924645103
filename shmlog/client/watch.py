"""Watch: tells a callback what changes in the metadata of a cluster, from shared memory alone.

What takes the place of ZooKeeper's watches. One thread looks at the view in force and at the process table, tells what differs from its last look, and
sleeps on control.view_changes. It asks nobody, so a stopped or dead coordinator holds nothing up; and because it compares whole views, which the
coordinator's flip makes complete at once, nothing depends on having seen each of them: several that pass between two looks are told as one difference.

Who writes: the coordinator, view_version and view_changes of `control` and the process table. The futex word is read before the look, so a change that
comes during it ends the sleep at once; a sleep ends in any case after SLICE_NS, for close(), for the end of the process, and for the few words
(coordinator_epoch, a broker's state) whose writer dies before it rings.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self

from shmlog import errors, events, messages
from shmlog._ffi import ffi, lib
from shmlog.client import handle
from shmlog.client.session import Session

SLICE_NS = handle.SLICE_NS
CLOSE_S = 30.0


class Look(NamedTuple):
    """What one look saw."""

    version: int
    coordinator_epoch: int
    config: dict[str, str]
    brokers: dict[int, events.Broker]
    topics: dict[str, Any]  # by the names of the namespace; msgspec.Raw: decoded only where its bytes changed


# --- the difference of two looks ---------------------------------------------------------------------------------------


def changes(old: Look, new: Look) -> Iterator[events.Event]:
    """In the order of events.py: who decides, the cluster, its brokers by id, then topics that went, topics that came, and topics that changed, each by
    name and with its partitions by number. Whoever applies them in this order to what `old` was has what `new` is."""
    version = new.version
    if new.coordinator_epoch != old.coordinator_epoch:
        yield events.CoordinatorChanged(version, new.coordinator_epoch)
    if new.config != old.config:
        yield events.ClusterConfigChanged(version, new.config, old.config)
    yield from _broker_changes(version, old.brokers, new.brokers)
    came, changed = [], []
    for name in sorted(old.topics.keys() | new.topics.keys()):
        before, after = old.topics.get(name), new.topics.get(name)
        if before is after or (before is not None and after is not None and bytes(before) == bytes(after)):
            continue
        was = messages.decode_topic(before) if before is not None else None
        now = messages.decode_topic(after) if after is not None else None
        if was is not None and now is not None and was.topic_id == now.topic_id:
            changed.append((name, was, now))
            continue
        if was is not None:
            yield events.TopicDeleted(version, name, was.topic_id.hex())
        if now is not None:
            came.append((name, now))
    for name, now in came:
        yield events.TopicCreated(version, name, now.topic_id.hex(), dict(now.config), tuple(map(_partition, now.partitions)))
    for name, was, now in changed:
        yield from _topic_changes(version, name, was, now)


def _broker_changes(version: int, old: Mapping[int, events.Broker], new: Mapping[int, events.Broker]) -> Iterator[events.Event]:
    for id in sorted(old.keys() | new.keys()):
        was, now = old.get(id), new.get(id)
        moved = was is not None and now is not None and was.directory != now.directory
        # Up before and up now, but under another epoch: it ended and was started between the looks.
        same = was is not None and now is not None and was.up and now.up and was.broker_epoch == now.broker_epoch and not moved
        if was is not None and was.up and not same:
            yield events.BrokerDown(version, id, was.broker_epoch)
        if was is not None and (now is None or moved):
            yield events.BrokerRemoved(version, id)
        if now is not None and (was is None or moved):
            yield events.BrokerAdded(version, id, now.directory)
        if now is not None and now.up and not same:
            yield events.BrokerUp(version, id, now.broker_epoch)


def _topic_changes(version: int, name: str, was: messages.TopicView, now: messages.TopicView) -> Iterator[events.Event]:
    if was.config != now.config:
        yield events.TopicConfigChanged(version, name, dict(now.config), dict(was.config))
    if len(now.partitions) > len(was.partitions):
        first = len(was.partitions)
        yield events.PartitionsAdded(version, name, first, tuple(map(_partition, now.partitions[first:])))
    for number, (a, b) in enumerate(zip(map(_partition, was.partitions), map(_partition, now.partitions), strict=False)):
        if a.replicas != b.replicas:
            yield events.ReplicasChanged(version, name, number, b.replicas, a.replicas)
        if (a.leader, a.leader_epoch) != (b.leader, b.leader_epoch):
            yield events.LeaderChanged(version, name, number, b.leader, b.leader_epoch, a.leader, a.leader_epoch)
        if a.isr != b.isr:
            yield events.IsrChanged(version, name, number, b.isr, a.isr)


def _partition(p: messages.PartitionView) -> events.Partition:
    return events.Partition(None if p.leader == messages.NO_LEADER else p.leader, p.leader_epoch, p.replicas, p.isr)


# --- the watch ---------------------------------------------------------------------------------------------------------


class Watch:
    """A running watch; made by Admin.watch(). It goes on until close(), until the cluster is down, or until the process ends: also when nobody keeps
    this handle, and when its Admin is closed."""

    def __init__(self, session: Session, callback: Callable[[events.Event], object]) -> None:
        if not callable(callback):
            session.close()
            raise TypeError(f"the callback of a watch is a callable that takes an event, not {callback!r}")
        self._session = session
        self._callback = callback
        self._generation = handle.generation
        self._closing = False
        self._ended = threading.Event()
        # A daemon: a program that forgets its watch ends all the same.
        self._thread = threading.Thread(target=self._run, name="shmlog-watch", daemon=True)
        try:
            self._thread.start()
        except BaseException:
            session.close()
            raise

    # --- for the user ---

    @property
    def closed(self) -> bool:
        """Whether it has ended, for whatever reason; from then on the callback is not called any more."""
        return self._ended.is_set() or self._generation != handle.generation

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until the watch has ended (the cluster is down, or another thread closed it); False when it has not after `timeout` seconds."""
        self._check()
        return self._ended.wait(timeout)

    def close(self, timeout: float | None = CLOSE_S) -> None:
        """Ends the watch; the callback is not running and not called any more when this returns. From within the callback it returns at once, and the
        running call is the last one. KafkaTimeoutError when the callback has not come back after `timeout` seconds: then it is the last one too."""
        self._check()
        self._closing = True
        if threading.current_thread() is not self._thread and not self._ended.wait(timeout):
            raise errors.KafkaTimeoutError(
                f"the callback of a watch has not returned within {timeout:g} s; it is not called again", timeout=timeout,
                hint="close it without holding a lock that the callback waits for",
            )  # fmt: skip

    def __enter__(self) -> Self:
        self._check()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Watch of {self._session.address}{' ended' if self.closed else ''}>"

    def _check(self) -> None:
        if self._generation != handle.generation:
            handle.refuse(self._generation, "Watch")

    # --- the thread ---

    def _run(self) -> None:
        try:
            self._watch()
        finally:
            self._session.close()
            self._ended.set()

    def _stopping(self) -> bool:
        return self._closing or handle.exiting or self._generation != handle.generation  # the last: the callback forked, and the child came back here

    def _watch(self) -> None:
        session = self._session
        word = ffi.addressof(session.control, "view_changes")
        last: Look | None = None
        while not self._stopping():
            seen = lib.sl_get32(word)
            look: Look | None = None
            state: events.State | None = None
            try:
                handle.check_cluster(session.cluster, session.name)
                look = self._look(last)
                state = self._state(look) if last is None else None
            except errors.ClosedError as exc:
                self._tell(events.ClusterDown(last.version if last else 0, True, str(exc)))
                return
            except errors.BrokerNotRunningError as exc:
                if not session.alive():  # else the metadata cannot be read, and who takes over writes it anew
                    self._tell(events.ClusterDown(last.version if last else 0, False, str(exc)))
                    return
            if look is not None:
                for event in changes(last, look) if last is not None else [state] if state is not None else []:
                    if self._stopping():
                        return
                    self._tell(event)
                last = look
            lib.sl_view_wait(session.cluster, seen, time.monotonic_ns() + SLICE_NS)

    def _look(self, last: Look | None) -> Look:
        """One view as a whole, and beside it the words of the process table. Each is read once, into private values."""
        session = self._session
        view = session.view
        if last is not None and view.version < last.version:
            return last
        control = session.control
        brokers = {}
        for broker in view.brokers.values():
            # The coordinator stores a new process's state before its epoch, so an epoch that is the view's has a state of its own.
            process = control.processes[broker.process]
            epoch = lib.sl_get64(ffi.addressof(process, "broker_epoch"))
            state = lib.sl_get32(ffi.addressof(process, "state"))
            up = epoch == broker.broker_epoch and state == lib.SL_PROCESS_UP
            brokers[broker.id] = events.Broker(up, broker.broker_epoch, broker.directory or None)
        if last is not None and view.version == last.version:
            topics = last.topics
        else:
            start = session.address.namespace + "/" if session.address.namespace else ""
            names = [name for name in view.topics if (name.startswith(start) if start else "/" not in name)]
            topics = {name[len(start) :]: view.topics[name] for name in names}
        # The view's epoch is that of who made it, the control word that of who is active: later, but of nobody earlier.
        epoch = max(view.coordinator_epoch, lib.sl_get64(ffi.addressof(control, "coordinator_epoch")), last.coordinator_epoch if last else 0)
        return Look(view.version, int(epoch), dict(view.config), brokers, topics)

    def _state(self, look: Look) -> events.State:
        view = self._session.view
        topics = {}
        for name in sorted(look.topics):
            topic = messages.decode_topic(look.topics[name])
            topics[name] = events.Topic(topic.topic_id.hex(), dict(topic.config), tuple(map(_partition, topic.partitions)))
        brokers = dict(sorted(look.brokers.items()))
        return events.State(look.version, view.cluster_id.hex(), view.name, look.coordinator_epoch, look.config, brokers, topics)

    def _tell(self, event: events.Event) -> None:
        """What the callback raises is logged, with its traceback, and the watch goes on: one bad event must not blind a program for all later ones.
        SystemExit and the like end the watch, as they end a thread."""
        try:
            self._callback(event)
        except Exception:
            logging.getLogger("shmlog.watch").exception("the callback of a watch raised on %r", event)
