"""Consumer against a running cluster."""

from __future__ import annotations

import gc
import os
import pickle
import random
import select
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shmlog import Consumer, OffsetAndTimestamp, TopicPartition, errors
from shmlog._ffi import lib
from shmlog.client import consumer_row

Take = Callable[[Consumer, int], list[Any]]
T0 = TopicPartition("t", 0)


def drain(c: Consumer, timeout_ms: float = 500) -> list[Any]:
    found = []
    while got := c.poll(timeout_ms=timeout_ms):
        found += [r for records in got.values() for r in records]
    return found


# --- what is read, and from where ---


def test_earliest_reads_all_and_latest_only_what_comes(here: Any) -> None:
    p = here.producer()
    p.send("t", b"old")
    earliest, latest = here.consumer("t"), here.consumer("t", auto_offset_reset="latest")
    p.send("t", b"new")  # right behind the constructor: subscribing has found the position already
    assert [r.value for r in drain(earliest)] == [b"old", b"new"]
    assert [r.value for r in drain(latest)] == [b"new"]


def test_without_a_position_and_without_a_reset_it_is_an_error(here: Any) -> None:
    here.producer().send("t", b"x")
    c = here.consumer("t", auto_offset_reset="none")
    with pytest.raises(errors.NoOffsetForPartitionError, match="auto_offset_reset"):
        c.poll()
    c.seek(T0, 0)
    assert len(drain(c)) == 1
    c.seek(T0, 100)
    with pytest.raises(errors.OffsetOutOfRangeError) as caught:
        c.poll()
    assert (caught.value.offset, caught.value.log_start_offset, caught.value.log_end_offset) == (100, 0, 1)


def test_an_unknown_topic_is_an_error_or_waited_for(here: Any) -> None:
    with pytest.raises(errors.UnknownTopicOrPartitionError, match="no topic 'nowhere'"):
        here.consumer("nowhere")
    c = here.consumer("t", missing="wait", auto_offset_reset="latest")
    assert c.poll(timeout_ms=10) == {}
    here.producer().send("t", b"first")
    assert [r.value for r in drain(c, 2000)] == [b"first"]


def test_assign_reads_exactly_these_partitions(here: Any) -> None:
    here.topic("t", 3)
    p = here.producer()
    for n in range(3):
        p.send("t", b"%d" % n, partition=n)
    c = here.consumer()
    assert c.poll() == {}
    c.assign([TopicPartition("t", 1), ("t", 2)])
    assert c.assignment() == {TopicPartition("t", 1), TopicPartition("t", 2)}
    assert sorted(r.value for r in drain(c)) == [b"1", b"2"]
    c.assign([TopicPartition("t", 2), TopicPartition("t", 0)])  # a partition that stays keeps its position
    assert [r.value for r in drain(c)] == [b"0"]
    with pytest.raises(errors.UnknownTopicOrPartitionError, match="has no partition 9"):
        c.assign([TopicPartition("t", 9)])
    with pytest.raises(errors.IllegalStateError):
        c.subscribe(["t"])
    c.unsubscribe()
    assert c.assignment() == set()
    assert c.subscription() is None


def test_a_pattern_takes_up_topics_as_they_appear(here: Any) -> None:
    p = here.producer()
    p.send("log.a", b"a")
    p.send("other", b"no")
    c = here.consumer()
    changes: list[Any] = []

    class Listener:
        def on_partitions_assigned(self, tps: Any) -> None:
            changes.append(("+", {tp.topic for tp in tps}))

        def on_partitions_revoked(self, tps: Any) -> None:
            changes.append(("-", {tp.topic for tp in tps}))

    c.subscribe(pattern=r"log\.", listener=Listener())
    assert c.subscription() == {"log.a"}
    p.send("log.b", b"b")
    assert sorted(r.value for r in drain(c)) == [b"a", b"b"]
    here.admin().delete_topics(["log.a"])
    assert drain(c, 50) == []
    assert c.subscription() == {"log.b"}
    assert changes == [("+", {"log.a"}), ("+", {"log.b"}), ("-", {"log.a"})]
    assert here.consumer().topics() == {"log.b", "other"}
    here.topic("log.a")
    here.producer().send("log.a", b"made anew")
    assert [r.value for r in drain(c)] == [b"made anew"]


