"""The command line in a process of its own or in this one, and a cluster made by hand: memory and files without any process, for planting damage."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click.testing
import pytest

from shmlog import config, messages, proc, shm
from shmlog._ffi import check, ffi, lib
from shmlog.tools import cli

DEADLINE_S = 60


class Result:
    """What a command did."""

    def __init__(self, code: int, out: bytes, err: bytes) -> None:
        self.code, self.raw, self.out, self.err = code, out, out.decode(errors="replace"), err.decode(errors="replace")

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def error(self) -> dict[str, Any]:
        """The error as --json prints it."""
        found: dict[str, Any] = json.loads(self.err)["error"]
        return found

    def __repr__(self) -> str:
        return f"exit {self.code}\n{self.out}\n{self.err}"


def in_process(*arguments: str, input: bytes = b"", **environment: str) -> Result:
    found = click.testing.CliRunner().invoke(cli.cli, list(arguments), input=input, env=environment)
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return Result(found.exit_code, found.stdout_bytes, found.stderr_bytes)


def in_own_process(*arguments: str, input: bytes = b"", **environment: str) -> Result:
    command = [sys.executable, "-m", "shmlog", *arguments]
    found = subprocess.run(command, input=input, capture_output=True, timeout=DEADLINE_S, env={**os.environ, **environment})
    return Result(found.returncode, found.stdout, found.stderr)


@pytest.fixture
def run() -> Callable[..., Result]:
    return in_process


@pytest.fixture
def on(shmlog_cluster: Any) -> Callable[..., Result]:
    """A command on the test's namespace of the session's cluster."""
    return lambda *arguments, **more: in_process(*arguments, "--cluster", shmlog_cluster.address, **more)


@pytest.fixture
def private(tmp_path: Path) -> Iterator[Callable[..., Result]]:
    """Commands in processes of their own, on a cluster name and state directory of their own. Nothing may be left when the test is over."""
    name = f"t{os.getpid()}-{secrets.token_hex(3)}"

    def run(*arguments: str, **more: Any) -> Result:
        return in_own_process(*arguments, SHMLOG_CLUSTER=name, XDG_STATE_HOME=str(tmp_path), **more)

    run.name = name  # type: ignore[attr-defined]
    run.state = str(tmp_path / "shmlog" / name)  # type: ignore[attr-defined]
    try:
        yield run
        left = [entry for entry in os.listdir("/dev/shm") if name in entry]
        assert not left, f"left in /dev/shm: {left}"
    finally:
        in_own_process("down", "--force", "--wipe", SHMLOG_CLUSTER=name, XDG_STATE_HOME=str(tmp_path))


# --- a cluster without processes ---------------------------------------------------------------------------------------


def frame(
    value: bytes | None, key: bytes | None = None, headers: bytes | None = None, timestamp_ns: int = 0, rows: int = 0, **fields: int
) -> tuple[bytes, int]:
    """A frame's bytes and how many offsets it takes. rows: an array of so many; fields: of sl_record."""
    record, position = ffi.new("sl_record *"), ffi.new("uint32_t *")
    kept = [ffi.from_buffer("uint8_t[]", data or b"") for data in (value, key, headers)]
    record.producer_id, record.timestamp_ns = -1, timestamp_ns
    if value is not None:
        record.value, record.value_bytes = kept[0], len(value)
    if key is not None:
        record.key, record.key_bytes = kept[1], len(key)
    if headers is not None:
        record.headers, record.headers_bytes = kept[2], len(headers)
    if rows:
        record.kind, record.rows, record.row_bytes = lib.SL_FF_ARRAY, rows, len(value or b"") // rows
    for name, number in fields.items():
        setattr(record, name, number)
    size = check(lib.sl_frame_measure(record, position))
    to = ffi.new("uint8_t[]", size)
    check(lib.sl_frame_build(to, record, timestamp_ns, 1, 1))
    return bytes(ffi.buffer(to, size)), rows or 1


