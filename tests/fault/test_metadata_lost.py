"""The metadata damaged or gone, in memory and on disk: the records lie elsewhere, and all are there again, under epochs above all earlier ones."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from real_cluster import RealCluster

from shmlog import Admin, Consumer, NewTopic, Producer, lifecycle, shm
from shmlog import messages as m
from shmlog.testing.waiting import until

TOPICS = {"plain": 3, "with-a-dash-7": 2, "empty": 4}
RECORDS = 200


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[RealCluster]:
    real = RealCluster(tmp_path / "data")
    real.command("up", "--data", str(real.data), "--brokers", "2")
    yield real
    real.end()
    left = [name for name in os.listdir("/dev/shm") if real.name in name]
    assert not left, f"left in /dev/shm: {left}"


def fill(cluster: RealCluster) -> None:
    with Admin(cluster.address) as admin:
        admin.create_topics([NewTopic(name, count, topic_configs={"retention.ms": "123456789"}) for name, count in TOPICS.items()])
    with Admin(f"{cluster.address}/space") as admin:
        admin.create_topics([NewTopic("plain", 1)])
    append(cluster, 0)


def topics_of(namespace: str) -> dict[str, int]:
    return {"plain": 1} if namespace else TOPICS


def append(cluster: RealCluster, first: int, producers: dict[str, Producer] | None = None) -> None:
    """RECORDS more, acknowledged with acks=1: they are in memory, and nothing is said about a disk."""
    with ExitStack() as stack:
        used = producers or {ns: stack.enter_context(producer(cluster, ns)) for ns in ("", "/space")}
        for namespace, open_one in used.items():
            for topic, count in topics_of(namespace).items():
                for i in range(first, first + RECORDS) if topic != "empty" else ():
                    open_one.send(topic, f"{namespace}{topic}{i}".encode(), partition=i % count)


def producer(cluster: RealCluster, namespace: str) -> Producer:
    return Producer(bootstrap_servers=cluster.address + namespace, acks=1)


def kill_with_records_that_nobody_wrote(cluster: RealCluster) -> None:
    """Stopped first: what is appended then is acknowledged, and in memory only."""
    roles = ("spare", "standby", "coordinator", "broker")
    with producer(cluster, "") as one, producer(cluster, "/space") as other:
        producers = {"": one, "/space": other}
        append(cluster, RECORDS, producers)  # so that all that it needs to know about the topics is known
        pids = cluster.pids(*roles)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        append(cluster, 2 * RECORDS, producers)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        until(lambda: not cluster.pids(*roles), "everything to be dead")


def check(cluster: RealCluster, records: int, before: m.ClusterView) -> None:
    """Everything is readable; epochs are strictly higher."""
    for namespace in ("", "/space"):
        for topic, count in topics_of(namespace).items():
            with Consumer(topic, bootstrap_servers=cluster.address + namespace, auto_offset_reset="earliest") as c:
                assert len(c.assignment()) == count
                found: list[bytes] = []
                ends = c.end_offsets(c.assignment())
                until(lambda: read_some(c, found) or all(c.position(tp) >= end for tp, end in ends.items()), f"all of {topic}")  # noqa: B023
            wanted = [] if topic == "empty" else [f"{namespace}{topic}{i}".encode() for i in range(records)]
            assert sorted(found) == sorted(wanted), (namespace, topic)
    after = lifecycle.view_of(cluster.name)
    assert after is not None
    assert after.coordinator_epoch > before.coordinator_epoch
    assert after.version > before.version
    assert sorted(after.topics) == sorted(before.topics)
    for name, topic in before.topics.items():
        now = after.topics[name]
        assert (now.topic_id, now.config) == (topic.topic_id, topic.config)
        assert all(a.leader_epoch > b.leader_epoch for a, b in zip(now.partitions, topic.partitions, strict=True))
    assert all(after.brokers[id].broker_epoch > broker.broker_epoch for id, broker in before.brokers.items())


def read_some(consumer: Any, found: list[bytes]) -> None:
    found += [record.value for records in consumer.poll(timeout_ms=20).values() for record in records]


def view_of(cluster: RealCluster) -> m.ClusterView:
    view = lifecycle.view_of(cluster.name)
    assert view is not None
    return view


def damage(path: str) -> None:
    with open(path, "r+b") as file:
        file.seek(200)
        piece = file.read(64)
        file.seek(200)
        file.write(bytes(255 - byte for byte in piece))


def damage_views(cluster: RealCluster, version: int, count: int) -> None:
    for number in range(version, version - count, -1):
        damage(shm.DIRECTORY + shm.view_name(shm.prefix(cluster.name), number))


def log_of(cluster: RealCluster, role: str = "coordinator") -> str:
    return (cluster.data / "logs" / f"{role}.log").read_text()


def lose_database(cluster: RealCluster) -> None:
    for path in cluster.data.glob("cluster.sqlite3*"):
        path.unlink()


@pytest.mark.parametrize(
    ("views", "database"), [(1, True), (2, False), pytest.param(2, True, marks=pytest.mark.slow), pytest.param(1, False, marks=pytest.mark.slow)]
)
def test_a_damaged_view_costs_nothing_that_was_acknowledged(cluster: RealCluster, views: int, database: bool) -> None:
    fill(cluster)
    before = view_of(cluster)
    kill_with_records_that_nobody_wrote(cluster)
    damage_views(cluster, before.version, views)
    if not database:
        lose_database(cluster)
    cluster.up()
    check(cluster, 3 * RECORDS, before)
    assert "METADATA DAMAGED" in log_of(cluster)
    cluster.command("down")
    cluster.up()
    check(cluster, 3 * RECORDS, before)


def test_a_standby_that_finds_the_view_damaged_goes_on_with_memory(cluster: RealCluster) -> None:
    fill(cluster)
    until(lambda: cluster.pids("standby"), "a standby")
    before = view_of(cluster)
    (active,) = cluster.pids("coordinator")
    memory = shm.identity(shm.object_name(shm.prefix(cluster.name), "control"))
    damage_views(cluster, before.version, 1)
    os.kill(active, signal.SIGKILL)
    until(lambda: (control := shm.read_control(shm.prefix(cluster.name))[1]) and control.view_version > before.version + 1, "a new view")
    assert shm.identity(shm.object_name(shm.prefix(cluster.name), "control")) == memory
    append(cluster, RECORDS)
    check(cluster, 2 * RECORDS, before)


def test_down_of_a_killed_cluster_with_a_damaged_view_writes_everything(cluster: RealCluster) -> None:
    fill(cluster)
    before = view_of(cluster)
    kill_with_records_that_nobody_wrote(cluster)
    damage_views(cluster, before.version, 1)
    cluster.command("down")
    cluster.up()
    check(cluster, 3 * RECORDS, before)


def garble(path: Path) -> None:
    path.write_bytes(b"this was a database" * 1000)


def garble_the_middle(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    path.write_bytes(data)


LOSSES = {
    "deleted": Path.unlink,
    "garbage": garble,
    "garbage behind the first page": garble_the_middle,
    "cut to half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "cut to nothing": lambda path: os.truncate(path, 0),
}
QUICK = ("deleted", "garbage behind the first page")


@pytest.mark.parametrize("loss", [pytest.param(loss, marks=() if loss in QUICK else pytest.mark.slow) for loss in LOSSES])
def test_a_lost_database_is_rebuilt_from_the_brokers_directories(cluster: RealCluster, loss: str) -> None:
    fill(cluster)
    before = view_of(cluster)
    cluster.command("down")
    LOSSES[loss](cluster.data / "cluster.sqlite3")
    cluster.up()
    assert "DATABASE LOST" in log_of(cluster)
    check(cluster, RECORDS, before)
    append(cluster, RECORDS)
    rebuilt = view_of(cluster)
    cluster.command("down")
    cluster.up()
    check(cluster, 2 * RECORDS, rebuilt)


def test_a_database_that_is_damaged_while_memory_is_there_is_written_anew(cluster: RealCluster) -> None:
    fill(cluster)
    before = view_of(cluster)
    cluster.kill_everything()
    lose_database(cluster)
    garble(cluster.data / "cluster.sqlite3")
    cluster.up()
    check(cluster, RECORDS, before)
    cluster.command("down")
    assert list(cluster.data.glob("cluster.sqlite3.damaged-*"))
    cluster.up()
    check(cluster, RECORDS, before)


def test_directories_that_say_nothing_but_their_names_and_logs_are_enough_for_the_records(cluster: RealCluster) -> None:
    """As an earlier version left them."""
    fill(cluster)
    before = view_of(cluster)
    cluster.command("down")
    lose_database(cluster)
    for path in [*cluster.data.glob("broker-*/*/topic"), *cluster.data.glob("broker-*/epochs")]:
        path.unlink()
    cluster.up()
    bare = {name: m.TopicView(t.name, t.topic_id, {}, t.partitions) for name, t in before.topics.items() if name != "empty"}
    after = view_of(cluster)
    empty = after.topics["empty"]
    assert (empty.topic_id[:4], len(empty.partitions)) == (before.topics["empty"].topic_id[:4], TOPICS["empty"])
    bare["empty"] = m.TopicView("empty", empty.topic_id, {}, before.topics["empty"].partitions)
    check(cluster, RECORDS, m.ClusterView(before.cluster_id, before.name, before.version, before.coordinator_epoch, 0, (), "", {}, {}, bare))


def test_directories_of_two_clusters_are_not_mixed(cluster: RealCluster) -> None:
    fill(cluster)
    cluster.command("down")
    lose_database(cluster)
    (cluster.data / "broker-1" / "lock").write_text("ab" * 16 + "\n")
    done = cluster.command("up", "--data", str(cluster.data), check=False)
    assert done.returncode != 0
    assert "2 clusters" in done.stderr
    assert list(cluster.data.glob("broker-*/*/*.log"))
