"""verify finds what was planted and nothing else; dump shows what is left around damage."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shmlog import Admin, NewTopic, Producer, messages
from shmlog._ffi import lib
from shmlog.config import parse_address
from shmlog.tools import dump, inspect

CELLS = lib.SL_SEGMENT_HEADER_BYTES


def findings(hand: Any) -> list[str]:
    return [str(p) for p in inspect.verify_cluster(hand.address).problems]


def fill(hand: Any) -> None:
    """Ten records: six in a sealed segment, four in the active one; the first six on disk."""
    hand.append(*[b"value %d" % n for n in range(6)])
    hand.rotate()
    hand.append(*[b"value %d" % n for n in range(6, 10)])
    hand.write_file(0, [b"value %d" % n for n in range(6)])
    hand.spilled(6)


def cell(hand: Any, buffer: int, index: int) -> int:
    with open(hand.object(f"s{buffer}"), "rb") as file:
        file.seek(CELLS + 8 * index)
        return int.from_bytes(file.read(8), "little")


def arena_position(hand: Any, buffer: int, index: int) -> int:
    with open(hand.object(f"s{buffer}"), "rb") as file:
        header = file.read(CELLS)
    (start,) = struct.unpack_from("<I", header, 164)
    return int(start) + (cell(hand, buffer, index) >> 4 & 0x3FFFFF) * 64


def test_a_sound_cluster_is_clean_and_everything_was_looked_at(hand: Any) -> None:
    fill(hand)
    report = inspect.verify_cluster(hand.address)
    assert report.problems == []
    assert report.counts == {
        "partitions": 1, "segments": 2, "frames_in_memory": 10, "files": 1, "frames_on_disk": 6, "file_bytes": report.counts["file_bytes"],
        "records_compared": 0,
    }  # fmt: skip


def test_an_empty_partition_is_clean(hand: Any) -> None:
    assert findings(hand) == []


DAMAGES: dict[str, tuple[Callable[[Any], None], str]] = {
    "a flipped bit in a frame": (
        lambda h: h.poke(h.object(f"s{h.buffers[0]}"), arena_position(h, h.buffers[0], 2) + 30, b"\xff"),
        "offset 2",
    ),
    "a cell that vanished": (lambda h: h.poke(h.object(f"s{h.buffers[0]}"), CELLS + 8 * 3, bytes(8)), "cell 3 is empty, cell 4 is filled"),
    "a cell of another life": (
        lambda h: h.poke(h.object(f"s{h.buffers[0]}"), CELLS + 8, (cell(h, h.buffers[0], 1) ^ 0xF).to_bytes(8, "little")),
        "another life",
    ),
    "an offset that is not dense": (
        lambda h: h.poke(h.object(f"s{h.buffers[0]}"), CELLS + 8, (cell(h, h.buffers[0], 1) + (5 << 26)).to_bytes(8, "little")),
        "its predecessor ends at +1",
    ),
    "a cell behind the seal": (
        lambda h: h.poke(h.object(f"s{h.buffers[0]}"), CELLS + 8 * 7, cell(h, h.buffers[0], 0).to_bytes(8, "little")),
        "behind a SEAL",
    ),
    "a missing seal": (lambda h: h.poke(h.object(f"s{h.buffers[0]}"), CELLS + 8 * 6, bytes(8)), "is not sealed although"),
    "a cell that points beyond the arena": (
        lambda h: h.poke(h.object(f"s{h.buffers[0]}"), CELLS + 8 * 2, (cell(h, h.buffers[0], 2) | 0x3FFFFF << 4).to_bytes(8, "little")),
        "names arena unit",
    ),
    "two cells with one frame": (
        lambda h: h.poke(
            h.object(f"s{h.buffers[0]}"),
            CELLS + 8 * 2,
            (cell(h, h.buffers[0], 2) & ~(0x3FFFFF << 4) | cell(h, h.buffers[0], 1) & 0x3FFFFF << 4).to_bytes(8, "little"),
        ),
        "overlap in the arena",
    ),
    "a base offset that does not follow": (
        lambda h: h.poke(h.object(f"s{h.buffers[1]}"), 256, (2 << 48 | 9).to_bytes(8, "little")),
        "segment 2 begins at offset 9, segment 1 ends at 6",
    ),
    "a segment in the directory that is dead": (lambda h: h.poke(h.object(f"s{h.buffers[0]}"), 183, bytes([lib.SL_SEGMENT_DEAD << 5])), "but dead"),
    "a claim for another number": (lambda h: h.poke(h.object(f"s{h.buffers[0]}"), 176, b"\x09"), "its claim is for number 9"),
    "a header of another partition": (lambda h: h.poke(h.object(f"s{h.buffers[0]}"), 152, b"\x07"), "partition 7"),
    "a hint beyond the filled cells": (lambda h: h.poke(h.object(f"s{h.buffers[0]}"), 512, (99).to_bytes(8, "little")), "its hint says 99"),
    "a frozen header that was changed": (lambda h: h.flip(h.object(f"s{h.buffers[0]}"), 20), "its header"),
    "a segment that was unlinked": (lambda h: os.unlink(h.object(f"s{h.buffers[0]}")), "there is no such object"),
    "a directory word for the wrong slot": (lambda h: setattr_word(h, "dir", 5, 3 << 28 | 77), "directory word 5 names segment 3"),
    "a directory that forgot the active segment": (lambda h: setattr_word(h, "dir", 2, 0), "is not in the directory"),
    "durable beyond spilled": (lambda h: setattr(h.words, "durable", 1 << 48 | 8), "durable 8 is beyond spilled 6"),
    "spilled beyond the end": (lambda h: setattr(h.words, "spilled", 1 << 48 | 800), "spilled 800 is beyond end 10"),
    "a word of another leader epoch": (lambda h: setattr(h.words, "spilled", 9 << 48 | 6), "leader epoch 9"),
    "a log start beyond the end": (lambda h: setattr(h.words, "log_start", 1 << 48 | 70), "log_start 70 is beyond"),
    "a row that names no partition": (lambda h: setattr_word(h, "row", 0, 5 << 40 | 1), "of block 5"),
    "a free row that holds a segment": (lambda h: free_row(h), "is free but names 1 segments"),
    "metadata that does not match its CRC": (lambda h: h.poke(h.object("v1"), 200, b"\xff\xff"), "missing or damaged"),
    "an object that nobody makes": (lambda h: open(h.object("x9"), "w").close(), "no cluster makes"),
    "a file that lost its end": (lambda h: os.truncate(log_of(h), 300), "spilled is 6, but the files end"),
    "a flipped bit in a file": (lambda h: h.poke(log_of(h), 256 + 64 * 2 + 30, b"\xff"), "position 384"),
    "a file under a wrong name": (lambda h: rename(h, 0, 3), "its header says base offset 0"),
    "a gap between two files": (lambda h: move_files(h), "2 offsets are missing"),
}


def setattr_word(hand: Any, name: str, index: int, value: int) -> None:
    if name == "dir":
        hand.words.dir[index] = value
    else:
        hand.row.hazard[index] = value


def free_row(hand: Any) -> None:
    row = lib.sl_cluster_row(hand.handle, 1)
    row.state, row.hazard[1] = lib.SL_ROW_FREE, 1


def log_of(hand: Any) -> str:
    return os.path.join(hand.dir, f"{0:020d}-1.log")


def rename(hand: Any, old: int, new: int) -> None:
    for suffix in ("log", "cells"):
        os.rename(os.path.join(hand.dir, f"{old:020d}-1.{suffix}"), os.path.join(hand.dir, f"{new:020d}-1.{suffix}"))


def move_files(hand: Any) -> None:
    hand.write_file(8, [b"value 8", b"value 9"])
    hand.spilled(10)


@pytest.mark.parametrize("name", DAMAGES)
def test_planted_damage_is_found(hand: Any, name: str) -> None:
    plant, expected = DAMAGES[name]
    fill(hand)
    plant(hand)
    found = findings(hand)
    assert any(expected in line for line in found), found


@pytest.mark.parametrize("name", ["a flipped bit in a frame", "durable beyond spilled", "a flipped bit in a file", "a missing seal"])
def test_planted_damage_is_found_in_a_living_cluster_too(hand: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspect, "PAUSE_S", 0)
    plant, expected = DAMAGES[name]
    fill(hand)
    hand.keep_alive()
    plant(hand)
    found = findings(hand)
    assert any(expected in line for line in found), found


def test_what_heals_meanwhile_is_no_damage(hand: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(hand)
    hand.keep_alive()
    hand.words.durable = 1 << 48 | 8

    def heal(seconds: float) -> None:
        hand.words.durable = 1 << 48 | 6

    monkeypatch.setattr(inspect.time, "sleep", heal)
    assert findings(hand) == []


def test_what_a_later_view_explains_is_no_damage(hand: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader changed after verify had read the metadata."""
    fill(hand)
    hand.keep_alive()
    hand.words.leader_epoch = 2
    for word in ("high_watermark", "last_stable", "spilled", "durable", "log_start"):
        setattr(hand.words, word, getattr(hand.words, word) & 2**48 - 1 | 2 << 48)
    hand.words.cur = hand.words.cur & 2**41 - 1 | 2 << 41
    assert any("leader epoch 2 was never granted" in line for line in findings(hand))

    def decide(seconds: float) -> None:
        if hand.control.view_version == 1:
            topic = hand.view.topics["t"]
            partition = msgspec.structs.replace(topic.partitions[0], leader_epoch=2)
            topics = {"t": msgspec.structs.replace(topic, partitions=(partition,))}
            view = msgspec.structs.replace(hand.view, version=2, topics=topics)
            inspect.shm.create_view(hand.prefix, 2, messages.encode_view(view), cluster_id=hand.cluster_id)
            hand.control.view_version = 2

    monkeypatch.setattr(inspect.time, "sleep", decide)
    assert findings(hand) == []


