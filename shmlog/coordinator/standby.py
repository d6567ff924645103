"""The standby: every coordinator before it is the active one.

Whoever gets the flock on `lock` is active. A standby watches the active one's pidfd (the lock is free when it is readable) and its heartbeat: a
*stopped* one still holds the lock, so only when /proc says that it is stopped it is killed. A standby owns nothing, so it may die here at any time.
"""

from __future__ import annotations

import fcntl
import os
import selectors
import time

from shmlog import messages as m
from shmlog import proc, shm
from shmlog._ffi import lib
from shmlog.clock import MS, NS, monotonic_ns
from shmlog.coordinator.memory import COORDINATOR_SLOTS, Memory, log, open_memory
from shmlog.coordinator.spare_link import SpareLink
from shmlog.spare import EXIT_SURPLUS

TICK_NS = 250 * MS
STALE_NS = 1 * NS  # a heartbeat older than this makes us ask /proc whether its process is stopped; it proves nothing


class StartReport:
    """Says once, through `up`'s pipe, how the start went."""

    def __init__(self, fd: int) -> None:
        self.fd = fd  # -1: nobody asked, or it is told already

    def __call__(self, failure: m.Failure | None, already: bool = False) -> None:
        if self.fd >= 0:
            try:
                os.write(self.fd, m.encode(m.StartOutcome(failure, already)))
            except OSError:
                pass  # `up` was interrupted
            os.close(self.fd)
            self.fd = -1


class Standby:
    def __init__(self, prefix: str, run_dir: str, slot: int, spare: SpareLink, report: StartReport) -> None:
        self.prefix = prefix
        self.lock_path = os.path.join(run_dir, shm.LOCK_NAME)
        self.slot = slot  # entry in control.processes
        self.spare = spare
        self.report = report
        self.from_up = report.fd >= 0  # `up` started it, and nobody lived
        self.lock_fd = -1
        self.memory: Memory | None = None  # once there is something to attach to

    def wait_for_lock(self) -> bool:
        """True: this is the active coordinator. False: the cluster is down. A standby owns nothing, so it may die here at any time."""
        try:
            self.lock_fd = os.open(self.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            log("the cluster was discarded: its run directory is gone; ending")
            return False
        active_pidfd, active = -1, (0, 0)
        poller = selectors.DefaultSelector()
        last_look = monotonic_ns()
        if self.spare.sock is not None:
            poller.register(self.spare.sock, selectors.EVENT_READ)
        while True:
            try:
                fcntl.flock(self.lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            else:
                poller.close()
                if active_pidfd >= 0:
                    os.close(active_pidfd)
                return self._said(self.lock_is_current())
            if not self._said(self.lock_is_current()):
                return False
            self._attach_as_standby()
            if self.memory is not None:
                if not self._list_as_standby(self.memory):
                    poller.close()
                    if active_pidfd >= 0:
                        os.close(active_pidfd)
                    self.report(None, already=True)
                    raise SystemExit(EXIT_SURPLUS)
                now = monotonic_ns()
                self.memory.beat(self.slot, now)
                found = self._active_process(self.memory)
                if found != active:
                    if active_pidfd >= 0:
                        poller.unregister(active_pidfd)
                        os.close(active_pidfd)
                    watched = proc.watch(*found)
                    if watched is None:  # dead already, then the lock is free; or a new one has not written its name yet
                        active, active_pidfd = (0, 0), -1
                        time.sleep(0.001)
                        continue
                    active, active_pidfd = found, watched
                    poller.register(active_pidfd, selectors.EVENT_READ)
                elif now - last_look < 2 * STALE_NS and now - self.memory.control.coordinator_alive_ns > STALE_NS and proc.stopped(*active):
                    # Stopped, not slow: /proc is the witness. Dead it drops the lock; stopped it would keep it for ever.
                    log(f"killing the stopped coordinator {active[0]}")
                    proc.kill(active_pidfd)
                last_look = now
                if self.from_up and self.memory.control.cluster_state == lib.SL_CLUSTER_UP and proc.alive(*active):
                    # `up` saw nobody, but somebody was about to be active: from here on this is a standby like any other.
                    self.from_up = False
                    self.report(None, already=True)
            if self.spare.sock is None:
                self.spare.connect()
                if self.spare.sock is not None:
                    poller.register(self.spare.sock, selectors.EVENT_READ)
            # Its death makes the pidfd readable after its files, and so the lock, are gone.
            for key, _ in poller.select(TICK_NS / NS):
                if key.fileobj is self.spare.sock:  # a spare says nothing to a standby: this is its end
                    poller.unregister(self.spare.sock)
                    self.spare.drop()

    @staticmethod
    def _said(current: bool) -> bool:
        if not current:
            log("the lock is another one's or gone: the cluster went down or was discarded; ending")
        return current

    def lock_is_current(self) -> bool:
        """Whether the file locked here is still the one at its path; a cluster that went down has removed it."""
        try:
            status, mine = os.stat(self.lock_path), os.fstat(self.lock_fd)
        except FileNotFoundError:
            return False
        return (status.st_dev, status.st_ino) == (mine.st_dev, mine.st_ino)

    def _attach_as_standby(self) -> None:
        if self.memory is not None:
            return
        _, memory = open_memory(self.prefix)
        if memory is None:
            return  # still being made
        self.memory = memory

    def _list_as_standby(self, memory: Memory) -> bool:
        """Each time round: another one may have taken the same entry at the same moment, and whoever stands in none is dead to clients. False: there
        are enough of us."""
        me = os.getpid()
        if self.slot and memory.control.processes[self.slot].pid == me:
            return True
        self.slot = memory.choose_slot(self.slot)
        if not self.slot:
            log("three coordinators live already; this one is not needed")
            return False
        memory.write_process(self.slot, lib.SL_ROLE_STANDBY, 0, me, proc.start_ticks(me), lib.SL_PROCESS_UP, 0)
        memory.clear_others(self.slot, me)
        return True

    @staticmethod
    def _active_process(memory: Memory) -> tuple[int, int]:
        for slot in COORDINATOR_SLOTS:
            process = memory.control.processes[slot]
            if process.role == lib.SL_ROLE_COORDINATOR and process.pid != os.getpid():
                return process.pid, process.start_ticks
        return 0, 0
