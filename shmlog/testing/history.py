"""What clients did and saw, written down as it happens, and a checker that says what of it cannot be.

    history = History(path)                              # one file a process; survives kill -9 of it
    log = history.log("orders", 0)
    token = history.send(log, value_id(7, n))            # before the call
    history.ok(token, delivery.offset)                   # or fail(token); neither: the outcome is unknown, the record may be there 0 or 1 times
    history.read(log, record.offset, value, begin_ns)    # each record of a poll that began then
    ...
    assert not check(load(paths))                        # or: python -m shmlog.testing.history FILES

Every row is 64 bytes in a shared mapping. A row begins to exist when its kind is stored, after all the rest of it; an operation is complete when its
outcome is stored, after its results. So a writer that is killed anywhere leaves a row that is whole, absent or of unknown outcome, and nothing needs a
sync: the kernel has the bytes. Times are CLOCK_MONOTONIC, one clock for all processes of a machine, so that "ended before it began" holds across files.

The checker needs no search: offsets give the order, so every rule is a sort and a sweep, O(N log N), in numpy. A value is any 64-bit number that its
workload sends once (value_id makes them). tests/fault/history.h writes the same rows from C.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import mmap
import os
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

MAGIC = b"SHMLOGH\n"
VERSION = 1
HEADER = struct.Struct("<8sIII44x")  # magic, version, bytes of a row, pid
ROW = np.dtype(
    [
        ("kind", "u1"), ("outcome", "u1"), ("flags", "<u2"), ("log", "<u4"), ("client", "<u4"), ("epoch", "<u4"), ("value", "<u8"),
        ("offset", "<i8"), ("begin_ns", "<i8"), ("end_ns", "<i8"), ("extra", "<i8"), ("reserved", "<i8"),
    ]
)  # fmt: skip
_ROW = struct.Struct("<BBHIIIQqqqq8x")
_DONE = struct.Struct("<qqq")  # offset, begin_ns, end_ns: from byte 24 on
_NAME_BYTES = 40

# kind                 offset          value     epoch              extra           flags
NAME = 1  # of a log   -               -         -                  -               -       its name stands from byte 24 on
SEND = 2  #            given           id        producer epoch     crc             DISK, APPENDED
READ = 3  #            of the record   id        leader epoch       crc             -
SEEK = 4  #            next to be read -         -                  -               -       -1: anywhere (a reset, a new assignment)
GAP = 5  #             first           -         -                  how many        -       a typed error named these offsets as lost
MARK = 6  #            the word        -         -                  -               START .. END
LEADER = 7  #          -               who       leader epoch       -               -
COMMIT = 8  #          committed       group     generation         -               REWIND
COMMITTED = 9  #       seen            group     -                  -               -
FINAL = 10  #          from            -         -                  to              -       this client read all of [from, to) between begin and end
_KINDS = {NAME: "name", SEND: "send", READ: "read", SEEK: "seek", GAP: "gap", MARK: "mark", LEADER: "leader", COMMIT: "commit",
          COMMITTED: "committed", FINAL: "final"}  # fmt: skip

UNKNOWN, OK, FAIL = 0, 1, 2  # outcome
DISK = 1  # flags of SEND: the acknowledgement says durable
APPENDED = 2  # ... or no more than that the leader has it (acks=1 with several replicas)
REWIND = 1  # flags of COMMIT: lower than before, and meant so
START, DURABLE, SPILLED, STABLE, HIGH, END = range(6)  # flags of MARK, in the order in which they never cross
_MARKS = ("log start", "durable", "spilled", "last stable", "high watermark", "log end")

Rows = npt.NDArray[np.void]
Index = npt.NDArray[np.int64]


def value_id(producer: int, sequence: int) -> int:
    """A value's number: 24 bits of producer, 40 of sequence."""
    return producer << 40 | sequence


