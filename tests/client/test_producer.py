"""Producer against a running cluster."""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from shmlog import Consumer, Producer, RecordMetadata, TopicPartition, errors
from shmlog._ffi import lib
from shmlog.client import session
from shmlog.partitioner import partition_for_key

Take = Callable[[Consumer, int], list[Any]]


def test_an_offset_is_known_when_send_returns(here: Any, take: Take) -> None:
    p = here.producer()
    deliveries = [p.send("t", b"v%d" % i) for i in range(5)]
    assert [d.offset for d in deliveries] == [0, 1, 2, 3, 4]
    assert deliveries[0].partition == 0
    assert deliveries[0].done
    metadata = deliveries[3].result(timeout=1)
    assert isinstance(metadata, RecordMetadata)
    assert metadata[:3] == ("t", 0, 3)
    assert abs(metadata.timestamp - time.time() * 1000) < 60_000
    assert [r.value for r in take(here.consumer("t"), 5)] == [b"v0", b"v1", b"v2", b"v3", b"v4"]


def test_all_fields_of_a_record_arrive(here: Any, take: Take) -> None:
    p = here.producer()
    headers = [("h", b"1"), ("h", b""), ("ü", None)]
    p.send("t", b"value", key=b"key", headers=headers, timestamp_ms=1234567890123)
    p.send("t", None, key=b"gone", timestamp_ns=42)
    p.send("t", b"", key=b"")
    first, second, third = take(here.consumer("t"), 3)
    assert (first.topic, first.partition, first.offset) == ("t", 0, 0)
    assert (first.key, first.value, first.headers, first.timestamp) == (b"key", b"value", headers, 1234567890123)
    assert (second.key, second.value, second.timestamp_ns, second.headers) == (b"gone", None, 42, [])
    assert (third.key, third.value) == (b"", b"")
    p.send("t", b"x", timestamp_ms=0)
    assert take(here.consumer("t"), 4)[3].timestamp == 0
    with pytest.raises(TypeError, match="give one"):
        p.send("t", b"x", timestamp_ms=1, timestamp_ns=1)


@pytest.mark.parametrize("size", [0, 1, 63, 100, 255, 256, 4096, 4097, 100_000, 3_000_000])
def test_values_of_any_size_arrive_whole(here: Any, take: Take, size: int) -> None:
    value = os.urandom(size)
    p = here.producer()
    p.send("t", value, key=b"k" * (size % 100))
    p.send("t", bytearray(value))
    p.send("t", memoryview(value))
    assert [r.value for r in take(here.consumer("t"), 3)] == [value] * 3


def test_str_needs_a_serializer(here: Any, take: Take) -> None:
    p = here.producer()
    with pytest.raises(TypeError, match=r"value_serializer=str\.encode"):
        p.send("t", "text")
    with pytest.raises(TypeError, match="key_serializer"):
        p.send("t", b"x", key="text")
    with pytest.raises(TypeError, match="not int"):
        p.send("t", 5)
    q = here.producer(value_serializer=str.encode, key_serializer=lambda k: str(k).encode())
    q.send("t", "text", key=7)
    q.send("t", None)
    found = take(here.consumer("t", value_deserializer=bytes.decode), 2)
    assert [(r.key, r.value) for r in found] == [(b"7", "text"), (None, None)]


def test_a_serializer_object_gets_the_topic(here: Any, take: Take) -> None:
    class Upper:
        def serialize(self, topic: str, value: str) -> bytes:
            return f"{topic}:{value}".encode()

        def deserialize(self, topic: str, value: bytes) -> str:
            return value.decode().removeprefix(topic)

    here.producer(value_serializer=Upper()).send("t", "x")
    assert take(here.consumer("t", value_deserializer=Upper()), 1)[0].value == ":x"


def test_keys_go_to_javas_partitions(here: Any) -> None:
    here.topic("t", 7)
    p = here.producer()
    for i in range(200):
        key = os.urandom(i % 20)
        assert p.send("t", b"", key=key).partition == partition_for_key(key, 7)


def test_without_a_key_all_partitions_get_their_share(here: Any) -> None:
    here.topic("t", 4)
    p = here.producer()
    counts = [0] * 4
    for _ in range(400):
        counts[p.send("t", bytes(1000)).partition] += 1
    assert min(counts) > 0
    assert p.partitions_for("t") == {0, 1, 2, 3}


