"""Peers behind a server: Redis, NATS, Apache Kafka. `servers.py` starts them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, ClassVar

from .base import Peer, Receiver, Sender, program


class Redis(Peer):
    """Streams, through redis-py over a unix socket; a server of our own without persistence."""

    name = "Redis Streams"
    needs = ("redis",)
    programs = ("redis-server",)
    can = frozenset({"latency", "rate", "batch", "paced", "blocking", "large", "producers", "partitions"})
    options: tuple[str, ...] = ("--appendonly", "no")

    def start(self) -> None:
        from ..servers import Server

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
        from ..servers import Server, free_port

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
        from ..servers import KAFKA, jars

        return super().missing() or (None if jars(KAFKA).exists() else "no jars (`shmlog bench --fetch` gets them with mvn, 43 MB)")

    def start(self) -> None:
        from confluent_kafka.admin import AdminClient
        from confluent_kafka.cimpl import NewTopic

        from ..servers import Kafka as Server

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