class History:
    """Writes one file, one thread at a time. `client` is a number below 65536 that names a handle of this process."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        self._bytes = 1 << 20
        os.posix_fallocate(self._fd, 0, self._bytes)  # a full disk is an OSError here and not a SIGBUS later
        self._memory = mmap.mmap(self._fd, self._bytes)
        self._memory[: HEADER.size] = HEADER.pack(MAGIC, VERSION, ROW.itemsize, os.getpid())
        self._at = HEADER.size
        self._logs: dict[str, int] = {}

    def _room(self, size: int = ROW.itemsize) -> int:
        at = self._at
        while at + size > self._bytes:
            more = self._bytes + min(self._bytes, 64 << 20)
            os.posix_fallocate(self._fd, 0, more)
            self._memory.resize(more)
            self._bytes = more
        self._at = at + size
        return at

    def _row(
        self, kind: int, outcome: int, flags: int, log: int, client: int, epoch: int, value: int, offset: int, begin: int, end: int, extra: int
    ) -> int:
        at = self._room()
        _ROW.pack_into(self._memory, at, 0, outcome, flags, log, client, epoch, value, offset, begin, end, extra)
        self._memory[at] = kind
        return at

    def log(self, topic: str, partition: int) -> int:
        """The number of a partition in this file."""
        return self.named(f"{topic}-{partition}")

    def named(self, name: str) -> int:
        """The number of anything that has an order or a leader of its own."""
        number = self._logs.get(name)
        if number is None:
            text = name.encode()
            if len(text) > _NAME_BYTES:  # two long names that differ stay two
                import zlib

                text = text[: _NAME_BYTES - 9] + b"~%08x" % zlib.crc32(text)
            number = self._logs[name] = len(self._logs)
            at = self._room()
            _ROW.pack_into(self._memory, at, 0, OK, 0, number, 0, 0, len(text), 0, 0, 0, 0)
            self._memory[at + 24 : at + 24 + len(text)] = text
            self._memory[at] = NAME
        return number

    def send(
        self, log: int, value: int, *, client: int = 0, epoch: int = 0, crc: int = 0,
        disk: bool = False, appended: bool = False, begin_ns: int | None = None,
    ) -> int:  # fmt: skip
        """Before the call. The token is for ok() or fail(), once it is known how it went."""
        flags, begin = DISK * disk | APPENDED * appended, time.monotonic_ns() if begin_ns is None else begin_ns
        return self._row(SEND, UNKNOWN, flags, log, client, epoch, value, -1, begin, 0, crc)

    def ok(self, token: int, offset: int, end_ns: int | None = None) -> None:
        _, begin, _ = _DONE.unpack_from(self._memory, token + 24)
        _DONE.pack_into(self._memory, token + 24, offset, begin, time.monotonic_ns() if end_ns is None else end_ns)
        self._memory[token + 1] = OK

    def fail(self, token: int, end_ns: int | None = None) -> None:
        """It is certain that nothing was appended. After a timeout or a lost connection nothing is certain: say nothing then."""
        _, begin, _ = _DONE.unpack_from(self._memory, token + 24)
        _DONE.pack_into(self._memory, token + 24, -1, begin, time.monotonic_ns() if end_ns is None else end_ns)
        self._memory[token + 1] = FAIL

    def read(
        self, log: int, offset: int, value: int, begin_ns: int, end_ns: int | None = None, *, client: int = 0, epoch: int = 0, crc: int = 0
    ) -> None:
        """One record that a poll returned which began at begin_ns."""
        end = time.monotonic_ns() if end_ns is None else end_ns
        self._row(READ, OK, 0, log, client, epoch, value, offset, begin_ns, end, crc)

    def seek(self, log: int, offset: int = -1, *, client: int = 0) -> None:
        """The next read of this client begins here; -1: anywhere."""
        now = time.monotonic_ns()
        self._row(SEEK, OK, 0, log, client, 0, 0, offset, now, now, 0)

    def gap(self, log: int, offset: int, count: int = 1, *, client: int = 0) -> None:
        now = time.monotonic_ns()
        self._row(GAP, OK, 0, log, client, 0, 0, offset, now, now, count)

    def mark(self, log: int, which: int, offset: int, begin_ns: int, end_ns: int | None = None, *, client: int = 0) -> None:
        """A watermark that was read. Those of one client with the same begin_ns are one look at all of them."""
        self._row(MARK, OK, which, log, client, 0, 0, offset, begin_ns, time.monotonic_ns() if end_ns is None else end_ns, 0)

    def leader(self, log: int, epoch: int, who: int, begin_ns: int, end_ns: int | None = None, *, client: int = 0) -> None:
        self._row(LEADER, OK, 0, log, client, epoch, who, 0, begin_ns, time.monotonic_ns() if end_ns is None else end_ns, 0)

    def commit(
        self, log: int, group: int, generation: int, offset: int, begin_ns: int, end_ns: int | None = None, *, client: int = 0, rewind: bool = False
    ) -> None:
        """A commit that was accepted."""
        end = time.monotonic_ns() if end_ns is None else end_ns
        self._row(COMMIT, OK, REWIND * rewind, log, client, generation, group, offset, begin_ns, end, 0)

    def committed(self, log: int, group: int, offset: int, begin_ns: int, end_ns: int | None = None, *, client: int = 0) -> None:
        self._row(COMMITTED, OK, 0, log, client, 0, group, offset, begin_ns, time.monotonic_ns() if end_ns is None else end_ns, 0)

    def final(self, log: int, begin_offset: int, end_offset: int, begin_ns: int, end_ns: int | None = None, *, client: int = 0) -> None:
        """This client's reads since begin_ns are all of [begin_offset, end_offset): what was acknowledged before and is not among them is lost."""
        end = time.monotonic_ns() if end_ns is None else end_ns
        self._row(FINAL, OK, 0, log, client, 0, 0, begin_offset, begin_ns, end, end_offset)

    def close(self) -> None:
        self._memory.close()
        os.ftruncate(self._fd, self._at)
        os.close(self._fd)

    def __enter__(self) -> History:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclasses.dataclass(frozen=True)
