"""`shmlog torture` finds what does not hold, and nothing where all holds."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shmlog import Admin, Cluster, NewTopic
from shmlog.testing import history, torture
from shmlog.testing.history import History, value_id
from shmlog.testing.waiting import Hang
from shmlog.tools import torture as report_of


def test_some_seconds_of_kills_break_nothing_and_leave_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "shmlog", "torture", "--minutes", "0.1", "--json", "--keep", str(tmp_path / "kept")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["held"] and not report["anomalies"]
    assert report["faults"]["everything killed"] == 1 and sum(report["faults"].values()) > 5
    assert report["queue"]["kills"] > 0
    assert list((tmp_path / "kept").glob("*.history"))


@pytest.mark.slow
def test_a_thousand_kills_lose_double_and_reorder_nothing() -> None:
    wanted = {"leader killed": 400, "follower killed": 150, "coordinator killed": 150, "producer killed": 150, "consumer killed": 150}
    report = torture.run(0.5, at_least=wanted)
    print("\n".join(report_of.lines(report)))
    assert report.held
    assert all(report.faults[fault] >= count for fault, count in wanted.items())


def test_with_one_broker_it_holds_too() -> None:
    assert torture.run(0.05, brokers=1).held


def test_who_does_not_go_on_is_named(tmp_path: Path) -> None:
    kind = torture.KINDS[0]
    with Cluster() as cluster:
        with Admin() as admin:
            admin.create_topics([NewTopic(kind.topic)])
        worker = torture.Worker(tmp_path, cluster.address, kind, "produce", 1)
        try:
            torture.Nemesis(cluster, 1, [worker], random.Random(1)).wait_for_progress()
            worker.process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, worker.process.pid, os.WSTOPPED)
            with pytest.raises(Hang, match=r"not within 0\.2 s: a producer of appended to go on"):
                torture.Nemesis(cluster, 1, [worker], random.Random(1), patience_s=0.2).wait_for_progress()
        finally:
            worker.kill()


def test_a_lost_record_is_a_promise_that_did_not_hold(tmp_path: Path) -> None:
    kind = torture.KINDS[1]
    with History(tmp_path / "a.history") as h:
        log = h.log(kind.topic, 0)
        h.ok(h.send(log, value_id(1, 0)), 0)
        h.final(log, 0, 0, time.monotonic_ns())
    anomalies = history.check(history.load([tmp_path / "a.history"]))
    worker = torture.Worker.__new__(torture.Worker)
    worker.kind, worker.role, worker.ledgers = kind, "produce", [torture.Ledger(tmp_path / "a.ledger", create=True)]
    records, sends = torture.observed(kind, [worker], 0, anomalies)
    assert not records.held and "1 lost" in records.seen
    assert sends.held
    queue = {"kills": 0, "acknowledged": 0, "received": 0, "lost": 0, "stuck": 0}
    report = torture.Report(1, 1.0, 3, {"leader killed": 1}, [records, sends], list(map(str, anomalies)), queue, None)
    assert not report.held
    assert any(line.startswith("BROKEN") for line in report_of.lines(report))


def test_what_the_leader_alone_has_may_lie_above_the_high_watermark(tmp_path: Path) -> None:
    for appended in (True, False):
        path = tmp_path / f"{appended}.history"
        with History(path) as h:
            log = h.log("t", 0)
            h.ok(h.send(log, value_id(1, 0), appended=appended), 0)
            h.mark(log, history.HIGH, 0, 2**62, 2**62 + 1)
        kinds = {a.kind for a in history.check(history.load([path]))}
        assert kinds == (set() if appended else {"watermark_behind"})
