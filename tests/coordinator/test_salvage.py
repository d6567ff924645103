"""A view put together again from an older one and from what the partition blocks say."""

from __future__ import annotations

import itertools

import hypothesis
import hypothesis.strategies as st
import msgspec

from shmlog import config, directories
from shmlog.coordinator import elections, metadata, moves, salvage
from shmlog.messages import ClusterView, StartOptions, TopicSpec

MEMORY = 1 << 20
IDS = itertools.count(1)


def new_id() -> bytes:
    return next(IDS).to_bytes(16, "big")


def cluster(data: bool = True) -> ClusterView:
    return metadata.new_cluster(StartOptions("c", 3, ("/data",) if data else (), "/data"), b"c" * 16)


class Memory:
    """The block table, as decisions.py and the brokers leave it."""

    def __init__(self) -> None:
        self.blocks: dict[int, salvage.Block] = {}

    def last_epoch(self, block: int) -> int:
        return self.blocks[block].leader_epoch if block in self.blocks else 0

    def follow(self, view: ClusterView, opened: bool = True) -> None:
        living = {p.block for t in view.topics.values() for p in t.partitions}
        for number, block in self.blocks.items():
            if number not in living:
                self.blocks[number] = block._replace(live=False, deleted=True)
        for topic in view.topics.values():
            size = config.topic_config(topic.config).max_message_bytes
            for n, p in enumerate(topic.partitions):
                flags = metadata.partition_flags(view, topic, n)
                self.blocks[p.block] = salvage.Block(
                    p.block, topic.topic_id, n, True, False, p.leader, p.leader_epoch, opened, flags, size, MEMORY
                )  # fmt: skip


def names_of(view: ClusterView) -> dict[bytes, directories.TopicFile]:
    return {t.topic_id: directories.TopicFile(t.name, t.topic_id.hex(), len(t.partitions), t.config) for t in view.topics.values()}


def epochs_of(view: ClusterView) -> dict[int, int]:
    return {b.id: b.broker_epoch for b in view.brokers.values()}


def check(found: ClusterView, view: ClusterView) -> None:
    """Every record of `view` is found where it was, and nothing is granted twice."""
    assert {t.topic_id for t in found.topics.values()} == {t.topic_id for t in view.topics.values()}
    topics = {t.topic_id: t for t in found.topics.values()}
    for topic in view.topics.values():
        now = topics[topic.topic_id]
        assert [p.block for p in now.partitions] == [p.block for p in topic.partitions]
        assert all(a.leader_epoch > b.leader_epoch for a, b in zip(now.partitions, topic.partitions, strict=True))
    assert all(found.brokers[id].broker_epoch > epoch for id, epoch in epochs_of(view).items())
    used = [p.block for t in found.topics.values() for p in t.partitions] + [d.block for d in found.deleting]
    assert len(used) == len(set(used))


steps = st.one_of(
    st.tuples(st.just("create"), st.sampled_from("abc"), st.integers(1, 4)),
    st.tuples(st.just("delete"), st.sampled_from("abc"), st.just(0)),
    st.tuples(st.just("grow"), st.sampled_from("abc"), st.integers(1, 8)),
    st.tuples(st.just("removed"), st.just(""), st.integers(0, 5)),
    st.tuples(st.just("restart"), st.just(""), st.integers(0, 2)),
)


