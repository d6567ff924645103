"""Every error that shmlog raises on purpose.

One tree under ShmlogError, with kafka-python's names where it has one. Beside ShmlogError a class derives from the builtin
that a Python user would catch (LookupError, ValueError, TimeoutError, OSError, ...), so neither habit is punished.

An error carries what a caller can act on: `code` (Kafka's number, for the gateway), `retriable` (the same call may succeed
later, unchanged), `hint` (what to do, one sentence) and numbers as fields that its class declares. `str()` is the sentence
alone. All of it survives pickling, because errors travel between processes: fields live in the instance's `__dict__`, which
BaseException pickles beside `args`.
"""

from __future__ import annotations

import errno as _errno
from typing import Any, ClassVar


class ShmlogError(Exception):
    """Something went wrong in shmlog."""

    code: int = -1  # UNKNOWN_SERVER_ERROR: also what Kafka's clients see for an error that Kafka has no number for
    retriable: bool = False
    hint: str = ""

    topic: str | None = None
    partition: int | None = None

    # An instance may overrule these three; everything else a class accepts it declares itself.
    _COMMON: ClassVar[frozenset[str]] = frozenset({"code", "retriable", "hint"})

    def __init__(self, message: str = "", **fields: Any) -> None:
        # Without a message, the first line of the class's own docstring is the sentence.
        super().__init__(message or (type(self).__doc__ or type(self).__name__).partition("\n")[0])
        for name, value in fields.items():
            if name not in self._COMMON and name not in _declared(type(self)):
                raise TypeError(f"{type(self).__name__} has no field {name!r}")
            setattr(self, name, value)

    def __str__(self) -> str:
        # Not OSError's own, which prefixes "[Errno 28]", nor KeyError's, which prints a repr.
        return str(self.args[0])


def _declared(cls: type) -> set[str]:
    """The fields that a class and its bases annotate; looked at only when an error is made with fields."""
    return {
        name
        for base in cls.__mro__
        if issubclass(base, ShmlogError)
        for name in base.__annotations__  # of this very class only, since Python 3.10
        if not name.startswith("_")
    }


KafkaError = ShmlogError


# --- topics, partitions, records ---------------------------------------------------------------------------------------


class UnknownTopicOrPartitionError(ShmlogError, LookupError):
    """There is no such topic or partition."""

    code = 3
    retriable = True
    hint = "`shmlog topic list` shows what there is; `shmlog topic create NAME` creates one"


def no_partition(topic: str, partition: int, count: int) -> UnknownTopicOrPartitionError:
    """For a topic that exists but has only `count` partitions."""
    hint = f"`shmlog topic describe {topic}` shows them; `shmlog topic add-partitions {topic} N` adds some"
    return UnknownTopicOrPartitionError(f"{topic} has no partition {partition}: it has {count}", topic=topic, partition=partition, hint=hint)


class UnknownTopicIdError(UnknownTopicOrPartitionError):
    """The topic this handle was opened on was deleted; one of the same name may exist again."""

    code = 100
    retriable = False
    hint = "open a new producer or consumer to use the new topic"


class TopicAlreadyExistsError(ShmlogError):
    """A topic of this name exists already."""

    code = 36


class InvalidTopicError(ShmlogError, ValueError):
    """This is not a legal topic name."""

    code = 17


class InvalidPartitionsError(ShmlogError, ValueError):
    """This number of partitions is not possible."""

    code = 37


class InvalidReplicationFactorError(ShmlogError, ValueError):
    """This replication factor is not possible."""

    code = 38


class InvalidConfigurationError(ShmlogError, ValueError):
    """A configuration key or value is not valid."""

    code = 40
    key: str | None = None


class IllegalArgumentError(ShmlogError, ValueError):
    """An argument is not valid."""

    code = 42  # INVALID_REQUEST


class MessageSizeTooLargeError(ShmlogError, ValueError):
    """The record is larger than the topic's max.message.bytes."""

    code = 10
    size: int | None = None
    limit: int | None = None


class UnsupportedCodecError(ShmlogError, ValueError):
    """This compression is not available here."""

    code = 76


class OffsetOutOfRangeError(ShmlogError, LookupError):
    """The offset lies outside what the log holds."""

    code = 1
    offset: int | None = None
    log_start_offset: int | None = None
    log_end_offset: int | None = None


class NoOffsetForPartitionError(ShmlogError, LookupError):
    """The group has no committed offset here and auto_offset_reset is "none"."""

    code = 1


class CorruptRecordError(ShmlogError):
    """A record failed its check; it is not delivered."""

    code = 2
    retriable = True  # as in Kafka: a replica may still give it
    hint = "`shmlog verify` lists every damaged place"
    offset: int | None = None
    end_offset: int | None = None  # seek there to go on behind it; several records may be lost in one piece
    path: str | None = None


class DamagedError(CorruptRecordError):
    """A header or structure in memory or in a file cannot be right."""

    retriable = False


