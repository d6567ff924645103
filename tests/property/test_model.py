"""Producer, Consumer and Admin against a model of ten lines, on a real cluster: hypothesis looks for a sequence of calls after which they differ.

Partitions have little memory and small files, so sequences rotate segments, recycle them, and read from disk and across to memory.
"""

from __future__ import annotations

import itertools
import os
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from shmlog import Admin, Consumer, NewTopic, Producer, TopicPartition, errors
from shmlog.client.encoding import decode_headers, decode_kafka_headers

PARTITIONS = 2
CONFIG = {"shmlog.memory.bytes": "262144", "segment.bytes": "65536", "max.message.bytes": "100000"}
_numbers = itertools.count()


class Model:
    """What a topic is: for each partition the records ever appended, and where its log starts."""

    def __init__(self) -> None:
        self.records: list[list[tuple[Any, ...]]] = [[] for _ in range(PARTITIONS)]
        self.start = [0] * PARTITIONS

    def append(self, p: int, key: bytes | None, value: bytes | None, headers: list[Any], ms: int) -> int:
        self.records[p].append((len(self.records[p]), key, value, headers, ms))
        return len(self.records[p]) - 1

    def first_at(self, p: int, ms: int) -> int | None:
        return next((r[0] for r in self.records[p][self.start[p] :] if r[4] >= ms), None)


