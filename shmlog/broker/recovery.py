"""Making a partition's files right before it is taken over: after a kill, a power cut, or for the first time.

Only the last file can have an uncertain end (a file is synced before its successor is made), so only its end is checked; older files are not
opened but for one look at the two before it. With memory intact the file is cut at the `spilled` word: what lies beyond was never published,
and the C threads write it again from memory. Without memory (a reboot) it is cut after the last frame that proves itself.

Every step may be killed and repeated. The caller holds the directory's lock and the death certificate of any earlier broker.

`log_start` is a small file of its own: where a trimmed log begins, and, when retention has removed every file, where it goes on.

How far the log was on disk is known from more than the files that may be lost or damaged: `durable` is a second small file, written over in place
while the broker lives (at a roll, at an orderly end, and each WITNESS_NS while records come), and each cell table bears the mark of its last sync,
also when its .log is gone. If the files end before that, offsets that were promised are missing: they are never given out again, the log goes on
behind them with a LOST range that readers report. `durable` is not synced for itself: the kernel writes it within seconds, and what it guards against
is not a power cut.
"""

from __future__ import annotations

import json
import os
import shutil
from typing import NamedTuple

from shmlog._ffi import check, ffi, lib
from shmlog.errors import CorruptRecordError, StorageError

CHECKPOINT = "log_start"
REWRITE = "rewrite"  # a file that replaces one whose fdatasync failed, while it is written (spill.c)
NO_CUT = 2**64 - 1
WITNESS = "durable"
WITNESS_NS = 5_000_000_000
OVERLAPS_LOOKED_FOR = 2


class Entry(NamedTuple):
    """One file that counts; `until` is where the next one takes over (NO_CUT: none yet)."""

    name: str
    base_offset: int
    until: int
    leader_epoch: int


class Recovered(NamedTuple):
    log_start: int
    end: int  # the log goes on here unless memory has more
    cut_bytes: int  # what could not be kept of the last file
    files: list[Entry]
    missing: int = 0  # records before `end` that were durable and are in no file: to be written as LOST


def list_files(directory: str) -> list[Entry]:
    path = os.fsencode(directory)
    count = check(lib.sl_file_list(path, ffi.NULL, 0), f"{directory} cannot be read")
    entries = ffi.new("sl_file_entry[]", count + 8)
    count = min(check(lib.sl_file_list(path, entries, count + 8), f"{directory} cannot be read"), count + 8)
    return [Entry(ffi.string(e.name).decode(), e.base_offset, e.until, e.leader_epoch) for e in entries[0:count]]


def inspect(directory: str, name: str) -> object:
    """sl_file_facts of one file: from its headers and last cells, without a scan."""
    facts = ffi.new("sl_file_facts *")
    check(lib.sl_file_inspect(os.fsencode(directory), name.encode(), facts), f"{os.path.join(directory, name)} cannot be read")
    return facts


def recover(directory: str, spilled: int | None, topic_id: bytes = b"") -> Recovered:
    """`spilled`: the shared word while memory is intact, None when it is gone. Makes the directory if there is none."""
    os.makedirs(directory, mode=0o700, exist_ok=True)
    checkpoint = read_checkpoint(directory)
    witness = read_witness(directory)
    durable = max([witness, *marks(directory)])
    if durable > witness:
        write_witness(directory, durable)  # before anything goes that says so
    _remove_remains(directory)
    cut_bytes = 0
    end = checkpoint
    files = list_files(directory)
    while files:
        last = files[-1]
        if topic_id:
            _check_topic(directory, last.name, topic_id)
        end, cut = _recover_file(directory, last.name, NO_CUT if spilled is None else spilled, durable)
        cut_bytes += cut
        if end > last.base_offset:
            break
        # Nothing in it (its maker died, or all was cut): it only stands in the way of a successor with this base.
        if len(files) == 1 and end > checkpoint:
            write_checkpoint(directory, end)  # else only its name knew where the log goes on
        _remove_file(directory, last.name)
        files.pop()
        if files and files[-1].until == last.base_offset:
            files[-1] = files[-1]._replace(until=NO_CUT)
        # The one before was synced whole before this one was made, so it ends where this one began.
    for entry in files[-1 - OVERLAPS_LOOKED_FOR : -1]:
        # The tail of a file whose fdatasync failed was written again into the next one; cut it, so that nobody takes it for damage. And its table
        # may not have reached the disk as far as the .log has.
        facts = inspect(directory, entry.name)
        if facts.end_offset != entry.until:  # type: ignore[attr-defined]
            _recover_file(directory, entry.name, entry.until, durable)
    end = max(end, checkpoint)
    start = max(checkpoint, files[0].base_offset if files else end)
    # With memory intact the C threads look there first, and name what is in neither.
    missing = max(0, durable - end) if spilled is None else 0
    return Recovered(start, end + missing, cut_bytes, files, missing)


def _recover_file(directory: str, name: str, cut_offset: int, durable: int) -> tuple[int, int]:
    cut = ffi.new("uint64_t *")
    path = os.path.join(directory, name)
    code = lib.sl_file_recover(os.fsencode(directory), name.encode(), cut_offset, durable, cut)
    return check(code, f"{path} cannot be recovered: {ffi.string(lib.sl_strerror(code)).decode()}" if code < 0 else None), cut[0]


def _check_topic(directory: str, name: str, topic_id: bytes) -> None:
    facts = ffi.new("sl_file_facts *")
    code = lib.sl_file_inspect(os.fsencode(directory), name.encode(), facts)
    if code == lib.SL_OK and bytes(facts.topic_id) != topic_id:
        raise CorruptRecordError(f"{os.path.join(directory, name)} belongs to topic {bytes(facts.topic_id).hex()}, not to {topic_id.hex()}")


