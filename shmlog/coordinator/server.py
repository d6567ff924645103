"""The coordinator process: becomes the active one when it gets the lock, puts decisions in force, and keeps the other processes going.

A coordinator's life: standby.py until it has the lock, start.py (the memory it goes on with), then the event loop here, which hands what happens to
decisions.py (a view comes into force), supervision.py (brokers, standby), spare_link.py, rows.py, requests.py (clients), and in the end shutdown.py.
What decides is metadata.py, what is written for others to read is memory.py. One thread, and the store's.

Crash-safety. Everything that a successor needs stands in shared memory (control, rows, the view in force) and survives this process at any instruction;
each step says what is left if it is killed there. A successor never trusts a half-made thing: an object that is not READY, a view that control does
not name, a process entry whose pid has other start ticks. Only the holder of the flock on `lock` acts, and the flock drops at death; a *stopped*
holder is killed by the standby before it can be replaced.
"""

from __future__ import annotations

import os
import selectors
import signal
from collections.abc import Callable
from typing import Any

from shmlog import config, proc, shm
from shmlog import messages as m
from shmlog._ffi import ffi, lib
from shmlog.clock import MS, NS, monotonic_ns
from shmlog.coordinator import start
from shmlog.coordinator.connections import Connection, Connections
from shmlog.coordinator.decisions import Decisions, Reply
from shmlog.coordinator.memory import COORDINATOR_SLOTS, Memory, log
from shmlog.coordinator.requests import Requests
from shmlog.coordinator.rows import Rows
from shmlog.coordinator.shutdown import Shutdown
from shmlog.coordinator.spare_link import SpareLink
from shmlog.coordinator.standby import STALE_NS, TICK_NS, Standby, StartReport
from shmlog.coordinator.supervision import STANDBY_RETRY_NS, Supervision
from shmlog.errors import IllegalStateError, ShmlogError
from shmlog.spare import EXIT_REFUSED

ROWS_RETRY_NS = 1 * NS  # cleaning a row looks at every partition


def main(options: m.StartOptions, slot: int, ready_fd: int) -> int:
    """Exit code 0: the cluster is down, or this one is not needed. EXIT_REFUSED: it cannot start, and has said why."""
    coordinator = Coordinator(options, slot, ready_fd)
    try:
        return coordinator.run()
    except ShmlogError as exc:
        log(f"cannot start: {exc}")
        if coordinator.made_memory:
            shm.remove_cluster(coordinator.prefix)  # nobody has been told of it yet
        coordinator.report(m.failure_of(exc))
        return EXIT_REFUSED
    except BaseException as exc:
        coordinator.report(m.failure_of(exc))
        raise


