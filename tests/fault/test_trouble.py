"""All that users and machines do wrong: a typed error of one line, at once; nothing lost, nothing left behind, nothing hangs.

Mistakes of one call run on the session's cluster; what breaks a cluster has one of its own. Disks fail here by RLIMIT_FSIZE, set from outside on the
broker alone: every write behind that many bytes of a file fails (EFBIG, which counts as a full disk), and raising it frees the "disk" again. What needs
a mount namespace is in test_small_machine.py.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from real_cluster import RealCluster, until

from shmlog import Admin, Cluster, Consumer, NewTopic, Producer, TopicPartition, config, errors, shm

T0 = TopicPartition("t", 0)
AT_ONCE_S = 0.1 * 20  # what is promised in 100 ms, on a machine with other work


def refused(kind: type[BaseException], call: Callable[[], object], words: str = "") -> Any:
    """The call fails at once, with this type and one line that a person can read."""
    begin = time.monotonic()
    with pytest.raises(kind, match=words or None) as caught:
        call()
    assert time.monotonic() - begin < AT_ONCE_S
    assert str(caught.value) and "\n" not in str(caught.value)
    return caught.value


def read(address: str, topic: str = "t", seconds: float = 60) -> list[Any]:
    """All that the topic holds now, in order of partition and offset."""
    with Consumer(topic, bootstrap_servers=address, auto_offset_reset="earliest") as c:
        found: list[Any] = []
        ends = c.end_offsets(c.assignment())
        deadline = time.monotonic() + seconds
        while any(c.position(tp) < end for tp, end in ends.items()):
            assert time.monotonic() < deadline, f"only {len(found)} records of {ends}"
            found += [r for records in c.poll(timeout_ms=100).values() for r in records]
    return sorted(found, key=lambda r: (r.partition, r.offset))


# --- mistakes of one call ----------------------------------------------------------------------------------------------


@pytest.fixture
def address(shmlog_cluster: Any) -> str:
    """Of a namespace with an empty topic "t" of one partition."""
    with Admin(shmlog_cluster.address) as admin:
        admin.create_topics([NewTopic("t", 1)])
    return str(shmlog_cluster.address)


def test_without_a_cluster_every_handle_says_what_to_run() -> None:
    nobody = "shm://nobody-is-here"
    for handle in (
        lambda: Producer(nobody), lambda: Admin(nobody), lambda: Consumer(bootstrap_servers=nobody),
        lambda: Consumer("t", bootstrap_servers=nobody, missing="wait"),
    ):  # fmt: skip
        refused(errors.NoBrokersAvailable, handle, "shmlog up --cluster nobody-is-here")


WRONG_SENDS: list[tuple[type[BaseException], dict[str, Any]]] = [
    *[(TypeError, {"value": v}) for v in ("text", 5, 1.5, True, {"a": 1}, [b"x"], object)],
    *[(TypeError, {"key": k}) for k in ("text", 5, [b"x"])],
    *[(TypeError, {"headers": h}) for h in (5, "x", [5], [("h", "text")], [(b"h", b"")], [("h",)], [("h", b"", 1)], [("h", 5)], [(None, b"")])],
    *[(TypeError, {unit: t}) for unit in ("timestamp_ms", "timestamp_ns") for t in ("now", 1.5)],
    *[(ValueError, {unit: t}) for unit in ("timestamp_ms", "timestamp_ns") for t in (-1, 2**63, 2**80)],
    *[(TypeError, {"partition": n}) for n in ("0", 1.0, b"0", [0])],
    *[(errors.UnknownTopicOrPartitionError, {"partition": n}) for n in (-1, 1, 2**70)],
    *[(TypeError, {"partition": 0, "expected_offset": n}) for n in ("0", 1.5)],
    *[(ValueError, {"partition": 0, "expected_offset": n}) for n in (-1, -2, 2**70)],
    (errors.OffsetConflictError, {"partition": 0, "expected_offset": 7}),
    (errors.MessageSizeTooLargeError, {"value": bytes((64 << 20) + 1)}),
]


@pytest.mark.parametrize(("kind", "arguments"), WRONG_SENDS, ids=lambda v: repr(v)[:40] if isinstance(v, dict) else "")
def test_what_cannot_be_sent_is_refused_and_appends_nothing(address: str, kind: type[BaseException], arguments: dict[str, Any]) -> None:
    with Producer(address) as p:
        refused(kind, lambda: p.send("t", **arguments))
        with_value = {"value": b"x", **arguments}
        many = {k: v for k, v in with_value.items() if k not in ("value", "key", "headers")}
        if len(many) == len(arguments):
            refused(kind, lambda: p.send_many("t", [b"x"], **many))
        if "value" not in arguments:

            def lend() -> None:
                with p.loan("t", nbytes=3, **{k: v for k, v in with_value.items() if k != "value"}):
                    pass

            refused(kind, lend)
        assert p.send("t", b"after").offset == 0
    assert [r.value for r in read(address)] == [b"after"]


@pytest.mark.parametrize("name", ["", ".", "..", "a b", "a/b", "a\nb", "x" * 250, "ü", 5, None, b"t"])
def test_a_bad_topic_name_is_refused_by_every_call(address: str, name: Any) -> None:
    calls: list[Callable[[Any, Any], object]] = [
        lambda p, a: p.send(name, b"x"),
        lambda p, a: p.send_many(name, [b"x"]),
        lambda p, a: Consumer(name, bootstrap_servers=address),
        lambda p, a: Consumer(name, bootstrap_servers=address, missing="wait"),
        lambda p, a: Consumer(bootstrap_servers=address).assign([(name, 0)]),
        lambda p, a: a.create_topics([NewTopic(name)]),
        lambda p, a: a.delete_topics([name]),
        lambda p, a: a.create_partitions({name: 2}),
        lambda p, a: a.alter_topic_configs({name: {}}),
    ]
    with Producer(address) as p, Admin(address) as a:
        for call in calls:
            refused(errors.InvalidTopicError, lambda call=call: call(p, a), "not a topic name")


def test_a_name_with_a_slash_leads_into_no_other_namespace(shmlog_cluster: Any) -> None:
    inside = f"{shmlog_cluster.test_namespace}/t"
    root = f"shm://{shmlog_cluster.name}"
    with Producer(shmlog_cluster.address) as p:
        p.send("t", b"mine")
    with Producer(root) as p, Admin(root) as admin:
        refused(errors.InvalidTopicError, lambda: p.send(inside, b"x"))
        refused(errors.InvalidTopicError, lambda: Consumer(inside, bootstrap_servers=root))
        refused(errors.InvalidTopicError, lambda: admin.delete_topics([inside]))
        refused(errors.UnknownTopicOrPartitionError, lambda: admin.describe_topics([inside]))
        refused(errors.UnknownTopicOrPartitionError, lambda: admin.delete_records({TopicPartition(inside, 0): 0}))
    assert [r.value for r in read(shmlog_cluster.address)] == [b"mine"]


BAD_CONFIGS: list[dict[Any, Any]] = [
    {"retention.sm": "1"}, {"retention.ms": "soon"}, {"retention.ms": 1.5}, {"cleanup.policy": "keep"}, {"max.message.bytes": "-1"},
    {"shmlog.memory.bytes": "1"}, {"data.max.bytes": "1048576"}, {"segment.bytes": "999999999999"}, {5: "x"},
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD_CONFIGS, ids=str)
def test_a_bad_config_is_refused_and_changes_nothing(address: str, bad: dict[Any, Any]) -> None:
    with Admin(address) as admin:
        before = admin.describe_configs("t")
        refused(errors.InvalidConfigurationError, lambda: admin.create_topics([NewTopic("u", config=bad)]))
        refused(errors.InvalidConfigurationError, lambda: admin.alter_topic_configs({"t": {"flush.ms": "5", **bad}}))
        assert admin.list_topics() == ["t"]
        assert admin.describe_configs("t") == before


@pytest.mark.parametrize("number", ["1", 1.5, None])
def test_a_number_of_the_wrong_type_is_a_type_error(address: str, number: Any) -> None:
    with Admin(address) as admin:
        refused(TypeError, lambda: admin.create_topics([NewTopic("u", number)]))
        refused(TypeError, lambda: admin.create_topics([NewTopic("u", 1, number)]))
        refused(TypeError, lambda: admin.create_partitions({"t": number}))
        refused(TypeError, lambda: admin.delete_records({T0: number}))
        refused(TypeError, lambda: admin.delete_records({TopicPartition("t", number): 0}))
        assert admin.list_topics() == ["t"]
    with Consumer(bootstrap_servers=address) as c:
        refused(TypeError, lambda: c.assign([TopicPartition("t", number)]))
        c.assign([T0])
        refused(ValueError, lambda: c.seek(T0, number if number != 1 else "1"))


@pytest.mark.parametrize("wrong", ["localhost:9092", "shm://a.b", "http://x", "", 5, [], ["shm://a", "shm://b"]])
def test_what_is_no_address_is_refused(wrong: Any) -> None:
    for handle in (Producer, Admin, lambda where: Consumer("t", bootstrap_servers=where)):
        refused(errors.InvalidConfigurationError, lambda handle=handle: handle(wrong))


def test_without_auto_creation_producing_to_an_unknown_topic_makes_nothing() -> None:
    with Cluster(config={"auto.create.topics.enable": False}), Producer() as p, Admin() as admin:
        for call in (lambda: p.send("t", b"x"), lambda: p.send_many("t", [b"x"]), lambda: p.loan("t", nbytes=1).__enter__()):
            error = refused(errors.UnknownTopicOrPartitionError, call, "auto.create.topics.enable is false")
            assert "shmlog topic create t" in error.hint
        assert admin.list_topics() == []
        admin.create_topics([NewTopic("t")])
        assert p.send("t", b"x").offset == 0


@pytest.mark.parametrize(("reset", "after"), [("earliest", [0, 1, 2, 3]), ("latest", [3])])
def test_a_position_beyond_the_end_is_mended_by_policy_and_counted(address: str, reset: str, after: list[int]) -> None:
    with Producer(address) as p, Consumer("t", bootstrap_servers=address, auto_offset_reset=reset) as c:
        for i in range(3):
            p.send("t", b"%d" % i)
        c.seek(T0, 1000)
        seen = [r.offset for r in c.poll(timeout_ms=0).get(T0, [])]
        p.send("t", b"3")
        until(lambda: seen.extend(r.offset for r in c.poll(timeout_ms=100).get(T0, [])) or len(seen) >= len(after), "the records after the reset")
        assert seen == after
        assert c.metrics()["resets_total"] == 1


def test_a_record_of_64_MiB_goes_and_comes_back_from_memory_and_from_disk(tmp_path: Path) -> None:
    value = os.urandom(1 << 20) * 64
    with Cluster(data_dir=str(tmp_path), name=f"t{os.getpid()}-64") as cluster, Producer(max_block_ms=120_000) as p:
        p.send("t", b"small")
        p.send("t", value)
        with p.loan("t", nbytes=len(value)) as loan:
            loan.array[:] = value
        [small, sent, lent] = read(cluster.address)
        assert (small.value, sent.value == value, lent.value == value) == (b"small", True, True)
    with Cluster(data_dir=str(tmp_path), name=f"t{os.getpid()}-64") as cluster:
        [small, sent, lent] = read(cluster.address)
        assert (small.value, sent.value == value, lent.value == value) == (b"small", True, True)
