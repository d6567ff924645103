"""A small /dev/shm, a full log disk: typed errors with numbers, nothing lost, all resumes by itself.

These need root, for a mount namespace of their own; `make test-all` only. Each body runs in a process inside the namespace.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PROLOGUE = """
import os, sys, threading, time
from shmlog import *
import shmlog
from shmlog import errors

def until(condition, what, seconds=60):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        threading.Event().wait(0.005)
    return value
"""


def in_namespace(mounts: str, body: str, tmp_path: Path) -> str:
    """Runs a Python body with mounts of its own; whatever it leaves in its /dev/shm goes with the namespace, so it looks itself."""
    assert os.geteuid() == 0, "needs root for a mount namespace"
    script = tmp_path / "body.py"
    script.write_text(PROLOGUE + textwrap.dedent(body) + "\nleft = os.listdir('/dev/shm')\nassert not left, left\nprint('done')\n")
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", f'{mounts}\nexec "$0" "$1"', sys.executable, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("done\n"), done.stdout
    return done.stdout


def test_twenty_partitions_work_inside_a_dev_shm_of_64_MiB(tmp_path: Path) -> None:
    in_namespace(
        "mount -t tmpfs -o size=64m tmpfs /dev/shm",
        """
        with Cluster() as cluster:
            admin = Admin()
            admin.create_topics([NewTopic("t", num_partitions=20)])
            value = bytes(1000)
            with Producer(acks=1) as producer:
                for i in range(200_000):  # 200 MB through 64 MiB
                    producer.send("t", value, partition=i % 20)
            consumer = Consumer("t", auto_offset_reset="earliest")
            seen = 0
            while seen < 200_000:
                for records in consumer.poll(timeout_ms=5000, max_records=5000).values():
                    seen += len(records)
            consumer.close()
            admin.close()
        """,
        tmp_path,
    )


def test_a_follower_with_a_full_disk_leaves_the_isr_and_commits_go_on(tmp_path: Path) -> None:
    in_namespace(
        "mkdir big small; mount -t tmpfs -o size=8m tmpfs small; mount -t tmpfs tmpfs /dev/shm",
        """
        import subprocess
        os.environ["SHMLOG_CLUSTER"] = f"t{os.getpid()}"
        def run(*words):
            subprocess.run([sys.executable, "-m", "shmlog", *words], check=True, timeout=120)
        run("up", "--brokers", "2", "--data", "big", "--data", "small", "-c", "replica.lag.time.max.ms=1000")
        try:
            with Admin() as admin:
                admin.create_topics([NewTopic("t", replica_assignments={0: [0, 1]}, config={"segment.bytes": "1048576"})])
                with Producer(acks="all", delivery_timeout_ms=60_000) as producer:
                    for _ in range(200):
                        last = producer.send("t", bytes(100_000))
                    last.result(60)
                [seen] = admin.describe_topics(["t"])[0]["partitions"]
                assert seen["isr"] == [0], seen
        finally:
            run("down", "--wipe", "--force")
        """,
        tmp_path,
    )


def test_a_dev_shm_of_8_MiB_gives_an_error_with_numbers_and_never_a_signal(tmp_path: Path) -> None:
    in_namespace(
        "mount -t tmpfs -o size=8m tmpfs /dev/shm",
        """
        with Cluster() as cluster:
            admin = Admin()
            admin.create_topics([NewTopic("small"), NewTopic("large")])
            with Producer(acks=1, max_block_ms=3000) as producer:
                for i in range(20_000):
                    producer.send("small", bytes(1000))  # a little at a time goes
                try:
                    producer.send("large", bytes(32 << 20))
                except errors.ShmSpaceError as error:
                    assert any(c.isdigit() for c in str(error)), error
                    print(error)
                else:
                    raise SystemExit("32 MiB went through 8 MiB")
                producer.send("small", b"still here")
            # others fill it: partitions that exist go on, new ones get the error
            with open("/dev/shm/stranger", "wb") as stranger:
                try:
                    while True:
                        stranger.write(bytes(65536)); stranger.flush()
                except OSError:
                    pass
                with Producer(acks=1, max_block_ms=3000) as producer:
                    producer.send("small", b"one more")
                    try:
                        admin.create_topics([NewTopic("many", num_partitions=200)])
                    except (errors.ShmSpaceError, errors.KafkaTimeoutError, errors.ShmlogError) as error:
                        print(type(error).__name__, error)
            os.unlink("/dev/shm/stranger")
            consumer = Consumer("small", auto_offset_reset="earliest")
            seen = 0
            while seen < 20_002:
                for records in consumer.poll(timeout_ms=5000, max_records=5000).values():
                    seen += len(records)
            consumer.close()
            admin.close()
        """,
        tmp_path,
    )


def test_a_new_topic_that_dev_shm_has_no_room_for_is_an_error_of_memory_and_comes_when_there_is(tmp_path: Path) -> None:
    in_namespace(
        "mount -t tmpfs -o size=16m tmpfs /dev/shm",
        """
        with Cluster(), Producer(max_block_ms=3000) as producer:
            producer.send("old", b"x").result()
            with open("/dev/shm/stranger", "wb") as stranger:
                while (free := os.statvfs("/dev/shm").f_bavail * 4096) > 8192:
                    stranger.write(bytes(min(65536, free - 8192))); stranger.flush()
            try:
                for _ in range(300):
                    producer.send("old", bytes(10_000))  # takes what is left, also by segments of its own that come free
            except errors.ShmSpaceError:
                pass
            try:
                print(producer.send("new", b"y"))
            except errors.ShmSpaceError as error:
                assert any(c.isdigit() for c in str(error)), error
            os.unlink("/dev/shm/stranger")
            def sent():
                try: return producer.send("new", b"y")
                except errors.ShmSpaceError: return None
            until(sent, "room again")
        """,
        tmp_path,
    )


def test_a_full_log_disk_loses_nothing_and_resumes_when_it_is_freed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    in_namespace(
        f"mount -t tmpfs -o size=256m tmpfs /dev/shm; mount -t tmpfs -o size=24m tmpfs {tmp_path}/disk",
        f"""
        disk = {str(tmp_path / "disk")!r}
        open(disk + "/ballast", "wb").write(bytes(8 << 20))
        """
        """
        with Cluster(data_dir=disk + "/data", config={"data.max.bytes": str(1 << 40)}) as cluster:
            admin = Admin()
            admin.create_topics([NewTopic("t", config={"shmlog.memory.bytes": str(4 << 20)})])
            acknowledged, failed = 0, None
            with Producer(acks=1, max_block_ms=2000) as producer:
                while failed is None and acknowledged < 100_000:
                    try:
                        producer.send("t", b"%08d" % acknowledged + bytes(992))
                        acknowledged += 1
                    except errors.StorageFullError as error:
                        failed = error
                assert failed is not None, "the disk never filled"
                print(failed)
                try:
                    Producer(acks="disk", max_block_ms=1000).send("t", b"x").result(timeout=1)
                except (errors.StorageFullError, errors.KafkaTimeoutError) as error:
                    print(type(error).__name__, error)
                else:
                    raise SystemExit("acknowledged as durable on a full disk")
                consumer = Consumer("t", auto_offset_reset="earliest")
                seen = 0
                def read():
                    global seen
                    for records in consumer.poll(timeout_ms=100, max_records=5000).values():
                        for record in records:
                            if record.value != b"x":
                                assert int(record.value[:8]) == seen, (record.offset, record.value[:8], seen)
                                seen += 1
                    return seen >= acknowledged
                until(read, "all that was acknowledged, while the disk is full")
                os.unlink(disk + "/ballast")
                def more():
                    try:
                        producer.send("t", b"%08d" % acknowledged + bytes(992))
                    except errors.StorageFullError:
                        return False
                    return True
                until(more, "appends go on by themselves")
                acknowledged += 1
                until(read, "the record after that")
                consumer.close()
            admin.close()
        """,
        tmp_path,
    )


def test_a_broker_killed_while_its_disk_and_its_log_are_full_comes_back_and_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    in_namespace(
        f"mount -t tmpfs -o size=256m tmpfs /dev/shm; mount -t tmpfs -o size=16m tmpfs {tmp_path}/disk",
        f"""
        disk = {str(tmp_path / "disk")!r}
        """
        """
        with Cluster(data_dir=disk + "/data", config={"data.max.bytes": str(1 << 40)}) as cluster, Admin() as admin:
            admin.create_topics([NewTopic("t", config={"shmlog.memory.bytes": str(1 << 20)})])
            with Producer(acks=1, max_block_ms=1000) as producer:
                sent = 0
                producer.send("t", b"%08d" % sent + bytes(992)); sent += 1
                # Every file's last page is filled too, the log's as well: not one more byte goes anywhere.
                with open(disk + "/ballast", "wb", buffering=0) as ballast:
                    for size in (65536, 4096):
                        try:
                            while True:
                                ballast.write(bytes(size))
                        except OSError:
                            pass
                log = [disk + "/data/logs/" + name for name in os.listdir(disk + "/data/logs")]
                for path in log:
                    with open(path, "ab", buffering=0) as file:
                        try:
                            while file.write(b"\\n"):
                                pass
                        except OSError:
                            pass
                failed = None
                while failed is None:
                    try:
                        producer.send("t", b"%08d" % sent + bytes(992)); sent += 1
                    except errors.StorageFullError as error:
                        failed = error
                for role in ("broker", "coordinator", "broker"):
                    old = until(lambda: cluster.pid(role), role)
                    cluster.kill(role)
                    until(lambda: cluster.pid(role) not in (0, old), f"the next {role}")
                os.unlink(disk + "/ballast")
                def more():
                    try:
                        return producer.send("t", b"%08d" % sent + bytes(992)).offset == sent
                    except errors.ShmlogError:
                        return False
                until(more, "appends go on by themselves")
            consumer = Consumer("t", auto_offset_reset="earliest")
            seen = 0
            def read():
                global seen
                for records in consumer.poll(timeout_ms=100, max_records=5000).values():
                    for record in records:
                        assert int(record.value[:8]) == record.offset == seen
                        seen += 1
                return seen == sent + 1
            until(read, "all that was acknowledged")
            consumer.close()
        """,
        tmp_path,
    )


@pytest.mark.parametrize("size", ["64k", "256k", "1m"])
def test_a_dev_shm_too_small_for_a_cluster_is_the_error_of_up_and_nothing_is_left(tmp_path: Path, size: str) -> None:
    in_namespace(
        f"mount -t tmpfs -o size={size} tmpfs /dev/shm",
        """
        import subprocess
        def shmlog(*arguments):
            return subprocess.run([sys.executable, "-m", "shmlog", *arguments, "--cluster", "small"], capture_output=True, text=True, timeout=60)
        up = shmlog("up", "--data", os.getcwd() + "/data")
        print(up)
        if up.returncode == 0:  # it fits: then records must too, or the error is theirs
            with Producer("shm://small", max_block_ms=2000) as producer:
                try:
                    producer.send("t", b"x")
                except errors.ShmSpaceError as error:
                    assert any(c.isdigit() for c in str(error)), error
            assert shmlog("down").returncode == 0
        else:
            assert up.returncode == 1 and up.stderr.count("\\n") == 1 and "/dev/shm has" in up.stderr, up
            left = os.listdir("/dev/shm")
            assert not left, left
            assert shmlog("down").returncode == 0
        """,
        tmp_path,
    )


def test_a_data_directory_that_cannot_be_written_is_the_error_of_up_and_a_cluster_outlives_it(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    in_namespace(
        f"mount -t tmpfs -o size=64m tmpfs /dev/shm; mount -t tmpfs -o size=64m tmpfs {tmp_path}/disk",
        f"""
        disk = {str(tmp_path / "disk")!r}
        """
        """
        import subprocess
        def mount(how):
            subprocess.run(["mount", "-o", f"remount,{how}", disk], check=True)
        def shmlog(*arguments):
            return subprocess.run([sys.executable, "-m", "shmlog", *arguments, "--cluster", "c"], capture_output=True, text=True, timeout=60)
        mount("ro")
        up = shmlog("up", "--data", disk + "/data")
        assert up.returncode == 1 and up.stderr.count("\\n") == 1 and disk in up.stderr, up
        assert os.listdir("/dev/shm") == [], os.listdir("/dev/shm")
        mount("rw")
        assert shmlog("up", "--data", disk + "/data").returncode == 0
        with Producer("shm://c", acks="disk") as producer:
            assert producer.send("t", b"x").result(timeout=20).offset == 0
        assert shmlog("down").returncode == 0
        """,
        tmp_path,
    )