def test_new_partitions_of_a_topic_are_read_from_their_beginning(here: Any) -> None:
    here.topic("t", 1)
    c = here.consumer("t", auto_offset_reset="latest")
    assert c.partitions_for_topic("t") == {0}
    here.admin().create_partitions({"t": 3})
    p = here.producer()
    for n in range(3):
        p.send("t", b"%d" % n, partition=n)
    assert sorted(r.value for r in drain(c)) == [b"0", b"1", b"2"]
    assert c.partitions_for_topic("t") == {0, 1, 2}
    assert c.partitions_for_topic("nowhere") is None


def test_a_deleted_topic_says_so_and_never_shows_its_successor(here: Any) -> None:
    here.producer().send("t", b"old")
    c = here.consumer("t")
    here.admin().delete_topics("t")
    with pytest.raises(errors.UnknownTopicOrPartitionError, match="deleted"):
        c.poll(timeout_ms=1000)
    here.producer().send("t", b"new")
    with pytest.raises(errors.UnknownTopicOrPartitionError, match="deleted"):
        c.poll(timeout_ms=1000)
    c.subscribe(["t"])  # asked for again: the topic that there is now
    assert [r.value for r in drain(c)] == [b"new"]


def test_records_deleted_under_a_consumer_are_skipped_and_counted(here: Any) -> None:
    p = here.producer()
    for i in range(10):
        p.send("t", b"%d" % i)
    c = here.consumer("t")
    here.admin().delete_records({T0: 4})
    assert [int(r.value) for r in drain(c)] == [4, 5, 6, 7, 8, 9]
    assert c.beginning_offsets([T0]) == {T0: 4}
    assert c.metrics()["resets_total"] == 1
    assert c.metrics()["skipped_records_total"] == 4


# --- poll ---


def test_poll_returns_at_once_what_is_there_and_waits_for_what_is_not(here: Any) -> None:
    p = here.producer()
    p.send("t", b"x")
    c = here.consumer("t")
    start = time.monotonic()
    assert list(c.poll(timeout_ms=10_000)) == [T0]
    assert time.monotonic() - start < 10  # it did not wait for more
    start = time.monotonic()
    assert c.poll(timeout_ms=150) == {}
    assert time.monotonic() - start > 0.1
    timer = threading.Timer(0.2, lambda: p.send("t", b"late"))
    timer.start()
    assert [r.value for r in c.poll(timeout_ms=60_000)[T0]] == [b"late"]
    timer.join()


@pytest.mark.parametrize("wait", ["auto", "spin", "block"])
def test_every_way_of_waiting_wakes(here: Any, wait: str) -> None:
    p = here.producer()
    p.send("t", b"")
    c = here.consumer("t", wait=wait, auto_offset_reset="latest")
    for i in range(20):
        timer = threading.Timer(0.001 * (i % 5), lambda: p.send("t", b"x"))
        timer.start()
        assert len(c.poll(timeout_ms=5000)[T0]) == 1
        timer.join()


def test_max_records_bounds_a_poll_and_all_partitions_get_their_turn(here: Any) -> None:
    here.topic("t", 3)
    p = here.producer()
    for n in range(3):
        for i in range(100):
            p.send("t", b"%d" % i, partition=n)
    c = here.consumer("t")
    seen = []
    for _ in range(6):
        got = c.poll(max_records=10)
        assert sum(map(len, got.values())) == 10
        seen.append({tp.partition for tp in got})
    assert {0, 1, 2} == set().union(*seen[:3])
    first = c.poll(max_records=7, update_offsets=False)
    assert sum(map(len, first.values())) == 7
    rest = drain(c)
    assert len(rest) == 300 - 60
    for n in range(3):
        mine = [int(r.value) for r in rest if r.partition == n]
        assert mine == list(range(100 - len(mine), 100))


