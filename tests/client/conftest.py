"""Handles on the session's cluster, in the namespace of the test; all are closed when it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from shmlog import Admin, Consumer, NewTopic, Producer


class Handles:
    """Makes producers, consumers and topics of one namespace."""

    def __init__(self, address: str, stack: ExitStack) -> None:
        self.address = address
        self._stack = stack

    def producer(self, **keywords: Any) -> Producer:
        keywords.setdefault("max_block_ms", 10_000)
        keywords.setdefault("delivery_timeout_ms", 10_000)
        return self._stack.enter_context(Producer(bootstrap_servers=self.address, **keywords))

    def consumer(self, *topics: str, **keywords: Any) -> Consumer:
        keywords.setdefault("auto_offset_reset", "earliest")
        keywords.setdefault("consumer_timeout_ms", 3000)
        return self._stack.enter_context(Consumer(*topics, bootstrap_servers=self.address, **keywords))

    def admin(self) -> Admin:
        return self._stack.enter_context(Admin(bootstrap_servers=self.address))

    def topic(self, name: str, partitions: int = 1, **config: str) -> str:
        """Underscores in keys of config stand for dots."""
        self.admin().create_topics([NewTopic(name, partitions, 1, config={k.replace("_", "."): v for k, v in config.items()})])
        return name


@pytest.fixture
def here(shmlog_cluster: Any) -> Iterator[Handles]:
    with ExitStack() as stack:
        yield Handles(shmlog_cluster.address, stack)


@pytest.fixture
def take() -> Callable[[Consumer, int], list[Any]]:
    """take(consumer, n): n records by iteration, fewer only if none came for consumer_timeout_ms."""

    def take(consumer: Consumer, n: int) -> list[Any]:
        found = []
        for record in consumer:
            found.append(record)
            if len(found) == n:
                break
        return found

    return take
