"""What of a partition's files may go, and when the file being written must be closed for that. Facts and a time in, decisions out; no I/O, no clock.

`retention.ms` counts from the append and not from the record's timestamp: history that is replayed with old timestamps must not vanish. A file goes as
a whole, when the last append to it is too old, or when the log is too large without it; always the oldest first, so that what is left is one piece.
The file being written takes part: when even its last append is too old it is closed (rolled), and goes as soon as it is closed, so a quiet topic
expires within a second or two. Whoever carries a decision out raises the log start first and removes files then: no reader is promised what is gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from shmlog.config import TopicConfig

MS = 1_000_000
NEVER_MS = 2**63 - 1


class FileFacts(NamedTuple):
    """One file of a partition. The list of them is in log order, and only its last may be active (being written)."""

    name: str
    base_offset: int
    end_offset: int
    size: int  # bytes, cells included
    appended_ns: int  # about when its last record was appended
    made_ns: int
    active: bool = False


class Policy(NamedTuple):
    delete: bool  # cleanup.policy has "delete"
    retention_ns: int  # -1: for ever
    retention_bytes: int  # -1: no limit
    roll_ns: int  # age at which a file is closed; -1: never


class Decision(NamedTuple):
    log_start: int  # to be in force before anything is removed; never below what it was
    remove: tuple[str, ...]  # names, oldest first
    roll: bool  # close the active file; look again when it is closed

    def __bool__(self) -> bool:
        return bool(self.remove) or self.roll


def policy(config: TopicConfig) -> Policy:
    return Policy(
        "delete" in config.cleanup_policy,
        -1 if config.retention_ms in (-1, NEVER_MS) else config.retention_ms * MS,
        config.retention_bytes,
        -1 if config.segment_ms == NEVER_MS else config.segment_ms * MS,
    )


def decide(files: Sequence[FileFacts], log_start: int, rules: Policy, now_ns: int) -> Decision:
    """For one partition. `log_start` may have been raised by others (DeleteRecords): files that lie below it go under every policy."""
    remove: list[str] = []
    roll = False
    size = sum(file.size for file in files)
    start = log_start
    for file in files:
        below = file.end_offset <= start
        expired = rules.delete and rules.retention_ns >= 0 and now_ns - file.appended_ns > rules.retention_ns
        # As Kafka does: the oldest goes if the log is still as large as retention.bytes without it.
        too_large = rules.delete and rules.retention_bytes >= 0 and size - file.size >= rules.retention_bytes
        if file.active:
            # The size of the log is no reason to close it: the next one would only grow in its place.
            roll = file.end_offset > file.base_offset and (below or expired)
            break
        if not (below or expired or too_large):
            break
        remove.append(file.name)
        size -= file.size
        start = max(start, file.end_offset)
    active = files[-1] if files and files[-1].active else None
    if active and active.end_offset > active.base_offset and rules.roll_ns >= 0 and now_ns - active.made_ns > rules.roll_ns:
        roll = True
    return Decision(start, tuple(remove), roll)


class Removable(NamedTuple):
    """A closed file that the guard of the disk may take."""

    partition: int  # as the caller numbers them
    file: FileFacts


def make_room(partitions: Iterable[tuple[int, Policy, Sequence[FileFacts]]], excess: int) -> list[Removable]:
    """The guard (data.max.bytes): oldest closed files of delete-policy partitions, over all of them, until `excess` bytes are found. Possibly
    fewer bytes than that: then writing has to stop."""
    found = sorted(
        (Removable(number, file) for number, rules, files in partitions if rules.delete for file in files if not file.active),
        key=lambda r: (r.file.appended_ns, r.partition, r.file.base_offset),
    )
    # Of one partition only in log order; appended_ns does not go back within one, but a clock may have stood wrong.
    taken: list[Removable] = []
    in_order: dict[int, int] = {}
    for removable in found:
        if excess <= 0:
            break
        if removable.file.base_offset < in_order.get(removable.partition, -1):
            continue
        in_order[removable.partition] = removable.file.base_offset
        taken.append(removable)
        excess -= removable.file.size
    return taken


class Clock:
    """Wall time that does not step: retention must not empty a log because somebody set the clock a day ahead.

    Differences of up to a second are followed (that is how time is kept right); a step is not, for as long as this process lives.
    """

    FOLLOWED_NS = 1_000_000_000

    def __init__(self, wall_ns: int, monotonic_ns: int) -> None:
        self._offset = wall_ns - monotonic_ns

    def now_ns(self, wall_ns: int, monotonic_ns: int) -> int:
        offset = wall_ns - monotonic_ns
        if abs(offset - self._offset) <= self.FOLLOWED_NS:
            self._offset = offset
        return monotonic_ns + self._offset
