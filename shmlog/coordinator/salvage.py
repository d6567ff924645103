"""The metadata put together again from what else there is, when the place where it should stand is damaged or gone.

from_memory(): the view in force cannot be read, but the partition blocks can, in which acknowledged records hang. from_directories(): the database is
lost. Decisions without I/O, like metadata.py: facts come in, a view and what is to be said about it come out. What comes out has epochs above all that
may have been granted, and never names a block or a directory for anything but what it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from shmlog import config, directories
from shmlog.coordinator import metadata
from shmlog.errors import StorageError
from shmlog.messages import NO_LEADER, BrokerView, ClusterView, DeletingPartition, PartitionView, StartOptions, TopicView

# A rebuilt cluster begins this far above the epochs in its directories: what a power cut kept from them must not be granted again.
REBUILT_JUMP = 1024


class Block(NamedTuple):
    """A partition block that somebody has or had."""

    number: int
    topic_id: bytes
    partition: int
    live: bool
    deleted: bool
    leader: int
    leader_epoch: int  # the highest of line 0 and of `cur`
    opened: bool  # a broker has opened it for this topic: there may be records in it
    flags: int
    max_message_bytes: int
    memory_bytes: int


class Salvaged(NamedTuple):
    view: ClusterView
    said: list[str]


def from_memory(
    base: ClusterView, version: int, blocks: Sequence[Block], broker_epochs: Mapping[int, int], named: Mapping[bytes, directories.TopicFile]
) -> Salvaged:
    """`base`: the last believable view, older than `version` by few decisions (or a bare one). What those decided about topics shows in the blocks."""
    said: list[str] = []
    jump = metadata.UNSTORED_DECISIONS_MAX
    by_number = {b.number: b for b in blocks}
    living: dict[bytes, dict[int, Block]] = {}
    for block in blocks:
        if block.live:
            living.setdefault(block.topic_id, {})[block.partition] = block
    deleted = {b.topic_id for b in blocks if b.deleted}
    brokers = {
        id: base.brokers[id] if id in base.brokers else _broker(base.data_dirs, id)
        for id in sorted({*base.brokers, *(id for id, epoch in broker_epochs.items() if epoch > base.retired.get(id, -1))})
    }
    brokers = {b.id: msgspec.structs.replace(b, broker_epoch=max(b.broker_epoch, broker_epochs.get(b.id, 0)) + jump) for b in brokers.values()}
    topics: dict[str, TopicView] = {}
    deleting = [d for d in base.deleting if (b := by_number.get(d.block)) is not None and b.topic_id == d.topic_id]
    for topic in base.topics.values():
        have = living.pop(topic.topic_id, {})
        if topic.topic_id in deleted or not have:
            said.append(f"topic {topic.name!r} was deleted")
            for number, p in enumerate(topic.partitions):
                if (b := by_number.get(p.block)) is not None and b.topic_id == topic.topic_id:
                    leader = p.leader if p.leader != NO_LEADER else p.replicas[0]
                    deleting.append(DeletingPartition(p.block, topic.topic_id, topic.name, number, leader))
            continue
        partitions = [_as_block_says(p, have[n], brokers, jump) if n in have else _later(p, jump) for n, p in enumerate(topic.partitions)]
        more = _opened(have, len(partitions))
        if more:
            said.append(f"topic {topic.name!r} had grown to {len(partitions) + len(more)} partitions")
        partitions += [_partition(b, brokers, jump) for b in more]
        topics[topic.name] = msgspec.structs.replace(topic, partitions=tuple(partitions))
    for topic_id, have in living.items():
        found = _opened(have, 0)
        lost = sum(b.opened for b in have.values()) - sum(b.opened for b in found)
        if lost:
            said.append(f"{lost} partitions of topic {topic_id.hex()} stand behind a gap in its numbers and are given up")
        if not found or topic_id in deleted:
            continue  # it never came into force, or was deleted: nobody appended anything that is still to be had
        file = named.get(topic_id)
        name = file.name if file else ""
        if not name or name in topics:
            name = f"recovered-{topic_id.hex()}"
        settings = file.config if file else _config_of(found[0], base)
        topics[name] = TopicView(name, topic_id, settings, tuple(_partition(b, brokers, jump) for b in found))
        said.append(f"topic {topic_id.hex()} is in no view that can be read; it is called {name!r}")
    view = msgspec.structs.replace(base, version=version, brokers=brokers, topics=topics, deleting=tuple(deleting))
    return Salvaged(view, said)


def _later(p: PartitionView, jump: int) -> PartitionView:
    return msgspec.structs.replace(p, leader_epoch=p.leader_epoch + jump)


def _as_block_says(p: PartitionView, block: Block, brokers: Mapping[int, BrokerView], jump: int) -> PartitionView:
    """Where another broker leads than the view knows, it alone is sure to have everything: what led before may even have left the list since, and be
    without its files."""
    p = msgspec.structs.replace(p, leader_epoch=max(p.leader_epoch, block.leader_epoch))
    if block.leader not in brokers or block.leader == p.leader:
        return _later(p, jump)
    replicas = p.replicas if block.leader in p.replicas else (*p.replicas, block.leader)
    return _later(msgspec.structs.replace(p, leader=block.leader, replicas=replicas, isr=(block.leader,)), jump)


def _opened(have: Mapping[int, Block], first: int) -> list[Block]:
    """The blocks from partition `first` on without a gap, up to the last one that was opened."""
    found: list[Block] = []
    while first + len(found) in have:
        found.append(have[first + len(found)])
    while found and not found[-1].opened:
        found.pop()
    return found


def _broker(data_dirs: Sequence[str], id: int) -> BrokerView:
    return BrokerView(id, metadata.FIRST_BROKER_PROCESS + id, 0, metadata.broker_directory(data_dirs, id))


def _partition(block: Block, brokers: Mapping[int, BrokerView], jump: int) -> PartitionView:
    leader = block.leader if block.leader in brokers else min(brokers)
    return PartitionView(block.number, leader, block.leader_epoch + jump, (leader,), (leader,))


def _config_of(block: Block, base: ClusterView) -> dict[str, str]:
    """What of a topic's config shows in a block."""
    flags = block.flags
    settings = {
        "max.message.bytes": str(block.max_message_bytes),
        "shmlog.spill": "true" if flags & metadata.PF_SPILL or not base.data_dirs else "false",
        "shmlog.full": "raise" if flags & metadata.PF_FULL_RAISE else "drop_oldest" if flags & metadata.PF_FULL_DROP else "block",
        "message.timestamp.type": "LogAppendTime" if flags & metadata.PF_LOG_APPEND_TIME else "CreateTime",
        "retention.ms": "-1",  # nothing may go that nobody wanted gone
    }
    if flags & metadata.PF_CRC_ALWAYS:
        settings["shmlog.crc"] = "append"
    if flags & metadata.PF_APPENDED:
        settings["shmlog.visibility"] = "appended"
    if flags & metadata.PF_SYNC_RECYCLE:
        settings["flush.messages"] = "1"
    return config.to_strings(config.topic_config(settings), changed_only=True)


