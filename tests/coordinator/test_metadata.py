"""The metadata machine: pure, so each test builds its view by hand and looks at the next one."""

from __future__ import annotations

import itertools

import hypothesis
import hypothesis.strategies as st
import msgspec
import pytest

from shmlog import config, errors
from shmlog._ffi import lib
from shmlog.coordinator import metadata
from shmlog.messages import ClusterView, StartOptions, TopicSpec


def cluster(brokers: int = 1, data: bool = True, **settings: str) -> ClusterView:
    options = StartOptions("c", brokers, ("/data",) if data else (), "/data", config={k.replace("_", "."): v for k, v in settings.items()})
    return metadata.start_brokers(metadata.new_cluster(options, b"c" * 16), range(brokers))


def ids() -> itertools.count[int]:
    return itertools.count(1)


def create(view: ClusterView, *specs: TopicSpec, last_epoch: metadata.LastEpoch = lambda block: 0) -> metadata.Decision:
    numbers = ids()
    return metadata.create_topics(view, specs, lambda: next(numbers).to_bytes(16, "big"), last_epoch)


def blocks(view: ClusterView) -> list[int]:
    return [p.block for t in view.topics.values() for p in t.partitions] + [p.block for p in view.deleting]


def test_a_topic_gets_the_defaults_of_the_cluster() -> None:
    view, failures = create(cluster(num_partitions="3"), TopicSpec("t"))
    assert failures == [None]
    assert len(view.topics["t"].partitions) == 3
    assert len(view.topics["t"].topic_id) == 16
    assert sorted(blocks(view)) == [0, 1, 2]


def test_partitions_go_to_the_broker_that_has_fewest() -> None:
    view, _ = create(cluster(3), TopicSpec("a", partitions=2), TopicSpec("b", partitions=4))
    load = [p.leader for t in view.topics.values() for p in t.partitions]
    assert sorted(load) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        (TopicSpec("a b"), errors.InvalidTopicError),
        (TopicSpec("bad.name/t"), errors.InvalidConfigurationError),
        (TopicSpec("a/b/c"), errors.InvalidConfigurationError),
        (TopicSpec("/t"), errors.InvalidConfigurationError),
        (TopicSpec("t", partitions=0), errors.InvalidPartitionsError),
        (TopicSpec("t", partitions=20_000), errors.InvalidPartitionsError),
        (TopicSpec("t", replication_factor=2), errors.InvalidReplicationFactorError),
        (TopicSpec("t", config={"nonsense": "1"}), errors.InvalidConfigurationError),
        (TopicSpec("t", config={"retention.ms": "soon"}), errors.InvalidConfigurationError),
        (TopicSpec("t", config={"min.insync.replicas": "2"}), errors.InvalidConfigurationError),
        (TopicSpec("t", replica_assignments={0: (7,)}), errors.IllegalArgumentError),
        (TopicSpec("t", replica_assignments={1: (0,)}), errors.IllegalArgumentError),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(spec: TopicSpec, error: type[Exception]) -> None:
    view = cluster()
    decision = create(view, spec)
    assert isinstance(decision.failures[0], error)
    assert decision.view is view


def test_one_bad_topic_of_a_request_does_not_stop_the_others() -> None:
    view, failures = create(cluster(), TopicSpec("good"), TopicSpec("no good"), TopicSpec("good"))
    assert list(view.topics) == ["good"]
    assert [type(f) for f in failures] == [type(None), errors.InvalidTopicError, errors.TopicAlreadyExistsError]


def test_a_repeated_creation_is_recognised_by_its_topic_id() -> None:
    spec = TopicSpec("t", topic_id=b"i" * 16)
    once, _ = create(cluster(), spec)
    again, failures = create(once, spec)
    assert failures == [None]
    assert again is once
    _, failures = create(once, msgspec.structs.replace(spec, topic_id=b"j" * 16))
    assert isinstance(failures[0], errors.TopicAlreadyExistsError)


def test_a_block_is_given_out_again_only_when_its_broker_has_removed_it() -> None:
    view, _ = create(cluster(), TopicSpec("old", partitions=2))
    old = view.topics["old"]
    view, _ = metadata.delete_topics(view, ["old"])
    view, _ = create(view, TopicSpec("between"))
    assert view.topics["between"].partitions[0].block == 2
    view = metadata.blocks_removed(view, 0, [(0, old.topic_id), (1, b"another topic id")])
    assert [p.block for p in view.deleting] == [1]
    view, _ = create(view, TopicSpec("new"))
    assert view.topics["new"].partitions[0].block == 0


def test_a_block_that_somebody_still_names_is_passed_over() -> None:
    view, _ = create(cluster(), TopicSpec("t"), last_epoch=lambda block: None if block < 5 else 0)
    assert view.topics["t"].partitions[0].block == 5


