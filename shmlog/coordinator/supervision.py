"""The processes that the active coordinator keeps going: brokers and the standby (the spare is spare_link.py's).

Each is watched by a pidfd of exactly that process, which is its death certificate; heartbeats only find the stopped. What dies is forked again by the
spare, a broker under a new broker epoch and new leader epochs. A successor adopts from the process table whoever lives.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
from collections.abc import Callable

from shmlog import messages as m
from shmlog import proc, shm
from shmlog import spare as spare_process
from shmlog._ffi import lib
from shmlog.clock import MS, NS, monotonic_ns
from shmlog.coordinator import elections, metadata, moves
from shmlog.coordinator.connections import Connection, Connections
from shmlog.coordinator.decisions import Decisions, Reply
from shmlog.coordinator.memory import COORDINATOR_SLOTS, log
from shmlog.coordinator.rows import Rows
from shmlog.coordinator.spare_link import SpareLink, ended
from shmlog.coordinator.standby import STALE_NS, StartReport
from shmlog.errors import BrokerNotRunningError, IllegalStateError, ShmlogError, ShmSpaceError
from shmlog.spare import EXIT_REFUSED

END_TIMEOUT_S = 2.0  # for what was killed to have ended
LAST_WRITES_NS = 5 * NS  # for the brokers of a discarded cluster
RESTART_DELAY_MAX_NS = 5 * NS
STANDBY_RETRY_NS = 200 * MS  # between two standbys, when one dies at once
STARTS_MAX = 3  # deaths of a broker before it was ever ready, after which the first `up` reports failure


class Broker:
    """A broker as this coordinator supervises it."""

    def __init__(self, id: int) -> None:
        self.id = id
        self.pidfd = -1  # -1: not running
        self.pid = 0
        self.start_ticks = 0
        self.ready = False
        self.connection: Connection | None = None
        self.deaths_unready = 0
        self.start_at_ns = 0  # not before; 0: at once
        self.failure: m.Failure | None = None
        self.adding: list[Reply] = []  # who waits for its first start
        self.dismissed: Connection | None = None  # where a retired one was told to end
        self.stopped = False  # in a shutdown: it has reported that all is safe

    @property
    def running(self) -> bool:
        return self.pidfd >= 0


class Stopping:
    """An orderly shutdown under way."""

    def __init__(self, force: bool, deadline_ns: int) -> None:
        self.force = force
        self.deadline_ns = deadline_ns
        self.replies: list[Reply] = []
        self.problems: dict[int, m.BrokerStopped] = {}

    def message(self) -> m.BrokerStop:
        return m.BrokerStop(self.force, max(self.deadline_ns - monotonic_ns(), 100 * MS) // MS)


class Supervision:
    def __init__(
        self, cluster: str, slot: int, decisions: Decisions, rows: Rows, connections: Connections, spare: SpareLink, report: StartReport
    ) -> None:
        self.cluster = cluster
        self.slot = slot  # of this coordinator
        self.decisions = decisions
        self.selector = decisions.selector
        self.rows = rows
        self.connections = connections
        self.spare = spare
        self.report = report
        self.brokers: dict[int, Broker] = {}
        self.view_failed = False
        self.standby_slot = 0
        self.standby = (0, 0)  # pid, start ticks
        self.standby_pidfd = -1
        self.standby_asked_ns = 0
        self.reports: dict[int, dict[int, m.ReplicaReport]] = {}  # block -> broker -> what its files hold, of partitions without a leader
        self.resting: m.ClusterView | None = None  # in which nothing moves: of 10,000 partitions nobody wants to look at each all the time
        self.stopping: Stopping | None = None
        self.when_stopped: Callable[[], None]  # shutdown.py's, asked when a broker has ended in a shutdown

    def alive(self) -> set[int]:
        return {b.id for b in self.brokers.values() if b.running}

    def up(self) -> set[int]:
        """Those that could take a partition now."""
        return {b.id for b in self.brokers.values() if b.running and b.ready}

    def tell(self, version: int) -> None:
        for broker in self.brokers.values():
            if broker.connection and broker.ready:
                self.connections.send(broker.connection, m.ViewChanged(version))

    def adopt_brokers(self) -> None:
        for id in self.decisions.view.brokers:
            broker = self.brokers[id] = Broker(id)
            process = self.decisions.control.processes[metadata.FIRST_BROKER_PROCESS + id]
            if process.role == lib.SL_ROLE_BROKER and process.broker_epoch == self.decisions.view.brokers[id].broker_epoch:
                pidfd = proc.watch(process.pid, process.start_ticks)
                if pidfd is not None:
                    self._watch_broker(broker, process.pid, process.start_ticks, pidfd)
                    broker.ready = process.state == lib.SL_PROCESS_UP  # it reconnects and says so again

    def _watch_broker(self, broker: Broker, pid: int, start_ticks: int, pidfd: int) -> None:
        broker.pid, broker.start_ticks, broker.pidfd = pid, start_ticks, pidfd
        self.selector.register(pidfd, selectors.EVENT_READ, lambda: self._broker_died(broker))

    def start_brokers(self) -> None:
        """Starts all brokers that do not run and are due, under new epochs of their own and of what they lead.

        Killed between the flip and the fork: the successor finds no process under the new epoch and starts it under the next one. Killed between the
        fork and the process entry: that broker finds another epoch than its own in its entry and ends.
        """
        now = monotonic_ns()
        due = [b for b in self.brokers.values() if not b.running and not b.stopped and now >= b.start_at_ns]
        due = [b for b in due if not moves.has_retired(self.decisions.view, b.id)]
        if not due:
            return
        try:
            self.decisions.decide(metadata.start_brokers(self.decisions.view, [b.id for b in due]))
            self.view_failed = False
        except ShmSpaceError as exc:
            if not self.view_failed:
                log(f"no broker can be started: {exc}")
            self.view_failed = True
            for broker in due:
                broker.start_at_ns = now + NS
            return
        for broker in due:
            info = self.decisions.view.brokers[broker.id]
            broker.ready = False
            broker.start_at_ns = 0
            self.decisions.memory.write_process(info.process, lib.SL_ROLE_BROKER, broker.id, 0, 0, lib.SL_PROCESS_STARTING, info.broker_epoch)
            start = m.BrokerStart(self.cluster, broker.id, info.process, info.broker_epoch, info.directory)
            try:
                pid, ticks, pidfd = self.spare.fork(m.Fork("broker", broker.id, info.process, m.encode(start)))
            except ShmlogError as exc:
                log(f"broker {broker.id} could not be started: {exc}")
                broker.start_at_ns = now + NS
                continue
            self.decisions.memory.write_process(info.process, lib.SL_ROLE_BROKER, broker.id, pid, ticks, lib.SL_PROCESS_STARTING, info.broker_epoch)
            self._watch_broker(broker, pid, ticks, pidfd)
        lib.sl_view_changed(self.decisions.control)

    def _broker_died(self, broker: Broker) -> None:
        died = monotonic_ns()
        self.rows.process_died(broker.pid, broker.start_ticks)  # its rows first: its successor needs the segments that they name
        self.selector.unregister(broker.pidfd)
        os.close(broker.pidfd)
        broker.pidfd = -1
        self.decisions.memory.process_state(metadata.FIRST_BROKER_PROCESS + broker.id, lib.SL_PROCESS_DEAD)
        if broker.connection is not None:
            self.connections.close(broker.connection)
        if self.stopping:
            if not broker.stopped and not self.stopping.force and not moves.has_retired(self.decisions.view, broker.id):
                broker.start_at_ns = 0  # it died with things to spill: its successor spills them
                log(f"broker {broker.id} died while stopping; starting it again")
                self.start_brokers()
            else:
                broker.stopped = True
                self.when_stopped()
            return
        # First of all: another in-sync replica leads on, and nobody waits for this one's acknowledgements.
        self._decide(elections.broker_down(self.decisions.view, broker.id, self.alive()), f"the death of broker {broker.id}")
        if moves.has_retired(self.decisions.view, broker.id):
            self._dismiss_retired()
            return
        if broker.ready:
            broker.deaths_unready = 0
            log(f"broker {broker.id} (pid {broker.pid}) died; starting it again")
        else:
            broker.deaths_unready += 1
            log(f"broker {broker.id} (pid {broker.pid}) died before it was ready ({broker.deaths_unready})")
            broker.start_at_ns = died + min(50 * MS * 2**broker.deaths_unready, RESTART_DELAY_MAX_NS)
            if broker.adding and (broker.failure or broker.deaths_unready >= STARTS_MAX) and not metadata.parts_of(self.decisions.view, broker.id):
                self._give_up_adding(broker)
                return
            if self.report.fd >= 0 and (broker.failure or broker.deaths_unready >= STARTS_MAX):
                self._give_up_start(broker)
                return
        self.start_brokers()

    def _why_not_started(self, broker: Broker) -> m.Failure:
        path = spare_process.log_path(self.decisions.view.state_dir, f"broker-{broker.id}")
        died = BrokerNotRunningError(f"broker {broker.id} died {broker.deaths_unready} times while starting; its log is {path}")
        return broker.failure or m.failure_of(died)

    def add_broker(self, connection: Connection, message: m.AddBroker, reply: Reply) -> None:
        """Killed before the reply: the successor starts it, and the repeated request finds it in the view."""
        if self.stopping:
            raise IllegalStateError("the cluster is going down")
        if message.broker_id not in self.decisions.view.brokers or not message.repeated:
            self.decisions.decide(metadata.add_broker(self.decisions.view, message.broker_id, message.data_dir))
            self.brokers[message.broker_id] = Broker(message.broker_id)  # the loop starts it
        broker = self.brokers[message.broker_id]
        broker.adding.append(reply)
        if broker.ready:
            self._added(broker)

    def _added(self, broker: Broker) -> None:
        waiting, broker.adding = broker.adding, []
        for reply in waiting:
            self.decisions.reply_when_stored(reply, m.BrokerAdded(broker.id, broker.pid, self.decisions.view.brokers[broker.id].directory))

    def _give_up_adding(self, broker: Broker) -> None:
        failure = self._why_not_started(broker)
        self._forget(broker)
        for reply in broker.adding:
            reply(failure)

    def _forget(self, broker: Broker) -> None:
        """Killed before the entry is cleared: it names a process that is dead, of an epoch that the view calls retired."""
        self.decisions.decide(metadata.forget_broker(self.decisions.view, broker.id))
        del self.brokers[broker.id]
        self.decisions.memory.write_process(metadata.FIRST_BROKER_PROCESS + broker.id, lib.SL_ROLE_NONE, 0, 0, 0, lib.SL_PROCESS_DEAD, 0)

    def _give_up_start(self, broker: Broker) -> None:
        """The first start failed: say why, and take down what there is; data on disk and memory of an earlier run stay."""
        failure = self._why_not_started(broker)
        for other in self.brokers.values():
            if other.running:
                proc.kill(other.pidfd)
                ended(other.pidfd, END_TIMEOUT_S)
        self.end_others()
        if self.decisions.fresh:
            shm.remove_cluster(self.decisions.prefix)
        self.report(failure)
        raise SystemExit(EXIT_REFUSED)

    def broker_ready(self, connection: Connection, message: m.BrokerReady, reply: Reply) -> None:
        broker = self.broker_of(connection, message.broker_id, message.broker_epoch)
        connection.broker_id = broker.id
        broker.connection = connection
        broker.ready = True
        broker.deaths_unready = 0
        self.decisions.memory.process_state(metadata.FIRST_BROKER_PROCESS + broker.id, lib.SL_PROCESS_UP)
        for report in message.reports:
            self.reports.setdefault(report.block, {})[broker.id] = report
        self._decide(elections.elect_reported(self.decisions.view, self.reports, self.alive()), "the start")
        reply(m.Done(self.decisions.view.version))
        if message.view_version >= self.decisions.view.version and self._removes(broker.id):
            # It has applied this view and said what it removed, to a coordinator that died over it: with another view it says so again.
            with contextlib.suppress(ShmSpaceError):  # then the next decision does it
                self.decisions.decide(self.decisions.view)
        if message.view_version < self.decisions.view.version:
            self.connections.send(connection, m.ViewChanged(self.decisions.view.version))
        lib.sl_view_changed(self.decisions.control)
        self._added(broker)
        self.check_ready()
        if self.stopping and not broker.stopped:
            self.connections.send(connection, self.stopping.message())

    def _removes(self, broker_id: int) -> bool:
        view = self.decisions.view
        return any(broker_id in (d.leader, *d.followers) for d in view.deleting) or any(d.broker == broker_id for d in view.dropped)

    def broker_of(self, connection: Connection, broker_id: int, broker_epoch: int) -> Broker:
        broker = self.brokers.get(broker_id)
        known = self.decisions.view.brokers.get(broker_id)
        if broker is None or known is None or known.broker_epoch != broker_epoch or connection.pid != broker.pid:
            raise IllegalStateError(f"broker {broker_id} of epoch {broker_epoch} (pid {connection.pid}) is not the current one; it has to end")
        return broker

    def broker_applied(self, connection: Connection, message: m.BrokerApplied, reply: Reply) -> None:
        broker = self.broker_of(connection, message.broker_id, message.broker_epoch)
        view = metadata.blocks_removed(self.decisions.view, broker.id, message.removed)
        view = moves.replicas_removed(view, broker.id, message.dropped)
        self._decide_or_raise(view)
        reply(m.Done(self.decisions.view.version))
        self.go_on_with_moves()

    def _decide_or_raise(self, view: m.ClusterView) -> None:
        if view is not self.decisions.view:
            self.decisions.decide(view)

    def _decide(self, view: m.ClusterView, why: str) -> None:
        if view is self.decisions.view:
            return
        try:
            self.decisions.decide(view)
        except ShmSpaceError as exc:
            log(f"{why} changes the leaders, but that cannot be put in force: {exc}")

    def alter_isr(self, connection: Connection, message: m.AlterIsr, reply: Reply) -> None:
        broker = self.broker_of(connection, message.broker_id, message.broker_epoch)
        view = elections.alter_isr(self.decisions.view, broker.id, message.changes, self.alive())
        self._decide(view, f"what broker {broker.id} found of its followers")
        reply(m.Done(self.decisions.view.version))

    def reassign_partitions(self, connection: Connection, message: m.ReassignPartitions, reply: Reply) -> None:
        view, failures = moves.reassign(self.decisions.view, message.partitions, self.up(), message.repeated)
        self.decisions.decided(metadata.Decision(view, failures), reply)

    def go_on_with_moves(self) -> None:
        """What has come far enough since; also for a successor, who finds moves that others began."""
        if self.stopping or self.decisions.view is self.resting:
            return
        store = self.decisions.store
        if store is None or store.stored_version >= self.decisions.view.version:
            self._decide(moves.advance(moves.stored(self.decisions.view), self.alive()), "how far its moves have come")
        self._dismiss_retired()
        if not moves.under_way(self.decisions.view):
            self.resting = self.decisions.view

    def retire_broker(self, connection: Connection, message: m.RetireBroker, reply: Reply) -> None:
        """Killed at any moment after the decision: that it retires stands in the view, and so does what it still has."""
        if self.stopping:
            raise IllegalStateError("the cluster is going down")
        if message.repeated and message.broker_id in self.decisions.view.retired:
            reply(m.Done(self.decisions.view.version))
            return
        view = moves.retire(self.decisions.view, message.broker_id, self.up(), message.force)
        self._decide_or_raise(view)
        self.decisions.reply_when_stored(reply, m.Done(self.decisions.view.version))
        self._dismiss_retired()

    def _dismiss_retired(self) -> None:
        """A broker that has nothing any more is told to end, again by each coordinator; when it has ended it is forgotten."""
        for broker in list(self.brokers.values()):
            if not moves.has_retired(self.decisions.view, broker.id):
                continue
            if not broker.running:
                with contextlib.suppress(ShmSpaceError):  # then the next look does it
                    self._forget(broker)
                    log(f"broker {broker.id} has retired")
            elif broker.connection is not None and broker.ready and broker.dismissed is not broker.connection:
                broker.dismissed = broker.connection
                self.connections.send(broker.connection, m.BrokerStop(retired=True))

    def elect_leaders(self, connection: Connection, message: m.ElectLeaders, reply: Reply) -> None:
        view, failures = elections.elect(self.decisions.view, message.partitions, message.unclean, {b.id for b in self.brokers.values() if b.ready})
        self.decisions.decided(metadata.Decision(view, failures), reply)

    def broker_failed(self, connection: Connection, message: m.BrokerFailed, reply: Reply) -> None:
        broker = self.broker_of(connection, message.broker_id, message.broker_epoch)
        log(f"broker {broker.id}: {message.failure.message}")
        broker.failure = message.failure
        reply(m.Done(self.decisions.view.version))

    def check_ready(self) -> None:
        if self.stopping or not all(b.ready or moves.has_retired(self.decisions.view, b.id) for b in self.brokers.values()):
            return
        if self.decisions.control.cluster_state == lib.SL_CLUSTER_STARTING:
            self.decisions.memory.set_state(lib.SL_CLUSTER_UP)
            lib.sl_view_changed(self.decisions.control)
        self.report(None)

    def kill_stopped(self, now: int) -> None:
        for broker in self.brokers.values():
            if broker.running:
                self._kill_if_stopped(broker.pidfd, broker.pid, broker.start_ticks, metadata.FIRST_BROKER_PROCESS + broker.id, now)
        if self.standby_pidfd >= 0:
            self.standby_slot = self.decisions.memory.slot_of(*self.standby) or self.standby_slot  # it may have found its entry taken
            self._kill_if_stopped(self.standby_pidfd, *self.standby, self.standby_slot, now)

    def _kill_if_stopped(self, pidfd: int, pid: int, start_ticks: int, slot: int, now: int) -> None:
        """The heartbeat only makes us look. What /proc says now decides; the pidfd names exactly that process."""
        process = self.decisions.control.processes[slot]
        if now - process.heartbeat_ns > STALE_NS and process.pid == pid and proc.stopped(pid, start_ticks):
            log(f"killing the stopped process {pid} (entry {slot})")
            self.decisions.memory.process_state(slot, lib.SL_PROCESS_STOPPED)
            proc.kill(pidfd)

    # === standby =======================================================================================================

    def ask_for_standby(self) -> None:
        self.standby_asked_ns = monotonic_ns()
        for slot in COORDINATOR_SLOTS:
            process = self.decisions.control.processes[slot]
            if process.pid not in (0, os.getpid()):
                pidfd = proc.watch(process.pid, process.start_ticks)
                if pidfd is not None:
                    self._watch_standby(slot, (process.pid, process.start_ticks), pidfd)
                    return
        slot = next(s for s in COORDINATOR_SLOTS if s != self.slot)
        try:
            pid, ticks, pidfd = self.spare.fork(m.Fork("coordinator", 0, slot))
        except ShmlogError as exc:
            log(f"no standby: {exc}")
            self.standby_asked_ns = monotonic_ns() + NS  # trying holds up the loop; _tick() asks again
            return
        listed = self.decisions.memory.slot_of(pid, ticks)
        if listed == 0 and not self.decisions.memory.lives(slot):  # else it lists itself, elsewhere: a last resort was as quick to take this entry
            self.decisions.memory.write_process(slot, lib.SL_ROLE_STANDBY, 0, pid, ticks, lib.SL_PROCESS_UP, 0)
        self._watch_standby(listed or slot, (pid, ticks), pidfd)

    def _watch_standby(self, slot: int, standby: tuple[int, int], pidfd: int) -> None:
        if self.standby_pidfd >= 0:
            self.selector.unregister(self.standby_pidfd)
            os.close(self.standby_pidfd)
        self.standby_slot, self.standby, self.standby_pidfd = slot, standby, pidfd
        self.selector.register(pidfd, selectors.EVENT_READ, self._standby_died)

    def _standby_died(self) -> None:
        self.selector.unregister(self.standby_pidfd)
        os.close(self.standby_pidfd)
        self.standby_pidfd = -1
        if not self.decisions.memory.lives(self.standby_slot):  # it may have moved, and another one have come there
            self.decisions.memory.process_state(self.standby_slot, lib.SL_PROCESS_DEAD)
        log("the standby died")
        # One that dies at once must not be forked again without a pause: then _tick() asks.
        if not self.stopping and monotonic_ns() - self.standby_asked_ns > STANDBY_RETRY_NS:
            self.ask_for_standby()

    def end_brokers(self) -> None:
        """Of a cluster that was discarded under them."""
        running = [broker for broker in self.brokers.values() if broker.running]
        for broker in running:
            proc.kill(broker.pidfd, signal.SIGTERM)
        deadline = monotonic_ns() + LAST_WRITES_NS
        for broker in running:
            if not ended(broker.pidfd, max(deadline - monotonic_ns(), 0) / NS):
                log(f"broker {broker.id} does not end; killing it")
                proc.kill(broker.pidfd)

    def end_others(self) -> None:
        """The standby holds nothing and is killed; the spare is asked."""
        me = os.getpid()
        for slot in COORDINATOR_SLOTS:
            process = self.decisions.control.processes[slot]
            if process.pid and process.pid != me:
                pidfd = proc.watch(process.pid, process.start_ticks)
                if pidfd is not None:
                    proc.kill(pidfd)
                    ended(pidfd, END_TIMEOUT_S)
                    os.close(pidfd)
        self.spare.end()
