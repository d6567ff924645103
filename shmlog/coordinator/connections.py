"""coordinator.sock: clients and brokers come here, and each message is handed on. Nothing in here waits for a peer."""

from __future__ import annotations

import os
import selectors
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

from shmlog import messages as m
from shmlog.coordinator.memory import log
from shmlog.errors import IllegalStateError

SEND_BUFFER_MAX_BYTES = 64 * 2**20  # a peer that does not read loses its connection


class Connection:
    """One peer on coordinator.sock: who it is stands in the kernel's credentials."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.setblocking(False)
        self.pid, self.uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        self.unframer = m.Unframer()
        self.pending = bytearray()  # what the socket did not take yet
        self.broker_id: int | None = None
        self.closed = False

    def fileno(self) -> int:
        return self.sock.fileno()


class Connections:
    def __init__(
        self,
        run_dir: str,
        selector: selectors.BaseSelector,
        on_message: Callable[[Connection, Any], None],
        on_close: Callable[[Connection], None],
    ) -> None:
        self.run_dir = run_dir
        self.selector = selector
        self.on_message = on_message
        self.on_close = on_close

    def listen(self) -> None:
        """Under another name first, then renamed over what a predecessor left: at no moment a path without a listener behind it."""
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        path = os.path.join(self.run_dir, "coordinator.sock")
        temporary = f"{path}.{os.getpid()}"
        if os.path.exists(temporary):
            os.unlink(temporary)
        self.listener.bind(temporary)
        os.chmod(temporary, 0o600)  # whatever the umask
        self.listener.listen(512)
        self.listener.setblocking(False)
        os.rename(temporary, path)
        self.selector.register(self.listener, selectors.EVENT_READ, self._accept)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as exc:
                log(f"accept: {exc}")
                time.sleep(0.05)  # out of descriptors: the peer stays in the queue, and this loop must not spin over it
                return
            connection = Connection(sock)
            if connection.uid not in (os.geteuid(), 0) or connection.pid <= 0:
                sock.close()  # a stranger, or a process of a pid namespace that cannot be seen from here
                continue
            self.selector.register(sock, selectors.EVENT_READ, connection)

    def ready(self, connection: Connection, events: int) -> None:
        if connection.closed:
            return
        if events & selectors.EVENT_WRITE:
            self._flush(connection)
        if not events & selectors.EVENT_READ or connection.closed:
            return
        try:
            data = connection.sock.recv(262144)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self.close(connection)  # which says nothing about its process
            return
        try:
            received = connection.unframer.feed(data)
        except ValueError as exc:
            self.send(connection, m.failure_of(IllegalStateError(f"not understood: {exc}")))
            self.close(connection)
            return
        for message in received:
            self.on_message(connection, message)

    def send(self, connection: Connection, message: Any) -> None:
        if connection.closed:
            return
        connection.pending += m.frame(message)
        self._flush(connection)

    def _flush(self, connection: Connection) -> None:
        try:
            while connection.pending:
                sent = connection.sock.send(connection.pending)
                del connection.pending[:sent]
        except (BlockingIOError, InterruptedError):
            if len(connection.pending) > SEND_BUFFER_MAX_BYTES:
                self.close(connection)
                return
        except OSError:
            self.close(connection)
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.pending else 0)
        if self.selector.get_key(connection.sock).events != wanted:
            self.selector.modify(connection.sock, wanted, connection)

    def close(self, connection: Connection) -> None:
        if connection.closed:
            return
        connection.closed = True
        self.selector.unregister(connection.sock)
        connection.sock.close()
        self.on_close(connection)
