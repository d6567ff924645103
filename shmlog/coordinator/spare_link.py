"""The coordinator's end of the spare: a connection, a pidfd, and forks on request. See shmlog/spare.py."""

from __future__ import annotations

import os
import select
import selectors
import socket
import struct
import subprocess
import time

from shmlog import messages as m
from shmlog import proc
from shmlog import spare as spare_process
from shmlog._ffi import lib
from shmlog.coordinator.memory import SPARE_SLOT, Memory, log
from shmlog.errors import BrokerNotRunningError

TIMEOUT_S = 2.0  # a fork takes milliseconds
START_TIMEOUT_S = 20.0  # for a new spare's imports, on a machine that has other work
END_TIMEOUT_S = 2.0
ATTEMPTS = 5


def ended(pidfd: int, timeout: float) -> bool:
    """Whether the process has ended in time."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(timeout * 1000))


class SpareLink:
    def __init__(self, options: m.StartOptions, run_dir: str) -> None:
        self.options = options
        self.run_dir = run_dir
        self.sock: socket.socket | None = None
        self.pidfd = -1
        # of the active coordinator only, set by adopt()
        self.memory: Memory
        self.selector: selectors.BaseSelector
        self.state_dir = ""

    def adopt(self, memory: Memory, selector: selectors.BaseSelector, state_dir: str) -> None:
        """From here on this coordinator keeps the spare alive."""
        self.memory, self.selector, self.state_dir = memory, selector, state_dir
        if self.sock is not None and not proc.alive(*self._peer(self.sock)):
            self.drop()  # it died with the predecessor
        if self.sock is None:
            self.connect()
        if self.sock is not None:
            if self.pidfd < 0:
                self.watch(self._peer(self.sock)[0])
            return
        listed = memory.control.processes[SPARE_SLOT]
        who = listed.pid, listed.start_ticks
        if listed.role == lib.SL_ROLE_SPARE and proc.alive(*who) and not proc.stopped(*who):
            self.watch(listed.pid)  # our predecessor's, which is importing still: two at once would end each other
        else:
            self.exec()

    @staticmethod
    def _peer(sock: socket.socket) -> tuple[int, int]:
        pid, _, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return pid, proc.start_ticks(pid)

    def drop(self) -> None:
        """The connection is at its end."""
        if self.sock is not None:
            self.sock.close()
            self.sock = None

    def end(self) -> None:
        """Asks the spare to end after its last child."""
        try:
            if self.sock is None:
                self.connect()
            if self.sock is not None:
                self.sock.send(m.encode(m.EndSpare()))
        except OSError:
            pass  # dead already

    def _died(self) -> None:
        log("the spare died; starting another")
        self.forget()
        self.exec()

    def connect(self) -> None:
        """Every coordinator keeps a connection: by it the spare knows that there is one."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.settimeout(TIMEOUT_S)
        try:
            sock.connect(os.path.join(self.run_dir, "spare.sock"))
        except OSError:
            sock.close()
            return
        self.sock = sock
        if self.pidfd < 0:
            return
        # Two may come up at once, one of them exec'ed by a predecessor that died before it could list it. Listed and watched is the one that hears us:
        # the other one ends by itself, and if it were the one that is listed, clients would take the cluster for dead.
        pid, ticks = self._peer(sock)
        listed = self.memory.control.processes[SPARE_SLOT]
        if (pid, ticks) != (listed.pid, listed.start_ticks) and (pidfd := proc.watch(pid, ticks)) is not None:
            self.selector.unregister(self.pidfd)
            os.close(self.pidfd)
            self._list(pid, ticks, pidfd)

    def watch(self, pid: int) -> None:
        ticks = proc.start_ticks(pid)
        pidfd = proc.watch(pid, ticks)
        if pidfd is None:
            self.drop()
            self.exec()
            return
        self._list(pid, ticks, pidfd)

    def _list(self, pid: int, ticks: int, pidfd: int) -> None:
        self.pidfd = pidfd
        self.memory.write_process(SPARE_SLOT, lib.SL_ROLE_SPARE, 0, pid, ticks, lib.SL_PROCESS_UP, 0)
        self.selector.register(pidfd, selectors.EVENT_READ, self._died)

    def forget(self) -> None:
        if self.pidfd >= 0:
            self.selector.unregister(self.pidfd)
            os.close(self.pidfd)
            self.pidfd = -1
        if self.sock is not None:
            self.sock.close()
            self.sock = None
        self.memory.process_state(SPARE_SLOT, lib.SL_PROCESS_DEAD)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:  # one that we exec'ed is our child
                pass
        except ChildProcessError:
            pass

    def exec(self) -> None:
        """By exec and not by fork: the lock's fd is close-on-exec, a forked child would hold the flock beyond our death."""
        log_fd = spare_process.open_log(self.state_dir, "spare")
        try:
            child = subprocess.Popen(
                spare_process.arguments(self.options, None),
                stdin=subprocess.DEVNULL,
                stdout=log_fd,
                stderr=log_fd,
                env=spare_process.environment(),
                start_new_session=True,
            )
        finally:
            os.close(log_fd)
        child.returncode = 0  # reaped by forget(), not by subprocess
        self.watch(child.pid)

    def fork(self, request: m.Fork) -> tuple[int, int, int]:
        """(pid, start ticks, pidfd) of a new process. A spare that dies or does not answer in time is replaced: it holds nothing that could be lost.

        Waits, and the loop with it: milliseconds for a fork, the time of its imports for a new spare.
        """
        for _ in range(ATTEMPTS):
            answer = self._ask(request) if self._wait_connected() else None
            if isinstance(answer, m.Failure):
                m.raise_failure(answer)
            if isinstance(answer, tuple):
                return answer
            if self.pidfd >= 0:
                proc.kill(self.pidfd)
                ended(self.pidfd, END_TIMEOUT_S)
            self.forget()
            self.exec()
        raise BrokerNotRunningError("no process could be forked: the spare does not come up")

    def _wait_connected(self) -> bool:
        deadline = time.monotonic() + START_TIMEOUT_S
        while self.sock is None and time.monotonic() < deadline:
            self.connect()
            if self.sock is None and (self.pidfd < 0 or ended(self.pidfd, 0.005)):
                return False  # it died while it was importing
        return self.sock is not None

    def _ask(self, request: m.Fork) -> tuple[int, int, int] | m.Failure | None:
        assert self.sock is not None
        try:
            self.sock.send(m.encode(request))
            data, fds, _, _ = socket.recv_fds(self.sock, spare_process.PACKET_MAX_BYTES, 1)
            answer = m.decode(data) if data else None
        except (OSError, ValueError) as exc:
            log(f"the spare does not answer: {exc!r}")
            return None
        if isinstance(answer, m.Forked) and fds:
            return answer.pid, answer.start_ticks, fds[0]
        return answer if isinstance(answer, m.Failure) else None
