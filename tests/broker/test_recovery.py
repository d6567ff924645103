"""Recovery of a partition's directory: real files, made by the C core and then damaged as kills and power cuts would."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shmlog._ffi import check, ffi, lib
from shmlog.broker import recovery
from shmlog.errors import CorruptRecordError, StorageError

TOPIC = bytes(range(16))
CLUSTER = bytes(16)


def write_file(directory: Path, base: int, count: int, leader_epoch: int = 1, topic: bytes = TOPIC, sync: bool = True, size: int = 100) -> int:
    """A file of `count` records from `base` on; returns its end."""
    out = ffi.new("sl_file **")
    check(lib.sl_file_create(os.fsencode(directory), base, leader_epoch, 0, topic, CLUSTER, out))
    memory = ffi.new("uint8_t[]", 64 + (size + 128) * 2)
    address = int(ffi.cast("uintptr_t", memory))
    frame = memory + (-address % 64)
    for i in range(count):
        value = ffi.from_buffer(b"%0*d" % (size, base + i))
        record = ffi.new("sl_record *", {"value": value, "value_bytes": size, "producer_id": -1, "sequence": -1})
        check(lib.sl_frame_measure(record, ffi.new("uint32_t *")))
        length = check(lib.sl_frame_build(frame, record, 1_000_000 + i, 1, 1))
        piece = ffi.new("sl_file_piece *")
        piece.frame, piece.frame_bytes, piece.rel = frame, length, i
        piece.crc32c = lib.sl_crc32c(0, frame, length)
        piece.count, piece.type = 1, lib.SL_CELL_DATA
        check(lib.sl_file_append(out[0], piece, 1, base + i + 1))
    if sync:
        check(lib.sl_file_sync(out[0]))
    lib.sl_file_close(out[0])
    return base + count


def name(base: int, leader_epoch: int = 1) -> str:
    return f"{base:020d}-{leader_epoch}.log"


def test_a_new_partition_begins_at_zero(tmp_path: Path) -> None:
    directory = tmp_path / "t-0"
    assert recovery.recover(str(directory), None) == recovery.Recovered(0, 0, 0, [])
    assert directory.is_dir()


def test_the_end_is_that_of_the_last_file(tmp_path: Path) -> None:
    end = write_file(tmp_path, write_file(tmp_path, 0, 10), 5, leader_epoch=2)
    found = recovery.recover(str(tmp_path), None, TOPIC)
    assert (found.log_start, found.end, found.cut_bytes) == (0, end, 0)
    assert [e.name for e in found.files] == [name(0), name(10, 2)]
    assert [e.until for e in found.files] == [10, recovery.NO_CUT]


def test_with_memory_intact_the_file_is_cut_at_the_spilled_word(tmp_path: Path) -> None:
    write_file(tmp_path, 0, 10)
    found = recovery.recover(str(tmp_path), 7)
    assert found.end == 7
    assert found.cut_bytes > 0
    assert recovery.recover(str(tmp_path), 7) == found._replace(cut_bytes=0)  # idempotent


def test_a_torn_tail_is_cut_after_the_last_whole_record(tmp_path: Path) -> None:
    write_file(tmp_path, 0, 10, sync=False)
    path = tmp_path / name(0)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 70)
    found = recovery.recover(str(tmp_path), None)
    assert found.end == 9
    assert found.files[0].base_offset == 0


def test_an_empty_last_file_goes_and_the_log_goes_on_where_it_began(tmp_path: Path) -> None:
    write_file(tmp_path, write_file(tmp_path, 0, 10), 0, leader_epoch=2)
    found = recovery.recover(str(tmp_path), None)
    assert found.end == 10
    assert [e.name for e in found.files] == [name(0)]
    assert not (tmp_path / name(10, 2)).exists()


def test_a_file_whose_maker_died_is_removed(tmp_path: Path) -> None:
    write_file(tmp_path, 0, 10)
    (tmp_path / name(10, 2)).write_bytes(b"SHM")
    found = recovery.recover(str(tmp_path), None)
    assert (found.end, [e.name for e in found.files]) == (10, [name(0)])
    assert not (tmp_path / name(10, 2)).exists()


def test_the_only_file_is_empty_and_its_base_is_not_forgotten(tmp_path: Path) -> None:
    write_file(tmp_path, 500, 0)
    for _ in range(2):
        found = recovery.recover(str(tmp_path), None)
        assert (found.log_start, found.end, found.files) == (500, 500, [])


def test_a_log_that_retention_emptied_goes_on_at_its_log_start(tmp_path: Path) -> None:
    recovery.write_checkpoint(str(tmp_path), 1234)
    found = recovery.recover(str(tmp_path), None)
    assert (found.log_start, found.end) == (1234, 1234)


def test_a_trimmed_log_begins_at_its_checkpoint(tmp_path: Path) -> None:
    end = write_file(tmp_path, 0, 10)
    recovery.write_checkpoint(str(tmp_path), 4)
    found = recovery.recover(str(tmp_path), None)
    assert (found.log_start, found.end) == (4, end)
    recovery.write_checkpoint(str(tmp_path), 9)
    assert recovery.read_checkpoint(str(tmp_path)) == 9


def test_the_tail_of_a_failed_file_is_cut_where_its_rewrite_took_over(tmp_path: Path) -> None:
    write_file(tmp_path, 0, 10, sync=False)
    end = write_file(tmp_path, 6, 20)  # same leader epoch: the higher base counts
    found = recovery.recover(str(tmp_path), None)
    assert found.end == end
    facts = recovery.inspect(str(tmp_path), name(0))
    assert facts.end_offset == 6  # type: ignore[attr-defined]


def test_remains_of_a_killed_broker_are_removed(tmp_path: Path) -> None:
    write_file(tmp_path, 0, 10)
    rewrite = tmp_path / recovery.REWRITE
    rewrite.mkdir()
    write_file(rewrite, 5, 3)
    (tmp_path / name(99).replace(".log", ".cells")).write_bytes(b"x" * 5000)
    (tmp_path / "log_start.tmp").write_bytes(b"{")
    assert recovery.recover(str(tmp_path), None).end == 10
    assert sorted(os.listdir(tmp_path)) == [name(0).replace(".log", ".cells"), name(0), recovery.WITNESS]


def test_lost_cells_are_made_again(tmp_path: Path) -> None:
    write_file(tmp_path, 0, 300)
    (tmp_path / name(0).replace(".log", ".cells")).unlink()
    assert recovery.recover(str(tmp_path), None).end == 300
    assert (tmp_path / name(0).replace(".log", ".cells")).exists()


def test_files_of_another_topic_are_refused(tmp_path: Path) -> None:
    write_file(tmp_path, 0, 10, topic=bytes(16))
    with pytest.raises(CorruptRecordError, match="belongs to topic"):
        recovery.recover(str(tmp_path), None, TOPIC)


def test_a_damaged_checkpoint_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / recovery.CHECKPOINT).write_text("{}")
    with pytest.raises(StorageError, match="damaged"):
        recovery.recover(str(tmp_path), None)


def test_removing_files_may_be_repeated(tmp_path: Path) -> None:
    write_file(tmp_path, write_file(tmp_path, 0, 10), 5)
    for _ in range(2):
        recovery.remove_files(str(tmp_path), (name(0),))
    found = recovery.recover(str(tmp_path), None)
    assert (found.log_start, found.end, len(found.files)) == (10, 15, 1)


def test_what_was_durable_is_missing_when_the_newest_file_is_gone(tmp_path: Path) -> None:
    write_file(tmp_path, write_file(tmp_path, 0, 10), 5, leader_epoch=2)
    (tmp_path / name(10, 2)).unlink()  # its cell table still bears the mark of the last sync
    found = recovery.recover(str(tmp_path), None, TOPIC)
    assert (found.end, found.missing) == (15, 5)
    assert [e.name for e in found.files] == [name(0)]
    assert not (tmp_path / name(10, 2).replace(".log", ".cells")).exists()
    assert recovery.recover(str(tmp_path), None, TOPIC) == found  # the note took over from the mark


def test_what_was_durable_is_missing_when_the_end_is_gone_and_only_the_note_knows(tmp_path: Path) -> None:
    write_file(tmp_path, write_file(tmp_path, 0, 10), 5, leader_epoch=2)
    recovery.write_witness(str(tmp_path), 15)
    path = tmp_path / name(10, 2)
    with path.with_suffix(".cells").open("r+b") as file:
        file.write(b"\xff" * 1024)  # the header page, with the mark
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 100)
    found = recovery.recover(str(tmp_path), None, TOPIC)
    assert (found.end, found.missing) == (15, 1)
    for suffix in (".log", ".cells"):
        path.with_suffix(suffix).unlink()
    found = recovery.recover(str(tmp_path), None, TOPIC)
    assert (found.end, found.missing) == (15, 5)


def test_a_torn_note_says_nothing(tmp_path: Path) -> None:
    write_file(tmp_path, 0, 10)
    recovery.write_witness(str(tmp_path), 12)
    (tmp_path / recovery.WITNESS).write_bytes((tmp_path / recovery.WITNESS).read_bytes().replace(b"12", b"92"))
    assert recovery.recover(str(tmp_path), None, TOPIC).missing == 0


def test_with_memory_intact_nothing_is_called_missing(tmp_path: Path) -> None:
    write_file(tmp_path, 0, 10)
    recovery.write_witness(str(tmp_path), 10)
    (tmp_path / name(0)).unlink()
    assert recovery.recover(str(tmp_path), 10).missing == 0  # the C threads look in memory first


CHANGES = {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.truncate"}


def killed_before(change: int, body: Callable[[], object]) -> bool:
    """Runs body in a child that dies before its change-th change of a directory or file (as Python's own audit events count them); whether it did."""
    pid = os.fork()
    if pid == 0:
        left = change

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal left
            if event in CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_CREAT | os.O_WRONLY | os.O_RDWR)):
                left -= 1
                if left == 0:
                    os._exit(9)

        sys.addaudithook(hook)
        try:
            body()
        except BaseException:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, 9)
    return code == 9


