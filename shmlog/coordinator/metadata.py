"""Every decision about topics, partitions, leaders and brokers, as functions from one ClusterView to the next.

No I/O, no clock, no randomness: facts come in as arguments, a new view comes out (the same object if nothing changes), and the caller puts it in force.
So thousands of schedules can be tried in a second, and a decision that was not put in force never happened.

What holds of every view made here:
- a partition block belongs to at most one partition, of a topic or of `deleting`; it is free again only when the broker has reported it removed;
- leader epochs and broker epochs of a partition or broker never go back, over boots neither (`restarted()`);
- version grows by one with each decision.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from shmlog import config
from shmlog.coordinator import elections
from shmlog.errors import (
    DuplicateBrokerRegistrationError,
    IllegalArgumentError,
    InvalidConfigurationError,
    InvalidPartitionsError,
    InvalidReplicationFactorError,
    ShmlogError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
)
from shmlog.messages import (
    NO_LEADER,
    REMOVED,
    BrokerView,
    ClusterView,
    DeletingPartition,
    PartitionView,
    StartOptions,
    TopicSpec,
    TopicView,
    split_name,
)

MAX_PARTITIONS = 16384  # SL_MAX_PARTITIONS; of the whole cluster
MAX_BROKERS = 60
FIRST_BROKER_PROCESS = 4  # control.processes: 0 the spare, 1-3 coordinators
MAX_REPLICATION_FACTOR = 16  # SL_FOLLOWERS_MAX and the leader

# At a new start of a cluster whose memory is gone, all epochs jump by this much: the store follows behind the decisions, and a grant that a power
# cut kept from it must not be given again. The server lets the store lag by less than this.
UNSTORED_DECISIONS_MAX = 16

Failures = list[ShmlogError | None]


class Decision(NamedTuple):
    view: ClusterView  # the old one if nothing is decided
    failures: Failures  # one entry for each item of the request


# --- the cluster -------------------------------------------------------------------------------------------------------


def new_cluster(options: StartOptions, cluster_id: bytes) -> ClusterView:
    """The first view of a cluster; version 0, which is never in force."""
    data_dirs = options.data_dirs or ()
    view = ClusterView(
        cluster_id=cluster_id,
        name=options.cluster,
        version=0,
        coordinator_epoch=0,
        boot_counter=0,
        data_dirs=data_dirs,
        state_dir=options.state_dir or "",
        config={},
        brokers={},
        topics={},
    )
    return configured(view, options)


def configured(view: ClusterView, options: StartOptions) -> ClusterView:
    """The view with what `up` asked for. What it did not name stays; a broker that still has partitions is not dropped."""
    wanted = len(view.brokers) or 1 if options.brokers is None else options.brokers
    if not 1 <= wanted <= MAX_BROKERS:
        raise InvalidConfigurationError(f"a cluster has 1 to {MAX_BROKERS} brokers, not {wanted}", key="brokers")
    if options.data_dirs is not None and view.brokers and tuple(options.data_dirs) != view.data_dirs:
        raise InvalidConfigurationError(
            f"the cluster's data lies in {', '.join(view.data_dirs) or 'memory only'}, not in {', '.join(options.data_dirs) or 'memory only'}",
            key="data",
            hint="start it with the same --data, or stop and wipe it first: `shmlog down --wipe`",
        )
    while len(view.brokers) > wanted:
        broker_id = max(view.brokers)
        needed = parts_of(view, broker_id)
        if needed:
            raise InvalidConfigurationError(
                f"broker {broker_id} has {needed} partitions; the cluster cannot go on with {wanted} brokers",
                key="brokers",
                hint=f"`shmlog up`, then `shmlog broker retire {broker_id}` gives them to the others",
            )
        view = forget_broker(view, broker_id)
    while len(view.brokers) < wanted:
        view = add_broker(view, free_broker_id(view.brokers))
    typed = config.cluster_config(options.config, config.cluster_config(view.config))
    return msgspec.structs.replace(
        view,
        config=config.to_strings(typed, changed_only=True),
        state_dir=options.state_dir or view.state_dir,
        owner_pid=options.owner_pid,
        owner_start_ticks=options.owner_start_ticks,
        temporary=options.temporary,
    )


def free_broker_id(brokers: Iterable[int]) -> int:
    taken = set(brokers)
    return next(id for id in range(len(taken) + 1) if id not in taken)


def parts_of(view: ClusterView, broker_id: int) -> int:
    """Partitions, also of deleted topics and such as have left it, of which this broker has anything."""
    count = sum(broker_id in p.replicas for t in view.topics.values() for p in t.partitions)
    count += sum(d.broker == broker_id for d in view.dropped)
    return count + sum(p.leader == broker_id or broker_id in p.followers for p in view.deleting)


def add_broker(view: ClusterView, broker_id: int, data_dir: str = "") -> ClusterView:
    if broker_id in view.brokers:
        raise DuplicateBrokerRegistrationError(f"there is a broker {broker_id} already")
    if not 0 <= broker_id < MAX_BROKERS:
        raise IllegalArgumentError(f"a cluster has at most {MAX_BROKERS} brokers, 0 to {MAX_BROKERS - 1}; {broker_id} is none of them")
    if data_dir and not view.data_dirs:
        raise InvalidConfigurationError(f"the cluster keeps nothing on disk (--data none), so broker {broker_id} has no use for {data_dir}", key="data")
    directory = broker_directory((data_dir,) if data_dir else view.data_dirs, broker_id)
    added = BrokerView(broker_id, FIRST_BROKER_PROCESS + broker_id, view.retired.get(broker_id, 0), directory)
    retired = {id: epoch for id, epoch in view.retired.items() if id != broker_id}
    return msgspec.structs.replace(view, brokers={**view.brokers, broker_id: added}, retired=retired)


def forget_broker(view: ClusterView, broker_id: int) -> ClusterView:
    """It has nothing any more (parts_of()). Its epoch is kept: one that gets its id must not be taken for it."""
    brokers = {id: b for id, b in view.brokers.items() if id != broker_id}
    return msgspec.structs.replace(view, brokers=brokers, retired={**view.retired, broker_id: view.brokers[broker_id].broker_epoch})


def relocated(view: ClusterView, data_dirs: Sequence[str]) -> ClusterView:
    """The view of a cluster whose directories were moved: they are found where its database was found, in the same order."""
    if len(data_dirs) != len(view.data_dirs):
        return view  # another number of them: configured() refuses
    usual = {b.id for b in view.brokers.values() if b.directory == broker_directory(view.data_dirs, b.id)}  # the others were added elsewhere
    brokers = {
        b.id: msgspec.structs.replace(b, directory=broker_directory(data_dirs, b.id)) if b.id in usual else b for b in view.brokers.values()
    }
    return msgspec.structs.replace(view, data_dirs=tuple(data_dirs), brokers=brokers)


def broker_directory(data_dirs: Sequence[str], broker_id: int) -> str:
    return os.path.join(data_dirs[broker_id % len(data_dirs)], f"broker-{broker_id}") if data_dirs else ""


def restarted(view: ClusterView, clean: bool) -> ClusterView:
    """The view with which a cluster begins on fresh memory (not yet a decision). clean: the store had everything when it was stopped."""
    jump = 0 if clean else UNSTORED_DECISIONS_MAX
    brokers = {b.id: msgspec.structs.replace(b, broker_epoch=b.broker_epoch + jump) for b in view.brokers.values()}
    topics = {
        t.name: msgspec.structs.replace(
            t, partitions=tuple(msgspec.structs.replace(p, leader_epoch=p.leader_epoch + jump) for p in t.partitions)
        )
        for t in view.topics.values()
    }
    retired = {id: epoch + jump for id, epoch in view.retired.items()}
    return elections.without_leaders(msgspec.structs.replace(view, version=view.version + jump, brokers=brokers, topics=topics, retired=retired))


def next_view(view: ClusterView, coordinator_epoch: int, **changes: object) -> ClusterView:
    return msgspec.structs.replace(view, version=view.version + 1, coordinator_epoch=coordinator_epoch, **changes)


def start_brokers(view: ClusterView, broker_ids: Iterable[int]) -> ClusterView:
    """New epochs for these brokers and for every partition they lead; partitions without a leader get theirs back. The caller holds the death
    certificates of the processes that had the old epochs."""
    ids = set(broker_ids)
    brokers = {
        b.id: msgspec.structs.replace(b, broker_epoch=b.broker_epoch + 1) if b.id in ids else b for b in view.brokers.values()
    }

    def begun(p: PartitionView) -> PartitionView:
        leader = p.leader
        if leader == NO_LEADER and len(p.replicas) == 1:  # of several replicas the longest leads, when all have reported: elections.py
            leader = p.replicas[0]
        if leader not in ids:
            return p
        return msgspec.structs.replace(p, leader=leader, leader_epoch=p.leader_epoch + 1)

    topics = {}
    for topic in view.topics.values():
        partitions = tuple(map(begun, topic.partitions))
        changed = any(new is not old for new, old in zip(partitions, topic.partitions, strict=True))
        topics[topic.name] = msgspec.structs.replace(topic, partitions=partitions) if changed else topic
    return msgspec.structs.replace(view, brokers=brokers, topics=topics)


# --- blocks ------------------------------------------------------------------------------------------------------------


def blocks_in_use(view: ClusterView) -> set[int]:
    used = {p.block for topic in view.topics.values() for p in topic.partitions}
    used.update(p.block for p in view.deleting)
    return used


# For a block that no partition has: the highest leader epoch it was ever used under (0: never used), or None while somebody still names it.
LastEpoch = Callable[[int], int | None]


class _Blocks:
    """Gives blocks out, lowest first. Under a new topic a block's epochs go on where the old one's ended, so that a zombie of the old topic is
    fenced like any other."""

    def __init__(self, view: ClusterView, last_epoch: LastEpoch) -> None:
        self._used = blocks_in_use(view)
        self._last_epoch = last_epoch
        self._next = 0

    def free(self) -> int:
        return MAX_PARTITIONS - len(self._used)

    def take(self) -> tuple[int, int] | None:
        """A block and the first leader epoch to use it under."""
        while self._next < MAX_PARTITIONS:
            block = self._next
            self._next += 1
            if block in self._used:
                continue
            last = self._last_epoch(block)
            if last is not None:
                self._used.add(block)
                return block, last + 1
        return None


# --- topics ------------------------------------------------------------------------------------------------------------


def check_name(name: str) -> None:
    namespace, topic = split_name(name)
    if namespace or "/" in name:
        config.namespace_name(namespace)
    config.topic_name(topic)


def create_topics(
    view: ClusterView, specs: Sequence[TopicSpec], new_id: Callable[[], bytes], last_epoch: LastEpoch = lambda block: 0
) -> Decision:
    """Each topic is made or refused by itself. One that stands there with the very id that is asked for was made by an earlier copy of the request."""
    topics = dict(view.topics)
    blocks = _Blocks(view, last_epoch)
    load = loads_of(view)
    failures: Failures = []
    for spec in specs:
        try:
            existing = topics.get(spec.name)
            if existing is not None:
                if not spec.topic_id or existing.topic_id != spec.topic_id:
                    raise TopicAlreadyExistsError(f"topic {spec.name!r} exists already", topic=spec.name)
            else:
                topics[spec.name] = _new_topic(view, spec, new_id, blocks, load)
            failures.append(None)
        except ShmlogError as exc:
            failures.append(exc)
    if len(topics) == len(view.topics):
        return Decision(view, failures)
    return Decision(msgspec.structs.replace(view, topics=topics), failures)


def _new_topic(view: ClusterView, spec: TopicSpec, new_id: Callable[[], bytes], blocks: _Blocks, load: dict[int, int]) -> TopicView:
    check_name(spec.name)
    typed = config.topic_config(spec.config)
    defaults = config.cluster_config(view.config)
    assignments = spec.replica_assignments
    if assignments:
        if sorted(assignments) != list(range(len(assignments))):
            raise IllegalArgumentError(f"replica_assignments names partitions {sorted(assignments)}, not 0 to {len(assignments) - 1}")
        count, factor = len(assignments), len(assignments[0])
        for partition, replicas in assignments.items():
            _check_replicas(view, replicas, factor, partition)
    else:
        count = defaults.num_partitions if spec.partitions == -1 else spec.partitions
        factor = defaults.default_replication_factor if spec.replication_factor == -1 else spec.replication_factor
    check_replication_factor(view, typed, factor, len(load))
    check_min_insync(typed, factor)
    return TopicView(
        name=spec.name,
        topic_id=spec.topic_id if len(spec.topic_id) == 16 else new_id(),
        config=config.to_strings(typed, changed_only=True),
        partitions=_new_partitions(spec.name, 0, count, factor, assignments, blocks, load),
    )


def _new_partitions(
    name: str, first: int, count: int, factor: int, assignments: Mapping[int, Sequence[int]], blocks: _Blocks, load: dict[int, int]
) -> tuple[PartitionView, ...]:
    new = count - first
    if new < 1 or count > MAX_PARTITIONS:
        raise InvalidPartitionsError(f"topic {name!r}: {count} partitions are not possible (1 to {MAX_PARTITIONS})", topic=name)
    if new > blocks.free():
        raise InvalidPartitionsError(
            f"topic {name!r}: {new} partitions more are not possible, {blocks.free()} of {MAX_PARTITIONS} are free in this cluster", topic=name
        )
    made = []
    for partition in range(first, count):
        taken = blocks.take()
        if taken is None:
            raise InvalidPartitionsError(f"topic {name!r}: blocks of deleted topics are still in use by somebody; try again", topic=name)
        replicas = tuple(assignments[partition]) if assignments else tuple(sorted(load, key=lambda b: (load[b], b))[:factor])
        for broker in replicas:
            load[broker] += 1
        block, leader_epoch = taken
        made.append(PartitionView(block, replicas[0], leader_epoch, replicas, replicas))
    return tuple(made)


def loads_of(view: ClusterView) -> dict[int, int]:
    """Replicas a broker has: the next partition goes to whoever has fewest. None goes to one that is retiring."""
    found = {b.id: 0 for b in view.brokers.values() if not b.retiring}
    for topic in view.topics.values():
        for p in topic.partitions:
            for broker in p.target or p.replicas:
                if broker in found:
                    found[broker] += 1
    return found


def check_replication_factor(view: ClusterView, typed: config.TopicConfig, factor: int, count: int) -> None:
    """`count`: brokers that may have a replica."""
    if factor < 1 or factor > min(count, MAX_REPLICATION_FACTOR):
        brokers = f"{count} broker{'s' * (count != 1)}"
        raise InvalidReplicationFactorError(f"replication factor {factor} is not possible with {brokers}")
    if factor > 1 and not (typed.shmlog_spill and view.data_dirs):
        raise InvalidReplicationFactorError(
            f"replication factor {factor}: a topic that lives in memory alone has one copy, which survives every process",
            hint="replicas are files at other brokers: use a topic with shmlog.spill=true in a cluster with a data directory",
        )
    if factor > 1 and typed.shmlog_full == "drop_oldest":
        raise InvalidReplicationFactorError(f"replication factor {factor} and shmlog.full=drop_oldest: followers would wait for what was dropped")


def _check_replicas(view: ClusterView, replicas: Sequence[int], factor: int, partition: int) -> None:
    if not replicas or len(set(replicas)) != len(replicas) or not set(replicas) <= set(view.brokers):
        raise IllegalArgumentError(f"partition {partition}: replicas {list(replicas)} are not distinct brokers of {sorted(view.brokers)}")
    if retiring := [r for r in replicas if view.brokers[r].retiring]:
        raise IllegalArgumentError(f"partition {partition}: broker {retiring[0]} is retiring")
    if len(replicas) != factor:
        raise InvalidReplicationFactorError(f"partition {partition} has {len(replicas)} replicas, partition 0 has {factor}")


def check_min_insync(typed: config.TopicConfig, factor: int) -> None:
    if typed.min_insync_replicas > factor:
        raise InvalidConfigurationError(
            f"min.insync.replicas={typed.min_insync_replicas} with {factor} replicas: no append could ever be acknowledged",
            key="min.insync.replicas",
        )


def delete_topics(view: ClusterView, names: Sequence[str], repeated: bool = False) -> Decision:
    """The topics are gone at once; their blocks go through `deleting`."""
    topics = dict(view.topics)
    deleting = list(view.deleting)
    failures: Failures = []
    for name in names:
        topic = topics.pop(name, None)
        if topic is None:
            failures.append(None if repeated else _unknown(name))
            continue
        for number, p in enumerate(topic.partitions):
            leader = p.leader if p.leader != NO_LEADER else p.replicas[0]
            followers = tuple(r for r in p.replicas if r != leader)
            deleting.append(DeletingPartition(p.block, topic.topic_id, name, number, leader, followers))
        failures.append(None)
    if len(topics) == len(view.topics):
        return Decision(view, failures)
    return Decision(msgspec.structs.replace(view, topics=topics, deleting=tuple(deleting)), failures)


def renew_epochs(view: ClusterView, broker_ids: Iterable[int]) -> ClusterView:
    """New leader epochs for what these (living) brokers lead: they had fenced it in order to stop, and stay after all."""
    ids = set(broker_ids)
    began = start_brokers(view, ids)
    return msgspec.structs.replace(began, brokers=view.brokers)


def blocks_removed(view: ClusterView, broker_id: int, removed: Iterable[tuple[int, bytes]]) -> ClusterView:
    """A broker has removed what it had of these; a block is free when all have."""
    gone = set(removed)

    def after(p: DeletingPartition) -> DeletingPartition:
        if (p.block, p.topic_id) not in gone:
            return p
        leader = REMOVED if p.leader == broker_id else p.leader
        return msgspec.structs.replace(p, leader=leader, followers=tuple(r for r in p.followers if r != broker_id))

    left = tuple(p for p in map(after, view.deleting) if p.leader != REMOVED or p.followers)
    return view if left == view.deleting else msgspec.structs.replace(view, deleting=left)


def create_partitions(
    view: ClusterView, totals: Mapping[str, int], repeated: bool = False, last_epoch: LastEpoch = lambda block: 0
) -> Decision:
    topics = dict(view.topics)
    blocks = _Blocks(view, last_epoch)
    load = loads_of(view)
    failures: Failures = []
    changed = False
    for name, total in totals.items():
        try:
            topic = topics.get(name)
            if topic is None:
                raise _unknown(name)
            have = len(topic.partitions)
            if total == have and repeated:
                failures.append(None)
                continue
            if total <= have:
                raise InvalidPartitionsError(f"topic {name!r} has {have} partitions; {total} are not more", topic=name)
            factor = len(topic.partitions[0].target or topic.partitions[0].replicas)
            check_replication_factor(view, config.topic_config(topic.config), factor, len(load))
            more = _new_partitions(name, have, total, factor, {}, blocks, load)
            topics[name] = msgspec.structs.replace(topic, partitions=topic.partitions + more)
            changed = True
            failures.append(None)
        except ShmlogError as exc:
            failures.append(exc)
    return Decision(msgspec.structs.replace(view, topics=topics) if changed else view, failures)


def alter_topic_configs(view: ClusterView, configs: Mapping[str, Mapping[str, str | None]]) -> Decision:
    topics = dict(view.topics)
    failures: Failures = []
    changed = False
    for name, keys in configs.items():
        try:
            topic = topics.get(name)
            if topic is None:
                raise _unknown(name)
            given = {key: value for key, value in keys.items() if value is not None}
            back = set(keys) - set(given)
            for key in sorted(back - set(config.TOPIC_KEYS)):
                config.topic_config({key: ""})  # raises for an unknown key, with the nearest name
            typed = config.topic_config({**{k: v for k, v in topic.config.items() if k not in back}, **given})
            was = config.topic_config(topic.config)
            if typed.shmlog_spill != was.shmlog_spill:
                raise InvalidConfigurationError(
                    "shmlog.spill cannot be changed: what lies in memory and what lies on disk would not fit together",
                    key="shmlog.spill",
                    hint="make a new topic",
                )
            factors = [len(p.target or p.replicas) for p in topic.partitions]
            most = max(len(p.replicas) for p in topic.partitions)  # while they move these are more
            check_replication_factor(view, typed, most, len(view.brokers))
            check_min_insync(typed, min(factors))
            strings = config.to_strings(typed, changed_only=True)
            if strings != topic.config:
                topics[name] = msgspec.structs.replace(topic, config=strings)
                changed = True
            failures.append(None)
        except ShmlogError as exc:
            failures.append(exc)
    return Decision(msgspec.structs.replace(view, topics=topics) if changed else view, failures)


def _unknown(name: str) -> UnknownTopicOrPartitionError:
    return UnknownTopicOrPartitionError(f"there is no topic {name!r}", topic=name)


# --- what stands in a partition's block --------------------------------------------------------------------------------

# SL_PF_*; spelled out here because this module has no I/O and so no C core. tests/coordinator/ holds them against it.
PF_SPILL, PF_FULL_RAISE, PF_FULL_DROP, PF_CRC_ALWAYS, PF_APPENDED, PF_LOG_APPEND_TIME, PF_REPLICATED, PF_SYNC_RECYCLE, PF_BELOW_MIN_ISR = (
    1, 2, 4, 8, 16, 32, 64, 128, 256,
)  # fmt: skip


def partition_flags(view: ClusterView, topic: TopicView, number: int) -> int:
    typed = config.topic_config(topic.config)
    flags = 0
    if typed.shmlog_spill and view.data_dirs:
        flags |= PF_SPILL
    if typed.shmlog_full == "raise":
        flags |= PF_FULL_RAISE
    elif typed.shmlog_full == "drop_oldest":
        flags |= PF_FULL_DROP
    if typed.shmlog_crc == "append":
        flags |= PF_CRC_ALWAYS
    if typed.shmlog_visibility == "appended":
        flags |= PF_APPENDED
    if typed.message_timestamp_type == "LogAppendTime":
        flags |= PF_LOG_APPEND_TIME
    if len(topic.partitions[number].replicas) > 1:
        flags |= PF_REPLICATED
    if len(topic.partitions[number].isr) < typed.min_insync_replicas:
        flags |= PF_BELOW_MIN_ISR
    if typed.flush_messages == 1:
        flags |= PF_SYNC_RECYCLE
    return flags
