"""`dump`: what stands in a segment, in memory or in a file, going on past damage. Writes nothing.

A segment in memory is read as `verify` reads it (inspect.Segment), and its cells say where frames are. A file is walked frame by frame; its cell
table, where there is one, checks each frame and tells offsets, and where to go on behind damage. Without it the next 64 bytes that pass a frame's
checks are believed.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from typing import Any

from shmlog import shm
from shmlog._ffi import ffi, lib
from shmlog.errors import IllegalArgumentError, StorageError
from shmlog.tools import status
from shmlog.tools.inspect import MAGIC, PHASES, UNIT, Segment, code_text
from shmlog.tools.produce_consume import named_bytes

_FRAME = struct.Struct("<IIIIIIHH")  # sl_frame


def dump(path: str) -> Iterator[dict[str, Any]]:
    """What a segment holds, an object a line: first its header, then frames and damages in the order of the log.

    path: a .log file, an object below /dev/shm, or an object's name (/shmlog.<uid>.<cluster>.s<n>).
    """
    if path.startswith("/shmlog.") and not os.path.exists(path):
        path = shm.DIRECTORY + path
    if not os.path.isfile(path):
        raise IllegalArgumentError(
            f"{path} does not exist" if not os.path.exists(path) else f"{path} is no file; name a .log file or an object in /dev/shm"
        )
    if path.endswith(".log"):
        yield from _dump_file(path)
    else:
        yield from _dump_segment(path)


def _dump_segment(path: str) -> Iterator[dict[str, Any]]:
    last = path.rpartition(".s")[2]
    segment = Segment("", int(last) if last.isdigit() else 0, path, anyway=True)
    if segment.header is None:
        with open(path, "rb") as file:
            data = file.read(ffi.sizeof("sl_object_header"))
        kinds = {1: "the control object", 2: "a table of partitions", 3: "a table of waits", 4: "a table of rows", 5: "a metadata snapshot"}
        kind = kinds.get(data[12]) if data.startswith(MAGIC) and len(data) > 12 else None
        hint = "`shmlog status --json` shows what it says" if kind else "name a .log file or an object /dev/shm/shmlog.<uid>.<cluster>.s<n>"
        raise IllegalArgumentError(f"{path} is {kind or 'nothing of shmlog'}, not a segment", hint=hint)
    h = segment.header
    cells = list(segment.cells())
    yield {
        "type": "segment", "path": path, "number": int(h.number), "topic_id": bytes(h.topic_id).hex(), "partition": int(h.partition),
        "leader_epoch": int(h.leader_epoch), "base_offset": segment.base, "state": PHASES.get(h.claim >> 61, "?"), "lives": int(h.lives),
        "tainted": bool(h.tainted), "cells": len(cells), "cell_count": segment.cell_count, "hint": int(h.hint), "alloc_units": int(h.alloc_units),
        "arena_units": segment.arena_units, "object_bytes": int(h.header.object_bytes), "maker_pid": int(h.header.maker_pid),
    }  # fmt: skip
    if segment.code < 0:
        yield _damage(0, None, f"its frozen header: {code_text(segment.code)}")
    base = segment.base or 0
    expected = rel = 0
    for cell in cells:
        if cell.at != expected:
            yield _damage(cell.at, None, f"cells {expected} to {cell.at - 1} are empty, and cell {cell.at} is filled")
        if cell.rel != rel or cell.tag != h.number & 15:
            yield _damage(cell.at, base + cell.rel, f"cell {cell.at}: offset +{cell.rel} after +{rel}, tag {cell.tag} for number {h.number}")
        expected, rel = cell.at + 1, cell.rel + cell.records
        if cell.type == lib.SL_CELL_SEAL:
            yield {"type": "seal", "cell": cell.at, "offset": base + cell.rel}
            continue
        position = cell.unit * UNIT
        if position >= len(segment.arena):
            yield _damage(position, base + cell.rel, f"cell {cell.at} names arena unit {cell.unit} of {len(segment.arena) // UNIT}")
            continue
        yield {"cell": cell.at, **_frame(segment.arena, position, position, base + cell.rel)}


def _damage(position: int, offset: int | None, what: str) -> dict[str, Any]:
    return {"type": "damage", "position": position, "offset": offset, "what": what}


class _Window:
    """Reads a file through a buffer, so that a step of 64 bytes costs no system call. EIO is an error of that place, not of the program."""

    BYTES = 1 << 20

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.size = os.fstat(fd).st_size
        self.start = 0
        self.data = b""

    def at(self, position: int, n: int) -> tuple[bytes, int]:
        """(buffer, index in it) with at least n bytes from `position` on, as far as the file goes."""
        if not (self.start <= position and position + n <= self.start + len(self.data)):
            self.start = position
            self.data = os.pread(self.fd, max(n, self.BYTES), position)
        return self.data, position - self.start


def _dump_file(path: str) -> Iterator[dict[str, Any]]:
    directory, name = os.path.dirname(path) or ".", os.path.basename(path)
    facts = ffi.new("sl_file_facts *")
    code = int(lib.sl_file_inspect(directory.encode(), name.encode(), facts))
    key = status.file_key(name)
    base = int(facts.base_offset) if code >= 0 else key[0] if key else 0
    size = os.path.getsize(path)
    yield {
        "type": "file", "path": path, "base_offset": base, "leader_epoch": int(facts.leader_epoch), "topic_id": bytes(facts.topic_id).hex(),
        "partition": int(facts.partition), "disk_version": int(facts.disk_version), "compacted": bool(facts.flags & lib.SL_FILE_COMPACTED),
        "made_ms": int(facts.made_ns) // 1_000_000, "log_bytes": size, "cells": int(facts.cells), "end_offset": int(facts.end_offset),
    }  # fmt: skip
    if code < 0:
        yield _damage(0, None, f"its headers: {code_text(code)}")
    cells = _file_cells(path)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        window = _Window(fd)
        position = lib.SL_FILE_HEADER_BYTES
        offset: int | None = base
        while position < size:
            cell = cells.get(position)
            if cell is not None:
                offset = base + cell[0]
            frame = _file_frame(window, position, offset, cell)
            yield frame
            if frame["type"] != "damage":
                offset = None if offset is None else offset + frame["rows"]
                position += -(-frame["frame_bytes"] // UNIT) * UNIT
                continue
            offset = None  # unless a cell says it
            position = _next_frame(window, position, cells, size)
    except OSError as exc:
        raise StorageError(f"{path}: {exc.strerror}", path=path) from None
    finally:
        os.close(fd)


def _file_cells(path: str) -> dict[int, tuple[int, int, int]]:
    """Position -> (rel, CRC of the frame, count) from the .cells beside a .log: pages of 255 entries. What is there, whole pages or not; {} if none."""
    try:
        with open(path.removesuffix(".log") + ".cells", "rb") as file:
            data = file.read()
    except OSError:
        return {}
    found = {}
    entry = struct.Struct("<IIIHBB")
    for page in range(lib.SL_CELL_PAGE_BYTES, len(data), lib.SL_CELL_PAGE_BYTES):
        for i in range(lib.SL_CELLS_PER_PAGE):
            at = page + 16 * i
            if at + 16 > len(data):
                break
            rel, unit, crc, count, kind, _ = entry.unpack_from(data, at)
            if kind:
                found[unit * UNIT] = rel, crc, count
    return found


def _file_frame(window: _Window, position: int, offset: int | None, cell: tuple[int, int, int] | None) -> dict[str, Any]:
    data, at = window.at(position, _FRAME.size)
    if len(data) - at < _FRAME.size:
        return _damage(position, offset, f"the file ends {len(data) - at} bytes into a frame")
    (frame_bytes,) = struct.unpack_from("<I", data, at)
    if frame_bytes < _FRAME.size or position + frame_bytes > window.size:
        return _damage(position, offset, f"no frame begins here (its length would be {frame_bytes:,} bytes)")
    data, at = window.at(position, frame_bytes)
    if cell is not None and lib.sl_crc32c(0, ffi.from_buffer(data) + at, frame_bytes) != cell[1]:
        return _damage(position, offset, f"the {frame_bytes:,} bytes of the frame do not match the CRC that the broker wrote")
    return _frame(data, at, position, offset)


def _next_frame(window: _Window, position: int, cells: dict[int, tuple[int, int, int]], size: int) -> int:
    """Where to go on behind damage: the next place a cell names, else the next that passes a frame's checks."""
    later = [p for p in cells if p > position]
    if later:
        return min(later)
    for candidate in range(position + UNIT, size - _FRAME.size, UNIT):
        data, at = window.at(candidate, _FRAME.size)
        (frame_bytes,) = struct.unpack_from("<I", data, at)
        if _FRAME.size <= frame_bytes <= size - candidate:
            data, at = window.at(candidate, frame_bytes)
            if lib.sl_frame_check(ffi.from_buffer(data) + at, frame_bytes, 1) == lib.SL_OK:
                return candidate
    return size


