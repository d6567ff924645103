"""`verify`: checks every invariant of memory and disk, and never writes anything.

Memory is checked from private copies (pread of the objects), while the cluster goes on: cells are copied before the arena they name, so whatever a cell
promises is there; and a finding counts only if it is found again. What is recycled or moved in between is passed over, because what replaced it was
written by the same rules. A finding about something that heals by itself in a living cluster (a dead client's row, a buffer on its way into the pool)
counts when it is still there after SETTLE_S.

Disk is checked file by file with sl_file_verify(), and the chain of files against each other and against the words in memory; the replicas of a
partition are compared record by record (replicas.py).
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

from shmlog import config, proc, shm
from shmlog._ffi import check, ffi, lib
from shmlog.broker import recovery
from shmlog.errors import IllegalArgumentError, NoBrokersAvailable, ShmlogError, StorageError
from shmlog.messages import ClusterView, TopicView
from shmlog.tools import replicas, status

CONFIRMATIONS = 3  # how often a finding in a living cluster is looked at again
PAUSE_S = 0.02
SETTLE_S = 3.0  # a broker keeps free buffers for about a second, a coordinator cleans rows in milliseconds
PROBLEMS_PER_FILE = 100

UNIT = lib.SL_UNIT_BYTES
SLOTS = lib.SL_DIR_SLOTS
NUMBER_MASK = 2**40 - 1
OFFSET_MASK = 2**48 - 1
DIR_MASK = 2**44 - 1  # number and buffer of a directory word; above them the epoch, which a new leader changes
MAGIC = b"SHMLOG\r\n"
SEGMENT_HEADER_BYTES = lib.SL_SEGMENT_HEADER_BYTES
PHASES = {  # of sl_segment.claim
    lib.SL_SEGMENT_FREE: "free", lib.SL_SEGMENT_LIVE: "live", lib.SL_SEGMENT_LIMBO: "in limbo", lib.SL_SEGMENT_DEAD: "dead",
    lib.SL_SEGMENT_HELD: "being recycled", lib.SL_SEGMENT_TRY: "claimed",
}  # fmt: skip


class Problem(NamedTuple):
    where: str  # what a person looks for: a partition, an object, a file
    kind: str  # the same damage found again has the same where and kind
    what: str
    data: dict[str, Any] | None = None  # the same for a program, where there is more to it

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"

    def as_dict(self) -> dict[str, Any]:
        return {"where": self.where, "kind": self.kind, "what": self.what, **(self.data or {})}


class Report:
    """What was looked at and what was found."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.notes: list[Problem] = []  # nothing wrong, but worth a line: torn tails, what the next start cleans
        self.counts = {
            "partitions": 0, "segments": 0, "frames_in_memory": 0, "files": 0, "frames_on_disk": 0, "file_bytes": 0, "records_compared": 0,
        }  # fmt: skip

    def add(self, other: Report) -> None:
        self.problems += other.problems
        self.notes += other.notes
        for name, count in other.counts.items():
            self.counts[name] += count

    def as_dict(self) -> dict[str, Any]:
        return {
            "clean": not self.problems,
            "problems": [p.as_dict() for p in self.problems],
            "notes": [p.as_dict() for p in self.notes],
            **self.counts,
        }


def code_text(code: int) -> str:
    return str(ffi.string(lib.sl_strerror(code)).decode())


# --- verify ------------------------------------------------------------------------------------------------------------


def verify_cluster(address: config.Address) -> Report:
    """Memory and disk of a cluster, or its disk alone when the memory is gone. NoBrokersAvailable if there is neither."""
    report = Report()
    try:
        with status.Attached(address.cluster) as attached:
            _Memory(attached, report).run()
    except NoBrokersAvailable:
        view = status.last_data(address.cluster)
        if view is None:
            raise
        for topic in view.topics.values():
            for n in range(len(topic.partitions)):
                for directory in _directories(view, topic, n):
                    report.counts["partitions"] += 1
                    _check_directory(report, directory, topic.topic_id, n)
                _compare_replicas(report, view, topic, n, live=False)
    return report


