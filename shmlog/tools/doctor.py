"""`doctor`: what about this machine will hurt, each with the fix; and what dead clusters left in /dev/shm, which --fix removes.

Each check is a function that returns Findings; none asks a process. Stale memory is judged by locks, not by ages or pids: a cluster lives as long as
somebody holds the flock on the `lock` in its run directory. An object from an earlier boot cannot be in anybody's use.
"""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from shmlog import config, directories, lifecycle, proc, shm
from shmlog._ffi import ffi, lib
from shmlog.coordinator.store import SCHEMA_VERSION
from shmlog.errors import InvalidConfigurationError, NoBrokersAvailable, ShmlogError
from shmlog.messages import METADATA_FILE, BrokerView, ClusterView
from shmlog.tools import status

MIB, GIB = 2**20, 2**30
SHM_COMFORTABLE_BYTES = 256 * MIB  # below, busy partitions get small rings; Docker's default is 64 MiB
SHM_LEAST_BYTES = 8 * MIB
FILES_WANTED = 65536
MAPS_WANTED = 65530  # the kernel's own default

OK, WARNING, PROBLEM = "ok", "warning", "problem"


class Finding(NamedTuple):
    check: str
    level: str
    what: str
    fix: str = ""
    fixed: bool = False


def examine(fix: bool = False, cluster: str = config.DEFAULT_CLUSTER) -> Iterator[Finding]:
    """This machine, and the data directories of one cluster."""
    yield shm_size()
    yield open_files()
    yield memory_maps()
    yield from remove_ipc()
    yield permissions()
    yield disk_room()
    yield from data_directories(cluster)
    yield from stale_clusters(fix)


def shm_size(directory: str = shm.DIRECTORY) -> Finding:
    try:
        s = os.statvfs(directory)
    except OSError as exc:
        return Finding("shared memory", PROBLEM, f"{directory}: {exc.strerror}", "mount a tmpfs there: mount -t tmpfs tmpfs /dev/shm")
    total, free = s.f_blocks * s.f_frsize, s.f_bavail * s.f_frsize
    what = f"{directory} has {status.size(free)} free of {status.size(total)}"
    larger = "in a container: docker run --shm-size=1g; else: mount -o remount,size=2g /dev/shm"
    if free < SHM_LEAST_BYTES:
        return Finding("shared memory", PROBLEM, what, f"free some ('ls -l {directory}' shows who), or enlarge it; {larger}")
    if total < SHM_COMFORTABLE_BYTES:
        return Finding("shared memory", WARNING, what + ": it works, with small rings", larger)
    return Finding("shared memory", OK, what)


