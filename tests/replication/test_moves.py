"""Partitions that go to other brokers while records come: nothing acknowledged is lost, and neither producers nor consumers notice."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shmlog import Admin, Cluster, Consumer, NewTopic, Producer, TopicPartition, errors
from shmlog.testing.history import check, load
from shmlog.testing.waiting import until
from shmlog.testing.workload import Ledger, consume, history_of
from tests.replication.conftest import DEADLINE_S, Partition
from tests.replication.test_replicas import hold_back, make, read_all, reboot
from tests.replication.workers import produce

T0 = TopicPartition("t", 0)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(brokers=4, data_dir=str(tmp_path / "data"), config={"replica.lag.time.max.ms": 1000}) as made:
        yield made


def move(to: list[int] | None, topic: str = "t") -> None:
    with Admin() as admin:
        admin.reassign_partitions({TopicPartition(topic, 0): to})


def wait_moved(partition: Partition, to: list[int]) -> dict[str, Any]:
    def moved() -> dict[str, Any] | None:
        seen = partition.seen
        return seen if seen["replicas"] == to and not seen["adding_replicas"] else None

    return until(moved, f"{partition.topic} to be at {to}")  # type: ignore[no-any-return]


def directories(cluster: Cluster, topic: str = "t") -> list[int]:
    """The brokers that have files of it."""
    return sorted(int(path.parent.name.removeprefix("broker-")) for path in Path(cluster.data_dir).glob(f"broker-*/{topic}-0-*"))


@contextlib.contextmanager
def load_on(cluster: Cluster, tmp_path: Path, topic: str = "t", producers: int = 2) -> Iterator[Callable[[int], None]]:
    """Producers with acks=all that never stop, and a consumer, in processes of their own; yields a function that waits until each producer has so many
    further records acknowledged. At the end: nobody failed, everything is read once more, and the histories are checked."""
    spawn = multiprocessing.get_context("spawn")
    ledgers = [tmp_path / f"{topic}-{n}" for n in range(producers)]
    stop = tmp_path / f"{topic}-stop"
    read = tmp_path / f"{topic}-consumer"
    Ledger(read, create=True)
    workers = []
    for n, path in enumerate(ledgers):
        Ledger(path, create=True)
        workers.append(spawn.Process(target=produce, args=(cluster.address, topic, str(path), n, str(stop)), daemon=True))
    workers.append(spawn.Process(target=consume, args=(cluster.address, topic, str(read)), daemon=True))
    for worker in workers:
        worker.start()

    def further(count: int) -> None:
        before = [Ledger(path).done for path in [*ledgers, read]]
        for path, was in zip([*ledgers, read], before, strict=True):
            until(lambda path=path, was=was: Ledger(path).done >= was + count or Ledger(path).failures, f"{count} records more of {path.name}")  # type: ignore[misc]
            assert not Ledger(path).failures
        assert all(worker.is_alive() for worker in workers)

    try:
        further(1000)
        yield further
        further(1000)
        stop.touch()
        for worker, path in zip(workers, ledgers, strict=False):
            worker.join(DEADLINE_S)
            assert worker.exitcode == 0 and Ledger(path).finished
        total = sum(Ledger(path).done for path in ledgers)
        until(lambda: Ledger(read).done == total or not workers[-1].is_alive(), f"the consumer to read all {total} records")
        assert workers[-1].is_alive(), "the consumer died"
        assert Partition(cluster, topic).seen["log_end_offset"] == total
    finally:
        for worker in workers:
            worker.kill()
            worker.join(DEADLINE_S)
    found = check(load([history_of(path) for path in [*ledgers, read]]))
    assert not found, found


@pytest.mark.parametrize(("begin", "to"), [([0], [1]), ([0, 1], [2, 3]), ([0], [0, 1, 2]), ([2, 1, 0], [1])], ids=["one", "both", "more", "fewer"])
def test_a_topic_moves_under_load_and_nobody_notices(cluster: Cluster, tmp_path: Path, begin: list[int], to: list[int]) -> None:
    with Admin() as admin:
        admin.create_topics([NewTopic("t", replica_assignments={0: begin}, config={"segment.bytes": "262144"})])
    partition = Partition(cluster, "t")
    with load_on(cluster, tmp_path) as further:
        move(to)
        seen = wait_moved(partition, to)
        assert seen["leader"] in to and sorted(seen["isr"]) == sorted(to)
        until(lambda: directories(cluster) == sorted(to), "the files of the old replicas to go")
        further(1000)
    for broker in to:
        until(lambda broker=broker: partition.file_end(broker) == partition.seen["log_end_offset"], f"broker {broker} to have everything")  # type: ignore[misc]


def test_a_move_goes_on_when_the_coordinator_is_killed_in_it(cluster: Cluster, tmp_path: Path) -> None:
    with Admin() as admin:
        admin.create_topics([NewTopic("t", replica_assignments={0: [0, 1]}, config={"segment.bytes": "262144"})])
    partition = Partition(cluster, "t")
    with load_on(cluster, tmp_path) as further, Admin() as admin:
        for stopped, to in ((3, [3, 2]), (1, [0, 1]), (2, [2, 0])):
            until(lambda: cluster.pid("standby"), "a standby")
            pid = cluster.kill("broker", stopped, signal.SIGSTOP)  # so that the move cannot end before the coordinator
            move(to)
            cluster.kill("coordinator")
            assert admin.list_partition_reassignments()[T0]["adding_replicas"]
            with contextlib.suppress(ProcessLookupError):  # the successor may have killed it
                os.kill(pid, signal.SIGCONT)
            wait_moved(partition, to)
            further(500)
        until(lambda: directories(cluster) == [0, 2], "the files of the old replicas to go")


def test_a_move_to_a_broker_that_dies_waits_for_it_and_can_be_taken_back(cluster: Cluster) -> None:
    make("t", factor=1)
    partition = Partition(cluster, "t")
    home = partition.leader
    other = next(b for b in range(4) if b != home)
    with Producer(acks="all") as producer, Consumer("t", auto_offset_reset="earliest") as consumer, Admin() as admin:
        for n in range(2000):
            producer.send("t", b"%d" % n)
        producer.flush(DEADLINE_S)
        pid = cluster.kill("broker", other, signal.SIGSTOP)  # it lives and copies nothing; the coordinator kills it after a second
        move([other])
        assert admin.list_partition_reassignments() == {T0: {"replicas": [home, other], "adding_replicas": [other], "removing_replicas": [home]}}
        assert producer.send("t", b"2000").result(DEADLINE_S).offset == 2000
        move(None)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        assert partition.seen["replicas"] == [home] and admin.list_partition_reassignments() == {}
        with pytest.raises(errors.NoReassignmentInProgressError):
            move(None)
        assert producer.send("t", b"2001").result(DEADLINE_S).offset == 2001
        until(lambda: directories(cluster) == [home], "what was copied to go")
        move([other])  # and after all
        wait_moved(partition, [other])
        assert producer.send("t", b"2002").result(DEADLINE_S).offset == 2002
        values: list[bytes] = []
        while len(values) < 2003:
            values += [r.value for records in consumer.poll(timeout_ms=int(DEADLINE_S * 1000)).values() for r in records]
        assert values == [b"%d" % n for n in range(2003)]


def test_a_topic_in_memory_alone_goes_to_another_broker_at_once(cluster: Cluster) -> None:
    make("t", factor=1, shmlog_spill="false")
    partition = Partition(cluster, "t")
    home = partition.leader
    other = next(b for b in range(4) if b != home)
    with Producer(acks="all") as producer:
        for n in range(500):
            producer.send("t", b"%d" % n)
        move([other])
        assert partition.seen["replicas"] == [other] and partition.leader == other
        for n in range(500, 1000):
            producer.send("t", b"%d" % n)
    assert read_all("t", 1000) == [b"%d" % n for n in range(1000)]
    assert directories(cluster) == []


def test_a_broker_that_was_down_removes_what_it_has_no_more_when_it_is_back(cluster: Cluster) -> None:
    with Admin() as admin:
        admin.create_topics([NewTopic("t", replica_assignments={0: [0, 1]})])
    with Producer(acks="all") as producer:
        producer.send("t", b"x").result(DEADLINE_S)
    fd = hold_back(cluster, 1)
    try:
        move([0, 2])
        wait_moved(Partition(cluster, "t"), [0, 2])
        assert directories(cluster) == [0, 1, 2]
    finally:
        os.close(fd)
    until(lambda: directories(cluster) == [0, 2], "broker 1 to remove its files")
    assert read_all("t", 1) == [b"x"]


def test_the_new_replicas_of_a_move_are_those_after_a_restart(tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    with Cluster(brokers=3, data_dir=data) as cluster:
        make("t", factor=1)
        home = Partition(cluster, "t").leader
        with Producer(acks="disk") as producer:
            producer.send("t", b"x").result(DEADLINE_S)
        move([(home + 1) % 3, (home + 2) % 3])
        wait_moved(Partition(cluster, "t"), [(home + 1) % 3, (home + 2) % 3])
    with Cluster(brokers=3, data_dir=data) as cluster:
        assert Partition(cluster, "t").wait_isr(2)["replicas"] == [(home + 1) % 3, (home + 2) % 3]
        assert read_all("t", 1) == [b"x"]


MISTAKES: dict[str, tuple[list[int], type[Exception], str]] = {
    "no broker": ([], errors.InvalidReplicationAssignmentError, "at least one"),
    "one that is not there": ([0, 9], errors.InvalidReplicationAssignmentError, r"no broker 9, only \[0, 1, 2, 3\]"),
    "one twice": ([1, 2, 1], errors.InvalidReplicationAssignmentError, "broker 1 is named 2 times"),
    "fewer than must be in sync": ([1], errors.InvalidConfigurationError, "min.insync.replicas=2 with 1"),
}


def test_a_move_that_cannot_be_is_refused_with_its_reason_and_changes_nothing(cluster: Cluster) -> None:
    make("t", factor=2, min_insync_replicas=2)
    before = Partition(cluster, "t").seen
    for to, error, words in MISTAKES.values():
        with pytest.raises(error, match=words):
            move(to)
    down = next(b for b in range(4) if b not in before["replicas"])
    fd = hold_back(cluster, down)
    try:
        with pytest.raises(errors.InvalidReplicationAssignmentError, match=f"broker {down} is not up"):
            move([before["leader"], down])
    finally:
        os.close(fd)
    with pytest.raises(errors.UnknownTopicOrPartitionError):
        move([0], "nothing")
    make("memory", factor=1, shmlog_spill="false")
    with pytest.raises(errors.InvalidReplicationFactorError, match="memory alone"):
        move([0, 1], "memory")
    make("drops", factor=1, shmlog_full="drop_oldest")
    with pytest.raises(errors.InvalidReplicationAssignmentError, match="drop_oldest"):
        move([b for b in range(4) if b != Partition(cluster, "drops").leader][:1], "drops")
    assert Partition(cluster, "t").seen == before


def test_with_more_replicas_an_acknowledgement_waits_for_all_of_them(cluster: Cluster) -> None:
    make("t", factor=1)
    partition = Partition(cluster, "t")
    home = partition.leader
    with Producer(acks="all") as producer:  # the one handle all the time: it learns what acks=all means now
        assert producer.send("t", b"0").result(DEADLINE_S).offset == 0
        others = [b for b in range(4) if b != home][:2]
        move([home, *others])
        wait_moved(partition, [home, *others])
        for n in range(1, 200):
            assert producer.send("t", b"%d" % n).result(DEADLINE_S).offset == n
            assert [partition.file_end(broker) for broker in (home, *others)] == [n + 1] * 3


@pytest.mark.parametrize("rounds", [6, pytest.param(30, marks=pytest.mark.slow)])
def test_brokers_and_coordinators_are_killed_while_a_topic_moves_to_and_fro(cluster: Cluster, tmp_path: Path, rounds: int) -> None:
    seed = int(os.environ.get("SHMLOG_SEED") or random.randrange(2**32))
    print(f"SHMLOG_SEED={seed}")
    rng = random.Random(seed)
    with Admin() as admin:
        admin.create_topics([NewTopic("t", replica_assignments={0: [0]}, config={"segment.bytes": "262144"})])
    partition = Partition(cluster, "t")
    with load_on(cluster, tmp_path) as further:
        for _ in range(rounds):
            to = rng.sample(range(4), rng.randrange(1, 4))

            def begun(to: list[int] = to) -> bool:
                try:
                    move(to)
                except (errors.InvalidReplicationAssignmentError, errors.LeaderNotAvailableError):  # one of them was killed just now
                    return False
                return True

            until(begun, f"the move to {to} to begin")
            for _ in range(rng.randrange(3)):
                with contextlib.suppress(errors.IllegalStateError):  # dead already
                    role = rng.choice(["broker", "broker", "broker", "coordinator"])
                    cluster.kill(role, rng.randrange(4) if role == "broker" else 0)
            wait_moved(partition, to)
        further(1000)
        until(lambda: directories(cluster) == sorted(partition.seen["replicas"]), "the files of former replicas to go")
    partition.wait_isr(len(partition.seen["replicas"]))


def test_a_move_that_a_reboot_cut_short_goes_on_after_it(tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    with Cluster(brokers=2, data_dir=data) as cluster:
        with Admin() as admin:
            admin.create_topics([NewTopic("t", replica_assignments={0: [0]})])
        with Producer(acks="disk") as producer:
            for n in range(500):
                producer.send("t", b"%d" % n)
            producer.flush(DEADLINE_S)
        cluster.kill("broker", 1, signal.SIGSTOP)  # so that the move cannot end
        move([1])
        reboot(cluster)
    with Cluster(brokers=2, data_dir=data) as cluster:
        partition = Partition(cluster, "t")
        assert wait_moved(partition, [1])["leader"] == 1
        assert read_all("t", 500) == [b"%d" % n for n in range(500)]
        with Producer(acks="all") as producer:
            assert producer.send("t", b"on").result(DEADLINE_S).offset == 500
        until(lambda: directories(cluster) == [1], "the files of the old replica to go")


def test_a_consumer_that_does_not_poll_finds_the_files_where_they_are_now(cluster: Cluster) -> None:
    with Admin() as admin:
        admin.create_topics([NewTopic("t", replica_assignments={0: [0]}, config={"segment.bytes": "65536", "shmlog.memory.bytes": "262144"})])
    with Producer(acks="all") as producer, Consumer(auto_offset_reset="earliest") as consumer:
        consumer.assign([T0])
        for n in range(2000):
            producer.send("t", b"x" * 1000, timestamp_ms=10_000 + n)
        producer.flush(DEADLINE_S)
        move([1])
        wait_moved(Partition(cluster, "t"), [1])
        until(lambda: directories(cluster) == [1], "the files of the old replica to go")
        found = consumer.offsets_for_times({T0: 10_100})[T0]
        assert found is not None and found.offset == 100
        newest = consumer.latest(T0)
        assert newest is not None and newest.offset == 1999
