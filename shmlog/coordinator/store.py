"""The metadata on disk: one sqlite3 database in the first data directory.

A decision is in force when it stands in shared memory; this follows behind (BackgroundStore, one thread), and only replies to topic changes wait for
it. It is what a cluster begins with after a reboot. WAL and synchronous=FULL: what write() returned from survives a power cut. locking_mode=EXCLUSIVE:
a second cluster on the same directory gets a typed error, and the lock drops with this process.

Tables: meta (key, value) holds the view without its topics, the boot it belongs to, and whether it was closed orderly; topic (name, data) one row each.
A kill anywhere leaves the state before or after one commit.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from shmlog.errors import IllegalStateError, ShmlogError, StorageError, StorageFullError, VersionMismatchError
from shmlog.messages import METADATA_FILE, ClusterView, TopicView, decode_view, encode_view

SCHEMA_VERSION = 1
BUSY_S = 0.5  # a predecessor's lock drops before its flock does; this is only for odd file systems

_topic_encode = msgspec.msgpack.Encoder().encode
_topic_decode = msgspec.msgpack.Decoder(TopicView).decode


class Loaded(NamedTuple):
    view: ClusterView
    boot_id: bytes
    boot_counter: int
    clean: bool  # closed by mark_clean(): nothing was decided since that is not here


class DatabaseDamaged(StorageError):
    """The database is there, but is none any more, or does not say what it should. start.py's business; it does not travel."""


def set_aside(directory: str) -> str:
    """Renames a damaged database, for those who want to look at it; returns its new name."""
    path = os.path.join(directory, METADATA_FILE)
    aside = next(name for n in range(1, 1000) if not os.path.exists(name := f"{path}.damaged-{n}"))
    for suffix in ("-wal", "-shm", ""):  # the log never stays alone beside a new database
        with contextlib.suppress(FileNotFoundError):
            os.rename(path + suffix, aside + suffix)
    return aside


class Store:
    """Used by one thread at a time."""

    def __init__(self, directory: str) -> None:
        self.path = os.path.join(directory, METADATA_FILE)
        self._written: ClusterView | None = None
        with self._translated():
            os.makedirs(directory, mode=0o700, exist_ok=True)
            with contextlib.suppress(FileExistsError):  # sqlite would make it by the umask; its -wal gets the mode of this one
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            self._db = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            with self._translated():
                self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=FULL")
                self._db.execute("PRAGMA mmap_size=0")
                self._db.execute("BEGIN IMMEDIATE")  # takes the lock now, and keeps it (exclusive mode)
                self._open_schema()
                self._db.execute("COMMIT")
        except BaseException:
            self._db.close()
            raise

    def _open_schema(self) -> None:
        (found,) = self._db.execute("PRAGMA user_version").fetchone()
        if found > SCHEMA_VERSION:
            raise VersionMismatchError(
                f"{self.path} has schema {found}, this shmlog knows up to {SCHEMA_VERSION}",
                hint="use the newer version of shmlog that wrote it",
                found=found,
                supported=SCHEMA_VERSION,
            )
        if found == 0:
            self._db.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID")
            self._db.execute("CREATE TABLE topic (name TEXT PRIMARY KEY, data BLOB NOT NULL) WITHOUT ROWID")
            self._db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")

    def load(self) -> Loaded | None:
        """What was written last; None for a new directory."""
        with self._translated():
            if (answer := self._db.execute("PRAGMA quick_check(1)").fetchone()) != ("ok",):
                raise DatabaseDamaged(f"{self.path}: {answer[0] if answer else 'no answer'}", path=self.path)
            meta = dict(self._db.execute("SELECT key, value FROM meta"))
            if not meta:
                return None
            if not {"view", "boot_id", "boot_counter", "clean"} <= set(meta):
                raise DatabaseDamaged(f"{self.path}: its contents are damaged: only {sorted(meta)} are there", path=self.path)
            topics = {name: _topic_decode(data) for name, data in self._db.execute("SELECT name, data FROM topic")}
            view = msgspec.structs.replace(decode_view(meta["view"]), topics=topics)
        self._written = view
        return Loaded(view, meta["boot_id"], int(meta["boot_counter"]), bool(meta["clean"]))

    def begin(self, boot_id: bytes, boot_counter: int, view: ClusterView) -> None:
        """Durable before the first grant under this boot counter: from now on the store may lag behind."""
        with self._translated(), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._put("boot_id", boot_id)
            self._put("boot_counter", boot_counter)
            self._put("clean", 0)
            self._write(view)
            self._db.execute("COMMIT")
        self._written = view

    def write(self, view: ClusterView) -> None:
        """Durable on return. Only topics that are not the very objects written before are looked at."""
        with self._translated(), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._write(view)
            self._db.execute("COMMIT")
        self._written = view

    def mark_clean(self, view: ClusterView) -> None:
        with self._translated(), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._write(view)
            self._put("clean", 1)
            self._db.execute("COMMIT")
        self._written = view

    def _write(self, view: ClusterView) -> None:
        old = self._written.topics if self._written else {}
        self._put("view", encode_view(msgspec.structs.replace(view, topics={})))
        changed = [(name, _topic_encode(t)) for name, t in view.topics.items() if old.get(name) is not t]
        self._db.executemany("INSERT OR REPLACE INTO topic VALUES (?, ?)", changed)
        self._db.executemany("DELETE FROM topic WHERE name = ?", [(name,) for name in old if name not in view.topics])

    def _put(self, key: str, value: bytes | int) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def close(self) -> None:
        self._db.close()

    def _translated(self) -> _Translated:
        return _Translated(self.path)