class OffsetConflictError(ShmlogError):
    """Another record stands where expected_offset wanted this one."""

    code = 87  # INVALID_RECORD: what a Kafka client may not blindly retry
    hint = "read what was appended since, decide again, and send with the new expected_offset"
    expected_offset: int | None = None
    log_end_offset: int | None = None


# --- the cluster and its processes -------------------------------------------------------------------------------------


class NoBrokersAvailable(ShmlogError, ConnectionError):
    """No cluster is running under this name."""

    code = 8
    retriable = True
    hint = "start one with `shmlog up`"


class BrokerNotRunningError(NoBrokersAvailable):
    """The cluster this handle belongs to is no longer running."""


class NotLeaderForPartitionError(ShmlogError):
    """The partition has another leader now."""

    code = 6
    retriable = True
    leader_epoch: int | None = None


class LeaderNotAvailableError(ShmlogError):
    """The partition has no leader at the moment."""

    code = 5
    retriable = True


class NotEnoughReplicasError(ShmlogError):
    """Fewer replicas are in sync than min.insync.replicas asks for."""

    code = 19
    retriable = True
    in_sync: int | None = None
    required: int | None = None


class NotEnoughReplicasAfterAppendError(NotEnoughReplicasError):
    """The record was appended, but fewer replicas are in sync than min.insync.replicas asks for; whether it is committed is open."""

    code = 20


class PreferredLeaderNotAvailableError(ShmlogError):
    """The preferred replica is not in sync, or its broker is not up."""

    code = 80
    retriable = True


class EligibleLeadersNotAvailableError(ShmlogError):
    """No replica that could lead is up."""

    code = 83
    retriable = True


class ElectionNotNeededError(ShmlogError):
    """The partition has the leader that was asked for."""

    code = 84


class BrokerIdNotRegisteredError(ShmlogError, LookupError):
    """There is no such broker."""

    code = 102
    hint = "`shmlog broker list` shows them"


class InvalidReplicationAssignmentError(ShmlogError, ValueError):
    """A partition cannot have these replicas."""

    code = 39


class NoReassignmentInProgressError(ShmlogError):
    """The partition is not being moved."""

    code = 85


class DuplicateBrokerRegistrationError(ShmlogError):
    """A broker of this id is there already."""

    code = 101


class NotControllerError(ShmlogError):
    """Another coordinator is the active one."""

    code = 41
    retriable = True


class KafkaTimeoutError(ShmlogError, TimeoutError):
    """The time ran out; the operation may or may not have happened."""

    code = 7
    retriable = True
    timeout: float | None = None


class ClusterAuthorizationFailedError(ShmlogError, PermissionError):
    """The cluster belongs to another user."""

    code = 31


class VersionMismatchError(ShmlogError):
    """The memory or file was written by an incompatible version of shmlog."""

    code = 35
    hint = "stop the cluster with `shmlog down` and start it again with one version of shmlog"
    found: int | None = None
    supported: int | None = None


class UnsupportedVersionError(ShmlogError):
    """This version of shmlog does not offer this yet."""

    code = 35


# --- groups, fencing, transactions -------------------------------------------------------------------------------------


class InvalidGroupIdError(ShmlogError, ValueError):
    """This is not a legal group name."""

    code = 24


class GroupIdNotFoundError(ShmlogError, LookupError):
    """There is no such group."""

    code = 69


class NonEmptyGroupError(ShmlogError):
    """The group still has members."""

    code = 68
    hint = "stop its members first"


class UnknownMemberIdError(ShmlogError, LookupError):
    """The group does not know this member (any more)."""

    code = 25


class RebalanceInProgressError(ShmlogError):
    """The group is assigning its partitions anew."""

    code = 27
    retriable = True


class CommitFailedError(ShmlogError):
    """The commit was refused: the partitions belong to another member now."""

    code = 22  # ILLEGAL_GENERATION
    hint = "records since the last commit are delivered again, to the new owner; poll more often or process smaller batches"


class FencedInstanceIdError(ShmlogError):
    """Another member has joined with the same group_instance_id."""

    code = 82


class FencedMemberEpochError(ShmlogError):
    """The group has moved on without this member."""

    code = 110
    hint = "rejoin the group"


class ProducerFencedError(ShmlogError):
    """A newer producer with the same transactional_id has taken over."""

    code = 90


class OutOfOrderSequenceNumberError(ShmlogError):
    """A batch of this producer is missing before this one."""

    code = 45


class InvalidTxnStateError(ShmlogError):
    """The transaction is not in a state that allows this."""

    code = 48


class TransactionAbortedError(ShmlogError):
    """The transaction was aborted."""

    code = 48


# --- handles in this process -------------------------------------------------------------------------------------------


class IllegalStateError(ShmlogError, RuntimeError):
    """The call is not possible in this state."""

    code = 42


class ClosedError(ShmlogError, RuntimeError):
    """The handle is closed."""