def test_a_deserializer_that_raises_stops_at_its_record(here: Any) -> None:
    p = here.producer()
    for v in (b"1", b"2", b"x", b"4"):
        p.send("t", v)
    c = here.consumer("t", value_deserializer=int, consumer_timeout_ms=300)
    assert [r.value for r in c.poll()[T0]] == [1, 2]
    for _ in range(2):
        with pytest.raises(ValueError, match="x"):
            c.poll()
        assert c.position(T0) == 2
    c.seek(T0, 3)
    assert [r.value for r in c] == [4]


def test_kafkas_record_attributes(here: Any) -> None:
    here.topic("t", message_timestamp_type="LogAppendTime")
    here.producer().send("t", b"x", timestamp_ms=5)
    r = next(here.consumer("t"))
    assert r.timestamp_type == 1
    assert abs(r.timestamp - time.time() * 1000) < 60_000
    assert r.timestamp_ns // 1_000_000 == r.timestamp
    assert r.topic_partition == T0


# --- iteration ---


def test_iteration_ends_after_consumer_timeout_and_goes_on_later(here: Any) -> None:
    p = here.producer()
    p.send("t", b"a")
    c = here.consumer("t", consumer_timeout_ms=50)
    assert [r.value for r in c] == [b"a"]
    p.send("t", b"b")
    assert [r.value for r in c] == [b"b"]


def test_the_position_follows_iteration_record_by_record(here: Any) -> None:
    p = here.producer()
    for i in range(10):
        p.send("t", b"%d" % i)
    c = here.consumer("t")
    for i in range(4):
        assert int(next(c).value) == i
        assert c.position(T0) == i + 1
    assert c.lag() == {T0: 6}
    assert [int(r.value) for r in c.poll()[T0]] == [4, 5, 6, 7, 8, 9]  # what iteration had fetched is not lost
    c.seek(T0, 2)
    assert int(next(c).value) == 2
    c.seek(T0, 8)
    assert int(next(c).value) == 8
    c.pause(T0)
    assert c.paused() == {T0}
    assert c.poll(timeout_ms=20) == {}
    c.resume(T0)
    assert int(next(c).value) == 9


# --- positions ---


def test_offsets_and_seeks(here: Any) -> None:
    here.topic("t", 2)
    p = here.producer()
    for i in range(20):
        p.send("t", b"%d" % i, partition=i % 2, timestamp_ms=1000 + i)
    c = here.consumer("t", consumer_timeout_ms=200)
    t1 = TopicPartition("t", 1)
    assert c.beginning_offsets([T0, t1]) == {T0: 0, t1: 0}
    assert c.end_offsets([T0, t1]) == {T0: 10, t1: 10}
    c.seek_to_end(t1)
    assert c.position(t1) == 10
    assert c.position(T0) == 0
    assert c.lag() == {T0: 10, t1: 0}
    assert {r.partition for r in c} == {0}
    c.seek_to_beginning()
    assert len(list(c)) == 20
    assert c.offsets_for_times({T0: 1010, t1: 1010}) == {T0: OffsetAndTimestamp(5, 1010), t1: OffsetAndTimestamp(5, 1011)}
    assert c.offsets_for_times({T0: 5000}) == {T0: None}
    p.send("t", b"more", partition=0)
    assert next(c).value == b"more"  # the search has not moved it
    with pytest.raises(errors.IllegalStateError, match="not assigned"):
        c.seek(TopicPartition("t", 7), 0)
    with pytest.raises(ValueError, match="an offset is"):
        c.seek(T0, -1)
    with pytest.raises(errors.UnknownTopicOrPartitionError):
        c.end_offsets([TopicPartition("nowhere", 0)])


