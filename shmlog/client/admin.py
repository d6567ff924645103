"""Admin: topics and the cluster, made and changed by requests to the coordinator, looked at in the cluster view.

Looking asks nobody: the metadata in force is one immutable snapshot in shared memory. Changing goes to the coordinator; a reply means that the change
is in force for every process, and durable where the cluster has a disk. A request that meets a dying coordinator is repeated to its successor.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from shmlog import errors, messages
from shmlog._ffi import ffi, lib, raise_code
from shmlog.client import handle
from shmlog.client.session import Session, attach
from shmlog.config import CLUSTER_KEYS, TOPIC_KEYS, cluster_config, to_text, topic_config, topic_name
from shmlog.types import NewPartitions, NewTopic, TopicPartition

if TYPE_CHECKING:
    from collections.abc import Callable

    from shmlog import events
    from shmlog.client.watch import Watch


class Admin:
    """Administers the topics of a cluster; a context manager. Names and shapes of results are kafka-python's.

    bootstrap_servers    "shm://name" or "shm://name/namespace"; None: $SHMLOG_CLUSTER, else "shm://default"
    timeout_ms           how long a request may take (default_api_timeout_ms and request_timeout_ms of other clients are the same thing)
    raise_errors         (of each method that takes several topics) raise the first failure, once all were tried; the result has them all

    NoBrokersAvailable when no cluster runs.
    """

    def __init__(
        self, bootstrap_servers: str | list[str] | None = None, *, timeout_ms: float = 30_000, client_id: str = "", **without_effect: Any
    ) -> None:
        self._generation = handle.CLOSED
        handle.check_keywords(type(self), without_effect, Admin.__init__.__kwdefaults__, handle.CONNECTION_KEYWORDS | {"default_api_timeout_ms"})
        self._recipe = {"bootstrap_servers": bootstrap_servers, "timeout_ms": timeout_ms, "client_id": client_id}
        self._timeout_ms = timeout_ms
        self.client_id = client_id
        self._session: Session = attach(bootstrap_servers)
        self._generation = handle.generation

    # --- topics ---

    def create_topics(
        self, new_topics: Iterable[NewTopic] | NewTopic, timeout_ms: float | None = None, validate_only: bool = False, raise_errors: bool = True
    ) -> dict[str, Any]:
        """Makes topics; they can be used when it returns. {"topics": [{"name", "error_code", "error_message", "num_partitions", ...}]}.

        TopicAlreadyExistsError, InvalidTopicError, InvalidPartitionsError, InvalidReplicationFactorError, InvalidConfigurationError. Each topic is
        made or not on its own: the first failure is raised after all were tried, unless raise_errors=False.
        """
        session = self._open()
        topics = [new_topics] if isinstance(new_topics, NewTopic) else list(new_topics)
        for topic in topics:
            topic_name(topic.name)
        specs = tuple(
            messages.TopicSpec(
                _internal(session, t.name),
                os.urandom(16),
                _int(t.num_partitions, "num_partitions"),
                _int(t.replication_factor, "replication_factor"),
                {n: tuple(replicas) for n, replicas in t.replica_assignments.items()},
                {_key(key): to_text(value) for key, value in t.config.items()},
            )
            for t in topics
        )
        failures = self._results(messages.CreateTopics(specs, validate_only), timeout_ms)
        result = []
        for topic, failure in zip(topics, failures, strict=True):
            view = None if validate_only else session.topic(topic.name)
            result.append(
                {
                    "name": topic.name,
                    **_outcome(failure),
                    "num_partitions": len(view.partitions) if view else topic.num_partitions,
                    "replication_factor": len(view.partitions[0].replicas) if view else topic.replication_factor,
                    "topic_id": view.topic_id.hex() if view else None,
                }
            )
        return _finish({"topics": result}, failures, raise_errors)

    def delete_topics(self, topics: Iterable[str] | str, timeout_ms: float | None = None, raise_errors: bool = True) -> dict[str, Any]:
        """Deletes topics with all their records. {"responses": [{"name", "error_code", "error_message"}]}. Handles that are open on them get
        UnknownTopicOrPartitionError from now on, also when a topic of that name is made again."""
        session = self._open()
        names = [topics] if isinstance(topics, str) else list(topics)
        failures = self._results(messages.DeleteTopics(tuple(_named(session, n) for n in names)), timeout_ms)
        return _finish({"responses": [{"name": n, **_outcome(f)} for n, f in zip(names, failures, strict=True)]}, failures, raise_errors)

    def list_topics(self) -> list[str]:
        """The names of all topics (of the namespace), sorted."""
        return sorted(self._open().topics())

    def describe_topics(self, topics: Iterable[str] | str | None = None) -> list[dict[str, Any]]:
        """[{"name", "topic", "topic_id", "is_internal", "error_code", "partitions": [{"partition_index", "partition", "leader_id", "leader",
        "leader_epoch", "replica_nodes", "replicas", "isr_nodes", "isr", "log_start_offset", "high_watermark", "log_end_offset", "durable_offset"}]}],
        all topics by default. UnknownTopicOrPartitionError if one does not exist."""
        session = self._open()
        names = self.list_topics() if topics is None else [topics] if isinstance(topics, str) else list(topics)
        return [self._describe(session, name) for name in names]

    def create_partitions(
        self,
        topic_partitions: Mapping[str, NewPartitions | int],
        timeout_ms: float | None = None,
        validate_only: bool = False,
        raise_errors: bool = True,
    ) -> dict[str, Any]:
        """Grows topics to the totals given. {"results": [{"name", "error_code", "error_message"}]}. Keys then go to other partitions than before.
        InvalidPartitionsError when a topic has as many or more already."""
        session = self._open()
        totals = {name: new.total_count if isinstance(new, NewPartitions) else _int(new, "a total") for name, new in topic_partitions.items()}
        if validate_only:
            failures: list[Any] = [self._cannot_grow(name, total) for name, total in totals.items()]
        else:
            failures = self._results(messages.CreatePartitions({_named(session, n): total for n, total in totals.items()}), timeout_ms)
        return _finish({"results": [{"name": n, **_outcome(f)} for n, f in zip(totals, failures, strict=True)]}, failures, raise_errors)

    def _cannot_grow(self, name: str, total: int) -> errors.ShmlogError | None:
        have = len(self._topic(self._open(), name).partitions)
        return None if total > have else errors.InvalidPartitionsError(f"{name} has {have} partitions, {total} is not more", topic=name)

    # --- configs ---

    def alter_topic_configs(
        self, configs: Mapping[str, Mapping[str, Any]], timeout_ms: float | None = None, raise_errors: bool = True
    ) -> dict[str, Any]:
        """Sets configs: {topic: {key: value}}; a value of None gives the key back to its default. Other keys stay. InvalidConfigurationError with the
        nearest key."""
        session = self._open()
        wanted = {_named(session, t): {_key(k): None if v is None else to_text(v) for k, v in changes.items()} for t, changes in configs.items()}
        failures = self._results(messages.AlterTopicConfigs(wanted), timeout_ms)
        return _finish({"results": [{"name": n, **_outcome(f)} for n, f in zip(configs, failures, strict=True)]}, failures, raise_errors)

    def alter_configs(self, config_resources: Any, **keywords: Any) -> dict[str, Any]:
        """kafka-python's form: ConfigResource objects (resource_type TOPIC, name, configs)."""
        resources = config_resources if isinstance(config_resources, list | tuple) else [config_resources]
        return self.alter_topic_configs({r.name: dict(r.configs or {}) for r in resources}, **keywords)

    def describe_configs(self, resources: Any = None) -> dict[str, dict[str, dict[str, Any]]]:
        """{topic: {key: {"value", "is_default", "type", "unit", "documentation"}}} of topics (names, or kafka-python's ConfigResource objects); "" is
        the cluster itself, and the default is all topics."""
        session = self._open()
        names = self.list_topics() if resources is None else [resources] if isinstance(resources, str) else list(resources)
        found = {}
        for name in (n if isinstance(n, str) else n.name for n in names):
            if name == "":
                changed: Mapping[str, str] = session.view.config
                typed: Any = cluster_config(changed)
                table = CLUSTER_KEYS
            else:
                changed = self._topic(session, name).config
                typed = topic_config(changed)
                table = TOPIC_KEYS
            found[name] = {
                key: {
                    "value": to_text(getattr(typed, key.replace(".", "_"))),
                    "is_default": key not in changed,
                    "type": row.kind,
                    "unit": row.unit,
                    "documentation": row.doc,
                }
                for key, row in table.items()
            }
        return found

    # --- records ---

    def delete_records(
        self, records_to_delete: Mapping[TopicPartition, int], timeout_ms: float | None = None, raise_errors: bool = True
    ) -> dict[TopicPartition, dict[str, Any]]:
        """Deletes what is older than an offset: {TopicPartition: offset}; -1 is everything up to now. {tp: {"low_watermark", "error_code",
        "error_message"}}. OffsetOutOfRangeError beyond the end."""
        session = self._open()
        wanted = [TopicPartition(topic, _int(n, "a partition")) for topic, n in records_to_delete]
        for tp in wanted:
            count = len(self._topic(session, tp.topic).partitions)
            if not 0 <= tp.partition < count:
                raise errors.no_partition(tp.topic, tp.partition, count)
        request = messages.DeleteRecords(
            tuple(
                (_internal(session, tp.topic), tp.partition, _int(offset, "an offset"))
                for tp, offset in zip(wanted, records_to_delete.values(), strict=True)
            )
        )
        reply = session.request(request, self._timeout(timeout_ms))
        failures = [messages.exception_of(r) if isinstance(r, messages.Failure) else None for r in reply.results]
        result = {
            tp: {"low_watermark": r if isinstance(r, int) else -1, **_outcome(f)} for tp, r, f in zip(wanted, reply.results, failures, strict=True)
        }
        _finish({}, failures, raise_errors)
        return result

    # --- cluster ---

    def describe_cluster(self) -> dict[str, Any]:
        """{"cluster_id", "name", "controller_id", "brokers": [{"node_id", "broker_id", "pid", "state", "directory", ...}], "topics", "data_dirs",
        "config", ...} from shared memory."""
        session = self._open()
        view = session.view
        control = lib.sl_cluster_control(session.cluster)
        brokers = []
        for broker in view.brokers.values():
            process = control.processes[broker.process]
            brokers.append(
                {
                    "node_id": broker.id,
                    "broker_id": broker.id,
                    "host": "localhost",
                    "port": 0,
                    "rack": None,
                    "pid": int(process.pid),
                    "state": _PROCESS_STATES.get(process.state, "dead"),
                    "broker_epoch": broker.broker_epoch,
                    "directory": broker.directory or None,
                    "retiring": broker.retiring,
                }
            )
        return {
            "cluster_id": view.cluster_id.hex(),
            "name": view.name,
            "controller_id": -1,
            "coordinator_epoch": view.coordinator_epoch,
            "brokers": brokers,
            "topics": len(session.topics()),
            "data_dirs": list(view.data_dirs),
            "config": dict(view.config),
            "layout_version": lib.SL_LAYOUT_VERSION,
        }

    def elect_leaders(
        self,
        election_type: str = "preferred",
        topic_partitions: Mapping[str, Iterable[int]] | Iterable[TopicPartition] | None = None,
        timeout_ms: float | None = None,
        raise_errors: bool = True,
    ) -> dict[TopicPartition, dict[str, Any]]:
        """Elections: "preferred" gives partitions back to their first replica, if it is in sync; "unclean" lets any living replica lead where no
        in-sync one lives, and what only the others had is lost. Of all replicated partitions unless named. {tp: {"error_code", "error_message"}};
        what had nothing to elect is no error unless it was named. PreferredLeaderNotAvailableError, EligibleLeadersNotAvailableError,
        ElectionNotNeededError."""
        kind = str(getattr(election_type, "name", election_type)).lower()
        if kind not in ("preferred", "unclean"):
            raise errors.IllegalArgumentError(f"election_type={election_type!r}: preferred or unclean")
        session = self._open()
        named = topic_partitions is not None
        if topic_partitions is None:
            topics = {name: self._topic(session, name).partitions for name in self.list_topics()}
            wanted = [TopicPartition(name, n) for name, partitions in topics.items() for n, p in enumerate(partitions) if len(p.replicas) > 1]
        elif isinstance(topic_partitions, Mapping):
            wanted = [TopicPartition(name, _int(n, "a partition")) for name, numbers in topic_partitions.items() for n in numbers]
        else:
            wanted = [TopicPartition(*tp) for tp in topic_partitions]
        request = messages.ElectLeaders(tuple((_internal(session, tp.topic), tp.partition) for tp in wanted), kind == "unclean")
        failures = self._results(request, timeout_ms)
        if not named:
            failures = [None if isinstance(f, errors.ElectionNotNeededError) else f for f in failures]
        result = {tp: _outcome(f) for tp, f in zip(wanted, failures, strict=True)}
        _finish({}, failures, raise_errors)
        return result

    perform_leader_election = elect_leaders  # kafka-python's name

    # --- moves of replicas ---

    def reassign_partitions(
        self, reassignments: Mapping[TopicPartition, Iterable[int] | None], timeout_ms: float | None = None, raise_errors: bool = True
    ) -> dict[TopicPartition, dict[str, Any]]:
        """Gives partitions other replicas: {TopicPartition: [broker ids]}, the first being the one that should lead; more or fewer of them change the
        replication factor; None takes back a move that is under way. {tp: {"error_code", "error_message"}}.

        It returns when the moves are begun, durably: the new replicas copy, come in sync, one of them leads if the leader leaves, and the old ones go,
        while producers and consumers go on. list_partition_reassignments() shows what is under way. InvalidReplicationAssignmentError (no such
        broker, named twice, down, retiring), InvalidReplicationFactorError, NoReassignmentInProgressError, NotEnoughReplicasError.
        """
        session = self._open()
        wanted = {
            TopicPartition(topic, _int(n, "a partition")): None if to is None else tuple(_int(r, "a broker's id") for r in to)
            for (topic, n), to in reassignments.items()
        }
        request = messages.ReassignPartitions(tuple((_internal(session, tp.topic), tp.partition, to) for tp, to in wanted.items()))
        failures = self._results(request, timeout_ms)
        result = {tp: _outcome(f) for tp, f in zip(wanted, failures, strict=True)}
        _finish({}, failures, raise_errors)
        return result

    alter_partition_reassignments = reassign_partitions  # kafka-python's name

    def list_partition_reassignments(self, topic_partitions: Iterable[TopicPartition] | None = None) -> dict[TopicPartition, dict[str, list[int]]]:
        """Moves under way: {tp: {"replicas", "adding_replicas", "removing_replicas"}}."""
        session = self._open()
        named = None if topic_partitions is None else {TopicPartition(*tp) for tp in topic_partitions}
        found = {}
        for name in session.topics():
            topic = session.topic(name)
            for n, p in enumerate(topic.partitions if topic else ()):
                tp = TopicPartition(name, n)
                if p.target and (named is None or tp in named):
                    found[tp] = {"replicas": list(p.replicas), "adding_replicas": list(p.adding), "removing_replicas": list(p.removing)}
        return found

    # --- brokers ---

    def add_broker(self, data_dir: str | None = None, timeout_ms: float | None = None) -> dict[str, Any]:
        """Starts a further broker, with a directory beside the others or in data_dir; a restart of the cluster brings it again. {"broker_id", "pid",
        "directory"} once it is ready. It has no partitions yet: reassign_partitions() and new topics give it some. What keeps it from starting is
        raised (StorageError, ...), and then there is no such broker."""
        session = self._open()
        while True:
            broker_id = next(id for id in range(len(session.view.brokers) + 1) if id not in session.view.brokers)
            try:
                added = session.request(messages.AddBroker(broker_id, os.path.realpath(data_dir) if data_dir else ""), self._timeout(timeout_ms))
            except errors.DuplicateBrokerRegistrationError:
                continue  # somebody else adds one too, and was quicker
            return {"broker_id": added.broker_id, "pid": added.pid, "directory": added.directory or None}

    def retire_broker(self, broker_id: int, force: bool = False, timeout_ms: float | None = None) -> None:
        """The broker gives its partitions, and what it leads, to others; then its process ends and the cluster forgets it; its directory stays. Returns
        when that is begun, durably; describe_cluster() lists the broker, as retiring, until it is done.

        BrokerIdNotRegisteredError; NotEnoughReplicasError with numbers where a partition has no other broker to go to, unless force=True lets its
        replica list get shorter (never empty)."""
        self._open().request(messages.RetireBroker(_int(broker_id, "a broker's id"), force), self._timeout(timeout_ms))

    # --- groups: not yet ---

    def _later(self, what: str) -> errors.ShmlogError:
        self._open()
        return errors.UnsupportedVersionError(f"{what} comes with a later version of shmlog")

    def list_groups(self) -> list[Any]:
        raise self._later("list_groups(): consumer groups")

    def describe_groups(self, group_ids: Any = None) -> Any:
        raise self._later("describe_groups(): consumer groups")

    def delete_groups(self, group_ids: Any) -> Any:
        raise self._later("delete_groups(): consumer groups")

    def alter_group_offsets(self, group_id: str, offsets: Any) -> Any:
        raise self._later("alter_group_offsets(): consumer groups")

    # --- changes ---

    def watch(self, callback: Callable[[events.Event], object]) -> Watch:
        """Calls callback(event) for each change of the cluster, as ZooKeeper's watches did but for good: brokers that come, go, start and end, topics
        and their configs, leaders, replicas, in-sync replicas, the coordinator. The events are in shmlog.events, with their order.

        The first event is a State: everything as it is. Each later one is a change to that; what passed between two looks of the watch (it came and
        went, or changed twice) is told as the difference. The last is ClusterDown; a closed watch just ends. Topics are those of the namespace.

        The callback runs in a thread of the watch, one call at a time, and may take its time and use any handle. What it raises is logged (logger
        "shmlog.watch", with the traceback) and the watch goes on. Asks no process, so it works while the coordinator is stopped or dead.

        Returns a Watch: close() (also from the callback), wait(), a context manager. It does not end with this Admin.
        """
        from shmlog.client.watch import Watch

        return Watch(self._open().keep(), callback)

    # --- life ---

    def close(self) -> None:
        """Again: nothing."""
        if self._generation == handle.CLOSED:
            return
        if self._generation != handle.generation:
            handle.refuse(self._generation, "Admin")
        self._generation = handle.CLOSED
        self._session.close()

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(handle, "exiting", True) and getattr(self, "_generation", handle.CLOSED) == handle.generation:
            self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (type(self), self._recipe)

    def __repr__(self) -> str:
        return "<Admin closed>" if self._generation == handle.CLOSED else f"<Admin {self._session.address}>"

    # --- inside ---

    def _open(self) -> Session:
        if self._generation != handle.generation:
            handle.refuse(self._generation, "Admin")
        return self._session

    def _timeout(self, timeout_ms: float | None) -> float:
        """In seconds."""
        return (self._timeout_ms if timeout_ms is None else timeout_ms) / 1000

    def _results(self, request: Any, timeout_ms: float | None) -> list[errors.ShmlogError | None]:
        reply = self._open().request(request, self._timeout(timeout_ms))
        return [None if f is None else messages.exception_of(f) for f in reply.failures]

    def _topic(self, session: Session, name: str) -> Any:
        view = session.topic(name)
        if view is None:
            raise errors.UnknownTopicOrPartitionError(f"there is no topic {name!r}", topic=name)
        return view

    def _describe(self, session: Session, name: str) -> dict[str, Any]:
        view = self._topic(session, name)
        out = ffi.new("sl_offsets *")
        partitions = []
        for n, p in enumerate(view.partitions):
            code = lib.sl_log_offsets(session.cluster, lib.SL_MAX_ROWS, p.block, out)
            if code < 0:
                raise_code(code, f"{name}-{n}: its memory cannot be read")
            partitions.append(
                {
                    "error_code": 0 if p.leader >= 0 else errors.LeaderNotAvailableError.code,
                    "partition_index": n,
                    "partition": n,
                    "leader_id": p.leader,
                    "leader": p.leader if p.leader >= 0 else None,
                    "leader_epoch": p.leader_epoch,
                    "replica_nodes": list(p.replicas),
                    "replicas": list(p.replicas),
                    "isr_nodes": list(p.isr),
                    "isr": list(p.isr),
                    "adding_replicas": list(p.adding),
                    "removing_replicas": list(p.removing),
                    "offline_replicas": [],
                    "log_start_offset": int(out.log_start),
                    "high_watermark": int(out.high_watermark),
                    "log_end_offset": int(out.end),
                    "durable_offset": int(out.durable),
                }
            )
        return {
            "error_code": 0,
            "name": name,
            "topic": name,
            "topic_id": view.topic_id.hex(),
            "is_internal": False,
            "config": dict(view.config),
            "partitions": partitions,
        }


