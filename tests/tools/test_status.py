"""status from memory and files alone: its JSON is the contract of format 1, and death of everything does not hide it."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from shmlog import config, shm
from shmlog._ffi import lib
from shmlog.broker import recovery
from shmlog.coordinator.store import Store
from shmlog.errors import ClusterAuthorizationFailedError, NoBrokersAvailable, UnknownTopicOrPartitionError, VersionMismatchError
from shmlog.tools import status

TOP = {
    "format",
    "cluster",
    "cluster_id",
    "data_dirs",
    "layout_version",
    "coordinator_epoch",
    "processes",
    "topics",
    "groups",
    "shm_bytes",
    "disk_bytes",
}
PROCESS = {"role", "id", "pid", "state", "broker_epoch"}
PARTITION = {
    "partition", "leader", "leader_epoch", "replicas", "isr", "log_start_offset", "last_stable_offset", "high_watermark", "log_end_offset",
    "durable_offset", "shm", "dir",
}  # fmt: skip


def test_the_object_has_every_field_of_format_1(hand: Any) -> None:
    hand.append(b"a", b"b", b"c")
    seen = status.collect(hand.address)
    assert seen.keys() >= TOP and seen["format"] == 1 and seen["groups"] == []
    (topic,) = seen["topics"]
    assert topic["name"] == "t" and topic["topic_id"] == hand.topic_id.hex() and topic["config"] == {}
    (partition,) = topic["partitions"]
    assert partition.keys() >= PARTITION
    assert partition["log_end_offset"] == partition["high_watermark"] == 3 and partition["durable_offset"] == 0
    assert partition["shm"] == [f"{hand.prefix}.s{hand.buffers[0]}"] and partition["dir"] == hand.dir
    assert seen["shm_bytes"] >= lib.SL_SEGMENT_MIN_BYTES
    assert all(process.keys() >= PROCESS for process in seen["processes"])


def test_processes_that_are_dead_are_called_dead(hand: Any) -> None:
    seen = status.collect(hand.address)
    assert [(p["role"], p["state"]) for p in seen["processes"]] == [("broker", "dead"), ("client", "up")]  # the client is the row of this very test
    assert not seen["running"]
    assert any("is not running" in line for line in status.problems(seen))


def test_a_living_coordinator_is_active(hand: Any) -> None:
    hand.keep_alive()
    seen = status.collect(hand.address)
    assert seen["running"] and seen["processes"][0]["state"] == "active"
    wrong = status.problems(seen)
    assert "there is no standby" in wrong and any("broker 0" in line and "dead" in line for line in wrong)


def test_storage_trouble_is_told_with_its_numbers(hand: Any) -> None:
    hand.words.storage_state, hand.words.storage_needed_bytes, hand.words.storage_free_bytes = lib.SL_STORAGE_DISK_FULL, 4096, 1024
    seen = status.collect(hand.address)
    assert any("t-0: disk full: needs 4.0 KiB, 1.0 KiB free" in line for line in status.problems(seen))
    assert any("disk full" in line for line in status.lines(seen))


def test_the_view_for_people_names_what_they_look_for(hand: Any) -> None:
    hand.append(b"x" * 100)
    text = "\n".join(status.lines(status.collect(hand.address)))
    for words in (hand.name, "broker 0", "dead", "TOPIC", "all processes are dead", "`shmlog up`"):
        assert words in text, text


def test_a_topic_can_be_asked_for_alone(hand: Any) -> None:
    assert [t["name"] for t in status.collect(hand.address, "t")["topics"]] == ["t"]
    with pytest.raises(UnknownTopicOrPartitionError, match="no topic 'u'"):
        status.collect(hand.address, "u")


def test_a_damaged_partition_does_not_hide_the_others(hand: Any) -> None:
    hand.poke(hand.object(f"s{hand.buffers[0]}"), 512, (9999).to_bytes(8, "little"))  # the hint
    seen = status.collect(hand.address)
    assert "error" in seen["topics"][0]["partitions"][0]


def test_without_memory_and_data_there_is_no_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with pytest.raises(NoBrokersAvailable, match="no cluster 'nothing' is running"):
        status.collect(config.Address("nothing"))


def test_without_memory_the_disk_tells(hand: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, run: Any) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    state = config.state_dir(hand.name)
    hand.write_file(5, [b"v"] * 4)
    store = Store(state)
    store.begin(bytes(16), 1, hand.view)
    store.close()
    shm.remove_cluster(hand.prefix)
    seen = status.collect(hand.address)
    assert not seen["running"] and seen["state"] == "down" and seen["processes"] == []
    partition = seen["topics"][0]["partitions"][0]
    assert (partition["log_start_offset"], partition["log_end_offset"]) == (5, 9)
    result = run("status", "--cluster", hand.name, "--json")
    assert result.code == 3 and result.json["state"] == "down" and result.error["name"] == "NoBrokersAvailable"
    assert run("verify", "--cluster", hand.name).code == 0  # verify falls back to the disk too
    shutil.rmtree(state)


def test_memory_of_another_layout_is_refused_by_name(hand: Any) -> None:
    path = hand.object("control")
    hand.poke(path, 8, (99).to_bytes(4, "little"))
    with open(path, "rb") as file:
        head = file.read(88)
    hand.poke(path, 88, lib.sl_crc32c(0, head, 88).to_bytes(4, "little"))
    with pytest.raises(VersionMismatchError, match="another layout"):
        status.collect(hand.address)


def test_memory_of_another_user_is_refused(hand: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shm, "owned", lambda found: False)
    with pytest.raises(ClusterAuthorizationFailedError):
        status.collect(hand.address)


def test_check_exits_1_with_the_reasons(hand: Any, run: Any) -> None:
    result = run("status", "--check", "--cluster", hand.name)
    assert result.code == 1 and "is not running" in result.out
    assert run("status", "--cluster", hand.name).code == 0  # dead, but there to be seen


@pytest.mark.parametrize(
    ("n", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (65536, "64.0 KiB"), (10**8, "95.4 MiB"), (150 << 20, "150 MiB"), (2**40 * 3, "3.0 TiB")],
)
def test_sizes_for_people(n: int, text: str) -> None:
    assert status.size(n) == text


def test_each_follower_is_shown_with_the_end_of_its_files(three: Any, run: Any) -> None:
    three.append(*[b"%d" % n for n in range(10)])
    for broker, count in enumerate((10, 7)):
        three.write_file(0, [b"%d" % n for n in range(count)], broker=broker)
    recovery.write_checkpoint(three.dirs[2], 4)  # trimmed, and every file of it gone
    (topic,) = status.collect(three.address)["topics"]
    followers = topic["partitions"][0]["followers"]
    assert [(f["broker"], f["in_sync"], f["end_offset"], f["lag"]) for f in followers] == [(1, True, 7, 3), (2, True, 4, 6)]
    described = "\n".join(status.topic_lines(topic))
    assert f"{three.dirs[1]}  broker 1 is 3 records behind, in sync" in described
    shutil.rmtree(three.dirs[2])
    (topic,) = status.collect(three.address)["topics"]
    assert topic["partitions"][0]["followers"][1]["lag"] == 10


def test_a_follower_that_is_out_of_sync_is_a_problem_with_what_it_lacks(three: Any) -> None:
    three.append(*[b"%d" % n for n in range(10)])
    three.write_file(0, [b"%d" % n for n in range(9)], broker=2)
    seen = status.collect(three.address)
    partition = seen["topics"][0]["partitions"][0]
    partition["isr"], partition["followers"][1]["in_sync"] = [0, 1], False
    assert "t-0: 2 of 3 replicas are in sync; broker 2 is 1 record behind" in status.problems(seen)