def test_a_partitioner_of_the_user_decides(here: Any) -> None:
    here.topic("t", 4)
    seen = []

    def last(key: bytes | None, everything: list[int], available: list[int]) -> int:
        seen.append((key, everything, available))
        return everything[-1]

    p = here.producer(partitioner=last)
    assert p.send("t", b"x", key=b"k").partition == 3
    assert p.send("t", b"x").partition == 3
    assert seen == [(b"k", [0, 1, 2, 3], [0, 1, 2, 3]), (None, [0, 1, 2, 3], [0, 1, 2, 3])]


def test_a_partition_that_is_not_there_is_named(here: Any) -> None:
    p = here.producer()
    p.send("t", b"x", partition=0)
    with pytest.raises(errors.UnknownTopicOrPartitionError, match="t has no partition 3: it has 1"):
        p.send("t", b"x", partition=3)
    with pytest.raises(LookupError):
        p.partitions_for("nowhere")


def test_compare_and_append(here: Any) -> None:
    p = here.producer()
    assert p.send("t", b"a", partition=0, expected_offset=0).offset == 0
    assert p.send("t", b"b", partition=0, expected_offset=1).offset == 1
    with pytest.raises(errors.OffsetConflictError) as caught:
        p.send("t", b"c", partition=0, expected_offset=1)
    assert (caught.value.expected_offset, caught.value.log_end_offset) == (1, 2)
    assert str(caught.value) == "t-0: the log ends at offset 2, not at 1"
    with pytest.raises(errors.OffsetConflictError):
        p.send("t", b"c", partition=0, expected_offset=5)
    assert p.send("t", b"c", partition=0, expected_offset=2).offset == 2


def test_of_many_threads_each_expecting_the_same_end_one_wins(here: Any, take: Take) -> None:
    p = here.producer()
    p.send("t", b"first")
    won, start = [], threading.Barrier(4)

    def run(me: int) -> None:
        start.wait()
        offset = 1
        while offset < 200:
            try:
                won.append((p.send("t", struct.pack("=II", me, offset), partition=0, expected_offset=offset).offset, me))
                offset += 1
            except errors.OffsetConflictError as error:
                assert error.log_end_offset is not None
                offset = error.log_end_offset

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(offset for offset, _ in won) == list(range(1, 200))
    by_offset = {r.offset: struct.unpack("=II", r.value) for r in take(here.consumer("t"), 200)[1:]}
    assert by_offset == {offset: (me, offset) for offset, me in won}