@hypothesis.given(st.lists(steps, max_size=40), st.integers(0, metadata.UNSTORED_DECISIONS_MAX - 1), st.booleans())
def test_whatever_was_decided_since_the_last_view_every_partition_is_found(schedule: list[tuple[str, str, int]], behind: int, named: bool) -> None:
    memory = Memory()
    views = [metadata.next_view(cluster(), 1)]
    for action, name, number in schedule:
        view = views[-1]
        if action == "create":
            new = metadata.create_topics(view, [TopicSpec(name, partitions=number)], new_id, memory.last_epoch).view
        elif action == "delete":
            new = metadata.delete_topics(view, [name]).view
        elif action == "grow":
            new = metadata.create_partitions(view, {name: number}, last_epoch=memory.last_epoch).view
        elif action == "removed":
            new = view
            for p in view.deleting[:number]:
                new = metadata.blocks_removed(new, p.leader, [(p.block, p.topic_id)])
        else:
            new = metadata.start_brokers(view, [number])
        if new is not view:
            views.append(metadata.next_view(new, 1))
            memory.follow(views[-1])
    view, base = views[-1], views[max(0, len(views) - 1 - behind)]
    found = salvage.from_memory(base, view.version, list(memory.blocks.values()), epochs_of(view), names_of(view) if named else {}).view
    check(found, view)
    assert found.version == view.version
    if named:
        assert {(t.name, t.topic_id) for t in found.topics.values()} == {(t.name, t.topic_id) for t in view.topics.values()}


def test_without_any_view_the_blocks_alone_are_enough_for_the_records() -> None:
    memory, bare = Memory(), cluster(data=False)
    settings = {"shmlog.full": "raise", "shmlog.crc": "append", "max.message.bytes": "1000", "message.timestamp.type": "LogAppendTime"}
    view = metadata.create_topics(bare, [TopicSpec("a", partitions=2, config=settings), TopicSpec("b")], new_id).view
    memory.follow(view)
    found, said = salvage.from_memory(bare, 9, list(memory.blocks.values()), epochs_of(view), {})
    check(found, view)
    a = view.topics["a"]
    assert f"recovered-{a.topic_id.hex()}" in found.topics
    after = found.topics[f"recovered-{a.topic_id.hex()}"]
    assert {k: v for k, v in after.config.items() if k != "retention.ms"} == a.config
    assert metadata.partition_flags(found, after, 0) == metadata.partition_flags(view, a, 0)
    assert len(said) == 2


def test_a_topic_that_never_came_into_force_stays_unmade() -> None:
    """Its blocks were written, and its maker died before the flip: no broker has opened them."""
    memory, base = Memory(), cluster()
    memory.follow(metadata.create_topics(base, [TopicSpec("t", partitions=2)], new_id).view, opened=False)
    assert not salvage.from_memory(base, 9, list(memory.blocks.values()), {}, {}).view.topics


def test_partitions_behind_a_gap_are_said_to_be_given_up() -> None:
    memory, base = Memory(), cluster()
    memory.follow(metadata.create_topics(base, [TopicSpec("t", partitions=4)], new_id).view)
    del memory.blocks[1]
    found, said = salvage.from_memory(base, 9, list(memory.blocks.values()), {}, {})
    assert [len(t.partitions) for t in found.topics.values()] == [1]
    assert said[0].startswith("2 partitions of topic")


def test_a_topic_that_has_grown_since_has_its_new_partitions() -> None:
    memory = Memory()
    base = metadata.create_topics(cluster(), [TopicSpec("t", partitions=2)], new_id).view
    memory.follow(base)
    view = metadata.create_partitions(base, {"t": 5}, last_epoch=memory.last_epoch).view
    memory.follow(view)
    found, said = salvage.from_memory(base, 9, list(memory.blocks.values()), {}, {})
    check(found, view)
    assert said == ["topic 't' had grown to 5 partitions"]


def test_a_deletion_that_had_come_to_one_block_is_carried_out() -> None:
    """Blocks are marked after the flip: one mark tells that it was in force."""
    memory = Memory()
    base = metadata.create_topics(cluster(), [TopicSpec("t", partitions=3)], new_id).view
    memory.follow(base)
    memory.blocks[1] = memory.blocks[1]._replace(live=False, deleted=True)
    found = salvage.from_memory(base, 9, list(memory.blocks.values()), {}, {}).view
    assert not found.topics
    assert [d.block for d in found.deleting] == [0, 1, 2]