def _frame(data: bytes, at: int, position: int, offset: int | None) -> dict[str, Any]:
    """A frame and its records, or the damage."""
    frame = ffi.from_buffer(data) + at
    limit = len(data) - at
    code = lib.sl_frame_check(frame, limit, 1)
    if code < 0:
        return _damage(position, offset, code_text(code))
    frame_bytes, crc, _, _, _, _, flags, _ = _FRAME.unpack_from(data, at)
    rows = int(lib.sl_frame_rows(frame))
    kind = ("record", "array", "batch", "control")[flags & lib.SL_FF_KIND_MASK]
    out: dict[str, Any] = {
        "type": "frame", "position": position, "offset": offset, "rows": rows, "kind": kind, "frame_bytes": frame_bytes, "crc32c": f"{crc:08x}",
        "crc_covers_payload": bool(flags & lib.SL_FF_CRC_ALL), "timestamp_ms": int(lib.sl_frame_timestamp_ns(frame)) // 1_000_000,
    }  # fmt: skip
    if flags & lib.SL_FF_LOST:
        out["lost"] = True
    if flags & lib.SL_FF_TRANSACTIONAL:
        out["transactional"] = True
    records: list[dict[str, Any]] = []
    views = ffi.new("sl_view[]", min(rows, 256) or 1)
    row = 0
    while row < rows and kind != "control":
        n = int(lib.sl_frame_views(frame, min(limit, frame_bytes), offset or 0, row, views, len(views)))
        if n <= 0:
            if n < 0:
                out["records_error"] = "compressed" if n == lib.SL_E_INVALID else code_text(n)
            break
        records += [_record(views[i], offset) for i in range(n)]
        row = views[n - 1].frame_row + 1
    out["records"] = records
    return out


