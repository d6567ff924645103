"""Shared-memory objects: making, reading, growing, finding and removing them. The one import of posix_ipc.

An object is `/shmlog.<uid>.<cluster>.<suffix>` and opens with the frozen header of csrc/format.h. It is made in an order that leaves something
harmless at each step: O_EXCL, mode by fchmod (the umask would cut it), real memory by posix_fallocate (a full /dev/shm is an error here and never a
SIGBUS later), contents, and last `state` = READY. Whoever finds one that is not READY treats it as not there; the coordinator removes it.

Python maps nothing: objects are written and read through their fd (Python's mmap would keep one fd per map), and the C core does the mapping.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import struct
from collections.abc import Iterable
from typing import Any, NamedTuple

import posix_ipc

from shmlog import config
from shmlog._ffi import check, ffi, lib
from shmlog.errors import ShmSpaceError

DIRECTORY = "/dev/shm"
MODE = 0o600
LOCK_NAME = "lock"  # below the run directory; its flock is held while the cluster has an active coordinator

GROW_ENTRIES = 64


class Table(NamedTuple):
    """One of the objects that grow."""

    suffix: str
    kind: int
    entry_bytes: int
    max_entries: int

    @property
    def max_bytes(self) -> int:
        return int(lib.SL_TABLE_HEADER_BYTES) + self.max_entries * self.entry_bytes


TABLES = (
    Table("partitions", lib.SL_KIND_PARTITIONS, ffi.sizeof("sl_partition"), lib.SL_MAX_PARTITIONS),
    Table("waits", lib.SL_KIND_WAITS, ffi.sizeof("sl_waits"), lib.SL_MAX_PARTITIONS),
    Table("rows", lib.SL_KIND_ROWS, ffi.sizeof("sl_row"), lib.SL_MAX_ROWS),
    Table("meters", lib.SL_KIND_METERS, ffi.sizeof("sl_meter"), lib.SL_MAX_METERS),
)
PARTITIONS, WAITS, ROWS, METERS = TABLES


# --- names -------------------------------------------------------------------------------------------------------------


def prefix(cluster: str, uid: int | None = None) -> str:
    return f"/shmlog.{os.getuid() if uid is None else uid}.{config.cluster_name(cluster)}"


def object_name(prefix: str, suffix: str) -> str:
    return f"{prefix}.{suffix}"


def names(prefix: str) -> list[str]:
    """All objects of one cluster. Its run directory has the prefix alone as its name and is not among them."""
    start = prefix[1:] + "."
    return sorted("/" + name for name in os.listdir(DIRECTORY) if name.startswith(start))


def clusters(uid: int | None = None) -> list[str]:
    """Names of all clusters that this user has anything of in /dev/shm, running or dead."""
    start = f"shmlog.{os.getuid() if uid is None else uid}."
    found = {name[len(start) :].partition(".")[0] for name in os.listdir(DIRECTORY) if name.startswith(start)}
    return sorted(found - {""})


def free_bytes() -> int:
    status = os.statvfs(DIRECTORY)
    return status.f_bavail * status.f_frsize


# --- making ------------------------------------------------------------------------------------------------------------


def create(name: str, kind: int, size: int, *, cluster_id: bytes, object_id: int = 0, body: bytes = b"", allocate: int | None = None) -> None:
    """Makes an object of `size` bytes, of which the first `allocate` (all) get memory: the frozen header, then `body`, then zeroes.

    FileExistsError if there is one already; ShmSpaceError, and then nothing is left. A death in here leaves an object that is not READY.
    """
    header_bytes = ffi.sizeof("sl_object_header")
    allocate = size if allocate is None else allocate
    header = ffi.new("sl_object_header *")
    check(lib.sl_object_format(header, size, kind, object_id, cluster_id, LOCK_NAME.encode()))
    image = ffi.buffer(header, header_bytes)
    try:
        shm = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=MODE)
    except posix_ipc.ExistentialError:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name) from None
    try:
        os.fchmod(shm.fd, MODE)
        os.ftruncate(shm.fd, size)
        _allocate(shm.fd, 0, allocate, name)
        _write(shm.fd, bytes(image) + body)
        lib.sl_object_ready(header)
        state_position = ffi.offsetof("sl_object_header", "state")
        os.pwrite(shm.fd, image[state_position : state_position + 4], state_position)
    except BaseException:
        posix_ipc.unlink_shared_memory(name)
        raise
    finally:
        shm.close_fd()


def create_table(prefix: str, table: Table, *, cluster_id: bytes, entries: int = GROW_ENTRIES) -> None:
    """A table is as long as it may ever become, but only its first `allocated` entries have memory; see grow_table()."""
    header_bytes = ffi.sizeof("sl_object_header")
    rest = ffi.new("sl_table *")
    rest.allocated = entries
    create(
        object_name(prefix, table.suffix),
        table.kind,
        table.max_bytes,
        cluster_id=cluster_id,
        body=bytes(ffi.buffer(rest))[header_bytes:],
        allocate=lib.SL_TABLE_HEADER_BYTES + entries * table.entry_bytes,
    )


def grow_table(prefix: str, table: Table, allocated: int, entries: int) -> int:
    """Backs at least `entries` entries with memory; returns how many there are now, which the caller then stores (release) as `allocated`.

    Idempotent: a coordinator that dies before that store leaves memory that its successor allocates again, which is no change.
    """
    if entries <= allocated:
        return allocated
    wanted = min(-(-entries // GROW_ENTRIES) * GROW_ENTRIES, table.max_entries)
    name = object_name(prefix, table.suffix)
    shm = posix_ipc.SharedMemory(name)
    try:
        start = lib.SL_TABLE_HEADER_BYTES + allocated * table.entry_bytes
        _allocate(shm.fd, start, (wanted - allocated) * table.entry_bytes, name)
    finally:
        shm.close_fd()
    return wanted


def _allocate(fd: int, position: int, size: int, name: str) -> None:
    while True:
        try:
            os.posix_fallocate(fd, position, size)
            return
        except InterruptedError:
            continue
        except OSError as exc:
            if exc.errno not in (errno.ENOSPC, errno.ENOMEM):
                raise
            free = free_bytes()
            raise ShmSpaceError(
                f"/dev/shm has {free:,} bytes free, {name} needs {size:,}", needed_bytes=size, free_bytes=free
            ) from None


def _write(fd: int, data: bytes) -> None:
    view, position = memoryview(data), 0
    while position < len(view):
        position += os.pwrite(fd, view[position:], position)


# --- reading -----------------------------------------------------------------------------------------------------------


def read(name: str, limit: int = 2**30) -> bytes | None:
    """A copy of an object's bytes (of the first `limit`), or None if there is none of that name. PermissionError for a stranger's."""
    try:
        shm = posix_ipc.SharedMemory(name, read_only=True)
    except posix_ipc.ExistentialError:
        return None
    except posix_ipc.PermissionsError:
        raise PermissionError(errno.EACCES, "belongs to another user", name) from None
    try:
        status = os.fstat(shm.fd)
        if not owned(status):
            raise PermissionError(errno.EACCES, f"belongs to user {status.st_uid}", name)
        size, pieces, position = min(status.st_size, limit), [], 0
        while position < size:
            piece = os.pread(shm.fd, size - position, position)
            if not piece:
                break
            pieces.append(piece)
            position += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
    finally:
        shm.close_fd()


def owned(status: os.stat_result) -> bool:
    """As the C core: ours, or of a group that shares it; a stranger's object that merely has our name is not believed."""
    if status.st_uid == os.geteuid() or os.geteuid() == 0:
        return True
    return bool(status.st_mode & 0o040) and not status.st_mode & 0o002