class Anomaly:
    """Something that happened and must not. `kind` is one of KINDS; the operations are the evidence, as lines that name file and row."""

    kind: str
    log: str
    message: str
    operations: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n    ".join([f"{self.kind}: {self.log}: {self.message}", *self.operations])


KINDS = {
    "altered": "a record's bytes are not those that were sent",
    "commit_back": "a group's committed offset was moved back",
    "commit_lost": "a group's committed offset was seen lower than one that had been acknowledged or seen",
    "damaged": "an acknowledged record was named as lost by a typed error",
    "duplicate": "a value stands at two offsets",
    "epoch_back": "a lower leader epoch was seen after a higher one",
    "failed_but_there": "a send that failed for certain was read",
    "from_the_future": "a record was read before its send began",
    "hole": "an offset of the log holds nothing",
    "inconsistent_offset": "two values were seen at one offset",
    "lost": "what was acknowledged or read before is not in the final read",
    "malformed": "the history itself cannot be",
    "misplaced": "a value was read at another offset than the one its acknowledgement named",
    "non_monotonic": "a consumer went back without a seek",
    "phantom": "a value was read that nobody sent there",
    "real_time": "a send that began after another had ended stands before it",
    "reordered": "two sends of one producer changed places",
    "seek_missed": "the first record after a seek lies before it",
    "skipped": "a consumer passed over offsets",
    "stale_commit": "a commit of an older generation was accepted after one of a newer one",
    "two_leaders": "two leaders of one epoch",
    "value_reused": "a workload sent one value twice",
    "watermark_back": "a watermark went back",
    "watermark_behind": "a watermark lay below what had been acknowledged or read",
    "watermarks_crossed": "of the watermarks of one look a lower one lay above a higher one",
}


class Operations:
    """The rows of several histories as one: logs and clients are numbered anew so that they are the same, or different, across files."""

    def __init__(self, rows: Rows, files: list[str], first: list[int], logs: list[str]) -> None:
        self.rows, self.files, self._first, self.logs = rows, files, first, logs

    def describe(self, index: int) -> str:
        row = self.rows[index]
        file = int(np.searchsorted(self._first, index, side="right")) - 1
        kind = int(row["kind"])
        where = f"{self.files[file]} row {index - self._first[file]}" if self.files else f"row {index}"
        what = _KINDS.get(kind, f"kind {kind}")
        if kind == SEND:
            what += f" ({('unknown', 'ok', 'failed')[row['outcome']] if row['outcome'] < 3 else row['outcome']})"
        if kind == MARK and row["flags"] < len(_MARKS):
            what += f" {_MARKS[row['flags']]}"
        facts = [f"client {int(row['client']) & 0xFFFF}"]
        if kind in (SEND, READ):
            facts.append(f"value {int(row['value']) >> 40}.{int(row['value']) & (1 << 40) - 1}")
        if kind in (LEADER, COMMIT, COMMITTED):
            facts.append(f"{'who' if kind == LEADER else 'group'} {row['value']}")
        if kind in (LEADER, COMMIT) or row["epoch"]:
            facts.append(f"{'generation' if kind == COMMIT else 'epoch'} {row['epoch']}")
        if kind != LEADER:
            facts.append(f"offset {row['offset']}")
        if kind in (SEND, READ) and row["extra"]:
            facts.append(f"crc {int(row['extra']) & 0xFFFFFFFF:08x}")
        if kind in (GAP, FINAL):
            facts.append(f"{'count' if kind == GAP else 'to'} {row['extra']}")
        return f"{where}: {what}, {', '.join(facts)}, from {row['begin_ns']} to {row['end_ns'] if row['outcome'] else '?'} ns"


