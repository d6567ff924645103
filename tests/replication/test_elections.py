"""Who leads, who is in sync and who has a replica at all, decided without I/O: by hand, and over random schedules of deaths, starts, reboots, changes
of the ISR, moves, and brokers that come and retire."""

from __future__ import annotations

import random
from collections import Counter

import msgspec
import pytest

from shmlog import errors
from shmlog.coordinator import elections, metadata, moves
from shmlog.messages import NO_LEADER, ClusterView, IsrChange, PartitionView, ReplicaReport, StartOptions, TopicSpec

TOPIC_ID = b"i" * 16


def made(brokers: int = 3, factor: int = 3, partitions: int = 1, **config: str) -> ClusterView:
    view = metadata.new_cluster(StartOptions("c", brokers=brokers, data_dirs=("/data",)), b"c" * 16)
    view = metadata.start_brokers(view, range(brokers))
    spec = TopicSpec("t", TOPIC_ID, partitions, factor, config={key.replace("_", "."): value for key, value in config.items()})
    decision = metadata.create_topics(view, [spec], lambda: TOPIC_ID)
    assert decision.failures == [None]
    return decision.view


def part(view: ClusterView, number: int = 0) -> PartitionView:
    return view.topics["t"].partitions[number]


def test_when_a_leader_dies_the_first_living_in_sync_replica_leads_under_the_next_epoch() -> None:
    view = made()
    before = part(view)
    after = part(elections.broker_down(view, before.leader, {1, 2} - {before.leader} | {2}))
    assert after.leader in before.isr and after.leader != before.leader
    assert after.leader_epoch == before.leader_epoch + 1
    assert before.leader not in after.isr


def test_a_dead_follower_leaves_the_isr_and_the_leader_stays() -> None:
    view = made()
    before = part(view)
    follower = next(r for r in before.replicas if r != before.leader)
    after = part(elections.broker_down(view, follower, {0, 1, 2} - {follower}))
    assert (after.leader, after.leader_epoch) == (before.leader, before.leader_epoch)
    assert set(after.isr) == {0, 1, 2} - {follower}


def test_the_last_in_sync_replica_stays_alone_in_the_isr_and_leads_again_when_it_is_back() -> None:
    view = made(2, 2)
    first = part(view).leader
    view = elections.broker_down(view, first, {1 - first})
    last = part(view).leader
    gone = elections.broker_down(view, last, set())
    assert part(gone).isr == (last,) and part(gone).leader == last
    back = metadata.start_brokers(gone, [first])  # the other one has not what was committed since
    assert part(back).leader == last
    assert part(metadata.start_brokers(back, [last])).leader_epoch == part(gone).leader_epoch + 1


def test_only_the_leader_of_the_present_epoch_changes_the_isr_and_only_among_the_living() -> None:
    view = made()
    p = part(view)
    fewer = IsrChange(p.block, TOPIC_ID, p.leader_epoch, (p.leader,))
    assert part(elections.alter_isr(view, p.leader, [fewer], {0, 1, 2})).isr == (p.leader,)
    other = next(r for r in p.replicas if r != p.leader)
    assert elections.alter_isr(view, other, [fewer], {0, 1, 2}) is view
    assert elections.alter_isr(view, p.leader, [msgspec.structs.replace(fewer, leader_epoch=p.leader_epoch - 1)], {0, 1, 2}) is view
    assert elections.alter_isr(view, p.leader, [msgspec.structs.replace(fewer, topic_id=b"x" * 16)], {0, 1, 2}) is view
    small = elections.alter_isr(view, p.leader, [fewer], {0, 1, 2})
    everybody = msgspec.structs.replace(fewer, isr=p.replicas)
    assert set(part(elections.alter_isr(small, p.leader, [everybody], {p.leader, other})).isr) == {p.leader, other}


def test_a_follower_takes_itself_out_and_nobody_else() -> None:
    view = made()
    p = part(view)
    follower = next(r for r in p.replicas if r != p.leader)
    out = elections.alter_isr(view, follower, [IsrChange(p.block, TOPIC_ID, p.leader_epoch, ())], {0, 1, 2})
    assert set(part(out).isr) == set(p.replicas) - {follower}
    assert elections.alter_isr(view, p.leader, [IsrChange(p.block, TOPIC_ID, p.leader_epoch, ())], {0, 1, 2}) is view


