"""Libraries that move bytes between processes without a server: shared memory, queues of Python, sockets."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from .base import Peer, Receiver, Sender, direct


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
        return direct(Sender(), send=self.pipes[channel][1].send_bytes)

    def receiver(self, channels: list[int]) -> Any:
        return direct(Receiver(), receive=self.pipes[channels[0]][0].recv_bytes)

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

        return direct(Sender(), send=queue.put, close=close)

    def receiver(self, channels: list[int]) -> Any:
        return direct(Receiver(), receive=self.queues[channels[0]].get)


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
        return direct(Sender(), send=socket.send, close=socket.close)

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

        return direct(Receiver(), receive=recv if self.task.wait == "block" else spin, close=socket.close)
