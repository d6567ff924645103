"""What handles do while processes of the cluster die, stop or cannot keep up. Each test has a cluster of its own to break."""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from shmlog import Cluster, Consumer, NewTopic, Producer, TopicPartition, errors
from shmlog.client import handle
from shmlog.client.admin import Admin

T0 = TopicPartition("t", 0)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(brokers=1) as cluster:
        yield cluster


def kill_all(cluster: Cluster) -> None:
    for role in ("spare", "standby", "coordinator", "broker"):  # the spare first: it would start the others anew
        if cluster.pid(role):
            cluster.kill(role)
    end = time.monotonic() + 5
    while any(cluster.pid(role) for role in ("spare", "standby", "coordinator", "broker")):
        assert time.monotonic() < end
        for role in ("spare", "standby", "coordinator", "broker"):
            try:
                cluster.kill(role)
            except errors.IllegalStateError:
                pass


def test_with_all_processes_dead_sends_go_on_and_waits_say_so(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handle, "DEAD_NS", 300_000_000)
    with Producer(acks=1, max_block_ms=30_000) as p, Consumer("t", missing="wait", auto_offset_reset="earliest") as c:
        p.send("t", b"0")
        assert len(c.poll(timeout_ms=5000)[T0]) == 1
        kill_all(cluster)
        for i in range(1, 10):
            assert p.send("t", b"%d" % i).offset == i  # there is room
        assert [r.value for r in c.poll(timeout_ms=5000)[T0]] == [b"%d" % i for i in range(1, 10)]
        start = time.monotonic()
        with pytest.raises(errors.BrokerNotRunningError, match="no longer running"):
            c.poll(timeout_ms=60_000)
        with pytest.raises(errors.BrokerNotRunningError):
            for _ in range(100_000):  # until the memory is full
                p.send("t", bytes(100_000))
        assert time.monotonic() - start < 20
        start = time.monotonic()
        with pytest.raises(errors.NoBrokersAvailable):
            Producer()
        assert time.monotonic() - start < 20 * 0.1  # 100 ms are promised
        with pytest.raises(errors.NoBrokersAvailable):
            p.send("new-topic", b"x")


def test_a_shut_down_cluster_ends_waits(cluster: Cluster) -> None:
    p, c = Producer(max_block_ms=30_000), Consumer("t", missing="wait")
    p.send("t", b"x")
    assert len(c.poll(timeout_ms=5000)[T0]) == 1
    threading.Timer(0.2, cluster.stop).start()
    start = time.monotonic()
    with pytest.raises(errors.ClosedError, match="shut down"):
        c.poll(timeout_ms=60_000)
    assert time.monotonic() - start < 20
    with pytest.raises(errors.ShmlogError):
        for _ in range(100_000):
            p.send("t", bytes(10_000))
    p.close()
    c.close()
    with pytest.raises(errors.NoBrokersAvailable):
        Consumer("t")


def test_a_killed_broker_costs_no_record(cluster: Cluster) -> None:
    with Producer(acks="disk", max_block_ms=30_000) as p, Consumer("t", missing="wait", auto_offset_reset="earliest") as c:
        sent = 0
        for _ in range(3):
            for _ in range(200):
                p.send("t", b"%d" % sent * 100)
                sent += 1
            end = time.monotonic() + 10
            while time.monotonic() < end:  # the one before was killed a moment ago
                try:
                    cluster.kill("broker")
                    break
                except errors.IllegalStateError:
                    time.sleep(0.001)
        p.flush(timeout=30)
        got: list[Any] = []
        end = time.monotonic() + 20
        while len(got) < sent and time.monotonic() < end:
            for records in c.poll(timeout_ms=1000).values():
                got += records
        assert [r.offset for r in got] == list(range(sent))
        assert [r.value for r in got] == [b"%d" % i * 100 for i in range(sent)]


def test_a_killed_coordinator_is_not_noticed_by_senders(cluster: Cluster) -> None:
    with Producer(max_block_ms=30_000) as p:
        p.send("t", b"x")
        for _ in range(2):
            cluster.kill("coordinator")
            for _ in range(100):
                p.send("t", b"x")
            p.send(f"t{os.urandom(4).hex()}", b"x")  # the successor makes the topic
            p.flush()


def test_a_stopped_broker_is_a_timeout_that_says_why_and_then_goes_on(cluster: Cluster) -> None:
    Admin().create_topics(NewTopic("t", config={"shmlog.memory.bytes": "300000"}))
    with Producer(acks=1, max_block_ms=300) as p:
        p.send("t", b"first")
        pid = cluster.kill("broker", number=signal.SIGSTOP)
        try:
            sent = 1
            start = time.monotonic()
            with pytest.raises(errors.KafkaTimeoutError, match=r"t-0: no room for 300 ms"):
                for _ in range(100_000):
                    p.send("t", bytes(1000))
                    sent += 1
            assert time.monotonic() - start < 30
        finally:
            try:
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                pass  # the coordinator has replaced it
    with Producer(max_block_ms=30_000) as p:
        assert p.send("t", b"again").offset == sent


def test_failures_that_nobody_looked_at_are_told_by_flush_once(cluster: Cluster) -> None:
    p = Producer(acks="disk", delivery_timeout_ms=200)
    p.send("t", b"x").result(timeout=10)
    # Nothing gets to the disk, for as long as it takes; a stopped broker would be replaced.
    resource.prlimit(cluster.pid("broker"), resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
    pending = [p.send("t", b"y") for _ in range(5)]
    seen: list[Any] = []
    pending[1].add_errback(seen.append)
    with pytest.raises(errors.KafkaTimeoutError, match="in the log but not yet on disk"):
        pending[0].result(timeout=0.05)
    assert not pending[0].done
    with pytest.raises(errors.KafkaTimeoutError):
        p.flush()
    with Admin() as admin:
        admin.delete_topics("t")
    with pytest.raises(errors.UnknownTopicOrPartitionError):
        pending[0].result()
    with pytest.raises(errors.DeliveryError, match="3 records were not acknowledged") as caught:
        p.flush()  # of five one was asked, and one had an errback
    assert caught.value.count == 3
    assert isinstance(caught.value.first, errors.UnknownTopicOrPartitionError)
    assert len(seen) == 1
    p.flush()
    p.close()


def test_ctrl_c_ends_a_wait(cluster: Cluster) -> None:
    Admin().create_topics(NewTopic("t"))

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt)
    try:
        with Consumer("t") as c, Producer() as p:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            start = time.monotonic()
            with pytest.raises(KeyboardInterrupt):
                c.poll(timeout_ms=60_000)
            assert time.monotonic() - start < 5
            p.send("t", b"x")
            assert [r.value for r in c.poll(timeout_ms=5000)[T0]] == [b"x"]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
