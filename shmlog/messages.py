"""What the processes of a cluster say to each other, and the metadata that they all read.

Three kinds of things stand here, all msgspec structs in msgpack:
- ClusterView: the whole metadata as one immutable value. The coordinator makes them, object `v<n>` holds one, clients and brokers read it.
- Requests and replies on `coordinator.sock`. Each travels as a 4-byte little-endian length and then one tagged struct.
- What the spare, the coordinator and the brokers tell each other.

The coordinator and the clients meet here and nowhere else. msgspec costs 20 ms to import, so `shmlog` imports this module on first use only.
Fields are only ever appended, with defaults: msgspec ignores what it does not know, so neighbouring versions understand each other.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from typing import Any, Union

import msgspec

from shmlog import errors

# --- metadata ----------------------------------------------------------------------------------------------------------

REMOVED = -2
NO_LEADER = -1


class PartitionView(msgspec.Struct, frozen=True, array_like=True):
    """One partition: where its words are and who leads it."""

    block: int  # index in `partitions` and `waits`
    leader: int  # broker id, NO_LEADER
    leader_epoch: int
    replicas: tuple[int, ...]
    isr: tuple[int, ...]
    target: tuple[int, ...] = ()  # while it is moved: the replicas it will have; `replicas` has those and the ones it had
    adding: tuple[int, ...] = ()  # those of them that it had not before

    @property
    def before(self) -> tuple[int, ...]:
        """Without the move that is under way."""
        return tuple(r for r in self.replicas if r not in self.adding)

    @property
    def removing(self) -> tuple[int, ...]:
        return tuple(r for r in self.replicas if r not in self.target) if self.target else ()


class TopicView(msgspec.Struct, frozen=True, array_like=True):
    """One topic. `name` is internal: "<topic>", or "<namespace>/<topic>"."""

    name: str
    topic_id: bytes  # 16 random bytes: a topic made anew under the same name is another one
    config: dict[str, str]  # what differs from the defaults; shmlog.config.topic_config() makes it typed
    partitions: tuple[PartitionView, ...]


class BrokerView(msgspec.Struct, frozen=True, array_like=True):
    id: int
    process: int  # index in control.processes: its bell, its pid
    broker_epoch: int  # grows with every start of this broker, over boots too
    directory: str  # "<data dir>/broker-<id>"; "": memory only
    retiring: bool = False  # its partitions go to others, then it is forgotten


class DeletingPartition(msgspec.Struct, frozen=True, array_like=True):
    """A partition whose topic is deleted, until its broker has removed its memory and files; only then the block is free."""

    block: int
    topic_id: bytes
    topic: str
    partition: int
    leader: int  # removes the memory and its files; REMOVED when it has
    followers: tuple[int, ...] = ()  # have to remove their files


class DroppedReplica(msgspec.Struct, frozen=True, array_like=True):
    """A replica that has left its partition's list, until its broker has removed the files."""

    block: int
    topic_id: bytes
    topic: str
    partition: int
    broker: int
    may_go: bool = False  # that it has left is on the coordinator's disk too: a power cut does not bring it back as a replica


class ClusterView(msgspec.Struct, frozen=True):
    """The metadata in force: object v<version>."""

    cluster_id: bytes
    name: str
    version: int
    coordinator_epoch: int
    boot_counter: int
    data_dirs: tuple[str, ...]  # (): --data none
    state_dir: str  # logs/ is below it
    config: dict[str, str]  # of the cluster, what differs from the defaults
    brokers: dict[int, BrokerView]
    topics: dict[str, TopicView]
    deleting: tuple[DeletingPartition, ...] = ()
    owner_pid: int = 0  # embedded: the cluster ends with this process
    owner_start_ticks: int = 0
    temporary: bool = False  # its data goes when it goes
    format: int = 1
    retired: dict[int, int] = {}  # brokers that were forgotten -> their last broker epoch: one of the same id goes on from there
    dropped: tuple[DroppedReplica, ...] = ()


