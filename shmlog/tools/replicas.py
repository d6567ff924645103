"""What the replicas of a partition hold, compared record by record; a part of `verify`, which never writes and asks no process.

Frames are copied from the leader's files as they stand (csrc/replica.c), so two replicas hold the same bytes at the same offset. Where files begin and
end is each broker's own affair: runs of frames are compared, whatever files they come out of, as long as they are equal; where they are not, frame by
frame, and what differs is said of each record. A frame that one replica found damaged before it had it on disk is a LOST frame there: that is told as
what it is. What a file's own checks find (a flipped bit) is verify's to report: here that replica is passed over for these offsets.

What has to be equal. Two logs that hold an offset under one leader epoch hold the same record there; beyond the place where their epochs part (KIP-101)
one of them is going to be cut. So a replica counts up to there, and a live follower up to its end as it was a moment ago. The leader counts with its
files, and behind them with its segments in memory (private copies), which is where its log is when its files do not have it yet. Files change under us
by their owner (it appends, cuts, removes), segments by whoever recycles them: the caller looks again before it believes a finding.
"""

from __future__ import annotations

import abc
import os
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from shmlog._ffi import check, ffi, lib
from shmlog.broker import recovery
from shmlog.errors import ShmlogError

if TYPE_CHECKING:
    from shmlog.tools.inspect import Segment

RUN_BYTES = 2**20
RECORDS_AT_ONCE = 1024
OFFSETS_END = 2**48
DIFFERENCES_MAX = 100  # of a partition; then there is no need to go on

FRAME_FLAGS_POSITION = ffi.offsetof("sl_frame", "flags")


class Difference(NamedTuple):
    """One finding: records `offset` to end_offset - 1 are not the same at `brokers` as at `against`."""

    offset: int
    end_offset: int
    brokers: tuple[str, ...]
    against: tuple[str, ...]
    differs: tuple[str, ...]  # of value, timestamp, key, headers, producer, type, batch bounds, frame; or lost
    text: str

    def data(self, topic: str, partition: int) -> dict[str, Any]:
        ids = {"brokers": [_number(b) for b in self.brokers], "against": [_number(b) for b in self.against]}
        return {"topic": topic, "partition": partition, "offset": self.offset, "end_offset": self.end_offset, **ids, "differs": list(self.differs)}


class Files(NamedTuple):
    """The files of one replica, as they are at one moment."""

    broker: int
    directory: str
    epochs: tuple[tuple[int, int], ...]  # (base offset, leader epoch) in log order
    end: int

    @property
    def start(self) -> int:
        return self.epochs[0][0]


def files_of(broker: int, directory: str) -> Files | None:
    """None: there are none that can be read."""
    try:
        entries = recovery.list_files(directory)
        while entries:
            facts: Any = recovery.inspect(directory, entries[-1].name)
            if facts.end_offset > entries[-1].base_offset:
                return Files(broker, directory, tuple((e.base_offset, e.leader_epoch) for e in entries), int(facts.end_offset))
            entries.pop()  # just made: nothing in it yet
    except (ShmlogError, OSError):
        pass  # being removed, or damaged, which is told where files are checked
    return None


def reference_of(copies: Sequence[Files], leader: int | None) -> Files:
    """The replica that the others follow: the leader, or else the one that would be elected."""
    return max(copies, key=lambda c: (c.broker == leader, c.epochs[-1][1], c.end, -c.broker))


def agreed_end(reference: Files, other: Files, reference_end: int) -> int:
    """Where the log of `other` parts from the reference's: it is told so, epoch by epoch, when it follows (parting() in broker/replication.py)."""
    from shmlog.broker.replication import parting

    files, end = list(other.epochs), other.end
    while files:
        cut = parting(reference.epochs, reference_end, end, files[-1][1])
        if cut is None:
            return end
        epoch, at, begin = cut
        if begin:
            return other.start
        end = min([at, *(base for base, e in files if e > epoch)])  # as recovery.cut()
        files = [file for file in files if file[0] < end]
    return end


# --- copies to read from -----------------------------------------------------------------------------------------------


class Piece(NamedTuple):
    """Whole frames in a private buffer, checked; the first begins at offset `base`."""

    base: int
    end: int
    address: Any
    bytes: int


class Frame(NamedTuple):
    base: int
    end: int
    address: Any
    bytes: int

    @property
    def lost(self) -> bool:
        flags = int(ffi.cast("uint16_t *", self.address + FRAME_FLAGS_POSITION)[0])
        return bool(flags & lib.SL_FF_KIND_MASK == lib.SL_FF_CONTROL and flags & lib.SL_FF_LOST)