def test_epochs_of_a_reused_block_go_on() -> None:
    view, _ = create(cluster(), TopicSpec("t"), last_epoch=lambda block: 41)
    assert view.topics["t"].partitions[0].leader_epoch == 42


def test_deleting_twice_is_an_error_unless_the_request_is_repeated() -> None:
    view, _ = create(cluster(), TopicSpec("t"))
    view, _ = metadata.delete_topics(view, ["t"])
    assert isinstance(metadata.delete_topics(view, ["t"]).failures[0], errors.UnknownTopicOrPartitionError)
    assert metadata.delete_topics(view, ["t"], repeated=True).failures == [None]


def test_partitions_can_only_be_added() -> None:
    view, _ = create(cluster(), TopicSpec("t", partitions=2))
    more, failures = metadata.create_partitions(view, {"t": 5, "nope": 2})
    assert failures[0] is None
    assert isinstance(failures[1], errors.UnknownTopicOrPartitionError)
    assert more.topics["t"].partitions[:2] == view.topics["t"].partitions
    assert len(more.topics["t"].partitions) == 5
    assert isinstance(metadata.create_partitions(more, {"t": 5}).failures[0], errors.InvalidPartitionsError)
    assert metadata.create_partitions(more, {"t": 5}, repeated=True) == (more, [None])


def test_configs_are_set_and_given_back() -> None:
    view, _ = create(cluster(), TopicSpec("t", config={"retention.ms": "1000"}))
    view, failures = metadata.alter_topic_configs(view, {"t": {"flush.ms": "5", "retention.ms": None}})
    assert failures == [None]
    assert view.topics["t"].config == {"flush.ms": "5"}


def test_a_bad_config_changes_nothing() -> None:
    view, _ = create(cluster(), TopicSpec("t"))
    for bad in ({"flush.ms": "x"}, {"no.such.key": None}, {"shmlog.spill": "false"}):
        decision = metadata.alter_topic_configs(view, {"t": bad})
        assert isinstance(decision.failures[0], errors.InvalidConfigurationError), bad
        assert decision.view is view


def test_a_start_of_a_broker_raises_its_epoch_and_those_of_what_it_leads() -> None:
    view, _ = create(cluster(2), TopicSpec("t", partitions=2))
    after = metadata.start_brokers(view, [1])
    for before, now in zip(view.topics["t"].partitions, after.topics["t"].partitions, strict=True):
        assert now.leader_epoch == before.leader_epoch + (now.leader == 1)
    assert after.brokers[1].broker_epoch == view.brokers[1].broker_epoch + 1
    assert after.brokers[0] == view.brokers[0]


def test_after_an_unclean_end_epochs_jump_beyond_all_that_the_store_may_have_missed() -> None:
    stored, _ = create(cluster(), TopicSpec("t"))
    lost = stored
    for _ in range(metadata.UNSTORED_DECISIONS_MAX - 1):  # decisions that the power cut kept from the disk
        lost = metadata.next_view(metadata.start_brokers(lost, [0]), 1)
    begun = metadata.start_brokers(metadata.restarted(stored, clean=False), [0])
    assert begun.topics["t"].partitions[0].leader_epoch > lost.topics["t"].partitions[0].leader_epoch
    assert begun.brokers[0].broker_epoch > lost.brokers[0].broker_epoch
    assert metadata.next_view(begun, 2).version > lost.version
    assert metadata.restarted(stored, clean=True) == stored


def test_a_cluster_grows_and_shrinks_only_where_nothing_is_lost() -> None:
    view, _ = create(cluster(2), TopicSpec("t", partitions=2))
    grown = metadata.configured(view, StartOptions("c", brokers=4))
    assert sorted(grown.brokers) == [0, 1, 2, 3]
    assert grown.brokers[3].process == metadata.FIRST_BROKER_PROCESS + 3
    assert sorted(metadata.configured(grown, StartOptions("c", brokers=2)).brokers) == [0, 1]
    with pytest.raises(errors.InvalidConfigurationError, match="1 partitions"):
        metadata.configured(view, StartOptions("c", brokers=1))
    with pytest.raises(errors.InvalidConfigurationError, match="/elsewhere"):
        metadata.configured(view, StartOptions("c", data_dirs=("/elsewhere",)))
    assert len(metadata.configured(view, StartOptions("c")).brokers) == 2


def test_directories_that_were_moved_are_followed() -> None:
    view = metadata.relocated(cluster(), ("/new",))
    assert (view.data_dirs, view.brokers[0].directory) == (("/new",), "/new/broker-0")


