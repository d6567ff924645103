"""All that users and machines do wrong: a typed error of one line, at once; nothing lost, nothing left behind, nothing hangs.

Mistakes of one call run on the session's cluster; what breaks a cluster has one of its own. Disks fail here by RLIMIT_FSIZE, set from outside on the
broker alone: every write behind that many bytes of a file fails (EFBIG, which counts as a full disk), and raising it frees the "disk" again. What needs
a mount namespace is in test_small_machine.py.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from real_cluster import RealCluster, Sends, check_histories

from shmlog import Admin, Cluster, Consumer, NewTopic, Producer, TopicPartition, config, errors, lifecycle, shm
from shmlog._ffi import ffi
from shmlog.testing.waiting import until

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


def some(values: Iterable[Any], *quick: Any) -> list[Any]:
    """Parameters of which only these are quick."""
    return [v if v in quick else pytest.param(v, marks=pytest.mark.slow) for v in values]


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


@pytest.mark.slow
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


# --- a topic that goes and comes back ----------------------------------------------------------------------------------


def test_a_topic_made_anew_under_live_handles_never_gets_the_old_ones_records_nor_they_its(address: str) -> None:
    ended: dict[str, BaseException] = {}
    seen: list[bytes] = []
    started = threading.Barrier(3)

    def until_it_ends(name: str, body: Callable[[], None]) -> None:
        try:
            body()
        except BaseException as error:
            ended[name] = error

    def produce() -> None:
        with Producer(address, acks=1, max_block_ms=20_000) as p:
            p.send("t", b"old")
            started.wait(20)
            while True:
                p.send("t", b"old")

    def consume() -> None:
        with Consumer("t", bootstrap_servers=address, auto_offset_reset="earliest") as c:
            started.wait(20)
            while True:
                for records in c.poll(timeout_ms=20_000).values():
                    seen.extend(r.value for r in records)

    threads = [threading.Thread(target=until_it_ends, args=(body.__name__, body)) for body in (produce, consume)]
    for thread in threads:
        thread.start()
    started.wait(20)
    with Admin(address) as admin:
        admin.delete_topics(["t"])
        admin.create_topics([NewTopic("t")])
        with Producer(address) as p:
            sent = [p.send("t", b"new").offset for _ in range(100)]
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    for name in ("produce", "consume"):
        assert isinstance(ended[name], errors.UnknownTopicIdError) and "\n" not in str(ended[name]), ended
    assert sent == list(range(100))
    assert set(seen) <= {b"old"}
    assert [r.value for r in read(address)] == [b"new"] * 100


# --- disks -------------------------------------------------------------------------------------------------------------


def limit_files(pid: int, nbytes: int | None) -> None:
    """From now on the process writes no file beyond `nbytes` (shared memory counts as files); None: as far as it likes."""
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard if nbytes is None else nbytes, hard))


FULL_AT = 1 << 20
SMALL_RING = {"shmlog.memory.bytes": "500000"}
KIB = bytes(1000)


def fill(p: Producer, sent: int, topic: str = "t") -> tuple[int, BaseException]:
    """Sends numbered records until it is refused: how many there are then, and the refusal."""
    for n in range(sent, 100_000):
        try:
            p.send(topic, b"%08d" % n + KIB)
        except errors.ShmlogError as error:
            return n, error.with_traceback(None)  # frames would keep the producer's thread alive
    raise AssertionError("100 MB went onto a full disk")


def number_of(value: bytes) -> int:
    return int(value[:8])


def numbers(records: list[Any]) -> list[int]:
    return [number_of(r.value) for r in records]


@pytest.mark.parametrize(("policy", "kind"), [("block", errors.StorageFullError), ("raise", (errors.RingFullError, errors.StorageFullError))])
def test_a_full_disk_stops_producers_by_policy_and_loses_nothing(policy: str, kind: Any) -> None:
    with Cluster() as cluster, Admin() as admin, Producer(max_block_ms=500) as p:
        admin.create_topics([NewTopic("t", 1, config={**SMALL_RING, "shmlog.full": policy})])
        limit_files(cluster.pid("broker"), FULL_AT)
        sent = 0

        def full() -> bool:
            nonlocal sent
            before, begin = sent, time.monotonic()
            sent, error = fill(p, sent)
            assert isinstance(error, kind) and "\n" not in str(error), repr(error)
            assert policy == "block" or sent > before or time.monotonic() - begin < AT_ONCE_S
            return sent == before and sent * len(KIB) > FULL_AT

        until(full, "a full disk")
        with pytest.raises((errors.StorageFullError, errors.RingFullError, errors.KafkaTimeoutError)), Producer(acks="disk", max_block_ms=200) as q:
            q.send("t", b"x").result(timeout=0.2)
        assert numbers(read(cluster.address)) == list(range(sent))  # reading goes on
        limit_files(cluster.pid("broker"), None)

        def goes_on() -> bool:
            try:
                return p.send("t", b"%08d" % sent + KIB).offset == sent
            except (errors.StorageFullError, errors.RingFullError):
                return False

        until(goes_on, "appends to go on by themselves", 60)
        assert numbers(read(cluster.address)) == list(range(sent + 1))


def test_a_full_disk_of_a_topic_does_not_stop_a_topic_in_memory() -> None:
    with Cluster() as cluster, Admin() as admin, Producer(max_block_ms=300) as p:
        admin.create_topics([NewTopic("t", 1, config=SMALL_RING), NewTopic("m", 1, config={"shmlog.spill": "false", "shmlog.full": "drop_oldest"})])
        limit_files(cluster.pid("broker"), FULL_AT)
        fill(p, 0)
        for i in range(1000):
            assert p.send("m", b"%d" % i).offset == i


def test_down_refuses_while_the_disk_takes_nothing_and_loses_nothing(cluster: RealCluster) -> None:
    with Admin(cluster.address) as admin, Producer(cluster.address, max_block_ms=500) as p:
        admin.create_topics([NewTopic("t", 1, config=SMALL_RING)])
        [broker] = cluster.pids("broker")
        limit_files(broker, FULL_AT)
        sent, _ = fill(p, 0)
        down = cluster.command("down", check=False)
        assert down.returncode == 1 and down.stderr.count("\n") == 1 and "bytes" in down.stderr, down
        assert cluster.pids("broker") == [broker]
        assert numbers(read(cluster.address)) == list(range(sent))
        limit_files(broker, None)
        until(lambda: p.send("t", b"%08d" % sent + KIB).offset == sent, "appends to go on")
    cluster.command("down")
    cluster.up()
    assert numbers(read(cluster.address)) == list(range(sent + 1))


@pytest.mark.slow
def test_down_with_force_gives_up_what_the_disk_does_not_take_and_no_more(cluster: RealCluster) -> None:
    with Admin(cluster.address) as admin, Producer(cluster.address, max_block_ms=500) as p:
        admin.create_topics([NewTopic("t", 1, config=SMALL_RING)])
        p.send("t", b"%08d" % 0 + KIB)
        p.flush()
        [broker] = cluster.pids("broker")
        limit_files(broker, FULL_AT)
        sent, _ = fill(p, 1)
        durable = admin.describe_topics("t")[0]["partitions"][0]["durable_offset"]
    cluster.command("down", "--force")
    assert [n for n in os.listdir("/dev/shm") if cluster.name in n] == []
    cluster.up()
    left = numbers(read(cluster.address))
    assert left == list(range(len(left))) and durable <= len(left) < sent
    assert cluster.command("verify", check=False).returncode == 0


# --- retention ---------------------------------------------------------------------------------------------------------


def files_of(cluster: Cluster | RealCluster, topic: str = "t") -> list[Path]:
    """The segment files of a topic's partition 0, oldest first."""
    data = cluster.data_dir if isinstance(cluster, Cluster) else cluster.data
    return sorted(Path(data).glob(f"broker-*/{topic}-0*/*.log"))