class _Translated:
    """sqlite3's and the file system's errors as ours; anything that was begun is rolled back by the caller's `with self._db`."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, exc: BaseException | None, trace: object) -> None:
        if isinstance(exc, ShmlogError) or exc is None:
            return
        if isinstance(exc, sqlite3.Error):
            name = getattr(exc, "sqlite_errorname", "")
            if name.startswith("SQLITE_BUSY"):
                raise IllegalStateError(
                    f"{self.path} is in use by another cluster", hint="two clusters cannot share a data directory: give one of them another --data"
                ) from exc
            if name.startswith("SQLITE_FULL"):
                raise StorageFullError(f"{self.path}: the disk is full", path=self.path) from exc
            if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")) or "no such table" in str(exc):
                raise DatabaseDamaged(f"{self.path}: {exc} ({name})", path=self.path) from exc
            raise StorageError(f"{self.path}: {exc} ({name or type(exc).__name__})", path=self.path) from exc
        if isinstance(exc, OSError):
            raise StorageError(f"{exc.filename or self.path}: {exc.strerror}", path=self.path) from exc
        if isinstance(exc, msgspec.MsgspecError):
            raise DatabaseDamaged(f"{self.path}: its contents are damaged: {exc}", path=self.path) from exc


class BackgroundStore:
    """A thread that writes the newest view it was given. Only the newest: what lies between was never needed on its own.

    A disk that fails stops nothing: the thread tries again each second, `error` tells, and `stored_version` stands still meanwhile.
    """

    RETRY_S = 1.0

    def __init__(self, store: Store, stored_version: int, notify: Callable[[], None]) -> None:
        self._store = store
        self._notify = notify  # called in the thread after each attempt
        self._condition = threading.Condition()
        self._wanted: ClusterView | None = None
        self._closing = False
        self.stored_version = stored_version
        self.error: ShmlogError | None = None
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)
        self._thread.start()

    def submit(self, view: ClusterView) -> None:
        with self._condition:
            self._wanted = view
            self._condition.notify()

    def wait_stored(self, version: int, timeout: float) -> bool:
        """Bounds how far the store may lag; see metadata.UNSTORED_DECISIONS_MAX."""
        deadline = time.monotonic() + timeout
        with self._condition:
            while self.stored_version < version:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._condition.wait(left)
        return True

    def close(self, final: ClusterView | None) -> None:
        """Ends the thread; with `final` everything is written and marked clean, or raises."""
        with self._condition:
            self._closing = True
            self._condition.notify()
        self._thread.join()
        if final is not None:
            self._store.mark_clean(final)
        self._store.close()

    def _run(self) -> None:
        while True:
            with self._condition:
                while self._wanted is None and not self._closing:
                    self._condition.wait(3600)
                if self._closing:
                    return
                view, self._wanted = self._wanted, None
            assert view is not None
            try:
                self._store.write(view)
                error = None
            except ShmlogError as exc:
                error = exc
            with self._condition:
                self.error = error
                if error is None:
                    self.stored_version = view.version
                elif self._wanted is None:
                    self._wanted = view
                self._condition.notify_all()
                if error is not None and not self._closing:
                    self._condition.wait(self.RETRY_S)
            self._notify()
