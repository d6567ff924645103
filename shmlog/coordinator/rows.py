"""Rows: who may append and read, and the certificates of their deaths.

A row belongs to a process from its registration until the process gives it back or dies; only a readable pidfd of exactly that process (pid and start
ticks, checked behind the pidfd) lets anybody clear its words. Rows outlive the coordinator: its successor adopts them from the table itself.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
from typing import Any

from shmlog import proc, shm
from shmlog._ffi import ffi, lib
from shmlog.coordinator.connections import Connection
from shmlog.coordinator.memory import Memory
from shmlog.errors import IllegalStateError, ShmSpaceError

MAX_PER_REQUEST = 64
METERS_SPARE = 32  # free ones for readers to come, at each tick
SO_PEERPIDFD = 77  # Linux 6.5


class Client:
    """A process that has rows. Its pidfd is its death certificate."""

    def __init__(self, pid: int, start_ticks: int, pidfd: int) -> None:
        self.pid = pid
        self.start_ticks = start_ticks
        self.pidfd = pidfd
        self.rows: set[int] = set()


class Rows:
    def __init__(self, memory: Memory, run_dir: str, selector: selectors.BaseSelector) -> None:
        self.memory = memory
        self.run_dir = run_dir
        self.selector = selector
        self.clients: dict[int, Client] = {}  # by pid
        self.free: list[int] = []
        self.lingering: dict[int, Client | None] = {}  # given back or orphaned, but a word of theirs still names something

    def register(self, connection: Connection, kind: int, count: int) -> tuple[int, ...]:
        """Killed before the reply: the rows are LIVE and belong to the process that asked; a successor finds them and cleans them when it dies."""
        if not 1 <= count <= MAX_PER_REQUEST:
            raise IllegalStateError(f"a process asks for 1 to {MAX_PER_REQUEST} rows at a time, not {count}")
        client = self.client_of(connection)
        return tuple(self._take_row(client, kind) for _ in range(count))

    def unregister(self, pid: int, rows: tuple[int, ...]) -> None:
        client = self.clients.get(pid)
        for row in rows:
            if client is None or row not in client.rows:
                continue  # given back already
            client.rows.discard(row)
            self._clean_row(row, client)
        if client is not None and not client.rows and client not in self.lingering.values():
            self._forget_client(client)

    def process_died(self, pid: int, start_ticks: int) -> None:
        """For one whose death certificate somebody else holds."""
        client = self.clients.get(pid)
        if client is not None and client.start_ticks == start_ticks:
            self.client_died(client)

    def count(self) -> int:
        return sum(len(client.rows) for client in self.clients.values())

    def client_of(self, connection: Connection) -> Client:
        client = self.clients.get(connection.pid)
        if client is not None and not proc.alive(client.pid, client.start_ticks):
            self.client_died(client)  # and its pid is another's now; its pidfd's event has only not had its turn yet
            client = None
        if client is None:
            try:
                pidfd = connection.sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
            except OSError:  # before Linux 6.5; while the connection stands, its pid is its own
                pidfd = os.pidfd_open(connection.pid)
            ticks = proc.start_ticks(connection.pid)
            if ticks == 0:
                os.close(pidfd)
                raise IllegalStateError(f"process {connection.pid} cannot be seen in /proc")
            client = self._watch_client(connection.pid, ticks, pidfd)
        return client

    def _watch_client(self, pid: int, start_ticks: int, pidfd: int) -> Client:
        client = Client(pid, start_ticks, pidfd)
        self.clients[pid] = client
        self.selector.register(pidfd, selectors.EVENT_READ, lambda: self.client_died(client))
        return client

    def _take_row(self, client: Client, kind: int) -> int:
        if self.free:
            row = self.free.pop()
        else:
            row = lib.sl_cluster_rows_used(self.memory.handle)
            if row >= lib.SL_MAX_ROWS:
                raise ShmSpaceError(f"all {lib.SL_MAX_ROWS} rows (producer threads and consumers) are in use", hint="close some of them")
            self.memory.ensure_entries(shm.ROWS, row + 1)  # recyclers look at it from here on
        r = lib.sl_cluster_row(self.memory.handle, row)
        lib.sl_put32(ffi.addressof(r, "pid"), client.pid)
        lib.sl_put64(ffi.addressof(r, "start_ticks"), client.start_ticks)
        lib.sl_put32(ffi.addressof(r, "kind"), kind)
        lib.sl_put32(ffi.addressof(r, "generation"), (r.generation + 1) & 0xFFFFFFFF)
        lib.sl_put32(ffi.addressof(r, "sleeping"), lib.SL_AWAKE)
        lib.sl_put32(ffi.addressof(r, "state"), lib.SL_ROW_LIVE)
        client.rows.add(row)
        return int(row)

    def client_died(self, client: Client) -> None:
        """The death certificate of exactly this process: only now its words may be cleared. Killed half-way: a successor finds its rows LIVE or
        DEAD with a process that is gone, and cleans them again."""
        rows, client.rows = client.rows, set()
        self._forget_client(client)
        rows |= {row for row, owner in self.lingering.items() if owner is client}
        if rows:
            self._wake_all()
        for row in sorted(rows):
            self._clean_row(row, None)

    def _wake_all(self) -> None:
        """Somebody may have died owing a wake. Before his row is cleaned: once it is free nobody knows of it, and we may be killed next."""
        lib.sl_wake_all(self.memory.handle, 0xFFFFFFFF)

    def _forget_client(self, client: Client) -> None:
        if self.clients.get(client.pid) is client:
            del self.clients[client.pid]
        self.selector.unregister(client.pidfd)
        os.close(client.pidfd)

    def _clean_row(self, row: int, owner: Client | None) -> None:
        """owner: gave it back and lives, so words that still name something (leases that outlive their consumer) are true and stay."""
        r = lib.sl_cluster_row(self.memory.handle, row)
        if owner is not None and self._in_use(r):
            self.lingering[row] = owner
            return
        left = lib.sl_row_clean(self.memory.handle, row)
        if left > 0:
            self.lingering[row] = None  # names segments in limbo; their broker clears that
            return
        self.lingering.pop(row, None)
        try:
            os.unlink(os.path.join(self.run_dir, f"w{row}"))
        except FileNotFoundError:
            pass
        lib.sl_put32(ffi.addressof(r, "pid"), 0)
        lib.sl_put32(ffi.addressof(r, "state"), lib.SL_ROW_FREE)
        self.free.append(row)

    @staticmethod
    def _in_use(r: Any) -> bool:
        return any(r.hazard) or bool(r.poll_pin) or any(r.view_pins)

    def grow_meters(self) -> None:
        made = lib.sl_cluster_meters(self.memory.handle)
        if 0 < made < lib.SL_MAX_METERS and (taken := lib.sl_meters_taken(self.memory.handle)) + METERS_SPARE > made:
            with contextlib.suppress(ShmSpaceError):  # they read unmeasured then
                self.memory.ensure_entries(shm.METERS, min(taken + METERS_SPARE, lib.SL_MAX_METERS))

    def retry(self) -> None:
        for row, owner in list(self.lingering.items()):
            self._clean_row(row, owner)
            if owner is not None and row not in self.lingering and not owner.rows and owner not in self.lingering.values():
                self._forget_client(owner)

    def adopt(self) -> None:
        """Rows that a predecessor gave out. The certificate comes from pid and start ticks in the row, checked behind a pidfd."""
        dead: list[int] = []
        for row in range(lib.sl_cluster_rows_used(self.memory.handle)):
            r = lib.sl_cluster_row(self.memory.handle, row)
            if r.state == lib.SL_ROW_FREE:
                self.free.append(row)
                continue
            pid, ticks = r.pid, r.start_ticks
            client = self.clients.get(pid)
            if r.state == lib.SL_ROW_LIVE and (client is None or client.start_ticks != ticks):
                pidfd = proc.watch(pid, ticks)
                client = self._watch_client(pid, ticks, pidfd) if pidfd is not None else None
            if r.state == lib.SL_ROW_LIVE and client is not None:
                client.rows.add(row)
            else:
                dead.append(row)
        if dead:
            self._wake_all()
        for row in dead:
            self._clean_row(row, None)
