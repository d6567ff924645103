"""Admin.watch: what a callback is told of a cluster that changes, dies, or is only slow to listen to."""

from __future__ import annotations

import gc
import logging
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from shmlog import Admin, Cluster, NewTopic, errors, events, messages
from shmlog.client import handle, watch
from shmlog.testing.processes import kill_all
from shmlog.testing.waiting import until
from tests.replication.test_replicas import hold_back

DEADLINE_S = 60.0


class Heard:
    """A callback that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.condition = threading.Condition()

    def __call__(self, event: events.Event) -> None:
        with self.condition:
            self.events.append(event)
            self.condition.notify_all()

    def of(self, *kinds: type) -> list[Any]:
        with self.condition:
            return [e for e in self.events if isinstance(e, kinds)]

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        with self.condition:
            assert self.condition.wait_for(condition, DEADLINE_S), f"not heard within {DEADLINE_S} s: {what}; heard {self.events}"
            return condition()

    def first(self, kind: type, after: int = 0) -> Any:
        return self.until(lambda: next((e for e in self.events[after:] if isinstance(e, kind)), None), kind.__name__)


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(brokers=1) as cluster:
        yield cluster


# --- what is told ------------------------------------------------------------------------------------------------------


def test_the_state_comes_first_and_then_each_change_once_and_in_order(here: Any, heard: Heard) -> None:
    here.topic("old", 2, retention_ms="60000")
    admin = here.admin()
    with admin.watch(heard):
        state = heard.first(events.State)
        assert state.topics["old"].config == {"retention.ms": "60000"}
        assert [p.leader for p in state.topics["old"].partitions] == [0, 0]
        assert state.brokers[0].up and state.cluster_id == admin.describe_cluster()["cluster_id"]
        admin.create_topics(NewTopic("new"))
        heard.first(events.TopicCreated)
        admin.alter_topic_configs({"old": {"retention.ms": 5000}})
        heard.first(events.TopicConfigChanged)
        admin.create_partitions({"old": 3})
        heard.first(events.PartitionsAdded)
        admin.delete_topics("new")
        heard.first(events.TopicDeleted)
    created, altered, added, deleted = heard.events[1:]
    assert (created.topic, created.topic_id, len(created.partitions)) == ("new", deleted.topic_id, 1)
    assert (altered.config, altered.previous) == ({"retention.ms": "5000"}, {"retention.ms": "60000"})
    assert (added.topic, added.first, [p.replicas for p in added.partitions]) == ("old", 2, [(0,)])
    assert [e.version for e in heard.events] == sorted(e.version for e in heard.events)
    assert msgspec.json.decode(msgspec.json.encode(deleted))["type"] == "TopicDeleted"


def test_a_namespace_hears_of_its_own_topics_only(shmlog_cluster: Any, heard: Heard) -> None:
    other = f"{shmlog_cluster.address.rpartition('/')[0]}/o{os.urandom(4).hex()}"  # a name of its own length: the fixture's may be the longest allowed
    with Admin(shmlog_cluster.address) as mine, Admin(other) as theirs:
        theirs.create_topics(NewTopic("theirs"))
        with mine.watch(heard):
            assert "theirs" not in heard.first(events.State).topics
            theirs.create_topics(NewTopic("same-name"))
            mine.create_topics(NewTopic("same-name"))
            heard.first(events.TopicCreated)
            theirs.delete_topics(["theirs", "same-name"])
            mine.delete_topics("same-name")
            heard.first(events.TopicDeleted)
        assert [(type(e).__name__, e.topic) for e in heard.events[1:]] == [("TopicCreated", "same-name"), ("TopicDeleted", "same-name")]


def test_a_broker_that_dies_is_told_with_the_leaders_that_follow_it(heard: Heard) -> None:
    with Cluster(brokers=3) as cluster, Admin() as admin:
        admin.create_topics(NewTopic("t", 1, 3))
        with admin.watch(heard):
            (partition,) = heard.first(events.State).topics["t"].partitions
            cluster.kill("broker", partition.leader)
            down = heard.first(events.BrokerDown)
            assert (down.broker_id, down.broker_epoch) == (partition.leader, 1)
            led = heard.first(events.LeaderChanged)
            assert led.previous_leader == partition.leader and led.leader in partition.isr and led.leader != partition.leader
            assert led.leader_epoch == partition.leader_epoch + 1
            up = heard.first(events.BrokerUp)
            assert up.broker_id == partition.leader and up.broker_epoch > down.broker_epoch
            heard.until(lambda: [e for e in heard.events if isinstance(e, events.IsrChanged) and set(e.isr) == {0, 1, 2}], "all in sync again")
            assert partition.leader not in heard.of(events.IsrChanged)[0].isr


def test_a_broker_is_up_when_it_has_taken_over_its_partitions_and_not_before(cluster: Cluster, heard: Heard) -> None:
    with Admin() as admin, admin.watch(heard):
        heard.first(events.State)
        fd = hold_back(cluster, 0)
        try:
            until(lambda: admin.describe_cluster()["brokers"][0]["state"] == "starting", "it to be started, to wait for the lock of its directory")
            heard.until(lambda: isinstance(heard.events[-1], events.BrokerDown), "BrokerDown")
            again = Heard()
            with admin.watch(again):
                assert not again.first(events.State).brokers[0].up
            at = len(heard.events)
            assert isinstance(heard.events[at - 1], events.BrokerDown)
        finally:
            os.close(fd)
        assert heard.first(events.BrokerUp, at).broker_epoch > heard.events[at - 1].broker_epoch


def test_versions_go_on_when_another_coordinator_takes_over(cluster: Cluster, heard: Heard) -> None:
    with Admin() as admin, admin.watch(heard):
        before = heard.first(events.State)
        for n in range(3):
            at = len(heard.events)
            cluster.kill("coordinator")
            changed = heard.first(events.CoordinatorChanged, at)
            admin.create_topics(NewTopic(f"t{n}"))  # by the successor
            assert heard.first(events.TopicCreated, at).topic == f"t{n}"
            assert changed.coordinator_epoch > before.coordinator_epoch
        versions = [e.version for e in heard.events]
        assert versions == sorted(versions) and versions[-1] > versions[0]
        assert [e.topic for e in heard.of(events.TopicCreated)] == ["t0", "t1", "t2"]


def test_stopped_coordinators_hold_no_watch_up(cluster: Cluster, heard: Heard) -> None:
    stopped = [cluster.kill(role, number=signal.SIGSTOP) for role in ("standby", "coordinator")]
    try:
        with Admin() as admin:
            began = time.monotonic()
            first = admin.watch(heard)
            assert heard.first(events.State).brokers[0].up
            first.close()
            assert time.monotonic() - began < 20
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)


def test_what_passes_while_the_callback_is_busy_is_told_as_one_difference(here: Any) -> None:
    admin = here.admin()
    here.topic("changed")
    here.topic("replaced")
    heard, busy, go = Heard(), threading.Event(), threading.Event()

    def callback(event: events.Event) -> None:
        heard(event)
        busy.set()
        assert go.wait(DEADLINE_S)

    with admin.watch(callback):
        assert busy.wait(DEADLINE_S)
        admin.create_topics(NewTopic("came-and-went"))
        admin.delete_topics("came-and-went")
        for ms in (1000, 2000, 3000):
            admin.alter_topic_configs({"changed": {"retention.ms": ms}})
        admin.delete_topics("replaced")
        admin.create_topics(NewTopic("replaced"))
        admin.create_topics(NewTopic("a"))
        go.set()
        heard.first(events.TopicConfigChanged)
    told = heard.events[1:]
    assert [(type(e).__name__, e.topic) for e in told] == [
        ("TopicDeleted", "replaced"), ("TopicCreated", "a"), ("TopicCreated", "replaced"), ("TopicConfigChanged", "changed"),
    ]  # fmt: skip
    assert told[3].config == {"retention.ms": "3000"} and told[3].previous == {}
    assert len({e.version for e in told}) == 1 and told[0].topic_id != told[2].topic_id


# --- the difference of any two views -----------------------------------------------------------------------------------


def random_look(rng: random.Random, version: int) -> watch.Look:
    """Few names and numbers, so that two of them have much in common."""
    topics = {}
    for name in ("a", "b", "c"):
        if rng.random() < 0.7:
            partitions = tuple(
                messages.PartitionView(n, rng.choice([-1, 0, 1]), rng.randint(1, 3), rng.choice([(0,), (0, 1)]), rng.choice([(0,), (0, 1), (1,)]))
                for n in range(rng.randint(1, 3))
            )
            topic = messages.TopicView(name, bytes([rng.randint(0, 1)]) * 16, rng.choice([{}, {"retention.ms": "1"}]), partitions)
            topics[name] = msgspec.Raw(messages.encode(topic))
    brokers = {n: events.Broker(rng.random() < 0.5, rng.randint(1, 2), rng.choice(["/x", "/y"])) for n in range(3) if rng.random() < 0.7}
    return watch.Look(version, rng.randint(1, 2), rng.choice([{}, {"num.partitions": "2"}]), brokers, topics)


def plain(look: watch.Look) -> dict[str, Any]:
    """What a listener that has heard everything must know."""
    topics = {name: messages.decode_topic(raw) for name, raw in look.topics.items()}
    return {
        "coordinator": look.coordinator_epoch,
        "config": look.config,
        "brokers": {n: (b.directory, b.broker_epoch if b.up else None) for n, b in look.brokers.items()},
        "topics": {name: [t.topic_id.hex(), t.config, [watch._partition(p) for p in t.partitions]] for name, t in topics.items()},
    }


def apply(known: dict[str, Any], event: Any) -> None:
    brokers, topics = known["brokers"], known["topics"]
    match event:
        case events.CoordinatorChanged():
            known["coordinator"] = event.coordinator_epoch
        case events.ClusterConfigChanged():
            assert known["config"] == event.previous
            known["config"] = event.config
        case events.BrokerDown():
            assert brokers[event.broker_id][1] == event.broker_epoch
            brokers[event.broker_id] = (brokers[event.broker_id][0], None)
        case events.BrokerUp():
            assert brokers[event.broker_id][1] is None
            brokers[event.broker_id] = (brokers[event.broker_id][0], event.broker_epoch)
        case events.BrokerAdded():
            assert event.broker_id not in brokers
            brokers[event.broker_id] = (event.directory, None)
        case events.BrokerRemoved():
            assert brokers.pop(event.broker_id)[1] is None  # down before it goes
        case events.TopicDeleted():
            assert topics.pop(event.topic)[0] == event.topic_id
        case events.TopicCreated():
            assert event.topic not in topics
            topics[event.topic] = [event.topic_id, event.config, list(event.partitions)]
        case events.TopicConfigChanged():
            assert topics[event.topic][1] == event.previous
            topics[event.topic][1] = event.config
        case events.PartitionsAdded():
            assert len(topics[event.topic][2]) == event.first
            topics[event.topic][2].extend(event.partitions)
        case events.ReplicasChanged() | events.LeaderChanged() | events.IsrChanged():
            fields = {"replicas", "leader", "leader_epoch", "isr"} & set(event.__struct_fields__)
            old = topics[event.topic][2][event.partition]
            topics[event.topic][2][event.partition] = msgspec.structs.replace(old, **{name: getattr(event, name) for name in fields})
        case _:
            raise AssertionError(event)


def test_whoever_applies_the_events_in_order_knows_what_is_true() -> None:
    seed = int(os.environ.get("SHMLOG_SEED", "7"))
    rng = random.Random(seed)
    for n in range(2000):
        old, new = random_look(rng, 1), random_look(rng, 2)
        # Partitions of one topic never become fewer.
        for name in old.topics.keys() & new.topics.keys():
            was, now = messages.decode_topic(old.topics[name]), messages.decode_topic(new.topics[name])
            if was.topic_id == now.topic_id and len(now.partitions) < len(was.partitions):
                new.topics[name] = old.topics[name]
        known = plain(old)
        told = list(watch.changes(old, new))
        for event in told:
            apply(known, event)
        assert known == plain(new), f"seed {seed}, round {n}: {told}"
        assert list(watch.changes(new, new)) == [] and all(e.version == 2 for e in told)


# --- the callback, and the end -----------------------------------------------------------------------------------------


def test_what_a_callback_raises_is_logged_and_the_watch_goes_on(here: Any, caplog: pytest.LogCaptureFixture) -> None:
    heard = Heard()

    def callback(event: events.Event) -> None:
        heard(event)
        raise ValueError("from the callback")

    with caplog.at_level(logging.ERROR, "shmlog.watch"), here.admin().watch(callback):
        heard.first(events.State)
        here.topic("t")
        heard.first(events.TopicCreated)
    assert len(caplog.records) == 2 and caplog.records[0].exc_info is not None
    assert "raised on State" in caplog.text and "ValueError: from the callback" in caplog.text


def test_a_callback_may_close_its_watch_and_that_call_is_the_last(here: Any) -> None:
    made: list[watch.Watch] = []
    heard, ready = Heard(), threading.Event()

    def callback(event: events.Event) -> None:
        heard(event)
        assert ready.wait(DEADLINE_S)
        if isinstance(event, events.TopicCreated):
            made[0].close()

    made.append(here.admin().watch(callback))
    heard.first(events.State)
    here.topic("t")
    here.topic("in-the-same-look")
    ready.set()
    assert made[0].wait(DEADLINE_S) and made[0].closed
    here.topic("later")
    made[0].close()  # again: nothing
    assert [type(e) for e in heard.events] == [events.State, events.TopicCreated]


def test_close_returns_when_the_callback_does_and_says_so_when_it_does_not(here: Any) -> None:
    inside, go, returned = threading.Event(), threading.Event(), threading.Event()

    def callback(event: events.Event) -> None:
        inside.set()
        assert go.wait(DEADLINE_S)
        returned.set()

    made = here.admin().watch(callback)
    assert inside.wait(DEADLINE_S)
    with pytest.raises(errors.KafkaTimeoutError, match=r"has not returned within 0\.01 s"):
        made.close(timeout=0.01)
    assert not made.closed
    go.set()
    made.close()
    assert returned.is_set() and made.closed


def test_a_watch_goes_on_without_its_admin_and_without_its_handle(shmlog_cluster: Any, here: Any, heard: Heard) -> None:
    with Admin(shmlog_cluster.address) as admin:
        admin.watch(heard)
    del admin
    gc.collect()
    heard.first(events.State)
    here.topic("t")
    heard.first(events.TopicCreated)
    (thread,) = [t for t in threading.enumerate() if t.name == "shmlog-watch"]
    thread._target.__self__.close()  # type: ignore[attr-defined]
    assert not thread.is_alive() or thread.join(DEADLINE_S) is None


def test_a_forked_child_is_refused_and_the_parent_goes_on(here: Any, heard: Heard) -> None:
    admin = here.admin()
    with admin.watch(heard) as made:
        heard.first(events.State)
        child = os.fork()
        if child == 0:
            code = 0
            for call in (made.close, made.wait, made.__enter__, lambda: admin.watch(heard)):
                try:
                    call()
                    code = 1
                except errors.ForkedProcessError:
                    pass
            os._exit(code if made.closed else 2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        here.topic("t")
        heard.first(events.TopicCreated)


def test_ctrl_c_ends_a_wait_and_not_the_watch(here: Any, heard: Heard) -> None:
    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt)
    try:
        with here.admin().watch(heard) as made:
            heard.first(events.State)
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(KeyboardInterrupt):
                made.wait(DEADLINE_S)
            here.topic("t")
            heard.first(events.TopicCreated)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def test_the_shutdown_of_the_cluster_is_the_last_event(cluster: Cluster, heard: Heard) -> None:
    made = Admin().watch(heard)
    heard.first(events.State)
    cluster.stop()
    assert made.wait(DEADLINE_S)
    assert heard.events[-1].orderly and "shut down" in heard.events[-1].reason
    assert len(heard.of(events.ClusterDown)) == 1
    made.close()


def test_the_death_of_all_processes_is_the_last_event(cluster: Cluster, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handle, "DEAD_NS", 300_000_000)
    made = Admin().watch(heard)
    heard.first(events.State)
    until(lambda: kill_all(cluster.name), "everybody to be dead")
    assert made.wait(DEADLINE_S)
    last = heard.events[-1]
    assert isinstance(last, events.ClusterDown) and not last.orderly and "no longer running" in last.reason


def test_a_callback_that_cannot_be_called_is_refused(here: Any) -> None:
    with pytest.raises(TypeError, match="takes an event"):
        here.admin().watch(None)