def a_log_after_a_bad_day(directory: Path) -> None:
    """Files trimmed halfway, a rewrite installed halfway, the newest .log removed by hand: all that recovery has a step for."""
    for path in sorted(directory.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    write_file(directory, 0, 10)
    write_file(directory, 10, 10)
    write_file(directory, 20, 10, sync=False)
    rewrite = directory / recovery.REWRITE
    rewrite.mkdir()
    write_file(rewrite, 25, 10, size=5000)
    (rewrite / name(25)).rename(directory / name(25))
    write_file(directory, 35, 5)
    (directory / name(35)).unlink()
    recovery.write_checkpoint(str(directory), 12)
    (directory / name(0).replace(".log", ".cells")).unlink()
    (directory / "log_start.tmp").write_bytes(b"{")


def test_recovery_killed_before_any_of_its_changes_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    a_log_after_a_bad_day(tmp_path)
    want = recovery.recover(str(tmp_path), None, TOPIC)
    assert (want.log_start, want.end, want.missing) == (12, 40, 5)
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix == ".log"}
    change = 1
    while True:
        a_log_after_a_bad_day(tmp_path)
        killed = killed_before(change, lambda: recovery.recover(str(tmp_path), None, TOPIC))
        again = recovery.recover(str(tmp_path), None, TOPIC)
        assert again._replace(cut_bytes=0) == want._replace(cut_bytes=0), change
        assert {path.name: path.stat().st_size for path in tmp_path.iterdir() if path.suffix == ".log"} == {n: len(b) for n, b in left.items()}
        for entry in again.files:
            problems = ffi.new("size_t *")
            check(lib.sl_file_verify(os.fsencode(tmp_path), entry.name.encode(), ffi.NULL, 0, problems))
            assert problems[0] == (entry.base_offset == 0), (change, entry)  # trimmed away in part: its table is gone, and nobody reads it
        if not killed:
            break
        change += 1
    assert change > 6