def report(end: int, epoch: int = 1, block: int = 0) -> ReplicaReport:
    return ReplicaReport(block, TOPIC_ID, epoch, end)


def test_after_a_reboot_nobody_leads_until_all_of_the_last_isr_have_reported() -> None:
    view = metadata.restarted(made(), clean=False)
    assert part(view).leader == NO_LEADER
    assert elections.elect_reported(view, {0: {0: report(5), 1: report(9)}}, {0, 1, 2}) is view
    elected = part(elections.elect_reported(view, {0: {0: report(5), 1: report(9), 2: report(7)}}, {0, 1, 2}))
    assert (elected.leader, elected.isr) == (1, (1,))
    later = part(elections.elect_reported(view, {0: {0: report(5, epoch=2), 1: report(9), 2: report(7)}}, {0, 1, 2}))
    assert later.leader == 0 and later.leader_epoch > part(view).leader_epoch


def test_an_unclean_election_waits_for_all_that_live_and_is_by_configuration_only() -> None:
    reports = {0: {0: report(5), 2: report(7)}}
    strict = metadata.restarted(made(), clean=True)
    assert elections.elect_reported(strict, reports, {0, 2}) is strict
    loose = metadata.restarted(made(unclean_leader_election_enable="true"), clean=True)
    assert elections.elect_reported(loose, reports, {0, 1, 2}) is loose
    assert part(elections.elect_reported(loose, reports, {0, 2})).leader == 2


def test_elections_by_hand() -> None:
    view = made()
    preferred = part(view).replicas[0]
    _, failures = elections.elect(view, [("t", 0), ("t", 7), ("x", 0)], False, {0, 1, 2})
    assert [type(f) for f in failures] == [errors.ElectionNotNeededError, errors.UnknownTopicOrPartitionError, errors.UnknownTopicOrPartitionError]
    moved = elections.broker_down(view, preferred, {0, 1, 2} - {preferred})
    _, failures = elections.elect(moved, [("t", 0)], False, {0, 1, 2})
    assert isinstance(failures[0], errors.PreferredLeaderNotAvailableError)
    p = part(moved)
    whole = elections.alter_isr(moved, p.leader, [IsrChange(p.block, TOPIC_ID, p.leader_epoch, p.replicas)], {0, 1, 2})
    back, failures = elections.elect(whole, [("t", 0)], False, {0, 1, 2})
    assert failures == [None] and part(back).leader == preferred and part(back).leader_epoch == p.leader_epoch + 1


def test_unclean_elections_by_hand_only_where_no_in_sync_replica_lives() -> None:
    view = made(2, 2)
    first = part(view).leader
    view = elections.broker_down(view, first, {1 - first})
    _, failures = elections.elect(view, [("t", 0)], True, {0, 1})
    assert isinstance(failures[0], errors.ElectionNotNeededError)
    lost, failures = elections.elect(view, [("t", 0)], True, {first})
    assert failures == [None] and part(lost).leader == first and part(lost).isr == (first,)


def test_a_retiring_broker_gives_its_partitions_to_those_that_have_fewest_and_gets_no_new_ones() -> None:
    everybody = {0, 1, 2, 3}
    view = moves.retire(made(4, 2, partitions=6), 0, everybody)
    targets = [p.target or p.replicas for p in view.topics["t"].partitions]
    assert not any(0 in to for to in targets)
    assert all(3 <= sum(b in to for to in targets) <= 5 for b in (1, 2, 3))  # 12 replicas, where each had 3 of 12
    assert moves.retire(view, 0, everybody) is view
    view = metadata.create_topics(view, [TopicSpec("u", b"u" * 16, 3, 3)], lambda: b"u" * 16).view
    assert all(set(p.replicas) == {1, 2, 3} for p in view.topics["u"].partitions)
    refused = metadata.create_topics(view, [TopicSpec("v", b"v" * 16, replica_assignments={0: (0,)})], lambda: b"v" * 16)
    assert isinstance(refused.failures[0], errors.IllegalArgumentError)
    four = metadata.create_topics(view, [TopicSpec("w", b"w" * 16, 1, 4)], lambda: b"w" * 16)
    assert isinstance(four.failures[0], errors.InvalidReplicationFactorError)
    _, failures = moves.reassign(view, [("t", 0, (0, 1))], everybody)
    assert isinstance(failures[0], errors.InvalidReplicationAssignmentError)