def test_a_segment_of_a_dead_broker_is_a_note_in_a_dead_cluster(hand: Any) -> None:
    fill(hand)
    buffer = lib.sl_segment_make(hand.handle, lib.SL_SEGMENT_MIN_BYTES)
    hand.poke(hand.object(f"s{buffer}"), 183, bytes([lib.SL_SEGMENT_DEAD << 5]))  # the phase of its claim
    report = inspect.verify_cluster(hand.address)
    assert report.problems == []
    assert any("no directory names" in str(note) for note in report.notes)


def test_a_rewrite_after_a_failed_sync_is_no_damage(hand: Any) -> None:
    fill(hand)
    hand.write_file(4, [b"value %d" % n for n in range(4, 8)])
    hand.poke(log_of(hand), 256 + 64 * 5 + 30, b"\xff")  # offset 5 of the old file, which the new one replaces
    report = inspect.verify_cluster(hand.address)
    assert report.problems == []
    assert any("replaces offsets 4 to 6" in str(note) for note in report.notes)


def test_verify_never_writes(hand: Any) -> None:
    fill(hand)
    hand.poke(log_of(hand), 256 + 64 * 2 + 30, b"\xff")

    def contents() -> dict[str, bytes]:
        files = [hand.object(name[len(hand.prefix) + 1 :]) for name in inspect.shm.names(hand.prefix)] + [
            os.path.join(hand.dir, n) for n in os.listdir(hand.dir)
        ]
        return {path: Path(path).read_bytes() for path in files}

    before = contents()
    inspect.verify_cluster(hand.address)
    inspect.verify_path(hand.dir)
    list(dump.dump(log_of(hand)))
    assert contents() == before


