"""Kill -9 of anything, at any time: every record that was acknowledged is there exactly once, in its producer's order."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import threading
import uuid
from pathlib import Path

import pytest
from real_cluster import RealCluster, check_histories

from shmlog import Admin, Consumer, NewTopic, Producer, TopicPartition
from shmlog._ffi import lib
from shmlog.testing.waiting import until
from shmlog.testing.workload import NOTE, Ledger

READY = lib.SL_OBJECT_READY.to_bytes(4, "little")  # bytes 92 to 95 of an object


def check_everything(cluster: RealCluster, topic: str, tmp_path: Path, ledgers: dict[int, Ledger]) -> int:
    """A full read returns every acknowledged record exactly once and in order, what was in flight 0 or 1 times; no consumer and no watermark
    went back; the files are sound. Returns the number of records."""
    end = check_histories(cluster.address, topic, sorted(tmp_path.glob("*.history")))
    for producer_id, ledger in ledgers.items():
        assert ledger.failures == 0, f"producer {producer_id}: {ledger.failures} sends failed"
    acknowledged = sum(ledger.done for ledger in ledgers.values())
    assert acknowledged <= end <= acknowledged + len(ledgers), f"{acknowledged} acknowledged to {len(ledgers)} producers, {end} in the log"
    verify = cluster.command("verify", check=False)
    assert verify.returncode == 0, verify.stdout + verify.stderr
    return end


def kills(cluster: RealCluster, tmp_path: Path, memory_bytes: str | None, apart: int, count: int) -> None:
    seed = int(os.environ.get("SHMLOG_SEED", str(random.randrange(1 << 30))))
    print(f"SHMLOG_SEED={seed}")
    choose = random.Random(seed)
    config = {"shmlog.memory.bytes": memory_bytes} if memory_bytes else {}
    admin = Admin(bootstrap_servers=cluster.address)
    admin.create_topics([NewTopic("t", num_partitions=1, config=config)])
    ledgers: dict[int, Ledger] = {}
    producers: dict[int, subprocess.Popen[bytes]] = {}

    def start_producer() -> None:
        producer_id = len(ledgers)
        path = tmp_path / f"producer-{producer_id}"
        ledgers[producer_id] = Ledger(path, create=True)
        producers[producer_id] = cluster.worker("produce", cluster.address, "t", path, producer_id, 1 << 40)

    def start_consumer() -> subprocess.Popen[bytes]:
        path = tmp_path / f"consumer-{uuid.uuid4().hex[:6]}"
        Ledger(path, create=True)
        return cluster.worker("consume", cluster.address, "t", path)

    def total() -> int:
        return sum(ledger.done for ledger in ledgers.values())

    for _ in range(4):
        start_producer()
    consumer = start_consumer()
    for kill in range(count):
        begin = total()
        until(lambda begin=begin: total() >= begin + apart, f"{apart} records after kill {kill}")
        [broker] = until(lambda: cluster.pids("broker"), "a broker that is up")
        os.kill(broker, signal.SIGKILL)
        until(lambda broker=broker: any(pid != broker for pid in cluster.pids("broker")), "the next broker")
        victim = choose.choice(sorted(producers))
        producers.pop(victim).kill()
        start_producer()
        if choose.random() < 0.5:
            assert consumer.poll() is None, "the consumer ended"
            consumer.kill()
            consumer = start_consumer()
    begin = total()
    until(lambda: total() >= begin + apart, "records after the last kill")
    assert consumer.poll() is None, "the consumer ended"
    everybody = cluster.pids("coordinator", "standby", "spare", "broker")
    for pid in [*everybody, *(p.pid for p in producers.values()), consumer.pid]:
        os.kill(pid, signal.SIGKILL)
    for worker in cluster.workers:
        worker.wait()
    cluster.up()
    records = check_everything(cluster, "t", tmp_path, ledgers)
    longest_ms = max(ledger.longest_ns for ledger in ledgers.values()) / 1e6
    print(f"{records} records, {len(ledgers)} producers, {count} broker kills; the longest send took {longest_ms:.1f} ms")


@pytest.mark.slow
@pytest.mark.parametrize("memory_bytes", [None, str(4 << 20)], ids=["default_ring", "ring_of_4_MiB"])
def test_five_kills_of_the_broker_and_one_of_everything_lose_nothing(cluster: RealCluster, tmp_path: Path, memory_bytes: str | None) -> None:
    kills(cluster, tmp_path, memory_bytes, apart=50_000, count=5)


def test_a_kill_of_the_broker_and_one_of_everything_lose_nothing(cluster: RealCluster, tmp_path: Path) -> None:
    kills(cluster, tmp_path, None, apart=2_000, count=1)


@pytest.mark.parametrize("role", ["coordinator", "standby", "spare"])
def test_a_killed_helper_process_is_replaced_and_no_send_fails(cluster: RealCluster, tmp_path: Path, role: str) -> None:
    Admin(bootstrap_servers=cluster.address).create_topics([NewTopic("t")])
    ledger = Ledger(tmp_path / "producer", create=True)
    cluster.worker("produce", cluster.address, "t", tmp_path / "producer", 0, 1 << 40)
    until(lambda: ledger.done > 1000, "a thousand records")
    [victim] = cluster.pids(role)
    os.kill(victim, signal.SIGKILL)
    until(lambda: [pid for pid in cluster.pids(role) if pid != victim], f"another {role}")
    seen = ledger.done
    until(lambda: ledger.done > seen + 1000, "a thousand more records")
    cluster.workers[0].kill()
    cluster.workers[0].wait()
    check_everything(cluster, "t", tmp_path, {0: ledger})


def races(cluster: RealCluster, tmp_path: Path, count: int) -> None:
    Admin(bootstrap_servers=cluster.address).create_topics([NewTopic("t")])
    ledgers = [Ledger(tmp_path / f"racer-{i}", create=True) for i in range(8)]
    for i in range(8):
        cluster.worker("race", cluster.address, "t", tmp_path / f"racer-{i}", i, count)
    for worker in cluster.workers:
        assert worker.wait(timeout=1200) == 0
    assert check_histories(cluster.address, "t", sorted(tmp_path.glob("*.history"))) == count
    won = [ledger.done for ledger in ledgers]
    assert sum(won) == count
    print(f"{count} offsets, won by {won}")


@pytest.mark.slow
def test_of_eight_processes_exactly_one_wins_each_of_a_million_offsets(cluster: RealCluster, tmp_path: Path) -> None:
    races(cluster, tmp_path, 1_000_000)


def test_of_eight_processes_exactly_one_wins_each_offset(cluster: RealCluster, tmp_path: Path) -> None:
    races(cluster, tmp_path, 3_000)


def sleeps_through(cluster: RealCluster, total_bytes: int) -> None:
    Admin(bootstrap_servers=cluster.address).create_topics([NewTopic("t")])
    tp = TopicPartition("t", 0)
    consumer = Consumer(bootstrap_servers=cluster.address)
    consumer.assign([tp])
    consumer.seek_to_beginning(tp)
    value_bytes, n = 16_384, 0
    with Producer(bootstrap_servers=cluster.address, acks=1) as producer:
        producer.send("t", NOTE.pack(0, 0).ljust(value_bytes, b"."), partition=0)
        [first] = until(lambda: consumer.poll(timeout_ms=100).get(tp), "the first record")
        assert first.offset == 0
        for n in range(1, total_bytes // value_bytes):
            producer.send("t", NOTE.pack(0, n).ljust(value_bytes, b"."), partition=0)
        offset = 1
        while offset <= n + 1000:
            if offset > n - 1000 and n < total_bytes // value_bytes + 1000:  # near the end it gets company: live, while it crosses over
                n += 1
                producer.send("t", NOTE.pack(0, n).ljust(value_bytes, b"."), partition=0)
            records = consumer.poll(timeout_ms=100, max_records=500).get(tp, [])
            for record in records:
                assert (record.offset, NOTE.unpack_from(record.value)[1]) == (offset, offset)
                offset += 1
            if offset > n and n >= total_bytes // value_bytes + 1000:
                break
    consumer.close()
    assert offset == n + 1


@pytest.mark.slow
def test_a_consumer_that_sleeps_while_a_gibibyte_flows_past_reads_all_of_it(cluster: RealCluster) -> None:
    sleeps_through(cluster, 1 << 30)


def test_a_consumer_that_sleeps_while_memory_is_reused_reads_all_of_it(cluster: RealCluster) -> None:
    sleeps_through(cluster, 128 << 20)


def test_a_segment_has_no_name_in_dev_shm_before_it_is_whole(cluster: RealCluster) -> None:
    """Else a broker killed while it makes a large one leaves that memory behind, and verify finds it half made."""
    Admin(bootstrap_servers=cluster.address).create_topics([NewTopic("t")])
    done, half = threading.Event(), set()

    def look() -> None:
        while not done.is_set():
            for name in os.listdir("/dev/shm"):
                if f".{cluster.name}.s" in name:
                    with contextlib.suppress(FileNotFoundError), open(f"/dev/shm/{name}", "rb") as file:
                        header = file.read(96)
                        if header[92:96] != READY:
                            half.add(name)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        with Producer(bootstrap_servers=cluster.address, acks=1) as producer:
            for _ in range(4):
                producer.send("t", bytes(60 << 20), partition=0)
    finally:
        done.set()
        watcher.join()
    assert not half