def test_a_trim_killed_before_any_of_its_changes_loses_only_what_it_was_told_to(tmp_path: Path) -> None:
    change = 1
    while True:
        for path in tmp_path.iterdir():
            path.unlink()
        write_file(tmp_path, write_file(tmp_path, write_file(tmp_path, 0, 10), 10), 10)
        recovery.write_checkpoint(str(tmp_path), 3)

        def trim() -> None:
            recovery.write_checkpoint(str(tmp_path), 20)
            recovery.remove_files(str(tmp_path), (name(0), name(10)))

        killed = killed_before(change, trim)
        found = recovery.recover(str(tmp_path), None, TOPIC)
        assert found.end == 30 and found.missing == 0 and found.log_start in (3, 20)
        assert found.log_start >= found.files[0].base_offset
        assert found.log_start == 20 or len(found.files) == 3
        if not killed:
            break
        change += 1
    assert change > 5


@pytest.mark.parametrize("removed", range(4))
def test_a_cut_that_is_killed_leaves_a_log_of_which_nothing_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, removed: int) -> None:
    for base in range(0, 50, 10):
        write_file(tmp_path, base, 10)
    recovery.recover(str(tmp_path), None, TOPIC)
    recovery.write_witness(str(tmp_path), 50)
    remove, left = recovery._remove_file, [removed]

    def killed(directory: str, name: str) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        remove(directory, name)

    monkeypatch.setattr(recovery, "_remove_file", killed)
    with pytest.raises(KeyboardInterrupt):
        recovery.cut(str(tmp_path), 1, 10)  # four files go
    monkeypatch.setattr(recovery, "_remove_file", remove)
    found = recovery.recover(str(tmp_path), None, TOPIC)
    assert (found.end, found.missing) == (50 - 10 * removed, 0)
