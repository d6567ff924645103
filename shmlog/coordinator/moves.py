"""Replica lists that change while records come (KIP-455), and brokers that retire: functions from one ClusterView to the next, as in metadata.py.

A partition that is moved has the old and the new replicas together in `replicas`, where it goes in `target`, and which of them it had not before in
`adding`. The new ones follow the leader and join the ISR as any follower does. What holds of every view made here:
- a replica leaves the list only when all of the target are in sync (or, when a move is taken back, one of those that stay), so nothing that was
  committed, or durable, is only where it goes away;
- a leader that leaves is followed by one of the target in the same decision, under a new leader epoch;
- between one replica and several the leader epoch grows too: the leader opens the partition anew, because what its high watermark means changes
  (broker/factor.py);
- a retiring broker gets nothing new, and is forgotten when it has nothing any more;
- after a power cut the last view on the coordinator's disk counts: so a move ends only when it stands there that all of the target are in sync (else
  the old replicas alone would elect, without what was acknowledged since), and files go only when it stands there that they are no replica any more.

All of it stands in the view, so whoever is the coordinator goes on: advance() is asked after each change, and now and then."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import msgspec

from shmlog import config
from shmlog.coordinator import metadata
from shmlog.coordinator.elections import change_partitions
from shmlog.errors import (
    BrokerIdNotRegisteredError,
    IllegalStateError,
    InvalidReplicationAssignmentError,
    LeaderNotAvailableError,
    NoReassignmentInProgressError,
    NotEnoughReplicasError,
    ShmlogError,
    UnknownTopicOrPartitionError,
)
from shmlog.messages import NO_LEADER, ClusterView, DroppedReplica, PartitionView, TopicView

NAMED_MAX = 5  # partitions that an error lists

Wanted = tuple[str, int, tuple[int, ...] | None]  # topic, partition, its replicas; None: back to those it had


def _in_memory_only(view: ClusterView, topic: TopicView) -> bool:
    return not (view.data_dirs and config.topic_config(topic.config).shmlog_spill)


# --- moving ------------------------------------------------------------------------------------------------------------


def reassign(view: ClusterView, wanted: Sequence[Wanted], alive: Collection[int], repeated: bool = False) -> metadata.Decision:
    """Each partition begins its move, or turns round, or is refused by itself. `alive`: the brokers that are up. repeated: an earlier copy of the
    request may have been carried out."""
    failures: metadata.Failures = []
    for name, number, to in wanted:
        try:
            topic = view.topics.get(name)
            if topic is None or not 0 <= number < len(topic.partitions):
                raise UnknownTopicOrPartitionError(f"there is no partition {name}-{number}", topic=name, partition=number)
            p = topic.partitions[number]
            if to is None and repeated and not p.target:
                pass
            elif to is None:
                view = _cancelled(view, topic, number, p)
            else:
                _check_target(view, topic, number, p, to, alive)
                view = _begun(view, topic, number, p, to)
            failures.append(None)
        except ShmlogError as exc:
            failures.append(exc)
    return metadata.Decision(view, failures)


def _check_target(view: ClusterView, topic: TopicView, number: int, p: PartitionView, to: tuple[int, ...], alive: Collection[int]) -> None:
    place = f"{topic.name}-{number}"

    def refuse(why: str, hint: str = "") -> InvalidReplicationAssignmentError:
        return InvalidReplicationAssignmentError(f"{place} cannot go to {list(to)}: {why}", topic=topic.name, partition=number, hint=hint)

    if not to:
        raise refuse("a partition has at least one replica")
    if unknown := [r for r in to if r not in view.brokers]:
        raise refuse(f"there is no broker {unknown[0]}, only {sorted(view.brokers)}", "`shmlog broker add` makes one more")
    if twice := [r for r in to if to.count(r) > 1]:
        raise refuse(f"broker {twice[0]} is named {to.count(twice[0])} times")
    if retiring := [r for r in to if view.brokers[r].retiring]:
        raise refuse(f"broker {retiring[0]} is retiring")
    if down := [r for r in to if r not in alive]:
        raise refuse(f"broker {down[0]} is not up", "try again when `shmlog broker list` shows it up")
    typed = config.topic_config(topic.config)
    if _would_wait_for_dropped(view, topic, p, to):
        hint = f"`shmlog topic alter {topic.name} -c shmlog.full=block` first"
        raise refuse("with shmlog.full=drop_oldest a new replica would wait for what was dropped", hint)
    metadata.check_replication_factor(view, typed, len(to), len(view.brokers))
    metadata.check_min_insync(typed, len(to))


def _would_wait_for_dropped(view: ClusterView, topic: TopicView, p: PartitionView, to: tuple[int, ...]) -> bool:
    drops = config.topic_config(topic.config).shmlog_full == "drop_oldest"
    return drops and not set(to) <= set(p.replicas) and not _in_memory_only(view, topic)


def _begun(view: ClusterView, topic: TopicView, number: int, p: PartitionView, to: tuple[int, ...]) -> ClusterView:
    if p.leader == NO_LEADER:
        raise LeaderNotAvailableError(f"{topic.name}-{number} has no leader at the moment, from whom a new replica could copy", topic=topic.name)
    if to == (p.target or p.replicas):
        return view
    if _in_memory_only(view, topic):  # shared memory is its only copy, and stays: another broker cares for it
        new = msgspec.structs.replace(p, replicas=to, isr=to, leader=to[0], leader_epoch=p.leader_epoch + 1)
        return _with(view, topic, number, new)
    before = p.before
    replicas = p.replicas + tuple(r for r in to if r not in p.replicas)
    if len(replicas) > metadata.MAX_REPLICATION_FACTOR:
        raise InvalidReplicationAssignmentError(
            f"{topic.name}-{number} cannot go to {list(to)}: old and new replicas would be {len(replicas)}, "
            f"and {metadata.MAX_REPLICATION_FACTOR} is the most",
            topic=topic.name, partition=number, hint="move it in two steps",
        )  # fmt: skip
    epoch = p.leader_epoch + (len(p.replicas) == 1 and len(replicas) > 1)
    new = msgspec.structs.replace(p, replicas=replicas, leader_epoch=epoch, target=to, adding=tuple(r for r in replicas if r not in before))
    # Who comes back before it has removed its files may keep them: a follower cuts what does not fit.
    dropped = tuple(d for d in view.dropped if (d.block, d.topic_id) != (p.block, topic.topic_id) or d.broker not in replicas)
    return _with(view if dropped == view.dropped else msgspec.structs.replace(view, dropped=dropped), topic, number, new)


def _cancelled(view: ClusterView, topic: TopicView, number: int, p: PartitionView) -> ClusterView:
    """Back to the replicas that it had, at once: it needs one of them in sync."""
    if not p.target:
        raise NoReassignmentInProgressError(f"{topic.name}-{number} is not being moved", topic=topic.name, partition=number)
    place = f"{topic.name}-{number}"
    if p.leader == NO_LEADER:
        raise LeaderNotAvailableError(f"{place} has no leader at the moment; when it has one its move can be taken back", topic=topic.name)
    if retiring := [r for r in p.before if r in view.brokers and view.brokers[r].retiring]:
        raise InvalidReplicationAssignmentError(
            f"{place} cannot go back to {list(p.before)}: broker {retiring[0]} is retiring", topic=topic.name, partition=number
        )
    metadata.check_min_insync(config.topic_config(topic.config), len(p.before))
    if not set(p.before) & set(p.isr):
        raise NotEnoughReplicasError(
            f"{topic.name}-{number} cannot go back to {list(p.before)}: none of them is in sync, only {list(p.isr)}",
            topic=topic.name, partition=number, in_sync=0, required=1, hint="let the move come to its end",
        )  # fmt: skip
    return _settled(view, topic, number, p, p.before)


def _settled(view: ClusterView, topic: TopicView, number: int, p: PartitionView, to: tuple[int, ...]) -> ClusterView:
    """The list is `to` now. Its first in-sync replica leads if the leader has left."""
    isr = tuple(r for r in to if r in p.isr)
    leader = p.leader if p.leader in isr or p.leader == NO_LEADER else isr[0]
    epoch = p.leader_epoch + (leader != p.leader or (len(p.replicas) > 1) != (len(to) > 1))
    new = msgspec.structs.replace(p, replicas=to, isr=isr, leader=leader, leader_epoch=epoch, target=(), adding=())
    left = tuple(DroppedReplica(p.block, topic.topic_id, topic.name, number, r) for r in p.replicas if r not in to)
    return _with(msgspec.structs.replace(view, dropped=view.dropped + left), topic, number, new)


def _with(view: ClusterView, topic: TopicView, number: int, p: PartitionView) -> ClusterView:
    block = topic.partitions[number].block
    return change_partitions(view, lambda _, old: p if old.block == block else old)


def advance(view: ClusterView, alive: Collection[int]) -> ClusterView:
    """Ends the moves that have come so far: all of the target are in sync, and up. Of a view that is on disk as a whole."""
    for topic in view.topics.values():
        for number, p in enumerate(topic.partitions):
            if p.target and p.leader != NO_LEADER and all(r in p.isr and r in alive for r in p.target):
                view = _settled(view, topic, number, p, p.target)
    return view


def stored(view: ClusterView) -> ClusterView:
    """All of this view is on disk: what has left may go."""
    if all(d.may_go for d in view.dropped):
        return view
    return msgspec.structs.replace(view, dropped=tuple(msgspec.structs.replace(d, may_go=True) for d in view.dropped))


def under_way(view: ClusterView) -> bool:
    if any(b.retiring for b in view.brokers.values()) or not all(d.may_go for d in view.dropped):
        return True
    return any(p.target for topic in view.topics.values() for p in topic.partitions)


def replicas_removed(view: ClusterView, broker_id: int, removed: Iterable[tuple[int, bytes]]) -> ClusterView:
    """A broker has removed its files of these."""
    gone = set(removed)
    left = tuple(d for d in view.dropped if d.broker != broker_id or (d.block, d.topic_id) not in gone)
    return view if left == view.dropped else msgspec.structs.replace(view, dropped=left)


# --- retiring ----------------------------------------------------------------------------------------------------------


def retire(view: ClusterView, broker_id: int, alive: Collection[int], force: bool = False) -> ClusterView:
    """The broker retires: each of its partitions begins to move to another one that has none of it yet. Where there is none the list would get shorter:
    that is refused, with numbers, unless forced. The last replica of a partition is never given up."""
    broker = view.brokers.get(broker_id)
    if broker is None:
        raise BrokerIdNotRegisteredError(f"there is no broker {broker_id}, only {sorted(view.brokers)}")
    has_it = [p for topic in view.topics.values() for p in topic.partitions if broker_id in (p.target or p.replicas)]
    if broker.retiring and not has_it:
        return view
    others = [b.id for b in view.brokers.values() if b.id != broker_id and not b.retiring and b.id in alive]
    if not others:
        raise IllegalStateError(
            f"broker {broker_id} cannot retire: no other broker is up that could take its partitions", hint="add one first: `shmlog broker add`"
        )
    load = metadata.loads_of(view)
    moves: list[tuple[TopicView, int, tuple[int, ...]]] = []
    short: list[str] = []
    alone: list[str] = []
    below = 0
    for topic in view.topics.values():
        for number, p in enumerate(topic.partitions):
            goal = p.target or p.replicas
            if broker_id not in goal:
                continue
            if p.leader == NO_LEADER:
                raise LeaderNotAvailableError(f"broker {broker_id} cannot retire now: {topic.name}-{number} has no leader", topic=topic.name)
            takers = [b for b in others if b not in goal]
            if takers:
                taker = min(takers, key=lambda b: (load[b], b))
                load[taker] += 1
                moves.append((topic, number, tuple(taker if r == broker_id else r for r in goal)))
                continue
            least = config.topic_config(topic.config).min_insync_replicas
            below += len(goal) - 1 < least
            short.append(f"{topic.name}-{number} ({len(goal) - 1} of {len(goal)} replicas left, min.insync.replicas {least})")
            if len(goal) == 1:
                alone.append(short[-1])
            moves.append((topic, number, tuple(r for r in goal if r != broker_id)))
    if alone or (short and not force):
        listed = ", ".join((alone or short)[:NAMED_MAX]) + (", ..." if len(alone or short) > NAMED_MAX else "")
        more = "" if alone else f", {below} of them below min.insync.replicas"
        raise NotEnoughReplicasError(
            f"broker {broker_id} cannot retire: of its {len(moves)} partitions {len(alone or short)} have no other broker to go to{more}: {listed}",
            in_sync=len(others), required=max(len(to) for _, _, to in moves) + 1,
            hint="add a broker first (`shmlog broker add`)" + ("" if alone else ", or let them have fewer replicas: --force"),
        )  # fmt: skip
    for topic, number, to in moves:
        if _would_wait_for_dropped(view, topic, topic.partitions[number], to):
            raise InvalidReplicationAssignmentError(
                f"broker {broker_id} cannot retire: {topic.name}-{number} would get a replica that waits for what shmlog.full=drop_oldest dropped",
                topic=topic.name, partition=number, hint=f"`shmlog topic alter {topic.name} -c shmlog.full=block` first",
            )  # fmt: skip
    for topic, number, to in moves:
        view = _begun(view, view.topics[topic.name], number, view.topics[topic.name].partitions[number], to)
    return msgspec.structs.replace(view, brokers={**view.brokers, broker_id: msgspec.structs.replace(broker, retiring=True)})


def has_retired(view: ClusterView, broker_id: int) -> bool:
    """It is to go, and nothing is left at it: its process may end, and must not be started again."""
    broker = view.brokers.get(broker_id)
    return broker is not None and broker.retiring and not metadata.parts_of(view, broker_id)
