"""verify compares the replicas of a partition: what differs is named, and nothing is said of what is only late, cut off, or moving."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shmlog import Admin, Cluster, NewTopic, Producer
from shmlog._ffi import lib
from shmlog.broker import recovery
from shmlog.config import parse_address
from shmlog.testing.processes import kill_all
from shmlog.testing.waiting import until
from shmlog.tools import inspect, replicas
from tests.replication.conftest import Partition
from tests.tools.conftest import frame, lost_frame

VALUES = [b"value %d" % n for n in range(20)]
HEADERS = b"\x01\x00\x01\x00h\x01\x00\x00\x00"  # one header, h


def verified(hand: Any) -> inspect.Report:
    return inspect.verify_cluster(hand.address)


def told(hand: Any) -> list[str]:
    return [str(p) for p in verified(hand).problems]


def write_all(hand: Any, *values: list[Any], base: int = 0) -> None:
    """A file at each broker."""
    for broker, mine in enumerate(values):
        hand.write_file(base, mine, broker=broker)


def at(offset: int, other: Any) -> list[Any]:
    return [*VALUES[:offset], other, *VALUES[offset + 1 :]]


# --- what is equal, and what has to be ---------------------------------------------------------------------------------


def test_equal_records_in_files_of_other_sizes_are_clean(three: Any) -> None:
    three.write_file(0, VALUES)
    for base in range(0, 20, 5):
        three.write_file(base, VALUES[base : base + 5], broker=1)
    three.write_file(7, VALUES[7:], broker=2)  # what was below is trimmed there
    report = verified(three)
    assert report.problems == [] and report.notes == []
    assert report.counts["records_compared"] == 20


def test_large_frames_are_compared_too(three: Any) -> None:
    values = [bytes([n]) * 1_047_500 for n in range(1, 4)]  # a little more than there is room for at first; with more room a run asks for more
    write_all(three, values, values, [*values[:2], bytes(1_047_500)])
    report = verified(three)
    assert report.counts["records_compared"] == 3
    assert len(report.problems) == 1 and "offset 2" in str(report.problems[0])


def test_a_follower_that_is_behind_is_compared_as_far_as_it_is(three: Any) -> None:
    write_all(three, VALUES, VALUES[:12], VALUES[:3])
    report = verified(three)
    assert report.problems == [] and report.counts["records_compared"] == 12
    recovery.cut(three.dirs[1], 9, 0)
    assert verified(three).counts["records_compared"] == 3


NS = 1_700_000_000_000_000_000
DIFFERENCES: dict[str, tuple[Any, Any, str, str]] = {  # what broker 1 and the others have at offset 4
    "value": (b"VALUE 4", b"value 4", "value", "value CRC32C {0} of 7 bytes, not CRC32C {1} of 7 bytes"),
    "a longer value": (b"value 44", b"value 4", "value", "of 8 bytes, not"),
    "null": (frame(None, timestamp_ns=NS), frame(b"", timestamp_ns=NS), "value", "value null, not CRC32C 00000000 of 0 bytes"),
    "timestamp": (frame(b"x", timestamp_ns=NS + 1), frame(b"x", timestamp_ns=NS), "timestamp", f"timestamp {NS + 1} ns, not {NS}"),
    "key": (frame(b"x", b"a", timestamp_ns=NS), frame(b"x", b"b", timestamp_ns=NS), "key", "key b'a', not b'b'"),
    "headers": (frame(b"x", headers=HEADERS + b"1", timestamp_ns=NS), frame(b"x", headers=HEADERS + b"2", timestamp_ns=NS), "headers", "headers b"),
    "producer": (
        frame(b"x", timestamp_ns=NS, producer_id=7, sequence=1), frame(b"x", timestamp_ns=NS, producer_id=7, sequence=2),
        "producer", "(7, 0, 1), not (7, 0, 2)",
    ),
    "transaction": (frame(b"x", timestamp_ns=NS, flags=lib.SL_FF_TRANSACTIONAL), frame(b"x", timestamp_ns=NS), "type", "flags"),
}  # fmt: skip


@pytest.mark.parametrize("name", DIFFERENCES)
def test_a_record_that_differs_is_named_with_what_differs(three: Any, name: str) -> None:
    other, right, field, words = DIFFERENCES[name]
    write_all(three, at(4, right), at(4, other), at(4, right))
    (problem,) = verified(three).problems
    crcs = [f"{lib.sl_crc32c(0, v, len(v)):08x}" for v in (b"VALUE 4", b"value 4")]
    assert str(problem).startswith("t-0: offset 4: broker 1 differs from brokers 0 and 2: ") and words.format(*crcs) in problem.what
    assert problem.data == {
        "topic": "t", "partition": 0, "offset": 4, "end_offset": 5, "brokers": [1], "against": [0, 2], "differs": [field],
    }  # fmt: skip


def test_three_replicas_may_differ_three_ways(three: Any) -> None:
    write_all(three, at(4, b"one"), at(4, b"two"), at(4, b"six"))
    assert [p.split(": value")[0] for p in told(three)] == [
        "t-0: offset 4: broker 1 differs from broker 0", "t-0: offset 4: broker 2 differs from broker 0",
    ]  # fmt: skip


def test_batch_bounds_are_a_difference_of_their_own(three: Any) -> None:
    array = frame(b"aabb", rows=2, timestamp_ns=NS)
    singles = [frame(b"aa", timestamp_ns=NS), frame(b"bb", timestamp_ns=NS)]
    write_all(three, [*VALUES[:4], *singles, *VALUES[6:]], [*VALUES[:4], array, *VALUES[6:]], [*VALUES[:4], *singles, *VALUES[6:]])
    found = verified(three).problems
    assert [(p.data["offset"], p.data["differs"]) for p in found if p.data and "batch bounds" in p.data["differs"]] == [
        (4, ["batch bounds"]), (5, ["batch bounds"]),
    ]  # fmt: skip
    assert "broker 1 differs from brokers 0 and 2: batch bounds: a frame of offsets 4 to 5, not 4 to 4" in str(found[0])
    assert not any("value" in p.data["differs"] for p in found if p.data)


def test_what_one_replica_has_lost_and_another_has_is_told_as_that(three: Any) -> None:
    write_all(three, VALUES, [*VALUES[:4], lost_frame(3), *VALUES[7:]], at(9, lost_frame(1)))
    found = [str(p) for p in verified(three).problems if p.kind.startswith("replica")]
    assert found == [
        "t-0: offsets 4 to 6: broker 1 has lost the records, brokers 0 and 2 have them",
        "t-0: offset 9: broker 2 has lost the record, brokers 0 and 1 have it",
    ]
    assert [p.data["differs"] for p in verified(three).problems if p.data] == [["lost"], ["lost"]]


def test_a_damaged_frame_is_told_once_and_what_lies_behind_it_is_compared(three: Any) -> None:
    write_all(three, VALUES, at(9, b"VALUE 9"), VALUES)
    three.poke(os.path.join(three.dirs[1], f"{0:020d}-1.log"), 256 + 64 * 4 + 30, b"\xff")
    assert [p.kind for p in verified(three).problems] == [f"position {256 + 64 * 4}", "replica 9 value"]


def test_the_first_hundred_differences_are_enough(three: Any) -> None:
    write_all(three, [b"%d" % n for n in range(500)], [b"x%d" % n for n in range(500)], [b"%d" % n for n in range(500)])
    found = told(three)
    assert len(found) == replicas.DIFFERENCES_MAX + 1 and "these are the first 100 differences" in found[-1]


def test_a_difference_deep_in_a_large_log_is_found_and_all_of_it_was_looked_at(three: Any) -> None:
    many = [b"%d" % n * 40 for n in range(20_000)]  # several runs
    write_all(three, many, [*many[:13_456], b"other", *many[13_457:]], many)
    report = verified(three)
    assert [p.data["offset"] for p in report.problems if p.data] == [13_456]
    assert report.counts["records_compared"] == 20_000


# --- logs that part ----------------------------------------------------------------------------------------------------


def test_the_end_of_a_log_that_ended_is_a_note_and_what_is_below_it_is_compared(three: Any) -> None:
    three.write_file(0, VALUES[:10])
    three.write_file(10, VALUES[10:], epoch=2)
    three.write_file(0, [*VALUES[:10], b"never committed", b"neither"], broker=1)  # it led epoch 1, and died before anybody had these
    three.write_file(0, VALUES[:5], broker=2)
    report = verified(three)
    assert report.problems == [] and report.counts["records_compared"] == 10
    (note,) = report.notes
    assert "broker 1 has offsets 10 to 11 of a log that ended (leader epoch 1), not broker 0's" in note.what


def test_without_memory_the_longest_is_what_the_others_are_held_against(three: Any, tmp_path: Path) -> None:
    write_all(three, VALUES[:10], VALUES, at(4, b"VALUE 4"))
    found, parted, _ = replicas.compare(list(enumerate(three.dirs)), None)
    assert [(d.offset, d.brokers, d.against) for d in found] == [(4, ("broker 2",), ("broker 1", "broker 0"))] and parted == []


# --- what the leader has in memory only --------------------------------------------------------------------------------


def from_memory(hand: Any) -> list[tuple[bytes, int]]:
    """The frames of the partition, as they stand in its segments."""
    copy = replicas.MemoryCopy(0, [inspect.Segment(hand.prefix, int(word) & 0xFFFFFFF) for word in hand.words.dir if int(word) & 0xFFFFFFF])
    pieces = [copy.piece(offset) for offset in range(copy.end)]
    return [(bytes(inspect.ffi.buffer(p.address, p.bytes)), p.end - p.base) for p in pieces if p is not None]


def test_what_the_leader_has_not_on_disk_is_compared_from_its_memory(three: Any) -> None:
    three.append(*VALUES[:6])
    three.rotate()
    three.append(*VALUES[6:10])
    frames = from_memory(three)
    write_all(three, frames[:6], frames, frames[:8])
    report = verified(three)
    assert report.problems == [] and report.notes == [] and report.counts["records_compared"] == 10
    shutil.rmtree(three.dirs[2])
    os.mkdir(three.dirs[2])
    three.write_file(0, [*frames[:7], frame(b"other")], broker=2)
    (problem,) = verified(three).problems
    assert problem.what.startswith("offset 7: broker 2 differs from broker 0's memory and broker 1: value")
    assert problem.data is not None and problem.data["against"] == [0, 1]


def test_memory_of_a_later_epoch_is_not_what_an_older_log_must_hold(three: Any) -> None:
    """After a power cut: a leader of epoch 2 goes on at 6, and a follower that has not come yet has an end of its own."""
    three.append(*VALUES[:6])
    frames = from_memory(three)
    inspect.check(lib.sl_log_open_epoch(three.handle, 0, 0, 2, inspect.check(lib.sl_segment_make(three.handle, lib.SL_SEGMENT_MIN_BYTES)), 6))
    three.append(*VALUES[6:10])
    write_all(three, frames[:6], [*frames[:6], frame(b"of another log")])
    assert [p for p in told(three) if "broker" in p] == []  # that the view knows no epoch 2 is another finding


# --- a living cluster --------------------------------------------------------------------------------------------------


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(brokers=3, data_dir=str(tmp_path / "data")) as made:
        yield made


def test_what_is_being_cut_is_no_damage(three: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    three.keep_alive()
    write_all(three, VALUES, at(15, b"not of the log"), VALUES)
    looks: list[float] = []

    def cut(seconds: float) -> None:
        looks.append(seconds)
        recovery.cut(three.dirs[1], 1, 12)

    monkeypatch.setattr(inspect.time, "sleep", cut)
    assert [p for p in told(three) if "broker" in p] == []
    assert looks


def test_what_stays_is_damage_in_a_living_cluster_too(three: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspect, "PAUSE_S", 0)
    monkeypatch.setattr(inspect, "SETTLE_S", 0)
    three.keep_alive()
    write_all(three, VALUES, at(15, b"not of the log"), VALUES)
    assert next(p for p in told(three) if "broker" in p).startswith("t-0: offset 15: broker 1 differs")


def test_nothing_is_found_while_records_come_and_leaders_die(tmp_path: Path) -> None:
    def produce(records: int) -> None:
        with Producer(acks=1, max_block_ms=60_000) as producer:
            for n in range(0, records, 21):
                producer.send_many("t", [b"%d" % (n + i) for i in range(20)], partition=0)
                producer.send("t", b"%d" % n * 50, key=b"%d" % n, partition=0)

    with Cluster(brokers=3, data_dir=str(tmp_path / "data"), config={"replica.lag.time.max.ms": 1000}) as cluster:
        with Admin() as admin:
            admin.create_topics(NewTopic("t", 1, 3, config={"segment.bytes": "200000", "shmlog.memory.bytes": "262144"}))
        partition, compared, looks = Partition(cluster, "t"), 0, 0
        for _ in range(4):
            committed = partition.seen["high_watermark"]
            thread = threading.Thread(target=produce, args=(30_000,))
            thread.start()
            until(lambda more=committed + 1000: partition.seen["high_watermark"] > more, "some to be committed")  # type: ignore[misc]
            cluster.kill("broker", until(lambda: partition.leader + 1, "a leader") - 1)
            while thread.is_alive():
                report = inspect.verify_cluster(parse_address(cluster.address))
                assert report.problems == []
                compared += report.counts["records_compared"]
                looks += 1
            thread.join()
        assert compared > 0 and looks > 0
        until(lambda: kill_all(cluster.name), "everybody to be dead")
        report = inspect.verify_cluster(parse_address(cluster.address))
        assert report.problems == [] and report.counts["records_compared"] > 0


def test_a_replica_that_was_changed_is_found_with_all_processes_alive_or_dead(cluster: Cluster, run: Callable[..., Any]) -> None:
    with Admin() as admin:
        admin.create_topics(NewTopic("t", 1, 3))
    with Producer(acks="disk") as producer:
        for n in range(50):
            producer.send("t", b"%d" % n)
        producer.flush(60)
    partition = Partition(cluster, "t")
    until(lambda: [partition.file_end(b) for b in range(3)] == [50] * 3, "all to have everything")
    assert run("verify", "--cluster", cluster.address).code == 0
    victim = next(b for b in range(3) if b != partition.leader)
    rewrite(partition.directory(victim), 17, b"changed")
    for state in ("alive", "dead"):
        if state == "dead":
            until(lambda: kill_all(cluster.name), "everybody to be dead")
        result = run("verify", "--cluster", cluster.address, "--json")
        assert result.code == 5, result
        (problem,) = [p for p in result.json["problems"] if "brokers" in p]
        assert (problem["topic"], problem["partition"], problem["offset"], problem["brokers"], problem["differs"]) == ("t", 0, 17, [victim], ["value"])
    result = run("verify", str(cluster.data_dir))  # the directory alone says it too
    assert result.code == 5 and f"t-0: offset 17: broker {victim} differs from brokers" in result.out


def test_the_files_of_a_cluster_that_is_down_are_compared(private: Any) -> None:
    assert private("up", "--brokers", "3").code == 0
    assert private("topic", "create", "t", "-r", "3").code == 0
    with Producer(f"shm://{private.name}") as producer:
        for n in range(10, 60):
            producer.send("t", b"%d" % n)
        producer.flush(60)
    assert private("down").code == 0
    clean = private("verify")
    assert clean.code == 0 and "50 records the same at all replicas" in clean.out
    (directory,) = Path(private.state).glob("broker-2/t-0-*")
    rewrite(directory, 17, b"no")
    result = private("verify")
    assert result.code == 5 and "t-0: offset 17: broker 2 differs from brokers 0 and 1: value CRC32C" in result.out


def rewrite(directory: Path, offset: int, value: bytes) -> None:
    """One frame of a replica becomes another one, with CRCs that are right: what no check of one file can find."""
    (log,) = directory.glob("*.log")
    data, cells = bytearray(log.read_bytes()), bytearray(log.with_suffix(".cells").read_bytes())
    cell = lib.SL_CELL_PAGE_BYTES + 16 * offset
    position = 64 * int.from_bytes(cells[cell + 4 : cell + 8], "little")
    size = int.from_bytes(data[position : position + 4], "little")
    old = bytes(data[position : position + size])
    stamp = int.from_bytes(old[8:16], "little")
    new, _ = frame(value[:2].ljust(2), timestamp_ns=stamp)
    assert len(new) == size
    data[position : position + size] = new
    cells[cell + 8 : cell + 12] = lib.sl_crc32c(0, new, size).to_bytes(4, "little")
    log.write_bytes(data)
    log.with_suffix(".cells").write_bytes(cells)


def test_comparing_never_writes(three: Any) -> None:
    write_all(three, VALUES, at(4, b"VALUE 4"), VALUES[:9])

    def contents() -> dict[str, bytes]:
        return {os.path.join(d, n): Path(d, n).read_bytes() for d in three.dirs for n in os.listdir(d)}

    before = contents()
    verified(three)
    assert contents() == before
