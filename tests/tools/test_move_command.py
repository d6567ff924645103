"""`topic move` and `broker retire` as a person and a program see them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shmlog import Cluster
from shmlog.testing.waiting import until
from tests.tools.conftest import Result, in_process


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(brokers=2, data_dir=str(tmp_path)) as cluster:
        yield cluster


@pytest.fixture
def on(cluster: Cluster) -> Callable[..., Result]:
    return lambda *arguments, **more: in_process(*arguments, SHMLOG_CLUSTER=cluster.name, **more)


def test_a_topic_is_moved_and_the_command_says_where_it_is_now(on: Callable[..., Result]) -> None:
    on("topic", "create", "t", "-p", "2")
    on("produce", "t", input=b"a\nb\n")
    result = on("topic", "move", "t", "--to", "1,0")
    assert result.code == 0, result
    assert result.out.splitlines()[-2:] == ["t-0 is at brokers 1,0, led by broker 0", "t-1 is at brokers 1,0, led by broker 1"]
    result = on("topic", "move", "t", "-p", "0", "--to", "1", "--json")
    assert result.lines[-1] == {
        "topic": "t", "partition": 0, "state": "moved", "leader": 1, "replicas": [1], "isr": [1], "adding_replicas": [], "removing_replicas": [],
        "records_behind": 0, "bytes_behind": 0,
    }  # fmt: skip
    assert on("consume", "t", "-e").out.split() == ["a", "b"]


def test_without_waiting_the_move_is_begun_and_shows_until_it_is_done(on: Callable[..., Result]) -> None:
    on("topic", "create", "t")
    [leader] = [b["broker_id"] for b in on("broker", "list", "--json").json["brokers"] if b["leads"]]
    result = on("topic", "move", "t", "--to", str(1 - leader), "--no-wait", "--json")
    assert result.code == 0 and result.json == {"topic": "t", "partitions": [0]}
    again = on("topic", "move", "t", "--to", str(1 - leader))  # the same move: waits for the one under way
    assert again.code == 0 and again.out.splitlines()[-1] == f"t-0 is at broker {1 - leader}, led by broker {1 - leader}"


def test_what_is_under_way_shows_and_is_taken_back(on: Callable[..., Result], cluster: Cluster) -> None:
    on("topic", "create", "t")
    [leader] = [b["broker_id"] for b in on("broker", "list", "--json").json["brokers"] if b["leads"]]
    other = 1 - leader
    pid = cluster.kill("broker", other, signal.SIGSTOP)  # so that the move cannot end
    try:
        on("topic", "move", "t", "--to", str(other), "--no-wait")
        assert f"adding {other}; removing {leader}" in on("status").out
        assert f"(adding {other}, removing {leader})" in on("topic", "describe", "t").out
        [partition] = on("status", "--topic", "t", "--json").json["topics"][0]["partitions"]
        assert (partition["adding_replicas"], partition["removing_replicas"]) == ([other], [leader])
        brokers = on("broker", "list", "--json").json["brokers"]
        assert [(b["adding"], b["removing"]) for b in brokers] == [(int(b["broker_id"] == other), int(b["broker_id"] == leader)) for b in brokers]
        assert "ADDING" in on("broker", "list").out
        taken_back = on("topic", "move", "t", "--cancel")
        assert taken_back.code == 0 and taken_back.out == f"t-0 is at broker {leader}, led by broker {leader}\n"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    assert "adding" not in on("status").out


@pytest.mark.parametrize(("meanwhile", "said"), [("move t --cancel", "taken back or changed meanwhile"), ("delete t", "t was deleted while it moved")])
def test_who_waits_for_a_move_that_somebody_else_ends_is_told(on: Callable[..., Result], cluster: Cluster, meanwhile: str, said: str) -> None:
    on("topic", "create", "t")
    [leader] = [b["broker_id"] for b in on("broker", "list", "--json").json["brokers"] if b["leads"]]
    pid = cluster.kill("broker", 1 - leader, signal.SIGSTOP)  # so that the move cannot end
    command = [sys.executable, "-m", "shmlog", "topic", "move", "t", "--to", str(1 - leader), "--cluster", cluster.name]
    waiter = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        until(lambda: on("status", "--topic", "t", "--json").json["topics"][0]["partitions"][0]["adding_replicas"], "the move to begin")
        assert on("topic", *meanwhile.split()).code == 0
        _, error = waiter.communicate(timeout=60)
        assert waiter.returncode == 1 and said in error and error.startswith("shmlog: "), error
    finally:
        waiter.kill()
        waiter.wait()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def test_a_broker_is_added_used_and_retired(on: Callable[..., Result], cluster: Cluster) -> None:
    added = on("broker", "add")
    pid = cluster.pid("broker", 2)
    assert added.code == 0 and added.out == f"broker 2 is up: pid {pid}, data in {cluster.data_dir}/broker-2\n"
    on("topic", "create", "t")
    assert on("topic", "move", "t", "--to", "2").code == 0
    on("produce", "t", input=b"a\nb\n")
    retired = on("broker", "retire", "2")
    assert retired.code == 0 and retired.out.endswith(f"broker 2 has retired; its directory stays: {cluster.data_dir}/broker-2\n"), retired
    assert [b["broker_id"] for b in on("broker", "list", "--json").json["brokers"]] == [0, 1]
    assert on("consume", "t", "-e").out.split() == ["a", "b"]
    assert on("status", "--check").code == 0