def bytes_of(files: list[Path]) -> int:
    total = 0
    for path in files:
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            pass  # removed meanwhile
    return total


def test_a_quiet_topic_expires_within_a_second_or_two() -> None:
    with Cluster() as cluster, Admin() as admin, Producer(acks="disk") as p, Consumer() as c:
        admin.create_topics([NewTopic("t", 1, config={"retention.ms": "500"}), NewTopic("kept")])
        p.send("kept", b"x").result(timeout=20)
        p.send("t", b"x", timestamp_ms=int(time.time() * 1000) + 3_600_000).result(timeout=20)  # counted from the append
        assert files_of(cluster)
        until(lambda: c.beginning_offsets([T0])[T0] == 1, "the record to expire", 2 * 20)
        until(lambda: not files_of(cluster), "its file to go", 2 * 20)
        assert read(cluster.address) == []
        assert p.send("t", b"y").result(timeout=20).offset == 1
        assert len(read(cluster.address, "kept")) == 1


def test_a_log_is_kept_to_retention_bytes_and_what_is_left_is_one_piece() -> None:
    with Cluster() as cluster, Admin() as admin, Producer() as p:
        admin.create_topics([NewTopic("t", 1, config={**SMALL_RING, "segment.bytes": "65536", "retention.bytes": "300000"})])
        for i in range(3000):
            p.send("t", b"%08d" % i + KIB)
        p.flush()
        until(lambda: 0 < bytes_of(files_of(cluster)) <= 300_000 + 2 * 65536 + 16384, "old files to go", 40)
        left = numbers(read(cluster.address))
        assert left == list(range(left[0], 3000)) and 200 < len(left) < 3000