def identity(name: str) -> tuple[int, int] | None:
    """What tells an object from a later one of the same name: (device, inode); None if there is none."""
    try:
        status = os.stat(DIRECTORY + name)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def checked(data: bytes, kind: int, size: int | None = None) -> int:
    """The result code of sl_object_check() for a copy; `size` is the object's whole size if the copy is only its beginning."""
    return int(lib.sl_object_check(ffi.from_buffer(data), len(data) if size is None else size, kind))


def read_control(prefix: str) -> tuple[int, Any]:
    """(code, a private copy of sl_control or None). Code SL_E_NOENT, VERSION, BOOT, HALFMADE, DAMAGED, OWNER: then the copy may still be there, and
    of it only the frozen header may be believed."""
    try:
        data = read(object_name(prefix, "control"))
    except PermissionError:
        return int(lib.SL_E_OWNER), None
    if data is None:
        return int(lib.SL_E_NOENT), None
    if len(data) < ffi.sizeof("sl_control"):
        return int(lib.SL_E_HALFMADE), None
    control = ffi.new("sl_control *")
    ffi.memmove(control, data, ffi.sizeof("sl_control"))
    return checked(data, lib.SL_KIND_CONTROL), control


# --- views: object v<n> = frozen header, u64 payload bytes, u32 CRC32C, u32 0, payload --------------------------------------