def _record(view: Any, offset: int | None) -> dict[str, Any]:
    out: dict[str, Any] = {"offset": None if offset is None else int(view.offset), "timestamp_ns": int(view.timestamp_ns)}
    named_bytes(out, "key", None if view.key == ffi.NULL else bytes(ffi.buffer(view.key, view.key_bytes)))
    named_bytes(out, "value", None if view.value == ffi.NULL else bytes(ffi.buffer(view.value, view.value_bytes)))
    if view.headers_bytes:
        out["headers_bytes"] = int(view.headers_bytes)
    return out


def dump_line(entry: dict[str, Any], bold: Any = str, red: Any = str) -> Iterator[str]:
    """An object of dump() for a person."""
    if entry["type"] == "segment":
        yield bold(f"segment {entry['number']}") + f"  {entry['state']}{', tainted' if entry['tainted'] else ''}  {entry['path']}"
        yield (
            f"  topic {entry['topic_id'][:8]} partition {entry['partition']}, leader epoch {entry['leader_epoch']}, "
            f"base offset {entry['base_offset']}, life {entry['lives']}"
        )
        yield (
            f"  {entry['cells']:,} of {entry['cell_count']:,} cells, {status.size(entry['alloc_units'] * UNIT)} of "
            f"{status.size(entry['arena_units'] * UNIT)} arena"
        )
        yield bold(_COLUMNS)
    elif entry["type"] == "file":
        yield (
            bold(os.path.basename(entry["path"])) + f"  {status.size(entry['log_bytes'])}{', compacted' if entry['compacted'] else ''}  {entry['path']}"
        )
        yield (
            f"  topic {entry['topic_id'][:8]} partition {entry['partition']}, leader epoch {entry['leader_epoch']}, offsets {entry['base_offset']} to "
            f"{entry['end_offset']}"
        )
        yield bold(_COLUMNS)
    elif entry["type"] == "seal":
        yield f"{entry['offset']:>12,} {'':>11} {'':>9} seal"
    elif entry["type"] == "damage":
        offset = "?" if entry["offset"] is None else f"{entry['offset']:,}"
        yield red(f"{offset:>12} {entry['position']:>11,} {'':>9} DAMAGE   {entry['what']}")
    else:
        offset = "?" if entry["offset"] is None else f"{entry['offset']:,}"
        kind = entry["kind"] if entry["rows"] == 1 else f"{entry['kind']} {entry['rows']}"
        if entry.get("lost"):
            kind = f"LOST {entry['rows']}"
        first = entry["records"][0] if entry["records"] else {}
        text = (
            f"{offset:>12} {entry['position']:>11,} {entry['frame_bytes']:>9,} {kind:<12} {_time(entry['timestamp_ms'])}  {_shown(first, 'key'):<16}  "
        )
        yield (text + _shown(first, "value") + (f"  ... {len(entry['records']) - 1} more" if len(entry["records"]) > 1 else "")).rstrip()


_COLUMNS = f"{'OFFSET':>12} {'POSITION':>11} {'BYTES':>9} {'KIND':<12} {'TIME':<23}  {'KEY':<16}  VALUE"


def _time(ms: int) -> str:
    seconds, rest = divmod(ms, 1000)
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) + f".{rest:03}"
    except (OverflowError, ValueError, OSError):
        return f"{ms} ms"


def _shown(record: dict[str, Any], name: str) -> str:
    if f"{name}_base64" in record:
        return f"<{len(record[f'{name}_base64']) * 3 // 4} bytes>"
    value = record.get(name)
    if value is None:
        return "-"
    text = "".join(c if c.isprintable() else "." for c in value[:60])
    return text + ("..." if len(value) > 60 else "")
