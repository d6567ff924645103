"""Objects in /dev/shm: made whole or not at all, found by name, never believed when they are not ours or not of now."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shmlog import errors, shm
from shmlog._ffi import ffi, lib

ID = b"c" * 16
GIB = 2**30


@pytest.fixture
def prefix() -> Iterator[str]:
    prefix = shm.prefix(f"s{os.getpid()}-{secrets.token_hex(4)}")
    yield prefix
    shm.remove_cluster(prefix)


def path(prefix: str, suffix: str) -> str:
    return shm.DIRECTORY + shm.object_name(prefix, suffix)


def test_an_object_has_its_size_mode_and_contents_whatever_the_umask(prefix: str) -> None:
    old = os.umask(0o777)
    try:
        shm.create(shm.object_name(prefix, "x"), lib.SL_KIND_VIEW, 8192, cluster_id=ID, body=b"hello")
    finally:
        os.umask(old)
    status = os.stat(path(prefix, "x"))
    assert status.st_mode & 0o777 == 0o600
    assert status.st_size == 8192
    data = shm.read(shm.object_name(prefix, "x"))
    assert data is not None
    assert data[128:133] == b"hello"
    assert shm.checked(data, lib.SL_KIND_VIEW) == lib.SL_OK
    assert shm.checked(data, lib.SL_KIND_ROWS) == lib.SL_E_DAMAGED


def test_a_name_is_given_once(prefix: str) -> None:
    name = shm.object_name(prefix, "x")
    shm.create(name, lib.SL_KIND_VIEW, 4096, cluster_id=ID)
    with pytest.raises(FileExistsError):
        shm.create(name, lib.SL_KIND_VIEW, 4096, cluster_id=ID)
    assert shm.unlink(name)
    assert not shm.unlink(name)
    assert shm.read(name) is None


def test_no_room_is_an_error_with_numbers_and_leaves_nothing(prefix: str) -> None:
    size = shm.free_bytes() + 64 * GIB
    with pytest.raises(errors.ShmSpaceError) as caught:
        shm.create(shm.object_name(prefix, "x"), lib.SL_KIND_VIEW, size, cluster_id=ID)
    assert caught.value.needed_bytes == size
    assert caught.value.free_bytes is not None
    assert caught.value.free_bytes < size
    assert "/dev/shm" in caught.value.hint
    assert shm.names(prefix) == []


def test_no_fd_stays_open(prefix: str) -> None:
    before = os.listdir("/proc/self/fd")
    shm.create_table(prefix, shm.ROWS, cluster_id=ID)
    shm.create_view(prefix, 3, b"payload", cluster_id=ID)
    shm.read_view(prefix, 3)
    shm.grow_table(prefix, shm.ROWS, 64, 65)
    assert os.listdir("/proc/self/fd") == before


def test_a_table_takes_memory_for_its_allocated_entries_only_and_grows_in_steps(prefix: str) -> None:
    shm.create_table(prefix, shm.PARTITIONS, cluster_id=ID)
    small = os.stat(path(prefix, "partitions")).st_blocks * 512
    assert small <= 64 * 1024 + 8192
    assert shm.grow_table(prefix, shm.PARTITIONS, 64, 10) == 64
    assert shm.grow_table(prefix, shm.PARTITIONS, 64, 65) == 128
    assert os.stat(path(prefix, "partitions")).st_blocks * 512 >= small + 64 * 1024
    assert shm.grow_table(prefix, shm.PARTITIONS, 128, 16384) == 16384
    with pytest.raises(errors.ShmSpaceError):
        huge = shm.Table("partitions", lib.SL_KIND_PARTITIONS, 2**40, 16384)
        shm.grow_table(prefix, huge, 64, 128)


def test_a_view_is_read_back_or_not_at_all(prefix: str) -> None:
    payload = os.urandom(100_000)
    shm.create_view(prefix, 7, payload, cluster_id=ID)
    found = shm.read_view(prefix, 7)
    assert found is not None
    assert bytes(found) == payload
    assert shm.read_view(prefix, 8) is None
    for position in (0, 20, 100, 138, 5000):  # magic, boot id, owner lock (not covered by a CRC: frozen text), CRC, payload
        with open(path(prefix, "v7"), "r+b") as file:
            file.seek(position)
            byte = file.read(1)
            file.seek(position)
            file.write(bytes([byte[0] ^ 1]))
        assert (shm.read_view(prefix, 7) is None) == (position != 100), position
        with open(path(prefix, "v7"), "r+b") as file:
            file.seek(position)
            file.write(byte)
    os.truncate(path(prefix, "v7"), 60_000)
    assert shm.read_view(prefix, 7) is None


def test_an_object_whose_maker_died_is_not_believed(prefix: str) -> None:
    shm.create(shm.object_name(prefix, "x"), lib.SL_KIND_VIEW, 4096, cluster_id=ID)
    with open(path(prefix, "x"), "r+b") as file:
        file.seek(ffi.offsetof("sl_object_header", "state"))
        file.write(bytes(4))
    data = shm.read(shm.object_name(prefix, "x"))
    assert data is not None
    assert shm.checked(data, lib.SL_KIND_VIEW) == lib.SL_E_HALFMADE


def test_control_of_another_layout_is_known_by_its_frozen_header(prefix: str) -> None:
    assert shm.read_control(prefix) == (lib.SL_E_NOENT, None)
    shm.create(shm.object_name(prefix, "control"), lib.SL_KIND_CONTROL, ffi.sizeof("sl_control"), cluster_id=ID)
    code, control = shm.read_control(prefix)
    assert code == lib.SL_OK
    assert bytes(ffi.buffer(control.header.owner_lock)).rstrip(b"\0") == b"lock"
    header = ffi.new("sl_object_header *", control.header)
    header.layout_version = 999
    header.header_crc = lib.sl_crc32c(0, header, ffi.offsetof("sl_object_header", "header_crc"))
    with open(path(prefix, "control"), "r+b") as file:
        file.write(bytes(ffi.buffer(header)))
    code, control = shm.read_control(prefix)
    assert code == lib.SL_E_VERSION
    assert control.header.layout_version == 999


def test_a_cluster_is_listed_and_removed_without_touching_its_neighbour(prefix: str) -> None:
    neighbour = prefix + "x"
    shm.create_view(prefix, 1, b"mine", cluster_id=ID)
    shm.create_table(prefix, shm.WAITS, cluster_id=ID)
    shm.create_view(neighbour, 1, b"yours", cluster_id=ID)
    try:
        name = prefix.rpartition(".")[2]
        assert {name, name + "x"} <= set(shm.clusters())
        assert shm.names(prefix) == [f"{prefix}.v1", f"{prefix}.waits"]
        assert shm.used_bytes(prefix) > 0
        assert shm.remove_cluster(prefix) == 2
        assert shm.names(neighbour) == [f"{neighbour}.v1"]
    finally:
        shm.remove_cluster(neighbour)


def test_a_run_directory_that_is_made_anew_while_the_old_one_goes_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    directory = tmp_path / "shmlog.0.c"
    directory.mkdir()
    (directory / "start.lock").touch()
    (tmp_path / ".shmlog.0.c.gone.1").mkdir()  # of one who was killed over it
    remove = shutil.rmtree

    def meanwhile(path: str, **options: Any) -> None:
        with contextlib.suppress(FileExistsError):
            directory.mkdir()  # by `up`, which had waited for the lock
            (directory / "start.lock").touch()
        remove(path, **options)

    monkeypatch.setattr(shutil, "rmtree", meanwhile)
    shm.remove_run_dir(f"{directory}/")
    assert [path.name for path in tmp_path.rglob("*")] == ["shmlog.0.c", "start.lock"]
    shm.remove_run_dir(f"{tmp_path}/nothing/")
