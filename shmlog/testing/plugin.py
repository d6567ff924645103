"""The pytest plugin (entry point pytest11): fixture shmlog_cluster, one cluster a session and a namespace a test.

    def test_orders(shmlog_cluster):
        with Producer(shmlog_cluster.address) as p: ...       # or Producer(): the namespace is the default address during the test

The cluster is real (own processes) and starts with the first test that asks; under xdist each worker has its own. A test that kills it costs the next
one a new start. What a test leaves in its namespace is deleted when it ends.
"""

from __future__ import annotations

import itertools
import os
import re
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from shmlog.embedded import Cluster

_numbers = itertools.count()


class ShmlogCluster:
    """What the fixture gives: a cluster as one test sees it. `address` is the test's namespace; `cluster` the Cluster itself, whose methods work here
    too."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster = cluster
        self.name = cluster.name
        self.test_namespace = namespace
        self.address = cluster.namespace(namespace)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cluster, name)

    def __repr__(self) -> str:
        return f"<ShmlogCluster {self.address}>"


class _Running:
    """The session's cluster."""

    def __init__(self) -> None:
        self.cluster: Cluster | None = None

    def get(self) -> Cluster:
        if self.cluster is None or not self.cluster.pid("coordinator") or not self.cluster.pid("broker"):
            self.stop()
            from shmlog.embedded import Cluster

            self.cluster = Cluster(brokers=1)
        return self.cluster

    def stop(self) -> None:
        cluster, self.cluster = self.cluster, None
        if cluster is not None:
            from shmlog.errors import ShmlogError

            try:
                cluster.stop()
            except ShmlogError:
                pass  # nobody of it lives any more; the next start removes what is left


@pytest.fixture(scope="session")
def _shmlog_running() -> Iterator[_Running]:
    running = _Running()
    yield running
    running.stop()


@pytest.fixture
def shmlog_cluster(_shmlog_running: _Running, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ShmlogCluster]:
    """A running cluster and a namespace of its own in it, which is also the default address during the test."""
    cluster = _shmlog_running.get()
    readable = re.sub(r"[^A-Za-z0-9_-]", "-", request.node.name)[:14]
    namespace = f"{readable}-{zlib.crc32(request.node.nodeid.encode()):08x}-{next(_numbers)}"[:32]
    here = ShmlogCluster(cluster, namespace)
    monkeypatch.setenv("SHMLOG_CLUSTER", f"{cluster.name}/{namespace}")
    yield here
    if cluster._pid == os.getpid() and not _delete(here):  # else: a forked child that ran on into the teardown
        _shmlog_running.stop()  # the test has killed it: the next one gets a new one


def _delete(here: ShmlogCluster) -> bool:
    """Deletes the test's topics. False: the cluster does not answer any more."""
    from shmlog import errors, messages
    from shmlog.client.session import attach

    try:
        with attach(here.address) as session:
            session.request(messages.DeleteNamespace(here.test_namespace), 10.0)
    except errors.ShmlogError:
        return False
    return True