class LazyClusterView(msgspec.Struct, frozen=True):
    """ClusterView as clients decode it: a topic's bytes stay undecoded until somebody asks for that topic (10,000 topics are 1 MB)."""

    cluster_id: bytes
    name: str
    version: int
    coordinator_epoch: int
    boot_counter: int
    data_dirs: tuple[str, ...]
    state_dir: str
    config: dict[str, str]
    brokers: dict[int, BrokerView]
    topics: dict[str, msgspec.Raw]
    deleting: msgspec.Raw = msgspec.Raw(b"\x90")
    owner_pid: int = 0
    owner_start_ticks: int = 0
    temporary: bool = False
    format: int = 1
    retired: dict[int, int] = {}
    dropped: tuple[DroppedReplica, ...] = ()


# --- requests of clients, and their replies ----------------------------------------------------------------------------


class _Message(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """On the wire each carries its class name as the tag."""


KIND_PRODUCER, KIND_CONSUMER, KIND_BROKER, KIND_COORDINATOR, KIND_TOOL = 1, 2, 3, 4, 5  # sl_row.kind


class Register(_Message, frozen=True):
    """Asks for `rows` rows. Whose they are the coordinator learns from the socket's credentials, not from the message."""

    kind: int
    rows: int = 4


class Registered(_Message, frozen=True):
    rows: tuple[int, ...]


class Unregister(_Message, frozen=True):
    """Gives rows back; they are in nobody's use any more. -> Done"""

    rows: tuple[int, ...]


class TopicSpec(msgspec.Struct, frozen=True):
    """A topic to make. -1: the cluster's default. The maker chooses the id, so that a repeated request is recognised as the same."""

    name: str
    topic_id: bytes = b""
    partitions: int = -1
    replication_factor: int = -1
    replica_assignments: dict[int, tuple[int, ...]] = {}
    config: dict[str, str] = {}


class CreateTopics(_Message, frozen=True):
    """-> Results, one for each topic in order. Durable (where there is a disk) when the reply comes."""

    topics: tuple[TopicSpec, ...]
    validate_only: bool = False


class DeleteTopics(_Message, frozen=True):
    """-> Results. `repeated`: an earlier copy of this request may have been carried out already (its reply was lost)."""

    names: tuple[str, ...]
    repeated: bool = False


class DeleteNamespace(_Message, frozen=True):
    """Deletes all topics whose name begins with "<namespace>/". -> Done"""

    namespace: str


class CreatePartitions(_Message, frozen=True):
    """Grows topics to these totals. -> Results in the order of the mapping."""

    totals: dict[str, int]
    repeated: bool = False


class AlterTopicConfigs(_Message, frozen=True):
    """Sets keys, or with None gives them back to the default. -> Results in the order of the mapping."""

    configs: dict[str, dict[str, str | None]]


class DeleteRecords(_Message, frozen=True):
    """Raises log start offsets: (topic, partition, offset); offset -1: everything up to the end. -> Trims in the same order."""

    partitions: tuple[tuple[str, int, int], ...]


class ElectLeaders(_Message, frozen=True):
    """Preferred (or unclean) elections of (topic, partition). -> Results in the same order."""

    partitions: tuple[tuple[str, int], ...]
    unclean: bool = False


class ReassignPartitions(_Message, frozen=True):
    """Moves (topic, partition, replicas); None for the replicas turns a move round. -> Results in the same order; the moves then go on by themselves.
    The same twice is the same."""

    partitions: tuple[tuple[str, int, tuple[int, ...] | None], ...]
    repeated: bool = False


class AddBroker(_Message, frozen=True):
    """A further broker. The client chooses the id (one that is not in its view), so that a repeated request does not add two. -> BrokerAdded when it
    is ready and the store knows it; Failure if it could not be started, and then there is no such broker."""

    broker_id: int
    data_dir: str = ""  # "": beside the others
    repeated: bool = False


class BrokerAdded(_Message, frozen=True):
    broker_id: int
    pid: int
    directory: str


class RetireBroker(_Message, frozen=True):
    """Its partitions go to other brokers, then it ends and is forgotten. force: where there is no other one that has none of a partition yet, its list
    gets shorter. -> Done when the moves are begun, durably; it goes on by itself. The same twice is the same."""

    broker_id: int
    force: bool = False
    repeated: bool = False


class DescribeCluster(_Message, frozen=True):
    """-> Described. What stands in shared memory is better read there; this tells that the coordinator answers."""


class Described(_Message, frozen=True):
    pid: int
    coordinator_epoch: int
    view_version: int
    clients: int
    rows: int


class Shutdown(_Message, frozen=True):
    """Ends the cluster. -> Done when all memory is removed; Failure (StorageError...) naming the bytes that could not be written, and then the
    cluster stays up. force: they are given up."""

    force: bool = False
    timeout_ms: int = 60_000


class Failure(_Message, frozen=True):
    """An error as it travels: raise_failure() makes the same exception of it."""

    name: str
    message: str
    fields: dict[str, Any] = {}


class Done(_Message, frozen=True):
    view_version: int = 0  # what was asked is in this view and all later ones


class Results(_Message, frozen=True):
    """For each item None or what went wrong with it."""

    failures: tuple[Failure | None, ...]
    view_version: int = 0


class Trims(_Message, frozen=True):
    """For each partition its log start offset, or what went wrong."""

    results: tuple[int | Failure, ...]


# --- brokers and coordinator, on the broker's connection to coordinator.sock -------------------------------------------


class BrokerStart(_Message, frozen=True):
    """What a broker process is started with: shmlog.broker.server.main(start)."""

    cluster: str
    broker_id: int
    process: int  # its entry in control.processes
    broker_epoch: int
    directory: str  # "": memory only
    rows: int = 0  # unused; brokers register their rows with Register(KIND_BROKER) like everybody


class ReplicaReport(msgspec.Struct, frozen=True):
    """What a broker's files hold of a replicated partition that has no leader (the memory of an earlier life is gone)."""

    block: int
    topic_id: bytes
    last_epoch: int  # leader epoch of the last file; 0: there are none
    end_offset: int


class BrokerReady(_Message, frozen=True):
    """Broker -> coordinator, first message: all partitions that the view `view_version` gives it are taken over. -> Done"""

    broker_id: int
    broker_epoch: int
    view_version: int
    reports: tuple[ReplicaReport, ...] = ()


class IsrChange(msgspec.Struct, frozen=True):
    """What a leader has found: these replicas of a partition are in sync (itself among them)."""

    block: int
    topic_id: bytes
    leader_epoch: int
    isr: tuple[int, ...]  # (): a follower says that it has lost what it had
    before: tuple[int, ...] = ()  # the ISR that this was found under: with another one in force it is not done


class AlterIsr(_Message, frozen=True):
    """Leader's broker -> coordinator. -> Done; whether it was done stands in the next view."""

    broker_id: int
    broker_epoch: int
    changes: tuple[IsrChange, ...]


class BrokerApplied(_Message, frozen=True):
    """Broker -> coordinator: a later view is applied; `removed` are blocks (with their topic ids) of deleted topics that are wholly gone. -> Done"""

    broker_id: int
    broker_epoch: int
    view_version: int
    removed: tuple[tuple[int, bytes], ...] = ()
    dropped: tuple[tuple[int, bytes], ...] = ()  # replicas whose files are gone (ClusterView.dropped)


class BrokerFailed(_Message, frozen=True):
    """Broker -> coordinator: it cannot start and ends (a locked directory, a disk of another cluster). -> Done"""

    broker_id: int
    broker_epoch: int
    failure: Failure


class ViewChanged(_Message, frozen=True):
    """Coordinator -> broker: a newer view is in force. (Clients sleep on control.view_changes; a broker's Python thread sleeps on its sockets.)"""

    view_version: int


class Trim(_Message, frozen=True):
    """Coordinator -> broker. -> Trimmed with the same `request`."""

    request: int
    block: int
    topic_id: bytes
    offset: int  # -1: to the end


class Trimmed(_Message, frozen=True):
    request: int
    log_start: int = -1
    failure: Failure | None = None


class BrokerStop(_Message, frozen=True):
    """Coordinator -> broker: fence what it leads (nothing may be appended behind), spill and sync everything within timeout_ms, then report
    BrokerStopped and exit 0. What cannot be written: report it and, unless force, stay; the coordinator then gives new leader epochs in a new view and
    the broker opens its partitions anew. SIGTERM to a broker means the same without force."""

    force: bool = False
    timeout_ms: int = 60_000
    retired: bool = False  # it has nothing any more, and leaves a note of that in its directory


class BrokerStopped(_Message, frozen=True):
    """Broker -> coordinator, before it exits (or stays, when unspilled_bytes > 0 and it was not forced)."""

    broker_id: int
    broker_epoch: int
    unspilled_bytes: int = 0
    failure: Failure | None = None


# --- spare.sock (SOCK_SEQPACKET: a message a packet, no length in front) -----------------------------------------------


class StartOptions(_Message, frozen=True):
    """What `up` wants. None: as it was, or the default for a new cluster. The spare keeps it for the coordinators that it forks."""

    cluster: str
    brokers: int | None = None
    data_dirs: tuple[str, ...] | None = None  # (): none
    state_dir: str | None = None
    config: dict[str, str] = {}
    owner_pid: int = 0
    owner_start_ticks: int = 0
    temporary: bool = False


class Fork(_Message, frozen=True):
    """-> Forked, with the child's pidfd as SCM_RIGHTS. argument: msgpack of BrokerStart for a broker, else empty."""

    role: str  # "broker" or "coordinator" (a coordinator begins as standby; who gets the lock is active)
    id: int = 0
    slot: int = 0  # entry in control.processes
    argument: bytes = b""


class Forked(_Message, frozen=True):
    pid: int
    start_ticks: int


class EndSpare(_Message, frozen=True):
    """The spare ends as soon as all its children have. No reply: its pidfd tells."""


class StartOutcome(_Message, frozen=True):
    """Coordinator -> `up`, through a pipe: the cluster is ready, or why not."""

    failure: Failure | None = None
    already: bool = False  # it was up before, whatever `up` saw: the coordinator that was to start it is a standby


Message = Union[  # noqa: UP007 (msgspec wants a real Union at run time)
    Register, Registered, Unregister, CreateTopics, DeleteTopics, DeleteNamespace, CreatePartitions, AlterTopicConfigs, DeleteRecords,
    ElectLeaders, ReassignPartitions, AddBroker, BrokerAdded, RetireBroker, AlterIsr, DescribeCluster, Described, Shutdown, Failure, Done, Results,
    Trims, BrokerStart, BrokerReady, BrokerApplied, BrokerFailed, ViewChanged, Trim, Trimmed, BrokerStop, BrokerStopped, StartOptions, Fork,
    Forked, EndSpare, StartOutcome,
]  # fmt: skip

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)
_view_decoder = msgspec.msgpack.Decoder(ClusterView)
_lazy_decoder = msgspec.msgpack.Decoder(LazyClusterView)
_topic_decoder = msgspec.msgpack.Decoder(TopicView)
_deleting_decoder = msgspec.msgpack.Decoder(tuple[DeletingPartition, ...])

