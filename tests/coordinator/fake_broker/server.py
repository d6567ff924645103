"""A broker without logs: it keeps its side of the protocol with the coordinator, and nothing else.

A file `refuse` in its directory makes it say that 4,096 bytes cannot be written; `die` makes it end before it is ready.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import time

from shmlog import messages as m
from shmlog import shm
from shmlog._ffi import ffi, lib
from shmlog.client.session import attach


def main(start: m.BrokerStart) -> int:
    session = attach(f"shm://{start.cluster}", starting=True)
    me = (start.broker_id, start.broker_epoch)
    marks = start.directory or "/nonexistent"
    process = session.control.processes[start.process]
    sock: socket.socket | None = None
    unframer = m.Unframer()
    while True:
        lib.sl_put64(ffi.addressof(process, "heartbeat_ns"), time.monotonic_ns())
        if process.broker_epoch != start.broker_epoch:
            return 0
        if sock is None:
            try:
                sock, unframer = connect(session.run_dir), m.Unframer()
            except OSError:
                if shm.identity(shm.object_name(shm.prefix(start.cluster), "control")) is None:
                    return 1
                time.sleep(0.002)
                continue
            if os.path.exists(os.path.join(marks, "die")):
                failure = m.Failure("StorageError", "the directory is not right")
                sock.sendall(m.frame(m.BrokerFailed(*me, failure)))
                m.receive(sock, time.monotonic() + 5)
                return 1
            say(sock, m.Register(m.KIND_BROKER, 2), m.BrokerReady(*me, session.view.version))
        if not select.select([sock], [], [], 0.2)[0]:
            continue
        try:
            data = sock.recv(65536)
        except OSError:
            data = b""
        if not data:
            sock.close()
            sock = None
            continue
        for message in unframer.feed(data):
            if isinstance(message, m.ViewChanged):
                gone = tuple((p.block, p.topic_id) for p in m.decode_deleting(session.view.deleting) if p.leader == start.broker_id)
                say(sock, m.BrokerApplied(*me, session.view.version, gone))
            elif isinstance(message, m.Trim):
                say(sock, m.Trimmed(message.request, max(message.offset, 0)))
            elif isinstance(message, m.BrokerStop):
                refused = os.path.exists(os.path.join(marks, "refuse")) and not message.force
                say(sock, m.BrokerStopped(*me, 4096 if refused else 0))
                if not refused:
                    return 0
            elif isinstance(message, m.Failure):
                print("the coordinator says:", message.message, file=sys.stderr, flush=True)
                return 1


def say(sock: socket.socket, *messages: object) -> None:
    """The coordinator may be killed at any moment: then the next recv() tells, and whatever was said is said again to its successor."""
    with contextlib.suppress(OSError):
        sock.sendall(b"".join(map(m.frame, messages)))


def connect(run_dir: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(5)
    sock.connect(os.path.join(run_dir, "coordinator.sock"))
    return sock
