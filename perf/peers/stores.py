"""Durable queues made of an embedded database: each commit is synced."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from .base import Peer, Receiver, Sender


class Sqlite(Peer):
    name = "sqlite3 (WAL)"
    can = frozenset({"rate", "batch", "durable"})
    note = "synchronous=FULL: each commit is synced; the reader polls by rowid"

    def _connect(self) -> Any:
        import sqlite3

        connection = sqlite3.connect(f"{self.directory}/log.sqlite3", isolation_level=None, timeout=30)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE IF NOT EXISTS log (id INTEGER PRIMARY KEY, value BLOB)")
        return connection

    def sender(self, channel: int) -> Any:
        connection = self._connect()

        class End(Sender):
            def send(self, value: bytes) -> None:
                connection.execute("INSERT INTO log (value) VALUES (?)", (value,))

            def send_many(self, values: list[bytes]) -> None:
                connection.execute("BEGIN")
                connection.executemany("INSERT INTO log (value) VALUES (?)", [(v,) for v in values])
                connection.execute("COMMIT")

            def close(self) -> None:
                connection.close()

        return End()

    def receiver(self, channels: list[int]) -> Any:
        connection = self._connect()

        class End(Receiver):
            at = 0
            ready: Iterator[Any] = iter(())

            def receive_many(self) -> Any:
                while not (rows := connection.execute("SELECT id, value FROM log WHERE id > ? ORDER BY id LIMIT 4096", (self.at,)).fetchall()):
                    time.sleep(0.0001)  # it has nothing to wait on
                self.at = rows[-1][0]
                return [value for _, value in rows]

            def receive(self) -> Any:
                for value in self.ready:
                    return value
                self.ready = iter(self.receive_many())
                return next(self.ready)

            def close(self) -> None:
                connection.close()

        return End()

    @classmethod
    def version(cls) -> str:
        import sqlite3

        return sqlite3.sqlite_version


class Lmdb(Peer):
    name = "LMDB"
    needs = ("lmdb",)
    can = frozenset({"rate", "batch", "durable"})
    note = "each commit is synced; the reader polls by key"

    def _open(self) -> Any:
        import lmdb

        return lmdb.open(f"{self.directory}/lmdb", map_size=16 << 30)

    def sender(self, channel: int) -> Any:
        env = self._open()

        class End(Sender):
            n = 0

            def send(self, value: bytes) -> None:
                self.send_many([value])

            def send_many(self, values: list[bytes]) -> None:
                n = self.n
                with env.begin(write=True) as txn:
                    put = txn.put
                    for value in values:
                        n += 1
                        put(n.to_bytes(8, "big"), value, append=True)
                self.n = n

            def close(self) -> None:
                env.close()

        return End()

    def receiver(self, channels: list[int]) -> Any:
        env = self._open()

        class End(Receiver):
            at = 1
            ready: Iterator[Any] = iter(())

            def receive_many(self) -> Any:
                while True:
                    with env.begin() as txn, txn.cursor() as cursor:
                        found = []
                        if cursor.set_range(self.at.to_bytes(8, "big")):
                            for _, value in cursor:
                                found.append(value)
                                if len(found) == 4096:
                                    break
                    if found:
                        self.at += len(found)
                        return found
                    time.sleep(0.0001)  # it has nothing to wait on

            def receive(self) -> Any:
                for value in self.ready:
                    return value
                self.ready = iter(self.receive_many())
                return next(self.ready)

            def close(self) -> None:
                env.close()

        return End()