encode = _encoder.encode


def decode(data: bytes | bytearray | memoryview) -> Any:
    """One message (of the union above); ValueError on anything else."""
    try:
        return _decoder.decode(data)
    except msgspec.MsgspecError as exc:  # msgspec.ValidationError, DecodeError
        raise ValueError(f"not a message of this version: {exc}") from None


def encode_view(view: ClusterView) -> bytes:
    return _encoder.encode(view)


def decode_view(data: bytes | memoryview) -> ClusterView:
    return _view_decoder.decode(data)


def decode_view_lazily(data: bytes | memoryview) -> LazyClusterView:
    return _lazy_decoder.decode(data)


def decode_topic(raw: msgspec.Raw) -> TopicView:
    return _topic_decoder.decode(raw)


def decode_deleting(raw: msgspec.Raw) -> tuple[DeletingPartition, ...]:
    return _deleting_decoder.decode(raw)


# --- errors on the way -------------------------------------------------------------------------------------------------


def failure_of(exc: BaseException) -> Failure:
    """Any exception as a message; a bug (not a ShmlogError) travels as ShmlogError with its type's name in the sentence."""
    if not isinstance(exc, errors.ShmlogError):
        return Failure("ShmlogError", f"{type(exc).__name__}: {exc}")
    fields = {key: value for key, value in vars(exc).items() if isinstance(value, str | int | float | bool | bytes | None)}
    return Failure(type(exc).__name__, str(exc), fields)


