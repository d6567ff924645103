"""Starting, killing, stopping and healing a whole cluster of real processes."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmlog import Cluster as Embedded
from shmlog import config, errors, lifecycle, proc, shm
from shmlog import messages as m
from shmlog._ffi import lib
from shmlog.client.session import Session, attach
from shmlog.coordinator.memory import open_memory
from shmlog.coordinator.spare_link import SpareLink
from shmlog.testing.waiting import until
from tests.coordinator.conftest import Cluster

COORDINATOR, STANDBY, SPARE, BROKER = lib.SL_ROLE_COORDINATOR, lib.SL_ROLE_STANDBY, lib.SL_ROLE_SPARE, lib.SL_ROLE_BROKER


def topic(session: Session, name: str, partitions: int = 1) -> m.TopicView:
    reply = session.request(m.CreateTopics((m.TopicSpec(name, os.urandom(16), partitions),)))
    assert reply.failures == (None,), reply
    found = session.topic(name)
    assert found is not None
    return found


# --- up and down -------------------------------------------------------------------------------------------------------


def test_up_twice_is_a_no_op_and_down_leaves_nothing(cluster: Cluster) -> None:
    assert cluster.start(brokers=2)
    assert lifecycle.is_up(cluster.name)
    assert not cluster.start(brokers=2)
    assert not cluster.start()
    pids = cluster.pids()
    assert len(pids) >= 4
    assert lifecycle.stop_cluster(cluster.name)
    assert not lifecycle.is_up(cluster.name)
    assert shm.names(cluster.prefix) == []
    assert not os.path.exists(config.run_dir(cluster.name))
    assert not lifecycle.stop_cluster(cluster.name)


def test_up_with_other_options_names_the_difference(cluster: Cluster) -> None:
    cluster.start(config={"num.partitions": "3"})
    with pytest.raises(errors.InvalidConfigurationError, match=r"1 broker, not 2; data in .*memory only; num\.partitions=3, not 4"):
        cluster.start(brokers=2, data_dirs=[], config={"num.partitions": "4"})
    assert not cluster.start(config={"num.partitions": 3})


def test_two_starts_at_once_make_one_cluster(cluster: Cluster) -> None:
    results: list[bool] = []
    threads = [threading.Thread(target=lambda: results.append(cluster.start())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [False, False, False, True]
    assert sum(p.role == COORDINATOR for p in cluster.control.processes) == 1


def test_up_that_saw_nobody_finds_the_cluster_up(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A coordinator forked just before its maker was killed is in no table yet when `up` looks."""
    cluster.start()
    active = cluster.pid(COORDINATOR)
    real, looks = lifecycle._running, [None]
    monkeypatch.setattr(lifecycle, "_running", lambda prefix: looks.pop() if looks else real(prefix))
    assert not cluster.start(timeout=20)
    assert cluster.pid(COORDINATOR) == active
    cluster.kill(active)
    cluster.another(COORDINATOR, active)
    assert lifecycle.stop_cluster(cluster.name)


def test_topics_survive_down_and_up(cluster: Cluster) -> None:
    cluster.start()
    with attach(f"shm://{cluster.name}") as session:
        before = topic(session, "t", 3)
        epoch = session.view.coordinator_epoch
    lifecycle.stop_cluster(cluster.name)
    cluster.start()
    session = cluster.session()
    after = session.topic("t")
    assert after is not None
    assert after.topic_id == before.topic_id
    assert session.view.coordinator_epoch > epoch
    assert all(a.leader_epoch > b.leader_epoch for a, b in zip(after.partitions, before.partitions, strict=True))


def test_down_with_wipe_removes_our_files_and_only_those(cluster: Cluster) -> None:
    cluster.start()
    mine = [cluster.data / name for name in ("notes.txt", "logs/web.log", "broker-notes/a")]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    lifecycle.stop_cluster(cluster.name, wipe=True)
    assert sorted(path for path in cluster.data.rglob("*") if path.is_file()) == sorted(mine)