def test_all_logs_together_stay_within_data_max_bytes() -> None:
    limit = 2 << 20
    with Cluster(config={"data.max.bytes": limit}) as cluster, Admin() as admin, Producer(max_block_ms=60_000) as p:
        admin.create_topics([NewTopic(name, 1, config=SMALL_RING) for name in ("t", "u")])
        for i in range(8000):  # 8 MB; files as large as by default, so what is written now must be closed to go
            p.send("tu"[i % 2], b"%08d" % (i // 2) + KIB)
        # Above the limit nothing is written: what memory holds beyond it waits for a file to go.
        until(lambda: bytes_of(files_of(cluster) + files_of(cluster, "u")) <= limit * 1.5, "old files to go", 60)
        for topic in "tu":
            left = numbers(read(cluster.address, topic))
            assert left == list(range(left[0], 4000)) and left[0] > 0


def test_a_log_whose_beginning_was_trimmed_stays_trimmed(cluster: RealCluster) -> None:
    with Admin(cluster.address) as admin, Producer(cluster.address) as p:
        admin.create_topics([NewTopic("t", 1, config={**SMALL_RING, "segment.bytes": "65536"})])
        for i in range(1000):
            p.send("t", b"%08d" % i + KIB)
        before = bytes_of(files_of(cluster))
        assert admin.delete_records({T0: 700})[T0]["low_watermark"] == 700
        until(lambda: bytes_of(files_of(cluster)) < max(before, 1) and len(files_of(cluster)) < 10, "the files before it to go", 40)
    assert numbers(read(cluster.address)) == list(range(700, 1000))
    cluster.kill_everything()
    forget_memory(cluster)
    cluster.up()
    assert numbers(read(cluster.address))[0] == 700
    cluster.command("down")
    cluster.up()
    assert numbers(read(cluster.address))[0] == 700


def test_a_time_is_found_in_files_in_memory_and_after_a_restart(cluster: RealCluster) -> None:
    with Admin(cluster.address) as admin, Producer(cluster.address, acks="disk") as p:
        admin.create_topics([NewTopic("t", 1, config={**SMALL_RING, "segment.bytes": "65536"})])
        for i in range(2000):
            p.send("t", b"%08d" % i + KIB, timestamp_ms=1_000_000 + 10 * i)
        p.flush()

    def check() -> None:
        with Consumer(bootstrap_servers=cluster.address) as c:
            for i in (0, 1, 63, 64, 700, 1000, 1500, 1998, 1999):
                for ms, want in ((10 * i, i), (10 * i - 9, i), (10 * i - 1, i)):
                    found = c.offsets_for_times({T0: 1_000_000 + ms})[T0]
                    assert (found.offset, found.timestamp) == (want, 1_000_000 + 10 * want), (ms, found)
            assert c.offsets_for_times({T0: 0})[T0].offset == 0
            assert c.offsets_for_times({T0: 1_000_000 + 19_991}) == {T0: None}

    check()
    cluster.command("down")
    cluster.up()
    check()


# --- consumers that are slow, stopped or dead --------------------------------------------------------------------------

HOLDER = """
import sys, zlib
from shmlog import Consumer, TopicPartition
c = Consumer("t", bootstrap_servers=sys.argv[1], auto_offset_reset="earliest", tether=sys.argv[2] == "tether")
batch = next(iter(c.batches(max_records=50)))
before = zlib.crc32(b"".join(bytes(v) for v in batch.values()))
print(len(batch), flush=True)
sys.stdin.readline()
assert zlib.crc32(b"".join(bytes(v) for v in batch.values())) == before
print("same", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def holder() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a consumer process that holds a view of the first records; a line on its stdin makes it look at them again."""
    started: list[subprocess.Popen[str]] = []

    def start(address: str, how: str = "free") -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLDER, address, how]
        started.append(process := subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert process.stdout and int(process.stdout.readline()) > 0
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=20)


def test_a_stopped_consumer_with_a_view_slows_no_producer_and_its_view_never_changes(
    address: str, tmp_path: Path, holder: Callable[..., subprocess.Popen[str]]
) -> None:
    with Admin(address) as admin:
        admin.delete_topics(["t"])
        admin.create_topics([NewTopic("t", 1, config=SMALL_RING)])
    send = Sends(tmp_path / "sends.history")
    with Producer(address, acks=1, max_block_ms=20_000) as p:
        for i in range(100):
            send(p, i, b"%08d" % i + KIB)
        stopped = holder(address)
        stopped.send_signal(signal.SIGSTOP)
        for i in range(100, 5000):  # ten times the ring
            send(p, i, b"%08d" % i + KIB)
        stopped.send_signal(signal.SIGCONT)
        assert stopped.stdin and stopped.stdout
        stopped.stdin.write("\n")
        stopped.stdin.flush()
        assert stopped.stdout.readline() == "same\n"
        stopped.kill()
        for i in range(5000, 8000):
            send(p, i, b"%08d" % i + KIB)
    assert check_histories(address, "t", [send.path], number_of) == 8000


def test_a_killed_consumer_lets_go_of_the_producers_that_waited_for_it(address: str, holder: Callable[..., subprocess.Popen[str]]) -> None:
    with Admin(address) as admin:
        admin.delete_topics(["t"])
        admin.create_topics([NewTopic("t", 1, config={**SMALL_RING, "shmlog.spill": "false"})])
    with Producer(address, max_block_ms=300) as p:
        for i in range(100):
            p.send("t", b"%08d" % i + KIB)
        tethered = holder(address, "tether")
        sent, error = fill(p, 100)
        assert isinstance(error, errors.KafkaTimeoutError) and sent < 2000, repr(error)
        tethered.kill()
        tethered.wait(20)
    with Producer(address, max_block_ms=60_000) as p:
        for i in range(sent, sent + 2000):
            assert p.send("t", b"%08d" % i + KIB).offset == i


TETHERED = """
import sys
from shmlog import Consumer
c = Consumer("t", bootstrap_servers=sys.argv[1], auto_offset_reset="earliest", tether=True)
print("reading", flush=True)
for i, record in enumerate(c):
    assert record.offset == i == int(record.value[:8]), (i, record.offset)
    if i == int(sys.argv[2]) - 1:
        break
"""


def test_tethered_consumers_of_a_topic_in_memory_lose_nothing(address: str) -> None:
    count = 20_000
    with Admin(address) as admin:
        admin.delete_topics(["t"])
        admin.create_topics([NewTopic("t", 1, config={**SMALL_RING, "shmlog.spill": "false"})])
    consumers = [subprocess.Popen([sys.executable, "-c", TETHERED, address, str(count)], stdout=subprocess.PIPE) for _ in range(3)]
    try:
        for consumer in consumers:
            assert consumer.stdout and consumer.stdout.readline() == b"reading\n"
        with Producer(address, max_block_ms=60_000) as p:
            for i in range(count):  # forty times the ring
                p.send("t", b"%08d" % i + KIB)
        for consumer in consumers:
            assert consumer.wait(60) == 0
    finally:
        for consumer in consumers:
            consumer.kill()
            consumer.communicate(timeout=20)


# --- after a reboot ----------------------------------------------------------------------------------------------------


def forget_memory(cluster: RealCluster, keep: Callable[[str], bool] = lambda suffix: False) -> None:
    """What a reboot does: the objects in shared memory are gone, but those with a suffix that is kept; the files stay."""
    prefix = shm.prefix(cluster.name)
    for name in shm.names(prefix):
        if not keep(name.removeprefix(prefix + ".")):
            shm.unlink(name)
    if not shm.names(prefix):
        shutil.rmtree(config.run_dir(cluster.name))


LEFT = {
    "nothing": lambda suffix: False,
    "segments_without_control": lambda suffix: suffix[0] == "s",
    "control_without_segments": lambda suffix: suffix[0] != "s",
    "control_alone": lambda suffix: suffix == "control",
    "all_but_the_view": lambda suffix: suffix[0] != "v",
    "all_but_the_words": lambda suffix: suffix != "partitions",
}


@pytest.mark.parametrize("left", some(LEFT, "nothing", "control_without_segments"))
def test_after_a_reboot_all_that_was_durable_is_there_and_nothing_stale_is_believed(cluster: RealCluster, left: str) -> None:
    with Admin(cluster.address) as admin, Producer(cluster.address, acks="disk") as p:
        admin.create_topics([NewTopic("t", 1, config=SMALL_RING), NewTopic("gone"), NewTopic("m", 1, config={"shmlog.spill": "false"})])
        for i in range(2000):
            p.send("t", b"%08d" % i + KIB)
        p.flush(timeout=60)
        epoch = admin.describe_topics("t")[0]["partitions"][0]["leader_epoch"]
        admin.delete_topics(["gone"])
        [broker] = cluster.pids("broker")
        os.kill(broker, signal.SIGSTOP)  # what comes now stays in memory
        with Producer(cluster.address, acks=1) as careless:
            careless.send("m", b"in memory alone")
            for i in range(2000, 2010):
                careless.send("t", b"%08d" % i + KIB)
        cluster.kill_everything()
    forget_memory(cluster, LEFT[left])
    cluster.up()
    with Admin(cluster.address) as admin:
        assert admin.list_topics() == ["m", "t"]
        assert admin.describe_topics("t")[0]["partitions"][0]["leader_epoch"] > epoch
    found = numbers(read(cluster.address))
    assert found == list(range(len(found))) and 2000 <= len(found) <= 2010
    if left == "all_but_the_view":  # no reboot leaves that: memory is all there, and what it is can be told without the view
        assert len(found) == 2010
        assert [r.value for r in read(cluster.address, "m")] == [b"in memory alone"]
    else:
        assert read(cluster.address, "m") == []
    with Producer(cluster.address, acks="disk") as p:
        assert p.send("t", b"%08d" % len(found) + KIB).result(timeout=60).offset == len(found)
    assert numbers(read(cluster.address)) == list(range(len(found) + 1))
    verify = cluster.command("verify", check=False)
    assert verify.returncode == 0, verify.stdout + verify.stderr
    cluster.command("down")
    assert [n for n in os.listdir("/dev/shm") if cluster.name in n] == []


# --- damaged files -----------------------------------------------------------------------------------------------------


def damaged(cluster: RealCluster, damage: Callable[[Path], None], which: int) -> list[int]:
    """1000 numbered records in many files, of which one is damaged while the cluster is down. The numbers that a reader still gets, after it went past
    each error that names its place."""
    with Admin(cluster.address) as admin, Producer(cluster.address) as p:
        admin.create_topics([NewTopic("t", 1, config={**SMALL_RING, "segment.bytes": "65536"}), NewTopic("sound")])
        p.send("sound", b"00000000")
        for i in range(1000):
            p.send("t", b"%08d" % i + KIB)
    cluster.command("down")
    damage(files_of(cluster)[which])
    cluster.up()
    assert numbers(read(cluster.address, "sound")) == [0]
    found: list[int] = []
    with Consumer(bootstrap_servers=cluster.address, auto_offset_reset="earliest") as c:
        c.assign([T0])
        end = c.end_offsets([T0])[T0]
        while c.position(T0) < end:
            at = c.position(T0)
            try:
                records = c.poll(timeout_ms=1000, max_records=50).get(T0, [])
            except errors.CorruptRecordError as error:
                assert error.topic == "t" and error.offset == at and "\n" not in str(error)
                c.seek(T0, at + 1)
            else:
                assert all(r.offset == int(r.value[:8]) for r in records)
                found += numbers(records)
    return found


def flip(path: Path) -> None:
    with path.open("r+b") as file:
        position = path.stat().st_size // 2
        file.seek(position)
        [byte] = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ 16]))