_PROCESS_STATES = {
    lib.SL_PROCESS_STARTING: "starting",
    lib.SL_PROCESS_UP: "up",
    lib.SL_PROCESS_STOPPED: "stopped",
    lib.SL_PROCESS_DEAD: "dead",
}


def _named(session: Session, name: str) -> str:
    """The internal name of a topic that should exist. One with a "/" would lead into another namespace."""
    return _internal(session, topic_name(name))


def _internal(session: Session, name: str) -> str:
    return messages.internal_name(session.address.namespace, name)


def _int(given: int, what: str) -> int:
    if type(given) is not int and not hasattr(given, "__index__"):
        raise TypeError(f"{what} is an int, not {type(given).__name__}")
    if not -(2**63) <= given < 2**63:
        raise errors.IllegalArgumentError(f"{what} of {given} is beyond 64 bits")
    return int(given)


def _key(given: str) -> str:
    if not isinstance(given, str):
        raise errors.InvalidConfigurationError(f"{given!r} is not a config key: these are str")
    return given


def _outcome(failure: errors.ShmlogError | None) -> dict[str, Any]:
    return {"error_code": failure.code if failure else 0, "error_message": str(failure) if failure else None}


def _finish(result: dict[str, Any], failures: Iterable[errors.ShmlogError | None], raise_errors: bool) -> dict[str, Any]:
    if raise_errors:
        for failure in failures:
            if failure is not None:
                raise failure
    return result


def _reopen(cls: type[Admin], recipe: dict[str, Any]) -> Admin:
    return cls(**recipe)


__all__ = ["Admin"]
