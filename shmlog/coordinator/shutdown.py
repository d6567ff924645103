"""The orderly end of a cluster: everything in memory is written first, or the cluster goes on.

STOPPING -> BrokerStop to all -> BrokerStopped of all -> the disk says "clean" -> DOWN -> memory and run directory go -> the requester is answered. A
successor that finds STOPPING goes on stopping, one that finds DOWN finishes the removal.
"""

from __future__ import annotations

import shutil

from shmlog import messages as m
from shmlog import proc, shm
from shmlog._ffi import lib
from shmlog.clock import MS, NS, monotonic_ns
from shmlog.coordinator import metadata, moves
from shmlog.coordinator.connections import Connection
from shmlog.coordinator.decisions import Decisions, Reply
from shmlog.coordinator.memory import log
from shmlog.coordinator.supervision import Stopping, Supervision
from shmlog.errors import KafkaTimeoutError, ShmlogError, StorageError


class Shutdown:
    def __init__(self, run_dir: str, decisions: Decisions, supervision: Supervision) -> None:
        self.run_dir = run_dir
        self.decisions = decisions
        self.supervision = supervision
        self.finished = False
        supervision.when_stopped = self.check_stopped

    def shutdown(self, connection: Connection, message: m.Shutdown, reply: Reply) -> None:
        self.begin(message.force, monotonic_ns() + message.timeout_ms * MS, reply)

    def begin(self, force: bool, deadline_ns: int, reply: Reply) -> None:
        """Killed from here to DOWN: the successor finds STOPPING and goes on."""
        if self.supervision.stopping:
            self.supervision.stopping.replies.append(reply)
            self.supervision.stopping.force |= force
            if not force:
                return
        else:
            self.supervision.stopping = Stopping(force, deadline_ns)
            self.supervision.stopping.replies.append(reply)
            self.decisions.memory.set_state(lib.SL_CLUSTER_STOPPING)
            lib.sl_view_changed(self.decisions.control)
        for broker in self.supervision.brokers.values():
            if not broker.running:
                retired = moves.has_retired(self.decisions.view, broker.id)
                broker.stopped = broker.stopped or self.supervision.stopping.force or retired
            elif self.supervision.stopping.force and self.decisions.view.temporary:
                broker.stopped = True  # its data goes anyway
                proc.kill(broker.pidfd)
            elif broker.connection is not None:
                self.supervision.connections.send(broker.connection, self.supervision.stopping.message())
        self.check_stopped()

    def broker_stopped(self, connection: Connection, message: m.BrokerStopped, reply: Reply) -> None:
        broker = self.supervision.broker_of(connection, message.broker_id, message.broker_epoch)
        reply(m.Done(self.decisions.view.version))
        if message.unspilled_bytes and not (self.supervision.stopping and self.supervision.stopping.force):
            if self.supervision.stopping:
                self.supervision.stopping.problems[broker.id] = message
                self._refuse()
            return
        broker.stopped = self.supervision.stopping is not None  # without: SIGTERM by hand; it is started again when it has ended

    def check_stopped(self) -> None:
        if self.supervision.stopping and all(b.stopped and not b.running for b in self.supervision.brokers.values()):
            self._finish()

    def timed_out(self) -> None:
        assert self.supervision.stopping
        if self.supervision.stopping.force:
            for broker in self.supervision.brokers.values():
                broker.stopped = True
                if broker.running:
                    log(f"broker {broker.id} did not end in time; killing it")
                    proc.kill(broker.pidfd)
            self.supervision.stopping.deadline_ns = monotonic_ns() + 10 * NS
            self.check_stopped()
            return
        late = [b.id for b in self.supervision.brokers.values() if b.running or not b.stopped]
        self._refuse(m.failure_of(KafkaTimeoutError(f"brokers {late} have not written everything in time; the cluster goes on")))

    def _refuse(self, failure: m.Failure | None = None) -> None:
        """Back to UP: what could not be written stays in memory, and everything goes on."""
        assert self.supervision.stopping
        stopping, self.supervision.stopping = self.supervision.stopping, None
        if failure is None:
            count = sum(p.unspilled_bytes for p in stopping.problems.values())
            why = next((p.failure.message for p in stopping.problems.values() if p.failure), "the disk takes no more")
            failure = m.failure_of(
                StorageError(
                    f"{count:,} bytes in memory could not be written to disk ({why}); the cluster goes on",
                    hint="make room and stop it again, or give them up: `shmlog down --force`",
                )
            )
        log(f"not stopping: {failure.message}")
        self.decisions.memory.set_state(lib.SL_CLUSTER_UP)
        for broker in self.supervision.brokers.values():
            broker.stopped = False
        staying = [b.id for b in self.supervision.brokers.values() if b.running]
        self.decisions.decide(metadata.renew_epochs(self.decisions.view, staying))
        self.supervision.start_brokers()
        for reply in stopping.replies:
            reply(failure)

    def _finish(self) -> None:
        """All brokers have ended and everything is safe (or given up). The order: the disk says "clean", memory says DOWN, the others end, memory goes,
        then the reply. Killed before DOWN: the successor starts brokers again and stops them again. Killed after: it finishes the removal."""
        assert self.supervision.stopping
        if self.decisions.store is not None:
            if not self.supervision.stopping.force and not self.decisions.store.wait_stored(self.decisions.view.version, 5.0):
                error = self.decisions.store.error or StorageError("metadata not written within 5 s", path=self.decisions.view.data_dirs[0])
                self._refuse(m.failure_of(error))
                return
            try:
                self.decisions.store.close(self.decisions.view)
            except ShmlogError as exc:
                log(f"closing the metadata: {exc}")  # all but the mark "clean" is there; without it the next epochs jump
            self.decisions.store = None
        stopping = self.supervision.stopping
        self.remove_everything()
        for reply in stopping.replies:
            reply(m.Done(self.decisions.view.version))
        self.finished = True

    def remove_everything(self) -> None:
        self.decisions.memory.set_state(lib.SL_CLUSTER_DOWN)
        lib.sl_view_changed(self.decisions.control)
        lib.sl_wake_all(self.decisions.memory.handle, 0xFFFFFFFF)
        self.supervision.end_others()
        view = self.decisions.view or self.decisions.memory.read_view(self.decisions.memory.view_version())
        shm.remove_cluster(self.decisions.prefix)
        if view is not None and view.temporary:
            for directory in {*view.data_dirs, view.state_dir, *m.directories_elsewhere(view).values()}:
                shutil.rmtree(directory, ignore_errors=True)
        shm.remove_run_dir(self.run_dir)