def test_latest_skips_what_lies_between(here: Any) -> None:
    p = here.producer()
    for i in range(50):
        p.send("t", b"%d" % i)
    c = here.consumer("t")
    newest = c.latest(T0)
    assert newest is not None
    assert newest.value == b"49"
    assert c.latest(T0) is None
    assert c.position(T0) == 50
    p.send_many("t", np.arange(100, dtype="<i8"))
    newest = c.latest(T0)
    assert newest is not None
    assert (newest.offset, int(newest.array())) == (149, 99)
    timer = threading.Timer(0.05, lambda: p.send("t", b"late"))
    timer.start()
    waited = c.latest(T0, timeout_ms=5000)
    assert waited is not None
    assert waited.value == b"late"
    timer.join()


# --- batches ---


def test_a_batch_is_a_view_with_columns(here: Any) -> None:
    p = here.producer()
    values = [b"a", b"", None, b"four"]
    for i, v in enumerate(values):
        p.send("t", v, key=b"k%d" % i, timestamp_ns=1000 + i)
    c = here.consumer("t")
    (b,) = [c.poll_batch(1000)]
    assert b is not None
    with b:
        assert len(b) == 4
        assert b.leased
        assert (b.topic, b.partition, b.base_offset, b.next_offset) == ("t", 0, 0, 4)
        assert b.offsets.tolist() == [0, 1, 2, 3]
        assert b.timestamps.tolist() == [1000, 1001, 1002, 1003]
        assert b.sizes.tolist() == [1, 0, -1, 4]
        assert [None if v is None else bytes(v) for v in b.values()] == values
        assert b.values(copy=True) == values
        assert [r.key for r in b] == [b"k0", b"k1", b"k2", b"k3"]
        assert b[-1].value == b"four"
        with pytest.raises(TypeError):
            b.values()[0][0] = 1
        with pytest.raises(IndexError):
            _ = b[4]
        with pytest.raises(ValueError, match="different sizes"):
            b.array("u1")
        kept = b.copy()
    with pytest.raises(errors.ClosedError):
        b.values()
    assert not kept.leased
    assert [r.value for r in kept] == values
    assert [r.key for r in kept] == [b"k0", b"k1", b"k2", b"k3"]
    assert c.metrics()["leases"] == 0
    assert c.position(T0) == 4


def test_rows_of_one_frame_are_one_strided_array_without_a_copy(here: Any) -> None:
    p = here.producer()
    rows = np.random.default_rng(1).random((1000, 3))
    p.send_many("t", rows)
    c = here.consumer("t")
    b = c.poll_batch(1000)
    assert b is not None
    got = b.array(copy=False)
    assert (got.dtype, got.shape) == (rows.dtype, rows.shape)
    assert (got == rows).all()
    assert not got.flags.writeable
    with pytest.raises(ValueError):
        got.flags.writeable = True
    mine = b.array(copy=True)
    mine[:] = 0
    assert (b.array() == rows).all()
    assert b.array("<f8").shape == (1000, 3)
    assert b.array("u1").shape == (1000, 24)
    assert np.from_dlpack(b.array(copy=True)).shape == (1000, 3)
    assert np.asarray(b).shape == (1000, 3)
    with pytest.raises(ValueError, match="not items of"):
        b.array("V7")


def test_separate_records_are_gathered_or_viewed(here: Any) -> None:
    p = here.producer()
    for i in range(100):
        p.send("t", np.full(5, i, "<i4"), key=b"k" * (i % 3))
    c = here.consumer("t")
    b = c.poll_batch(1000)
    assert b is not None
    assert b.array().tolist() == [[i] * 5 for i in range(100)]
    assert b.array("<i4")[7].tolist() == [7] * 5
    assert [a.tolist() for a in b.arrays()[:2] if a is not None] == [[0] * 5, [1] * 5]
    p.send("t", b"plain")
    p.send("t", np.zeros(1))
    b = c.poll_batch(1000)
    assert b is not None
    with pytest.raises(errors.IllegalStateError, match="was not sent as an array"):
        b.array()


