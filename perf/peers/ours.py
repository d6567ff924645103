"""Shmlog: a default topic and its variants."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from .base import Peer, Receiver, Sender

LEADER_LIMIT_S = 10  # milliseconds are what it takes; well below --limit, so that the reason is told and not only that nobody answered


class _ShmlogSender(Sender):
    def __init__(self, peer: Shmlog, partition: int) -> None:
        from shmlog import Producer

        self.producer = Producer(bootstrap_servers=peer.address, acks=peer.acks)
        self._send, self._partition = self.producer.send, partition
        self._waits = peer.acks == "disk"
        self._last: Any = None
        deadline = time.monotonic() + LEADER_LIMIT_S
        while True:  # a topic made a moment ago may have no leader yet
            try:
                self.producer.partitions_for("bench")
                break
            except LookupError as error:
                if time.monotonic() > deadline:
                    raise TimeoutError(
                        f"{peer.address}: {error} {LEADER_LIMIT_S:g} s after it was made: no broker leads it. Is this machine overloaded? "
                        "`shmlog bench weight` tells how long a broker takes to start here"
                    ) from None
                time.sleep(0.001)  # a producer cannot wait for a leader; nothing is measured yet

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