_VIEW_HEAD = struct.Struct("<QII")


def view_name(prefix: str, version: int) -> str:
    return object_name(prefix, f"v{version}")


def create_view(prefix: str, version: int, payload: bytes, *, cluster_id: bytes) -> None:
    """Immutable once it is READY; in force once control.view_version names it."""
    body = _VIEW_HEAD.pack(len(payload), lib.sl_crc32c(0, payload, len(payload)), 0) + payload
    size = ffi.sizeof("sl_object_header") + len(body)
    create(view_name(prefix, version), lib.SL_KIND_VIEW, size, cluster_id=cluster_id, object_id=version, body=body)


def read_view(prefix: str, version: int) -> memoryview | None:
    """The payload, from a private copy and checked; None if the object is not there, not whole or damaged."""
    data = read(view_name(prefix, version))
    start = ffi.sizeof("sl_object_header") + _VIEW_HEAD.size
    if data is None or len(data) < start or checked(data, lib.SL_KIND_VIEW) != lib.SL_OK:
        return None
    length, crc, _ = _VIEW_HEAD.unpack_from(data, start - _VIEW_HEAD.size)
    payload = memoryview(data)[start : start + length]
    if len(payload) != length or lib.sl_crc32c(0, ffi.from_buffer(payload), length) != crc:
        return None
    return payload


# --- removing ----------------------------------------------------------------------------------------------------------


def unlink(name: str) -> bool:
    """Whether there was one. Whoever has it mapped keeps it."""
    try:
        posix_ipc.unlink_shared_memory(name)
    except posix_ipc.ExistentialError:
        return False
    return True


def remove_cluster(prefix: str, keep: Iterable[str] = ()) -> int:
    """Unlinks every object of a cluster; the caller knows that nobody runs it. `control` goes first: without it nobody attaches to the rest."""
    kept = set(keep)
    control = object_name(prefix, "control")
    found = [name for name in names(prefix) if name not in kept]
    return sum(unlink(name) for name in sorted(found, key=lambda name: name != control))


def remove_run_dir(directory: str) -> None:
    """Takes a run directory away in one step: whoever waits for its lock makes it anew at once, and what he makes is not removed with the old one."""
    above, name = os.path.split(directory.rstrip("/"))
    gone = f".{name}.gone."
    with contextlib.suppress(FileNotFoundError):
        os.rename(directory.rstrip("/"), os.path.join(above, f"{gone}{os.getpid()}"))
    for left in os.listdir(above):  # also of one who was killed here
        if left.startswith(gone):
            shutil.rmtree(os.path.join(above, left), ignore_errors=True)


def used_bytes(prefix: str) -> int:
    """Memory that a cluster's objects take."""
    total = 0
    for name in names(prefix):
        try:
            total += os.stat(DIRECTORY + name).st_blocks * 512
        except FileNotFoundError:
            pass  # unlinked meanwhile
    return total
