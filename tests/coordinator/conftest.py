"""Real coordinators, standbys and spares, killed for real, with a broker that has no logs (fake_broker/)."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shmlog import lifecycle, proc, shm
from shmlog.client.session import Session, attach
from shmlog.testing.processes import kill_all
from shmlog.testing.waiting import until


class Cluster:
    """One cluster by its name, looked at from outside."""

    def __init__(self, name: str, data: Path) -> None:
        self.name = name
        self.data = data
        self.prefix = shm.prefix(name)
        self.sessions: list[Session] = []
        self.copies: deque[Any] = deque(maxlen=64)

    def start(self, brokers: int | None = None, **options: Any) -> bool:
        return lifecycle.start_cluster(self.name, brokers, options.pop("data_dirs", [str(self.data)]), options.pop("config", None), **options)

    def session(self) -> Session:
        self.sessions.append(attach(f"shm://{self.name}"))
        return self.sessions[-1]

    @property
    def control(self) -> Any:
        """A copy. Its parts (`control.processes`) do not keep it alive, so the last ones are kept here."""
        self.copies.append(shm.read_control(self.prefix)[1])
        return self.copies[-1]

    def process(self, role: int, id: int = 0) -> tuple[int, int]:
        """(pid, start ticks) of whoever lives in this role; (0, 0) nobody."""
        control = self.control
        for process in control.processes if control else ():
            if process.role == role and process.id == id and proc.alive(process.pid, process.start_ticks):
                return process.pid, process.start_ticks
        return 0, 0

    def pid(self, role: int, id: int = 0) -> int:
        return self.process(role, id)[0]

    def another(self, role: int, old: int, id: int = 0) -> int:
        """Waits until somebody else than `old` has the role; returns the pid."""
        return int(until(lambda: (pid := self.pid(role, id)) != old and pid, f"another process in role {role}"))

    def kill(self, *pids: int, number: int = 9) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def pids(self) -> list[int]:
        """Coordinators first, then the spare, then brokers: nobody is left to heal what is killed next."""
        processes = [p for p in self.control.processes if proc.alive(p.pid, p.start_ticks)]
        return [p.pid for p in sorted(processes, key=lambda p: {1: 0, 2: 0, 3: 1}.get(p.role, 2))]

    def kill_all(self) -> None:
        until(lambda: (self.kill(*self.pids()), not self.pids())[1], "everything to be dead")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    fake = str(Path(__file__).parent / "fake_broker")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [fake, os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    cluster = Cluster(f"t{os.getpid()}-{secrets.token_hex(4)}", tmp_path / "data")
    try:
        yield cluster
    finally:
        for session in cluster.sessions:
            session.close()
        lifecycle.discard(cluster.name)
        until(lambda: kill_all(cluster.name), "everything to be dead")  # one that a failed test has stopped may stand in no table
        left = [name for name in os.listdir(shm.DIRECTORY) if cluster.name in name]
        assert not left, f"left in /dev/shm: {left}"
