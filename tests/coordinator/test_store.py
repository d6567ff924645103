"""The metadata on disk: a real database, killed for real."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
from pathlib import Path

import msgspec
import pytest

from shmlog import errors
from shmlog.coordinator import metadata
from shmlog.coordinator.store import BackgroundStore, Store
from shmlog.messages import ClusterView, StartOptions, TopicSpec

BOOT = b"b" * 16


def view_of(*topics: str) -> ClusterView:
    view = metadata.new_cluster(StartOptions("c", 1, ("/data",), "/data"), b"c" * 16)
    return metadata.create_topics(view, [TopicSpec(name) for name in topics], lambda: os.urandom(16)).view


def test_a_new_directory_holds_nothing(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "deep" / "data"))
    assert store.load() is None
    store.close()


def test_what_was_written_is_loaded(tmp_path: Path) -> None:
    first, second = view_of("a", "b"), view_of("b", "c")
    store = Store(str(tmp_path))
    store.begin(BOOT, 7, first)
    store.write(second)
    store.close()
    store = Store(str(tmp_path))
    assert store.load() == (second, BOOT, 7, False)
    store.mark_clean(second)
    store.close()
    store = Store(str(tmp_path))
    loaded = store.load()
    assert loaded is not None
    assert loaded.clean
    store.begin(BOOT, 8, loaded.view)
    store.close()
    store = Store(str(tmp_path))
    loaded = store.load()
    assert loaded is not None
    assert not loaded.clean
    store.close()


def test_a_second_cluster_on_the_directory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shmlog.coordinator.store.BUSY_S", 0.05)
    store = Store(str(tmp_path))
    with pytest.raises(errors.IllegalStateError, match="in use by another cluster"):
        Store(str(tmp_path))
    store.close()


def test_a_newer_schema_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    Store(str(tmp_path)).close()
    path = tmp_path / "cluster.sqlite3"
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version=99")
    db.close()
    before = path.read_bytes()
    with pytest.raises(errors.VersionMismatchError) as caught:
        Store(str(tmp_path))
    assert (caught.value.found, caught.value.supported) == (99, 1)
    assert path.read_bytes() == before


def test_damage_is_a_typed_error_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "cluster.sqlite3").write_bytes(b"this is no database" * 1000)
    with pytest.raises(errors.StorageError, match=r"cluster\.sqlite3"):
        Store(str(tmp_path))


def test_a_directory_that_cannot_be_made_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.StorageError, match="file"):
        Store(str(tmp_path / "file" / "data"))


def test_a_kill_leaves_the_state_before_or_after_a_write_and_frees_the_lock(tmp_path: Path) -> None:
    views = [msgspec.structs.replace(view_of(*(f"t{i}" for i in range(n))), version=n) for n in range(50)]
    ready, ready_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            store = Store(str(tmp_path))
            store.begin(BOOT, 1, views[0])
            while True:
                for view in views:
                    store.write(view)
                    os.write(ready_write, b".")
        finally:
            os._exit(1)
    os.close(ready_write)
    for _ in range(20):
        assert os.read(ready, 1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(ready)
    store = Store(str(tmp_path))
    loaded = store.load()
    assert loaded is not None
    assert loaded.view == views[loaded.view.version]
    store.close()


def test_the_background_writes_the_newest_and_tells_when(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.begin(BOOT, 1, view_of())
    told = threading.Event()
    background = BackgroundStore(store, 0, told.set)
    for version in range(1, 30):
        last = msgspec.structs.replace(view_of("t"), version=version)
        background.submit(last)
    assert background.wait_stored(29, 20)
    assert told.wait(20)
    background.close(last)
    store = Store(str(tmp_path))
    loaded = store.load()
    assert loaded is not None
    assert (loaded.view, loaded.clean) == (last, True)
    store.close()


def test_a_failing_disk_stops_nothing_and_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BackgroundStore, "RETRY_S", 0.01)
    store = Store(str(tmp_path))
    store.begin(BOOT, 1, view_of())
    real, failures = store.write, [errors.StorageError("EIO"), errors.StorageError("EIO")]

    def write(view: ClusterView) -> None:
        if failures:
            raise failures.pop()
        real(view)

    monkeypatch.setattr(store, "write", write)
    background = BackgroundStore(store, 0, lambda: None)
    background.submit(msgspec.structs.replace(view_of(), version=1))
    assert background.wait_stored(1, 20)
    assert background.error is None
    background.close(None)