def first_frame(piece: Piece) -> Frame:
    frame_bytes = int(ffi.cast("uint32_t *", piece.address)[0])
    return Frame(piece.base, piece.base + int(lib.sl_frame_rows(piece.address)), piece.address, frame_bytes)


class Copy(abc.ABC):
    """A replica's records from `start` to `end`. piece() gives None where they cannot be read: `blind` then says up to where, or `end` is less."""

    def __init__(self, broker: int, name: str, start: int, end: int) -> None:
        self.broker, self.name, self.start, self.end = broker, name, start, end
        self.blind = 0

    @abc.abstractmethod
    def piece(self, offset: int) -> Piece | None: ...

    def close(self) -> None:  # noqa: B027 (one in memory has nothing to close)
        pass


class FileCopy(Copy):
    def __init__(self, files: Files, end: int) -> None:
        super().__init__(files.broker, f"broker {files.broker}", files.start, end)
        self.directory = os.fsencode(files.directory)
        self.files_end = files.end
        self.room = ffi.new("uint8_t[]", RUN_BYTES)
        self.needed = ffi.new("uint64_t *")
        self.run: _Run | None = None
        out = ffi.new("sl_fetch **")
        check(lib.sl_fetch_open(self.directory, 0, bytes(16), out))  # the two are only for the header of what would be sent
        self.fetch = out[0]

    def close(self) -> None:
        lib.sl_fetch_close(self.fetch)

    def piece(self, offset: int) -> Piece | None:
        if offset < self.blind:
            return None
        run = self.run
        if run is None or not run.base_offset <= offset < run.end_offset:
            run = self.run = self._load(offset)
        return None if run is None else run.piece(offset)

    def _load(self, offset: int) -> _Run | None:
        at = offset
        while True:
            code = int(lib.sl_fetch_run(self.fetch, at, self.files_end, 0, self.room, len(self.room), self.needed))
            if code == lib.SL_E_TOO_BIG and self.needed[0] > len(self.room):
                self.room = ffi.new("uint8_t[]", max(int(self.needed[0]), 2 * len(self.room)))  # with more room a run has more cells, and needs more
            elif code == lib.SL_E_RANGE and self.needed[0] < at:
                at = int(self.needed[0])  # its frame began earlier
            else:
                break
        if code > 0:
            return _Run(self.room)
        if code == lib.SL_E_RANGE:
            self.blind = int(self.needed[0])  # retention, meanwhile
        elif code == lib.SL_E_CORRUPT and (behind := self._behind_damage(offset)) > offset:
            self.blind = behind
        else:
            self.end = offset  # cut off and written anew meanwhile, or not readable, which is told where files are checked
        return None

    def _behind_damage(self, offset: int) -> int:
        """Where the log goes on behind what is damaged at `offset`; 0: nothing is."""
        out = ffi.new("sl_reader **")
        if lib.sl_reader_open_files(self.directory, out) < 0:
            return 0
        try:
            if lib.sl_reader_seek(out[0], offset) >= 0 and lib.sl_reader_poll(out[0], ffi.new("sl_view[1]"), 1, 1, 1) == lib.SL_E_CORRUPT:
                return int(lib.sl_reader_damage_end(out[0]))
            return 0
        finally:
            lib.sl_reader_close(out[0])