def verify_path(path: str) -> Report:
    """A .log file, or all files below a directory."""
    report = Report()
    if os.path.isdir(path):
        replicas_of: dict[str, list[tuple[int, str]]] = {}  # a partition's directory has the same name at each broker
        for directory, _, names in sorted(os.walk(path)):
            if os.path.basename(directory) != "rewrite" and any(status.file_key(name) for name in names if name.endswith(".log")):
                report.counts["partitions"] += 1
                _check_directory(report, directory)
                above, name = os.path.split(directory)
                role, _, broker = os.path.basename(above).partition("-")
                replicas_of.setdefault(name, []).append((int(broker) if role == "broker" and broker.isdecimal() else -1, directory))
        for name, directories in replicas_of.items():
            brokers = [broker for broker, _ in directories]
            head, _, id_hex = name.rpartition("-")
            topic, _, number = head.rpartition("-")
            if len(set(brokers) - {-1}) == len(brokers) > 1 and number.isdecimal() and len(id_hex) >= 8:
                _compare_directories(report, topic.replace("~", "/"), int(number), directories)
        if not replicas_of:
            raise IllegalArgumentError(f"{path} holds no segment files (<base>-<leader epoch>.log)")
    elif path.endswith(".log"):
        if not os.path.exists(path):
            raise IllegalArgumentError(f"{path} does not exist")
        _check_file(report, os.path.dirname(path) or ".", os.path.basename(path), _Facts())
    else:
        raise IllegalArgumentError(f"{path} is not a directory and not a .log file", hint="to look at a segment in memory: `shmlog dump`")
    return report


def _compare_replicas(
    report: Report, view: ClusterView, topic: TopicView, n: int, *, live: bool, memory: Callable[[], list[Segment]] | None = None
) -> None:
    p = topic.partitions[n]
    directories = [(replica, directory) for replica in p.replicas if (directory := status.directory_of(view, topic, n, replica))]
    # Without memory nobody leads: the longest will, whatever the last view says.
    leader = p.leader if memory is not None and p.leader >= 0 else None
    _compare_directories(report, topic.name, n, directories, leader, live=live, memory=memory)


def _compare_directories(
    report: Report, topic: str, n: int, directories: list[tuple[int, str]], leader: int | None = None, *,
    live: bool = False, memory: Callable[[], list[Segment]] | None = None,
) -> None:  # fmt: skip
    if len(directories) < 2:
        return
    found, parted, compared = replicas.compare(directories, leader, memory)
    place = f"{topic}-{n}"
    report.counts["records_compared"] += compared
    report.problems += [Problem(place, f"replica {d.offset} {','.join(d.differs)}", d.text, d.data(topic, n)) for d in found]
    if len(found) >= replicas.DIFFERENCES_MAX:
        report.problems.append(Problem(place, "replicas more", f"these are the first {len(found)} differences; the rest was not compared"))
    if not live:  # else it is under way
        for q in parted:
            what = f"broker {q.broker} has offsets {q.start} to {q.end - 1} of a log that ended (leader epoch {q.leader_epoch})"
            report.notes.append(Problem(place, f"parted {q.broker}", f"{what}, not broker {q.reference}'s: they are cut off when it follows again"))


def _directories(view: ClusterView, topic: TopicView, n: int) -> list[str]:
    found = [status.directory_of(view, topic, n, replica) for replica in topic.partitions[n].replicas] or [status.directory_of(view, topic, n)]
    return [directory for directory in dict.fromkeys(found) if directory]


# --- verify: memory ----------------------------------------------------------------------------------------------------