def _remove_remains(directory: str) -> None:
    """What a killed broker left half done: a rewrite, and cells whose .log never came (a cell table alone says nothing)."""
    _finish_rewrite(directory)
    shutil.rmtree(os.path.join(directory, REWRITE), ignore_errors=True)
    names = set(os.listdir(directory))
    for name in names:
        if name.endswith(".tmp") or (name.endswith(".cells") and name[:-6] + ".log" not in names):
            os.unlink(os.path.join(directory, name))


def _finish_rewrite(directory: str) -> None:
    """A rewrite killed between its two renames: the .log is in place, and its table, the only witness of large payloads, is not yet."""
    rewrite = os.path.join(directory, REWRITE)
    try:
        names = os.listdir(rewrite)
    except FileNotFoundError:
        return
    for name in names:
        log_name = name.removesuffix(".cells") + ".log"
        if name.endswith(".cells") and log_name not in names and _made_together(os.path.join(rewrite, name), os.path.join(directory, log_name)):
            os.replace(os.path.join(rewrite, name), os.path.join(directory, name))


def _made_together(cells: str, log: str) -> bool:
    """The headers agree but for magic and CRC (sl_cells_belong() in file_io.c)."""
    try:
        with open(cells, "rb") as a, open(log, "rb") as b:
            return a.read(252)[8:] == b.read(252)[8:] != b""
    except FileNotFoundError:
        return False


def _remove_file(directory: str, name: str) -> None:
    """The .log last: it is what names both. Either may be gone already."""
    for suffix in (".cells", ".log"):
        try:
            os.unlink(os.path.join(directory, name.removesuffix(".log") + suffix))
        except FileNotFoundError:
            pass


def cut(directory: str, epoch: int, end_offset: int) -> None:
    """A follower's log parts from its leader's: what was written under epochs above `epoch`, and what lies beyond end_offset, goes. Killed anywhere in
    it: a shorter or longer log without a hole, of which nothing is missing, and which is told again where to end."""
    files = list_files(directory)
    end = min([end_offset, *(f.base_offset for f in files if f.leader_epoch > epoch)])
    if read_witness(directory) > end:
        write_witness(directory, end)  # first: what goes was durable here, and is in no log any more
    # Hidden ones too: the log of the leader will cover these offsets under names of its own.
    for name in sorted(os.listdir(directory), reverse=True):
        if name.endswith(".log") and int(name.split("-")[0]) >= end:
            _remove_file(directory, name)
    for entry in list_files(directory)[-1:]:
        _recover_file(directory, entry.name, end, end)
    if end and not list_files(directory):
        write_checkpoint(directory, end)  # else only a file's name knew where the log goes on


def restart_at(directory: str, offset: int) -> None:
    """A follower whose log ends before its leader's begins: it has nothing that anybody could ask for."""
    if read_witness(directory) > offset:
        write_witness(directory, offset)
    write_checkpoint(directory, offset)
    for name in os.listdir(directory):
        if name.endswith(".log"):
            _remove_file(directory, name)


def remove_files(directory: str, names: tuple[str, ...]) -> None:
    """Retention. The log start beyond them is in force and written down."""
    for name in names:
        _remove_file(directory, name)


def marks(directory: str) -> list[int]:
    """What the cell tables of the newest file, and of files whose .log is gone, say was on disk."""
    names = sorted(name for name in os.listdir(directory) if name.endswith((".log", ".cells")))
    logs = [name for name in names if name.endswith(".log")]
    newest = logs[-1].removesuffix(".log") if logs else ""
    ends = []
    for name in names:
        stem = name.removesuffix(".cells")
        if stem == name or (stem != newest and stem + ".log" in logs):
            continue
        try:
            with open(os.path.join(directory, name), "rb") as file:
                file.seek(lib.SL_FILE_MARK_POSITION)
                mark = file.read(24)
        except OSError:
            continue
        if len(mark) == 24 and lib.sl_crc32c(0, mark, 20) == int.from_bytes(mark[20:], "little"):
            ends.append(int.from_bytes(mark[8:16], "little"))
    return ends


def read_witness(directory: str) -> int:
    """The offset below which all was on disk, as the broker noted it; 0 if nobody did. A torn note is none."""
    try:
        with open(os.path.join(directory, WITNESS), "rb") as file:
            offset, crc = file.read(64).split()
            return int(offset) if int(crc, 16) == lib.sl_crc32c(0, offset, len(offset)) else 0
    except (FileNotFoundError, ValueError):
        return 0


def write_witness(directory: str, offset: int) -> None:
    text = b"%020d" % offset
    fd = os.open(os.path.join(directory, WITNESS), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.pwrite(fd, text + b" %08x\n" % lib.sl_crc32c(0, text, len(text)), 0)
    finally:
        os.close(fd)


def read_checkpoint(directory: str) -> int:
    path = os.path.join(directory, CHECKPOINT)
    try:
        with open(path, "rb") as file:
            offset = json.loads(file.read())["log_start"]
    except FileNotFoundError:
        return 0
    except (ValueError, KeyError, TypeError):
        raise StorageError(f"{path} is damaged", path=path, hint="remove it: the log then begins with its oldest file") from None
    return int(offset)


def write_checkpoint(directory: str, log_start: int) -> None:
    """Replaces the file in one step; on disk when this returns."""
    path = os.path.join(directory, CHECKPOINT)
    fd = os.open(path + ".tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, json.dumps({"log_start": log_start}).encode())
        os.fdatasync(fd)
    finally:
        os.close(fd)
    os.replace(path + ".tmp", path)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
