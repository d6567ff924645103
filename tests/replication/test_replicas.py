"""Replicas at three brokers: what is acknowledged, who leads when somebody dies, and what comes back after a reboot."""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from shmlog import Admin, Cluster, Consumer, NewTopic, Producer, TopicPartition, config, errors, shm
from shmlog.testing.processes import kill_all
from shmlog.testing.waiting import until
from tests.replication.conftest import DEADLINE_S, Partition


def make(topic: str, partitions: int = 1, factor: int = 3, **config: Any) -> None:
    with Admin() as admin:
        admin.create_topics([NewTopic(topic, partitions, factor, config={k.replace("_", "."): str(v) for k, v in config.items()})])


def read_all(topic: str, end: int, partition: int = 0) -> list[bytes]:
    values: list[bytes] = []
    tp = TopicPartition(topic, partition)
    with Consumer(auto_offset_reset="earliest") as consumer:
        consumer.assign([tp])
        deadline = time.monotonic() + DEADLINE_S
        while consumer.position(tp) < end:
            assert time.monotonic() < deadline, f"{topic} ends for a consumer at {consumer.position(tp)}, not at {end}"
            for records in consumer.poll(timeout_ms=100, max_records=5000).values():
                values += [record.value for record in records]
    return values


def test_what_is_acknowledged_by_all_lies_in_the_files_of_all(cluster: Cluster) -> None:
    make("t")
    with Producer(acks="all") as producer:
        for n in range(2000):
            last = producer.send("t", b"%d" % n)
        last.result(DEADLINE_S)
        partition = Partition(cluster, "t")
        assert [partition.file_end(broker) for broker in range(3)] == [2000] * 3
    with Producer(acks="disk") as producer:
        producer.send("t", b"x").result(DEADLINE_S)
        assert partition.seen["durable_offset"] == 2001


def test_consumers_see_nothing_above_the_high_watermark(cluster: Cluster) -> None:
    make("t")
    make("fast", shmlog_visibility="appended")
    partition = Partition(cluster, "t")
    follower = next(b for b in range(3) if b != partition.leader)
    os.kill(pid := cluster.pid("broker", follower), signal.SIGSTOP)
    try:
        with Producer(acks=1) as producer, Consumer("t", "fast", auto_offset_reset="earliest") as consumer:
            producer.send("t", b"not yet")
            producer.send("fast", b"at once")
            seen = [r.value for records in consumer.poll(timeout_ms=500).values() for r in records]
            assert seen == [b"at once"]
            # The stopped one leaves the in-sync replicas, or is killed and comes back: either way it is committed then.
            found = until(lambda: consumer.poll(timeout_ms=100), "the record to be committed")
            assert [r.value for records in found.values() for r in records] == [b"not yet"]
    finally:
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            pass


def produce(address: str, topic: str, name: int, count: int, acks: Any, results: Any) -> None:
    """Sends `count` records and reports which offset each got, once it is acknowledged."""
    acknowledged = []
    with Producer(bootstrap_servers=address, acks=acks) as producer:
        sent = []
        for n in range(count):
            sent.append(producer.send(topic, b"%d:%d" % (name, n), partition=0))
            if len(sent) == 50:
                acknowledged += [d.result(DEADLINE_S).offset for d in sent]
                sent.clear()
        acknowledged += [d.result(DEADLINE_S).offset for d in sent]
    results.put((name, acknowledged))


@pytest.mark.parametrize("acks", ["all", 1])
def test_leaders_are_killed_under_load_and_every_acknowledged_record_is_there_once(cluster: Cluster, acks: Any) -> None:
    make("t")
    partition = Partition(cluster, "t")
    spawn = multiprocessing.get_context("spawn")
    results: Any = spawn.Queue()
    count, workers = 6000, 3
    producers = [spawn.Process(target=produce, args=(cluster.address, "t", n, count, acks, results), daemon=True) for n in range(workers)]
    for process in producers:
        process.start()
    kills = 0
    while any(p.is_alive() for p in producers) and kills < 4:
        seen = partition.seen
        if seen["leader"] < 0 or len(seen["isr"]) < 2 or seen["log_end_offset"] < (kills + 1) * count * workers // 6:
            continue
        cluster.kill("broker", seen["leader"])
        kills += 1
        until(lambda before=seen: partition.seen["leader_epoch"] > before["leader_epoch"], "another leader")  # type: ignore[misc]
    offsets = {}
    for _ in producers:
        name, acknowledged = results.get(timeout=DEADLINE_S * 2)
        assert acknowledged == sorted(acknowledged)
        offsets.update({offset: b"%d:%d" % (name, n) for n, offset in enumerate(acknowledged)})
    for process in producers:
        process.join(DEADLINE_S)
    assert kills >= 2
    assert sorted(offsets) == list(range(count * workers))
    until(lambda: partition.seen["high_watermark"] == count * workers, "everything to be committed")
    assert read_all("t", count * workers) == [offsets[n] for n in range(count * workers)]
    partition.wait_isr(3)
    for broker in range(3):
        until(lambda broker=broker: partition.file_end(broker) == count * workers, f"broker {broker} to have everything")  # type: ignore[misc]


