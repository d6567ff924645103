"""What an adapter is: a Peer, its ends, and the task that they are told."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import secrets
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class Task:
    """What the ends of a round will do; a peer may size itself by it."""

    value_bytes: int
    channels: int = 1
    wait: str = "spin"  # or "block": how receive() waits
    batch: int = 1
    senders: int = 1
    receivers: int = 1


class Sender:
    """What an adapter fills in, a reader's own of `--adapter` too; what it leaves out it must not name in `can`."""

    def send(self, value: bytes) -> None:
        raise NotImplementedError

    def send_many(self, values: list[bytes]) -> None:
        for value in values:
            self.send(value)

    def flush(self) -> None:
        """Everything sent has arrived where the peer keeps it (on the disk, for the question `durable`)."""

    def loan(self, nbytes: int) -> contextlib.AbstractContextManager[Any]:
        """An array of u1 to write a value into, sent at the end of the block."""
        raise NotImplementedError

    def close(self) -> None:
        pass


class Receiver:
    """As Sender: what an adapter leaves out it must not name in `can`."""

    def connected(self) -> None:
        """All senders are there, and nothing was sent yet."""

    def receive(self) -> Any:
        raise NotImplementedError

    def receive_many(self) -> Sequence[Any]:
        """At least one."""
        return (self.receive(),)

    def view(self) -> Any:
        """The next value as an array of u1, where it lies, valid until the next call."""
        raise NotImplementedError

    def close(self) -> None:
        pass


def direct(end: Any, **methods: Any) -> Any:
    """An end whose methods are those of a library: nothing between."""
    for name, method in methods.items():
        setattr(end, name, method)
    return end


class Peer:
    """What an adapter is derived from. It gives sender() and receiver(), or role() where its ends are no Python."""

    name = "?"
    needs: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    package: str | None = None  # whose version is shown
    can: frozenset[str] = frozenset({"latency", "rate"})
    lossless = True
    note = ""  # what a reader of the figures must know
    slow_rounds = False  # they take seconds, however short what they measure: there are half as many
    environment: ClassVar[dict[str, str]] = {}  # of its ends, set before anything of it is imported there
    directory: str  # on the disk; made and removed by the harness
    memory_directory: str  # in /dev/shm; the same

    def __init__(self, task: Task) -> None:
        self.task = task
        self.id = "b" + secrets.token_hex(6)

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def sender(self, channel: int) -> Any:
        raise NotImplementedError

    def receiver(self, channels: list[int]) -> Any:
        raise NotImplementedError

    def role(self, role: str, options: dict[str, Any]) -> Iterator[dict[str, Any] | None] | None:
        """For ends that are not in Python: what plays a role of worker.py in their stead, with its stops. None: worker.py does, by the two above."""
        return None

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if not k.startswith("_")}

    @classmethod
    def missing(cls) -> str | None:
        """Why it cannot take part here."""
        absent = [m for m in cls.needs if importlib.util.find_spec(m) is None]
        if absent:
            return f"no module {', '.join(absent)} (pip install 'shmlog[bench]')"
        gone = [p for p in cls.programs if program(p) is None]
        return f"no program {', '.join(gone)}" if gone else None

    @classmethod
    def version(cls) -> str:
        name = cls.package or (cls.needs[0].replace("_", "-") if cls.needs else "")
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name) if name else ""
        return ""


def program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/sbin")