def test_a_flipped_bit_in_a_file_costs_one_record_and_is_named(cluster: RealCluster) -> None:
    found = damaged(cluster, flip, 3)
    assert len(found) == 999 and sorted(set(found)) == found
    verify = cluster.command("verify", check=False)
    assert verify.returncode == 5 and "Traceback" not in verify.stderr, verify


def test_a_file_cut_short_costs_what_was_in_it_and_is_named(cluster: RealCluster) -> None:
    sizes: list[int] = []

    def cut(path: Path) -> None:
        sizes.append(path.stat().st_size)
        os.truncate(path, sizes[0] // 2)

    found = damaged(cluster, cut, 3)
    assert sorted(set(found)) == found and 1000 - sizes[0] // 1000 <= len(found) < 1000 - sizes[0] // 2500
    assert found[0] == 0 and found[-1] == 999
    assert cluster.command("verify", check=False).returncode == 5


def test_a_trim_that_waits_for_the_disk_holds_up_nothing_else(cluster: RealCluster) -> None:
    with Admin(cluster.address) as admin, Producer(cluster.address, acks="disk") as p, Consumer(bootstrap_servers=cluster.address) as c:
        admin.create_topics([NewTopic("t")])
        for i in range(10):
            p.send("t", b"%08d" % i)
        p.flush(timeout=60)
        fifo = files_of(cluster)[0].with_name("log_start.tmp")
        os.mkfifo(fifo)  # whoever opens it to write waits for a reader, as for a disk that hangs
        outcome: list[object] = []

        def trim() -> None:
            try:
                with Admin(cluster.address) as other:
                    other.delete_records({T0: 5})
            except errors.ShmlogError as error:
                outcome.append(error)
            else:
                outcome.append("done")

        thread = threading.Thread(target=trim)
        thread.start()
        until(lambda: c.beginning_offsets([T0])[T0] == 5, "the new log start is in force")
        admin.create_topics([NewTopic("u")])  # the broker takes it over
        assert p.send("u", b"x").result(timeout=60).offset == 0
        assert "done" not in outcome  # that is said when it is on disk
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)  # and a pipe cannot be synced
        thread.join(60)
        assert outcome and outcome != ["done"]
        os.close(reader)
        fifo.unlink()
        admin.delete_records({T0: 6})
        assert json.loads(fifo.with_name("log_start").read_bytes()) == {"log_start": 6}
    cluster.command("down")


