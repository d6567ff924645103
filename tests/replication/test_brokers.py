"""Brokers that come while the cluster runs, and stay over its restarts."""

from __future__ import annotations

from pathlib import Path

import pytest

from shmlog import Admin, Cluster, NewTopic, Producer, errors
from tests.replication.conftest import DEADLINE_S, Partition, until


def test_an_added_broker_gets_partitions_and_is_there_again_after_a_restart(tmp_path: Path) -> None:
    data, other = str(tmp_path / "data"), str(tmp_path / "other")
    with Cluster(data_dir=data) as cluster, Admin() as admin:
        assert admin.add_broker() == {"broker_id": 1, "pid": cluster.pid("broker", 1), "directory": f"{data}/broker-1"}
        assert admin.add_broker(other)["directory"] == f"{other}/broker-2"
        admin.create_topics([NewTopic("t", 1, 3)])
        with Producer(acks="disk") as producer:
            producer.send("t", b"x").result(DEADLINE_S)
        assert Partition(cluster, "t").wait_isr(3)["replicas"] == [0, 1, 2]
    with Cluster(None, data_dir=data) as cluster, Admin() as admin:  # type: ignore[arg-type]
        assert [b["directory"] for b in admin.describe_cluster()["brokers"]] == [f"{data}/broker-0", f"{data}/broker-1", f"{other}/broker-2"]
        assert Partition(cluster, "t").wait_isr(3)["log_end_offset"] == 1


def test_a_broker_that_cannot_start_is_not_added_and_the_reason_is_raised(tmp_path: Path) -> None:
    (tmp_path / "broker-1").write_text("a file where its directory should be")
    with Cluster() as cluster, Admin() as admin:
        with pytest.raises(errors.StorageError, match="broker-1"):
            admin.add_broker(str(tmp_path))
        assert [b["broker_id"] for b in admin.describe_cluster()["brokers"]] == [0]
        assert admin.add_broker()["broker_id"] == 1
        assert cluster.pid("broker", 1)


def test_one_broker_is_added_when_the_coordinator_dies_over_the_request(tmp_path: Path) -> None:
    with Cluster(data_dir=str(tmp_path)) as cluster, Admin() as admin:
        for expected in range(1, 4):
            cluster.kill("coordinator")  # the request meets nobody, or a successor
            added = admin.add_broker()
            assert added["broker_id"] == expected
            until(lambda: cluster.pid("standby"), "another standby")
        assert len(admin.describe_cluster()["brokers"]) == 4
