"""Who leads a partition and which replicas are in sync: functions from one ClusterView to the next, as in metadata.py.

What holds of every view made here:
- the in-sync replicas (ISR) of a partition are never none, and its leader is one of them; the last of them to die stays alone in it, because nobody
  else is known to have all that was committed;
- a leader is followed by another only with its death certificate, when it is told to hand over (a preferred election, a move), or when all memory is
  gone; each change has a new leader epoch;
- only the leader of the present leader epoch changes the ISR, and only among living replicas.

A leader dies: the first living member of the ISR leads on at once (it has all that was committed, and shared memory has the rest). All memory is gone
(a reboot): every replica of the last ISR reports what it has, and the longest by (last leader epoch, end) leads; until then nobody does (Kafka:
KIP-966's eligible leader replicas)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import msgspec

from shmlog import config
from shmlog.errors import (
    ElectionNotNeededError,
    EligibleLeadersNotAvailableError,
    PreferredLeaderNotAvailableError,
    ShmlogError,
    UnknownTopicOrPartitionError,
)
from shmlog.messages import NO_LEADER, ClusterView, IsrChange, PartitionView, ReplicaReport, TopicView

Change = Callable[[TopicView, PartitionView], PartitionView]


def change_partitions(view: ClusterView, change: Change) -> ClusterView:
    """The view with each partition changed; the same objects where nothing changes."""
    topics = {}
    for topic in view.topics.values():
        partitions = tuple(change(topic, p) for p in topic.partitions)
        same = all(new is old for new, old in zip(partitions, topic.partitions, strict=True))
        topics[topic.name] = topic if same else msgspec.structs.replace(topic, partitions=partitions)
    if all(new is old for new, old in zip(topics.values(), view.topics.values(), strict=True)):
        return view
    return msgspec.structs.replace(view, topics=topics)


def broker_down(view: ClusterView, dead: int, alive: Collection[int]) -> ClusterView:
    """A broker's process has ended (a certificate is there). `alive`: the brokers whose processes run."""

    def without(topic: TopicView, p: PartitionView) -> PartitionView:
        if len(p.replicas) < 2 or dead not in p.isr:
            return p
        isr = tuple(r for r in p.isr if r != dead)
        leaders = [r for r in p.replicas if r in isr and r in alive]
        if not leaders:
            return p
        if p.leader not in (dead, NO_LEADER):
            return msgspec.structs.replace(p, isr=isr)
        return msgspec.structs.replace(p, leader=leaders[0], leader_epoch=p.leader_epoch + 1, isr=isr)

    return change_partitions(view, without)


def alter_isr(view: ClusterView, broker: int, changes: Iterable[IsrChange], alive: Collection[int]) -> ClusterView:
    """What a leader asks for its partitions; or a follower for itself (an empty isr): that it goes. What is of an earlier leader epoch, or names
    somebody dead, is not done: the leader sees that in the next view."""
    wanted = {change.block: change for change in changes}

    def altered(topic: TopicView, p: PartitionView) -> PartitionView:
        change = wanted.get(p.block)
        if change is None or topic.topic_id != change.topic_id or p.leader_epoch != change.leader_epoch:
            return p
        if not change.isr and broker in p.isr and p.leader != broker:  # a follower that has lost what it had acknowledged
            return msgspec.structs.replace(p, isr=tuple(r for r in p.isr if r != broker))
        if p.leader != broker:
            return p
        if change.before and set(change.before) != set(p.isr):
            return p  # of two questions under way only the first: with the answer to it the leader counts its followers anew, and asks again
        isr = tuple(r for r in p.replicas if r in change.isr and (r == broker or r in alive))
        if broker not in isr or set(isr) == set(p.isr):
            return p
        return msgspec.structs.replace(p, isr=isr)

    return change_partitions(view, altered)


def without_leaders(view: ClusterView) -> ClusterView:
    """Memory is gone: nobody knows who has most of a replicated partition until its replicas have said."""

    def leaderless(topic: TopicView, p: PartitionView) -> PartitionView:
        return p if len(p.replicas) < 2 or p.leader == NO_LEADER else msgspec.structs.replace(p, leader=NO_LEADER)

    return change_partitions(view, leaderless)


def elect_reported(view: ClusterView, reports: Mapping[int, Mapping[int, ReplicaReport]], alive: Collection[int]) -> ClusterView:
    """`reports`: block -> broker -> what its files hold. The longest of the last ISR leads once all of it have reported; where the topic allows
    an unclean election, once all living replicas have."""

    def elected(topic: TopicView, p: PartitionView) -> PartitionView:
        if p.leader != NO_LEADER or len(p.replicas) < 2:
            return p
        known = {b: r for b, r in reports.get(p.block, {}).items() if r.topic_id == topic.topic_id and b in p.replicas and b in alive}
        candidates = set(p.isr)
        if not candidates <= set(known):
            unclean = config.topic_config(topic.config).unclean_leader_election_enable
            if not unclean or not known or any(r in alive and r not in known for r in p.replicas):
                return p
            candidates = set(known)
        leader = max(candidates, key=lambda b: (known[b].last_epoch, known[b].end_offset, -p.replicas.index(b)))
        return msgspec.structs.replace(p, leader=leader, leader_epoch=max(p.leader_epoch, *(r.last_epoch for r in known.values())) + 1, isr=(leader,))

    return change_partitions(view, elected)


def elect(
    view: ClusterView, partitions: Sequence[tuple[str, int]], unclean: bool, alive: Collection[int]
) -> tuple[ClusterView, list[ShmlogError | None]]:
    """Preferred elections: the first replica leads, if it is in sync. unclean: any living replica, where no in-sync one lives; what only the
    others had is lost."""
    failures: list[ShmlogError | None] = []
    chosen: dict[int, int] = {}
    for name, number in partitions:
        topic = view.topics.get(name)
        if topic is None or not 0 <= number < len(topic.partitions):
            failures.append(UnknownTopicOrPartitionError(f"there is no partition {name}-{number}", topic=name, partition=number))
            continue
        p = topic.partitions[number]
        in_sync = [r for r in p.replicas if r in p.isr and r in alive]
        if unclean:
            living = [r for r in p.replicas if r in alive]
            if p.leader in alive or in_sync:
                failures.append(ElectionNotNeededError(f"{name}-{number} has a leader, or an in-sync replica that can lead"))
            elif not living:
                failures.append(EligibleLeadersNotAvailableError(f"no replica of {name}-{number} is up"))
            else:
                chosen[p.block] = living[0]
                failures.append(None)
        elif p.leader == p.replicas[0]:
            failures.append(ElectionNotNeededError(f"{name}-{number} is led by its preferred replica {p.replicas[0]} already"))
        elif p.replicas[0] not in in_sync:
            failures.append(PreferredLeaderNotAvailableError(f"replica {p.replicas[0]} of {name}-{number} is not in sync, or not up"))
        else:
            chosen[p.block] = p.replicas[0]
            failures.append(None)

    def led(topic: TopicView, p: PartitionView) -> PartitionView:
        leader = chosen.get(p.block)
        if leader is None:
            return p
        isr = p.isr if leader in p.isr else (leader,)
        return msgspec.structs.replace(p, leader=leader, leader_epoch=p.leader_epoch + 1, isr=isr)

    return change_partitions(view, led), failures