def test_arrays_of_different_shapes_come_one_by_one_without_a_copy(here: Any) -> None:
    p = here.producer()
    sent = [np.arange(i * 2, dtype="<f4").reshape(2, i) for i in range(1, 5)]
    for a in sent:
        p.send("t", a)
    b = here.consumer("t").poll_batch(1000)
    assert b is not None
    with pytest.raises(ValueError, match="one by one"):
        b.array()
    for got, want in zip(b.arrays(), sent, strict=True):
        assert got is not None
        assert (got == want).all()
        assert not got.flags.owndata


def test_what_came_from_a_batch_outlives_batch_consumer_and_reuse_of_the_log(here: Any) -> None:
    here.topic("t", shmlog_memory_bytes="1000000")
    p = here.producer()
    p.send_many("t", np.arange(1000, dtype="<i8"))
    c = here.consumer("t")
    b = c.poll_batch(1000)
    assert b is not None
    part = b.array()[10:20][::2]
    view = b.values()[3]
    b.release()
    assert c.metrics()["leases"] == 1
    c.close()
    for _ in range(3000):
        p.send("t", bytes(2000))
    assert part.tolist() == [10, 12, 14, 16, 18]
    assert int.from_bytes(view, "little") == 3
    del part, view
    gc.collect()
    assert p.send("t", b"x").offset == 4000


def test_beyond_max_leased_bytes_batches_are_copies_and_counted(here: Any) -> None:
    p = here.producer()
    for i in range(100):
        p.send("t", b"%03d" % i * 1000)
    c = here.consumer("t", max_leased_bytes=100_000)
    kept = list(iter(lambda: c.poll_batch(100, max_records=10), None))
    assert sum(map(len, kept)) == 100
    assert {b.leased for b in kept} == {True, False}
    metrics = c.metrics()
    assert metrics["lease_fallback_copies_total"] == sum(not b.leased for b in kept)
    assert metrics["leased_bytes"] <= 100_000
    assert [r.value for b in kept for r in b] == [b"%03d" % i * 1000 for i in range(100)]
    del kept, metrics
    gc.collect()
    assert c.metrics()["leased_bytes"] == 0


def test_batches_are_bounded_by_records_and_bytes(here: Any) -> None:
    p = here.producer()
    p.send_many("t", [bytes(100) for _ in range(1000)])
    c = here.consumer("t", consumer_timeout_ms=100)
    sizes = [len(b) for b in c.batches(max_records=300)]
    assert max(sizes) <= 300
    assert sum(sizes) == 1000
    c.seek(T0, 0)
    assert max(len(b) for b in c.batches(max_bytes=5000)) < 200
    c.seek(T0, 500)
    first = next(c.batches())
    assert first.offsets[0] == 500  # in the middle of a frame


# --- waking ---


def test_wakeup_ends_poll_and_iteration(here: Any) -> None:
    here.topic("t")
    c = here.consumer("t", consumer_timeout_ms=60_000)
    for call in (lambda: c.poll(timeout_ms=60_000), lambda: list(c), lambda: c.poll_batch(60_000)):
        timer = threading.Timer(0.05, c.wakeup)
        timer.start()
        start = time.monotonic()
        assert not call()
        assert time.monotonic() - start < 10
        timer.join()
    here.producer().send("t", b"x")
    assert next(c).value == b"x"


def test_fileno_is_readable_when_there_is_something(here: Any) -> None:
    p = here.producer()
    p.send("t", b"a")
    c = here.consumer("t")
    fd = c.fileno()
    assert c.fileno() == fd
    assert select.select([fd], [], [], 5)[0]
    assert len(c.poll()[T0]) == 1
    assert not select.select([fd], [], [], 0.05)[0]
    for _ in range(20):
        timer = threading.Timer(0.01, lambda: p.send("t", b"b"))
        timer.start()
        assert select.select([fd], [], [], 5)[0]
        assert len(c.poll()[T0]) == 1
        timer.join()
    p.send_many("t", [b"x"] * 10)
    assert select.select([fd], [], [], 5)[0]
    assert len(c.poll(max_records=3)[T0]) == 3
    assert select.select([fd], [], [], 5)[0]  # there is more
    next(c)
    assert select.select([fd], [], [], 5)[0]
    c.wakeup()
    assert select.select([fd], [], [], 5)[0]