def remove(path: Path) -> None:
    path.unlink()


def remove_both(path: Path) -> None:
    path.unlink()
    path.with_suffix(".cells").unlink()


@pytest.mark.parametrize("damage", [remove, remove_both])
def test_the_newest_file_removed_is_reported_and_its_offsets_are_not_given_out_again(cluster: RealCluster, damage: Callable[[Path], None]) -> None:
    with Admin(cluster.address) as admin, Producer(cluster.address, acks="disk") as p:
        admin.create_topics([NewTopic("t", 1, config={**SMALL_RING, "segment.bytes": "65536"})])
        for i in range(1000):
            p.send("t", b"%08d" % i + KIB)
    cluster.command("down")
    newest = files_of(cluster)[-1]
    base = int(newest.name[:20])
    assert 0 < base < 1000
    damage(newest)
    verify = cluster.command("verify", str(newest.parent), check=False)
    assert verify.returncode == 5 and f"offset {base}" in verify.stdout and "1000" in verify.stdout, verify
    cluster.up()
    with Producer(cluster.address, acks="disk") as p:
        assert p.send("t", b"%08d" % 1000 + KIB).result(timeout=60).offset == 1000
    with Consumer(bootstrap_servers=cluster.address, auto_offset_reset="earliest") as c:
        c.assign([T0])
        found: list[int] = []
        gaps = []
        while c.position(T0) < 1001:
            try:
                found += numbers(c.poll(timeout_ms=1000).get(T0, []))
            except errors.CorruptRecordError as error:
                gaps.append((error.offset, error.end_offset))
                c.seek(T0, error.end_offset)
    assert found == [*range(base), 1000]
    assert gaps == [(base, 1000)]  # in one step
    verify = cluster.command("verify", check=False)
    assert verify.returncode == 5 and f"{1000 - base} records" in verify.stdout, verify  # a typed gap is a gap
    cluster.command("down")


