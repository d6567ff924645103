"""Adapters: how each candidate sends and receives bytes. All of them, in one place.

An adapter of your own is a subclass of Peer, given as `shmlog bench --adapter module:Class`:

    class Mine(Peer):
        name, needs = "mine", ("my_queue",)                 # modules that must be there, else the peer is left out, and said so
        can = frozenset({"latency", "rate"})
        def start(self):                                    # in the harness, before the ends: servers, shared names. Attributes travel to the ends
            self.path = f"{self.memory_directory}/queue"    # (pickled) unless their name begins with _
        def sender(self, channel):                          # in a process of its own: an object with send(value)
            return MySender(f"{self.path}.{channel}")
        def receiver(self, channels):                       # an object with receive() -> bytes, which waits as self.task.wait says
            return MyReceiver(f"{self.path}.{channels[0]}")

`can` says what it takes part in: latency (one in flight), rate (one a call, lossless or counted), batch (send_many, receive_many), paced (open
loop, both waits), blocking (it can sleep), large (values of megabytes), loan (memory of its own written and read in place), producers (many on a
channel), partitions (a receiver of many channels), durable (flush() returns when it is on the disk).
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import mmap
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np


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


def _ends(end: Any, **methods: Any) -> Any:
    """An end whose methods are those of a library: nothing between."""
    for name, method in methods.items():
        setattr(end, name, method)
    return end


class Peer:
    name = "?"
    needs: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    package: str | None = None  # whose version is shown
    can: frozenset[str] = frozenset({"latency", "rate"})
    lossless = True
    note = ""  # what a reader of the figures must know
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


# --- shmlog ------------------------------------------------------------------------------------------------------------


class _ShmlogSender(Sender):
    def __init__(self, peer: Shmlog, partition: int) -> None:
        from shmlog import Producer

        self.producer = Producer(bootstrap_servers=peer.address, acks=peer.acks)
        self._send, self._partition = self.producer.send, partition
        self._waits = peer.acks == "disk"
        self._last: Any = None
        while True:  # a topic made a moment ago may have no leader yet
            try:
                self.producer.partitions_for("bench")
                break
            except LookupError:
                time.sleep(0.001)

    def send(self, value: bytes) -> None:
        self._last = self._send("bench", value, partition=self._partition)

    def send_many(self, values: list[bytes]) -> None:
        self._last = self.producer.send_many("bench", values, partition=self._partition)

    def flush(self) -> None:
        if self._waits and self._last is not None:
            self._last.result(30)

    @contextlib.contextmanager
    def loan(self, nbytes: int) -> Iterator[Any]:
        with self.producer.loan("bench", shape=nbytes, partition=self._partition) as loan:
            yield loan.array

    def close(self) -> None:
        self.producer.close()


class _ShmlogReceiver(Receiver):
    def __init__(self, peer: Shmlog, partitions: list[int]) -> None:
        from shmlog import Consumer, TopicPartition

        self._views = peer.views
        more: dict[str, Any] = {"max_partition_fetch_bytes": 8 << 20} if peer.task.batch > 1 else {}
        self.consumer = c = Consumer(bootstrap_servers=peer.address, wait=peer.task.wait, auto_offset_reset=peer.reset, tether=peer.tether, **more)
        c.assign([TopicPartition("bench", p) for p in partitions])
        c.poll(0)
        self.receive_one = c.__next__
        self._most = 4096 if peer.task.batch > 1 else 1

    def receive(self) -> Any:
        if self._views:
            batch = self.consumer.poll_batch(60_000, 1, 1)
            assert batch is not None
            return batch.values()[0]
        return self.receive_one().value

    def receive_many(self) -> Sequence[Any]:
        if self._views:
            batch = self.consumer.poll_batch(60_000, 4096)
            assert batch is not None
            return batch.values()
        found = self.consumer.poll(60_000, max_records=self._most)
        if len(found) == 1:
            (records,) = found.values()
            return [r.value for r in records]
        return [r.value for records in found.values() for r in records]

    def view(self) -> Any:
        batch = self.consumer.poll_batch(60_000, 1, 1)
        assert batch is not None
        return batch.array("u1")[0]

    def close(self) -> None:
        self.consumer.close()


class Shmlog(Peer):
    """A default topic: its broker runs beside it and spills to disk."""

    name = "shmlog"
    package = "shmlog"
    can = frozenset({"latency", "rate", "batch", "paced", "blocking", "large", "loan", "producers", "partitions"})
    config: ClassVar[dict[str, str]] = {}
    acks: Any = "all"
    reset = "earliest"
    tether = False
    views = False

    def start(self) -> None:
        from shmlog import Admin, Cluster, NewTopic

        os.makedirs(f"{self.directory}/data", exist_ok=True)
        self._cluster = Cluster(data_dir=f"{self.directory}/data")
        self.address = self._cluster.address
        with contextlib.closing(Admin(bootstrap_servers=self.address)) as admin:
            admin.create_topics([NewTopic("bench", num_partitions=self.task.channels, config=dict(self.config))])

    def stop(self) -> None:
        if hasattr(self, "_cluster"):
            from shmlog import lifecycle

            with contextlib.suppress(Exception):
                lifecycle.stop_cluster(self._cluster.name, force=True)
            self._cluster._stopped = True

    def sender(self, channel: int) -> Any:
        return _ShmlogSender(self, channel)

    def receiver(self, channels: list[int]) -> Any:
        return _ShmlogReceiver(self, channels)


class ShmlogCffi(Shmlog):
    name = "shmlog (cffi)"
    note = "without the extension for the calls made once a record"
    can = frozenset({"latency", "rate", "batch", "paced", "blocking"})
    environment: ClassVar[dict[str, str]] = {"SHMLOG_BINDING": "cffi"}

    @classmethod
    def missing(cls) -> str | None:
        return None if importlib.util.find_spec("shmlog._fast") else "this shmlog has no other binding: `shmlog` is cffi"


class ShmlogViews(Shmlog):
    name = "shmlog, views"
    note = "values where they lie in the log (batches()), not copies"
    can = frozenset({"batch"})
    views = True


class ShmlogMemory(Shmlog):
    name = "shmlog, memory topic"
    note = "spill=false, full=block, tethered: lossless and nothing on disk, like the queues"
    can = frozenset({"latency", "rate", "batch", "large", "loan"})
    config: ClassVar[dict[str, str]] = {"shmlog.spill": "false", "shmlog.full": "block"}
    tether = True


class ShmlogMemoryViews(ShmlogMemory):
    name = "shmlog, memory topic, views"
    note = "the same; values where they lie in the log"
    can = frozenset({"batch", "large"})
    views = True


class ShmlogDisk(Shmlog):
    name = "shmlog, acks=disk"
    can = frozenset({"durable"})
    acks = "disk"


# --- floors: what the machine allows -----------------------------------------------------------------------------------


class _RingCffi:
    """The minimal ring behind cffi, an end of it."""

    def __init__(self, peer: Ring, channel: int) -> None:
        from .native import ring_cffi

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
        from .native import ring_cffi

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
        from .native import ring_ext

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
        _ends(self, receive=self.end.get)

    def receive_many(self) -> list[bytes]:
        while not (values := self.end.get_many(4096)):
            pass
        return values  # type: ignore[no-any-return]


class FastRing(Ring):
    """The same ring with its calls in a CPython extension (METH_FASTCALL)."""

    name = "minimal ring (fastcall)"
    needs = ()

    def start(self) -> None:
        from .native import ring_ext

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


# --- shared memory libraries -------------------------------------------------------------------------------------------


class Cloudtoid(Peer):
    name = "cloudtoid-interprocess"
    needs = ("cloudtoid_interprocess",)
    can = frozenset({"latency", "rate", "batch", "paced", "blocking", "large", "producers"})

    def _capacity(self) -> int:
        return 4 << 20 if self.task.value_bytes < 1 << 18 else max(64 << 20, 4 * self.task.value_bytes)

    def sender(self, channel: int) -> Any:
        import cloudtoid_interprocess

        publisher = cloudtoid_interprocess.Publisher(f"{self.id}-{channel}", self._capacity(), path=self.memory_directory)
        try_send, try_send_batch = publisher.try_send, publisher.try_send_batch

        class End(Sender):
            def send(self, value: bytes) -> None:
                while not try_send(value):
                    pass

            def send_many(self, values: list[bytes]) -> None:
                done = try_send_batch(values)
                while done < len(values):
                    done += try_send_batch(values[done:])

            def close(self) -> None:
                publisher.close()

        return End()

    def receiver(self, channels: list[int]) -> Any:
        import cloudtoid_interprocess

        subscriber = cloudtoid_interprocess.Subscriber(f"{self.id}-{channels[0]}", self._capacity(), path=self.memory_directory)
        try_receive, wait, block = subscriber.try_receive, subscriber.receive, self.task.wait == "block"

        class End(Receiver):
            def receive(self) -> Any:
                if block:
                    while (value := wait(timeout=1)) is None:
                        pass
                    return value
                while (value := try_receive()) is None:
                    pass
                return value

            def close(self) -> None:
                subscriber.close()

        return End()


class Kickmsg(Peer):
    name = "kickmsg"
    needs = ("kickmsg",)
    can = frozenset({"latency", "rate", "paced", "blocking", "large", "loan"})
    lossless = False
    note = "a slow reader loses the oldest"

    def _name(self, channel: int) -> str:
        return f"/{self.id}-{channel}"

    def start(self) -> None:
        import kickmsg

        config = kickmsg.Config()
        large = self.task.value_bytes >= 1 << 16
        config.max_subscribers = 1
        config.sub_ring_capacity = 16 if large else 1024
        config.pool_size = 32 if large else 2048
        config.max_payload_size = max(self.task.value_bytes, 8)
        self._regions = [kickmsg.SharedRegion.create(self._name(c), kickmsg.ChannelType.PubSub, config) for c in range(self.task.channels)]

    def stop(self) -> None:
        for region in getattr(self, "_regions", ()):
            region.unlink()

    def sender(self, channel: int) -> Any:
        import kickmsg

        region = kickmsg.SharedRegion.open(self._name(channel))
        publisher = kickmsg.Publisher(region)

        class End(Sender):
            keep = region

            def send(self, value: bytes) -> None:
                while publisher.send(value) < 0:
                    pass

            @contextlib.contextmanager
            def loan(self, nbytes: int) -> Iterator[Any]:
                while (slot := publisher.allocate()) is None:
                    pass
                yield np.frombuffer(memoryview(slot), "u1")
                slot.publish(nbytes)

        return End()

    def receiver(self, channels: list[int]) -> Any:
        import datetime

        import kickmsg

        region = kickmsg.SharedRegion.open(self._name(channels[0]))
        subscriber = kickmsg.Subscriber(region)
        second, block = datetime.timedelta(seconds=1), self.task.wait == "block"

        class End(Receiver):
            keep = region

            def receive(self) -> Any:
                if block:
                    while (value := subscriber.receive(second)) is None:
                        pass
                    return value
                while (value := subscriber.try_receive()) is None:
                    pass
                return value

            def view(self) -> Any:
                while (view := subscriber.try_receive_view()) is None:
                    pass
                return np.frombuffer(memoryview(view), "u1")

        return End()


class Iceoryx2(Peer):
    name = "iceoryx2"
    needs = ("iceoryx2",)
    can = frozenset({"latency", "rate", "paced", "large", "loan", "producers"})
    note = "polled: its subscribers cannot wait without an event service of their own"

    def _service(self, channel: int) -> tuple[Any, Any]:
        import ctypes

        import iceoryx2 as iox2

        iox2.set_log_level(iox2.LogLevel.Fatal)
        config = iox2.config.default()
        config.global_cfg.prefix = iox2.FileName.new(f"{self.id}_")
        config.global_cfg.root_path = iox2.Path.new(self.memory_directory + "/iox2")
        node = iox2.NodeBuilder.new().config(config).create(iox2.ServiceType.Ipc)
        service = (
            node.service_builder(iox2.ServiceName.new(f"bench/{channel}"))
            .publish_subscribe(iox2.Slice[ctypes.c_uint8])
            .enable_safe_overflow(False)
            .subscriber_max_buffer_size(16 if self.task.value_bytes >= 1 << 16 else 1024)
            .max_publishers(16)
            .open_or_create()
        )
        return node, service

    def sender(self, channel: int) -> Any:
        import ctypes

        import iceoryx2 as iox2

        node, service = self._service(channel)
        publisher = (
            service.publisher_builder()
            .initial_max_slice_len(max(self.task.value_bytes, 8))
            .backpressure_strategy(iox2.BackpressureStrategy.RetryUntilDelivered)
            .create()
        )

        class End(Sender):
            keep = (node, service)

            def send(self, value: bytes) -> None:
                n = len(value)
                sample = publisher.loan_slice_uninit(n)
                ctypes.memmove(sample.payload_ptr, value, n)
                sample.assume_init().send()

            @contextlib.contextmanager
            def loan(self, nbytes: int) -> Iterator[Any]:
                sample = publisher.loan_slice_uninit(nbytes)
                yield np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(sample.payload_ptr))
                sample.assume_init().send()

        return End()

    def receiver(self, channels: list[int]) -> Any:
        import ctypes

        node, service = self._service(channels[0])
        subscriber = service.subscriber_builder().create()
        receive = subscriber.receive

        class End(Receiver):
            keep = (node, service)
            held: Any = None

            def connected(self) -> None:
                subscriber.has_samples()  # else what is sent before the first look is dropped

            def receive(self) -> Any:
                while (sample := receive()) is None:
                    pass
                value = ctypes.string_at(sample.payload_ptr, sample.payload().len())
                sample.delete()
                return value

            def view(self) -> Any:
                if self.held is not None:
                    self.held.delete()
                while (sample := receive()) is None:
                    pass
                self.held = sample
                return np.ctypeslib.as_array((ctypes.c_uint8 * sample.payload().len()).from_address(sample.payload_ptr))

        return End()


# --- queues of Python --------------------------------------------------------------------------------------------------


def _same(value: Any) -> Any:
    return value if type(value) is bytes else bytes(value)


class FasterFifo(Peer):
    name = "faster-fifo"
    needs = ("faster_fifo", "faster_fifo_reduction")
    package = "faster-fifo"
    can = frozenset({"latency", "rate", "batch", "paced", "blocking", "large", "producers"})

    def start(self) -> None:
        import faster_fifo
        import faster_fifo_reduction  # noqa: F401 (teaches pickle)

        nbytes = max(8 << 20, 4 * self.task.value_bytes)
        self.queues = [faster_fifo.Queue(nbytes, loads=_same, dumps=_same) for _ in range(self.task.channels)]

    def stop(self) -> None:
        self.queues = []

    def sender(self, channel: int) -> Any:
        import faster_fifo

        queue = self.queues[channel]

        class End(Sender):
            def send(self, value: bytes) -> None:
                while True:
                    try:
                        return queue.put(value, timeout=10)  # type: ignore[no-any-return]
                    except faster_fifo.Full:
                        pass

            def send_many(self, values: list[bytes]) -> None:
                while True:
                    try:
                        return queue.put_many(values, timeout=10)  # type: ignore[no-any-return]
                    except faster_fifo.Full:
                        pass

        return End()

    def receiver(self, channels: list[int]) -> Any:
        queue = self.queues[channels[0]]

        class End(Receiver):
            def receive(self) -> Any:
                return queue.get(timeout=60)

            def receive_many(self) -> Any:
                return queue.get_many(timeout=60, max_messages_to_get=4096)

        return End()


class Pipe(Peer):
    name = "multiprocessing.Pipe"
    can = frozenset({"latency", "rate", "paced", "blocking", "large"})

    def start(self) -> None:
        import multiprocessing

        self.pipes = [multiprocessing.get_context("spawn").Pipe(duplex=False) for _ in range(self.task.channels)]

    def stop(self) -> None:
        for pair in getattr(self, "pipes", ()):
            for end in pair:
                end.close()

    def sender(self, channel: int) -> Any:
        return _ends(Sender(), send=self.pipes[channel][1].send_bytes)

    def receiver(self, channels: list[int]) -> Any:
        return _ends(Receiver(), receive=self.pipes[channels[0]][0].recv_bytes)

    @classmethod
    def version(cls) -> str:
        return "Python's"


class Queue(Pipe):
    name = "multiprocessing.Queue"
    can = frozenset({"latency", "rate", "paced", "blocking", "large", "producers"})

    def start(self) -> None:
        import multiprocessing

        context = multiprocessing.get_context("spawn")
        self.queues = [context.Queue(10_000 if self.task.value_bytes < 1 << 16 else 16) for _ in range(self.task.channels)]

    def stop(self) -> None:
        for queue in getattr(self, "queues", ()):
            queue.close()
            queue.cancel_join_thread()

    def sender(self, channel: int) -> Any:
        queue = self.queues[channel]

        def close() -> None:
            queue.close()
            queue.join_thread()

        return _ends(Sender(), send=queue.put, close=close)

    def receiver(self, channels: list[int]) -> Any:
        return _ends(Receiver(), receive=self.queues[channels[0]].get)


# --- messages over sockets ---------------------------------------------------------------------------------------------


class Zmq(Peer):
    name = "pyzmq ipc"
    needs = ("zmq",)
    package = "pyzmq"
    can = frozenset({"latency", "rate", "paced", "blocking", "large", "producers"})

    def _address(self, channel: int) -> str:
        return f"ipc://{self.memory_directory}/zmq.{channel}"

    def sender(self, channel: int) -> Any:
        import zmq

        socket: Any = zmq.Context.instance().socket(zmq.PUSH)
        socket.connect(self._address(channel))
        return _ends(Sender(), send=socket.send, close=socket.close)

    def receiver(self, channels: list[int]) -> Any:
        import zmq

        socket: Any = zmq.Context.instance().socket(zmq.PULL)
        socket.bind(self._address(channels[0]))
        recv, again, flag = socket.recv, zmq.Again, zmq.NOBLOCK

        def spin() -> Any:
            while True:
                try:
                    return recv(flag)
                except again:
                    pass

        return _ends(Receiver(), receive=recv if self.task.wait == "block" else spin, close=socket.close)


class Redis(Peer):
    """Streams, through redis-py over a unix socket; a server of our own without persistence."""

    name = "Redis Streams"
    needs = ("redis",)
    programs = ("redis-server",)
    can = frozenset({"latency", "rate", "batch", "paced", "blocking", "large", "producers", "partitions"})
    options: tuple[str, ...] = ("--appendonly", "no")

    def start(self) -> None:
        from .servers import Server

        self.socket = f"{self.memory_directory}/redis.sock"
        self._server = Server(
            [program("redis-server"), "--port", "0", "--unixsocket", self.socket, "--save", "", "--dir", self.directory, *self.options], self.directory
        )
        self._server.wait_for(self.socket)

    def stop(self) -> None:
        if hasattr(self, "_server"):
            self._server.stop()

    def sender(self, channel: int) -> Any:
        import redis

        client = redis.Redis(unix_socket_path=self.socket)
        name = f"c{channel}"

        class End(Sender):
            def send(self, value: bytes) -> None:
                client.xadd(name, {b"v": value})

            def send_many(self, values: list[bytes]) -> None:
                pipe = client.pipeline(transaction=False)
                for value in values:
                    pipe.xadd(name, {b"v": value})
                pipe.execute()

            def close(self) -> None:
                client.close()

        return End()

    def receiver(self, channels: list[int]) -> Any:
        import redis

        client = redis.Redis(unix_socket_path=self.socket)
        at: dict[Any, Any] = {f"c{c}": "0" for c in channels}
        large = self.task.value_bytes >= 1 << 16

        class End(Receiver):
            ready: Iterator[Any] = iter(())

            def receive_many(self) -> Any:
                found: Any = None
                while not found:
                    found = client.xread(at, count=4 if large else 4096, block=1000)
                values = []
                for name, records in found:
                    at[name.decode()] = records[-1][0]
                    values += [fields[b"v"] for _, fields in records]
                return values

            def receive(self) -> Any:
                for value in self.ready:
                    return value
                self.ready = iter(self.receive_many())
                return next(self.ready)

            def close(self) -> None:
                client.close()

        return End()


class RedisAlways(Redis):
    name = "Redis aof always"
    can = frozenset({"durable"})
    options = ("--appendonly", "yes", "--appendfsync", "always")


class Nats(Peer):
    """JetStream, file storage, through nats-py over loopback."""

    name = "NATS JetStream"
    needs = ("nats",)
    programs = ("nats-server",)
    package = "nats-py"
    can = frozenset({"latency", "rate", "batch", "paced", "blocking", "producers"})
    note = "file storage with its default sync interval (minutes): not durable against a power cut"

    def start(self) -> None:
        from .servers import Server, free_port

        self.port = free_port()
        self._server = Server([program("nats-server"), "-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd", self.directory], self.directory)
        self._server.wait_for(self.port)

    def stop(self) -> None:
        if hasattr(self, "_server"):
            self._server.stop()

    def _loop(self) -> tuple[Any, Any, Any]:
        import asyncio

        import nats

        loop = asyncio.new_event_loop()
        client = loop.run_until_complete(nats.connect(f"nats://127.0.0.1:{self.port}"))
        return loop, client, client.jetstream()

    def sender(self, channel: int) -> Any:
        import asyncio

        loop, client, js = self._loop()
        subject = f"c{channel}"
        with contextlib.suppress(Exception):  # the receiver made it
            loop.run_until_complete(js.add_stream(name=f"s{channel}", subjects=[subject]))
        run = loop.run_until_complete

        class End(Sender):
            def send(self, value: bytes) -> None:
                run(js.publish(subject, value))

            def send_many(self, values: list[bytes]) -> None:
                async def all_of_them() -> None:
                    await asyncio.gather(*(js.publish(subject, v) for v in values))

                run(all_of_them())

            def close(self) -> None:
                run(client.close())

        return End()

    def receiver(self, channels: list[int]) -> Any:
        loop, client, js = self._loop()
        channel = channels[0]
        run = loop.run_until_complete
        with contextlib.suppress(Exception):
            run(js.add_stream(name=f"s{channel}", subjects=[f"c{channel}"]))
        subscription = run(js.subscribe(f"c{channel}", ordered_consumer=True))

        class End(Receiver):
            def receive(self) -> Any:
                return run(subscription.next_msg(timeout=60)).data

            def receive_many(self) -> Any:
                async def some() -> list[bytes]:
                    found = [(await subscription.next_msg(timeout=60)).data]
                    while len(found) < 500 and subscription.pending_msgs:
                        found.append((await subscription.next_msg(timeout=1)).data)
                    return found

                return run(some())

            def close(self) -> None:
                run(client.close())

        return End()


class Kafka(Peer):
    """Apache Kafka, one node, through librdkafka."""

    name = "Apache Kafka"
    needs = ("confluent_kafka",)
    programs = ("java",)
    package = "confluent-kafka"
    note = "one broker for all rounds of a run, its page cache warm; acks=all"
    can = frozenset({"latency", "rate", "batch", "paced", "blocking", "producers", "partitions"})
    topic: ClassVar[dict[str, str]] = {}

    @classmethod
    def missing(cls) -> str | None:
        from .servers import KAFKA, jars

        return super().missing() or (None if jars(KAFKA).exists() else "no jars (`shmlog bench --fetch` gets them with mvn, 43 MB)")

    def start(self) -> None:
        from confluent_kafka.admin import AdminClient
        from confluent_kafka.cimpl import NewTopic

        from .servers import Kafka as Server

        self.address = f"127.0.0.1:{Server.get().port}"
        admin = AdminClient({"bootstrap.servers": self.address})
        admin.create_topics([NewTopic(self.id, self.task.channels, 1, config=dict(self.topic))])[self.id].result(30)

    def stop(self) -> None:
        from confluent_kafka.admin import AdminClient

        if hasattr(self, "address"):
            admin = AdminClient({"bootstrap.servers": self.address})  # kept until its answer is here
            admin.delete_topics([self.id])[self.id].result(30)

    def sender(self, channel: int) -> Any:
        from confluent_kafka import Producer

        producer = Producer({"bootstrap.servers": self.address, "acks": "all", "log_level": 3, "linger.ms": 5 if self.task.batch > 1 else 0})
        topic = self.id
        producer.list_topics(topic, timeout=30)

        class End(Sender):
            def send(self, value: bytes) -> None:
                while True:
                    try:
                        producer.produce(topic, value, partition=channel)
                        producer.poll(0)
                        return
                    except BufferError:
                        producer.poll(0.001)

            def flush(self) -> None:
                producer.flush(60)

            def close(self) -> None:
                producer.flush(10)

        return End()

    def receiver(self, channels: list[int]) -> Any:
        from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

        consumer = Consumer(
            {"bootstrap.servers": self.address, "log_level": 3, "group.id": self.id, "enable.auto.commit": False, "fetch.wait.max.ms": 10}
        )
        consumer.assign([TopicPartition(self.id, c, OFFSET_BEGINNING) for c in channels])
        most = 4096 if self.task.batch > 1 or self.task.channels > 1 else 1

        class End(Receiver):
            def receive_many(self) -> Any:
                while True:
                    values = [m.value() for m in consumer.consume(most, 0.001) if m.error() is None]
                    if values:
                        return values

            def receive(self) -> Any:
                while True:
                    message = consumer.poll(1)
                    if message is not None and message.error() is None:
                        return message.value()

            def close(self) -> None:
                consumer.close()

        return End()


class KafkaFlush(Kafka):
    name = "Kafka, flush.messages=1"
    can = frozenset({"durable"})
    topic: ClassVar[dict[str, str]] = {"flush.messages": "1"}


# --- durable queues of a library ---------------------------------------------------------------------------------------


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


# --- all of them -------------------------------------------------------------------------------------------------------

PEERS: list[type[Peer]] = [
    Shmlog, ShmlogCffi, ShmlogViews, ShmlogMemory, ShmlogMemoryViews, ShmlogDisk, FastRing, Ring, BareMemory, Cloudtoid, Kickmsg, Iceoryx2,
    FasterFifo, Pipe, Queue, Zmq, Redis, RedisAlways, Nats, Kafka, KafkaFlush, Sqlite, Lmdb,
]  # fmt: skip


def adapter(text: str) -> type[Peer]:
    """module:Class"""
    module, _, name = text.partition(":")
    found = getattr(importlib.import_module(module), name or "", None)
    if not (isinstance(found, type) and issubclass(found, Peer)):
        raise ValueError(f"--adapter {text}: not a subclass of {Peer.__module__}.Peer")
    return found


def chosen(names: Sequence[str], adapters: Sequence[type[Peer]]) -> tuple[list[type[Peer]], dict[str, str]]:
    """(peers that can take part, {name: why not}). `names`: parts of names; none chooses all."""
    here, absent = [], {}
    for peer in [*PEERS, *adapters]:
        if names and peer not in adapters and not any(n.lower() in peer.name.lower() for n in names):
            continue
        if (why := peer.missing()) is not None:
            absent[peer.name] = why
        else:
            here.append(peer)
    return here, absent


Candidates = Callable[[str], list[type[Peer]]]
