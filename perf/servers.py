"""Servers of peers: started on a unix socket or a free port of the loopback, ended by pid, dead with the harness."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from typing import Any

from .harness import Failed, no_interrupt
from .worker import die_with_parent


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Server:
    def __init__(self, command: list[Any], directory: str, **environment: str) -> None:
        self.log = f"{directory}/server.log"
        self.name = os.path.basename(command[0])
        with open(self.log, "wb") as log, no_interrupt():
            self.process = subprocess.Popen(
                command, cwd=directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **environment},
                preexec_fn=die_with_parent, start_new_session=True,
            )  # fmt: skip

    def wait_for(self, where: str | int, limit_s: float = 30) -> None:
        """Until it takes a connection on this unix socket or port."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            family, address = (socket.AF_UNIX, where) if isinstance(where, str) else (socket.AF_INET, ("127.0.0.1", where))
            with contextlib.suppress(OSError), socket.socket(family) as s:
                s.connect(address)
                return
            time.sleep(0.01)
        with open(self.log, errors="replace") as log:
            last = log.read().strip().splitlines()[-1:]
        self.stop()
        raise Failed(f"{self.name} did not start: {' '.join(last)}")

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
