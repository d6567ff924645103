"""Brokers that come and go while the cluster runs, and stay, or stay away, over its restarts."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shmlog import Admin, Cluster, NewTopic, Producer, errors, lifecycle
from shmlog.testing.waiting import until
from tests.replication.conftest import DEADLINE_S, Partition
from tests.replication.test_moves import directories, load_on
from tests.replication.test_replicas import hold_back, read_all


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


def test_one_broker_is_added_when_the_coordinator_dies_between_decision_and_reply(tmp_path: Path) -> None:
    (tmp_path / "broker-1").mkdir()
    with Cluster(data_dir=str(tmp_path)) as cluster, Admin() as admin, ThreadPoolExecutor(1) as pool:
        with open(tmp_path / "broker-1" / "lock", "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # its start waits for this
            adding = pool.submit(admin.add_broker)
            with Admin() as other:
                until(lambda: brokers(other) == [0, 1] and cluster.pid("broker", 1), "the decision")
            cluster.kill("coordinator")
            until(lambda: cluster.pid("coordinator"), "the successor")
        assert adding.result(DEADLINE_S) == {"broker_id": 1, "pid": cluster.pid("broker", 1), "directory": str(tmp_path / "broker-1")}
        assert brokers(admin) == [0, 1]


def brokers(admin: Admin) -> list[int]:
    return [b["broker_id"] for b in admin.describe_cluster()["brokers"]]


@pytest.mark.parametrize("begin", [[1], [1, 0]], ids=["alone", "with a follower"])
def test_a_broker_that_leads_retires_under_load_and_nobody_notices(tmp_path: Path, begin: list[int]) -> None:
    data = tmp_path / "data"
    with Cluster(brokers=3, data_dir=str(data)) as cluster, Admin() as admin:
        admin.create_topics([NewTopic("t", replica_assignments={0: begin}, config={"segment.bytes": "262144"})])
        admin.create_topics([NewTopic("memory", replica_assignments={0: [1]}, config={"shmlog.spill": "false"})])
        partition = Partition(cluster, "t")
        with load_on(cluster, tmp_path) as further:
            admin.retire_broker(1)
            until(lambda: brokers(admin) == [0, 2], "broker 1 to be forgotten")
            assert not cluster.pid("broker", 1)
            further(1000)
        seen = partition.seen
        assert len(seen["replicas"]) == len(begin) and 1 not in seen["replicas"]
        assert Partition(cluster, "memory").leader in (0, 2)
        until(lambda: directories(cluster) == sorted(seen["replicas"]), "its files to go")
        assert (data / "broker-1" / "retired").exists()
        records = seen["log_end_offset"]
    with Cluster(None, data_dir=str(data)) as cluster, Admin() as admin:  # type: ignore[arg-type]
        assert brokers(admin) == [0, 2]
        assert len(read_all("t", records)) == records
        assert admin.add_broker()["broker_id"] == 1  # its directory is used again
        assert not (data / "broker-1" / "retired").exists()


def test_a_broker_goes_on_retiring_when_the_coordinator_is_killed_over_it(tmp_path: Path) -> None:
    with Cluster(brokers=3, data_dir=str(tmp_path)) as cluster, Admin() as admin:
        admin.create_topics([NewTopic("t", replica_assignments={0: [0, 1]})])
        with Producer(acks="all") as producer:
            producer.send("t", b"x").result(DEADLINE_S)
            pid = cluster.kill("broker", 2, signal.SIGSTOP)  # so that it cannot end before the coordinator
            admin.retire_broker(0)
            cluster.kill("coordinator")
            assert [b["retiring"] for b in admin.describe_cluster()["brokers"]] == [True, False, False]
            assert admin.list_partition_reassignments()
            until(lambda: cluster.pid("broker", 2) not in (0, pid), "the successor to start broker 2 again")
            until(lambda: brokers(admin) == [1, 2], "broker 0 to be forgotten")
            assert producer.send("t", b"y").result(DEADLINE_S).offset == 1
        assert Partition(cluster, "t").wait_isr(2)["replicas"] == [2, 1]


def test_a_retired_broker_that_a_successor_finds_dead_is_forgotten_and_not_started_again(tmp_path: Path) -> None:
    with Cluster(brokers=2, data_dir=str(tmp_path)) as cluster, Admin() as admin:
        cluster.kill("broker", 1, signal.SIGSTOP)  # it has nothing, and cannot hear that it may end
        standby = cluster.kill("standby", number=signal.SIGSTOP)
        admin.retire_broker(1)
        cluster.kill("coordinator")
        cluster.kill("broker", 1)
        with contextlib.suppress(ProcessLookupError):
            os.kill(standby, signal.SIGCONT)
        until(lambda: brokers(admin) == [0], "broker 1 to be forgotten")
        assert (tmp_path / "logs" / "broker-1.log").read_text().count("starts as broker 1") == 1


def test_a_retiring_broker_that_dies_with_files_comes_back_to_remove_them(tmp_path: Path) -> None:
    with Cluster(brokers=3, data_dir=str(tmp_path)) as cluster, Admin() as admin:
        admin.create_topics([NewTopic("t", replica_assignments={0: [0, 1]})])
        with Producer(acks="all") as producer:
            producer.send("t", b"x").result(DEADLINE_S)
        fd = hold_back(cluster, 1)
        try:
            admin.retire_broker(1)
            until(lambda: Partition(cluster, "t").seen["replicas"] == [0, 2], "its partition to be at another broker")
            cluster.kill("broker", 1)  # the one that waits for the directory
            until(lambda: cluster.pid("broker", 1), "the next one: there are files to remove")
            assert brokers(admin) == [0, 1, 2]
        finally:
            os.close(fd)
        until(lambda: brokers(admin) == [0, 2], "broker 1 to be forgotten")
        assert directories(cluster) == [0, 2]


def test_a_broker_whose_partitions_have_nowhere_to_go_stays_unless_forced(tmp_path: Path) -> None:
    with Cluster(brokers=2, data_dir=str(tmp_path)) as cluster, Admin() as admin:
        admin.create_topics([NewTopic("t", 3, 2, config={"min.insync.replicas": "2"}), NewTopic("u", 1, 2)])
        with pytest.raises(errors.NotEnoughReplicasError, match=r"of its 4 partitions 4 .* 3 of them below min.insync.replicas: t-0 \(1 of 2"):
            admin.retire_broker(0)
        with pytest.raises(errors.BrokerIdNotRegisteredError, match=r"no broker 7, only \[0, 1\]"):
            admin.retire_broker(7)
        with Producer(acks="all") as producer:
            producer.send("u", b"x").result(DEADLINE_S)
            admin.retire_broker(0, force=True)
            until(lambda: brokers(admin) == [1], "broker 0 to be forgotten")
            assert producer.send("u", b"y").result(DEADLINE_S).offset == 1
        assert Partition(cluster, "u").seen["replicas"] == [1]
        with pytest.raises(errors.IllegalStateError, match="no other broker is up"):
            admin.retire_broker(1, force=True)


def test_the_last_replica_in_sync_is_not_given_up_also_if_forced(tmp_path: Path) -> None:
    with Cluster(brokers=2, data_dir=str(tmp_path), config={"replica.lag.time.max.ms": 500}) as cluster, Admin() as admin:
        admin.create_topics([NewTopic("t", replica_assignments={0: [0, 1]})])
        with Producer(acks="all") as producer:
            producer.send("t", b"0").result(DEADLINE_S)
            fd = hold_back(cluster, 1)
            try:
                Partition(cluster, "t").wait_isr(1)
                for n in range(1, 1000):
                    producer.send("t", b"%d" % n)
                producer.flush(DEADLINE_S)
            finally:
                os.close(fd)
            until(lambda: len(admin.describe_cluster()["brokers"]) == 2 and cluster.pid("broker", 1), "broker 1")

            def forced() -> bool:
                try:
                    admin.retire_broker(0, force=True)
                except errors.IllegalStateError:
                    return False  # broker 1 is not up yet
                return True

            until(forced, "broker 0 to be retired by force")
            until(lambda: brokers(admin) == [1], "broker 0 to be forgotten: only when broker 1 has everything")
            assert producer.send("t", b"1000").result(DEADLINE_S).offset == 1000
        assert read_all("t", 1001) == [b"%d" % n for n in range(1001)]


def test_the_cluster_goes_down_also_while_a_retired_broker_has_not_ended_yet(tmp_path: Path) -> None:
    with Cluster(brokers=2, data_dir=str(tmp_path)) as cluster, Admin() as admin:
        cluster.kill("broker", 1, signal.SIGSTOP)  # it cannot hear that it may end, and is killed for being stopped
        admin.retire_broker(1)
        assert brokers(admin) == [0, 1]
        assert lifecycle.stop_cluster(cluster.name, timeout=30)
    with Cluster(None, data_dir=str(tmp_path)) as cluster, Admin() as admin:  # type: ignore[arg-type]
        until(lambda: brokers(admin) == [0], "broker 1 to be forgotten")