def test_verify_passes_over_what_moves_while_it_looks(shmlog_cluster: Any) -> None:
    stop = threading.Event()

    def produce() -> None:
        with Producer(shmlog_cluster.address) as producer:
            while not stop.is_set():
                producer.send_many("t", [b"%d" % n for n in range(1000)])
                for n in range(100):
                    producer.send("memory", b"x" * n * 20)

    with Admin(shmlog_cluster.address) as admin:
        admin.create_topics(
            [NewTopic("t"), NewTopic("memory", config={"shmlog.spill": "false", "shmlog.full": "drop_oldest", "shmlog.memory.bytes": "262144"})]
        )
    thread = threading.Thread(target=produce)
    thread.start()
    try:
        for _ in range(5):
            assert inspect.verify_cluster(parse_address(shmlog_cluster.address)).problems == []
    finally:
        stop.set()
        thread.join()


def test_verify_of_a_path_says_what_it_cannot_check(run: Any, tmp_path: Any, hand: Any) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for path, words in (
        (empty, "no segment files"),
        (tmp_path / "nothing.log", "does not exist"),
        (tmp_path / "x", "not a directory and not a .log file"),
    ):
        result = run("verify", str(path))
        assert result.code == 1 and words in result.err and result.err.count("\n") == 1, result


