"""The plain values that users and all layers share: records and how to name a place in a log.

Nothing here does I/O or knows a process; numpy is imported only by Record.array(). Names and field names are kafka-python's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from shmlog._binding import in_c
from shmlog.errors import IllegalStateError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike

CREATE_TIME = 0
LOG_APPEND_TIME = 1


class TopicPartition(NamedTuple):
    topic: str
    partition: int


class OffsetAndMetadata(NamedTuple):
    """What a group committed: the offset of the next record to read."""

    offset: int
    metadata: str = ""
    leader_epoch: int = -1


class OffsetAndTimestamp(NamedTuple):
    offset: int
    timestamp: int  # milliseconds
    leader_epoch: int = -1


class RecordMetadata(NamedTuple):
    """Where an acknowledged record stands."""

    topic: str
    partition: int
    offset: int
    timestamp: int  # milliseconds

    @property
    def topic_partition(self) -> TopicPartition:
        return TopicPartition(self.topic, self.partition)


@in_c
class Record:
    """One consumed record.

    A slotted class and not a tuple or a dataclass: one is made per record, and by the extension as a struct of these fields.
    `dtype` and `shape` are None unless the record was sent as an array.
    """

    __slots__ = (
        "topic",
        "partition",
        "offset",
        "timestamp_ns",
        "timestamp_type",
        "key",
        "value",
        "headers",
        "leader_epoch",
        "dtype",
        "shape",
    )

    def __init__(
        self,
        topic: str,
        partition: int,
        offset: int,
        timestamp_ns: int,
        timestamp_type: int = CREATE_TIME,
        key: Any = None,
        value: Any = None,
        headers: Sequence[tuple[str, bytes | None]] = (),
        leader_epoch: int = -1,
        dtype: str | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> None:
        self.topic = topic
        self.partition = partition
        self.offset = offset
        self.timestamp_ns = timestamp_ns
        self.timestamp_type = timestamp_type
        self.key = key
        self.value = value
        self.headers = headers
        self.leader_epoch = leader_epoch
        self.dtype = dtype
        self.shape = shape

    @property
    def timestamp(self) -> int:
        """Milliseconds, as Kafka counts; a timestamp of -1 (none) stays -1."""
        return self.timestamp_ns // 1_000_000

    @property
    def topic_partition(self) -> TopicPartition:
        return TopicPartition(self.topic, self.partition)

    def array(self, dtype: DTypeLike | None = None, shape: tuple[int, ...] | None = None) -> np.ndarray[Any, Any]:
        """The value as a numpy array over the same bytes (read-only where they are); dtype and shape default to the sender's."""
        if dtype is None and self.dtype is None:
            raise IllegalStateError(
                f"record {self.topic}-{self.partition}@{self.offset} was not sent as an array",
                hint="name the type: r.array(dtype=...)",
            )
        if self.value is None:
            raise IllegalStateError(f"record {self.topic}-{self.partition}@{self.offset} has no value (a tombstone)")
        import numpy as np

        wanted = dtype
        if wanted is None:
            wanted = self.dtype
            if self.dtype is not None and self.dtype[:1] == "[":  # fields, as Python writes them; made by shmlog.arrays
                import ast

                from numpy.lib.format import descr_to_dtype

                wanted = descr_to_dtype(ast.literal_eval(self.dtype))
        if not len(self.value):
            return np.empty(shape if shape is not None else self.shape if dtype is None and self.shape is not None else 0, wanted)
        flat = np.frombuffer(self.value, dtype=wanted)
        if shape is None and dtype is None:
            shape = self.shape  # the sender's shape counts the sender's items
        return flat if shape is None else flat.reshape(shape)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Record):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in Record.__slots__)

    def __reduce__(self) -> tuple[Any, ...]:
        return Record, tuple(getattr(self, name) for name in Record.__slots__)

    def __hash__(self) -> int:
        return hash((self.topic, self.partition, self.offset))

    def __repr__(self) -> str:
        return (
            f"Record(topic={self.topic!r}, partition={self.partition}, offset={self.offset}, timestamp={self.timestamp}, "
            f"key={_short(self.key)}, value={_short(self.value)}, headers={self.headers!r})"
        )


def _short(value: Any) -> str:
    """A repr that a 64 MiB value does not turn into a 200 MiB one."""
    if isinstance(value, bytes | bytearray | memoryview) and len(value) > 64:
        return f"{bytes(value[:48])!r}... ({len(value)} bytes)"
    return repr(value)


class NewTopic:
    """A topic to create. -1 means the cluster's default; `topic_configs` is kafka-python's name for `config`."""

    __slots__ = ("name", "num_partitions", "replication_factor", "replica_assignments", "config")

    def __init__(
        self,
        name: str,
        num_partitions: int = -1,
        replication_factor: int = -1,
        replica_assignments: Mapping[int, Sequence[int]] | None = None,
        topic_configs: Mapping[str, str] | None = None,
        *,
        config: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.num_partitions = num_partitions
        self.replication_factor = replication_factor
        self.replica_assignments = dict(replica_assignments or {})
        self.config = {**(topic_configs or {}), **(config or {})}

    @property
    def topic_configs(self) -> dict[str, str]:
        return self.config

    def __repr__(self) -> str:
        return f"NewTopic({self.name!r}, {self.num_partitions}, {self.replication_factor}, config={self.config!r})"


class NewPartitions:
    """Partitions to add to a topic: the total it shall have, and replicas of the new ones if they are not to be chosen."""

    __slots__ = ("total_count", "new_assignments")

    def __init__(self, total_count: int, new_assignments: Sequence[Sequence[int]] | None = None) -> None:
        self.total_count = total_count
        self.new_assignments = None if new_assignments is None else [list(replicas) for replicas in new_assignments]

    def __repr__(self) -> str:
        return f"NewPartitions({self.total_count}, {self.new_assignments!r})"
