"""The two bindings are one product: chosen by the environment, they share values, rules and what they leave behind.

All other tests of this folder run under both (make test)."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmlog import Producer, _binding, errors
from shmlog.partitioner import Sticky
from shmlog.types import Record, TopicPartition

ROOT = Path(__file__).parents[2]
fast_only = pytest.mark.skipif(_binding.fast is None, reason="about the extension, and this run is by cffi (SHMLOG_BINDING, or not built)")


def python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**{k: v for k, v in os.environ.items() if k != "SHMLOG_BINDING"}, **environment}
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)


VERSION = "import sys; sys.argv = ['shmlog', '--version']; from shmlog.tools.cli import main; main()"


def test_the_environment_chooses_and_version_tells() -> None:
    assert "binding cffi" in python(VERSION, SHMLOG_BINDING="cffi").stdout
    if _binding.fast is not None:
        assert "binding fast" in python(VERSION).stdout


def test_a_binding_that_does_not_exist_is_refused_by_name() -> None:
    done = python("import shmlog.types", SHMLOG_BINDING="rust")
    assert "SHMLOG_BINDING=rust: allowed are fast, cffi" in done.stderr.splitlines()[-1]


def test_where_the_extension_was_not_built_cffi_serves() -> None:
    missing = "import sys; sys.modules['shmlog._fast'] = None; from shmlog import _binding; print(_binding.name)"
    assert python(missing).stdout == "cffi\n"
    done = python(missing, SHMLOG_BINDING="fast")
    assert "SHMLOG_BINDING=fast: this shmlog has no extension" in done.stderr


@pytest.mark.parametrize("binding", ["cffi", "fast"])
def test_what_one_binding_pickles_the_other_loads(binding: str) -> None:
    if binding == "fast" and _binding.fast is None:
        pytest.skip("the extension is not in use here")
    record = Record("t", 1, 2, 3, 0, b"k", b"v", [("h", None)], 7, "<i4", (2,))
    code = "import pickle, sys; r = pickle.loads(bytes.fromhex(sys.argv[1])); print(repr(r), r.dtype, r.shape); print(pickle.dumps(r).hex())"
    shown, again = python(code, pickle.dumps(record).hex(), SHMLOG_BINDING=binding).stdout.splitlines()
    assert shown == f"{record!r} <i4 (2,)"
    assert pickle.loads(bytes.fromhex(again)) == record


@fast_only
@given(st.integers(0, 2**16 - 1), st.lists(st.tuples(st.integers(0, 70_000), st.integers(0, 1_500_000), st.integers(1, 5)), max_size=50))
def test_records_without_a_key_go_around_as_the_reference_says(start: int, steps: list[tuple[int, int, int]]) -> None:
    lane, reference, now = _binding.fast.Lane(start), Sticky(start), 10**12
    for nbytes, later_ns, partitions in steps:
        now += later_ns
        assert lane.choose(nbytes, now, partitions) == reference.choose(nbytes, now, partitions)


def test_each_key_goes_where_the_general_path_sends_it(here: Any) -> None:
    here.topic("t", 7)
    p = here.producer()
    for i in range(64):
        key = b"k" * (i % 9) + str(i).encode()
        assert p.send("t", b"v", key).partition == p.send("t", b"v", key, headers=[("h", b"")]).partition


def test_fields_that_python_changes_are_seen_by_the_collector(here: Any) -> None:
    class Mark:
        pass

    p = here.producer()
    delivery = p.send("t", b"v")
    ((record,),) = here.consumer("t").poll(timeout_ms=5000).values()
    marks = [Mark(), Mark(), Mark()]
    record.value = record.headers, marks[0]
    record.headers.append(record)
    record.key = marks[1]
    marks[1].record = record  # type: ignore[attr-defined]
    delivery.topic = marks[2]  # type: ignore[assignment]
    marks[2].delivery = delivery  # type: ignore[attr-defined]
    seen = [weakref.ref(mark) for mark in marks]
    del record, delivery, marks
    gc.collect()
    assert [ref() for ref in seen] == [None, None, None]


def test_sending_and_reading_leave_no_memory_behind(here: Any) -> None:
    here.topic("t")
    p, c = here.producer(), here.consumer("t")
    values = [b"x" * 50] * 20

    def turn() -> None:
        p.send("t", b"value", b"key", partition=0)
        assert next(c).value == b"value"
        p.send_many("t", values)
        assert sum(map(len, c.poll(timeout_ms=5000).values())) == 20
        p.send("t", b"a")
        p.send("t", b"b", headers=[("h", b"1")])
        with c.poll_batch(5000) as batch:
            assert batch.values(copy=True) == [b"a", b"b"]
            assert list(map(bytes, batch.values())) == [b"a", b"b"]
        with pytest.raises(errors.UnknownTopicOrPartitionError):
            p.send("t", b"a", partition=9)

    for _ in range(20):
        turn()
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(300):
        turn()
    gc.collect()
    assert sys.getallocatedblocks() - before < 300  # less than one block a turn


def test_a_thread_never_inherits_the_way_of_one_that_has_ended(here: Any) -> None:
    here.topic("t")
    p, other = here.producer(), here.producer()
    found: list[int] = []

    def send() -> None:
        for q in (p, other, p):
            found.append(q.send("t", b"v").offset)

    for _ in range(12):  # a thread that ends gives its identity to the next one
        thread = threading.Thread(target=send)
        thread.start()
        thread.join()
    assert found == list(range(36))
    gc.collect()
    assert p.metrics()["records_total"] == 24
    assert p.metrics()["threads"] == 0


def test_a_thread_whose_way_was_given_back_gets_a_new_one(here: Any) -> None:
    here.topic("t")
    p = here.producer()
    p.send("t", b"v")
    del p._local.thread  # as at the end of a thread, before its last finalizers
    gc.collect()
    assert p.send("t", b"v").offset == 1
    assert p.metrics()["threads"] == 1
    assert p.metrics()["records_total"] == 2


def test_a_stamp_lies_between_two_looks_at_the_clock(here: Any) -> None:
    here.topic("t")
    p = here.producer()
    end, last = time.monotonic() + 0.3, 0  # many times what the core counts on for without looking
    while time.monotonic() < end:
        before = time.time_ns()
        stamp = p.send("t", b"v").timestamp_ns
        assert before - 5_000 <= stamp <= time.time_ns() + 5_000
        assert stamp >= last
        last = stamp


def test_threads_send_through_one_producer_while_it_is_closed(here: Any) -> None:
    here.topic("t")
    p = Producer(bootstrap_servers=here.address)
    sent = [0] * 3
    started = threading.Barrier(4)

    def send(i: int) -> None:
        p.send("t", b"v")
        sent[i] += 1
        started.wait(30)
        try:
            while True:
                p.send("t", b"v", partition=0)
                sent[i] += 1
        except errors.ClosedError:
            pass

    threads = [threading.Thread(target=send, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    started.wait(30)
    p.close()
    for thread in threads:
        thread.join(30)
    assert here.consumer().end_offsets([TopicPartition("t", 0)])[TopicPartition("t", 0)] == sum(sent)


CLOSED_WITHIN = """
import gc, sys, threading
from shmlog import Producer, errors