def test_threads_share_a_producer_and_their_rows_go_when_they_end(here: Any, take: Take) -> None:
    p = here.producer()
    n, each = 8, 500

    def run(me: int) -> None:
        for i in range(each):
            p.send("t", struct.pack("=II", me, i))

    for _ in range(2):
        threads = [threading.Thread(target=run, args=(i,)) for i in range(n)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    p.flush()
    found = [struct.unpack("=II", r.value) for r in take(here.consumer("t"), 2 * n * each)]
    for me in range(n):
        assert [i for who, i in found if who == me] == [*range(each), *range(each)]
    metrics = p.metrics()
    assert metrics["records_total"] == 2 * n * each
    assert metrics["threads"] == 0


def test_a_record_larger_than_the_topic_allows(here: Any) -> None:
    here.topic("t", max_message_bytes="1000")
    p = here.producer()
    with pytest.raises(errors.MessageSizeTooLargeError, match=r"1001 bytes; max\.message\.bytes is 1000") as caught:
        p.send("t", bytes(1001))
    assert (caught.value.size, caught.value.limit) == (1001, 1000)
    p.send("t", bytes(1000))


def test_a_handle_on_a_deleted_topic_never_writes_to_the_new_one(here: Any, take: Take) -> None:
    admin, p = here.admin(), here.producer()
    p.send("t", b"old")
    admin.delete_topics(["t"])
    with pytest.raises(errors.UnknownTopicOrPartitionError, match="deleted"):
        p.send("t", b"lost")
    here.topic("t")
    with pytest.raises(errors.UnknownTopicOrPartitionError, match="deleted and made anew"):
        p.send("t", b"lost")
    here.producer().send("t", b"new")
    assert [r.value for r in take(here.consumer("t"), 1)] == [b"new"]


def test_names_that_cannot_be_topics_are_refused(here: Any) -> None:
    p = here.producer()
    for name in ("", "a/b", "ü", "x" * 250):
        with pytest.raises(errors.InvalidTopicError):
            p.send(name, b"x")


# --- acknowledgements ---


def test_acks_disk_waits_for_the_disk(here: Any) -> None:
    p = here.producer(acks="disk")
    d = p.send("t", b"x")
    assert d.offset == 0
    assert d.result(timeout=10).offset == 0
    assert d.done
    seen: list[Any] = []
    pending = [p.send("t", b"y").add_callback(seen.append) for _ in range(300)]
    p.flush(timeout=10)
    assert all(d.done for d in pending)
    assert [m.offset for m in seen] == list(range(1, 301))
    assert p.metrics()["pending"] == 0


def test_acks_disk_is_refused_for_a_topic_in_memory(here: Any) -> None:
    here.topic("t", shmlog_spill="false")
    with pytest.raises(errors.InvalidConfigurationError, match="memory only"):
        here.producer(acks="disk").send("t", b"x")


@pytest.mark.parametrize("acks", [0, 1, "1", -1, "all"])
def test_with_one_replica_acks_are_satisfied_at_once(here: Any, acks: Any) -> None:
    p = here.producer(acks=acks)
    seen: list[Any] = []
    assert p.send("t", b"x").add_callback(seen.append).done
    assert seen[0].offset == 0
    with pytest.raises(errors.InvalidConfigurationError, match="allowed are"):
        here.producer(acks="most")


def test_failures_that_nobody_looked_at_are_raised_by_flush_once(here: Any) -> None:
    admin = here.admin()
    p = here.producer(acks="disk")
    p.send("t", b"x").result()
    # The topic goes before the disk has it: nothing can acknowledge these any more.
    pending = [p.send("t", b"y") for _ in range(5)]
    admin.delete_topics(["t"])
    failed = [d for d in pending if d.exception(timeout=5) is not None]
    assert all(isinstance(d.exception(), errors.UnknownTopicOrPartitionError) for d in failed)
    p.flush()  # all were looked at


# --- many ---


def test_rows_of_an_array_become_records(here: Any, take: Take) -> None:
    p = here.producer()
    rows = np.arange(40_000, dtype="<f8").reshape(20_000, 2)
    written = p.send_many("t", rows)
    assert written.count == 20_000
    assert [(d.offset, d.count) for d in written] == [(0, 16383), (16383, 3617)]
    assert len(written.result(timeout=5)) == 2
    c = here.consumer("t", max_poll_records=20_000)
    found = take(c, 20_000)
    assert [r.offset for r in found] == list(range(20_000))
    assert found[777].value == rows[777].tobytes()
    assert found[777].array().tolist() == [1554.0, 1555.0]


@pytest.mark.parametrize(
    "values",
    [
        [b"same", b"size", b"here"],
        [b"a", b"", None, b"longer", bytes(5000)],
        [b"one"],
        [None, None],
        [b"", b""],
        [bytearray(b"x"), memoryview(b"yy"), np.arange(3, dtype="u1")],
    ],
    ids=["equal", "mixed", "one", "nulls", "empty", "buffers"],
)
def test_a_list_of_values_is_one_atomic_batch(here: Any, take: Take, values: list[Any]) -> None:
    p = here.producer()
    p.send("t", b"before")
    written = p.send_many("t", values)
    assert len(written) == 1
    assert (written.offset, written.count, written.partition) == (1, len(values), 0)
    p.send("t", b"after")
    found = take(here.consumer("t"), len(values) + 2)
    assert [r.value for r in found[1:-1]] == [None if v is None else bytes(v) for v in values]
    assert found[-1].offset == len(values) + 1


def test_keys_of_many_are_spread_and_kept_in_order(here: Any) -> None:
    here.topic("t", 3)
    p = here.producer()
    keys = [b"k%d" % (i % 10) for i in range(1000)]
    written = p.send_many("t", [b"%d" % i for i in range(1000)], keys=keys)
    assert {d.partition for d in written} == {partition_for_key(k, 3) for k in keys}
    assert sum(d.count for d in written) == 1000
    c, found = here.consumer("t"), []
    while len(found) < 1000:
        got = c.poll(timeout_ms=3000)
        assert got
        found += [r for records in got.values() for r in records]
    for r in found:
        assert r.partition == partition_for_key(r.key, 3)
        assert r.key == b"k%d" % (int(r.value) % 10)
    for n in range(3):
        mine = [int(r.value) for r in found if r.partition == n]
        assert mine == sorted(mine)


def test_many_values_are_cut_at_the_limits_and_the_result_lists_the_batches(here: Any, take: Take) -> None:
    here.topic("t", max_message_bytes="10000")
    p = here.producer()
    values = [bytes(i % 700) for i in range(200)]
    written = p.send_many("t", values)
    assert len(written) > 1
    assert written.count == 200
    assert [d.offset for d in written] == [0, *np.cumsum([d.count for d in written])[:-1].tolist()]
    assert [r.value for r in take(here.consumer("t"), 200)] == values
    with pytest.raises(errors.MessageSizeTooLargeError) as caught:
        p.send_many("t", [b"ok", bytes(20_000), b"never"])
    assert caught.value.written.count == 1  # type: ignore[attr-defined]


def test_send_many_refuses_what_is_not_many(here: Any) -> None:
    p = here.producer()
    with pytest.raises(TypeError, match="is one"):
        p.send_many("t", b"bytes")
    with pytest.raises(TypeError, match="at least one dimension"):
        p.send_many("t", np.array(5))
    with pytest.raises(errors.IllegalArgumentError, match="2 keys for 3 values"):
        p.send_many("t", [b"a", b"b", b"c"], keys=[b"a", b"b"])
    assert len(p.send_many("t", [])) == 0
    assert len(p.send_many("t", np.empty((0, 3)))) == 0


def test_compare_and_append_of_a_batch(here: Any) -> None:
    p = here.producer()
    p.send_many("t", [b"a", b"b"], expected_offset=0)
    with pytest.raises(errors.OffsetConflictError):
        p.send_many("t", [b"c", b"d"], expected_offset=1)
    assert p.send_many("t", np.zeros((3, 1)), expected_offset=2).offset == 2


# --- arrays and loans ---


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype="<i4").reshape(2, 3, 4),
        np.array(3.5),
        np.array([b"ab", b"c"]),
        np.array(["2026-01-01"], "M8[ns]"),
        np.arange(20)[::3],
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.zeros(3, [("x", "<i4"), ("y", "<f8", (2,))]),
        np.empty((0, 5), "u2"),
    ],
    ids=["3d", "scalar", "bytes", "dates", "strided", "fortran", "struct", "empty"],
)
def test_an_array_arrives_as_it_was(here: Any, take: Take, array: Any) -> None:
    here.producer().send("t", array)
    got = take(here.consumer("t"), 1)[0].array()
    assert got.dtype == array.dtype
    assert got.shape == array.shape
    assert (got == array).all()


