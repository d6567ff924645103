"""What clients ask of the active coordinator: topics, trims, rows. What is decided stands in metadata.py."""

from __future__ import annotations

import os
from collections.abc import Callable

from shmlog import config
from shmlog import messages as m
from shmlog.clock import NS, monotonic_ns
from shmlog.coordinator import metadata
from shmlog.coordinator.connections import Connection
from shmlog.coordinator.decisions import Decisions, Reply
from shmlog.coordinator.rows import Rows
from shmlog.coordinator.supervision import Supervision
from shmlog.errors import KafkaTimeoutError, LeaderNotAvailableError, UnknownTopicOrPartitionError

TRIM_TIMEOUT_NS = 10 * NS


class Requests:
    def __init__(self, decisions: Decisions, supervision: Supervision, rows: Rows) -> None:
        self.decisions = decisions
        self.supervision = supervision
        self.rows = rows
        self.trims: dict[int, tuple[int, Callable[[int | m.Failure], None]]] = {}
        self.next_trim = 1

    def expire_trims(self, now: int) -> None:
        for request, (deadline, done) in list(self.trims.items()):
            if now > deadline:
                del self.trims[request]
                done(m.failure_of(KafkaTimeoutError("the broker has not answered within 10 s; it may still trim")))

    def create_topics(self, connection: Connection, message: m.CreateTopics, reply: Reply) -> None:
        decision = metadata.create_topics(self.decisions.view, message.topics, lambda: os.urandom(16), self.decisions.memory.last_epoch)
        if message.validate_only:
            decision = decision._replace(view=self.decisions.view)
        self.decisions.decided(decision, reply)

    def delete_topics(self, connection: Connection, message: m.DeleteTopics, reply: Reply) -> None:
        self.decisions.decided(metadata.delete_topics(self.decisions.view, message.names, message.repeated), reply)

    def delete_namespace(self, connection: Connection, message: m.DeleteNamespace, reply: Reply) -> None:
        start = config.namespace_name(message.namespace) + "/"
        names = [name for name in self.decisions.view.topics if name.startswith(start)]
        decision = metadata.delete_topics(self.decisions.view, names)
        if decision.view is not self.decisions.view:
            self.decisions.decide(decision.view)
        self.decisions.reply_when_stored(reply, m.Done(self.decisions.view.version))

    def create_partitions(self, connection: Connection, message: m.CreatePartitions, reply: Reply) -> None:
        last_epoch = self.decisions.memory.last_epoch
        self.decisions.decided(metadata.create_partitions(self.decisions.view, message.totals, message.repeated, last_epoch), reply)

    def alter_topic_configs(self, connection: Connection, message: m.AlterTopicConfigs, reply: Reply) -> None:
        self.decisions.decided(metadata.alter_topic_configs(self.decisions.view, message.configs), reply)

    def delete_records(self, connection: Connection, message: m.DeleteRecords, reply: Reply) -> None:
        """The leader's broker does it; the reply comes when all have answered."""
        results: list[int | m.Failure | None] = [None] * len(message.partitions)
        open_requests = len(message.partitions)

        def done(index: int, result: int | m.Failure) -> None:
            nonlocal open_requests
            results[index] = result
            open_requests -= 1
            if open_requests == 0:
                reply(m.Trims(tuple(r for r in results if r is not None)))

        if not message.partitions:
            reply(m.Trims(()))
        for index, (name, number, offset) in enumerate(message.partitions):
            topic = self.decisions.view.topics.get(name)
            if topic is None or not 0 <= number < len(topic.partitions):
                done(index, m.failure_of(UnknownTopicOrPartitionError(f"there is no partition {name}-{number}", topic=name, partition=number)))
                continue
            partition = topic.partitions[number]
            broker = self.supervision.brokers.get(partition.leader)
            if broker is None or broker.connection is None or not broker.ready:
                done(index, m.failure_of(LeaderNotAvailableError(f"the leader of {name}-{number} is not up at the moment")))
                continue
            request, self.next_trim = self.next_trim, self.next_trim + 1
            self.trims[request] = (monotonic_ns() + TRIM_TIMEOUT_NS, lambda result, index=index: done(index, result))  # type: ignore[misc]
            self.supervision.connections.send(broker.connection, m.Trim(request, partition.block, topic.topic_id, offset))

    def trimmed(self, connection: Connection, message: m.Trimmed, reply: Reply) -> None:
        entry = self.trims.pop(message.request, None)
        if entry is not None:
            entry[1](message.failure if message.failure is not None else message.log_start)

    def register(self, connection: Connection, message: m.Register, reply: Reply) -> None:
        reply(m.Registered(self.rows.register(connection, message.kind, message.rows)))

    def unregister(self, connection: Connection, message: m.Unregister, reply: Reply) -> None:
        self.rows.unregister(connection.pid, message.rows)
        reply(m.Done(self.decisions.view.version))

    def describe_cluster(self, connection: Connection, message: m.DescribeCluster, reply: Reply) -> None:
        reply(m.Described(os.getpid(), self.decisions.epoch, self.decisions.view.version, len(self.rows.clients), self.rows.count()))
