"""doctor: each check says what is wrong and how to mend it, and --fix touches only what is dead."""

from __future__ import annotations

import fcntl
import os
import shutil
from typing import Any

import msgspec
import pytest

from shmlog import config, messages, shm
from shmlog._ffi import lib
from shmlog.coordinator.store import Store
from shmlog.tools import doctor


def of(hand: Any, fix: bool = False) -> list[doctor.Finding]:
    """What is found of this one: other tests' clusters are none of ours."""
    return [f for f in doctor.stale_clusters(fix, [hand.name]) if f.fixed or (hand.name in f.what and f.level != doctor.OK)]


def test_a_dead_cluster_is_found_and_only_fix_removes_it(hand: Any) -> None:
    (found,) = of(hand)
    assert found.level == doctor.WARNING and "--fix" in found.fix and not found.fixed
    assert shm.names(hand.prefix)
    (found,) = of(hand, fix=True)
    assert found.fixed and shm.names(hand.prefix) == []


def test_records_that_only_memory_holds_are_not_thrown_away(hand: Any) -> None:
    hand.append(b"a", b"b")
    (found,) = of(hand, fix=True)
    assert "2 records" in found.what and "shmlog up" in found.fix and not found.fixed
    assert shm.names(hand.prefix)


@pytest.mark.parametrize("name", [shm.LOCK_NAME, "start.lock"])
def test_a_held_lock_means_alive(hand: Any, name: str) -> None:
    directory = config.run_dir(hand.name)
    os.makedirs(directory)
    with open(os.path.join(directory, name), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert of(hand, fix=True) == []
    assert of(hand) != []


def test_a_living_process_means_alive(hand: Any) -> None:
    hand.keep_alive()
    assert of(hand, fix=True) == []


def test_a_stray_object_with_our_name_is_told_and_left_alone(tmp_path: Any) -> None:
    path = f"/dev/shm/shmlog.{os.getuid()}.not a cluster {os.getpid()}"
    with open(path, "w"):
        pass
    try:
        name = f"not a cluster {os.getpid()}"
        assert any(name in f.what for f in doctor.stale_clusters(fix=True, names=[name]))
        assert any(name in f.what for f in doctor.stale_clusters())
        assert os.path.exists(path)
    finally:
        os.unlink(path)


def test_memory_that_was_never_finished_is_stale(hand: Any) -> None:
    hand.poke(hand.object("control"), 92, bytes(4))
    (found,) = of(hand, fix=True)
    assert found.fixed and shm.names(hand.prefix) == []


def test_dev_shm_that_is_missing_or_small_comes_with_the_fix(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = doctor.shm_size(str(tmp_path / "nowhere"))
    assert found.level == doctor.PROBLEM and "mount" in found.fix
    monkeypatch.setattr(doctor, "SHM_COMFORTABLE_BYTES", 1 << 60)
    assert "--shm-size" in doctor.shm_size().fix
    monkeypatch.setattr(doctor, "SHM_LEAST_BYTES", 1 << 60)
    assert doctor.shm_size().level == doctor.PROBLEM


def test_limits_that_are_low_come_with_the_fix(tmp_path: Any) -> None:
    assert "ulimit" in doctor.open_files((1024, 4096)).fix
    assert doctor.open_files((1024, 1 << 20)).level == doctor.OK
    (tmp_path / "count").write_text("1000\n")
    assert "sysctl" in doctor.memory_maps(str(tmp_path / "count")).fix


def test_remove_ipc_is_told_to_normal_users_only(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "isdir", lambda path, real=os.path.isdir: path == "/run/systemd/system" or real(path))
    conf = tmp_path / "logind.conf"
    conf.write_text("[Login]\n#RemoveIPC=no\n")
    (found,) = doctor.remove_ipc((str(conf),), uid=54321)
    assert found.level == doctor.WARNING and "enable-linger" in found.fix
    conf.write_text("[Login]\nRemoveIPC=no\n")
    (found,) = doctor.remove_ipc((str(conf),), uid=54321)
    assert found.level == doctor.OK
    (found,) = doctor.remove_ipc((str(conf),), uid=0)
    assert found.level == doctor.OK


def test_a_place_that_cannot_be_written_comes_with_the_fix(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(tmp_path))
    found = doctor.permissions(state=str(tmp_path / "a" / "b"))
    assert found.level == doctor.PROBLEM and "--data" in found.fix


def test_doctor_exits_0_unless_something_must_be_mended(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run("doctor", "--json")
    assert result.code == 0 and {"check", "level", "what", "fix", "fixed"} <= result.json["findings"][0].keys()
    monkeypatch.setattr(doctor, "SHM_LEAST_BYTES", 1 << 60)
    result = run("doctor")
    assert result.code == 1 and "FAIL" in result.out and "->" in result.out


# --- data directories --------------------------------------------------------------------------------------------------


@pytest.fixture
def spread(three: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The three brokers' directories in three data directories."""
    data = [str(tmp_path / f"data-{n}") for n in range(3)]
    brokers = {n: messages.BrokerView(n, 4 + n, 1, os.path.join(data[n], f"broker-{n}")) for n in range(3)}
    for n in range(3):
        os.makedirs(brokers[n].directory)
        (tmp_path / f"data-{n}" / f"broker-{n}" / "lock").write_text(three.cluster_id.hex() + "\n")
    three.view = msgspec.structs.replace(three.view, version=2, data_dirs=tuple(data), brokers=brokers)
    shm.create_view(three.prefix, 2, messages.encode_view(three.view), cluster_id=three.cluster_id)
    three.control.view_version = 2
    three.data = data
    return three


def data_of(hand: Any, level: str) -> list[doctor.Finding]:
    return [f for f in doctor.data_directories(hand.name) if f.level == level]


def test_sound_data_directories_are_named_with_their_brokers_and_one_disk_is_a_warning(spread: Any) -> None:
    assert data_of(spread, doctor.PROBLEM) == []
    assert [f.what.split(",")[0] for f in data_of(spread, doctor.OK)] == [f"{d}: broker {n}" for n, d in enumerate(spread.data)]
    (warning,) = data_of(spread, doctor.WARNING)
    assert warning.what.startswith(" and ".join(spread.data)) and "one file system" in warning.what and "disk of its own" in warning.fix


def test_directories_on_disks_of_their_own_are_no_warning(spread: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.stat
    devices = {d: os.stat_result((*real(d)[:2], 1000 + n, *real(d)[3:])) for n, d in enumerate(spread.data)}
    monkeypatch.setattr(os, "stat", lambda path, *rest, **more: devices.get(path) or real(path, *rest, **more))
    assert data_of(spread, doctor.WARNING) == []


def test_a_data_directory_that_is_missing_or_a_file_is_a_problem(spread: Any) -> None:
    shutil.rmtree(spread.data[1])
    (found,) = data_of(spread, doctor.PROBLEM)
    assert f"{spread.data[1]} is missing; it has the logs of broker 1" in found.what and "mount it" in found.fix
    with open(spread.data[1], "w"):
        pass
    assert "is no directory" in data_of(spread, doctor.PROBLEM)[0].what


def test_a_directory_of_another_cluster_is_a_problem(spread: Any) -> None:
    with open(os.path.join(spread.data[2], "broker-2", "lock"), "w") as file:
        file.write("ab" * 16 + "\n")
    (found,) = data_of(spread, doctor.PROBLEM)
    assert f"broker-2 belongs to cluster id {'ab' * 16}, not to this one ({spread.cluster_id.hex()})" in found.what


def test_files_of_a_newer_layout_are_a_problem(spread: Any) -> None:
    path = spread.write_file(0, [b"x"])
    at = os.path.join(spread.data[0], "broker-0", os.path.basename(spread.dir))
    shutil.copytree(spread.dir, at)
    with open(path, "rb") as file:
        header = bytearray(file.read(252))
    header[8:12] = (7).to_bytes(4, "little")
    spread.poke(os.path.join(at, os.path.basename(path)), 0, bytes(header) + lib.sl_crc32c(0, bytes(header), 252).to_bytes(4, "little"))
    (found,) = data_of(spread, doctor.PROBLEM)
    assert "has files of layout 7, this shmlog knows up to 1" in found.what and "version of shmlog that wrote them" in found.fix


def test_metadata_of_a_newer_schema_is_a_problem(spread: Any) -> None:
    Store(spread.data[0]).close()
    assert data_of(spread, doctor.PROBLEM) == []
    with open(os.path.join(spread.data[0], "cluster.sqlite3"), "r+b") as file:
        file.seek(60)
        file.write((9).to_bytes(4, "big"))
    (found,) = data_of(spread, doctor.PROBLEM)
    assert "has schema 9, this shmlog knows up to 1" in found.what


def test_a_data_directory_that_cannot_be_written_is_a_problem(spread: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for closed in (spread.data[1], os.path.join(spread.data[2], "broker-2")):
        monkeypatch.setattr(os, "access", lambda path, mode, closed=closed: str(path) != closed)
        (found,) = data_of(spread, doctor.PROBLEM)
        assert f"{closed} is not writable for user" in found.what and "chown" in found.fix


def test_a_cluster_without_any_data_says_nothing_about_it() -> None:
    assert list(doctor.data_directories(f"none-{os.getpid()}")) == []
