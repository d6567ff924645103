"""`shmlog top`: what it computes from two looks, and how it shows it."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from shmlog import Consumer, Producer, TopicPartition, config
from shmlog._ffi import lib
from shmlog.tools import status, top

DEADLINE_S = 60


@pytest.fixture
def looks(shmlog_cluster: Any) -> Any:
    """look(): one look at the test's namespace."""
    address = config.parse_address(shmlog_cluster.address)
    with status.Attached(address.cluster) as attached:
        yield lambda: top.Look(attached, address)


def partition(seen: dict[str, Any], topic: str) -> dict[str, Any]:
    (found,) = [p for p in seen["partitions"] if p["topic"] == topic]
    return found


def test_rates_lag_and_ages_between_two_looks(looks: Callable[[], top.Look]) -> None:
    with Producer() as producer, Consumer("t", missing="wait", auto_offset_reset="earliest") as consumer:
        producer.send_many("t", [b"x"] * 100)
        before = looks()
        for _ in range(50):
            producer.send("t", b"x" * 100)
        deadline, read = time.monotonic() + DEADLINE_S, 0
        while read < 120:
            read += sum(len(records) for records in consumer.poll(timeout_ms=100, max_records=120 - read).values())
            assert time.monotonic() < deadline
        after = looks()
        before.ns = after.ns - 10**9  # as if a second lay between them: rates are then the counts
        seen = top.between(before, after, 0)
    t = partition(seen, "t")
    assert (t["appended_per_second"], t["read_per_second"], seen["interval_seconds"]) == (50, 120, 1)
    assert (t["readers"], t["lag"], t["log_end_offset"]) == (1, 30, 150)
    assert t["latency_samples"] >= 1 and 0 <= t["latency_p50_us"] <= t["latency_p99_us"]
    assert {p["role"] for p in seen["processes"]} >= {"coordinator", "broker", "client"}


def test_reader_that_left_is_not_counted(looks: Callable[[], top.Look]) -> None:
    with Producer() as producer:
        producer.send("t", b"x")
    with Consumer("t", auto_offset_reset="earliest", consumer_timeout_ms=DEADLINE_S * 1000) as consumer:
        next(consumer)
        before = looks()
        assert partition(top.between(before, looks(), 0), "t")["readers"] == 1
    seen = partition(top.between(before, looks(), 0), "t")
    assert (seen["readers"], seen["lag"], seen["latency_p50_us"]) == (0, None, None)


def test_searching_for_a_time_moves_no_reader_of_top(looks: Callable[[], top.Look]) -> None:
    with Producer() as producer:
        producer.send_many("t", [b"x"] * 10)
    with Consumer("t", auto_offset_reset="earliest", consumer_timeout_ms=DEADLINE_S * 1000) as consumer:
        consumer.offsets_for_times({TopicPartition("t", 0): 0})
        assert partition(top.between(looks(), looks(), 0), "t")["readers"] == 0


def test_coordinator_makes_room_for_more_readers_than_there_were_meters(shmlog_cluster: Any, looks: Callable[[], top.Look]) -> None:
    topics = ("t0", "t1", "t2")
    with contextlib.ExitStack() as stack:
        producer = stack.enter_context(Producer())
        for topic in topics:
            producer.send(topic, b"x")
        consumers = [stack.enter_context(Consumer(*topics, auto_offset_reset="earliest")) for _ in range(30)]
        deadline, readers = time.monotonic() + DEADLINE_S, [0]
        while readers != [30, 30, 30]:  # 90; the table begins with 64, and a reader without one looks again now and then
            assert time.monotonic() < deadline, readers
            for topic in topics:
                producer.send(topic, b"x")
            for consumer in consumers:
                consumer.poll(timeout_ms=0)
            seen = top.between(looks(), looks(), 0)
            readers = [partition(seen, topic)["readers"] for topic in topics]


def test_percentiles_come_from_the_middle_of_their_bucket() -> None:
    counts = [0] * lib.SL_METER_BUCKETS
    assert top.percentile_ns(counts, 0.5) is None
    counts[10], counts[40] = 99, 1
    assert lib.sl_meter_bucket(int(top.percentile_ns(counts, 0.5) or 0)) == 10
    assert lib.sl_meter_bucket(int(top.percentile_ns(counts, 0.99) or 0)) == 10
    assert lib.sl_meter_bucket(int(top.percentile_ns(counts, 0.995) or 0)) == 40


def test_without_a_terminal_it_is_a_line_an_interval(on: Callable[..., Any]) -> None:
    done = on("top", "-n", "2", "--interval", "0.05")
    assert done.code == 0 and len(done.out.splitlines()) == 2
    assert all("  in 0/s  out 0/s  lag -  p50 -  p99 -  shm " in line for line in done.out.splitlines())


def test_json_is_an_object_an_interval(on: Callable[..., Any]) -> None:
    with Producer() as producer:
        producer.send("t", b"x")
    first, second = on("top", "--json", "-n", "2", "--interval", "0.05").lines
    assert first["partitions"][0]["topic"] == second["partitions"][0]["topic"] == "t"
    assert second["time_ms"] >= first["time_ms"] and second["shm_bytes"] > 0


def test_top_of_a_cluster_that_does_not_run_exits_3(run: Callable[..., Any]) -> None:
    assert run("top", "-n", "1", "--cluster", "no-such-cluster").code == 3


@pytest.mark.parametrize("width", [40, 80, 160])
def test_screen_fits_its_terminal(looks: Callable[[], top.Look], width: int) -> None:
    rich_console = pytest.importorskip("rich.console")
    with Producer() as producer:
        for n in range(30):
            producer.send(f"a-topic-with-a-name-that-is-rather-long-{n}", b"x")
    seen = top.between(looks(), looks(), 0)
    console = rich_console.Console(width=width, height=24, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(top.screen(seen, {}, width, 24))
    lines = console.export_text().splitlines()
    console.file.close()
    assert len(lines) <= 24 and all(len(line) <= width for line in lines)
    assert "12 more partitions; q leaves" in lines[-1]


@pytest.mark.parametrize("with_rich", [True, False])
def test_q_leaves_a_terminal_as_it_was(shmlog_cluster: Any, with_rich: bool) -> None:
    if with_rich:
        pytest.importorskip("rich")
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(ours)
    hidden = "" if with_rich else "import sys; sys.modules['rich.live'] = None; "
    arguments = ["top", "--interval", "0.05", "--cluster", shmlog_cluster.address]
    command = [sys.executable, "-c", f"{hidden}from shmlog.tools.cli import main; main()", *arguments]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    shown = bytearray()

    def read() -> None:
        try:
            while data := os.read(ours, 65536):
                shown.extend(data)
        except OSError:
            pass  # the other end is closed

    reader = threading.Thread(target=read)
    reader.start()
    deadline = time.monotonic() + DEADLINE_S
    while b"q leaves" not in shown or (not with_rich and b"  in 0/s" not in shown):
        assert time.monotonic() < deadline and process.poll() is None, bytes(shown)
        threading.Event().wait(0.005)
    os.write(ours, b"q")
    assert process.wait(DEADLINE_S) == 0
    reader.join(DEADLINE_S)
    assert termios.tcgetattr(ours) == before
    os.close(ours)
    assert (b"\x1b[?1049h" in shown and b"\x1b[?1049l" in shown) == with_rich  # the other screen, and back
