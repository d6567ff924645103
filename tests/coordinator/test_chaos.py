"""Coordinators, standbys, spares and brokers killed and stopped at random moments, while topics are made and deleted."""

from __future__ import annotations

import os
import random
import signal
import threading
import time

import pytest

from shmlog import errors, lifecycle, proc
from shmlog import messages as m
from shmlog._ffi import lib
from shmlog.client.session import attach
from shmlog.testing.waiting import until
from tests.coordinator.conftest import Cluster

ROLES = (lib.SL_ROLE_COORDINATOR, lib.SL_ROLE_COORDINATOR, lib.SL_ROLE_STANDBY, lib.SL_ROLE_SPARE, lib.SL_ROLE_BROKER)

CONTROL = {lib.SL_ROLE_COORDINATOR, lib.SL_ROLE_STANDBY, lib.SL_ROLE_SPARE}


class Writer(threading.Thread):
    """Makes and deletes topics of its own, and remembers what was acknowledged."""

    def __init__(self, cluster: Cluster, name: str, seed: int) -> None:
        super().__init__(daemon=True)
        self.cluster = cluster
        self.prefix = name
        self.random = random.Random(seed)
        self.session = attach(f"shm://{cluster.name}")
        self.topics: dict[str, bytes] = {}
        self.operations = 0
        self.error: BaseException | None = None
        self.ending = False

    def run(self) -> None:
        try:
            while not self.ending:
                self.step()
                self.operations += 1
        except BaseException as exc:
            self.error = exc

    def step(self) -> None:
        if self.topics and self.random.random() < 0.4:
            name = self.random.choice(sorted(self.topics))
            assert self.session.request(m.DeleteTopics((name,))).failures == (None,)
            del self.topics[name]
        else:
            name, topic_id = f"{self.prefix}{self.operations}", os.urandom(16)
            reply = self.session.request(m.CreateTopics((m.TopicSpec(name, topic_id, self.random.randrange(1, 5)),)))
            assert reply.failures == (None,), reply
            self.topics[name] = topic_id
        topic = self.session.topic(name)
        assert (topic.topic_id if topic else None) == self.topics.get(name)  # read your own changes


def check_blocks(view: m.ClusterView) -> None:
    blocks = [p.block for topic in view.topics.values() for p in topic.partitions] + [p.block for p in view.deleting]
    assert len(blocks) == len(set(blocks))


def living(cluster: Cluster) -> dict[int, int] | None:
    """The three that heal, by role, in one look at the table: three processes, or None."""
    found = {p.role: p.pid for p in cluster.control.processes if p.role in CONTROL and proc.alive(p.pid, p.start_ticks)}
    return found if len(set(found.values())) == 3 else None