class _Run:
    """A run as sl_fetch_run() has written it into our own buffer."""

    def __init__(self, room: Any) -> None:
        head = ffi.cast("sl_run *", room)
        self.base_offset, self.end_offset = int(head.base_offset), int(head.end_offset)
        self.cells, self.frames_bytes = int(head.cells), int(head.frames_bytes)
        self.cells_at = ffi.cast("sl_file_cell *", room + lib.SL_RUN_HEADER_BYTES)
        used = lib.SL_RUN_HEADER_BYTES + self.cells * ffi.sizeof("sl_file_cell")
        self.frames_at = room + -(-used // lib.SL_UNIT_BYTES) * lib.SL_UNIT_BYTES

    def piece(self, offset: int) -> Piece:
        """From the frame of `offset` on."""
        first = self.cells_at[0]
        wanted = first.rel + offset - self.base_offset
        index = bisect_left(range(self.cells), wanted + 1, key=lambda i: self.cells_at[i].rel) - 1
        cell = self.cells_at[index]
        position = (cell.unit - first.unit) * lib.SL_UNIT_BYTES
        return Piece(self.base_offset + cell.rel - first.rel, self.end_offset, self.frames_at + position, self.frames_bytes - position)


class MemoryCopy(Copy):
    """The segments of the partition, for what the leader has not written to its files yet. Private copies of them."""

    def __init__(self, leader: int, segments: Iterable[Segment]) -> None:
        self.cells: list[tuple[int, int, Segment, int]] = []  # base offset, end, segment, arena position
        self.arenas: dict[int, Any] = {}
        self.leader_epoch = 0
        for segment in segments:
            if segment.header is None or segment.base is None:
                continue
            self.leader_epoch = max(self.leader_epoch, segment.leader_epoch)
            self.arenas[segment.buffer] = ffi.from_buffer("uint8_t[]", segment.arena)
            for cell in segment.cells():
                if cell.type in (lib.SL_CELL_DATA, lib.SL_CELL_CONTROL) and cell.records:
                    base = segment.base + cell.rel
                    self.cells.append((base, base + cell.records, segment, cell.unit * lib.SL_UNIT_BYTES))
        self.cells.sort(key=lambda c: c[0])
        start, end = (self.cells[0][0], self.cells[-1][1]) if self.cells else (0, 0)
        super().__init__(leader, f"broker {leader}'s memory", start, end)

    def piece(self, offset: int) -> Piece | None:
        if offset < self.blind:
            return None
        index = bisect_left(self.cells, offset + 1, key=lambda c: c[0]) - 1
        if index < 0 or self.cells[index][1] <= offset:
            if index + 1 < len(self.cells):
                self.blind = self.cells[index + 1][0]
            else:
                self.end = offset
            return None
        base, end, segment, position = self.cells[index]
        limit = len(segment.arena) - position
        frame = self.arenas[segment.buffer] + position
        if limit <= 0 or lib.sl_frame_check(frame, limit, 1) < 0 or int(lib.sl_frame_rows(frame)) != end - base:
            self.blind = end  # told where memory is checked
            return None
        return Piece(base, end, frame, int(ffi.cast("uint32_t *", frame)[0]))


# --- comparing ---------------------------------------------------------------------------------------------------------


class Comparison:
    def __init__(self, copies: Sequence[Copy]) -> None:
        self.copies = copies  # the one that the others are held against comes first
        self.found: list[Difference] = []
        self.compared = 0  # offsets at which at least two copies were held against each other
        self._lost: Difference | None = None  # not said yet: it may go on

    def run(self) -> list[Difference]:
        """Stretch by stretch, each with the copies that reach over it."""
        bounds = sorted({bound for c in self.copies if c.start < c.end for bound in (c.start, c.end)})
        for low, high in pairwise(bounds):
            active = [c for c in self.copies if c.start <= low and c.end >= high]
            if len(active) > 1 and len(self.found) < DIFFERENCES_MAX:
                self._stretch(low, high, active)
        self._say_lost()
        return self.found

    def _stretch(self, offset: int, high: int, active: list[Copy]) -> None:
        careful = 0  # up to here frame by frame: the runs are not equal
        while offset < high and len(self.found) < DIFFERENCES_MAX:
            pieces = [(c, piece) for c in active if (piece := c.piece(offset)) is not None]
            active = [c for c in active if c.end > offset]
            if len(pieces) < 2:
                if len(active) < 2:
                    return
                offset = max(offset + 1, sorted(max(c.blind, offset) for c in active)[1])
                continue
            cap = min((c.blind for c in active if c.blind > offset), default=high)  # there another one joins
            shortest = min((piece for _, piece in pieces), key=lambda piece: piece.bytes)
            if offset >= careful and shortest.end <= cap and all(piece.base == offset for _, piece in pieces):
                if _equal([piece.address for _, piece in pieces], shortest.bytes):
                    self.compared += shortest.end - offset
                    offset = shortest.end
                    continue
                careful = shortest.end
            frames = [(c, first_frame(piece)) for c, piece in pieces]
            stop = min(frame.end for _, frame in frames)
            one = frames[0][1]
            same = all((f.base, f.end, f.bytes) == (one.base, one.end, one.bytes) for _, f in frames)
            if not same or not _equal([f.address for _, f in frames], one.bytes):
                self._records(offset, stop, frames)
            self.compared += stop - offset
            offset = stop

    def _records(self, offset: int, stop: int, frames: list[tuple[Copy, Frame]]) -> None:
        """Offsets [offset, stop), which lie in one frame of each copy; the frames are not equal."""
        lost = tuple(c.name for c, f in frames if f.lost)
        there = [(c, f) for c, f in frames if not f.lost]
        if lost and there:
            self._add_lost(offset, stop, lost, tuple(c.name for c, _ in there))
        if len(there) < 2:
            return
        before = len(self.found)
        (bounds, others), *rest = _groups(there, lambda copy, frame: (frame.base, frame.end))
        for (base, end), names in rest:
            text = f"batch bounds: a frame of offsets {base} to {end - 1}, not {bounds[0]} to {bounds[1] - 1}"
            self._add(offset, stop, names, others, ("batch bounds",), text)
        for low in range(offset, stop, RECORDS_AT_ONCE):
            high = min(low + RECORDS_AT_ONCE, stop)
            records = {c.name: _records_of(f, low, high) for c, f in there}
            for at in range(low, high):
                (record, others), *rest = _groups(there, lambda copy, frame, at=at, records=records: records[copy.name].get(at))  # type: ignore[misc]
                for other, names in rest:
                    self._add(at, at + 1, names, others, *_compare(other, record))
                if len(self.found) >= DIFFERENCES_MAX:
                    return
        if len(self.found) == before:
            (_, others), *rest = _groups(there, lambda copy, frame: bytes(ffi.buffer(frame.address, frame.bytes)))
            for _, names in rest:
                self._add(offset, stop, names, others, ("frame",), "the frame around equal records")

    def _add(self, offset: int, stop: int, names: tuple[str, ...], others: tuple[str, ...], differs: tuple[str, ...], text: str) -> None:
        self._say_lost()
        verb = "differs" if len(names) == 1 else "differ"
        self.found.append(Difference(offset, stop, names, others, differs, f"offset {offset}: {_and(names)} {verb} from {_and(others)}: {text}"))

    def _add_lost(self, offset: int, stop: int, names: tuple[str, ...], others: tuple[str, ...]) -> None:
        known = self._lost
        if known is not None and (known.end_offset, known.brokers, known.against) == (offset, names, others):
            self._lost = known._replace(end_offset=stop)
            return
        self._say_lost()
        self._lost = Difference(offset, stop, names, others, ("lost",), "")

    def _say_lost(self) -> None:
        lost, self._lost = self._lost, None
        if lost is None:
            return
        one = lost.end_offset == lost.offset + 1
        offsets = f"offset {lost.offset}" if one else f"offsets {lost.offset} to {lost.end_offset - 1}"
        has, have = ("has" if len(names) == 1 else "have" for names in (lost.brokers, lost.against))
        what, it = ("the record", "it") if one else ("the records", "them")
        self.found.append(lost._replace(text=f"{offsets}: {_and(lost.brokers)} {has} lost {what}, {_and(lost.against)} {have} {it}"))


def _equal(addresses: list[Any], count: int) -> bool:
    first = ffi.buffer(addresses[0], count)
    return all(ffi.buffer(other, count) == first for other in addresses[1:])


def _groups(frames: list[tuple[Copy, Frame]], key: Callable[[Copy, Frame], Any]) -> list[tuple[Any, tuple[str, ...]]]:
    """Who holds what, the first copy's group first."""
    found: dict[Any, list[str]] = {}
    for copy, frame in frames:
        found.setdefault(key(copy, frame), []).append(copy.name)
    return [(what, tuple(names)) for what, names in found.items()]


class _Record(NamedTuple):
    timestamp_ns: int
    key: bytes | None
    value: tuple[int, int] | None  # CRC32C and bytes
    headers: bytes | None
    dtype: bytes | None
    producer: tuple[int, int, int]
    flags: int


def _records_of(frame: Frame, low: int, high: int) -> dict[int, _Record]:
    """The records of a frame at offsets [low, high). Offsets without one (a batch with gaps, markers) are not in it."""
    views = ffi.new("sl_view[]", high - low)
    count = int(lib.sl_frame_views(frame.address, frame.bytes, frame.base, low - frame.base, views, high - low))
    found = {}
    for view in views[0 : max(count, 0)]:
        value = None if view.value == ffi.NULL else (int(lib.sl_crc32c(0, view.value, view.value_bytes)), int(view.value_bytes))
        parts = ((view.key, view.key_bytes), (view.headers, view.headers_bytes), (view.dtype, view.dtype_bytes))
        key, headers, dtype = (None if at == ffi.NULL else bytes(ffi.buffer(at, size)) for at, size in parts)
        producer = (int(view.producer_id), int(view.producer_epoch), int(view.sequence))
        found[int(view.offset)] = _Record(int(view.timestamp_ns), key, value, headers, dtype, producer, int(view.flags))
    return found


def _compare(a: _Record | None, b: _Record | None) -> tuple[tuple[str, ...], str]:
    if a is None or b is None:
        return ("value",), "it has no record there" if a is None else "it has a record there"
    texts = {
        "value": (a.value != b.value, f"{_value(a.value)}, not {_value(b.value)}"),
        "timestamp": (a.timestamp_ns != b.timestamp_ns, f"{a.timestamp_ns} ns, not {b.timestamp_ns}"),
        "key": (a.key != b.key, f"{_bytes(a.key)}, not {_bytes(b.key)}"),
        "headers": (a.headers != b.headers, f"{_bytes(a.headers)}, not {_bytes(b.headers)}"),
        "producer": (a.producer != b.producer, f"(id, epoch, sequence) {a.producer}, not {b.producer}"),
        "type": ((a.dtype, a.flags) != (b.dtype, b.flags), f"{_bytes(a.dtype)} with flags {a.flags:#x}, not {_bytes(b.dtype)} with {b.flags:#x}"),
    }
    differs = tuple(name for name, (yes, _) in texts.items() if yes)
    return differs, "; ".join(f"{name} {texts[name][1]}" for name in differs)


def _value(value: tuple[int, int] | None) -> str:
    return "null" if value is None else f"CRC32C {value[0]:08x} of {value[1]:,} bytes"


def _bytes(data: bytes | None) -> str:
    return "none" if data is None else repr(data) if len(data) <= 32 else f"{data[:24]!r}... ({len(data):,} bytes)"


def _and(names: tuple[str, ...]) -> str:
    if len(names) > 1 and all(name[7:].isdigit() for name in names):
        names = (f"brokers {names[0][7:]}", *(name[7:] for name in names[1:]))
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _number(name: str) -> int:
    return int(name[7:].partition("'")[0])


# --- a partition -------------------------------------------------------------------------------------------------------


class Parted(NamedTuple):
    """A replica holds offsets [start, end) that the reference's log does not: they go when it follows again."""

    broker: int
    start: int
    end: int
    reference: int
    leader_epoch: int


def compare(
    directories: Sequence[tuple[int, str]], leader: int | None, memory: Callable[[], list[Segment]] | None = None
) -> tuple[list[Difference], list[Parted], int]:
    """All replicas of a partition, (broker, directory) each; `memory` gives private copies of the partition's segments, if there are any. Returns what
    differs, who has parted, and how many offsets were compared."""
    files = [found for broker, directory in directories if (found := files_of(broker, directory)) is not None]
    if not files:
        return [], [], 0
    reference = reference_of(files, leader)
    agreed = {f.broker: f.end if f is reference else agreed_end(reference, f, reference.end) for f in files}
    written = reference.end if reference.broker == leader else 0  # the end of the leader's files
    behind: MemoryCopy | None = None
    if memory is not None and leader is not None and any(f.end > written for f in files if f.broker != leader):
        segments = memory()
        behind = MemoryCopy(leader, segments)
        behind.start = max(behind.start, written)
        for f in files:
            # What a file holds under an epoch came from memory of that epoch or an earlier one; under an earlier one it may be of a log that ended.
            untils = [*(base for base, _ in f.epochs[1:]), f.end]
            epochs = [epoch for (_, epoch), until in zip(f.epochs, untils, strict=True) if until > written]
            if f is not reference and epochs and min(epochs) >= behind.leader_epoch and agreed_end(reference, f, OFFSETS_END) == f.end:
                agreed[f.broker] = max(agreed[f.broker], min(f.end, behind.end))
        if any(segment.moved() for segment in segments):
            behind = None  # recycled while it was copied: by then it was in the files
    copies: list[Copy] = [FileCopy(f, agreed[f.broker]) for f in sorted(files, key=lambda f: (f is not reference, f.broker))]
    if behind is not None and behind.start < behind.end:
        copies.insert(1 if reference.broker == leader else 0, behind)
    comparison = Comparison(copies)
    try:
        differences = comparison.run()
    finally:
        for copy in copies:
            copy.close()
    parted = [Parted(f.broker, max(agreed[f.broker], f.start), f.end, reference.broker, f.epochs[-1][1]) for f in files if agreed[f.broker] < f.end]
    return differences, parted, comparison.compared