def test_what_cannot_be_written_is_counted_and_kept_unless_forced(cluster: Cluster) -> None:
    cluster.start()
    session = cluster.session()
    before = topic(session, "t")
    (cluster.data / "broker-0").mkdir(exist_ok=True)
    (cluster.data / "broker-0" / "refuse").touch()
    with pytest.raises(errors.StorageError, match="4,096 bytes"):
        lifecycle.stop_cluster(cluster.name)
    assert lifecycle.is_up(cluster.name)
    after = session.topic("t")
    assert after is not None
    assert after.partitions[0].leader_epoch > before.partitions[0].leader_epoch  # its broker had fenced it, and opens it anew
    assert lifecycle.stop_cluster(cluster.name, force=True)


def test_a_broker_that_cannot_start_is_the_error_of_up(cluster: Cluster) -> None:
    (cluster.data / "broker-0").mkdir(parents=True)
    (cluster.data / "broker-0" / "die").touch()
    with pytest.raises(errors.StorageError, match="the directory is not right"):
        cluster.start()
    until(lambda: not shm.names(cluster.prefix) and not os.path.exists(config.run_dir(cluster.name)), "nothing to be left")


def test_a_damaged_database_without_anything_to_rebuild_it_from_is_the_error_of_up(cluster: Cluster) -> None:
    cluster.data.mkdir()
    (cluster.data / "cluster.sqlite3").write_bytes(b"no database" * 1000)
    with pytest.raises(errors.StorageError, match=r"cluster\.sqlite3.*not a database") as caught:
        cluster.start()
    assert type(caught.value) is errors.StorageError
    assert (cluster.data / "cluster.sqlite3").read_bytes() == b"no database" * 1000