def lost_frame(rows: int) -> tuple[bytes, int]:
    """As gather.c writes it."""
    flags = lib.SL_FF_CONTROL | lib.SL_FF_LOST | lib.SL_FF_HAS_ROWS | lib.SL_FF_CRC_ALL
    body = struct.pack("<IIIIHHII", 0, 0, lib.SL_NULL_BYTES, lib.SL_NULL_BYTES, flags, 8, rows, 0)
    data = struct.pack("<II", 36, lib.sl_crc32c(0, body, len(body))) + body
    assert lib.sl_frame_check(ffi.from_buffer(data), len(data), 1) == lib.SL_OK
    return data, rows


class HandMade:
    """One topic "t" of one partition, in memory and on disk, written by calls into the core. No process keeps it, so it looks like one whose processes
    are all dead, unless `keep_alive()` enters this test as its coordinator. With several brokers each has a replica; 0 leads."""

    def __init__(self, directory: str, brokers: int = 1) -> None:
        self.name = f"t{os.getpid()}-{secrets.token_hex(3)}"
        self.prefix = shm.prefix(self.name)
        self.address = config.Address(self.name)
        self.cluster_id, self.topic_id = os.urandom(16), os.urandom(16)
        ids = tuple(range(brokers))
        made = {n: messages.BrokerView(n, 4 + n, 1, os.path.join(directory, f"broker-{n}")) for n in ids}
        self.dirs = [messages.partition_directory(made[n].directory, "t", 0, self.topic_id) for n in ids]
        self.dir = self.dirs[0]
        for path in self.dirs:
            os.makedirs(path)
        partition = messages.PartitionView(block=0, leader=0, leader_epoch=1, replicas=ids, isr=ids)
        topic = messages.TopicView("t", self.topic_id, {}, (partition,))
        self.view = messages.ClusterView(
            cluster_id=self.cluster_id, name=self.name, version=1, coordinator_epoch=1 << 32 | 1, boot_counter=1, data_dirs=(directory,),
            state_dir=directory, config={}, brokers=made, topics={"t": topic},
        )  # fmt: skip
        for table in shm.TABLES:
            shm.create_table(self.prefix, table, cluster_id=self.cluster_id)
        shm.create_view(self.prefix, 1, messages.encode_view(self.view), cluster_id=self.cluster_id)
        image = ffi.new("sl_control *")
        image.coordinator_epoch, image.view_version, image.cluster_state, image.boot_counter = self.view.coordinator_epoch, 1, lib.SL_CLUSTER_UP, 1
        image.memory_max_bytes = 1 << 24
        image.processes[4].role, image.processes[4].pid, image.processes[4].state = lib.SL_ROLE_BROKER, 1 << 22, lib.SL_PROCESS_UP
        body = bytes(ffi.buffer(image))[ffi.sizeof("sl_object_header") :]
        name = shm.object_name(self.prefix, "control")
        shm.create(name, lib.SL_KIND_CONTROL, ffi.sizeof("sl_control"), cluster_id=self.cluster_id, body=body)
        out = ffi.new("sl_cluster **")
        check(lib.sl_cluster_open(self.prefix.encode(), out))
        self.handle = out[0]
        self.control = lib.sl_cluster_control(self.handle)
        self.words = lib.sl_cluster_partition(self.handle, 0)
        for entry, size in ((self.words, "sl_partition"), (lib.sl_cluster_row(self.handle, 0), "sl_row")):
            head = ffi.cast("sl_table *", ffi.cast("char *", entry) - lib.SL_TABLE_HEADER_BYTES)
            head.used = 1 if size == "sl_partition" else 2
        ffi.memmove(self.words.topic_id, self.topic_id, 16)
        self.words.state, self.words.flags, self.words.leader_epoch = lib.SL_PARTITION_LIVE, lib.SL_PF_SPILL, 1
        self.words.max_message_bytes, self.words.memory_bytes = 1 << 20, 1 << 24
        self.row = lib.sl_cluster_row(self.handle, 0)
        self.row.state, self.row.pid, self.row.start_ticks, self.row.kind = (
            lib.SL_ROW_LIVE,
            os.getpid(),
            proc.start_ticks(os.getpid()),
            messages.KIND_PRODUCER,
        )
        self.buffers = [check(lib.sl_segment_make(self.handle, lib.SL_SEGMENT_MIN_BYTES))]
        check(lib.sl_log_open_epoch(self.handle, 0, 0, 1, self.buffers[0], 0))
        out = ffi.new("sl_appender **")
        check(lib.sl_appender_open(self.handle, 0, 0, self.topic_id, out))
        self.appender = out[0]

    def keep_alive(self) -> None:
        entry = self.control.processes[1]
        entry.role, entry.pid, entry.start_ticks, entry.state = lib.SL_ROLE_COORDINATOR, os.getpid(), proc.start_ticks(os.getpid()), lib.SL_PROCESS_UP

    def append(self, *values: bytes, key: bytes | None = None) -> None:
        for value in values:
            record, result = ffi.new("sl_record *"), ffi.new("sl_append_result *")
            held, key_held = ffi.from_buffer("uint8_t[]", value), ffi.from_buffer("uint8_t[]", key or b"")
            record.value, record.value_bytes, record.producer_id = held, len(value), -1
            if key is not None:
                record.key, record.key_bytes = key_held, len(key)
            check(lib.sl_append(self.appender, record, -1, 0, result))

    def rotate(self) -> None:
        """The active segment is sealed, another is active."""
        self.buffers.append(check(lib.sl_segment_make(self.handle, lib.SL_SEGMENT_MIN_BYTES)))
        check(lib.sl_log_publish(self.handle, 0, 0, 1, self.buffers[-1]))
        check(lib.sl_log_seal(self.handle, 0, 0, 0))

    def write_file(self, base: int, values: list[Any], epoch: int = 1, broker: int = 0) -> str:
        """A synced file of these records; returns its path. The words are left alone. A value is a record's, or what frame() made."""
        out = ffi.new("sl_file **")
        cluster_id, topic_id = (ffi.from_buffer("uint8_t[]", b) for b in (self.cluster_id, self.topic_id))
        check(lib.sl_file_create(self.dirs[broker].encode(), base, epoch, 0, topic_id, cluster_id, out))
        at = base
        for value in values:
            data, rows = value if isinstance(value, tuple) else frame(value, timestamp_ns=1_700_000_000_000_000_000 + at)
            piece, held = ffi.new("sl_file_piece *"), ffi.from_buffer("uint8_t[]", data)
            piece.frame, piece.frame_bytes, piece.rel, piece.count = held, len(data), at - base, rows
            piece.type = lib.SL_CELL_CONTROL if data[24] & lib.SL_FF_KIND_MASK == lib.SL_FF_CONTROL else lib.SL_CELL_DATA
            piece.crc32c = lib.sl_crc32c(0, data, len(data))
            at += rows
            check(lib.sl_file_append(out[0], piece, 1, at))
        check(lib.sl_file_sync(out[0]))
        check(lib.sl_file_close(out[0]))
        return os.path.join(self.dirs[broker], f"{base:020d}-{epoch}.log")

    def spilled(self, offset: int) -> None:
        for word in (lib.SL_WORD_SPILLED, lib.SL_WORD_DURABLE):
            check(lib.sl_log_advance(self.handle, 0, word, 1, offset))

    def object(self, suffix: str) -> str:
        return shm.DIRECTORY + shm.object_name(self.prefix, suffix)

    def poke(self, path: str, position: int, data: bytes) -> None:
        """Damage: bytes of an object or file are overwritten."""
        with open(path, "r+b") as file:
            file.seek(position)
            file.write(data)

    def flip(self, path: str, position: int) -> None:
        """Damage, whatever stands there: to write a given byte over one of a random id changes nothing once in 256 runs."""
        with open(path, "rb") as file:
            file.seek(position)
            before = file.read(1)
        self.poke(path, position, bytes([before[0] ^ 0xFF]))

    def close(self) -> None:
        lib.sl_appender_close(self.appender)
        lib.sl_cluster_close(self.handle)
        shm.remove_cluster(self.prefix)
        shutil.rmtree(config.run_dir(self.name), ignore_errors=True)


@pytest.fixture
def three(tmp_path: Path) -> Iterator[HandMade]:
    """With replicas at three brokers."""
    made = HandMade(str(tmp_path), brokers=3)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def hand(tmp_path: Path) -> Iterator[HandMade]:
    made = HandMade(str(tmp_path))
    try:
        yield made
    finally:
        made.close()