def test_a_file_removed_from_the_middle_is_a_typed_gap(cluster: RealCluster) -> None:
    with Admin(cluster.address) as admin, Producer(cluster.address, acks="disk") as p:
        admin.create_topics([NewTopic("t", 1, config={**SMALL_RING, "segment.bytes": "65536"})])
        for i in range(1000):
            p.send("t", b"%08d" % i + KIB)
    cluster.command("down")
    files = files_of(cluster)
    gap = (int(files[3].name[:20]), int(files[4].name[:20]))
    remove_both(files[3])
    cluster.up()
    found: list[int] = []
    gaps = []
    with Consumer(bootstrap_servers=cluster.address, auto_offset_reset="earliest") as c:
        c.assign([T0])
        while c.position(T0) < 1000:
            try:
                found += numbers(c.poll(timeout_ms=1000).get(T0, []))
            except errors.CorruptRecordError as error:
                gaps.append((error.offset, error.end_offset))
                c.seek(T0, error.end_offset)
    assert gaps == [gap]  # in one step
    assert found == [*range(gap[0]), *range(gap[1], 1000)]


def newer(path: Path) -> None:
    at = ffi.offsetof("sl_file_header", "disk_version")
    with path.open("r+b") as file:
        file.seek(at)
        version = int.from_bytes(file.read(4), "little")
        file.seek(at)
        file.write((version + 1).to_bytes(4, "little"))


