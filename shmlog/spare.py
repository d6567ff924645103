"""The spare: one pre-imported, single-threaded process from which the processes of a cluster are forked in milliseconds.

`python -m shmlog.spare` is what `up` execs, once for a cluster. It imports what coordinators and brokers need, forks the first coordinator, and then
forks on request over `spare.sock` (messages.Fork -> messages.Forked with the child's pidfd). It reaps its children and ends after the last. It holds
nothing that a child must not inherit: no lock, no database, no thread, no ZeroMQ context, no mapping of the cluster's memory; sockets are closed in
the child.

It can die at any time: the active coordinator execs another. It is also the last resort: every coordinator, active or standby, keeps a connection
here, and when the last one is gone and none lives, the spare forks one. So a cluster heals as long as any of the three is left.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import os
import resource
import selectors
import signal
import socket
import sys
import time
import traceback
from typing import Any, NoReturn

import msgspec

from shmlog import config, proc, shm
from shmlog._ffi import lib
from shmlog.clock import NS
from shmlog.messages import EndSpare, Failure, Fork, Forked, StartOptions, StartOutcome, decode, encode

ROLES = {"coordinator": "shmlog.coordinator.server", "broker": "shmlog.broker.server"}
LOG_MAX_BYTES = 8 * 2**20  # one older log is kept
EXIT_REFUSED = 3  # a coordinator's exit code when it cannot start, and has said why: trying again would not help
EXIT_SURPLUS = 4  # a coordinator's exit code when three others live; unlike 0 and EXIT_REFUSED it says nothing about the cluster
END_TIMEOUT_S = 2.0
LOOK_S = 1.0
STALE_NS = 2 * NS  # of the active coordinator's heartbeat; makes us ask /proc who is stopped
RESTARTS_MAX = 5  # of a last-resort coordinator, without one of them connecting in between
PACKET_MAX_BYTES = 65536


def arguments(options: StartOptions, ready_fd: int | None) -> list[str]:
    """The command line that starts a spare. Without ready_fd it succeeds another: coordinators exist, it forks none."""
    return [sys.executable, "-m", "shmlog.spare", msgspec.json.encode(options).decode(), str(-1 if ready_fd is None else ready_fd)]


def environment() -> dict[str, str]:
    """A spare must find this very package, installed or not."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environ = dict(os.environ)
    if os.path.basename(root) not in ("site-packages", "dist-packages"):
        environ["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [environ.get("PYTHONPATH")])])
    return environ


def log_path(state_dir: str, name: str) -> str:
    return os.path.join(state_dir, "logs", f"{name}.log")


def open_log(state_dir: str, name: str) -> int:
    path = log_path(state_dir, name)
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    try:
        if os.stat(path).st_size > LOG_MAX_BYTES:
            os.replace(path, path + ".1")
    except FileNotFoundError:
        pass
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


class _Log(io.TextIOBase):
    """What is said on stderr, into the log. A disk that takes no line of it must not end those who wait until it takes records again."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            os.write(2, text.encode(errors="backslashreplace"))
        return len(text)


class Spare:
    def __init__(self, options: StartOptions, ready_fd: int) -> None:
        self.options = options
        self.ready_fd = ready_fd
        self.run_dir = config.run_dir(options.cluster)
        self.run_dir_identity = os.stat(self.run_dir).st_ino
        self.selector = selectors.DefaultSelector()
        self.children: set[int] = set()
        self.coordinators: set[int] = set()  # those of that role
        self.connections: set[socket.socket] = set()
        self.restarts = 0
        self.looked_at = time.monotonic()
        self.ending = False  # see _end()
        self.final = False  # the coordinator that ended last went down orderly, or never came up: no other one would do better

    def run(self) -> int:
        self._listen()
        wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.signal(signal.SIGTERM, self._terminate)
        self.selector.register(wake_read, selectors.EVENT_READ, self._reap)
        gc.freeze()  # what is there now is never looked at again: its pages stay shared with the children
        if self.ready_fd >= 0:
            self._fork("coordinator", 0, 1, b"", self.ready_fd)
            os.close(self.ready_fd)
            self.ready_fd = -1
        end_at = 0.0
        while True:
            if self.ending:
                # Orderly ends are reaped here and become nobody's zombies. Brokers of a cluster that lost its coordinators live on.
                end_at = end_at or time.monotonic() + END_TIMEOUT_S
                if not self.children or time.monotonic() > end_at:
                    return 0
            for key, _ in self.selector.select(0.1 if self.ending else LOOK_S):
                key.data(key.fileobj)
            if not self.ending and time.monotonic() - self.looked_at >= LOOK_S:
                self._look()

    def _terminate(self, number: int, frame: Any) -> None:
        self._end("SIGTERM")

    def _end(self, why: str) -> None:
        """After the children, see run()."""
        if not self.ending:
            self.ending = True
            print(f"spare {os.getpid()}: ends: {why}", file=sys.stderr, flush=True)

    def _look(self) -> None:
        """Each second, for what no event tells: coordinators that died before they could connect here, and coordinators that are all stopped, each
        waiting for the other to be seen to."""
        now = time.monotonic()
        paused, self.looked_at = now - self.looked_at > 3 * LOOK_S, now
        if self._is_discarded():
            self._end("the cluster was discarded: its run directory is gone")
            return
        if not self.connections and not self._is_current():
            self._end("another spare took the place before anybody connected here")
            return
        if not self.connections and not self.coordinators:
            self._last_resort()
        if not paused:  # else we were stopped ourselves, and perhaps everything was
            control = self._control()
            if control is not None and time.monotonic_ns() - control.coordinator_alive_ns > STALE_NS:
                for pid, ticks in self._living_coordinators(control):
                    pidfd = proc.watch(pid, ticks) if proc.stopped(pid, ticks) else None
                    if pidfd is not None:
                        print(f"spare: killing the stopped coordinator {pid}", file=sys.stderr, flush=True)
                        proc.kill(pidfd)
                        os.close(pidfd)

    def _is_current(self) -> bool:
        try:
            return os.stat(os.path.join(self.run_dir, "spare.sock")).st_ino == self.identity
        except FileNotFoundError:
            return False

    def _is_discarded(self) -> bool:
        """Whether our run directory was removed; one of the same name is another life of the cluster, and none of our business."""
        try:
            return os.stat(self.run_dir).st_ino != self.run_dir_identity
        except FileNotFoundError:
            return True

    def _control(self) -> Any:
        """A copy of control; None if the cluster is down or gone."""
        code, control = shm.read_control(shm.prefix(self.options.cluster))
        if code != lib.SL_OK or control.cluster_state == lib.SL_CLUSTER_DOWN or not os.path.isdir(self.run_dir):
            return None
        return control

    @staticmethod
    def _living_coordinators(control: Any) -> list[tuple[int, int]]:
        found = [(p.pid, p.start_ticks) for p in control.processes if p.role in (lib.SL_ROLE_COORDINATOR, lib.SL_ROLE_STANDBY)]
        return [entry for entry in found if proc.alive(*entry)]

    # --- requests ---

    def _listen(self) -> None:
        # Under another name first: at no moment a path without a listener behind it.
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        path = os.path.join(self.run_dir, "spare.sock")
        temporary = f"{path}.{os.getpid()}"
        self.listener.bind(temporary)
        os.chmod(temporary, 0o600)  # whatever the umask
        self.listener.listen(16)
        self.identity = os.stat(temporary).st_ino
        os.rename(temporary, path)
        self.listener.setblocking(False)
        self.selector.register(self.listener, selectors.EVENT_READ, self._accept)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        connection.settimeout(5)
        self.connections.add(connection)
        self.restarts = 0
        self.selector.register(connection, selectors.EVENT_READ, self._request)

    def _request(self, connection: socket.socket) -> None:
        try:
            data = connection.recv(PACKET_MAX_BYTES)
            if data:
                self._answer(connection, decode(data))
                return
        except (OSError, ValueError) as exc:
            print(f"spare: a request failed: {exc!r}", file=sys.stderr, flush=True)
        self.selector.unregister(connection)
        self.connections.discard(connection)
        connection.close()
        self._last_resort()

    def _answer(self, connection: socket.socket, message: Any) -> None:
        if isinstance(message, EndSpare):
            self._end("the coordinator asks for it")
        elif isinstance(message, Fork):
            try:
                pid, pidfd = self._fork(message.role, message.id, message.slot, message.argument)
            except OSError as exc:  # EAGAIN, ENOMEM: no process to be had
                connection.send(encode(Failure("ShmlogError", f"fork failed: {exc.strerror}")))
                return
            try:
                socket.send_fds(connection, [encode(Forked(pid, proc.start_ticks(pid)))], [pidfd])
            finally:
                os.close(pidfd)
        else:
            raise ValueError(f"{type(message).__name__} is nothing a spare does")

    # --- children ---

    def _fork(self, role: str, id: int, slot: int, argument: bytes, ready_fd: int = -1) -> tuple[int, int]:
        pid = os.fork()
        if pid == 0:
            _child(self.options, role, id, slot, argument, ready_fd)
        self.children.add(pid)
        if role == "coordinator":
            self.coordinators.add(pid)
        return pid, os.pidfd_open(pid)  # only we reap it, so the pid is still its own

    def _reap(self, wake_read: int) -> None:
        try:
            while os.read(wake_read, 4096):
                pass
        except BlockingIOError:
            pass
        last_coordinator = False
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            self.children.discard(pid)
            if pid in self.coordinators:  # brokers are the coordinator's care
                self.coordinators.discard(pid)
                self.final = os.WIFEXITED(status) and os.WEXITSTATUS(status) in (0, EXIT_REFUSED)
                last_coordinator = True
        if last_coordinator:
            self._last_resort()

    def _last_resort(self) -> None:
        """Forks a coordinator if there is none any more. One too many does no harm: it waits for the lock as a standby."""
        if self.ending or self.connections or self.coordinators:
            return
        if self.final:
            self._end("the last coordinator says that the cluster is at its end")
            return
        control = self._control()
        if control is None or self._is_discarded():
            self._end("there is no coordinator, and no memory of a cluster that is up")
            return
        if self._living_coordinators(control):
            return
        if self.restarts >= RESTARTS_MAX:
            print(f"spare: {RESTARTS_MAX} coordinators died one after the other; giving up", file=sys.stderr, flush=True)
            self._end("no coordinator lives")
            return
        self.restarts += 1
        _, pidfd = self._fork("coordinator", 0, 0, b"")
        os.close(pidfd)


def _child(options: StartOptions, role: str, id: int, slot: int, argument: bytes, ready_fd: int) -> NoReturn:
    """In the forked child: nothing of the spare stays but its imports."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        name = f"broker-{id}" if role == "broker" else role
        proc.set_name(f"shmlog-{name}" if role == "broker" else "shmlog-coord")
        try:
            log = open_log(options.state_dir or config.state_dir(options.cluster), name)
        except OSError:  # a full or failing disk: this process is needed all the same
            log = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        for fd in sorted(int(entry) for entry in os.listdir("/proc/self/fd")):
            if fd > 2 and fd != ready_fd:
                try:
                    os.close(fd)
                except OSError:
                    pass  # the listing's own
        gc.enable()
        main = importlib.import_module(ROLES[role]).main
        code = main(decode(argument)) if role == "broker" else main(options, slot, ready_fd)
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def _raise_limit() -> None:
    """A login's soft limit of 1,024 files is too little for many partitions; the hard one is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> int:
    options = msgspec.json.decode(sys.argv[1], type=StartOptions)
    ready_fd = int(sys.argv[2])
    began = time.monotonic()
    proc.set_name("shmlog-spare")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    _raise_limit()
    sys.stdout = sys.stderr = _Log()  # also of all that are forked from here
    try:
        for module in ROLES.values():  # what the children need, imported once
            importlib.import_module(module)
        print(f"spare {os.getpid()}: imports took {(time.monotonic() - began) * 1e3:.0f} ms", file=sys.stderr, flush=True)
        return Spare(options, ready_fd).run()
    except BaseException as exc:
        traceback.print_exc()
        if ready_fd >= 0:
            os.write(ready_fd, encode(StartOutcome(Failure("ShmlogError", f"{type(exc).__name__}: {exc}"))))
        return 1


if __name__ == "__main__":
    gc.disable()  # until the imports are done and frozen; children switch it on again
    sys.exit(main())