def test_verify_of_a_damaged_directory_exits_5_with_a_list(run: Any, hand: Any) -> None:
    fill(hand)
    assert run("verify", hand.dir).code == 0
    hand.poke(log_of(hand), 256 + 64 * 2 + 30, b"\xff")
    result = run("verify", hand.dir, "--json")
    assert result.code == 5
    assert result.json["clean"] is False
    assert [p["kind"] for p in result.json["problems"]] == ["position 384"]
    assert run("verify", "--cluster", hand.name).code == 5


# --- dump --------------------------------------------------------------------------------------------------------------


def values(entries: list[dict[str, Any]]) -> list[str]:
    return [record["value"] for entry in entries if entry["type"] == "frame" for record in entry["records"]]


def test_dump_shows_a_segment_in_memory(hand: Any, run: Any) -> None:
    fill(hand)
    lines = run("dump", hand.object(f"s{hand.buffers[0]}"), "--json").lines
    assert lines[0]["type"] == "segment" and lines[0]["number"] == 1 and lines[0]["base_offset"] == 0
    assert values(lines) == [f"value {n}" for n in range(6)]
    assert [entry["offset"] for entry in lines if entry["type"] == "frame"] == list(range(6))
    assert lines[-1] == {"type": "seal", "cell": 6, "offset": 6}
    text = run("dump", hand.prefix + f".s{hand.buffers[0]}").out
    assert "value 3" in text and "seal" in text


def test_dump_goes_on_past_damage_in_memory(hand: Any) -> None:
    fill(hand)
    path = hand.object(f"s{hand.buffers[0]}")
    hand.poke(path, arena_position(hand, hand.buffers[0], 2) + 30, b"\xff")
    entries = list(dump.dump(path))
    assert values(entries) == [f"value {n}" for n in (0, 1, 3, 4, 5)]
    assert [entry["offset"] for entry in entries if entry["type"] == "damage"] == [2]


def test_dump_goes_on_past_a_damaged_header(hand: Any) -> None:
    fill(hand)
    path = hand.object(f"s{hand.buffers[0]}")
    hand.flip(path, 40)  # in the frozen header, which its CRC covers
    entries = list(dump.dump(path))
    assert entries[1]["type"] == "damage" and "frozen header" in entries[1]["what"]
    assert values(entries) == [f"value {n}" for n in range(6)]


@pytest.mark.parametrize("cells", ["with its cells", "without its cells"])
def test_dump_goes_on_past_damage_in_a_file(hand: Any, cells: str) -> None:
    path = hand.write_file(100, [b"value %d" % n for n in range(6)])
    if cells == "without its cells":
        os.unlink(path.replace(".log", ".cells"))
    hand.poke(path, 256 + 64 * 2, b"\xff" * 40)
    entries = list(dump.dump(path))
    assert values(entries) == [f"value {n}" for n in (0, 1, 3, 4, 5)]
    assert [entry["position"] for entry in entries if entry["type"] == "damage" and entry["position"]] == [384]
    offsets = [entry["offset"] for entry in entries if entry["type"] == "frame"]
    assert offsets == ([100, 101, 103, 104, 105] if cells == "with its cells" else [100, 101, None, None, None])


def test_dump_shows_a_cut_file(hand: Any) -> None:
    path = hand.write_file(0, [b"value %d" % n for n in range(6)])
    os.truncate(path, 256 + 64 * 3 + 10)
    entries = list(dump.dump(path))
    assert values(entries) == ["value 0", "value 1", "value 2"]
    assert "the file ends" in entries[-1]["what"]


def test_dump_refuses_what_is_no_segment(hand: Any, run: Any) -> None:
    for path, words in (
        (hand.object("control"), "the control object"),
        ("/nowhere.log", "does not exist"),
        (hand.dir, "is no file"),
        (__file__, "nothing of shmlog"),
    ):
        result = run("dump", path)
        assert result.code == 1 and words in result.err and result.err.count("\n") == 1, result


def test_dump_shows_values_that_are_no_text_as_base64(hand: Any) -> None:
    hand.append(b"\xff\xfe", key=b"k")
    entries = list(dump.dump(hand.object(f"s{hand.buffers[0]}")))
    assert entries[1]["records"][0]["value_base64"] == "//4=" and entries[1]["records"][0]["key"] == "k"