def _seen(r: Any) -> tuple[Any, ...]:
    return (r.offset, r.key, None if r.value is None else bytes(r.value), list(r.headers), r.timestamp_ns // 1_000_000)


partitions = st.integers(0, PARTITIONS - 1)
keys = st.none() | st.binary(max_size=12)
values = st.none() | st.binary(max_size=300) | st.integers(0, 9000).map(lambda n: (b"0123456789abcdef" * 600)[:n])
header_lists = st.lists(st.tuples(st.text(max_size=5), st.none() | st.binary(max_size=5)), max_size=3)
times = st.integers(1_000, 1_050)


class Topic(RuleBasedStateMachine):
    address = ""

    @initialize()
    def begin(self) -> None:
        self.name = f"t{next(_numbers)}"
        self.admin = Admin(bootstrap_servers=self.address)
        self._create()

    def _create(self) -> None:
        self.admin.create_topics([NewTopic(self.name, PARTITIONS, 1, config=CONFIG)])
        self.tps = [TopicPartition(self.name, p) for p in range(PARTITIONS)]
        self.model = Model()
        self.position = [0] * PARTITIONS
        self.paused: set[int] = set()
        self.producer = Producer(bootstrap_servers=self.address, max_block_ms=20_000)
        self.consumer = Consumer(bootstrap_servers=self.address, auto_offset_reset="earliest")
        self.consumer.assign(self.tps)

    def teardown(self) -> None:
        if hasattr(self, "producer"):
            self.producer.close()
            self.consumer.close()
            self.admin.delete_topics([self.name])
            self.admin.close()

    def _end(self, p: int) -> int:
        return len(self.model.records[p])

    # --- writing ---

    @rule(p=partitions, key=keys, value=values, headers=header_lists, ms=times, expect=st.sampled_from([None, None, 0, 1, -1]))
    def send(self, p: int, key: Any, value: Any, headers: Any, ms: int, expect: int | None) -> None:
        arguments: dict[str, Any] = {"key": key, "headers": headers, "partition": p, "timestamp_ms": ms}
        if expect is not None:
            arguments["expected_offset"] = max(0, self._end(p) + expect)
            if arguments["expected_offset"] != self._end(p):
                with pytest.raises(errors.OffsetConflictError) as caught:
                    self.producer.send(self.name, value, **arguments)
                assert caught.value.log_end_offset == self._end(p)
                return
        assert self.producer.send(self.name, value, **arguments).offset == self.model.append(p, key, value, headers, ms)

    @rule(p=partitions, many=st.lists(st.tuples(keys, st.binary(max_size=200)), min_size=1, max_size=30), ms=times, with_keys=st.booleans())
    def send_many(self, p: int, many: Any, ms: int, with_keys: bool) -> None:
        self.producer.send_many(self.name, [v for _, v in many], [k for k, _ in many] if with_keys else None, partition=p, timestamp_ms=ms)
        for key, value in many:
            self.model.append(p, key if with_keys else None, value, [], ms)

    @rule(p=partitions, rows=st.integers(1, 400), ms=times)
    def send_rows(self, p: int, rows: int, ms: int) -> None:
        array = np.arange(rows * 3, dtype="<i4").reshape(rows, 3)
        self.producer.send_many(self.name, array, partition=p, timestamp_ms=ms)
        for row in array:
            self.model.append(p, None, row.tobytes(), [], ms)

    @rule(p=partitions, n=st.integers(5, 80), ms=times)
    def flood(self, p: int, n: int, ms: int) -> None:
        for i in range(n):
            value = bytes([i]) * 4000
            assert self.producer.send(self.name, value, partition=p, timestamp_ms=ms).offset == self.model.append(p, None, value, [], ms)

    @rule(p=partitions, n=st.integers(0, 5000), cut=st.integers(0, 5000), ms=times, drop=st.booleans(), key=keys, between=st.booleans())
    def loan(self, p: int, n: int, cut: int, ms: int, drop: bool, key: Any, between: bool) -> None:
        try:
            with self.producer.loan(self.name, nbytes=n, partition=p, timestamp_ms=ms, key=key) as loan:
                loan.array[:] = b"L" * n
                if between:
                    self.send(p, None, b"between", [], ms, None)
                if cut <= n:
                    loan.truncate(cut)
                if drop:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            return
        assert loan.offset == self.model.append(p, key, b"L" * min(n, cut), [], ms)

    @rule(p=partitions, n=st.integers(100_001, 120_000))
    def too_large(self, p: int, n: int) -> None:
        with pytest.raises(errors.MessageSizeTooLargeError):
            self.producer.send(self.name, bytes(n), partition=p)

    # --- reading ---

    def _check_read(self, p: int, found: list[Any]) -> None:
        at = max(self.position[p], self.model.start[p])
        expected = self.model.records[p][at : at + len(found)]
        assert [_seen(r) for r in found] == expected
        self.position[p] = at + len(found)

    def _readable(self) -> list[int]:
        return [p for p in range(PARTITIONS) if p not in self.paused and max(self.position[p], self.model.start[p]) < self._end(p)]

    @rule(most=st.integers(1, 500))
    def poll(self, most: int) -> None:
        readable = self._readable()
        got = self.consumer.poll(timeout_ms=20_000 if readable else 0, max_records=most)
        assert {tp.partition for tp in got} <= set(readable) and bool(got) == bool(readable)
        assert sum(map(len, got.values())) <= most
        for tp, found in got.items():
            self._check_read(tp.partition, found)

    @rule(most=st.integers(1, 500))
    def poll_batch(self, most: int) -> None:
        readable = self._readable()
        batch = self.consumer.poll_batch(timeout_ms=20_000 if readable else 0, max_records=most)
        assert (batch is not None) == bool(readable)
        if batch is not None:
            self._check_read(batch.partition, list(batch))
            batch.release()

    @rule()
    def drain(self) -> None:
        while self._readable():
            self.poll(500)

    @rule(p=partitions, data=st.data())
    def seek(self, p: int, data: st.DataObject) -> None:
        self.position[p] = data.draw(st.integers(self.model.start[p], self._end(p)))
        self.consumer.seek(self.tps[p], self.position[p])

    @rule(p=partitions, end=st.booleans())
    def seek_to(self, p: int, end: bool) -> None:
        (self.consumer.seek_to_end if end else self.consumer.seek_to_beginning)(self.tps[p])
        self.position[p] = self._end(p) if end else self.model.start[p]

    @rule(p=partitions)
    def pause_or_resume(self, p: int) -> None:
        (self.consumer.resume if p in self.paused else self.consumer.pause)(self.tps[p])
        self.paused ^= {p}

    @rule(p=partitions, ms=st.integers(990, 1_060))
    def offsets_for_times(self, p: int, ms: int) -> None:
        found = self.consumer.offsets_for_times({self.tps[p]: ms})[self.tps[p]]
        expected = self.model.first_at(p, ms)
        assert (None if found is None else found.offset) == expected
        assert found is None or found.timestamp == self.model.records[p][found.offset][4]

    # --- the topic itself ---

    @rule(p=partitions, data=st.data())
    def trim(self, p: int, data: st.DataObject) -> None:
        to = data.draw(st.integers(0, self._end(p)))
        self.admin.delete_records({self.tps[p]: to})
        self.model.start[p] = max(self.model.start[p], to)

    @precondition(lambda self: sum(map(len, self.model.records)) > 50)
    @rule()
    def delete_and_make_anew(self) -> None:
        old = self.producer, self.consumer
        self.admin.delete_topics([self.name])
        self._create()
        with pytest.raises(errors.UnknownTopicOrPartitionError):
            old[0].send(self.name, b"to the one before", partition=0)
        for handle in old:
            handle.close()

    @invariant()
    def the_offsets_are_those_of_the_model(self) -> None:
        if not hasattr(self, "model"):
            return
        assert self.consumer.end_offsets(self.tps) == {tp: self._end(tp.partition) for tp in self.tps}
        assert self.consumer.beginning_offsets(self.tps) == {tp: self.model.start[tp.partition] for tp in self.tps}


def _run(cluster: Any, examples: int, steps: int) -> None:
    machine = type("Topic", (Topic,), {"address": cluster.address})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=list(HealthCheck), derandomize=examples < 100
        ),
    )


def test_a_topic_is_what_the_model_says(shmlog_cluster: Any) -> None:
    _run(shmlog_cluster, examples=8, steps=30)


@pytest.mark.slow
def test_a_topic_is_what_the_model_says_over_many_sequences(shmlog_cluster: Any) -> None:
    _run(shmlog_cluster, examples=int(os.environ.get("EXAMPLES", "400")), steps=60)


@pytest.mark.parametrize("decode", [decode_headers, decode_kafka_headers])
def test_bytes_that_are_no_headers_are_a_damaged_record_and_nothing_else(decode: Any) -> None:
    @settings(max_examples=500)
    @given(st.binary(max_size=60))
    def any_bytes(data: bytes) -> None:
        try:
            found = decode(data)
        except errors.CorruptRecordError:
            return
        assert all(isinstance(name, str) and (value is None or isinstance(value, bytes)) for name, value in found)

    any_bytes()
