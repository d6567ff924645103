"""A cluster of real processes, made by the command line, that a fault test may kill, stop and bring up again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

WORKERS = Path(__file__).with_name("workers.py")


def until(condition: Callable[[], Any], what: str, seconds: float = 120) -> Any:
    """Waits for a condition; a hang becomes a failure that names it."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        threading.Event().wait(0.005)  # between two looks at the condition, so that those we wait for have the CPU
    return value


class RealCluster:
    """A cluster made by the command line, so that it can be killed whole and brought up again."""

    def __init__(self, data: Path) -> None:
        self.name = f"t{uuid.uuid4().hex[:10]}"
        self.data = data
        self.workers: list[subprocess.Popen[bytes]] = []

    @property
    def address(self) -> str:
        return f"shm://{self.name}"

    def command(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "shmlog", *arguments, "--cluster", self.name]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert not check or done.returncode == 0, f"shmlog {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def up(self) -> None:
        self.command("up", "--data", str(self.data))

    def status(self) -> dict[str, Any]:
        return json.loads(self.command("status", "--json").stdout)  # type: ignore[no-any-return]

    def pids(self, *roles: str) -> list[int]:
        return [p["pid"] for p in self.status()["processes"] if p["role"] in roles and p["state"] in ("up", "active")]

    def kill(self, *roles: str) -> None:
        for pid in self.pids(*roles):
            os.kill(pid, signal.SIGKILL)

    def worker(self, *arguments: object) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, str(WORKERS), *map(str, arguments)])
        self.workers.append(process)
        return process

    def end(self) -> None:
        for worker in self.workers:
            worker.kill()
            worker.wait()
        self.command("down", "--wipe", "--force", check=False)
