"""A cluster of real processes, made by the command line, that a fault test may kill, stop and bring up again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shmlog.testing import history
from shmlog.testing.processes import kill_all
from shmlog.testing.waiting import until
from shmlog.testing.workload import noted, read_all

WORKERS = Path(__file__).with_name("workers.py")


class Sends:
    """Sends of a producer of this process, numbered, each with acks=1, written down as a worker does."""

    def __init__(self, path: Path, topic: str = "t") -> None:
        self.path, self.topic = path, topic
        self._history = history.History(path)
        self._log = self._history.log(topic, 0)

    def __call__(self, producer: Any, number: int, value: bytes) -> Any:
        token = self._history.send(self._log, number, crc=zlib.crc32(value))
        delivery = producer.send(self.topic, value)
        self._history.ok(token, delivery.offset)
        return delivery


def check_histories(address: str, topic: str, histories: list[Path], identify: Callable[[bytes], int] = noted) -> int:
    """The end of every fault test with traffic: a full read of partition 0, written down as all that went before, and nothing in it all that cannot be.
    Returns how many records there are."""
    path = histories[0].with_name(f"final-{uuid.uuid4().hex[:6]}.history")
    end = read_all(address, topic, path, identify)
    operations = history.load([*histories, path])
    anomalies = history.check(operations)
    assert not anomalies, "\n".join(["", *map(str, anomalies), f"python -m shmlog.testing.history {' '.join(map(str, [*histories, path]))}"])
    print(history.summary(operations))
    return end


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

    def kill_everything(self) -> None:
        """Until nobody is left: those that live start others meanwhile."""

        until(lambda: kill_all(self.name), "all processes to be dead")

    def worker(self, *arguments: object) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, str(WORKERS), *map(str, arguments)])
        self.workers.append(process)
        return process

    def end(self) -> None:
        for worker in self.workers:
            worker.kill()
            worker.wait()
        self.command("down", "--wipe", "--force", check=False)
        self.kill_everything()  # one that a failed test has stopped may stand in no table