def test_a_move_turned_round_needs_one_of_those_that_it_goes_back_to() -> None:
    view = moves.reassign(made(4, 1), [("t", 0, (3, 2))], {0, 1, 2, 3}).view
    p = part(view)
    assert (p.replicas, p.target, p.adding, p.removing, p.leader_epoch) == ((0, 3, 2), (3, 2), (3, 2), (0,), 2)
    view = elections.alter_isr(view, 0, [IsrChange(p.block, TOPIC_ID, p.leader_epoch, (0, 3))], {0, 1, 2, 3})
    assert moves.advance(view, {0, 1, 2, 3}) is view  # not all of the target
    back = moves.reassign(view, [("t", 0, None)], {0, 1, 2, 3}).view
    assert (part(back).replicas, part(back).isr, part(back).leader_epoch) == ((0,), (0,), 3)
    assert [d.broker for d in back.dropped] == [3, 2]
    dead = elections.broker_down(view, 0, {1, 2, 3})
    refused, failures = moves.reassign(dead, [("t", 0, None)], {1, 2, 3})
    assert isinstance(failures[0], errors.NotEnoughReplicasError) and refused is dead


def test_files_of_a_replica_that_has_left_stay_until_the_disk_knows() -> None:
    view = moves.reassign(made(4, 1), [("t", 0, (1,))], {0, 1, 2, 3}).view
    p = part(view)
    view = moves.advance(elections.alter_isr(view, 0, [IsrChange(p.block, TOPIC_ID, p.leader_epoch, (0, 1))], {0, 1, 2, 3}), {0, 1, 2, 3})
    assert [(d.broker, d.may_go) for d in view.dropped] == [(0, False)]
    assert moves.under_way(view)  # or nobody would look again
    stored = moves.stored(view)
    assert [(d.broker, d.may_go) for d in stored.dropped] == [(0, True)]
    assert moves.stored(stored) is stored and not moves.under_way(stored)
    assert metadata.parts_of(stored, 0) == 1  # a cluster that is started with fewer brokers does not forget it


def test_of_two_questions_of_a_leader_only_the_first_is_answered() -> None:
    view = moves.reassign(made(4, 1), [("t", 0, (2, 1))], {0, 1, 2, 3}).view
    p = part(view)
    first, second = (IsrChange(p.block, TOPIC_ID, p.leader_epoch, isr, p.isr) for isr in ((0, 1), (0, 1, 2)))
    view = elections.alter_isr(view, 0, [first], {0, 1, 2, 3})
    assert set(part(view).isr) == {0, 1}
    assert elections.alter_isr(view, 0, [second], {0, 1, 2, 3}) is view


def test_a_move_is_not_taken_back_without_a_leader_nor_to_a_broker_that_retires() -> None:
    everybody = {0, 1, 2, 3}
    view = moves.reassign(made(4, 2), [("t", 0, (2, 3))], everybody).view
    leaderless = elections.without_leaders(view)
    _, failures = moves.reassign(leaderless, [("t", 0, None)], everybody)
    assert isinstance(failures[0], errors.LeaderNotAvailableError)
    retiring = moves.retire(view, 0, everybody)
    _, failures = moves.reassign(retiring, [("t", 0, None)], everybody)
    assert isinstance(failures[0], errors.InvalidReplicationAssignmentError) and "retiring" in str(failures[0])


def test_a_move_needs_room_for_old_and_new_and_goes_back_only_to_enough() -> None:
    everybody = set(range(18))
    _, failures = moves.reassign(made(18, 9), [("t", 0, tuple(range(9, 18)))], everybody)
    assert isinstance(failures[0], errors.InvalidReplicationAssignmentError) and "would be 18, and 16 is the most" in str(failures[0])
    view = moves.reassign(made(4, 1), [("t", 0, (0, 1))], everybody).view
    view = metadata.alter_topic_configs(view, {"t": {"min.insync.replicas": "2"}}).view  # as many as it will have
    _, failures = moves.reassign(view, [("t", 0, None)], everybody)
    assert isinstance(failures[0], errors.InvalidConfigurationError) and "min.insync.replicas" in str(failures[0])


def test_a_topic_that_drops_its_oldest_gets_no_new_replica_by_a_broker_that_retires() -> None:
    view = made(4, 2)
    dropping = msgspec.structs.replace(view.topics["t"], config={"shmlog.full": "drop_oldest"})
    view = msgspec.structs.replace(view, topics={"t": dropping}, data_dirs=("/somewhere",))
    with pytest.raises(errors.InvalidReplicationAssignmentError, match="drop_oldest"):
        moves.retire(view, 0, {0, 1, 2, 3})