class ForkedProcessError(ShmlogError, RuntimeError):
    """This handle was opened before a fork and belongs to the parent process."""

    hint = "open a new one in the child, or use multiprocessing's spawn method"


class LeaseLostError(ShmlogError):
    """The memory under this view was taken back."""

    hint = "copy what must outlive its batch, or release views sooner"


class DeliveryError(ShmlogError):
    """Records were sent whose failure nobody looked at."""

    count: int = 0
    first: BaseException | None = None


# --- room and disks ----------------------------------------------------------------------------------------------------


class ShmSpaceError(ShmlogError, OSError):
    """/dev/shm has no room for this."""

    code = 56  # KAFKA_STORAGE_ERROR
    retriable = True
    hint = "free or enlarge /dev/shm (in a container: --shm-size); `shmlog doctor` shows what takes the room"
    errno: int | None = _errno.ENOSPC
    needed_bytes: int | None = None
    free_bytes: int | None = None


class RingFullError(ShmSpaceError):
    """The partition's memory is full and shmlog.full is "raise"."""

    hint = "wait and send again, or raise shmlog.memory.bytes; `shmlog status` shows whether the disk keeps up"


class StorageFullError(ShmlogError, OSError):
    """The log's disk has no room for this."""

    code = 56
    retriable = True
    hint = "free room, or lower retention.bytes or retention.ms; appends go on by themselves once there is room"
    errno: int | None = _errno.ENOSPC
    path: str | None = None
    needed_bytes: int | None = None
    free_bytes: int | None = None


class StorageError(ShmlogError, OSError):
    """The log's disk failed."""

    code = 56
    retriable = True
    hint = "`shmlog status` names the directory; look at the kernel's log for the disk"
    errno: int | None = _errno.EIO
    path: str | None = None


class LimitError(ShmlogError):
    """A table or a limit of this process, machine or cluster is used up."""

    code = 89  # THROTTLING_QUOTA_EXCEEDED
    hint = "close handles that are not needed; `shmlog doctor` shows the limits"


class SystemCallError(ShmlogError, OSError):
    """A system call failed."""

    errno: int | None = None


# --- across the boundaries ---------------------------------------------------------------------------------------------

# Results of the C core, by the names of csrc/core.h (cffi knows their numbers; _ffi.py joins the two). One table, so that an
# error means the same whether the core or Python noticed it. SL_E_AGAIN and SL_E_INTR are not here: they say "call again".
C_CODES: dict[str, type[ShmlogError]] = {
    "SL_E_TIMEOUT": KafkaTimeoutError,
    "SL_E_NOENT": NoBrokersAvailable,
    "SL_E_VERSION": VersionMismatchError,
    "SL_E_BOOT": NoBrokersAvailable,
    "SL_E_OWNER": ClusterAuthorizationFailedError,
    "SL_E_DAMAGED": DamagedError,
    "SL_E_HALFMADE": NoBrokersAvailable,
    "SL_E_SHM_FULL": ShmSpaceError,
    "SL_E_RING_FULL": RingFullError,
    "SL_E_DISK_FULL": StorageFullError,
    "SL_E_IO": StorageError,
    "SL_E_TOO_BIG": MessageSizeTooLargeError,
    "SL_E_CONFLICT": OffsetConflictError,
    "SL_E_FENCED": NotLeaderForPartitionError,
    "SL_E_DELETED": UnknownTopicIdError,
    "SL_E_RANGE": OffsetOutOfRangeError,
    "SL_E_CORRUPT": CorruptRecordError,
    "SL_E_INVALID": IllegalArgumentError,
    "SL_E_NOMEM": LimitError,
    "SL_E_NO_SLOT": LimitError,
    "SL_E_SYS": SystemCallError,
    "SL_E_GONE": BrokerNotRunningError,
    "SL_E_BEHIND": KafkaTimeoutError,
    "SL_E_FORKED": ForkedProcessError,
    "SL_E_LOST": CorruptRecordError,
    "SL_E_NOT_ENOUGH_REPLICAS": NotEnoughReplicasAfterAppendError,
}


def from_code(c_code: str, detail: str = "", **fields: Any) -> ShmlogError:
    """The exception for a result of the C core; a name that the table lacks is still an error, with its name in it."""
    cls = C_CODES.get(c_code)
    if cls is None:
        return ShmlogError(f"{detail or 'the C core failed'} ({c_code})", **fields)
    return cls(detail, **fields)


def to_json(exc: BaseException) -> dict[str, dict[str, Any]]:
    """What `--json` prints on stderr. Any exception will do: a bug must not hide behind a second error in its report."""
    known = exc if isinstance(exc, ShmlogError) else None
    return {
        "error": {
            "name": type(exc).__name__,
            "code": known.code if known else ShmlogError.code,
            "message": str(exc) or type(exc).__name__,
            "hint": known.hint if known else "",
            "retriable": known.retriable if known else False,
        }
    }