@pytest.mark.parametrize("end", ["close", "pause", "unsubscribe"])
def test_no_partition_remembers_a_consumer_that_waits_for_it_no_more(here: Any, end: str) -> None:
    here.producer().send("t", b"a")
    c = here.consumer("t")
    waits = lib.sl_cluster_waits(c._cluster, c._parts[T0].block)
    keep = here.consumer("t")  # so that the memory stays mapped
    c.fileno()
    while c.poll():
        pass
    assert any(waits.data)
    if end == "close":
        c.close()
    elif end == "unsubscribe":
        c.unsubscribe()
    else:
        c.pause(T0)
        c.poll()
    assert not any(waits.data)
    keep.close()


def test_close_waits_for_a_wakeup_that_is_going_on(here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    here.producer().send("t", b"a")
    c = here.consumer("t")
    closer = threading.Thread(target=c.close)
    closed_meanwhile = []

    class Slow:
        def __getattr__(self, name: str) -> Any:
            return getattr(lib, name)

        def sl_row_wakeup(self, cluster: Any, row: int) -> None:
            closer.start()
            closer.join(0.2)
            closed_meanwhile.append(not closer.is_alive())
            lib.sl_row_wakeup(cluster, row)

    monkeypatch.setattr(consumer_row, "lib", Slow())
    c.wakeup()
    closer.join(5)
    assert closed_meanwhile == [False]  # else the row would have been unmapped under the call
    assert not closer.is_alive()


def test_a_second_thread_is_refused(here: Any) -> None:
    here.topic("t")
    c = here.consumer("t")
    thread = threading.Thread(target=lambda: c.poll(timeout_ms=3000))
    thread.start()
    end = time.monotonic() + 5
    try:
        while time.monotonic() < end:
            try:
                c.poll()
            except errors.IllegalStateError as error:
                assert "one thread" in str(error)
                break
        else:
            pytest.fail("both threads polled")
    finally:
        c.wakeup()
        thread.join()


# --- keywords, life, processes ---


def test_groups_are_refused_by_name(here: Any) -> None:
    with pytest.raises(errors.UnsupportedVersionError, match="group_id='g'"):
        here.consumer("t", group_id="g")
    c = here.consumer()
    with pytest.raises(errors.IllegalStateError, match="group"):
        c.commit()


def test_kafkas_other_keywords_are_accepted_and_unknown_ones_are_not(here: Any) -> None:
    here.consumer(enable_auto_commit=True, fetch_min_bytes=1, security_protocol="PLAINTEXT", session_timeout_ms=5, api_version=None)
    with pytest.raises(TypeError, match=r"did you mean 'auto_offset_reset'\?"):
        here.consumer(auto_ofset_reset="latest")
    for wrong in ({"wait": "sleep"}, {"missing": "x"}, {"auto_offset_reset": "first"}, {"isolation_level": "x"}, {"max_poll_records": 0}):
        with pytest.raises(errors.InvalidConfigurationError):
            here.consumer(**wrong)


def test_a_closed_consumer_says_so(here: Any) -> None:
    here.topic("t")
    c = here.consumer("t")
    c.close()
    c.close()
    for call in (c.poll, lambda: next(c), c.assignment, lambda: c.seek(T0, 0), lambda: c.poll_batch(), c.wakeup, lambda: c.latest(T0)):
        with pytest.raises(errors.ClosedError):
            call()


def test_a_forked_child_may_not_poll_but_may_look_at_views(here: Any) -> None:
    p = here.producer()
    p.send_many("t", np.arange(1000, dtype="<i8"))
    c = here.consumer("t")
    b = c.poll_batch(1000)
    assert b is not None
    array = b.array()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            for call in (c.poll, lambda: next(c), c.close, lambda: c.poll_batch(), c.wakeup):
                try:
                    call()
                except errors.ForkedProcessError:
                    code = 0
                else:
                    code = 2
                    break
            if array.sum() != 499_500:
                code = 3
            del array, b, c, p
            gc.collect()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert array.sum() == 499_500
    p.send("t", b"more")
    assert next(c).value == b"more"


def test_it_pickles_as_a_recipe(here: Any) -> None:
    here.producer().send("t", b"5")
    c = here.consumer("t", value_deserializer=int)
    with pickle.loads(pickle.dumps(c)) as d:
        assert next(d).value == 5


def test_ctrl_c_loses_no_record(here: Any) -> None:
    p = here.producer()
    for i in range(20_000):
        p.send("t", b"%d" % i)
    c = here.consumer("t", max_poll_records=100)

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt)
    interrupted = 0
    seen = set()
    end = time.monotonic() + 60
    try:
        while len(seen) < 20_000:
            assert time.monotonic() < end, f"only {len(seen)} came"
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.003)
                while True:
                    before = c.position(T0)
                    for records in c.poll(timeout_ms=100).values():
                        seen.update(r.offset for r in records)
                    if len(seen) == 20_000:
                        break
            except KeyboardInterrupt:
                interrupted += 1
                if c.position(T0) != before:
                    c.seek(T0, before)  # the interrupt may have come behind poll()
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert seen == set(range(20_000))
    assert interrupted > 0