class World:
    """Four brokers, and the replicas of a partition as lists of (epoch, record): what a leader appends, what followers copy, and what was acknowledged
    to somebody. Memory, which outlives processes, holds the log as appended; a reboot takes it, and from each replica what it had not synced."""

    def __init__(self, rng: random.Random, sabotage: str = "") -> None:
        self.rng = rng
        self.sabotage = sabotage
        self.view = made(4)
        self.alive = set(self.view.brokers)
        self.logs: dict[int, list[tuple[int, int]]] = {broker: [] for broker in self.alive}
        self.synced = dict.fromkeys(self.alive, 0)
        self.memory: list[tuple[int, int]] = []
        self.committed = 0
        self.durable: list[tuple[int, int]] = []
        self.records = 0
        self.took: Counter[str] = Counter()
        self.reports: dict[int, dict[int, ReplicaReport]] = {}
        self.leaders: dict[int, int] = {}

    def set(self, view: ClusterView) -> bool:
        if view is self.view:
            return False
        old, new = part(self.view), part(view)
        assert new.leader_epoch >= old.leader_epoch
        assert new.isr and (new.leader == NO_LEADER or new.leader in new.isr)
        assert set(new.isr) <= set(new.replicas) <= set(view.brokers), "a replica at a broker that is not there"
        assert set(new.target) <= set(new.replicas)
        if len(old.replicas) == 1 != len(new.replicas) or len(new.replicas) == 1 != len(old.replicas):
            assert new.leader_epoch > old.leader_epoch, "another meaning of the high watermark in the same epoch"
        if (new.leader_epoch, new.leader) != (old.leader_epoch, old.leader) and new.leader != NO_LEADER:
            assert self.leaders.setdefault(new.leader_epoch, new.leader) == new.leader, "two leaders in one epoch"
            log = self.logs[new.leader]
            assert len(log) >= self.committed, "a leader without what was committed"
            if self.memory:
                assert log == self.memory[: len(log)], "a leader whose files are not the log"
                log[:] = self.memory  # drained from memory
        self.view = view
        return True

    def step(self) -> None:
        often = ["append"] * 8 + ["copy"] * 10 + ["sync"] * 5 + ["start"] * 5 + ["grow"] * 4 + ["finish"] * 4 + ["drop", "store"] * 2
        name = self.rng.choice([*often, "kill", "kill", "shrink", "prefer", "reboot", "move", "move", "cancel", "retire", "leave", "leave", "come"])
        if getattr(self, name)():
            self.took[name] += 1

    def append(self) -> bool:
        p = part(self.view)
        if p.leader not in self.alive:
            return False
        self.records += 1
        self.memory.append((p.leader_epoch, self.records))
        self.logs[p.leader] = list(self.memory)
        self.commit()
        return True

    def commit(self) -> None:
        p = part(self.view)
        if p.leader in self.alive:
            members = p.isr[:1] if self.sabotage == "one replica commits" else p.isr
            self.committed = max(self.committed, min(len(self.logs[r]) for r in members))
            durable = min(self.synced[r] for r in (p.isr if self.sabotage != "durable by the leader alone" else [p.leader]))
            if durable > len(self.durable):
                self.durable = self.memory[:durable]

    def copy(self) -> bool:
        p = part(self.view)
        followers = [r for r in p.replicas if r in self.alive and r != p.leader]
        if p.leader not in self.alive or not followers:
            return False
        follower = self.rng.choice(followers)
        leader, log = self.logs[p.leader], self.logs[follower]
        same = next((n for n, (a, b) in enumerate(zip(leader, log, strict=False)) if a != b), min(len(leader), len(log)))
        if same < len(log):
            assert follower not in p.isr or same >= self.committed, "an in-sync replica is cut below what was committed"
            self.took["cut"] += 1
        self.logs[follower] = leader[: min(len(leader), same + self.rng.randrange(1, 4))]
        self.synced[follower] = min(self.synced[follower], same)
        self.commit()
        return True

    def sync(self) -> bool:
        replica = self.rng.choice(range(4))
        if replica not in self.alive:
            return False
        self.synced[replica] = len(self.logs[replica])
        self.commit()
        return True

    def kill(self) -> bool:
        if not self.alive:
            return False
        dead = self.rng.choice(sorted(self.alive))
        self.alive.discard(dead)
        self.set(elections.broker_down(self.view, dead, self.alive))
        self.commit()
        return True

    def start(self) -> bool:
        down = {b for b in self.view.brokers if b not in self.alive and not moves.has_retired(self.view, b)}
        if not down:
            return False
        self.started(self.rng.choice(sorted(down)))
        return True

    def started(self, broker: int) -> None:
        self.alive.add(broker)
        self.set(metadata.start_brokers(self.view, [broker]))
        log = self.logs[broker]
        self.reports.setdefault(0, {})[broker] = report(len(log), log[-1][0] if log else 0)
        self.set(elections.elect_reported(self.view, self.reports, self.alive))

    def shrink(self) -> bool:
        p = part(self.view)
        if p.leader not in self.alive or len(p.isr) < 2:
            return False
        gone = self.rng.choice([r for r in p.isr if r != p.leader])
        change = IsrChange(p.block, TOPIC_ID, p.leader_epoch, tuple(r for r in p.isr if r != gone))
        self.set(elections.alter_isr(self.view, p.leader, [change], self.alive))
        self.commit()
        return True

    def grow(self) -> bool:
        p = part(self.view)
        outside = [r for r in p.replicas if r not in p.isr and r in self.alive]
        if p.leader not in self.alive or not outside:
            return False
        new = self.rng.choice(outside)
        behind = self.logs[new] != self.memory[: len(self.logs[new])] or len(self.logs[new]) < self.committed
        if behind and self.sabotage != "in sync before it is":
            return False
        if self.synced[new] < len(self.durable) and self.sabotage != "in sync without what is durable":
            return False
        change = IsrChange(p.block, TOPIC_ID, p.leader_epoch, (*p.isr, new))
        self.set(elections.alter_isr(self.view, p.leader, [change], self.alive))
        return True

    def prefer(self) -> bool:
        view, failures = elections.elect(self.view, [("t", 0)], False, self.alive)
        self.set(view)
        return failures == [None]

    # --- moves ---

    def move(self) -> bool:
        before = part(self.view)
        to = tuple(self.rng.sample(sorted(self.view.brokers), self.rng.randrange(1, min(4, len(self.view.brokers) + 1))))
        view, failures = moves.reassign(self.view, [("t", 0, to)], self.alive)
        if self.sabotage == "files are removed of a replica that came back":
            view = msgspec.structs.replace(view, dropped=self.view.dropped)
        self.took["move turned elsewhere"] += failures == [None] and bool(before.target)
        self.took["one replica becomes several"] += len(before.replicas) == 1 < len(part(view).replicas)
        self.took["a replica comes back before its files are gone"] += len(view.dropped) < len(self.view.dropped)
        return self.set(view)

    def cancel(self) -> bool:
        view, failures = moves.reassign(self.view, [("t", 0, None)], self.alive)
        self.took["cancel refused"] += isinstance(failures[0], errors.NotEnoughReplicasError)
        self.count_end(view)
        return self.set(view)

    def finish(self) -> bool:
        before, view = part(self.view), self.view
        if self.sabotage == "old replicas go before the new ones are in sync":
            view = elections.change_partitions(view, lambda _, p: msgspec.structs.replace(p, isr=p.replicas))
        view = moves.advance(view, self.alive)
        if part(view).replicas == before.replicas:
            return self.set(view) if not self.sabotage else False
        if self.sabotage == "the leader goes without an election":
            view = elections.change_partitions(view, lambda _, p: msgspec.structs.replace(p, leader=before.leader))
        if self.sabotage == "the next leader has the same epoch":
            view = elections.change_partitions(view, lambda _, p: msgspec.structs.replace(p, leader_epoch=before.leader_epoch))
        self.count_end(view)
        return self.set(view)

    def count_end(self, view: ClusterView) -> None:
        self.took["a leader leaves the list"] += part(self.view).leader not in (*part(view).replicas, NO_LEADER)
        self.took["several replicas become one"] += len(part(self.view).replicas) > 1 == len(part(view).replicas)

    def drop(self) -> bool:
        """A broker applies the view: the files of what it has no more go."""
        due = [d.broker for d in self.view.dropped if d.broker in self.alive and d.may_go]
        for broker in due:
            self.logs[broker], self.synced[broker] = [], 0
            self.set(moves.replicas_removed(self.view, broker, [(part(self.view).block, TOPIC_ID)]))
        return bool(due)

    def store(self) -> bool:
        """The coordinator's disk has the view in force."""
        return self.set(moves.stored(self.view))

    def retire(self) -> bool:
        broker, force = self.rng.choice(sorted(self.view.brokers)), self.rng.random() < 0.5
        try:
            view = moves.retire(self.view, broker, self.alive, force)
        except errors.ShmlogError as exc:
            self.took[f"retire: {type(exc).__name__}"] += 1
            return False
        return self.set(view)

    def leave(self) -> bool:
        early = self.sabotage == "a broker is forgotten while it has replicas"
        due = [b.id for b in self.view.brokers.values() if moves.has_retired(self.view, b.id) or (early and b.retiring)]
        for broker in due:
            self.alive.discard(broker)
            self.set(metadata.forget_broker(self.view, broker))
        return bool(due)

    def come(self) -> bool:
        if len(self.view.brokers) == 4:
            return False
        broker = metadata.free_broker_id(self.view.brokers)
        self.logs[broker], self.synced[broker] = [], 0
        return self.set(metadata.add_broker(self.view, broker))

    def reboot(self) -> bool:
        self.took["reboot with a loss"] += self.committed > len(self.durable)
        self.took["reboot in a move"] += bool(part(self.view).target)
        self.alive = set()
        self.memory = []
        for replica, log in self.logs.items():
            self.logs[replica] = log[: self.synced[replica]]
        self.committed = 0
        view = metadata.restarted(self.view, clean=False)
        if self.sabotage == "the first to report leads":
            view = elections.change_partitions(view, lambda _, p: msgspec.structs.replace(p, isr=p.replicas[:1]))
        if self.sabotage == "epochs begin anew":
            view = self.view = elections.change_partitions(view, lambda _, p: msgspec.structs.replace(p, leader_epoch=0))
        self.set(view)
        self.reports = {}
        assert len(part(self.view).replicas) == 1 or part(self.view).leader == NO_LEADER
        order = sorted(self.view.brokers)
        self.rng.shuffle(order)
        for broker in order:
            self.started(broker)
        p = part(self.view)
        assert p.leader != NO_LEADER, "all have reported"
        self.memory = list(self.logs[p.leader])
        assert self.memory[: len(self.durable)] == self.durable, "durable records are lost"
        self.committed = len(self.durable)
        self.durable = self.memory[: len(self.durable)]
        return True