def from_directories(found: Sequence[directories.Broker], options: StartOptions, new_id: Callable[[], bytes]) -> Salvaged:
    """A cluster as its brokers' directories have it. Topics that kept nothing on disk are not among them. StorageError: they are not of one cluster."""
    ids = {b.cluster_id for b in found if b.cluster_id}
    if len(ids) > 1:
        raise StorageError(
            f"the metadata is lost, and the directories are those of {len(ids)} clusters: {', '.join(b.directory for b in found)}",
            hint="leave only the directories of one cluster there",
        )
    said: list[str] = []
    doubled = {b.id for b in found if sum(other.id == b.id for other in found) > 1}
    if doubled:
        raise StorageError(f"the metadata is lost, and brokers {sorted(doubled)} have several directories: {', '.join(b.directory for b in found)}")
    settings = {key: value for b in sorted(found, key=lambda b: b.epochs.view_version) for key, value in b.epochs.config.items()}
    base = metadata.new_cluster(msgspec.structs.replace(options, brokers=None, config=settings), next(iter(ids), new_id()))
    count = max((b.id + 1 for b in found), default=1)
    where = {b.id: b for b in found}
    brokers = {}
    for id in range(count):
        broker = _broker(base.data_dirs, id)
        if id in where:
            epoch = where[id].epochs.broker_epoch
            broker = msgspec.structs.replace(broker, broker_epoch=epoch, directory=where[id].directory)
        brokers[id] = msgspec.structs.replace(broker, broker_epoch=broker.broker_epoch + REBUILT_JUMP)
    epoch = REBUILT_JUMP + max(
        [b.epochs.leader_epoch for b in found] + [p.leader_epoch for b in found for p in b.partitions], default=0
    )
    topics: dict[str, TopicView] = {}
    block = 0
    for name, parts in _by_topic(found, said).items():
        newest = max((p for _, p in parts), key=lambda p: (bool(p.topic.partitions), p.written_ns)).topic
        whole = next((p.topic.topic_id for _, p in parts if len(p.topic.topic_id) == 32), "")
        # Of a partition without a file and without a record only the beginning of the topic's id is known, by its directory's name.
        topic_id = bytes.fromhex(whole) if whole else bytes.fromhex(newest.topic_id) + new_id()[len(newest.topic_id) // 2 :]
        replicas: dict[int, tuple[int, ...]] = {}
        for id, p in sorted(parts, key=lambda part: part[0]):
            replicas[p.number] = (*replicas.get(p.number, ()), id)
        total = max([p.topic.partitions for _, p in parts] + [number + 1 for number in replicas])
        if len(replicas) < total:
            said.append(f"topic {name!r}: partitions {sorted(set(range(total)) - set(replicas))} have no directory; they begin empty")
        partitions = []
        for number in range(total):
            have = replicas.get(number, (number % count,))
            # Of several nobody knows who was in sync: all of them report, and the longest leads.
            partitions.append(PartitionView(block, have[0] if len(have) == 1 else NO_LEADER, epoch, have, have))
            block += 1
        topics[name] = TopicView(name, topic_id, dict(newest.config), tuple(partitions))
    said += [f"{path} cannot be told; it is left alone" for b in found for path in b.unclear]
    boot_counter = max(b.epochs.boot_counter for b in found) + REBUILT_JUMP
    version = max(b.epochs.view_version for b in found) + REBUILT_JUMP
    return Salvaged(msgspec.structs.replace(base, version=version, boot_counter=boot_counter, brokers=brokers, topics=topics), said)


def _by_topic(found: Sequence[directories.Broker], said: list[str]) -> dict[str, list[tuple[int, directories.Partition]]]:
    """Of two topics of one name, one was deleted, and its directories were to be removed: the one written last counts."""
    topics: dict[str, dict[str, list[tuple[int, directories.Partition]]]] = {}
    for broker in found:
        for p in broker.partitions:
            topics.setdefault(p.topic.name, {}).setdefault(p.topic.topic_id[:8], []).append((broker.id, p))
    chosen = {}
    for name, lives in sorted(topics.items()):
        parts = max(lives.values(), key=lambda parts: max(p.written_ns for _, p in parts))
        chosen[name] = parts
        said += [f"{p.directory} is of an older topic {name!r}; it is left alone" for other in lives.values() if other is not parts for _, p in other]
    return chosen
