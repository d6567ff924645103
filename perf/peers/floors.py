"""What the machine allows, without any promise: the minimal ring, and bare memory. Floors, not peers."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from .base import Peer, Receiver, Sender, direct


class _RingCffi:
    """The minimal ring behind cffi, an end of it."""

    def __init__(self, peer: Ring, channel: int) -> None:
        from ..native import ring_cffi

        self.module = module = ring_cffi(peer.ring_bytes)
        self._file = open(f"{peer.memory_directory}/ring.{channel}", "r+b")  # noqa: SIM115
        self._map = mmap.mmap(self._file.fileno(), module.ffi.sizeof("ring"))
        self.ring = module.ffi.cast("ring *", module.ffi.from_buffer(self._map))
        self.lib, self.ffi = module.lib, module.ffi


class _RingSender(_RingCffi, Sender):
    def send(self, value: bytes) -> None:
        put, ring, n = self.lib.put, self.ring, len(value)
        while not put(ring, value, n):
            pass

    def send_many(self, values: list[bytes]) -> None:
        n = len(values)
        held = [self.ffi.from_buffer(v) for v in values]
        pointers = self.ffi.new("char *[]", held)
        done = 0
        while done < n:
            done += self.lib.put_many(self.ring, pointers + done, len(values[0]), n - done)


class _RingReceiver(_RingCffi, Receiver):
    def __init__(self, peer: Ring, channel: int) -> None:
        super().__init__(peer, channel)
        self._position = self.ffi.new("uint64_t *")
        self._size = peer.task.value_bytes
        self._most = max(1, min(4096, (1 << 20) // max(1, self._size)))
        self._out = self.ffi.new("char[]", max(self._size, 1) * self._most)
        self._buffer = self.ffi.buffer(self._out)

    def receive(self) -> bytes:
        get, ring, position, out = self.lib.get, self.ring, self._position, self._out
        while (n := get(ring, position, out)) < 0:
            pass
        return self._buffer[:n]  # type: ignore[no-any-return]

    def receive_many(self) -> list[bytes]:
        while not (n := self.lib.get_many(self.ring, self._position, self._most, self._out)):
            pass
        size, data = self._size, self._buffer[: n * self._size]
        return [data[i : i + size] for i in range(0, n * size, size)]


class Ring(Peer):
    name = "minimal ring (cffi)"
    needs: tuple[str, ...] = ("cffi",)
    programs = ("gcc",)
    note = "a floor, not a peer: one producer, one consumer, no offsets, no CRC, no disk, no crash safety"
    can = frozenset({"latency", "rate", "batch", "large"})

    @property
    def ring_bytes(self) -> int:
        return 2 << 20 if self.task.value_bytes < 1 << 18 else 64 << 20

    def start(self) -> None:
        from ..native import ring_cffi

        self.allocate(ring_cffi(self.ring_bytes).ffi.sizeof("ring"))

    def allocate(self, nbytes: int) -> None:
        for channel in range(self.task.channels):
            with open(f"{self.memory_directory}/ring.{channel}", "wb") as f:
                os.posix_fallocate(f.fileno(), 0, nbytes)

    def sender(self, channel: int) -> Any:
        return _RingSender(self, channel)

    def receiver(self, channels: list[int]) -> Any:
        return _RingReceiver(self, channels[0])


class _FastRingEnd:
    def __init__(self, peer: FastRing, channel: int) -> None:
        from ..native import ring_ext

        with open(f"{peer.memory_directory}/ring.{channel}", "r+b") as file:
            self._map = np.frombuffer(mmap.mmap(file.fileno(), 0), "u1")
        self.end = ring_ext(peer.ring_bytes).End(self._map.ctypes.data)


class _FastRingSender(_FastRingEnd, Sender):
    def send(self, value: bytes) -> None:
        put = self.end.put
        while not put(value):
            pass

    def send_many(self, values: list[bytes]) -> None:
        self.end.put_many(values)


class _FastRingReceiver(_FastRingEnd, Receiver):
    def __init__(self, peer: FastRing, channel: int) -> None:
        super().__init__(peer, channel)
        direct(self, receive=self.end.get)

    def receive_many(self) -> list[bytes]:
        while not (values := self.end.get_many(4096)):
            pass
        return values  # type: ignore[no-any-return]


class FastRing(Ring):
    """The same ring with its calls in a CPython extension (METH_FASTCALL)."""

    name = "minimal ring (fastcall)"
    needs = ()

    def start(self) -> None:
        from ..native import ring_ext

        self.allocate(ring_ext(self.ring_bytes).RING_BYTES)

    @classmethod
    def missing(cls) -> str | None:
        return super().missing() or (None if os.uname().machine == "x86_64" else "the extension is written for x86-64")

    def sender(self, channel: int) -> Any:
        return _FastRingSender(self, channel)

    def receiver(self, channels: list[int]) -> Any:
        return _FastRingReceiver(self, channels[0])


class BareMemory(Peer):
    """Slots of shared memory with a sequence word each, handed over by a store (x86 keeps the order; numpy makes no promise)."""

    name = "bare shared memory"
    note = "a floor, not a peer: two memory passes and a flag"
    can = frozenset({"loan"})
    slots = 8

    def start(self) -> None:
        self.slot_bytes = (self.task.value_bytes + 4095) // 4096 * 4096
        with open(f"{self.memory_directory}/slots", "wb") as f:
            os.posix_fallocate(f.fileno(), 0, 4096 + self.slots * self.slot_bytes)

    def _map(self) -> tuple[Any, list[Any]]:
        with open(f"{self.memory_directory}/slots", "r+b") as f:
            whole = np.frombuffer(mmap.mmap(f.fileno(), 0), "u1")
        flags = whole[: 64 * self.slots].view("u8")[::8]
        return flags, [whole[4096 + i * self.slot_bytes :][: self.task.value_bytes] for i in range(self.slots)]

    def sender(self, channel: int) -> Any:
        flags, slots = self._map()

        class End(Sender):
            n = 0

            @contextlib.contextmanager
            def loan(self, nbytes: int) -> Iterator[Any]:
                i = self.n % len(slots)
                while flags[i]:
                    pass
                yield slots[i]
                flags[i] = 1
                self.n += 1

        return End()

    def receiver(self, channels: list[int]) -> Any:
        flags, slots = self._map()

        class End(Receiver):
            n = 0

            def view(self) -> Any:
                if self.n:
                    flags[(self.n - 1) % len(slots)] = 0
                i = self.n % len(slots)
                while not flags[i]:
                    pass
                self.n += 1
                return slots[i]

        return End()