def test_a_loan_is_written_in_place_and_sealed(here: Any, take: Take) -> None:
    p = here.producer()
    with p.loan("frames", shape=(48, 64, 3), dtype="u1", key=b"cam", headers=[("n", b"1")]) as loan:
        assert loan.array.shape == (48, 64, 3)
        assert loan.array.__array_interface__["data"][0] % 64 == 0
        loan.array[:] = 7
        loan.array[1, 2, 0] = 9
        with pytest.raises(errors.IllegalStateError):
            _ = loan.offset
    assert (loan.offset, loan.partition) == (0, 0)
    assert loan.result(timeout=1).offset == 0
    assert not loan.array.flags.writeable
    r = take(here.consumer("frames"), 1)[0]
    assert (r.key, r.headers) == (b"cam", [("n", b"1")])
    got = r.array()
    assert (got.shape, got[1, 2, 0], got.sum()) == ((48, 64, 3), 9, 48 * 64 * 3 * 7 + 2)


def test_a_loan_is_dropped_when_its_block_raises(here: Any, take: Take) -> None:
    p = here.producer()
    with pytest.raises(ZeroDivisionError), p.loan("t", nbytes=100) as loan:
        loan.array[:] = bytes(100)
        raise ZeroDivisionError
    with pytest.raises(errors.IllegalStateError, match="not appended"):
        _ = loan.offset
    for _ in range(20):  # more than there are pins
        with pytest.raises(KeyError), p.loan("t", nbytes=5000):
            raise KeyError
    assert p.send("t", b"x").offset == 0