def test_a_file_of_a_newer_version_is_refused_by_name_and_not_touched(cluster: RealCluster) -> None:
    with Admin(cluster.address) as admin, Producer(cluster.address) as p:
        admin.create_topics([NewTopic("t"), NewTopic("sound")])
        for topic in ("t", "sound"):
            p.send(topic, b"00000000")
    cluster.command("down")
    [path] = files_of(cluster)
    newer(path)
    before = path.read_bytes()
    cluster.up()
    assert numbers(read(cluster.address, "sound")) == [0]
    with Producer(cluster.address, max_block_ms=300) as p:
        refused(errors.StorageError, lambda: p.send("t", b"x"), "cannot open its files")
        refused(errors.StorageError, lambda: Consumer("t", bootstrap_servers=cluster.address), "cannot open its files")
        assert p.send("sound", b"x").offset == 1
    verify = cluster.command("verify", check=False)
    assert verify.returncode == 5 and "version" in verify.stdout, verify
    assert cluster.command("status", "--check", check=False).returncode == 1
    cluster.command("down")
    assert path.read_bytes() == before


# --- signals, forks, umasks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", some([signal.SIGTERM, signal.SIGINT, signal.SIGHUP], signal.SIGTERM))
@pytest.mark.parametrize("role", ["broker", "coordinator", "standby", "spare"])
def test_a_signal_to_any_process_of_the_cluster_loses_nothing(tmp_path: Path, role: str, number: signal.Signals) -> None:
    with Cluster() as cluster, Producer(acks=1, max_block_ms=60_000) as p:
        until(lambda: cluster.pid(role), role)
        send = Sends(tmp_path / "sends.history")
        for i in range(3000):
            send(p, i, b"%08d" % i + KIB)
            if i == 1000:
                pid = cluster.kill(role, number=number)
        assert check_histories(cluster.address, "t", [send.path], number_of) == 3000
        if number == signal.SIGTERM:
            until(lambda: cluster.pid(role) not in (0, pid), f"the next {role}")
        assert p.send("t", b"x").offset == 3000
        with Producer(acks="disk") as q:
            q.send("u", b"x").result(timeout=60)  # a new topic, on disk: everybody works


def shmlog(*arguments: str, **more: Any) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "shmlog", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


MOMENTS: dict[str, Callable[[str], object]] = {
    "before_anything": lambda name: True,
    "run_directory": lambda name: os.path.isdir(config.run_dir(name)),
    "control": lambda name: shm.identity(shm.object_name(shm.prefix(name), "control")),
    "lock": lambda name: os.path.exists(os.path.join(config.run_dir(name), "lock")),
    "spare_socket": lambda name: os.path.exists(os.path.join(config.run_dir(name), "spare.sock")),
}