def open_files(limits: tuple[int, int] | None = None) -> Finding:
    soft, hard = limits or resource.getrlimit(resource.RLIMIT_NOFILE)
    what = f"{soft:,} open files at once, up to {hard:,}" if hard != resource.RLIM_INFINITY else f"{soft:,} open files at once"
    if hard != resource.RLIM_INFINITY and hard < FILES_WANTED:
        enough = max(1, (hard - 64) // 2)
        return Finding(
            "open files",
            WARNING,
            f"{what}: enough for about {enough:,} busy partitions with a log on disk",
            f"raise it: ulimit -Hn {FILES_WANTED}, or LimitNOFILE= in systemd",
        )
    return Finding("open files", OK, what + " (a cluster raises its own to the hard limit)")


def memory_maps(path: str = "/proc/sys/vm/max_map_count") -> Finding:
    try:
        with open(path) as file:
            count = int(file.read())
    except (OSError, ValueError):
        return Finding("memory maps", OK, f"{path} cannot be read; nothing to compare")
    if count < MAPS_WANTED:
        return Finding("memory maps", WARNING, f"vm.max_map_count is {count:,}", f"sysctl -w vm.max_map_count={MAPS_WANTED}")
    return Finding("memory maps", OK, f"vm.max_map_count is {count:,}")


def remove_ipc(
    paths: tuple[str, ...] = ("/etc/systemd/logind.conf", "/etc/systemd/logind.conf.d", "/usr/lib/systemd/logind.conf.d"), uid: int | None = None
) -> Iterator[Finding]:
    """logind deletes a normal user's shared memory when his last session ends, unless told otherwise; system users and root are spared."""
    uid = os.getuid() if uid is None else uid
    if uid < 1000:
        yield Finding("RemoveIPC", OK, "logind leaves the memory of system users alone")
        return
    if not os.path.isdir("/run/systemd/system"):
        yield Finding("RemoveIPC", OK, "systemd does not run here")
        return
    setting = "yes"  # the default
    files = []
    for path in paths:
        files += sorted(os.path.join(path, name) for name in os.listdir(path) if name.endswith(".conf")) if os.path.isdir(path) else [path]
    for path in files:
        try:
            with open(path) as file:
                for line in file:
                    key, _, value = line.partition("=")
                    if key.strip() == "RemoveIPC":
                        setting = value.strip().lower()
        except OSError:
            pass
    if setting in ("no", "false", "0", "off"):
        yield Finding("RemoveIPC", OK, "RemoveIPC=no: memory outlives your session")
        return
    if os.path.exists(f"/var/lib/systemd/linger/{_user(uid)}"):
        yield Finding("RemoveIPC", OK, "you linger: memory outlives your session")
        return
    yield Finding(
        "RemoveIPC",
        WARNING,
        "logind deletes your shared memory when your last session ends (RemoveIPC=yes); records not yet on disk would be lost",
        "loginctl enable-linger, or RemoveIPC=no in /etc/systemd/logind.conf",
    )


def _user(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def permissions(directory: str = shm.DIRECTORY, state: str | None = None) -> Finding:
    if not os.access(directory, os.W_OK | os.X_OK):
        return Finding("permissions", PROBLEM, f"{directory} is not writable for user {os.getuid()}", f"chmod 1777 {directory}")
    state = state or config.state_dir(config.DEFAULT_CLUSTER)
    existing = state
    while not os.path.exists(existing):
        existing = os.path.dirname(existing)
    if not os.access(existing, os.W_OK | os.X_OK):
        return Finding(
            "permissions",
            PROBLEM,
            f"{existing} is not writable for user {os.getuid()}",
            "name another place: `shmlog up --data DIR`, or set XDG_STATE_HOME",
        )
    return Finding("permissions", OK, f"{directory} and {existing} are writable")


def disk_room(state: str | None = None) -> Finding:
    path = state or config.state_dir(config.DEFAULT_CLUSTER)
    while not os.path.exists(path):
        path = os.path.dirname(path)
    usage = shutil.disk_usage(path)
    reserve = max(GIB, usage.total // 20)
    what = f"{status.size(usage.free)} free of {status.size(usage.total)} at {path}"
    if usage.free < reserve:
        return Finding(
            "disk", WARNING, f"{what}: logs stop growing below {status.size(reserve)}", "free some, or `shmlog up -c data.max.bytes=N` or --data DIR"
        )
    return Finding("disk", OK, what)


# --- where a cluster keeps its logs ------------------------------------------------------------------------------------


def data_directories(cluster: str) -> Iterator[Finding]:
    """Each of the cluster's data directories, as its metadata names them, in memory or on disk. Nothing for a cluster that has none yet."""
    try:
        view = _metadata(cluster)
    except ShmlogError as exc:
        yield Finding("data", PROBLEM, str(exc), exc.hint or "")
        return
    if view is None or not view.data_dirs:
        return
    sound = []
    for directory in view.data_dirs:
        brokers = [b for b in view.brokers.values() if os.path.dirname(b.directory) == directory]
        findings = [*_data_directory(directory, brokers, view)]
        yield from findings
        if not findings:
            sound.append(directory)
            yield Finding("data", OK, f"{directory}: {_brokers(brokers)}, {status.size(shutil.disk_usage(directory).free)} free")
    yield from _one_disk(sound)


def _metadata(cluster: str) -> ClusterView | None:
    try:
        with status.Attached(cluster) as attached:
            return attached.view()
    except NoBrokersAvailable:
        return status.last_data(cluster)


def _brokers(brokers: list[BrokerView]) -> str:
    return f"broker{'s' * (len(brokers) != 1)} {', '.join(str(b.id) for b in brokers)}" if brokers else "no broker"


def _data_directory(directory: str, brokers: list[BrokerView], view: ClusterView) -> Iterator[Finding]:
    """What is wrong with one; nothing: it is sound."""
    if not os.path.isdir(directory):
        what = f"{directory} {'is no directory' if os.path.exists(directory) else 'is missing'}; it has the logs of {_brokers(brokers)}"
        yield Finding("data", PROBLEM, what, "mount it; if it is lost, make an empty one: brokers fetch again what others have")
        return
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        what = f"{directory} is not writable for user {os.getuid()}"
        yield Finding("data", PROBLEM, what, f"chown -R {os.getuid()} {directory}; or mount it read-write")
        return
    newer = _newer_metadata(directory)
    if newer is not None:
        yield newer
    for broker in brokers:
        if not os.path.isdir(broker.directory):
            continue  # its first start makes it
        if not os.access(broker.directory, os.R_OK | os.W_OK | os.X_OK):
            what = f"{broker.directory} is not writable for user {os.getuid()}"
            yield Finding("data", PROBLEM, what, f"chown -R {os.getuid()} {broker.directory}")
            continue
        owner = directories.owner(broker.directory)
        if owner and owner != view.cluster_id:
            what = f"{broker.directory} belongs to cluster id {owner.hex()}, not to this one ({view.cluster_id.hex()})"
            yield Finding("data", PROBLEM, what, "move it away, or name the right directories in the right order with --data")
        elif (version := _newer_files(broker.directory)) is not None:
            what = f"{broker.directory} has files of layout {version}, this shmlog knows up to {lib.SL_DISK_VERSION}"
            yield Finding("data", PROBLEM, what, "use the version of shmlog that wrote them, or a later one")


def _newer_metadata(directory: str) -> Finding | None:
    """PRAGMA user_version, without sqlite, which would write: four bytes of the file's header, big-endian."""
    path = os.path.join(directory, METADATA_FILE)
    try:
        with open(path, "rb") as file:
            head = file.read(64)
    except OSError:
        return None  # only one directory has it
    version = int.from_bytes(head[60:64], "big")
    if not head.startswith(b"SQLite format 3\0") or version <= SCHEMA_VERSION:
        return None
    what = f"{path} has schema {version}, this shmlog knows up to {SCHEMA_VERSION}"
    return Finding("data", PROBLEM, what, "use the version of shmlog that wrote it, or a later one")


def _newer_files(directory: str) -> int | None:
    """By the newest file of each partition: whoever writes a newer layout goes on with it."""
    facts = ffi.new("sl_file_facts *")
    for entry in sorted(os.listdir(directory)):
        path = os.path.join(directory, entry)
        names = status.log_files(path)
        if names and lib.sl_file_inspect(os.fsencode(path), os.fsencode(names[-1]), facts) == lib.SL_E_VERSION:
            with open(os.path.join(path, names[-1]), "rb") as file:
                return int.from_bytes(file.read(12)[8:12], "little")
    return None


def _one_disk(data_dirs: list[str]) -> Iterator[Finding]:
    by_device: dict[int, list[str]] = {}
    for directory in data_dirs:
        by_device.setdefault(os.stat(directory).st_dev, []).append(directory)
    for together in by_device.values():
        if len(together) > 1:
            what = f"{' and '.join(together)} are on one file system: replicas in them are lost with it"
            yield Finding("data", WARNING, what, "give each --data a disk of its own")


# --- what dead clusters left -------------------------------------------------------------------------------------------


def stale_clusters(fix: bool = False, names: Iterable[str] | None = None) -> Iterator[Finding]:
    """All clusters of this user, or only those named."""
    running = []
    stale = False
    for name in shm.clusters() if names is None else names:
        try:
            if alive(name):
                running.append(name)
                continue
        except InvalidConfigurationError:
            yield Finding(
                "dead clusters",
                WARNING,
                f"/dev/shm has objects shmlog.{os.getuid()}.{name}*, a name that no cluster can have",
                "look at them, remove them",
            )
            continue
        stale = True
        yield _stale(name, fix)
    if not stale:
        yield Finding("dead clusters", OK, f"none; running: {', '.join(running)}" if running else "none")


def alive(cluster: str) -> bool:
    """Whether somebody holds the cluster's lock, is just starting or stopping it, or lives and is about to take the lock."""
    if any(_locked(os.path.join(config.run_dir(cluster), name)) for name in (shm.LOCK_NAME, "start.lock")):
        return True
    code, control = shm.read_control(shm.prefix(cluster))
    return code == lib.SL_OK and any(p.pid and proc.alive(p.pid, p.start_ticks) for p in control.processes)


def _locked(path: str) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # Held for an instant by us: whoever comes just now tries again.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _stale(cluster: str, fix: bool) -> Finding:
    prefix = shm.prefix(cluster)
    held = shm.used_bytes(prefix)
    unspilled = _unspilled(cluster)
    what = f"cluster {cluster!r} is dead and holds {status.size(held)} in {len(shm.names(prefix))} objects"
    if unspilled:
        # Not ours to throw away: `up` writes it to disk.
        return Finding(
            "dead clusters", WARNING, f"{what}; {unspilled:,} records of it are in memory only",
            f"`shmlog up --cluster {cluster}` saves them; `shmlog down --cluster {cluster}` then removes the memory",
        )  # fmt: skip
    if not fix:
        return Finding("dead clusters", WARNING, what, "`shmlog doctor --fix` removes it")
    lifecycle.discard(cluster)
    return Finding("dead clusters", OK, f"{what}: removed", fixed=True)


def _unspilled(cluster: str) -> int:
    """Records that only the memory of a dead cluster holds. 0 if it cannot be used any more (another boot, damaged), or is temporary."""
    try:
        with status.Attached(cluster) as attached:
            view = attached.view()
            if view.temporary:
                return 0
            total = 0
            for topic in view.topics.values():
                for p in topic.partitions:
                    code, o = attached.offsets(p.block)
                    if code == lib.SL_OK:
                        spills = topic.config.get("shmlog.spill", "true") != "false" and view.data_dirs
                        total += int(o.end) - int(max(o.spilled, o.log_start) if spills else o.log_start)
            return total
    except ShmlogError:
        return 0