class Coordinator:
    def __init__(self, options: m.StartOptions, slot: int, ready_fd: int) -> None:
        self.options = options
        self.prefix = shm.prefix(options.cluster)
        self.run_dir = config.run_dir(options.cluster)
        self.selector = selectors.DefaultSelector()
        self.report = StartReport(ready_fd)
        self.spare = SpareLink(options, self.run_dir)
        self.standby = Standby(self.prefix, self.run_dir, slot, self.spare, self.report)
        self.made_memory = False  # and so may remove it if the start fails

        # of the active one, set by _activate()
        self.decisions: Decisions
        self.rows: Rows
        self.connections: Connections
        self.supervision: Supervision
        self.shutdown: Shutdown
        self.requests: Requests
        self.handlers: dict[type, Callable[[Connection, Any, Reply], None]] = {}
        self.owner_pidfd = -1
        self.last_tick_ns = 0
        self.grace_until_ns = 0
        self.retry_rows_at_ns = 0

    def run(self) -> int:
        self.spare.connect()
        if not self.standby.wait_for_lock():
            return 0
        if not self.standby.from_up and self._memory_is_gone(self.standby.memory):
            log("the cluster was discarded: its memory is gone; ending")  # beginning from disk would bring back what somebody has given up
            return 0
        if self._activate():
            self._loop()
        return 0

    # === becoming active ===============================================================================================

    def _activate(self) -> bool:
        """False: there was only a removal to be finished."""
        began = monotonic_ns()
        from_up = self.standby.from_up
        if self.standby.memory is not None:
            self.standby.memory.close()  # what is there now may be another life of the cluster
        resumed = start.resume(self.options, from_up, self.prefix, self.selector)
        if resumed is None:
            self.made_memory = True
            resumed = start.begin(self.options, self.prefix, self.selector)
        decisions = self.decisions = resumed
        memory, control = decisions.memory, decisions.control
        slot = self._use_process_slot()
        self.connections = Connections(self.run_dir, self.selector, self._handle, self._connection_closed)
        self.rows = Rows(memory, self.run_dir, self.selector)
        self.supervision = Supervision(self.options.cluster, slot, decisions, self.rows, self.connections, self.spare, self.report)
        self.shutdown = Shutdown(self.run_dir, decisions, self.supervision)
        self.requests = Requests(decisions, self.supervision, self.rows)
        decisions.tell = self.supervision.tell
        self._set_handlers()
        state = control.cluster_state
        if state == lib.SL_CLUSTER_DOWN:
            # The predecessor died while it removed everything; all was safe by then.
            log("finishing the removal that another coordinator began")
            if decisions.store is not None:
                decisions.store.close(None)
            self.shutdown.remove_everything()
            return False
        self.connections.listen()
        self.spare.adopt(memory, self.selector, decisions.view.state_dir)
        self.rows.adopt()
        self.supervision.adopt_brokers()
        memory.reconcile_blocks(decisions.view)
        self._watch_owner()
        self.last_tick_ns = monotonic_ns()
        self._tick()
        if state == lib.SL_CLUSTER_STOPPING and from_up:
            state = lib.SL_CLUSTER_UP  # everything was killed while it was stopping, and now it is wanted again
        if state != lib.SL_CLUSTER_STOPPING:
            memory.set_state(lib.SL_CLUSTER_STARTING if decisions.fresh else lib.SL_CLUSTER_UP)
        self.supervision.start_brokers()
        if state == lib.SL_CLUSTER_STOPPING:
            log("going on with the shutdown that another coordinator began")
            self.shutdown.begin(False, monotonic_ns() + 60 * NS, lambda message: None)
        else:
            self.supervision.ask_for_standby()
        self.supervision.check_ready()
        log(f"active: epoch {decisions.epoch >> 32}.{decisions.epoch & 0xFFFFFFFF}, view {decisions.view.version}, "
            f"{'fresh' if decisions.fresh else 'resumed'} memory, {(monotonic_ns() - began) / MS:.1f} ms")  # fmt: skip
        return True

    def _use_process_slot(self) -> int:
        me = os.getpid()
        memory = self.decisions.memory
        slot = memory.choose_slot(self.standby.slot) or COORDINATOR_SLOTS[-1]  # of a standby, which finds another entry or ends
        for other in COORDINATOR_SLOTS:  # one that died as the active one must not be taken for it
            process = memory.control.processes[other]
            if other != slot and process.role == lib.SL_ROLE_COORDINATOR:
                lib.sl_put32(ffi.addressof(process, "role"), lib.SL_ROLE_STANDBY)
        memory.write_process(slot, lib.SL_ROLE_COORDINATOR, 0, me, proc.start_ticks(me), lib.SL_PROCESS_UP, 0)
        memory.clear_others(slot, me)  # else it would take itself for its standby
        return slot

    # === the loop ======================================================================================================

    def _loop(self) -> None:
        while not self.shutdown.finished:
            wait_ns = self.last_tick_ns + TICK_NS - monotonic_ns()
            for broker in self.supervision.brokers.values():
                if broker.start_at_ns:
                    wait_ns = min(wait_ns, broker.start_at_ns - monotonic_ns())
            for key, events in self.selector.select(max(wait_ns, 0) / NS):
                if isinstance(key.data, Connection):
                    self.connections.ready(key.data, events)
                else:
                    now_there = self.selector.get_map().get(key.fd)
                    if now_there is not None and now_there.data is key.data:  # not unregistered by an event before it
                        key.data()
                if self.shutdown.finished:
                    return
            now = monotonic_ns()
            if now - self.last_tick_ns >= TICK_NS:
                self._tick()
            if not self.shutdown.finished:
                self.supervision.start_brokers()

    def _tick(self) -> None:
        self._end_if_discarded()
        now = monotonic_ns()
        if now - self.last_tick_ns > 4 * TICK_NS:
            # We were stopped ourselves, or everything was: whoever looks stale now may only not have had its turn yet.
            self.grace_until_ns = now + 2 * STALE_NS
        self.last_tick_ns = now
        decisions, supervision = self.decisions, self.supervision
        lib.sl_put64(ffi.addressof(decisions.control, "coordinator_alive_ns"), now)
        decisions.memory.beat(supervision.slot, now)
        if now > self.grace_until_ns:
            supervision.kill_stopped(now)
        if self.spare.sock is None:
            self.spare.connect()  # a new one has come up meanwhile
        if self.rows.lingering and now >= self.retry_rows_at_ns:
            self.retry_rows_at_ns = now + ROWS_RETRY_NS
            self.rows.retry()
        self.rows.grow_meters()
        self.requests.expire_trims(now)
        if decisions.waiting_for_store:
            decisions.store_progress()
        if supervision.stopping and now > supervision.stopping.deadline_ns:
            self.shutdown.timed_out()
            if self.shutdown.finished:
                return
        if supervision.view_failed:
            supervision.start_brokers()
        supervision.go_on_with_moves()
        asked_ns = supervision.standby_asked_ns
        if supervision.standby_pidfd < 0 and not supervision.stopping and asked_ns and now - asked_ns > STANDBY_RETRY_NS:
            supervision.ask_for_standby()

    def _end_if_discarded(self) -> None:
        """Somebody gave the cluster up and did not see us: its lock or its memory is gone, or another life of it is there. Nothing of that one is
        touched, and what we began ends; brokers, which have their segments mapped, first write what they can reach."""
        memory_gone, locked = self._memory_is_gone(self.decisions.memory), self.standby.lock_is_current()
        if not memory_gone and locked:
            return
        log(f"the cluster was discarded: its {'memory' if memory_gone else 'lock'} is gone; ending")
        if locked:  # so nobody has begun anew: a view that was put in force without anybody to see it is ours
            for version in range(self.decisions.view.version - 1, self.decisions.view.version + 1):
                shm.unlink(shm.view_name(self.prefix, version))
        self.supervision.end_brokers()
        if self.spare.pidfd >= 0:
            proc.kill(self.spare.pidfd, signal.SIGTERM)
        raise SystemExit(0)

    def _memory_is_gone(self, memory: Memory | None) -> bool:
        """Whether what this one is attached to (None: it was forked just now and had not come to that) has lost its name."""
        code, control = shm.read_control(self.prefix)
        if memory is None:
            return bool(code == lib.SL_E_NOENT)
        ours = bytes(ffi.buffer(memory.control.header.cluster_id))
        return bool(code == lib.SL_E_NOENT or (code == lib.SL_OK and bytes(ffi.buffer(control.header.cluster_id)) != ours))

    # --- connections ---

    def _connection_closed(self, connection: Connection) -> None:
        broker = self.supervision.brokers.get(connection.broker_id) if connection.broker_id is not None else None
        if broker and broker.connection is connection:
            broker.connection = None

    def _set_handlers(self) -> None:
        requests, supervision = self.requests, self.supervision
        self.handlers = {
            m.Register: requests.register,
            m.Unregister: requests.unregister,
            m.CreateTopics: requests.create_topics,
            m.DeleteTopics: requests.delete_topics,
            m.DeleteNamespace: requests.delete_namespace,
            m.CreatePartitions: requests.create_partitions,
            m.AlterTopicConfigs: requests.alter_topic_configs,
            m.DeleteRecords: requests.delete_records,
            m.DescribeCluster: requests.describe_cluster,
            m.Trimmed: requests.trimmed,
            m.Shutdown: self.shutdown.shutdown,
            m.BrokerStopped: self.shutdown.broker_stopped,
            m.BrokerReady: supervision.broker_ready,
            m.BrokerApplied: supervision.broker_applied,
            m.BrokerFailed: supervision.broker_failed,
            m.AlterIsr: supervision.alter_isr,
            m.ElectLeaders: supervision.elect_leaders,
            m.ReassignPartitions: supervision.reassign_partitions,
            m.RetireBroker: supervision.retire_broker,
            m.AddBroker: supervision.add_broker,
        }

    def _handle(self, connection: Connection, message: Any) -> None:
        def reply(answer: Any) -> None:
            self.connections.send(connection, answer)

        handler = self.handlers.get(type(message))
        try:
            if handler is None:
                raise IllegalStateError(f"{type(message).__name__} is not a request")
            handler(connection, message, reply)
        except ShmlogError as exc:
            reply(m.failure_of(exc))
        except SystemExit:
            raise
        except Exception as exc:  # a bug must not take the cluster with it
            import traceback

            log(f"{type(message).__name__} failed:\n{traceback.format_exc()}")
            reply(m.failure_of(exc))

    # --- embedded ---

    def _watch_owner(self) -> None:
        """An embedded cluster ends with the program it belongs to, also if that is killed."""
        if not self.decisions.view.owner_pid:
            return
        pidfd = proc.watch(self.decisions.view.owner_pid, self.decisions.view.owner_start_ticks)
        if pidfd is None:
            self._owner_died()
            return
        self.owner_pidfd = pidfd
        self.selector.register(pidfd, selectors.EVENT_READ, self._owner_died)

    def _owner_died(self) -> None:
        if self.owner_pidfd >= 0:
            self.selector.unregister(self.owner_pidfd)
            os.close(self.owner_pidfd)
            self.owner_pidfd = -1
        log(f"the program this cluster belongs to (pid {self.decisions.view.owner_pid}) is gone")
        self.shutdown.begin(True, monotonic_ns() + 30 * NS, lambda message: None)