def test_reading_goes_on_from_the_file_where_memory_has_moved_on(here: Any) -> None:
    here.topic("t", shmlog_memory_bytes="500000")
    p = here.producer()
    want = []
    for i in range(3000):
        value = random.Random(i).randbytes(i % 1500)
        want.append(value)
        p.send("t", value, key=b"%d" % i)
    c = here.consumer("t")
    found = drain(c)
    assert [r.value for r in found] == want
    assert [r.key for r in found] == [b"%d" % i for i in range(3000)]
    c.seek(T0, 0)
    got: list[Any] = []
    while b := c.poll_batch(100):
        got += b.values(copy=True)
    assert got == want
    c.seek(T0, 17)
    b = c.poll_batch(1000)
    assert b is not None
    assert b.values(copy=True) == want[17 : 17 + len(b)]


def test_a_damaged_record_is_named_and_not_delivered_and_can_be_passed(here: Any) -> None:
    p = here.producer()
    p.send("t", b"before")
    with p.loan("t", nbytes=100) as loan:
        loan.array[:] = bytes(100)
        scribble = loan.array[5:6]  # a view derived earlier stays writable: the one way to damage the log from Python
    p.send("t", b"after")
    c = here.consumer("t")
    scribble[0] = 1
    assert [r.value for r in c.poll()[T0]] == [b"before"]
    for _ in range(2):
        with pytest.raises(errors.CorruptRecordError) as caught:
            c.poll(timeout_ms=1000)
        assert (caught.value.topic, caught.value.partition, caught.value.offset) == ("t", 0, 1)
        assert c.position(T0) == 1
    with pytest.raises(errors.CorruptRecordError):
        next(c)
    c.seek(T0, 2)
    assert next(c).value == b"after"
    with here.consumer("t", check_crcs=False) as careless:
        assert len(drain(careless)) == 3
    scribble[0] = 0


def test_a_topic_in_memory_only_drops_what_nobody_is_tethered_to(here: Any) -> None:
    here.topic("t", shmlog_spill="false", shmlog_memory_bytes="400000", shmlog_full="drop_oldest")
    p = here.producer()
    c = here.consumer("t")
    for i in range(3000):
        p.send("t", b"%d" % i + bytes(1000))
    found = drain(c)
    offsets = [r.offset for r in found]
    # The broker may drop more while we read: then there is a gap, and it is counted, never silent.
    assert offsets == sorted(set(offsets)) and offsets[-1] == 2999
    assert 0 < offsets[0] < 3000
    assert c.metrics()["skipped_records_total"] == 3000 - len(offsets)
    assert c.beginning_offsets([T0])[T0] >= offsets[0]  # the broker may have made room for more meanwhile