def test_a_loan_interrupted_while_it_begins_gives_back_its_pin(here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    p = here.producer()
    p.send("t", b"")

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    loan = p.loan("t", nbytes=100)
    monkeypatch.setattr(type(loan), "_map", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loan.__enter__()
    thread = p._local.thread
    assert not any(lib.sl_cluster_row(thread.cluster, thread.row).view_pins)


def test_a_loan_of_bytes_may_be_cut_and_keyed(here: Any, take: Take) -> None:
    p = here.producer()
    with p.loan("t", nbytes=1000) as loan:
        loan.array[:5] = b"hello"
        loan.truncate(5)
        assert len(loan.array) == 5
        loan.key = b"late"
    with p.loan("t", shape=(10, 2), dtype="<i4", key=b"x") as loan:
        loan.array[:] = np.arange(20).reshape(10, 2)
        with pytest.raises(errors.IllegalArgumentError, match="whole rows"):
            loan.truncate(12)
        loan.truncate(24)
        assert loan.array.shape == (3, 2)
    first, second = take(here.consumer("t"), 2)
    assert (first.key, first.value) == (b"late", b"hello")
    assert second.array().tolist() == [[0, 1], [2, 3], [4, 5]]


def test_several_loans_end_in_any_order(here: Any, take: Take) -> None:
    p = here.producer()
    loans = [p.loan("t", nbytes=64) for _ in range(4)]
    for i, loan in enumerate(loans):
        loan.__enter__()
        loan.array[:] = bytes([i]) * 64
    p.send("t", b"between")
    for loan in reversed(loans):
        loan.__exit__(None, None, None)
    assert [r.value[:1] for r in take(here.consumer("t"), 5)] == [b"b", b"\3", b"\2", b"\1", b"\0"]


def test_a_loan_outlives_the_segment_it_was_taken_from(here: Any, take: Take) -> None:
    p = here.producer()
    with p.loan("t", nbytes=1000) as loan:
        loan.array[:] = b"L" * 1000
        for _ in range(200):
            p.send("t", bytes(1000))
    assert loan.offset == 200
    c = here.consumer("t")
    c.seek(TopicPartition("t", 0), 200)
    assert take(c, 1)[0].value == b"L" * 1000


# --- keywords, life, processes ---


def test_kafkas_other_keywords_are_accepted_and_unknown_ones_are_not(here: Any) -> None:
    here.producer(linger_ms=5, retries=3, security_protocol="PLAINTEXT", api_version=(2, 0), batch_size=16384, compression_type=None)
    with pytest.raises(TypeError, match=r"'ack'; did you mean 'acks'\?"):
        here.producer(ack=1)
    with pytest.raises(errors.UnsupportedCodecError):
        here.producer(compression_type="zstd")


def test_a_closed_producer_says_so(here: Any) -> None:
    p = here.producer()
    p.send("t", b"x")
    p.close()
    p.close()
    for call in (lambda: p.send("t", b"x"), p.flush, lambda: p.loan("t", nbytes=1), lambda: p.partitions_for("t"), lambda: p.send_many("t", [b"x"])):
        with pytest.raises(errors.ClosedError, match="closed"):
            call()


def test_no_cluster_is_an_error_within_a_moment() -> None:
    start = time.monotonic()
    with pytest.raises(errors.NoBrokersAvailable) as caught:
        Producer(bootstrap_servers="shm://nobody-here")
    assert time.monotonic() - start < 20 * 0.1  # 100 ms are promised
    assert "shmlog up" in str(caught.value) + caught.value.hint
    with pytest.raises(errors.InvalidConfigurationError, match="Kafka"):
        Producer(bootstrap_servers="localhost:9092")


def test_a_forked_child_may_not_use_it_and_the_parent_may(here: Any) -> None:
    p = here.producer()
    d = p.send("t", b"x")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            for call in (lambda: p.send("t", b"y"), p.flush, p.close, lambda: p.loan("t", nbytes=5)):
                try:
                    call()
                except errors.ForkedProcessError:
                    code = 0
                else:
                    code = 2
                    break
            del p
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert d.done
    assert p.send("t", b"z").offset == 1


def test_a_child_forked_inside_a_loan_may_touch_its_array_and_changes_nothing(here: Any) -> None:
    p = here.producer()
    with p.loan("t", shape=1000, dtype="<u8") as loan:
        loan.array[:] = 7
        child = os.fork()
        if child == 0:
            code = 1
            try:
                before = int(loan.array.sum())  # zeros: the log's memory stays with the parent
                loan.array[:] = 9
                code = 0 if (before, int(loan.array.sum())) == (0, 9000) else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert next(here.consumer("t")).array().tolist() == [7] * 1000


def test_a_fork_does_not_wait_for_locks_that_other_threads_hold(here: Any) -> None:
    """The interpreter ends what the other threads own inside os.fork(), in the child, before any hook of ours has run there."""
    p = here.producer()
    local = threading.local()
    sent, held, end = threading.Event(), threading.Event(), threading.Event()

    def own() -> None:
        p.send("t", b"a row of this thread's own")
        local.consumer = Consumer("t", bootstrap_servers=here.address)
        local.consumer.fileno()
        sent.set()
        end.wait()

    def hold() -> None:
        with session._links_lock, p._session._link.rows_lock:
            held.set()
            end.wait()

    threads = [threading.Thread(target=own, daemon=True), threading.Thread(target=hold, daemon=True)]
    threads[0].start()
    assert sent.wait(20)
    fifo = [name for name in os.listdir(p._session.run_dir) if name.startswith("w")]
    threads[1].start()
    assert held.wait(20)
    child = os.fork()
    if child == 0:
        os._exit(0)
    try:
        deadline = time.monotonic() + 20
        while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < deadline:
            pass
        if not ended[0]:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        assert ended == (child, 0)
        assert [name for name in os.listdir(p._session.run_dir) if name.startswith("w")] == fifo  # the consumer's, which is the parent's
    finally:
        end.set()
        for thread in threads:
            thread.join()


def test_a_subclass_of_ndarray_arrives_as_its_data_or_is_refused(here: Any, take: Take) -> None:
    p = here.producer()
    matrix = np.arange(6).reshape(2, 3).view(np.matrix)
    p.send("t", matrix, key=matrix)
    p.send_many("t", matrix)
    whole, *rows = take(here.consumer("t"), 3)
    assert np.array_equal(whole.array(), [[0, 1, 2], [3, 4, 5]])
    assert whole.key == matrix.tobytes()
    assert [row.array().tolist() for row in rows] == [[0, 1, 2], [3, 4, 5]]
    masked = np.ma.array([1, 2], mask=[False, True])
    for call in (lambda: p.send("t", masked), lambda: p.send_many("t", masked)):
        with pytest.raises(errors.IllegalArgumentError, match="mask"):
            call()


def test_a_timeout_may_be_infinite_and_is_not_nan(here: Any) -> None:
    with here.producer(delivery_timeout_ms=float("inf"), max_block_ms=float("inf"), acks="disk") as p:
        p.send("t", b"x").result()
        p.flush(float("inf"))
        p.flush(1e300)
        with pytest.raises(ValueError, match="NaN"):
            p.flush(float("nan"))
    c = here.consumer("t")
    assert c.poll(float("inf"))
    assert c.poll(float("-inf")) == {}
    assert c.poll(0) == {}  # by the extension now, if there is one
    with pytest.raises(ValueError, match="NaN"):
        c.poll(float("nan"))


def test_it_pickles_as_a_recipe(here: Any) -> None:
    p = here.producer(acks=1, max_block_ms=777)
    q = pickle.loads(pickle.dumps(p))
    try:
        assert repr(q) == repr(p)
        q.send("t", b"x")
    finally:
        q.close()


def test_a_handler_may_send_in_the_middle_of_a_send(here: Any, take: Take) -> None:
    p = here.producer()
    p.send("t", b"first")
    handled = []

    def handler(number: int, frame: Any) -> None:
        handled.append(p.send("t", b"handler", key=b"h").offset)

    old = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        sent = []
        end = time.monotonic() + 5
        while len(handled) < 50 and time.monotonic() < end:
            sent.append(p.send("t", b"plain").offset)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert len(handled) >= 50
    records = take(here.consumer("t"), 1 + len(sent) + len(handled))
    assert {r.offset for r in records if r.key == b"h" and r.value == b"handler"} == set(handled)
    assert {r.offset for r in records if r.key is None and r.value == b"plain"} == set(sent)


def test_a_handler_may_make_a_topic_while_one_is_being_made(here: Any) -> None:
    p = here.producer()
    made = []
    numbers = itertools.count()

    def handler(number: int, frame: Any) -> None:
        made.append(p.send(f"h{next(numbers)}", b"x").offset)

    old = signal.signal(signal.SIGALRM, handler)
    try:
        end = time.monotonic() + 20
        for i in range(100):
            signal.setitimer(signal.ITIMER_REAL, 0.0001 * (1 + i % 10))
            assert p.send(f"t{i}", b"x").offset == 0
            if len(made) >= 5 or time.monotonic() > end:
                break
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert made == [0] * len(made)
    assert made


def test_ctrl_c_leaves_a_producer_whole(here: Any, take: Take) -> None:
    p = here.producer()

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt)
    done = 0
    try:
        for _ in range(50):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.002)
                while True:
                    p.send("t", b"%d" % done, key=b"k")
                    done += 1
            except KeyboardInterrupt:
                pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    end = p.send("t", b"end").offset
    assert end >= done
    found = take(here.consumer("t"), end + 1)
    assert [r.offset for r in found] == list(range(end + 1))
    assert found[-1].value == b"end"