class _Memory:
    """One pass over a cluster's shared memory."""

    def __init__(self, attached: status.Attached, report: Report) -> None:
        self.attached = attached
        self.prefix = attached.prefix
        self.cluster = attached.handle
        self.control = attached.control
        self.report = report
        self.live = attached.live()

    def run(self) -> None:
        view = self._view()
        self._settled(self._tables)
        if view is not None:
            for topic in view.topics.values():
                for n in range(len(topic.partitions)):
                    self.report.counts["partitions"] += 1
                    self._confirmed(self._looks_at(topic, n))
                    self._files(view, topic, n)
        self._settled(self._rows)
        self._settled(self._objects)

    def _confirmed(self, look: Callable[[], list[Problem]], tries: int = CONFIRMATIONS, pause: float = PAUSE_S) -> list[Problem]:
        """Findings that stand each time they are looked for; once is enough when nobody is there to change anything."""
        found = look()
        for _ in range(tries if self.live else 0):
            if not found:
                break
            time.sleep(pause)
            again = look()
            seen = {(p.where, p.kind) for p in found}
            found = [p for p in again if (p.where, p.kind) in seen]
        self.report.problems += found
        return found

    def _looks_at(self, topic: TopicView, n: int) -> Callable[[], list[Problem]]:
        """Of one partition's memory: the first by the view at hand, each later one by the view in force then."""
        by: list[TopicView] = [topic]

        def look() -> list[Problem]:
            now = (None, by.pop()) if by else self._now(topic, n)
            return [] if now is None else self._partition(now[1], n)

        return look

    def _settled(self, look: Callable[[], list[Problem]]) -> None:
        self._confirmed(look, tries=10, pause=SETTLE_S / 10)

    def _view(self) -> ClusterView | None:
        try:
            view = self.attached.view()
        except NoBrokersAvailable:
            raise
        except ShmlogError as exc:
            self.report.problems.append(Problem("metadata", "view", str(exc)))
            return None
        if view.cluster_id != bytes(self.control.header.cluster_id):
            self.report.problems.append(Problem("metadata", "cluster id", "the metadata belongs to another cluster id than the control object"))
        return view

    def _tables(self) -> list[Problem]:
        found = []
        for table in shm.TABLES:
            name = shm.object_name(self.prefix, table.suffix)
            data = shm.read(name, lib.SL_TABLE_HEADER_BYTES)
            if data is None:
                found.append(Problem(name, "missing", "the object is gone"))
                continue
            code = shm.checked(data, table.kind, table.max_bytes)
            if code < 0:
                found.append(Problem(name, "header", f"its header: {code_text(code)}"))
                continue
            head = ffi.from_buffer("sl_table *", data)
            if not head.used <= head.allocated <= table.max_entries:
                found.append(Problem(name, "entries", f"used {head.used}, allocated {head.allocated}, possible {table.max_entries}"))
        return found

    # --- partitions ---

    def _partition(self, topic: TopicView, n: int) -> list[Problem]:
        """Words, directory and segments of one partition."""
        place = f"{topic.name}-{n}"
        block = topic.partitions[n].block
        words = lib.sl_cluster_partition(self.cluster, block)
        if not words:
            return [Problem(place, "block", f"its block {block} lies outside the table")]
        found = []
        if bytes(words.topic_id) != topic.topic_id or words.partition != n:
            return [Problem(place, "owner", f"block {block} belongs to topic {bytes(words.topic_id).hex()} partition {words.partition}")]
        if words.state != lib.SL_PARTITION_LIVE:
            found.append(Problem(place, "state", f"its state is {words.state}, not live"))
        epoch = int(words.leader_epoch)
        # The metadata is ahead until a broker has opened the epoch; never behind, or somebody led without being chosen.
        if epoch > topic.partitions[n].leader_epoch:
            what = f"its leader epoch {epoch} was never granted: the metadata says {topic.partitions[n].leader_epoch}"
            found.append(Problem(place, "leader epoch", what))
        cur = int(words.cur)
        number = cur & NUMBER_MASK
        if (number == 0 or cur >> 40 & 1) and words.storage_state == lib.SL_STORAGE_DISK_ERROR:
            found.append(Problem(place, "closed", "its broker cannot open its files; its log says why"))
        if number == 0:
            return found  # never opened
        if not cur >> 40 & 1 and cur >> 41 != epoch & 0x7FFFFF:
            found.append(Problem(place, "cur", f"the active segment carries leader epoch {cur >> 41}, the partition {epoch}"))
        for name in ("high_watermark", "last_stable", "spilled", "durable", "log_start"):
            tag = int(getattr(words, name)) >> 48
            if tag != epoch & 0xFFFF:
                found.append(Problem(place, name, f"{name} was written under leader epoch {tag}, the partition has {epoch & 0xFFFF}"))
        return found + self._words(place, block, words) + self._ring(place, topic, n, words)

    def _words(self, place: str, block: int, words: Any) -> list[Problem]:
        """Invariant 4. sl_log_offsets() reads in an order in which it must hold."""
        code, o = self.attached.offsets(block)
        if code < 0:
            return [Problem(place, "offsets", f"its offsets cannot be read: {code_text(code)}")]
        # Without a disk `spilled` and `durable` mean nothing.
        pairs = [("log_start", "last_stable"), ("last_stable", "high_watermark"), ("high_watermark", "end")]
        if words.flags & lib.SL_PF_SPILL:
            pairs += [("durable", "spilled"), ("spilled", "end")]
        return [
            Problem(place, f"{low} <= {high}", f"{low} {getattr(o, low)} is beyond {high} {getattr(o, high)}")
            for low, high in pairs
            if getattr(o, low) > getattr(o, high)
        ]

    def _ring(self, place: str, topic: TopicView, n: int, words: Any) -> list[Problem]:
        """The directory against `cur`, each segment, and the chain of their bases."""
        found = []
        cur = int(words.cur)
        active = cur & NUMBER_MASK
        directory: dict[int, tuple[int, int]] = {}  # number -> (buffer, word)
        for slot, word in enumerate(int(w) for w in words.dir):
            buffer, low = word & 0xFFFFFFF, word >> 28 & 0xFFFF
            if not buffer:
                continue
            number = active + ((low - active + 0x8000) & 0xFFFF) - 0x8000  # the whole number whose low bits these are, near the active one
            if low % SLOTS != slot or not active - SLOTS < number <= active + SLOTS:
                found.append(Problem(place, f"dir {slot}", f"directory word {slot} names segment {low} while {active} is active"))
            else:
                directory[number] = buffer, word
        if active not in directory:
            found.append(Problem(place, "active", f"the active segment {active} is not in the directory"))
        buffers = [buffer for buffer, _ in directory.values()]
        for buffer in sorted({b for b in buffers if buffers.count(b) > 1}):
            found.append(Problem(place, f"buffer {buffer}", f"the directory names buffer {buffer} twice"))
        previous: tuple[int, int, int] | None = None  # number, end offset, leader epoch
        for number in sorted(directory):
            buffer, word = directory[number]
            segment = Segment(self.prefix, buffer)
            mine = segment.problems(f"{place} segment {number} ({shm.object_name(self.prefix, f's{buffer}')})", number, active, topic.topic_id, n)
            if (int(words.dir[number % SLOTS]) ^ word) & DIR_MASK or segment.moved():
                previous = None  # recycled while we looked: passed over
                continue
            self.report.counts["segments"] += 1
            self.report.counts["frames_in_memory"] += segment.frames
            found += mine
            if number <= active and segment.base is not None:
                if previous is not None and previous[0] == number - 1 and segment.base != previous[1]:
                    what = f"segment {number} begins at offset {segment.base}, segment {number - 1} ends at {previous[1]}"
                    if segment.base < previous[1] or segment.leader_epoch == previous[2]:
                        found.append(Problem(place, f"chain {number}", what))
                previous = number, segment.end, segment.leader_epoch
        return found

    # --- the files of a partition against its words ---

    def _files(self, view: ClusterView, topic: TopicView, n: int) -> None:
        report = self._files_once(view, topic, n)
        for _ in range(CONFIRMATIONS if self.live else 0):
            if not report.problems:
                break
            time.sleep(PAUSE_S)
            seen = {(p.where, p.kind) for p in report.problems}
            now = self._now(topic, n)
            if now is None:
                return  # deleted meanwhile
            view, topic = now
            report = self._files_once(view, topic, n)
            report.problems = [p for p in report.problems if (p.where, p.kind) in seen]
        self.report.add(report)

    def _now(self, topic: TopicView, n: int) -> tuple[ClusterView, TopicView] | None:
        """The view as it is by now: another broker may lead. None: the topic is gone."""
        try:
            view = self.attached.view()
        except ShmlogError:
            return None
        topic_now = view.topics.get(topic.name)
        if topic_now is None or topic_now.topic_id != topic.topic_id or n >= len(topic_now.partitions):
            return None
        return view, topic_now

    def _files_once(self, view: ClusterView, topic: TopicView, n: int) -> Report:
        """The order of the looks makes the comparisons hold while everything goes on: what was written before the files are listed is in them; what is
        removed from them was given up (log_start) before."""
        report = Report()
        words = lib.sl_cluster_partition(self.cluster, topic.partitions[n].block)
        directory = status.directory_of(view, topic, n)
        if not directory or not words:
            return report
        if not int(words.cur) & NUMBER_MASK:  # never opened since memory was made: the words say nothing about the files
            for other in _directories(view, topic, n):
                _check_directory(report, other, topic.topic_id, n, live=self.live, end=None)
            _compare_replicas(report, view, topic, n, live=self.live)
            return report
        durable, spilled = (int(word) & OFFSET_MASK for word in (words.durable, words.spilled))
        bases = [base for word in words.dir if int(word) & 0xFFFFFFF and (base := _base_of(self.prefix, int(word) & 0xFFFFFFF)) is not None]
        facts = _Facts()
        for other in _directories(view, topic, n):
            mine = _check_directory(report, other, topic.topic_id, n, live=self.live, end=spilled if other == directory else None)
            facts = mine if other == directory else facts
        place = f"{topic.name}-{n}"
        for name, offset in (("durable", durable), ("spilled", spilled)):
            if facts.files and offset > facts.end:
                report.problems.append(Problem(place, f"{name} file", f"{name} is {offset}, but the files end at {facts.end}"))
        _, o = self.attached.offsets(topic.partitions[n].block)
        start = int(o.log_start)
        oldest = min([*bases, *([facts.first] if facts.files else [])], default=start)
        if start < oldest and start < o.end:
            report.problems.append(Problem(place, "lost", f"the log starts at {start}, but neither memory nor files hold anything below {oldest}"))
        if facts.files and bases and facts.end < min(bases) and start < min(bases):
            report.problems.append(Problem(place, "hole", f"the files end at {facts.end}, memory begins at {min(bases)}"))
        _compare_replicas(report, view, topic, n, live=self.live, memory=lambda: self._segments(words))
        return report

    def _segments(self, words: Any) -> list[Segment]:
        """Private copies of all that the directory names."""
        return [Segment(self.prefix, buffer) for word in words.dir if (buffer := int(word) & 0xFFFFFFF)]

    # --- rows and objects ---

    def _rows(self) -> list[Problem]:
        found = []
        blocks = lib.sl_cluster_partitions_used(self.cluster)
        for index in range(lib.sl_cluster_rows_used(self.cluster)):
            row = lib.sl_cluster_row(self.cluster, index)
            if not row:
                continue
            place = f"row {index} (pid {row.pid})"
            words = [int(w) for w in (*row.hazard, row.poll_pin, *row.view_pins) if w]
            for word in words:
                if word >> 40 >= blocks or not word & NUMBER_MASK:
                    found.append(Problem(place, "pin", f"it names segment {word & NUMBER_MASK} of block {word >> 40}; there are {blocks} blocks"))
            if row.state == lib.SL_ROW_FREE and words:
                found.append(Problem(place, "free", f"it is free but names {len(words)} segments"))
            elif row.state not in (lib.SL_ROW_FREE, lib.SL_ROW_LIVE, lib.SL_ROW_DEAD):
                found.append(Problem(place, "state", f"its state is {row.state}"))
            elif row.state == lib.SL_ROW_LIVE and self.live and not proc.alive(row.pid, row.start_ticks):
                found.append(
                    Problem(place, "dead", "its process is dead, but the row was not cleaned" + (f"; it holds {len(words)} segments" if words else ""))
                )
        return found

    def _objects(self) -> list[Problem]:
        """Every object has a reason to be there. What a dead cluster left is no damage: its next start cleans it, and a note says so."""
        found: list[Problem] = []
        named = set()
        for block in range(lib.sl_cluster_partitions_used(self.cluster)):
            words = lib.sl_cluster_partition(self.cluster, block)
            if words:
                named |= {int(w) & 0xFFFFFFF for w in words.dir}
        for name in shm.names(self.prefix):
            suffix = name[len(self.prefix) + 1 :]
            number = int(suffix[1:]) if suffix[1:].isdigit() else None
            if suffix in ("control", *(table.suffix for table in shm.TABLES)):
                continue
            if number is None or suffix[0] not in "vs":
                found.append(Problem(name, "unknown", "an object that no cluster makes"))
            elif suffix[0] == "v":
                if not self.control.view_version - 3 <= number <= self.control.view_version + 1:
                    found.append(Problem(name, "leaked", f"an old metadata snapshot that was not removed ({self.control.view_version} is in force)"))
            elif number not in named:
                found += self._unnamed_segment(name, number)
        if not self.live:
            self.report.notes += [Problem(p.where, p.kind, p.what + "; the next start removes it") for p in found if p.kind == "leaked"]
            found = [p for p in found if p.kind != "leaked"]
        return found

    def _unnamed_segment(self, name: str, buffer: int) -> list[Problem]:
        segment = Segment(self.prefix, buffer)
        if segment.header is None:
            return [] if segment.gone else [Problem(name, "header", f"its header: {code_text(segment.code)}")]
        header = segment.header.header
        if segment.header.claim >> 61 in (lib.SL_SEGMENT_FREE, lib.SL_SEGMENT_LIMBO) and proc.alive(header.maker_pid, header.maker_start_ticks):
            return []  # in its maker's pool
        state = PHASES.get(segment.header.claim >> 61, "?")
        return [
            Problem(
                name, "leaked", f"a segment of {status.size(header.object_bytes)} that no directory names (state {state}, maker {header.maker_pid})"
            )
        ]