def test_a_name_that_is_taken_is_not_given_twice() -> None:
    memory = Memory()
    base = metadata.create_topics(cluster(), [TopicSpec("t")], new_id).view
    other = metadata.create_topics(base, [TopicSpec("u")], new_id).view
    memory.follow(other)
    named = {other.topics["u"].topic_id: directories.TopicFile("t", other.topics["u"].topic_id.hex(), 1, {})}
    found = salvage.from_memory(base, 9, list(memory.blocks.values()), {}, named).view
    check(found, other)
    assert found.topics["t"].topic_id == base.topics["t"].topic_id


def partition(broker: str, name: str, number: int, topic_id: str, written_ns: int = 1) -> directories.Partition:
    return directories.Partition(f"{broker}/{name}-{number}", directories.TopicFile(name, topic_id, 0, {}), number, 3, written_ns)


def test_of_a_topic_and_an_older_one_of_its_name_the_newer_directories_count() -> None:
    epochs = directories.EpochsFile(1, 5, 2, 7, {"num.partitions": "3"})
    parts = (partition("/data/broker-0", "t", 0, "aa" * 16, 1), partition("/data/broker-0", "t", 0, "bb" * 16, 2))
    found, said = salvage.from_directories([directories.Broker(0, "/data/broker-0", b"c" * 16, epochs, parts, ("/data/broker-0/x",))],
                                           StartOptions("c", None, ("/data",), "/data"), new_id)  # fmt: skip
    assert found.topics["t"].topic_id == bytes.fromhex("bb" * 16)
    assert found.cluster_id == b"c" * 16
    assert found.config == {"num.partitions": "3"}
    assert found.topics["t"].partitions[0].leader_epoch > 7
    assert (found.boot_counter > 1, found.version > 5, found.brokers[0].broker_epoch > 2) == (True, True, True)
    assert [line.split()[0] for line in said] == ["/data/broker-0/t-0", "/data/broker-0/x"]


def test_a_partition_whose_directory_is_gone_begins_empty_on_some_broker() -> None:
    file = directories.TopicFile("t", "aa" * 16, 3, {})
    parts = (msgspec.structs.replace(partition("/data/broker-1", "t", 1, "aa" * 16), topic=file),)
    found, said = salvage.from_directories([directories.Broker(1, "/data/broker-1", b"", directories.EpochsFile(), parts, ())],
                                           StartOptions("c", None, ("/data",), "/data"), new_id)  # fmt: skip
    assert [p.leader for p in found.topics["t"].partitions] == [0, 1, 0]
    assert sorted(found.brokers) == [0, 1]
    assert "partitions [0, 2] have no directory" in said[0]


def test_a_leader_that_the_last_readable_view_does_not_know_is_the_one_replica_that_is_trusted() -> None:
    base = metadata.start_brokers(cluster(), range(3))
    base = metadata.create_topics(base, [TopicSpec("t", partitions=1, replica_assignments={0: (0,)})], new_id).view
    view = moves.reassign(base, [("t", 0, (1, 2))], {0, 1, 2}).view
    in_sync = elections.change_partitions(view, lambda _, p: msgspec.structs.replace(p, isr=p.replicas))
    view = moves.advance(in_sync, {0, 1, 2})  # broker 0 has removed its files by now
    memory = Memory()
    memory.follow(view)
    found = salvage.from_memory(base, view.version + 1, list(memory.blocks.values()), epochs_of(view), names_of(view)).view
    check(found, view)
    [p] = found.topics["t"].partitions
    assert (p.leader, p.isr) == (1, (1,)) and set(p.replicas) == {0, 1}


def test_a_broker_that_has_retired_does_not_come_back_by_its_entry_in_the_process_table() -> None:
    view = metadata.start_brokers(cluster(), range(3))
    epochs = epochs_of(view)
    view = metadata.forget_broker(view, 1)
    assert sorted(salvage.from_memory(view, 9, [], epochs, {}).view.brokers) == [0, 2]
    assert sorted(salvage.from_memory(view, 9, [], {**epochs, 1: epochs[1] + 1}, {}).view.brokers) == [0, 1, 2]  # added again since