def test_flags_are_those_of_the_core() -> None:
    for name in ("SPILL", "FULL_RAISE", "FULL_DROP", "CRC_ALWAYS", "APPENDED", "LOG_APPEND_TIME", "REPLICATED", "SYNC_RECYCLE"):
        assert getattr(metadata, f"PF_{name}") == getattr(lib, f"SL_PF_{name}")
    assert lib.SL_MAX_PARTITIONS == metadata.MAX_PARTITIONS
    settings = {"shmlog.full": "raise", "shmlog.crc": "append", "flush.messages": "1", "message.timestamp.type": "LogAppendTime"}
    view, _ = create(cluster(), TopicSpec("t", config=settings))
    flags = metadata.partition_flags(view, view.topics["t"], 0)
    assert flags == metadata.PF_SPILL | metadata.PF_FULL_RAISE | metadata.PF_CRC_ALWAYS | metadata.PF_LOG_APPEND_TIME | metadata.PF_SYNC_RECYCLE
    view, _ = create(cluster(data=False), TopicSpec("t"))
    assert metadata.partition_flags(view, view.topics["t"], 0) == 0


names = st.sampled_from(["a", "b", "c", "ns/a"])
steps = st.one_of(
    st.tuples(st.just("create"), names, st.integers(1, 4)),
    st.tuples(st.just("delete"), names, st.just(0)),
    st.tuples(st.just("grow"), names, st.integers(1, 8)),
    st.tuples(st.just("removed"), names, st.integers(0, 5)),
    st.tuples(st.just("restart"), names, st.integers(0, 2)),
    st.tuples(st.just("reboot"), names, st.integers(0, 1)),
)


@hypothesis.given(st.lists(steps, max_size=40))
def test_no_schedule_gives_a_block_twice_or_takes_an_epoch_back(schedule: list[tuple[str, str, int]]) -> None:
    numbers = ids()
    view = cluster(3)
    highest: dict[int, int] = {}  # of each block
    for action, name, number in schedule:
        old = view
        if action == "create":
            view = metadata.create_topics(
                view, [TopicSpec(name, partitions=number)], lambda: next(numbers).to_bytes(16, "big"), lambda b: highest.get(b, 0)
            ).view
        elif action == "delete":
            view = metadata.delete_topics(view, [name]).view
        elif action == "grow":
            view = metadata.create_partitions(view, {name: number}, last_epoch=lambda b: highest.get(b, 0)).view
        elif action == "removed":
            view = metadata.blocks_removed(view, 0, [(p.block, p.topic_id) for p in view.deleting[:number]])
        elif action == "restart":
            view = metadata.start_brokers(view, [number])
        else:
            view = metadata.restarted(view, clean=bool(number))
        if view is not old:
            view = metadata.next_view(view, 1)
            assert view.version > old.version
        given = blocks(view)
        assert len(given) == len(set(given))
        for topic in view.topics.values():
            for p in topic.partitions:
                was = old.topics.get(topic.name)
                carried_on = was is not None and was.topic_id == topic.topic_id
                assert p.leader_epoch >= highest.get(p.block, 0) if carried_on else p.leader_epoch > highest.get(p.block, 0) or p.block not in highest
                highest[p.block] = max(highest.get(p.block, 0), p.leader_epoch)
                assert p.leader in p.replicas
        assert all(view.brokers[b].broker_epoch >= old.brokers[b].broker_epoch for b in old.brokers)
    config.cluster_config(view.config)


def test_an_added_broker_takes_the_first_free_id_and_goes_on_with_the_epochs_of_the_one_that_had_it() -> None:
    view = metadata.start_brokers(cluster(3), [1])
    epoch = view.brokers[1].broker_epoch
    without = metadata.forget_broker(view, 1)
    assert sorted(without.brokers) == [0, 2]
    assert metadata.free_broker_id(without.brokers) == 1
    again = metadata.restarted(without, clean=False)
    added = metadata.add_broker(again, 1, "/other")
    assert added.brokers[1].directory == "/other/broker-1" and added.retired == {}
    assert metadata.start_brokers(added, [1]).brokers[1].broker_epoch > epoch
    for bad, error in ((0, errors.DuplicateBrokerRegistrationError), (60, errors.IllegalArgumentError)):
        with pytest.raises(error):
            metadata.add_broker(without, bad)
    with pytest.raises(errors.InvalidConfigurationError):
        metadata.add_broker(cluster(data=False), 1, "/other")


def test_up_counts_brokers_and_does_not_mind_gaps_in_their_ids() -> None:
    view = metadata.forget_broker(cluster(3), 1)
    assert sorted(metadata.configured(view, StartOptions("c")).brokers) == [0, 2]
    assert sorted(metadata.configured(view, StartOptions("c", brokers=2)).brokers) == [0, 2]
    assert sorted(metadata.configured(view, StartOptions("c", brokers=3)).brokers) == [0, 1, 2]
    assert sorted(metadata.configured(view, StartOptions("c", brokers=1)).brokers) == [0]


def test_a_broker_that_was_added_elsewhere_stays_there_when_the_data_directories_are_moved() -> None:
    view = metadata.relocated(metadata.add_broker(cluster(), 1, "/other"), ("/new",))
    assert [b.directory for b in view.brokers.values()] == ["/new/broker-0", "/other/broker-1"]