@pytest.mark.parametrize("number", some([signal.SIGINT, signal.SIGTERM, signal.SIGKILL], signal.SIGINT))
@pytest.mark.parametrize("moment", some(MOMENTS, "control"))
def test_an_up_that_is_interrupted_leaves_nothing_that_down_does_not_remove(tmp_path: Path, moment: str, number: signal.Signals) -> None:
    cluster = RealCluster(tmp_path / "data")
    try:
        with shmlog("up", "--data", str(cluster.data), "--cluster", cluster.name) as up:
            until(lambda: MOMENTS[moment](cluster.name) or up.poll() is not None, moment)
            up.send_signal(number)
            _, err = up.communicate(timeout=60)
        assert up.returncode in (0, 130, -number)
        if moment != "before_anything":  # there Python itself may still be starting
            assert err == ""
        cluster.command("down")
        assert [n for n in os.listdir("/dev/shm") if cluster.name in n] == []
        cluster.up()
        cluster.command("down")
        assert [n for n in os.listdir("/dev/shm") if cluster.name in n] == []
    finally:
        cluster.end()


@pytest.mark.parametrize("number", some([signal.SIGINT, signal.SIGTERM, signal.SIGKILL], signal.SIGKILL))
def test_a_down_that_is_interrupted_can_be_repeated_and_loses_nothing(cluster: RealCluster, number: signal.Signals) -> None:
    with Producer(cluster.address, acks=1) as p:
        for i in range(2000):
            p.send("t", b"%08d" % i + KIB)
    with shmlog("down", "--cluster", cluster.name) as down:
        until(lambda: not lifecycle.is_up(cluster.name) or down.poll() is not None, "down to have begun")
        down.send_signal(number)
        down.communicate(timeout=60)
    cluster.command("down")
    assert [n for n in os.listdir("/dev/shm") if cluster.name in n] == []
    cluster.up()
    assert numbers(read(cluster.address)) == list(range(2000))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_produce_that_is_interrupted_leaves_whole_records(address: str, number: signal.Signals, code: int) -> None:
    with shmlog("produce", "t", "--cluster", address, stdin=subprocess.PIPE) as process:
        assert process.stdin
        for i in range(1000):
            process.stdin.write(f"{i:08d}{'x' * 500}\n")
        process.stdin.flush()
        with Consumer("t", bootstrap_servers=address) as c:
            until(lambda: c.end_offsets([T0])[T0] > 500, "records")
        process.send_signal(number)
        process.stdin.close()
        assert process.stderr and process.wait(60) == code
        assert process.stderr.read() == ""
    found = read(address)
    assert numbers(found) == list(range(len(found))) and {len(r.value) for r in found} == {508}


def test_a_fork_inside_a_loan_leaves_the_loan_to_the_parent(address: str) -> None:
    with Producer(address) as p:
        with p.loan("t", nbytes=4) as loan:
            loan.array[:] = b"mine"
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    try:
                        loan.__exit__(None, None, None)
                    except errors.ForkedProcessError:
                        try:
                            p.send("t", b"child")
                        except errors.ForkedProcessError:
                            with Producer(address) as q:
                                code = 0 if q.send("t", b"child's own").offset == 0 else 2
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            assert bytes(loan.array) == b"mine"
        assert loan.offset == 1
    assert [r.value for r in read(address)] == [b"child's own", b"mine"]


@pytest.mark.parametrize("mask", [0o000, 0o077])
def test_whatever_the_umask_all_is_the_owners_and_the_owner_can_use_it(tmp_path: Path, mask: int) -> None:
    cluster = RealCluster(tmp_path / "data")

    def under_it(*arguments: str, stdin: bytes = b"") -> bytes:
        command = [sys.executable, "-m", "shmlog", *arguments, "--cluster", cluster.name]
        done = subprocess.run(command, input=stdin, capture_output=True, timeout=60, umask=mask)
        assert done.returncode == 0, done
        return done.stdout

    try:
        cluster.data.mkdir()
        under_it("up", "--data", str(cluster.data))
        under_it("produce", "t", "--acks", "disk", stdin=b"x\n")
        assert under_it("consume", "t", "-e") == b"x\n"
        ours = [Path("/dev/shm", n) for n in os.listdir("/dev/shm") if cluster.name in n]
        for path in [p for top in [*ours, *cluster.data.iterdir()] for p in (top, *(top.rglob("*") if top.is_dir() else ()))]:
            mode = stat.S_IMODE(path.lstat().st_mode)
            assert mode & 0o077 == 0, f"{path}: {mode:o}"
            assert mode & 0o600 == 0o600, f"{path}: {mode:o}"  # root would not notice
        under_it("down")
        under_it("up", "--data", str(cluster.data))
        assert under_it("consume", "t", "-e") == b"x\n"
        under_it("down", "--wipe")
    finally:
        cluster.end()
