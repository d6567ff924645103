"""doctor: each check says what is wrong and how to mend it, and --fix touches only what is dead."""

from __future__ import annotations

import fcntl
import os
from typing import Any

import pytest

from shmlog import config, shm
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
