"""A real cluster whose broker runs the core with failpoints: killed or stopped at each named place of spill, sync, recovery, ring care and opening,
under traffic; the coordinator puts another in its place (a stopped one it kills, /proc being its witness) and nothing is lost.

Each process of the cluster inherits SHMLOG_FAILPOINT; the file that it names is removed by the one that it happens to, so it happens once.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import programs
import pytest
from real_cluster import RealCluster, check_histories

from shmlog import Admin, NewTopic
from shmlog.testing.waiting import until
from shmlog.testing.workload import Ledger

BROKERS = ("spill_", "sync_", "ring_", "add_", "file_", "fence_cas", "open_")
# Only after what these tests do not do to files; tests/fault/crash.c and tests/c/test_file.c do.
NOT_HERE = {"file_recover_page", "file_recover_remove", "file_recover_table"}
PLACES = [name for name in programs.failpoints() if name.startswith(BROKERS) and not name.startswith("file_install") and name not in NOT_HERE]
CASES = [(place, action) for place in PLACES for action in ("kill", "stop")]
QUICK = [("spill_written", "kill"), ("open_cur_cas", "stop")]


@pytest.fixture
def armed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "armed"
    folder = Path(__file__).with_name("failpoints")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.setenv("SHMLOG_TEST_CORE", str(programs.core_with_failpoints()))
    yield path
    path.unlink(missing_ok=True)  # so that nobody dies while the cluster is taken down


@pytest.mark.parametrize(("place", "action"), [case if case in QUICK else pytest.param(*case, marks=pytest.mark.slow) for case in CASES])
def test_a_broker_of_a_cluster_that_dies_or_stops_there_loses_nothing(
    armed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, action: str
) -> None:
    monkeypatch.setenv("SHMLOG_FAILPOINT", f"{place}:1:{action}:{armed}")
    cluster = RealCluster(tmp_path / "data")
    cluster.up()
    monkeypatch.delenv("SHMLOG_FAILPOINT")  # not for the command line and the workers: they have the product's core
    monkeypatch.delenv("PYTHONPATH")
    try:
        config = {"shmlog.memory.bytes": str(1 << 20), "segment.bytes": str(1 << 20), "flush.ms": "5"}
        Admin(bootstrap_servers=cluster.address).create_topics([NewTopic("t", 1, config=config)])
        ledgers = [Ledger(tmp_path / f"worker-{i}", create=True) for i in range(3)]
        for i in range(2):
            cluster.worker("produce", cluster.address, "t", tmp_path / f"worker-{i}", i, 1 << 40)
        cluster.worker("consume", cluster.address, "t", tmp_path / "worker-2")
        until(lambda: ledgers[0].done > 500 and ledgers[2].done > 500, "traffic")
        [broker] = cluster.pids("broker")
        armed.touch()
        if place.startswith(("add_", "file_recover", "fence_cas", "open_")):  # what only a successor passes
            os.kill(broker, signal.SIGKILL)
        until(lambda: not armed.exists(), f"a broker at {place}")
        begin = [ledger.done for ledger in ledgers]
        until(lambda: all(ledger.done > n + 2000 for ledger, n in zip(ledgers, begin, strict=True)), "traffic after it")
        assert all(worker.poll() is None for worker in cluster.workers)
        for worker in cluster.workers:
            worker.kill()
            worker.wait()
        check_histories(cluster.address, "t", sorted(tmp_path.glob("*.history")))
        verify = cluster.command("verify", check=False)
        assert verify.returncode == 0, verify.stdout + verify.stderr
    finally:
        cluster.end()
    left = [name for name in os.listdir("/dev/shm") if cluster.name in name]
    assert not left, f"left in /dev/shm: {left}"