def test_a_tethered_consumer_is_waited_for(here: Any) -> None:
    here.topic("t", shmlog_spill="false", shmlog_memory_bytes="400000")
    p = here.producer(max_block_ms=500)
    p.send("t", b"0" + bytes(1000))
    c = here.consumer("t", tether=True)
    sent = 1
    with pytest.raises(errors.KafkaTimeoutError, match="no room"):
        while sent < 5000:
            p.send("t", b"%d" % sent + bytes(1000))
            sent += 1
    assert sent > 100
    found = drain(c)
    assert [r.offset for r in found] == list(range(sent))
    for _ in range(5):  # goes on as it reads
        for _ in range(100):
            assert p.send("t", b"%d" % sent + bytes(1000)).offset == sent
            sent += 1
        found += drain(c, 100)
    assert [r.offset for r in found] == list(range(sent))
    c.close()
    for _ in range(2000):
        p.send("t", bytes(1000))


# --- against a model ---


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_producer_and_consumer_are_a_list(here: Any, data: st.DataObject) -> None:
    """The model: a log is a list; poll returns a slice from the position; seek sets it."""
    name = f"m{os.urandom(8).hex()}"  # not random: hypothesis seeds that
    here.topic(name)
    tp = TopicPartition(name, 0)
    p, c = here.producer(), here.consumer(name)
    log: list[tuple[bytes | None, bytes | None]] = []
    position = 0
    value = st.none() | st.binary(max_size=300)
    for _ in range(data.draw(st.integers(1, 12))):
        action = data.draw(st.sampled_from(["send", "many", "rows", "loan", "conflict", "poll", "batch", "iterate", "seek", "latest"]))
        if action == "send":
            key, v = data.draw(value), data.draw(value)
            assert p.send(name, v, key=key).offset == len(log)
            log.append((key, v))
        elif action == "many":
            values = data.draw(st.lists(value, max_size=8))
            p.send_many(name, values)
            log += [(None, v) for v in values]
        elif action == "rows":
            rows = np.arange(data.draw(st.integers(1, 9)), dtype="<i4")
            assert p.send_many(name, rows).offset == len(log)
            log += [(None, row.tobytes()) for row in rows]
        elif action == "loan":
            v = data.draw(st.binary(max_size=300))
            with p.loan(name, nbytes=len(v)) as loan:
                loan.array[:] = v
            assert loan.offset == len(log)
            log.append((None, v))
        elif action == "conflict":
            offset = data.draw(st.integers(0, len(log) + 2))
            try:
                assert p.send(name, b"cas", partition=0, expected_offset=offset).offset == len(log) == offset
                log.append((None, b"cas"))
            except errors.OffsetConflictError:
                assert offset != len(log)
        elif action == "poll":
            most = data.draw(st.integers(1, 10))
            got = c.poll(max_records=most).get(tp, [])
            assert [(r.offset, r.key, r.value) for r in got] == [(i, *log[i]) for i in range(position, min(position + most, len(log)))]
            position += len(got)
        elif action == "batch":
            b = c.poll_batch(0, max_records=data.draw(st.integers(1, 10)))
            if b is None:
                assert position == len(log)
            else:
                assert [(r.offset, r.key, r.value) for r in b] == [(i, *log[i]) for i in range(position, position + len(b))]
                position += len(b)
        elif action == "iterate" and position < len(log):
            r = next(c)
            assert (r.offset, r.key, r.value) == (position, *log[position])
            position += 1
        elif action == "seek":
            position = data.draw(st.integers(0, len(log)))
            c.seek(tp, position)
        elif action == "latest":
            newest = c.latest(tp)
            if position == len(log):
                assert newest is None
            else:
                assert newest is not None
                assert (newest.offset, newest.key, newest.value) == (len(log) - 1, *log[-1])
            position = len(log)
        assert c.position(tp) == position
        assert c.end_offsets([tp]) == {tp: len(log)}
    p.close()
    c.close()