def chaos(cluster: Cluster, seed: int, rounds: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    cluster.start(brokers=2)
    writers = [Writer(cluster, name, rng.getrandbits(32)) for name in ("a", "b")]
    for writer in writers:
        writer.start()
    epoch = 0
    try:
        for turn in range(rounds):
            target = sum(w.operations for w in writers) + rng.randrange(1, 6)
            what = f"operations to go on (turn {turn}, seed {seed})"
            until(lambda target=target: sum(w.operations for w in writers) >= target or any(w.error for w in writers), what)
            for writer in writers:
                assert writer.error is None, (seed, turn, writer.error)
            # One of the three that heal is left each time; with all of them dead only `up` helps. It may have been made just now (a spare that imports
            # still, a standby that has not asked for the lock yet): from when it is listed it heals alone.
            three = until(lambda: living(cluster), f"all to be healed (turn {turn}, seed {seed})")
            roles = set(rng.sample(ROLES, rng.choice((1, 1, 1, 2, 3))))
            if roles >= CONTROL:
                roles.discard(rng.choice(sorted(CONTROL)))
            victims = [three[role] if role in CONTROL else cluster.pid(role, rng.randrange(2)) for role in sorted(roles)]
            rng.shuffle(victims)
            # A stopped one is killed by whoever notices; a stopped spare only when it is needed.
            number = signal.SIGSTOP if rng.random() < 0.02 and lib.SL_ROLE_SPARE not in roles else signal.SIGKILL
            dying = [(pid, proc.start_ticks(pid)) for pid in victims if pid]
            cluster.kill(*filter(None, victims), number=number)
            # Until then they look alive, and the next turn would kill what is left of the three.
            until(lambda dying=dying: not any(proc.alive(*p) for p in dying), f"victims to be dead (turn {turn}, seed {seed})")
            now = until(lambda: (c := cluster.control) and c.coordinator_epoch, "control")
            assert now >= epoch
            epoch = now
            view = lifecycle.view_of(cluster.name)
            assert view is not None
            check_blocks(view)
    finally:
        for writer in writers:
            writer.ending = True
        for writer in writers:
            writer.join(60)
    acknowledged = {name: topic_id for writer in writers for name, topic_id in writer.topics.items()}
    if rng.random() < 0.5:
        cluster.kill_all()
        cluster.start()
    view = lifecycle.view_of(cluster.name)
    assert view is not None
    assert {t.name: t.topic_id for t in view.topics.values()} == acknowledged
    for writer in writers:
        writer.session.close()
    assert lifecycle.stop_cluster(cluster.name)
    cluster.start()
    view = lifecycle.view_of(cluster.name)
    assert view is not None
    assert {t.name: t.topic_id for t in view.topics.values()} == acknowledged
    check_blocks(view)


def test_acknowledged_changes_survive_thirty_kills(cluster: Cluster) -> None:
    chaos(cluster, random.SystemRandom().getrandbits(32), 30)


@pytest.mark.slow
def test_acknowledged_changes_survive_five_hundred_kills(cluster: Cluster) -> None:
    chaos(cluster, random.SystemRandom().getrandbits(32), 500)


def test_everything_stopped_and_resumed_costs_no_process(cluster: Cluster) -> None:
    cluster.start(brokers=2)
    until(lambda: cluster.pid(lib.SL_ROLE_STANDBY), "a standby")
    processes = [(p.pid, p.start_ticks) for p in cluster.control.processes if proc.alive(p.pid, p.start_ticks)]
    for pid, _ in processes:
        os.kill(pid, signal.SIGSTOP)
    stopped_at = time.monotonic()
    until(lambda: time.monotonic() > stopped_at + 1.6, "heartbeats to be stale")
    # The coordinators wake first, and find everybody else stopped and stale.
    for pid, _ in processes:
        os.kill(pid, signal.SIGCONT)
    beat = cluster.control.coordinator_alive_ns
    until(lambda: cluster.control.coordinator_alive_ns > beat + 2_500_000_000, "the coordinator to have looked several times")
    assert all(proc.alive(*process) for process in processes)


def test_a_stopped_spare_is_replaced_when_it_is_needed(cluster: Cluster) -> None:
    cluster.start()
    until(lambda: cluster.pid(lib.SL_ROLE_STANDBY), "a standby")
    spare, broker = cluster.pid(lib.SL_ROLE_SPARE), cluster.pid(lib.SL_ROLE_BROKER)
    cluster.kill(spare, number=signal.SIGSTOP)
    cluster.kill(broker)
    cluster.another(lib.SL_ROLE_BROKER, broker)
    assert cluster.pid(lib.SL_ROLE_SPARE) not in (0, spare)


def test_a_second_coordinator_by_mistake_decides_nothing(cluster: Cluster) -> None:
    cluster.start()
    session = cluster.session()
    epoch = cluster.control.coordinator_epoch
    pid = os.fork()
    if pid == 0:
        from shmlog.coordinator import server

        try:
            server.main(m.StartOptions(cluster.name, state_dir=str(cluster.data)), 3, -1)
        finally:
            os._exit(0)
    try:
        until(lambda: cluster.control.processes[3].pid == pid, "the second one to stand by")
        assert cluster.control.processes[3].role == lib.SL_ROLE_STANDBY
        assert session.request(m.DescribeCluster()).coordinator_epoch == epoch
        with pytest.raises(errors.TopicAlreadyExistsError):
            m.raise_failure(session.request(m.CreateTopics((m.TopicSpec("t"), m.TopicSpec("t")))).failures[1])
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