def load(paths: Iterable[str | os.PathLike[str]]) -> Operations:
    """Reads histories, of live or dead writers. Raises ValueError for what is none."""
    parts: list[Rows] = []
    files: list[str] = []
    first: list[int] = []
    logs: dict[str, int] = {}
    total = 0
    for number, path in enumerate(paths):
        data = Path(path).read_bytes()
        if not data[: HEADER.size].strip(b"\0"):
            data = HEADER.pack(MAGIC, VERSION, ROW.itemsize, 0)  # its writer was killed while it made the file
        if len(data) < HEADER.size or data[:8] != MAGIC:
            raise ValueError(f"{path} is no history of operations ({len(data)} bytes)")
        _, version, row_bytes, _ = HEADER.unpack_from(data)
        if (version, row_bytes) != (VERSION, ROW.itemsize):
            raise ValueError(f"{path} is a history of version {version} with rows of {row_bytes} bytes; this is version {VERSION} with {ROW.itemsize}")
        count = (len(data) - HEADER.size) // ROW.itemsize  # a torn last row is none
        rows = np.frombuffer(data, ROW, count, HEADER.size)
        empty = np.flatnonzero(rows["kind"] == 0)
        rows = rows[: empty[0]].copy() if len(empty) else rows.copy()  # what follows is the room that was kept ready
        names = np.flatnonzero(rows["kind"] == NAME)
        renumber = np.full(int(rows["log"].max(initial=0)) + 1, -1, np.int64)
        for i in names:
            at = HEADER.size + int(i) * ROW.itemsize + 24
            name = data[at : at + min(int(rows["value"][i]), _NAME_BYTES)].decode(errors="replace")
            renumber[rows["log"][i]] = logs.setdefault(name, len(logs))
        log = renumber[rows["log"]]
        if (log < 0).any():
            raise ValueError(f"{path}: row {int(np.flatnonzero(log < 0)[0])} is of a log that has no name")
        rows["log"] = log
        rows["client"] = (rows["client"] & 0xFFFF) | np.uint32(number << 16)
        parts.append(rows)
        files.append(Path(path).name)
        first.append(total)
        total += len(rows)
    return Operations(np.concatenate(parts) if parts else np.zeros(0, ROW), files, first, list(logs))


def _runs(key: npt.NDArray[Any]) -> Iterator[slice]:
    """The runs of equal values in a sorted array."""
    if not len(key):
        return
    edges = np.flatnonzero(key[1:] != key[:-1]) + 1
    for begin, end in zip([0, *edges.tolist()], [*edges.tolist(), len(key)], strict=True):
        yield slice(begin, end)


def _overtaken(
    ended: npt.NDArray[Any], reached: npt.NDArray[Any], began: npt.NDArray[Any], level: npt.NDArray[Any], at_most: int = 0
) -> tuple[Index, Index]:
    """The one sweep behind all real-time rules: which of (began, level) began after some (ended, reached) had ended, and yet has
    level < reached + at_most. Returns the later ones and, for each, the earlier one that reached highest."""
    if not len(ended) or not len(began):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    order = np.argsort(ended, kind="stable")
    highest = np.maximum.accumulate(reached[order])
    new = np.concatenate([[True], highest[1:] != highest[:-1]])
    holder = np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))  # who holds the highest up to here
    before = np.searchsorted(ended[order], began, side="left") - 1  # the last that ended strictly before
    later = np.flatnonzero((before >= 0) & (highest[np.maximum(before, 0)] + at_most > level))
    return later, order[holder[before[later]]]