address, call = sys.argv[1:]
producer = Producer(bootstrap_servers=address)
gc.disable()
kept = [producer.send("t", b"v") for _ in range(600)]  # no dead Delivery is left to be used again: the next send allocates one

class Closing:
    def __del__(self):
        thread = threading.Thread(target=producer.close)
        thread.start()
        thread.join()

cycle = Closing()
cycle.itself = cycle
del cycle
values = [b"v", b"w"]
try:
    gc.enable()
    producer.send("t", b"v") if call == "send" else producer.send_many("t", values)
except errors.ClosedError:
    print("closed")
else:
    print("sent")
"""


@pytest.mark.parametrize("call", ["send", "send_many"])
def test_a_send_during_which_a_finalizer_lets_another_thread_close_the_producer_ends_before_or_after_that(here: Any, call: str) -> None:
    here.topic("t")
    done = python(CLOSED_WITHIN, here.address, call, SHMLOG_BINDING=_binding.name, PYTHONMALLOC="debug")  # what was freed is overwritten
    assert done.returncode == 0 and done.stdout in ("closed\n", "sent\n"), done


def test_a_timeout_that_is_no_number_is_refused_and_not_waited_for(here: Any) -> None:
    here.topic("t")
    c = here.consumer("t")
    c.poll()  # the first poll is Python's by either binding
    with pytest.raises(ValueError, match="NaN"):
        c.poll(timeout_ms=float("nan"))


WAITING = """
import sys, threading
from shmlog import Consumer, TopicPartition

address, how, wait = sys.argv[1:]
consumer = Consumer("t", bootstrap_servers=address, auto_offset_reset="latest", wait=wait)

def tell() -> None:
    while not consumer._busy and consumer._owner is None:
        pass
    for _ in range(100_000):  # this thread runs, whatever the other one waits for
        pass
    print("waiting", flush=True)

threading.Thread(target=tell).start()
try:
    next(consumer) if how == "next" else consumer.poll(timeout_ms=600_000)
except KeyboardInterrupt:
    print("interrupted", len(consumer.assignment()), consumer.position(TopicPartition("t", 0)))
"""


@pytest.mark.parametrize("wait", ["spin", "block"])
@pytest.mark.parametrize("how", ["next", "poll"])
def test_ctrl_c_and_other_threads_get_through_a_wait(here: Any, how: str, wait: str) -> None:
    here.topic("t")
    child = subprocess.Popen([sys.executable, "-c", WAITING, here.address, how, wait], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "waiting\n"
        child.send_signal(signal.SIGINT)
        assert child.communicate(timeout=30)[0] == "interrupted 1 0\n"
    finally:
        child.kill()
        child.wait()