def _base_of(prefix: str, buffer: int) -> int | None:
    """The base offset in a segment's header; None if it has none, or is gone."""
    data = shm.read(shm.object_name(prefix, f"s{buffer}"), SEGMENT_HEADER_BYTES)
    if data is None or len(data) < SEGMENT_HEADER_BYTES:
        return None
    offset = int(ffi.from_buffer("sl_segment *", data).base) & OFFSET_MASK
    return None if offset == OFFSET_MASK else offset


class Segment:
    """A private copy of a segment in memory: header and cells first, then the arena that they name. `header` is None if there is none to be believed;
    `anyway` believes one whose `code` says what is wrong with it, as long as it is a segment at all."""

    def __init__(self, prefix: str, buffer: int, path: str | None = None, anyway: bool = False) -> None:
        self.anyway = anyway
        self.path = path or shm.DIRECTORY + shm.object_name(prefix, f"s{buffer}")
        self.buffer = buffer
        self.header: Any = None
        self.code = int(lib.SL_E_NOENT)
        self.head = b""
        self.base: int | None = None
        self.end = 0
        self.frames = 0
        self.leader_epoch = -1
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return
        try:
            self._read(fd)
        finally:
            os.close(fd)

    @property
    def gone(self) -> bool:
        return bool(self.code == lib.SL_E_NOENT)

    def _read(self, fd: int) -> None:
        size = os.fstat(fd).st_size
        if not lib.SL_SEGMENT_MIN_BYTES <= size <= lib.SL_SEGMENT_MAX_BYTES:
            self.code = lib.SL_E_HALFMADE
            return
        counts = ffi.new("uint32_t[3]")
        lib.sl_segment_geometry(size, counts, counts + 1, counts + 2)
        self.cell_count, self.arena_position, self.arena_units = (int(c) for c in counts)
        for _ in range(10):  # while it is being written, a copy can show a later cell filled and an earlier one empty: then take another
            self.head = os.pread(fd, self.arena_position, 0)
            if len(self.head) == self.arena_position and self._first_empty(self.head) == self._last_filled(self.head) + 1:
                break
        self.code = shm.checked(self.head, lib.SL_KIND_SEGMENT, size) if len(self.head) == self.arena_position else lib.SL_E_HALFMADE
        if self.code < 0 and not (self.anyway and self.head[:8] == MAGIC and self.head[12] == lib.SL_KIND_SEGMENT):
            return
        self.header = ffi.new("sl_segment *")
        ffi.memmove(self.header, self.head, SEGMENT_HEADER_BYTES)
        self.leader_epoch = int(self.header.leader_epoch)
        offset = int(self.header.base) & OFFSET_MASK
        if offset != OFFSET_MASK:
            self.base = offset
        used = min(int(self.header.alloc_units), self.arena_units)
        for cell in self.cells():
            used = max(used, min(cell.unit + 1, self.arena_units))
        # The last frame may reach beyond what its first unit says; alloc_units covers it unless damaged.
        self.arena = os.pread(fd, used * UNIT, self.arena_position)

    def _words(self, head: bytes) -> memoryview:
        return memoryview(head)[SEGMENT_HEADER_BYTES : SEGMENT_HEADER_BYTES + 8 * self.cell_count].cast("Q")

    def _first_empty(self, head: bytes) -> int:
        body = head[SEGMENT_HEADER_BYTES : SEGMENT_HEADER_BYTES + 8 * self.cell_count]
        at = body.find(bytes(8))
        while at >= 0 and at % 8:  # zeros that straddle two cells
            at = body.find(bytes(8), at + 1)
        return at // 8 if at >= 0 else self.cell_count

    def _last_filled(self, head: bytes) -> int:
        body = head[SEGMENT_HEADER_BYTES : SEGMENT_HEADER_BYTES + 8 * self.cell_count].rstrip(b"\0")
        return (len(body) + 7) // 8 - 1

    def cells(self) -> Iterator[Cell]:
        """All cells that are not empty, wherever they stand."""
        for index, word in enumerate(self._words(self.head)[: self._last_filled(self.head) + 1]):
            if word:
                yield Cell(index, word >> 62, word >> 48 & 0x3FFF, word >> 26 & 0x3FFFFF, word >> 4 & 0x3FFFFF, word & 15)

    def moved(self) -> bool:
        """Whether the object lives another life by now (or none)."""
        if self.header is None:
            return False  # then the directory word decides
        try:
            with open(self.path, "rb", buffering=0) as file:
                now = file.read(SEGMENT_HEADER_BYTES)
        except OSError:
            return True
        if len(now) < SEGMENT_HEADER_BYTES:
            return True
        header = ffi.new("sl_segment *")
        ffi.memmove(header, now, SEGMENT_HEADER_BYTES)
        return bool(header.lives != self.header.lives or header.number != self.header.number)

    def problems(self, place: str, number: int, active: int, topic_id: bytes, partition: int) -> list[Problem]:
        """Everything that must hold for the segment `number` of this partition while `active` is the active one."""
        if self.header is None:
            return [
                Problem(place, "object", "the directory names it, but there is no such object" if self.gone else f"its header: {code_text(self.code)}")
            ]
        found: list[Problem] = []
        h = self.header

        def say(kind: str, what: str) -> None:
            found.append(Problem(place, kind, what))

        if h.header.object_id != self.buffer:
            say("object id", f"its header says buffer {h.header.object_id}")
        if h.number != number:
            say("number", f"its header says number {h.number}")
        if bytes(h.topic_id) != topic_id or h.partition != partition:
            say("owner", f"its header says topic {bytes(h.topic_id).hex()} partition {h.partition}")
        if h.claim >> 61 not in (lib.SL_SEGMENT_LIVE, lib.SL_SEGMENT_HELD, lib.SL_SEGMENT_TRY):
            say("state", f"it is in the directory, but {PHASES.get(h.claim >> 61, '?')}")
        elif h.claim & NUMBER_MASK != number:
            say("claim", f"its claim is for number {h.claim & NUMBER_MASK}")
        if int(h.base) >> 48 != number & 0xFFFF:
            say("base tag", f"its base offset belongs to segment number {int(h.base) >> 48} (low bits)")
        if number <= active and self.base is None:
            say("base", "it has no base offset although it was or is active")
        self._check_cells(say, number, active)
        return found

    def _check_cells(self, say: Callable[[str, str], None], number: int, active: int) -> None:
        """Invariants 1 to 3, from the cells and the frames they name."""
        h = self.header
        cells = list(self.cells())
        for index, cell in enumerate(cells):
            if cell.at != index:
                say("order", f"cell {index} is empty, cell {cell.at} is filled")
                break
        rel = 0
        sealed = False
        spans = []
        for cell in cells:
            if sealed:
                say("after seal", f"cell {cell.at} is filled behind a SEAL")
                break
            if cell.tag != number & 15:
                say("tag", f"cell {cell.at} carries tag {cell.tag}: it is of another life than number {number}")
            if cell.rel != rel:
                say("dense", f"cell {cell.at} begins at offset +{cell.rel}, its predecessor ends at +{rel}")
            rel = cell.rel + cell.records
            if cell.type == lib.SL_CELL_SEAL:
                sealed = True
                if cell.records:
                    say("seal", f"the SEAL in cell {cell.at} counts {cell.records} records")
                continue
            if cell.type == 0 or cell.records == 0:
                say("cell", f"cell {cell.at} has type {cell.type} and counts {cell.records} records")
                continue
            span = self._check_frame(say, cell)
            if span:
                spans.append(span)
            self.frames += 1
        self.end = (self.base or 0) + rel
        spans.sort()
        for (_, end, a), (start, _, b) in pairwise(spans):
            if start < end:
                say("overlap", f"the frames of cells {a} and {b} overlap in the arena")
        if number < active and not sealed:
            say("unsealed", "it is not sealed although a later segment is active")
        if number > active and cells:
            say("early", f"{len(cells)} cells are filled although it is not active yet")
        if len(cells) == self.cell_count and not sealed:
            say("no seal", "all cells are filled, and the last is no SEAL")
        if int(h.hint) > len(cells):
            say("hint", f"its hint says {h.hint} cells are filled; there are {len(cells)}")

    def _check_frame(self, say: Callable[[str, str], None], cell: Cell) -> tuple[int, int, int] | None:
        position = cell.unit * UNIT
        if position >= len(self.arena):
            say(f"unit {cell.at}", f"cell {cell.at} names arena unit {cell.unit}; {len(self.arena) // UNIT} are given out")
            return None
        frame = ffi.from_buffer(self.arena) + position
        code = lib.sl_frame_check(frame, len(self.arena) - position, 1)
        if code < 0:
            offset = f"offset {self.base + cell.rel}" if self.base is not None else f"offset +{cell.rel}"
            say(f"frame {cell.at}", f"{offset} (cell {cell.at}, arena position {position}): {code_text(code)}")
            return None
        rows = int(lib.sl_frame_rows(frame))
        if rows != cell.records:
            say(f"rows {cell.at}", f"cell {cell.at} counts {cell.records} records, its frame {rows}")
        (frame_bytes,) = struct.unpack_from("<I", self.arena, position)
        return cell.unit, cell.unit + -(-frame_bytes // UNIT), cell.at


class Cell(NamedTuple):
    at: int
    type: int
    records: int
    rel: int
    unit: int
    tag: int


# --- verify: disk ------------------------------------------------------------------------------------------------------


class _Facts:
    """What the files of a directory hold together."""

    def __init__(self) -> None:
        self.files = 0
        self.first = 0
        self.end = 0


def _check_directory(
    report: Report, directory: str, topic_id: bytes | None = None, partition: int | None = None, *, live: bool = False, end: int | None = None
) -> _Facts:
    """Every file, and the chain they make. Of files that hold the same offset the one with the higher base counts (a rewrite after a failed fdatasync,
    a new leader): what it hides may be anything. `end`: what lies beyond was not declared written yet."""
    facts = _Facts()
    witness, start = _witness(report, directory)
    names = status.log_files(directory)
    keys = [key for name in names if (key := status.file_key(name)) is not None]
    until = end
    chain: list[tuple[str, int, int, int]] = []  # name, base, leader epoch, end; from the newest back
    for name, (base, epoch) in reversed(list(zip(names, keys, strict=True))):
        if until is not None and base >= until and chain:
            report.notes.append(Problem(os.path.join(directory, name), "hidden", "a later file of a higher leader epoch holds all its offsets"))
            continue
        mine = _Facts()
        found = _check_file(report, directory, name, mine, topic_id, partition, until=until, live=live)
        if found:
            chain.append((name, base, epoch, mine.end))
        until = base
    chain.reverse()
    for (a, _, a_epoch, a_end), (b, b_base, b_epoch, _) in pairwise(chain):
        path = os.path.join(directory, b)
        if a_end < b_base:
            report.problems.append(Problem(path, "gap", f"{a} ends at offset {a_end}: {b_base - a_end} offsets are missing before it"))
        elif a_end > b_base:
            report.notes.append(Problem(path, "overlap", f"it replaces offsets {b_base} to {a_end} of {a} (leader epoch {b_epoch} after {a_epoch})"))
    facts.files = len(chain)
    if chain:
        facts.first, facts.end = chain[0][1], max(end for *_, end in chain)
    if witness > max(facts.end, start):
        what = f"its files end at offset {max(facts.end, start)}, but all below {witness} was on disk: a file was removed or damaged"
        report.problems.append(Problem(directory, "missing", what))
    return facts


def _witness(report: Report, directory: str) -> tuple[int, int]:
    """What was durable according to more than the files, and where the log begins. Read before the files are listed: these may only go on meanwhile."""
    try:
        return max([recovery.read_witness(directory), *recovery.marks(directory)]), recovery.read_checkpoint(directory)
    except FileNotFoundError:
        return 0, 0
    except StorageError as exc:
        report.problems.append(Problem(directory, "checkpoint", str(exc)))
        return 0, 0


def _check_file(
    report: Report,
    directory: str,
    name: str,
    facts: _Facts,
    topic_id: bytes | None = None,
    partition: int | None = None,
    *,
    until: int | None = None,
    live: bool = False,
) -> bool:
    """One file; whether it is there. Damage at or beyond offset `until` does not count: nobody reads that."""
    path = os.path.join(directory, name)
    problems = ffi.new("sl_file_problem[]", PROBLEMS_PER_FILE)
    count = ffi.new("size_t *")
    frames = int(lib.sl_file_verify(directory.encode(), name.encode(), problems, PROBLEMS_PER_FILE, count))
    if frames < 0:
        if not os.path.exists(path):
            return False  # retention, meanwhile
        if frames == lib.SL_E_HALFMADE:
            report.notes.append(Problem(path, "half made", "its maker died making it; it holds nothing, the next start removes it"))
            return False
        report.problems.append(Problem(path, "file", f"{code_text(frames)}{_header_says(path)}"))
        return False
    inspected = ffi.new("sl_file_facts *")
    check(lib.sl_file_inspect(directory.encode(), name.encode(), inspected), f"{path}: its headers cannot be read")
    if topic_id is not None and (bytes(inspected.topic_id) != topic_id or inspected.partition != partition):
        what = f"its header says topic {bytes(inspected.topic_id).hex()} partition {inspected.partition}"
        report.problems.append(Problem(path, "owner", what))
    facts.files, facts.first, facts.end = 1, int(inspected.base_offset), int(inspected.end_offset)
    report.counts["files"] += 1
    report.counts["frames_on_disk"] += frames
    report.counts["file_bytes"] += int(inspected.log_bytes)
    synced = _synced_bytes(path)
    for i in range(min(count[0], PROBLEMS_PER_FILE)):
        p = problems[i]
        problem = Problem(
            path, f"position {p.position}", f"position {p.position}, offset {p.offset}: {ffi.string(p.what).decode()} ({code_text(p.code)})"
        )
        if until is not None and p.offset >= until:
            if not live:
                report.notes.append(problem._replace(what=problem.what + "; nobody reads it"))
        elif p.code == lib.SL_E_LOST:
            report.problems.append(Problem(path, f"lost {p.offset}", f"offset {p.offset}: {ffi.string(p.what).decode()}"))
        elif synced is not None and p.position >= synced and until is None:
            report.notes.append(problem._replace(what=problem.what + "; beyond what was synced: the next start cuts it off"))
        else:
            report.problems.append(problem)
    if count[0] > PROBLEMS_PER_FILE:
        report.problems.append(Problem(path, "more", f"and {count[0] - PROBLEMS_PER_FILE} more"))
    return True


def _header_says(path: str) -> str:
    """For a file that cannot be opened: what is wrong with its header, or with its name."""
    with open(path, "rb") as file:
        data = file.read(lib.SL_FILE_HEADER_BYTES)
    if len(data) < lib.SL_FILE_HEADER_BYTES:
        return f": it has {len(data)} bytes, a header takes {lib.SL_FILE_HEADER_BYTES}"
    if lib.sl_crc32c(0, data, len(data) - 4) != int.from_bytes(data[-4:], "little"):
        return ": its header does not match its CRC"
    header = ffi.from_buffer("sl_file_header *", data)
    if status.file_key(os.path.basename(path)) != (header.base_offset, header.leader_epoch):
        return f": its header says base offset {header.base_offset}, leader epoch {header.leader_epoch}"
    return ""


def _synced_bytes(path: str) -> int | None:
    """Bytes of a .log that a sync declared safe, from the mark in its .cells; None if there is none."""
    try:
        with open(path.removesuffix(".log") + ".cells", "rb") as file:
            file.seek(lib.SL_FILE_MARK_POSITION)
            mark = file.read(ffi.sizeof("sl_file_mark"))
    except OSError:
        return None
    if len(mark) < 24 or lib.sl_crc32c(0, mark, 20) != int.from_bytes(mark[20:24], "little"):
        return None
    return int.from_bytes(mark[:8], "little")