def test_all_brokers_are_killed_and_nothing_is_lost(cluster: Cluster) -> None:
    make("t", 4)
    with Producer(acks=1) as producer:
        for n in range(4000):
            producer.send("t", b"%d" % n, partition=n % 4)
        for broker in range(3):
            cluster.kill("broker", broker)
        for n in range(4000, 4400):
            producer.send("t", b"%d" % n, partition=n % 4)
    for number in range(4):
        partition = Partition(cluster, "t", number)
        until(lambda p=partition: p.seen["high_watermark"] == 1100, "everything to be committed")  # type: ignore[misc]
        assert read_all("t", 1100, number) == [b"%d" % n for n in range(number, 4400, 4)]
        partition.wait_isr(3)


def test_a_leader_that_lost_its_oldest_file_does_not_take_it_from_the_others(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with Cluster(brokers=3, data_dir=str(data)) as cluster:
        make("t", segment_bytes=65536)
        partition = Partition(cluster, "t")
        with Producer(acks="disk") as producer:
            for _ in range(300):
                producer.send("t", b"x" * 1000).result(DEADLINE_S)
        leader = partition.leader
        reboot(cluster)
        names = sorted(path.name for path in partition.directory(leader).glob("*.log"))
        (partition.directory(leader) / names[0]).unlink()
        second = int(names[1][:20])
    with Cluster(brokers=3, data_dir=str(data)) as cluster:
        partition = Partition(cluster, "t")
        until(lambda: partition.seen["log_end_offset"] == 300, "a leader that has opened its log")
        assert partition.leader == leader  # the first of those that have as much
        assert partition.seen["log_start_offset"] == 0
        tp = TopicPartition("t", 0)
        with Consumer() as consumer:
            consumer.assign([tp])
            consumer.seek(tp, 0)
            with pytest.raises(errors.CorruptRecordError) as caught:
                consumer.poll(timeout_ms=5000)
            assert (caught.value.offset, caught.value.end_offset) == (0, second)
        for broker in {0, 1, 2} - {leader}:
            assert list(partition.directory(broker).glob(f"{0:020}-*.log")), f"broker {broker} has removed what the leader lost"


def reboot(cluster: Cluster) -> None:
    """All processes die and the memory is gone, as after a power cut; what is on disk is there."""

    until(lambda: kill_all(cluster.name), "everybody to be dead")
    shm.remove_cluster(shm.prefix(cluster.name))
    shutil.rmtree(f"/dev/shm/{shm.prefix(cluster.name)[1:]}", ignore_errors=True)
    cluster._stopped = True


def test_after_a_reboot_the_longest_replica_leads_and_the_others_follow_it(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with Cluster(brokers=3, data_dir=str(data)) as cluster:
        make("t")
        partition = Partition(cluster, "t")
        with Producer(acks="disk") as producer:
            for n in range(500):
                producer.send("t", b"%d" % n)
            producer.flush(DEADLINE_S)
        reboot(cluster)
    # One replica is short of what it had not synced; another has lost its files altogether.
    with Cluster(brokers=3, data_dir=str(data)) as again:
        partition = Partition(again, "t")
        partition.wait_isr(3)
        assert read_all("t", 500) == [b"%d" % n for n in range(500)]
        reboot(again)
    recovery_cut(partition, 0, 300)
    shutil.rmtree(partition.directory(2))
    with Cluster(brokers=3, data_dir=str(data)) as third:
        partition = Partition(third, "t")
        seen = partition.wait_isr(3)
        assert seen["leader"] == 1
        assert read_all("t", 500) == [b"%d" % n for n in range(500)]
        with Producer(acks="all") as producer:
            assert producer.send("t", b"on").result(DEADLINE_S).offset == 500
        assert [partition.file_end(broker) for broker in range(3)] == [501] * 3


def recovery_cut(partition: Partition, broker: int, end: int) -> None:
    from shmlog.broker import recovery

    recovery.cut(str(partition.directory(broker)), 2**31, end)
    assert partition.file_end(broker) == end


def hold_back(cluster: Cluster, broker: int) -> int:
    """Kills a broker and keeps its directory locked, so that it cannot come back until the returned descriptor is closed."""
    cluster.kill("broker", broker)
    fd = os.open(os.path.join(cluster.data_dir, f"broker-{broker}", "lock"), os.O_RDWR | os.O_CLOEXEC)

    def locked() -> bool:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # the next one was as quick
            with contextlib.suppress(errors.IllegalStateError):
                cluster.kill("broker", broker)
            return False
        return True

    until(locked, "the lock of the directory")
    return fd


def test_acks_all_says_so_when_too_few_replicas_are_in_sync(cluster: Cluster) -> None:
    make("t", min_insync_replicas=3)
    partition = Partition(cluster, "t")
    with Producer(acks="all") as strict, Producer(acks=1) as loose:
        assert strict.send("t", b"0").result(DEADLINE_S).offset == 0
        follower = next(b for b in range(3) if b != partition.leader)
        fd = hold_back(cluster, follower)
        try:
            partition.wait_isr(2)
            with pytest.raises(errors.NotEnoughReplicasError) as caught:
                strict.send("t", b"1")
            assert (caught.value.in_sync, caught.value.required) == (2, 3)
            assert loose.send("t", b"2").offset == 1
            assert partition.seen["high_watermark"] == 1
        finally:
            os.close(fd)
        partition.wait_isr(3)
        assert strict.send("t", b"3").result(DEADLINE_S).offset == 2
    assert read_all("t", 3) == [b"0", b"2", b"3"]


def test_a_follower_that_was_away_catches_up_from_the_files(cluster: Cluster) -> None:
    make("t", segment_bytes=65536)
    partition = Partition(cluster, "t")
    with Producer(acks="all") as producer:
        producer.send("t", b"x" * 1000).result(DEADLINE_S)
        follower = next(b for b in range(3) if b != partition.leader)
        fd = hold_back(cluster, follower)
        try:
            partition.wait_isr(2)
            for _ in range(3000):
                producer.send("t", b"x" * 1000)
            producer.flush(DEADLINE_S)
        finally:
            os.close(fd)
        seen = partition.wait_isr(3)
        assert partition.file_end(follower) == seen["log_end_offset"] == 3001


def test_the_preferred_replica_is_elected_when_asked(cluster: Cluster) -> None:
    make("t")
    partition = Partition(cluster, "t")
    first = partition.leader
    with Producer(acks="all") as producer, Admin() as admin, Consumer("t", auto_offset_reset="earliest") as consumer:
        with pytest.raises(errors.ElectionNotNeededError):
            admin.elect_leaders("preferred", {"t": [0]})
        producer.send("t", b"0").result(DEADLINE_S)
        cluster.kill("broker", first)
        until(lambda: partition.leader not in (first, -1), "another leader")
        producer.send("t", b"1").result(DEADLINE_S)
        partition.wait_isr(3)
        assert admin.elect_leaders()[TopicPartition("t", 0)]["error_code"] == 0
        assert partition.leader == first
        producer.send("t", b"2").result(DEADLINE_S)
        values = []
        while len(values) < 3:
            values += [r.value for records in consumer.poll(timeout_ms=int(DEADLINE_S * 1000)).values() for r in records]
        assert values == [b"0", b"1", b"2"]


def test_a_deleted_topic_leaves_no_files_at_any_broker(cluster: Cluster) -> None:
    make("t", 2)
    with Producer(acks="all") as producer:
        for n in range(10):
            producer.send("t", b"x", partition=n % 2)
        producer.flush(DEADLINE_S)
    assert len(list(Path(cluster.data_dir).glob("broker-*/t-*"))) == 6
    with Admin() as admin:
        admin.delete_topics(["t"])
    until(lambda: not list(Path(cluster.data_dir).glob("broker-*/t-*")), "the directories to go")


def test_trimmed_records_go_at_every_replica(cluster: Cluster) -> None:
    make("t", segment_bytes=65536)
    partition = Partition(cluster, "t")
    with Producer(acks="all") as producer, Admin() as admin:
        for _ in range(300):
            producer.send("t", b"x" * 1000).result(DEADLINE_S)
        admin.delete_records({TopicPartition("t", 0): 290})
        for broker in range(3):
            until(lambda b=broker: len(list(partition.directory(b).glob("*.log"))) <= 2, f"the files of broker {broker} to go")  # type: ignore[misc]


@pytest.mark.parametrize(
    ("factor", "config", "error"),
    [
        (4, {}, errors.InvalidReplicationFactorError),
        (2, {"min.insync.replicas": "3"}, errors.InvalidConfigurationError),
        (2, {"shmlog.spill": "false"}, errors.InvalidReplicationFactorError),
        (2, {"shmlog.full": "drop_oldest"}, errors.InvalidReplicationFactorError),
    ],
)
def test_what_cannot_be_replicated_is_refused(cluster: Cluster, factor: int, config: dict[str, str], error: type[Exception]) -> None:
    with Admin() as admin, pytest.raises(error):
        admin.create_topics([NewTopic("t", 1, factor, config=config)])


def test_a_lagging_consumer_reads_on_at_the_new_leader(cluster: Cluster) -> None:
    make("t", segment_bytes=65536, shmlog_memory_bytes=262144)
    partition = Partition(cluster, "t")
    with Producer(acks="all") as producer, Consumer("t", auto_offset_reset="earliest") as consumer:
        for n in range(2000):
            producer.send("t", b"%06d" % n + b"x" * 500)
        producer.flush(DEADLINE_S)
        seen = [r.value[:6] for records in consumer.poll(timeout_ms=5000, max_records=10).values() for r in records]
        leader = partition.leader
        fd = hold_back(cluster, leader)
        shutil.move(partition.directory(leader), Path(cluster.data_dir) / "gone")  # its disk is lost
        try:
            until(lambda: partition.leader not in (leader, -1), "another leader")
            for n in range(2000, 2500):
                producer.send("t", b"%06d" % n + b"x" * 500)
            producer.flush(DEADLINE_S)
            while len(seen) < 2500:
                found = consumer.poll(timeout_ms=int(DEADLINE_S * 1000))
                assert found
                seen += [r.value[:6] for records in found.values() for r in records]
        finally:
            os.close(fd)
    assert seen == [b"%06d" % n for n in range(2500)]


def test_nonsense_on_the_socket_of_a_leader_is_dropped_and_replication_goes_on(cluster: Cluster) -> None:
    make("t")
    partition = Partition(cluster, "t")
    leader = partition.leader
    block = 0
    with Producer(acks="all") as producer:
        producer.send("t", b"0").result(DEADLINE_S)
        paths = list(Path(config.run_dir(cluster.name)).glob(f"r{leader}-*"))
        assert len(paths) == 1
        context = zmq.Context()
        try:
            for identity in (b"2.1", b"no number", b"7.7"):
                rogue = context.socket(zmq.DEALER)
                rogue.setsockopt(zmq.IDENTITY, identity + b".rogue")
                rogue.setsockopt(zmq.LINGER, 1000)
                rogue.connect(f"ipc://{paths[0]}")
                for message in (
                    b"", b"\xff" * 100, b"\x93", msgspec.msgpack.encode(["Follow", 1, block, 1, -5, 0, 0]), msgspec.msgpack.encode(["Nothing"]),
                    msgspec.msgpack.encode(["Follow", 2**62 - 1, block, 1, 2**48 - 1, 2**48 - 1, 2**32 - 1]),
                    msgspec.msgpack.encode(["Acks", [[2**62 - 1, block, 1, 2**48 - 1, 0]]]),
                    msgspec.msgpack.encode(["Frames", [[1, block, 1, True, 4000]]]),
                ):  # fmt: skip
                    rogue.send_multipart([message, b"more"])
                rogue.close()
        finally:
            context.term()
        pid = cluster.pid("broker", leader)
        for n in range(1, 50):
            assert producer.send("t", b"%d" % n).result(DEADLINE_S).offset == n
    assert cluster.pid("broker", leader) == pid
    partition.wait_isr(3)
    assert read_all("t", 50) == [b"%d" % n for n in range(50)]