def _in_ranges(offsets: npt.NDArray[Any], first: npt.NDArray[Any], count: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    if not len(first):
        return np.zeros(len(offsets), np.bool_)
    order = np.argsort(first, kind="stable")
    ends = np.maximum.accumulate((first + count)[order])
    at = np.searchsorted(first[order], offsets, side="right") - 1
    return np.asarray((at >= 0) & (offsets < ends[np.maximum(at, 0)]))


class _Check:
    """One log's rows against all rules. `index` are the places of its rows in the whole, in order."""

    def __init__(self, operations: Operations, index: Index, report: Callable[[str, str, list[int]], None], gaps: bool) -> None:
        self.all, self.index, self.report, self.gaps = operations, index, report, gaps
        self.rows = operations.rows[index]
        kind = self.rows["kind"]
        self.send, self.read = np.flatnonzero(kind == SEND), np.flatnonzero(kind == READ)
        self.of = {k: np.flatnonzero(kind == k) for k in (MARK, LEADER, COMMIT, COMMITTED, FINAL, GAP)}
        self.acknowledged = self.send[self.rows["outcome"][self.send] == OK]

    def say(self, kind: str, text: Callable[..., str], places: Iterable[Any]) -> None:
        """One anomaly for each of the places: tuples of local row numbers."""
        for place in places:
            local = [int(i) for i in (place if isinstance(place, tuple) else (place,))]
            self.report(kind, text([self.rows[i] for i in local]), [int(self.index[i]) for i in local])

    def run(self) -> None:
        self.values()
        self.places()
        self.final()
        self.consumers()
        self.order()
        self.watermarks()
        self.leaders()
        self.groups()

    def values(self) -> None:
        """Each record read against the send it came from. Leaves `offset` of every send: acknowledged or read."""
        rows, send, read = self.rows, self.send, self.read
        by_value = send[np.argsort(rows["value"][send], kind="stable")]
        sorted_values = rows["value"][by_value]
        at = np.minimum(np.searchsorted(sorted_values, rows["value"][read]), max(len(by_value) - 1, 0))
        found = sorted_values[at] == rows["value"][read] if len(by_value) else np.zeros(len(read), np.bool_)
        self.say("phantom", lambda r: f"nobody sent the value that was read at offset {r[0]['offset']}", read[~found])
        read = read[found]
        origin = by_value[at[found]] if len(by_value) else read
        failed = rows["outcome"][origin] == FAIL
        self.say("failed_but_there", lambda r: f"the send failed, its record was read at offset {r[1]['offset']}", _pairs(origin[failed], read[failed]))
        early = rows["end_ns"][read] < rows["begin_ns"][origin]
        self.say(
            "from_the_future",
            lambda r: f"offset {r[1]['offset']} was read {r[0]['begin_ns'] - r[1]['end_ns']} ns before its send began",
            _pairs(origin[early], read[early]),
        )
        altered = (rows["extra"][origin] != 0) & (rows["extra"][read] != 0) & (rows["extra"][origin] != rows["extra"][read])
        self.say("altered", lambda r: f"the record at offset {r[1]['offset']} has other bytes than were sent", _pairs(origin[altered], read[altered]))
        moved = (rows["outcome"][origin] == OK) & (rows["offset"][origin] != rows["offset"][read])
        self.say(
            "misplaced", lambda r: f"acknowledged at offset {r[0]['offset']}, read at {r[1]['offset']}", _pairs(origin[moved], read[moved])
        )
        self.offset = np.where(rows["outcome"] == OK, rows["offset"], -1)
        unknown = rows["outcome"][origin] == UNKNOWN
        self.offset[origin[unknown]] = rows["offset"][read[unknown]]

    def places(self) -> None:
        """No two values at one offset, no value at two."""
        rows = self.rows
        both = np.concatenate([self.acknowledged, self.read])
        for kind, of, key, other, text in (
            ("inconsistent_offset", both, "offset", "value", "offset {0[offset]} holds two values"),
            ("duplicate", self.read, "value", "offset", "the value at offset {0[offset]} is at offset {1[offset]} too"),
        ):
            order = of[np.lexsort((rows[other][of], rows[key][of]))]
            same = (rows[key][order][1:] == rows[key][order][:-1]) & (rows[other][order][1:] != rows[other][order][:-1])
            self.say(kind, lambda r, text=text: text.format(r[0], r[1]), _pairs(order[:-1][same], order[1:][same]))

    def final(self) -> None:
        rows, gap = self.rows, self.of[GAP]
        named = _in_ranges(rows["offset"][self.acknowledged], rows["offset"][gap], rows["extra"][gap])
        self.say("damaged", lambda r: f"the acknowledged record at offset {r[0]['offset']} was named as lost", self.acknowledged[named])
        kept = self.acknowledged[~named]
        if not len(self.of[FINAL]):  # then what lies between the first and the last offset that was read
            if len(self.read):
                low, high = rows["offset"][self.read].min(), rows["offset"][self.read].max()
                kept = kept[(rows["offset"][kept] >= low) & (rows["offset"][kept] <= high)]
                kept = kept[~np.isin(rows["value"][kept], rows["value"][self.read])]
                self.say("lost", lambda r: f"acknowledged at offset {r[0]['offset']}, passed over by every reader", kept)
            return
        for f in self.of[FINAL]:
            begin, end, low, high = (int(rows[name][f]) for name in ("begin_ns", "end_ns", "offset", "extra"))
            mine = self.read[rows["client"][self.read] == rows["client"][f]]
            mine = mine[(rows["begin_ns"][mine] >= begin) & (rows["end_ns"][mine] <= end)]
            there = rows["value"][mine]
            for what, candidates in (("acknowledged", kept), ("read", self.read)):
                due = candidates[(rows["end_ns"][candidates] < begin) & (rows["offset"][candidates] >= low)]
                due = due[~np.isin(rows["value"][due], there)]
                due = due[np.unique(rows["value"][due], return_index=True)[1]]
                if what == "read":
                    due = due[~np.isin(rows["value"][due], rows["value"][kept])]  # said already, or damaged
                    due = due[~_in_ranges(rows["offset"][due], rows["offset"][gap], rows["extra"][gap])]
                self.say(
                    "lost",
                    lambda r, what=what, low=low, high=high: f"{what} at offset {r[0]['offset']}, not in the final read of {low} to {high}",
                    [(d, f) for d in due],
                )
            if not self.gaps and high > low:
                seen = np.unique(rows["offset"][mine])
                missing = np.setdiff1d(np.arange(low, high), seen, assume_unique=True)
                missing = missing[~_in_ranges(missing, rows["offset"][gap], rows["extra"][gap])]
                for offset in missing:
                    self.report("hole", f"offset {offset} of {low} to {high} holds nothing", [int(self.index[f])])

    def consumers(self) -> None:
        """Each client's reads follow each other, from where it said it would begin."""
        rows = self.rows
        steps = np.flatnonzero(np.isin(rows["kind"], (READ, SEEK, GAP)))
        steps = steps[np.argsort(rows["client"][steps], kind="stable")]
        kind, offset = rows["kind"][steps], rows["offset"][steps]
        after = np.where(kind == READ, offset + 1, np.where(kind == GAP, offset + rows["extra"][steps], offset))
        same = (rows["client"][steps][1:] == rows["client"][steps][:-1]) & (kind[1:] == READ) & (after[:-1] >= 0)
        back, over = same & (offset[1:] < after[:-1]), same & (offset[1:] > after[:-1])
        sought = kind[:-1] == SEEK
        before, now = steps[:-1], steps[1:]
        self.say(
            "seek_missed", lambda r: f"offset {r[1]['offset']} after a seek to {r[0]['offset']}", _pairs(before[back & sought], now[back & sought])
        )
        self.say(
            "non_monotonic", lambda r: f"offset {r[1]['offset']} after offset {r[0]['offset']}", _pairs(before[back & ~sought], now[back & ~sought])
        )
        if not self.gaps:
            self.say("skipped", lambda r: f"offset {r[1]['offset']} after offset {r[0]['offset']}", _pairs(before[over], now[over]))

    def order(self) -> None:
        rows = self.rows
        known = self.send[self.offset[self.send] >= 0]
        mine = known[np.argsort(rows["client"][known], kind="stable")]  # a client's rows stand in the order of its calls
        swapped = (rows["client"][mine][1:] == rows["client"][mine][:-1]) & (self.offset[mine][1:] < self.offset[mine][:-1])
        self.say("reordered", lambda r: "a later call of one producer stands before an earlier one", _pairs(mine[:-1][swapped], mine[1:][swapped]))
        ended = np.concatenate([self.acknowledged, self.read])
        later, earlier = _overtaken(rows["end_ns"][ended], rows["offset"][ended], rows["begin_ns"][known], self.offset[known])
        self.say(
            "real_time",
            lambda r: f"offset {r[0]['offset']} was there {r[1]['begin_ns'] - r[0]['end_ns']} ns before the send began that got a lower one",
            _pairs(ended[earlier], known[later]),
        )

    def watermarks(self) -> None:
        rows, marks, final = self.rows, self.of[MARK], self.of[FINAL]
        for which in range(START, END + 1):
            mark = marks[rows["flags"][marks] == which]
            level = rows["offset"][mark]
            if which in (HIGH, END):
                mark, level = np.concatenate([mark, final]), np.concatenate([level, rows["extra"][final]])
            name = _MARKS[which]
            begin, end = rows["begin_ns"][mark], rows["end_ns"][mark]
            later, earlier = _overtaken(end, level, begin, level)
            self.say("watermark_back", lambda r, name=name: f"{name} went back", _pairs(mark[earlier], mark[later]))
            if which in (HIGH, STABLE, END):
                said = self.acknowledged if which == END else self.acknowledged[(rows["flags"][self.acknowledged] & APPENDED) == 0]
                below = np.concatenate([said, self.read])
            elif which == DURABLE:
                below = self.acknowledged[(rows["flags"][self.acknowledged] & DISK) != 0]
            else:
                continue
            later, earlier = _overtaken(rows["end_ns"][below], rows["offset"][below], begin, level, at_most=1)
            self.say(
                "watermark_behind",
                lambda r, name=name: f"{name} was seen at or below offset {r[0]['offset']}, which was there before",
                _pairs(below[earlier], mark[later]),
            )
        look = marks[np.lexsort((rows["flags"][marks], rows["begin_ns"][marks], rows["client"][marks]))]
        one = (rows["client"][look][1:] == rows["client"][look][:-1]) & (rows["begin_ns"][look][1:] == rows["begin_ns"][look][:-1])
        crossed = one & (rows["offset"][look][1:] < rows["offset"][look][:-1]) & (rows["flags"][look][1:] != rows["flags"][look][:-1])
        self.say(
            "watermarks_crossed",
            lambda r: f"{_MARKS[r[0]['flags']]} {r[0]['offset']} is above {_MARKS[r[1]['flags']]} {r[1]['offset']}",
            _pairs(look[:-1][crossed], look[1:][crossed]),
        )

    def leaders(self) -> None:
        rows, seen = self.rows, self.of[LEADER]
        order = seen[np.lexsort((rows["value"][seen], rows["epoch"][seen]))]
        two = (rows["epoch"][order][1:] == rows["epoch"][order][:-1]) & (rows["value"][order][1:] != rows["value"][order][:-1])
        self.say(
            "two_leaders",
            lambda r: f"epoch {r[0]['epoch']} had the leaders {r[0]['value']} and {r[1]['value']}",
            _pairs(order[:-1][two], order[1:][two]),
        )
        epoch = rows["epoch"][seen].astype(np.int64)
        later, earlier = _overtaken(rows["end_ns"][seen], epoch, rows["begin_ns"][seen], epoch)
        self.say("epoch_back", lambda r: f"epoch {r[1]['epoch']} after epoch {r[0]['epoch']}", _pairs(seen[earlier], seen[later]))

    def groups(self) -> None:
        rows = self.rows
        both = np.concatenate([self.of[COMMIT], self.of[COMMITTED]])
        both = both[np.argsort(rows["value"][both], kind="stable")]
        for run in _runs(rows["value"][both]):
            mine = both[run]
            commit, fetch = mine[rows["kind"][mine] == COMMIT], mine[rows["kind"][mine] == COMMITTED]
            generation = rows["epoch"][commit].astype(np.int64)
            later, earlier = _overtaken(rows["end_ns"][commit], generation, rows["begin_ns"][commit], generation)
            self.say(
                "stale_commit",
                lambda r: f"generation {r[1]['epoch']} was allowed to commit after generation {r[0]['epoch']}",
                _pairs(commit[earlier], commit[later]),
            )
            if (rows["flags"][commit] & REWIND).any():
                continue  # then lower is no sign
            for kind, first, then, text in (
                ("commit_back", commit, commit, "{1[offset]} was committed after {0[offset]}"),
                ("commit_lost", mine, fetch, "{1[offset]} is what the group had after {0[offset]}"),
            ):
                later, earlier = _overtaken(rows["end_ns"][first], rows["offset"][first], rows["begin_ns"][then], rows["offset"][then])
                self.say(kind, lambda r, text=text: text.format(r[0], r[1]), _pairs(first[earlier], then[later]))


def _pairs(a: Any, b: Any) -> Iterator[tuple[int, int]]:
    return zip(a.tolist(), b.tolist(), strict=True)


def check(operations: Operations, *, gaps: bool = False, most: int = 20) -> list[Anomaly]:
    """All that cannot be, at most `most` of a kind in a log (one more says how many there were). gaps: offsets without a record are expected
    (compaction, drop_oldest, transactions)."""
    found: list[Anomaly] = []
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    rows = operations.rows

    def reporter(log: str) -> Callable[[str, str, list[int]], None]:
        def report(kind: str, message: str, places: list[int]) -> None:
            counts[kind, log] += 1
            if counts[kind, log] <= most:
                found.append(Anomaly(kind, log, message, tuple(operations.describe(i) for i in places)))

        return report

    everywhere = reporter("all logs")
    bad = ~np.isin(rows["kind"], list(_KINDS)) | (rows["outcome"] > FAIL)
    bad |= (rows["outcome"] != UNKNOWN) & (rows["end_ns"] < rows["begin_ns"]) & (rows["kind"] != NAME)
    bad |= (rows["kind"] == SEND) & (rows["outcome"] == OK) & (rows["offset"] < 0)
    for i in np.flatnonzero(bad):
        everywhere("malformed", "this can be no operation", [int(i)])
    sends = np.flatnonzero((rows["kind"] == SEND) & ~bad)
    sends = sends[np.argsort(rows["value"][sends], kind="stable")]
    for i in np.flatnonzero(rows["value"][sends][1:] == rows["value"][sends][:-1]):
        everywhere("value_reused", "two sends have one value: nothing can be said of it", [int(sends[i]), int(sends[i + 1])])
    good = np.flatnonzero(~bad & (rows["kind"] != NAME))
    good = good[np.argsort(rows["log"][good], kind="stable")]
    for run in _runs(rows["log"][good]):
        log = operations.logs[int(rows["log"][good[run.start]])]
        _Check(operations, good[run], reporter(log), gaps).run()
    for (kind, log), count in counts.items():
        if count > most:
            found.append(Anomaly(kind, log, f"{count - most} more of this kind"))
    return found


def summary(operations: Operations) -> str:
    rows = operations.rows
    sends = rows["kind"] == SEND
    parts = [f"{len(rows)} operations of {len(operations.files)} processes on {len(operations.logs)} logs"]
    for outcome, word in ((OK, "acknowledged"), (FAIL, "failed"), (UNKNOWN, "of unknown outcome")):
        parts.append(f"{int((sends & (rows['outcome'] == outcome)).sum())} sends {word}")
    parts.append(f"{int((rows['kind'] == READ).sum())} records read")
    return ", ".join(parts)


def main(arguments: list[str] | None = None) -> int:
    about = "Checks histories of operations; exit 1 if something cannot be, 2 if a file is none."
    parser = argparse.ArgumentParser(prog="python -m shmlog.testing.history", description=about)
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--gaps", action="store_true", help="offsets without a record are expected (compaction, drop_oldest, transactions)")
    parser.add_argument("--most", type=int, default=20, metavar="N", help="show at most N of a kind in a log")
    options = parser.parse_args(arguments)
    try:
        operations = load(options.files)
    except (OSError, ValueError) as error:
        print(f"history: {error}", file=sys.stderr)
        return 2
    anomalies = check(operations, gaps=options.gaps, most=options.most)
    with contextlib.suppress(BrokenPipeError):
        for anomaly in anomalies:
            print(anomaly)
        print(f"{summary(operations)}: {f'{len(anomalies)} anomalies' if anomalies else 'nothing that cannot be'}")
    return 1 if anomalies else 0


if __name__ == "__main__":
    sys.exit(main())