def simulate(seed: int, steps: int = 150, sabotage: str = "") -> Counter[str]:
    world = World(random.Random(seed), sabotage)
    for _ in range(steps):
        world.step()
    return world.took


def test_thousands_of_schedules_lose_nothing_and_take_every_turn() -> None:
    took: Counter[str] = Counter()
    for seed in range(3000):
        try:
            took += simulate(seed)
        except AssertionError as exc:
            raise AssertionError(f"seed {seed}: {exc}") from exc
    print(dict(took))
    turns = (
        "append", "copy", "sync", "kill", "start", "shrink", "grow", "prefer", "reboot", "cut", "reboot with a loss",
        "move", "move turned elsewhere", "cancel", "cancel refused", "finish", "drop", "a leader leaves the list", "one replica becomes several",
        "several replicas become one", "a replica comes back before its files are gone", "reboot in a move",
        "retire", "retire: NotEnoughReplicasError", "leave", "come", "store",
    )  # fmt: skip
    assert not [name for name in turns if not took[name]]


@pytest.mark.parametrize(
    "sabotage",
    [
        "one replica commits",
        "durable by the leader alone",
        "in sync before it is",
        "in sync without what is durable",
        "the first to report leads",
        "epochs begin anew",
        "old replicas go before the new ones are in sync",
        "the leader goes without an election",
        "the next leader has the same epoch",
        "files are removed of a replica that came back",
        "a broker is forgotten while it has replicas",
    ],
)
def test_a_planted_mistake_is_found_within_two_thousand_seeds(sabotage: str) -> None:
    for seed in range(2000):
        try:
            simulate(seed, sabotage=sabotage)
        except AssertionError as exc:
            print(f"{sabotage}: seed {seed}: {exc}")
            return
    raise AssertionError(f"{sabotage} was not found")
