"""What a broker's directory says besides records, so that the metadata can be rebuilt from the directories alone.

    <data>/broker-<id>/lock                          the cluster's id
    <data>/broker-<id>/epochs                        the highest epochs this broker was given, and the cluster's config
    <data>/broker-<id>/retired                       the broker has left the cluster, and had nothing any more
    <data>/broker-<id>/<topic directory>/topic       name, id, config and partition count of the topic

The broker writes them (it alone, under the directory's lock) before it takes a partition over; who reads them is a coordinator that lost its database.
Each is replaced in one step by rename. They are not synced, but for a new boot: a kill loses nothing of them, and what a power cut takes from them is
made good by the jump of epochs in a rebuilt cluster, or by the directory's name and the headers of its files.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from shmlog import messages as m
from shmlog._ffi import ffi, lib

_File = TypeVar("_File", bound=msgspec.Struct)

TOPIC = "topic"
EPOCHS = "epochs"
LOCK = "lock"
RETIRED = "retired"


class TopicFile(msgspec.Struct, frozen=True):
    name: str
    topic_id: str  # hex
    partitions: int
    config: dict[str, str]


class EpochsFile(msgspec.Struct, frozen=True):
    boot_counter: int = 0
    view_version: int = 0
    broker_epoch: int = 0
    leader_epoch: int = 0  # the highest that this broker was given for any partition
    config: dict[str, str] = {}  # of the cluster
    elsewhere: dict[int, str] = {}  # brokers whose directories lie outside of the data directories


class Partition(msgspec.Struct, frozen=True):
    """A partition's directory, as far as it can be told."""

    directory: str
    topic: TopicFile
    number: int
    leader_epoch: int  # the highest of its files
    written_ns: int  # when the topic's file, or else the directory, was changed last


class Broker(msgspec.Struct, frozen=True):
    id: int
    directory: str
    cluster_id: bytes  # b"": it says none
    epochs: EpochsFile
    partitions: tuple[Partition, ...]
    unclear: tuple[str, ...]  # directories of which nobody can tell what they are


def write_topic(directory: str, topic: m.TopicView) -> None:
    _replace(os.path.join(directory, TOPIC), TopicFile(topic.name, topic.topic_id.hex(), len(topic.partitions), topic.config), False)


def write_epochs(directory: str, epochs: EpochsFile, sync: bool) -> None:
    _replace(os.path.join(directory, EPOCHS), epochs, sync)


def read_epochs(directory: str) -> EpochsFile:
    return _read(os.path.join(directory, EPOCHS), EpochsFile) or EpochsFile()


def mark_retired(directory: str) -> None:
    with contextlib.suppress(OSError), open(os.path.join(directory, RETIRED), "wb"):  # without it a rebuilt cluster has a broker more, which is empty
        pass


def mark_in_use(directory: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(directory, RETIRED))


def _replace(path: str, contents: msgspec.Struct, sync: bool) -> None:
    data = msgspec.json.encode(contents)
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        if file.read() == data:
            return
    fd = os.open(path + ".tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, data)
        if sync:
            os.fdatasync(fd)
    finally:
        os.close(fd)
    os.replace(path + ".tmp", path)


def _read(path: str, kind: type[_File]) -> _File | None:
    try:
        with open(path, "rb") as file:
            return msgspec.json.decode(file.read(), type=kind)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


# --- reading them back -------------------------------------------------------------------------------------------------


def scan(data_dirs: Sequence[str]) -> list[Broker]:
    found = []
    for data in data_dirs:
        for entry in sorted(os.listdir(data)) if os.path.isdir(data) else ():
            role, _, number = entry.partition("-")
            directory = os.path.join(data, entry)
            retired = os.path.exists(os.path.join(directory, RETIRED))
            if role == "broker" and number.isdecimal() and os.path.isdir(directory) and not retired:
                found.append(_broker(int(number), directory))
    known = {b.directory for b in found}
    newest = max((b.epochs for b in found), key=lambda epochs: epochs.view_version, default=EpochsFile())
    return found + [_broker(id, directory) for id, directory in sorted(newest.elsewhere.items()) if directory not in known and os.path.isdir(directory)]


def owner(directory: str) -> bytes:
    """The id of the cluster that a broker's directory belongs to; b"": it says none."""
    with contextlib.suppress(OSError, ValueError), open(os.path.join(directory, LOCK)) as file:
        return bytes.fromhex(file.read(64).strip())
    return b""


def _broker(id: int, directory: str) -> Broker:
    partitions, unclear = [], []
    for entry in sorted(os.listdir(directory)):
        path = os.path.join(directory, entry)
        if not os.path.isdir(path) or entry.endswith(".deleted"):
            continue
        partition = _partition(directory, entry)
        if partition is None:
            unclear.append(path)
        else:
            partitions.append(partition)
    return Broker(id, directory, owner(directory), read_epochs(directory), tuple(partitions), tuple(unclear))


def _partition(broker_directory: str, entry: str) -> Partition | None:
    """None: neither its file nor its name and its logs say what it is. What is believed leads back to this very directory."""
    path = os.path.join(broker_directory, entry)
    head, _, id_hex = entry.rpartition("-")
    name, _, number = head.rpartition("-")
    if not number.isdecimal():
        return None
    file = _read(os.path.join(path, TOPIC), TopicFile)
    if file is None or not _is_id(file.topic_id):
        topic_id = _id_of_logs(path) or id_hex  # 8 digits of it if there is no log yet: rebuilding completes them
        file = TopicFile(name.replace("~", "/"), topic_id, 0, {})
    if not file.topic_id.startswith(id_hex[:8]) or not _is_id(file.topic_id.ljust(32, "0")):
        return None
    if m.partition_directory(broker_directory, file.name, int(number), bytes.fromhex(file.topic_id.ljust(32, "0"))) != path:
        return None
    # From the names <base>-<leader epoch>.log.
    epochs = [entry[:-4].rpartition("-")[2] for entry in os.listdir(path) if entry.endswith(".log")]
    return Partition(path, file, int(number), max((int(e) for e in epochs if e.isdecimal()), default=0), os.stat(path).st_mtime_ns)


def _is_id(text: str) -> bool:
    try:
        return len(bytes.fromhex(text)) == 16
    except ValueError:
        return False


def _id_of_logs(directory: str) -> str:
    facts = ffi.new("sl_file_facts *")
    for entry in sorted(os.listdir(directory)):
        if entry.endswith(".log") and lib.sl_file_inspect(os.fsencode(directory), os.fsencode(entry), facts) == lib.SL_OK:
            return bytes(facts.topic_id).hex()
    return ""
