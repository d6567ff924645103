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