def test_a_data_directory_in_use_is_the_error_of_up(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.start()
    other = Cluster(cluster.name + "b", cluster.data)
    with pytest.raises(errors.IllegalStateError, match="in use by another cluster"):
        other.start()
    assert shm.names(other.prefix) == []
    assert not os.path.exists(config.run_dir(other.name))


def test_without_data_directories_nothing_is_written_and_memory_survives_a_kill(cluster: Cluster) -> None:
    cluster.start(data_dirs=[])
    session = cluster.session()
    before = topic(session, "t")
    assert not session.has_disk
    assert session.partition_directory("t", 0) is None
    cluster.kill_all()
    assert cluster.start(data_dirs=None)
    assert session.topic("t").topic_id == before.topic_id  # type: ignore[union-attr]
    assert not cluster.data.exists()


def shmlog_processes(cluster: Cluster) -> list[int]:
    """Whoever has the cluster's name in its command line: spares and all that they forked, listed or not."""
    found = []
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            if f'"{cluster.name}"'.encode() in Path(f"/proc/{entry}/cmdline").read_bytes():
                found.append(int(entry))
    return found


@pytest.mark.parametrize("unseen", [(COORDINATOR,), (STANDBY,), (SPARE,), (COORDINATOR, SPARE), (STANDBY, SPARE), (COORDINATOR, STANDBY, SPARE)])
def test_discard_ends_those_too_that_no_entry_names(cluster: Cluster, unseen: tuple[int, ...]) -> None:
    cluster.start()
    until(lambda: cluster.pid(STANDBY), "a standby")
    control = cluster.session().control
    for process in control.processes:
        if process.role in unseen:
            process.pid = 0
    lifecycle.discard(cluster.name)
    until(lambda: not shmlog_processes(cluster), "nobody to be left")
    assert not os.path.exists(config.run_dir(cluster.name))
    assert not shm.names(cluster.prefix)


def test_the_standby_takes_over_and_gets_a_standby(cluster: Cluster) -> None:
    cluster.start()
    session = cluster.session()
    topic(session, "before")
    row = session.take_row(session.PRODUCER)
    for turn in range(3):
        epoch = cluster.control.coordinator_epoch
        standby = until(lambda: cluster.pid(STANDBY), "a standby")
        old = cluster.pid(COORDINATOR)
        broker = cluster.pid(BROKER)
        cluster.kill(old)
        topic(session, f"after{turn}")  # the request waits for the new one
        assert cluster.control.coordinator_epoch > epoch
        assert cluster.pid(COORDINATOR) == standby
        assert cluster.pid(BROKER) == broker
    assert session.topics() == ["after0", "after1", "after2", "before"]
    assert lib.sl_cluster_row(session.cluster, row).state == lib.SL_ROW_LIVE
    assert session.request(m.DescribeCluster()).rows >= 1


def test_a_broker_is_started_again_under_new_epochs(cluster: Cluster) -> None:
    cluster.start(brokers=2)
    session = cluster.session()
    before = topic(session, "t", 2)
    epoch = session.view.brokers[1].broker_epoch
    cluster.kill(old := cluster.pid(BROKER, 1))
    cluster.another(BROKER, old, 1)
    after = session.topic("t")
    assert after is not None
    for was, now in zip(before.partitions, after.partitions, strict=True):
        assert (now.leader_epoch > was.leader_epoch) == (now.leader == 1)
    assert session.view.brokers[1].broker_epoch > epoch


@pytest.mark.parametrize(
    "victims", [(SPARE,), (STANDBY,), (COORDINATOR, STANDBY), (COORDINATOR, SPARE), (STANDBY, SPARE), (BROKER, SPARE), (COORDINATOR, BROKER)]
)
def test_any_of_them_may_die_together(cluster: Cluster, victims: tuple[int, ...]) -> None:
    cluster.start()
    session = cluster.session()
    topic(session, "before")
    until(lambda: cluster.pid(STANDBY), "a standby")
    olds = [cluster.pid(role) for role in victims]
    cluster.kill(*olds)
    topic(session, "after")
    for role in (COORDINATOR, STANDBY, SPARE, BROKER):
        until(lambda role=role: (pid := cluster.pid(role)) and pid not in olds, f"role {role} to be there again")
    assert session.topics() == ["after", "before"]
    # And what is there now works: a broker can be forked.
    cluster.kill(old := cluster.pid(BROKER))
    cluster.another(BROKER, old)


def test_everything_killed_is_an_error_at_once_and_resumes_with_all(cluster: Cluster) -> None:
    cluster.start()
    session = cluster.session()
    before = topic(session, "t", 2)
    epoch = session.view.coordinator_epoch
    cluster.kill_all()
    for call in (session.check, lambda: attach(f"shm://{cluster.name}"), lambda: session.request(m.DescribeCluster())):
        with pytest.raises(errors.NoBrokersAvailable):
            call()
    assert not lifecycle.is_up(cluster.name)
    assert cluster.start()
    session.check()
    assert session.topic("t").topic_id == before.topic_id  # type: ignore[union-attr]
    assert session.request(m.DescribeCluster()).coordinator_epoch > epoch


def test_down_after_everything_was_killed_goes_through_an_orderly_shutdown(cluster: Cluster) -> None:
    cluster.start()
    topic(cluster.session(), "t")
    cluster.kill_all()
    (cluster.data / "broker-0").mkdir(exist_ok=True)
    (cluster.data / "broker-0" / "refuse").touch()
    with pytest.raises(errors.StorageError, match="4,096 bytes"):  # so a broker was started and asked
        lifecycle.stop_cluster(cluster.name)
    (cluster.data / "broker-0" / "refuse").unlink()
    assert lifecycle.stop_cluster(cluster.name)
    assert shm.names(cluster.prefix) == []


def test_memory_of_another_boot_is_removed_and_the_disk_is_believed(cluster: Cluster) -> None:
    cluster.start()
    with attach(f"shm://{cluster.name}") as session:
        before = topic(session, "t")
    cluster.kill_all()
    path = shm.DIRECTORY + shm.object_name(cluster.prefix, "control")
    with open(path, "r+b") as file:
        data = bytearray(file.read())
        data[16:32] = os.urandom(16)  # the boot id
        data[88:92] = lib.sl_crc32c(0, bytes(data[:88]), 88).to_bytes(4, "little")
        file.seek(0)
        file.write(data)
    with pytest.raises(errors.NoBrokersAvailable):
        attach(f"shm://{cluster.name}")
    cluster.start()
    after = cluster.session().topic("t")
    assert after is not None
    assert after.topic_id == before.topic_id
    assert after.partitions[0].leader_epoch > before.partitions[0].leader_epoch + 10  # beyond what the disk may have missed


def test_memory_of_another_layout_is_refused_by_all_and_not_touched(cluster: Cluster) -> None:
    cluster.start()
    path = shm.DIRECTORY + shm.object_name(cluster.prefix, "control")

    def set_layout(version: int) -> None:
        with open(path, "r+b") as file:
            data = bytearray(file.read(128))
            data[8:12] = version.to_bytes(4, "little")
            data[88:92] = lib.sl_crc32c(0, bytes(data[:88]), 88).to_bytes(4, "little")
            file.seek(0)
            file.write(data)

    set_layout(999)
    try:
        for call in (lambda: attach(f"shm://{cluster.name}"), cluster.start, lambda: lifecycle.stop_cluster(cluster.name)):
            with pytest.raises(errors.VersionMismatchError) as caught:
                call()
            assert (caught.value.found, caught.value.supported) == (999, lib.SL_LAYOUT_VERSION)
    finally:
        set_layout(lib.SL_LAYOUT_VERSION)
    assert lifecycle.is_up(cluster.name)


@pytest.mark.parametrize("slot", [1, 2, 3])
def test_a_coordinator_does_not_take_itself_for_its_standby(cluster: Cluster, slot: int) -> None:
    """Its maker may have listed it in a second entry: where it was to be, after it had moved."""
    cluster.start()
    standby = until(lambda: cluster.pid(STANDBY), "a standby")
    active = cluster.pid(COORDINATOR)
    entry = cluster.session().control.processes[slot]
    os.kill(standby, signal.SIGSTOP)  # until the entry is written, or it would write its own there first
    cluster.kill(active)
    entry.role, entry.start_ticks, entry.pid = STANDBY, proc.start_ticks(standby), standby
    os.kill(standby, signal.SIGCONT)
    until(lambda: cluster.pid(COORDINATOR) == standby, "the standby to be active")
    until(lambda: cluster.pid(STANDBY) not in (0, standby), "a standby that is another process")
    assert [p.pid for p in cluster.control.processes].count(standby) == 1


def fork_coordinator(cluster: Cluster, slot: int) -> int:
    """As an active coordinator asks for a standby: a child of the spare."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(os.path.join(config.run_dir(cluster.name), "spare.sock"))
        sock.send(m.encode(m.Fork("coordinator", 0, slot)))
        data, fds, _, _ = socket.recv_fds(sock, 65536, 1)
        os.close(fds[0])
        return int(m.decode(data).pid)


def logs(cluster: Cluster) -> str:
    return "".join(path.read_text() for path in sorted((cluster.data / "logs").iterdir()))


@pytest.mark.parametrize("suffixes", [("",), ("control",), ("control", "v"), ("control", "partitions", "waits", "rows")])
def test_all_processes_of_a_cluster_whose_memory_was_removed_by_hand_end_and_say_why(cluster: Cluster, suffixes: tuple[str, ...]) -> None:
    cluster.start(brokers=2)
    until(lambda: cluster.pid(STANDBY), "a standby")
    for name in shm.names(cluster.prefix):
        if name.startswith(tuple(f"{cluster.prefix}.{suffix}" for suffix in suffixes)):
            shm.unlink(name)
    until(lambda: not shmlog_processes(cluster), "nobody to be left")
    assert "the cluster was discarded: its memory is gone" in logs(cluster)
    assert os.path.exists(shm.DIRECTORY + shm.object_name(cluster.prefix, "control")) is False


def test_a_standby_that_came_after_the_memory_was_removed_begins_nothing(cluster: Cluster) -> None:
    """It has never seen the memory that is gone, and the lock comes free: what somebody removed must not come back from the disk."""
    cluster.start()
    until(lambda: cluster.pid(STANDBY), "a standby")
    active, standby = cluster.pid(COORDINATOR), cluster.pid(STANDBY)
    for pid in (active, standby):
        os.kill(pid, signal.SIGSTOP)  # neither sees it go
    for name in shm.names(cluster.prefix):
        shm.unlink(name)
    late = fork_coordinator(cluster, 2)
    def asks() -> bool:
        with contextlib.suppress(FileNotFoundError):  # closed since the directory was read
            return any(os.readlink(fd).endswith("/lock") for fd in Path(f"/proc/{late}/fd").iterdir())
        return False

    until(asks, "it to ask for the lock")
    cluster.kill(active, standby)
    until(lambda: not shmlog_processes(cluster), "nobody to be left")
    assert shm.names(cluster.prefix) == []


def test_a_standby_whose_entry_was_taken_lists_itself_in_another(cluster: Cluster) -> None:
    """One that no entry names is dead to clients, though it would heal the cluster."""
    cluster.start()
    until(lambda: cluster.pid(STANDBY), "a standby")
    more = fork_coordinator(cluster, 2)
    until(lambda: more in cluster.pids(), "one more")
    slot = next(i for i, p in enumerate(cluster.control.processes) if p.pid == more)
    cluster.session().control.processes[slot].pid = 0
    until(lambda: more in cluster.pids(), "it to be there again")


def test_a_coordinator_too_many_ends_and_does_not_keep_the_spare_from_healing(cluster: Cluster) -> None:
    cluster.start()
    until(lambda: cluster.pid(STANDBY), "a standby")
    cluster.kill(old := cluster.pid(SPARE))
    cluster.another(SPARE, old)  # which forked none of those that live
    path = os.path.join(config.run_dir(cluster.name), "spare.sock")

    def listens() -> bool:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.connect(path)
            return True
        return False

    until(listens, "the new spare")
    pid = os.fork()
    if pid == 0:
        from shmlog.coordinator import server

        try:
            server.main(m.StartOptions(cluster.name, state_dir=str(cluster.data)), 3, -1)
        finally:
            os._exit(0)
    try:
        until(lambda: pid in cluster.pids(), "a third one")
        surplus = fork_coordinator(cluster, 2)
        until(lambda: not os.path.exists(f"/proc/{surplus}"), "the fourth one to end")
        olds = [p.pid for p in cluster.control.processes if p.role in (COORDINATOR, STANDBY)]
        cluster.kill(*olds)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    until(lambda: cluster.pid(COORDINATOR) not in (0, *olds), "the spare to fork another")


def test_of_two_spares_the_one_that_hears_is_listed(cluster: Cluster, tmp_path: Path) -> None:
    """One was exec'ed by a coordinator that died before it could list it, and comes up first: the other one is not connected to anybody."""
    cluster.start()
    _, memory = open_memory(cluster.prefix)
    assert memory
    link = SpareLink(m.StartOptions(cluster.name), str(tmp_path))
    link.memory, link.selector = memory, selectors.DefaultSelector()
    code = "import socket, sys\ns = socket.socket(1, 5)\ns.bind(sys.argv[1])\ns.listen()\nprint(flush=True)\nsys.stdin.read()"
    command = [sys.executable, "-c", code]
    with (
        subprocess.Popen([*command, str(tmp_path / "other")], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other,
        subprocess.Popen([*command, str(tmp_path / "spare.sock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as hears,
    ):
        assert hears.stdout
        hears.stdout.readline()
        link.watch(other.pid)
        assert cluster.pid(SPARE) == other.pid
        link.connect()
        assert cluster.pid(SPARE) == hears.pid
        assert list(link.selector.get_map()) == [link.pidfd]
        other.kill()
        assert not link.selector.select(0.1)  # its end is nobody's business
        # A successor that finds it listed but not listening yet waits for it.
        (tmp_path / "spare.sock").unlink()
        successor = SpareLink(m.StartOptions(cluster.name), str(tmp_path))
        successor.adopt(memory, selectors.DefaultSelector(), str(tmp_path))
        assert cluster.pid(SPARE) == hears.pid
        hears.kill()
    for used in (link, successor):
        used.drop()
        os.close(used.pidfd)
    memory.close()


# --- stopped processes -------------------------------------------------------------------------------------------------


def test_a_stopped_broker_is_killed_and_replaced(cluster: Cluster) -> None:
    cluster.start()
    old = cluster.pid(BROKER)
    cluster.kill(old, number=signal.SIGSTOP)
    cluster.another(BROKER, old)
    assert not proc.alive(old, proc.start_ticks(old))


def test_a_stopped_coordinator_is_killed_before_it_is_replaced(cluster: Cluster) -> None:
    cluster.start()
    session = cluster.session()
    until(lambda: cluster.pid(STANDBY), "a standby")
    old = cluster.pid(COORDINATOR)
    cluster.kill(old, number=signal.SIGSTOP)
    topic(session, "t")
    assert cluster.pid(COORDINATOR) not in (0, old)
    assert not proc.alive(old, proc.start_ticks(old))


# --- rows --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def client(cluster: Cluster) -> Iterator[subprocess.Popen[str]]:
    """A process that has taken rows and then sleeps."""
    cluster.start()
    code = (
        "import sys, time\nfrom shmlog.client.session import attach\ns = attach(sys.argv[1])\n"
        "print(s.take_row(1), s.take_row(2), flush=True)\nsys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, f"shm://{cluster.name}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("takeover", [False, True])
def test_rows_of_a_killed_client_are_cleaned_and_given_out_again(cluster: Cluster, client: subprocess.Popen[str], takeover: bool) -> None:
    assert client.stdout
    rows = [int(word) for word in client.stdout.readline().split()]
    session = cluster.session()
    for row in rows:
        assert lib.sl_cluster_row(session.cluster, row).pid == client.pid
    if takeover:
        until(lambda: cluster.pid(STANDBY), "a standby")
        cluster.kill(old := cluster.pid(COORDINATOR))
        cluster.another(COORDINATOR, old)
        session.request(m.DescribeCluster())
        for row in rows:
            assert lib.sl_cluster_row(session.cluster, row).state == lib.SL_ROW_LIVE  # adopted, not given away
    fifo = Path(config.run_dir(cluster.name)) / f"w{rows[1]}"
    os.mkfifo(fifo)
    client.kill()
    for row in rows:
        until(lambda row=row: lib.sl_cluster_row(session.cluster, row).state == lib.SL_ROW_FREE, f"row {row} to be free")
    assert not fifo.exists()
    assert {session.take_row(session.CONSUMER) for _ in range(16)} >= set(rows)


def test_who_takes_over_wakes_all_for_a_client_that_died_with_the_coordinator(cluster: Cluster, client: subprocess.Popen[str]) -> None:
    """It may have been killed between its append and its wake, and nobody lived who had its death certificate."""
    assert client.stdout
    rows = [int(word) for word in client.stdout.readline().split()]
    session = cluster.session()
    sleeper = lib.sl_cluster_row(session.cluster, session.take_row(session.CONSUMER))
    until(lambda: cluster.pid(STANDBY), "a standby")
    old = cluster.pid(COORDINATOR)
    cluster.kill(old, number=signal.SIGSTOP)
    client.kill()
    client.wait()
    before = sleeper.wake
    sleeper.sleeping = lib.SL_SLEEPS_FUTEX
    cluster.another(COORDINATOR, old)
    for row in rows:
        until(lambda row=row: lib.sl_cluster_row(session.cluster, row).state == lib.SL_ROW_FREE, f"row {row} to be free")
    assert sleeper.wake != before


def test_rows_of_a_client_that_died_while_no_coordinator_lived_are_cleaned(cluster: Cluster, client: subprocess.Popen[str]) -> None:
    assert client.stdout
    rows = [int(word) for word in client.stdout.readline().split()]
    cluster.kill_all()
    client.kill()
    client.wait()
    cluster.start()
    session = cluster.session()
    assert all(lib.sl_cluster_row(session.cluster, row).state == lib.SL_ROW_FREE for row in rows)


def test_rows_given_back_are_given_out_again(cluster: Cluster) -> None:
    cluster.start()
    with attach(f"shm://{cluster.name}") as session:
        row = session.take_row(session.PRODUCER)
        assert session.take_row(session.PRODUCER) != row
        session.give_row(row)
        assert session.take_row(session.PRODUCER) == row
        generation = lib.sl_cluster_row(session.cluster, row).generation
    session = cluster.session()
    assert row in {session.take_row(session.PRODUCER) for _ in range(8)}
    assert lib.sl_cluster_row(session.cluster, row).generation > generation


def test_the_table_of_rows_grows(cluster: Cluster) -> None:
    cluster.start()
    session = cluster.session()
    rows = {session.take_row(session.PRODUCER) for _ in range(200)}
    assert len(rows) == 200
    assert lib.sl_cluster_rows_used(session.cluster) > 200
    assert all(lib.sl_cluster_row(session.cluster, row).pid == os.getpid() for row in rows)


# --- clients -----------------------------------------------------------------------------------------------------------


def test_no_cluster_is_an_error_that_says_what_to_run(cluster: Cluster) -> None:
    with pytest.raises(errors.NoBrokersAvailable, match=f"shmlog up --cluster {cluster.name}"):
        attach(f"shm://{cluster.name}")
    with pytest.raises(ConnectionError):
        attach(f"shm://{cluster.name}")


def test_a_view_changes_without_a_request(cluster: Cluster) -> None:
    cluster.start()
    session = cluster.session()
    version = session.version_word[0]
    code = (
        "import sys\nfrom shmlog.client.session import attach\nfrom shmlog import messages as m\n"
        "attach(sys.argv[1]).request(m.CreateTopics((m.TopicSpec('t'),)))"
    )
    subprocess.run([sys.executable, "-c", code, f"shm://{cluster.name}"], check=True)
    assert session.wait_view(version, time.monotonic_ns() + 30 * 10**9)
    assert session.topics() == ["t"]


def test_namespaces_do_not_see_each_other(cluster: Cluster) -> None:
    cluster.start()
    with attach(f"shm://{cluster.name}/one") as one, attach(f"shm://{cluster.name}/two") as two, attach(f"shm://{cluster.name}") as none:
        made = one.create_topic("t", time.monotonic_ns() + 30 * 10**9)
        assert made.name == "one/t"
        assert (one.topics(), two.topics(), none.topics()) == (["t"], [], [])
        other = two.create_topic("t", time.monotonic_ns() + 30 * 10**9)
        assert other.topic_id != made.topic_id
        assert "one~t-0-" in (one.partition_directory("t", 0) or "")
        none.request(m.DeleteNamespace("one"))
        assert (one.topics(), two.topics()) == ([], ["t"])


def test_deleted_blocks_come_free_through_their_broker(cluster: Cluster) -> None:
    cluster.start()
    session = cluster.session()
    first = topic(session, "t", 3)
    session.request(m.DeleteTopics(("t",)))
    assert session.topic("t") is None
    block = first.partitions[0].block
    assert lib.sl_cluster_partition(session.cluster, block).state != lib.SL_PARTITION_LIVE
    until(lambda: not m.decode_deleting(session.view.deleting), "the broker to report them removed")
    second = topic(session, "t", 3)
    assert {p.block for p in second.partitions} == {p.block for p in first.partitions}
    assert second.topic_id != first.topic_id
    assert all(p.leader_epoch > first.partitions[0].leader_epoch for p in second.partitions)


def test_deleted_blocks_come_free_though_the_coordinator_died_before_it_was_told(cluster: Cluster) -> None:
    cluster.start()
    session = cluster.session()
    topic(session, "t")
    until(lambda: cluster.pid(STANDBY), "a standby")
    broker, active = cluster.pid(BROKER), cluster.pid(COORDINATOR)
    os.kill(broker, signal.SIGSTOP)
    session.request(m.DeleteTopics(("t",)))
    cluster.kill(active)
    until(lambda: not os.path.exists(f"/proc/{active}"), "it to be gone")
    os.kill(broker, signal.SIGCONT)
    until(lambda: not m.decode_deleting(session.view.deleting), "the broker to report it removed")


def test_trims_go_to_the_leader_and_unknown_partitions_fail_alone(cluster: Cluster) -> None:
    cluster.start()
    session = cluster.session()
    topic(session, "t")
    done, failed = session.request(m.DeleteRecords((("t", 0, 5), ("t", 9, 5)))).results
    assert done == 5
    assert failed.name == "UnknownTopicOrPartitionError"


def test_a_forked_child_is_told_and_can_open_its_own(cluster: Cluster) -> None:
    cluster.start()
    session = cluster.session()
    session.take_row(session.PRODUCER)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with pytest.raises(errors.ForkedProcessError):
                session.topic("t")
            with pytest.raises(errors.ForkedProcessError):
                session.request(m.DescribeCluster())
            session.close()
            with attach(f"shm://{cluster.name}") as own:
                own.take_row(own.PRODUCER)
                own.create_topic("child", time.monotonic_ns() + 30 * 10**9)
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert session.topics() == ["child"]


def test_down_ends_the_handles_that_are_open(cluster: Cluster) -> None:
    cluster.start()
    session = cluster.session()
    lifecycle.stop_cluster(cluster.name)
    for call in (session.check, lambda: session.request(m.DescribeCluster()), lambda: session.wait_view(10**6, time.monotonic_ns() + 10**10)):
        with pytest.raises(errors.ClosedError):
            call()
    cluster.start()
    assert cluster.session().request(m.DescribeCluster()).rows >= 0  # a new handle is on the new cluster


# --- embedded ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("cluster")
def test_an_embedded_cluster_is_the_default_in_its_block_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHMLOG_CLUSTER", "outer")
    with Embedded(brokers=2) as embedded:
        assert config.parse_address(None).cluster == embedded.name
        assert embedded.address == f"shm://{embedded.name}"
        assert embedded.namespace("test-17") == f"shm://{embedded.name}/test-17"
        assert embedded.kill("broker", 1) > 0
        with attach(None) as session:
            topic(session, "t")
    assert os.environ["SHMLOG_CLUSTER"] == "outer"
    assert not os.path.exists(embedded.data_dir)
    assert not [name for name in os.listdir("/dev/shm") if embedded.name in name]


def test_an_embedded_cluster_ends_with_a_killed_program(cluster: Cluster) -> None:
    code = "import sys\nfrom shmlog import Cluster\nc = Cluster()\nprint(c.name, c.data_dir, flush=True)\nsys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout
        name, directory = program.stdout.readline().split()
        program.kill()
    until(lambda: not [n for n in os.listdir("/dev/shm") if name in n] and not os.path.exists(directory), "nothing to be left")


def test_an_embedded_cluster_killed_as_a_whole_is_removed_by_the_next_start(cluster: Cluster) -> None:
    code = "import sys\nfrom shmlog import Cluster\nc = Cluster()\nprint(c.name, c.data_dir, flush=True)\nsys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout
        name, directory = program.stdout.readline().split()
        other = Cluster(name, Path(directory))
        program.send_signal(signal.SIGSTOP)
        other.kill_all()
        program.kill()
    assert name in lifecycle.remove_orphans()
    assert not os.path.exists(directory)
    assert shm.names(other.prefix) == []
