"""The fixture shmlog_cluster, as a user's test suite would meet it."""

from __future__ import annotations

from typing import Any

import pytest

from shmlog import Admin, Consumer, Producer

addresses = []


@pytest.mark.parametrize("run", [1, 2])
def test_each_test_has_a_namespace_of_its_own_on_the_same_cluster(shmlog_cluster: Any, run: int) -> None:
    addresses.append(shmlog_cluster.address)
    assert len(set(addresses)) == len(addresses)
    assert len({address.partition("/")[0] for address in addresses}) == 1 or run == 1
    with Admin(shmlog_cluster.address) as admin, Producer(shmlog_cluster.address) as p:
        assert admin.list_topics() == []
        assert p.send("same-name", b"x").offset == 0


def test_the_namespace_is_the_default_address(shmlog_cluster: Any) -> None:
    with Producer() as p, Consumer("t", missing="wait", auto_offset_reset="earliest") as c, Admin(shmlog_cluster.address) as admin:
        p.send("t", b"x")
        assert admin.list_topics() == ["t"]
        assert [r.value for records in c.poll(timeout_ms=5000).values() for r in records] == [b"x"]


def test_the_clusters_own_methods_are_there(shmlog_cluster: Any) -> None:
    assert shmlog_cluster.pid("broker") > 0
    assert shmlog_cluster.cluster.name == shmlog_cluster.name


def test_a_test_may_kill_the_cluster(shmlog_cluster: Any) -> None:
    for role in ("spare", "standby", "coordinator", "broker"):
        try:
            shmlog_cluster.kill(role)
        except Exception:
            pass


def test_and_the_next_one_has_a_running_one(shmlog_cluster: Any) -> None:
    with Producer() as p:
        assert p.send("t", b"x").offset == 0
