"""Starting and stopping a cluster: what `shmlog up`, `shmlog down` and the embedded Cluster do.

Starting execs one process, the spare; everything else is forked from it, and the coordinator says through a pipe when the cluster is ready or why not.
Starters and stoppers take turns by a flock on `start.lock` in the run directory; that a cluster has one coordinator does not depend on it.

What an earlier run left: memory of this boot is resumed with all that was appended (the coordinator adopts what still lives); memory of another boot,
or half-made, is removed and the cluster begins from disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import shutil
import socket
import stat
import struct
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from shmlog import config, errors, proc, shm, spare
from shmlog import messages as m
from shmlog._ffi import ffi, lib
from shmlog.client.cluster_view import alive
from shmlog.client.session import attach

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 60.0
OUR_LOG = re.compile(r"(coordinator|spare|broker-\d+)\.log(\.1)?")
END_TIMEOUT_S = 10.0  # for processes that said they end


_children: set[int] = set()  # spares that this process started: waited for when they have ended

# --- state -------------------------------------------------------------------------------------------------------------


def is_up(name: str) -> bool:
    """Whether the cluster runs; from shared memory, in well under a millisecond."""
    control = _running(shm.prefix(name))
    return control is not None and control.cluster_state in (lib.SL_CLUSTER_UP, lib.SL_CLUSTER_STARTING)


def view_of(name: str) -> m.ClusterView | None:
    """The metadata in memory, whether anybody lives or not."""
    prefix = shm.prefix(name)
    for _ in range(100):  # it may be replaced between the two reads
        code, control = shm.read_control(prefix)
        if code != lib.SL_OK or not control.view_version:
            return None
        payload = shm.read_view(prefix, control.view_version)
        if payload is not None:
            return m.decode_view(payload)
    # Damaged, and nobody has put it together again yet: the one before it is kept, and names the same directories.
    payload = shm.read_view(prefix, control.view_version - 1)
    return m.decode_view(payload) if payload is not None else None


def _running(prefix: str) -> Any:
    """A copy of control if somebody keeps that cluster going, else None."""
    code, control = shm.read_control(prefix)
    if code == lib.SL_E_OWNER:
        raise errors.IllegalStateError(f"{shm.object_name(prefix, 'control')} belongs to another user")
    return control if code == lib.SL_OK and alive(control) else None


def _refuse_other_version(name: str, prefix: str) -> None:
    """Memory of another layout may be looked at in its frozen header only. If its cluster lives (its lock is held), nothing here touches it."""
    code, control = shm.read_control(prefix)
    if code != lib.SL_E_VERSION:
        return
    lock = bytes(ffi.buffer(control.header.owner_lock)).rstrip(b"\0").decode()
    if _is_locked(os.path.join(config.run_dir(name), lock)):
        raise errors.VersionMismatchError(
            f"cluster {name!r} runs with memory layout {control.header.layout_version}, this shmlog knows layout {lib.SL_LAYOUT_VERSION}",
            hint="stop it with the version that started it",
            found=control.header.layout_version,
            supported=lib.SL_LAYOUT_VERSION,
        )


def _is_locked(path: str) -> bool:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(fd)


# --- one starter or stopper at a time ----------------------------------------------------------------------------------


@contextlib.contextmanager
def _turn(name: str, timeout: float) -> Iterator[None]:
    """Makes the run directory and holds `start.lock` in it. The directory may be removed by whoever had the turn before: then it is made again."""
    directory = config.run_dir(name)
    path = os.path.join(directory, "start.lock")
    deadline = time.monotonic() + timeout
    while True:
        _make_run_dir(directory)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.stat(path).st_ino == os.fstat(fd).st_ino:
                    break
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(fd)
                raise errors.KafkaTimeoutError(
                    f"cluster {name!r} is being started or stopped by somebody else for more than {timeout:g} s", timeout=timeout
                ) from None
            time.sleep(0.005)
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
    try:
        yield
    finally:
        os.close(fd)
        with contextlib.suppress(OSError):
            if not os.path.exists(shm.DIRECTORY + shm.object_name(shm.prefix(name), "control")):
                # Nothing came of it, or all is gone: an empty directory is ours to take away too.
                if os.listdir(directory) == ["start.lock"]:
                    os.unlink(path)
                os.rmdir(directory)


def _make_run_dir(directory: str) -> None:
    directory = directory.rstrip("/")
    with contextlib.suppress(FileExistsError):
        os.mkdir(directory, 0o700)
    try:
        status = os.lstat(directory)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise errors.IllegalStateError(f"{directory} is not a directory of ours (user {status.st_uid}); remove it")
    if stat.S_IMODE(status.st_mode) != 0o700:
        os.chmod(directory, 0o700)


# --- starting ----------------------------------------------------------------------------------------------------------


def start_cluster(
    name: str,
    brokers: int | None = None,
    data_dirs: Sequence[str] | None = None,
    cluster_config: Mapping[str, str] | None = None,
    *,
    owner: tuple[int, int] | None = None,
    temporary: bool = False,
    timeout: float = START_TIMEOUT_S,
) -> bool:
    """Returns when the cluster is ready: True if it was started, False if it ran already with these options.

    None leaves an option as it was, or at its default for a new cluster (one broker, data in the state directory); data_dirs=() keeps nothing on
    disk. owner: (pid, start ticks) of the process it shall end with. Errors: InvalidConfigurationError if it runs with other options, ShmSpaceError,
    StorageError, IllegalStateError (data in use by another cluster), VersionMismatchError, KafkaTimeoutError.
    """
    config.cluster_name(name)
    if brokers is not None and not isinstance(brokers, int):
        raise errors.InvalidConfigurationError(f"a number of brokers is an int, not {brokers!r}", key="brokers")
    given = {key: config.to_text(value) if not isinstance(value, str) else value for key, value in (cluster_config or {}).items()}
    config.cluster_config(given)
    directories = None if data_dirs is None else tuple(os.path.realpath(d) for d in data_dirs)
    options = m.StartOptions(
        cluster=name,
        brokers=brokers,
        data_dirs=directories,
        state_dir=directories[0] if directories else config.state_dir(name),
        config=given,
        owner_pid=owner[0] if owner else 0,
        owner_start_ticks=owner[1] if owner else 0,
        temporary=temporary,
    )
    deadline = time.monotonic() + timeout
    prefix = shm.prefix(name)
    with _turn(name, timeout):
        _refuse_other_version(name, prefix)
        control = _running(prefix)
        if control is not None and control.cluster_state in (lib.SL_CLUSTER_STOPPING, lib.SL_CLUSTER_DOWN):
            _wait_for_end(prefix, deadline)
            control = _running(prefix)
        if control is not None:
            _compare(name, options)
            return False
        _make_run_dir(config.run_dir(name))
        if not _start(options, deadline, timeout):
            _compare(name, options)
            return False
    return True


def _wait_for_end(prefix: str, deadline: float) -> None:
    """A cluster that is going down: until it is, or is up again because it could not."""
    while time.monotonic() < deadline:
        control = _running(prefix)
        if control is None or control.cluster_state in (lib.SL_CLUSTER_UP, lib.SL_CLUSTER_STARTING):
            return
        time.sleep(0.005)


def _compare(name: str, options: m.StartOptions) -> None:
    view = view_of(name)
    if view is None:
        return
    differences = []
    if options.brokers is not None and options.brokers != len(view.brokers):
        differences.append(f"{len(view.brokers)} broker{'s' * (len(view.brokers) != 1)}, not {options.brokers}")
    if options.data_dirs is not None and options.data_dirs != view.data_dirs:
        differences.append(f"data in {', '.join(view.data_dirs) or 'memory only'}, not in {', '.join(options.data_dirs) or 'memory only'}")
    have, want = config.to_strings(config.cluster_config(view.config)), config.to_strings(config.cluster_config(options.config))
    differences += [f"{key}={have[key]}, not {want[key]}" for key in options.config if have[key] != want[key]]
    if differences:
        raise errors.InvalidConfigurationError(
            f"cluster {name!r} runs already, with " + "; ".join(differences), hint=f"stop it first: `shmlog down --cluster {name}`"
        )


def _start(options: m.StartOptions, deadline: float, timeout: float) -> bool:
    """False: somebody lived whom nobody could see (forked just before its maker was killed, or started by an `up` that was interrupted)."""
    assert options.state_dir
    try:
        log_fd = spare.open_log(options.state_dir, "spare")
    except OSError as exc:
        hint = "name a place that can be written: `shmlog up --data DIR`"
        raise errors.StorageError(f"{exc.filename}: {exc.strerror}", path=exc.filename, hint=hint) from None
    ready, ready_write = os.pipe2(os.O_CLOEXEC)
    try:
        child = subprocess.Popen(
            spare.arguments(options, ready_write),
            stdin=subprocess.DEVNULL,
            stdout=log_fd,
            stderr=log_fd,
            cwd="/",
            env=spare.environment(),
            pass_fds=(ready_write,),
            start_new_session=True,  # it survives the terminal, and its Ctrl-C is not for it
        )
        child.returncode = 0  # it outlives us, or is waited for by _reap(): not a case for subprocess's warning
        _children.add(child.pid)
    finally:
        os.close(ready_write)
        os.close(log_fd)
    try:
        outcome = _read_outcome(ready, deadline)
    except TimeoutError:
        raise errors.KafkaTimeoutError(
            f"cluster {options.cluster!r} is not ready after {timeout:g} s; it goes on starting. Its logs are in {options.state_dir}/logs",
            timeout=timeout,
        ) from None
    finally:
        os.close(ready)
    if outcome is None or outcome.failure is not None:
        _reap(child.pid, 5.0)
        prefix = shm.prefix(options.cluster)
        if shm.identity(shm.object_name(prefix, "control")) is None:
            shm.remove_run_dir(config.run_dir(options.cluster))
        if outcome is None or outcome.failure is None:
            raise errors.BrokerNotRunningError(f"the cluster died while starting: {_last_line(options.state_dir)}")
        m.raise_failure(outcome.failure)
    return not outcome.already


def _read_outcome(fd: int, deadline: float) -> m.StartOutcome | None:
    data = b""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not poller.poll(left * 1000):
            raise TimeoutError
        piece = os.read(fd, 65536)
        if not piece:
            break
        data += piece
        with contextlib.suppress(ValueError):
            outcome = m.decode(data)
            assert isinstance(outcome, m.StartOutcome)
            return outcome
    return None


def _last_line(state_dir: str) -> str:
    """The last line of the newest log: what a start that died had to say."""
    newest: tuple[float, str] = (0.0, "")
    directory = os.path.join(state_dir, "logs")
    for entry in os.listdir(directory):
        path = os.path.join(directory, entry)
        with contextlib.suppress(OSError), open(path, errors="replace") as file:
            lines = file.read()[-4096:].strip().splitlines()
            if lines:
                newest = max(newest, (os.stat(path).st_mtime, f"{lines[-1]} ({path})"))
    return newest[1] or f"see {directory}"


# --- stopping ----------------------------------------------------------------------------------------------------------


def stop_cluster(
    name: str, force: bool = False, wipe: bool = False, *, timeout: float = STOP_TIMEOUT_S, data_dirs: Sequence[str] | None = None
) -> bool:
    """Controlled shutdown: True if it was stopped, False if it was down already. Nothing of the cluster is left in /dev/shm.

    What is in memory is written to disk first; where that is not possible a StorageError names how much, and everything stays as it was, unless
    `force` gives it up. A cluster whose processes were all killed is started for that, so that nothing appended is thrown away. wipe: its data too.
    """
    config.cluster_name(name)
    prefix = shm.prefix(name)
    if not wipe and not shm.names(prefix) and not os.path.isdir(config.run_dir(name)):
        return False
    with _turn(name, timeout):
        _refuse_other_version(name, prefix)
        view = view_of(name)
        stopped = False
        control = _running(prefix)
        code, found = shm.read_control(prefix)
        if control is None and code == lib.SL_OK and found.view_version and not force and found.cluster_state != lib.SL_CLUSTER_DOWN:
            # Memory of this boot without anybody to write it down.
            directory = view.state_dir if view else data_dirs[0] if data_dirs else config.state_dir(name)
            options = m.StartOptions(cluster=name, state_dir=directory, temporary=view is not None and view.temporary)
            _start(options, time.monotonic() + START_TIMEOUT_S, START_TIMEOUT_S)
            control = _running(prefix)
        if control is not None:
            stopped = True
            _shutdown(name, control, force, timeout)
        discard(name)
        if wipe:
            directories = [*view.data_dirs, view.state_dir] if view else [*(data_dirs or ()), config.state_dir(name)]
            for directory in dict.fromkeys(directories):
                _wipe(directory)
            for directory in m.directories_elsewhere(view).values() if view else ():
                shutil.rmtree(directory, ignore_errors=True)
    return stopped


def _shutdown(name: str, control: Any, force: bool, timeout: float) -> None:
    pidfds = _watch_all(control)
    try:
        with contextlib.suppress(errors.NoBrokersAvailable, errors.ClosedError), attach(config.Address(name), starting=True) as session:
            session.request(m.Shutdown(force, int(timeout * 1000)), timeout + 5)
        deadline = time.monotonic() + END_TIMEOUT_S
        for pidfd in pidfds:
            if not _ended(pidfd, deadline):
                proc.kill(pidfd)  # it has nothing left to do: the cluster is down
                _ended(pidfd, deadline + END_TIMEOUT_S)
    finally:
        for pidfd in pidfds:
            os.close(pidfd)
    _reap()


def _watch_all(control: Any) -> list[int]:
    watched = (proc.watch(process.pid, process.start_ticks) for process in control.processes)
    return [pidfd for pidfd in watched if pidfd is not None]


def _ended(pidfd: int, deadline: float) -> bool:
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(max(0.0, deadline - time.monotonic()) * 1000))


def _reap(ending: int = 0, timeout: float = 0.0) -> None:
    """Takes the exit status of spares that this process started, if they have ended; waits for the one that is ending."""
    deadline = time.monotonic() + timeout
    for pid in list(_children):
        try:
            while os.waitpid(pid, os.WNOHANG)[0] == 0:
                if pid != ending or time.monotonic() > deadline:
                    break
                time.sleep(0.002)
            else:
                _children.discard(pid)
        except ChildProcessError:  # a forked child of ours has this list too, or somebody else waited
            _children.discard(pid)


def discard(name: str) -> None:
    """Removes what there is of a cluster in memory, and ends what lives of it. For one that is down, or that is to be given up."""
    prefix = shm.prefix(name)
    view = view_of(name)
    lock_fd = _end_all(name, prefix)
    try:
        _mark_down(prefix)
        shm.remove_cluster(prefix)
        shm.remove_run_dir(config.run_dir(name))
    finally:
        if lock_fd >= 0:
            os.close(lock_fd)  # its file is gone: whoever waits for it, unseen by us, ends
    if view is not None and view.temporary:
        for directory in {*view.data_dirs, view.state_dir, *m.directories_elsewhere(view).values()}:
            shutil.rmtree(directory, ignore_errors=True)


def _end_all(name: str, prefix: str) -> int:
    """Kills whoever keeps the cluster going, until none of them does; returns the fd of the lock, held, so that nobody becomes active any more.

    The process table does not name those that were forked just now or left by an `up` that was interrupted: a spare is found behind its socket too, and
    whoever becomes active meanwhile lists itself. A standby that stays unseen owns nothing, and ends when it finds its lock removed.
    """
    lock_fd = -1
    deadline = time.monotonic() + END_TIMEOUT_S
    while True:
        code, control = shm.read_control(prefix)
        # Coordinators and the spare first, or they would heal what is taken down.
        pidfds = [*(_watch_all(control) if code == lib.SL_OK else ()), *_listeners(name)]
        for pidfd in pidfds:
            proc.kill(pidfd)
        for pidfd in pidfds:
            _ended(pidfd, deadline)
            os.close(pidfd)
        if lock_fd < 0:
            lock_fd = _try_lock(os.path.join(config.run_dir(name), shm.LOCK_NAME))
            if lock_fd >= 0:
                continue  # once more: whoever it was that had it
        if (not pidfds and (lock_fd >= 0 or not os.path.exists(os.path.join(config.run_dir(name), shm.LOCK_NAME)))) or time.monotonic() > deadline:
            return lock_fd
        time.sleep(0.002)


def _try_lock(path: str) -> int:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return -1
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return -1
    return fd


def _listeners(name: str) -> list[int]:
    """pidfds of who listens in the run directory: the kernel says who it is."""
    found = []
    for file, kind in (("spare.sock", socket.SOCK_SEQPACKET), ("coordinator.sock", socket.SOCK_STREAM)):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, kind) as sock:
            sock.setblocking(False)
            sock.connect(os.path.join(config.run_dir(name), file))
            pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            pidfd = proc.watch(pid, proc.start_ticks(pid)) if uid == os.geteuid() and pid != os.getpid() else None
            if pidfd is not None:
                found.append(pidfd)
    return found


def _mark_down(prefix: str) -> None:
    """Handles that are still open somewhere must not go on appending to memory that loses its name."""
    out = ffi.new("sl_cluster **")
    if lib.sl_cluster_open(prefix.encode(), out) == lib.SL_OK:
        lib.sl_put32(ffi.addressof(lib.sl_cluster_control(out[0]), "cluster_state"), lib.SL_CLUSTER_DOWN)
        lib.sl_wake_all(out[0], 0xFFFFFFFF)
        lib.sl_cluster_close(out[0])


def _wipe(directory: str) -> None:
    """Removes what is ours in a data or state directory, and the directory if nothing else is in it."""
    try:
        entries = os.listdir(directory)
    except FileNotFoundError:
        return
    for entry in entries:
        path = os.path.join(directory, entry)
        if entry.startswith(m.METADATA_FILE):
            os.unlink(path)
        elif entry == "logs":  # a name that others use too
            for log in filter(OUR_LOG.fullmatch, os.listdir(path)):
                os.unlink(os.path.join(path, log))
            with contextlib.suppress(OSError):
                os.rmdir(path)
        elif re.fullmatch(r"broker-\d+", entry):
            shutil.rmtree(path)
    with contextlib.suppress(OSError):
        os.rmdir(directory)


def remove_orphans() -> list[str]:
    """Removes embedded clusters whose program and processes were all killed; returns their names. `doctor` and the next embedded start do it."""
    removed = []
    for name in shm.clusters():
        with contextlib.suppress(errors.ShmlogError, OSError):
            if _running(shm.prefix(name)) is not None:
                continue
            view = view_of(name)
            if view is not None and view.owner_pid and not proc.alive(view.owner_pid, view.owner_start_ticks):
                discard(name)
                removed.append(name)
    return removed