def exception_of(failure: Failure) -> errors.ShmlogError:
    cls = getattr(errors, failure.name, None)
    if not (isinstance(cls, type) and issubclass(cls, errors.ShmlogError)):
        return errors.ShmlogError(f"{failure.message} ({failure.name})")
    try:
        return cls(failure.message, **failure.fields)
    except TypeError:  # a field that this version's class does not declare
        return cls(failure.message)


def raise_failure(failure: Failure) -> None:
    raise exception_of(failure)


# --- framing -----------------------------------------------------------------------------------------------------------

_LENGTH = struct.Struct("<I")
MESSAGE_MAX_BYTES = 64 * 2**20  # a request that claims more is not one


def frame(message: Any) -> bytes:
    data = encode(message)
    return _LENGTH.pack(len(data)) + data


class Unframer:
    """Bytes as they come from a stream, messages out; for readers that may not block."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Any]:
        """The messages completed by `data`. ValueError: the peer speaks something else; close the connection."""
        self._buffer += data
        found = []
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > MESSAGE_MAX_BYTES:
                raise ValueError(f"a message of {length} bytes")
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                break
            found.append(decode(bytes(self._buffer[_LENGTH.size : end])))
            del self._buffer[:end]
        return found


def send(sock: socket.socket, message: Any, deadline: float) -> None:
    """Blocking, up to `deadline` (time.monotonic()). TimeoutError; ConnectionError if the peer is gone."""
    sock.settimeout(_left(deadline))
    sock.sendall(frame(message))


def receive(sock: socket.socket, deadline: float) -> Any:
    """One message. TimeoutError; ConnectionError at the end of the stream; ValueError."""
    (length,) = _LENGTH.unpack(_receive_exactly(sock, _LENGTH.size, deadline))
    if length > MESSAGE_MAX_BYTES:
        raise ValueError(f"a message of {length} bytes")
    return decode(_receive_exactly(sock, length, deadline))


def _receive_exactly(sock: socket.socket, n: int, deadline: float) -> bytes:
    data = bytearray()
    while len(data) < n:
        sock.settimeout(_left(deadline))
        piece = sock.recv(n - len(data))
        if not piece:
            raise ConnectionError("the coordinator closed the connection")
        data += piece
    return bytes(data)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


# --- names -------------------------------------------------------------------------------------------------------------

METADATA_FILE = "cluster.sqlite3"  # in the first data directory


def internal_name(namespace: str, topic: str) -> str:
    return f"{namespace}/{topic}" if namespace else topic


def split_name(name: str) -> tuple[str, str]:
    """An internal name's namespace ("" for none) and topic."""
    namespace, slash, topic = name.rpartition("/")
    return (namespace, topic) if slash else ("", name)


def directories_elsewhere(view: ClusterView) -> dict[int, str]:
    """Of brokers that were added with a directory outside of the data directories. What else lies beside them is nobody's business."""
    return {b.id: b.directory for b in view.brokers.values() if b.directory and os.path.dirname(b.directory) not in view.data_dirs}


def partition_directory(broker_directory: str, topic: str, partition: int, topic_id: bytes) -> str:
    """Where a broker keeps the files of a partition; "" for a broker without a disk."""
    if not broker_directory:
        return ""
    name = topic.replace("/", "~")
    if len(name) > 200:  # a file name has 255 bytes; the whole id keeps shortened names apart
        return os.path.join(broker_directory, f"{name[:160]}~-{partition}-{topic_id.hex()}")
    return os.path.join(broker_directory, f"{name}-{partition}-{topic_id[:4].hex()}")
