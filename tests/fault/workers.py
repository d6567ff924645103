"""Programs that a fault test starts, kills and starts again. Each writes a history of what it did and saw, and a ledger of figures for the test
to wait for, in mapped files, so that kill -9 takes nothing of them.

A ledger is four little-endian u64: operations acknowledged, longest wait of one in ns, failures, finished (1).
"""

from __future__ import annotations

import mmap
import struct
import sys
import time
import zlib
from pathlib import Path

from shmlog.testing.history import DURABLE, END, HIGH, START, History, value_id

LEDGER = struct.Struct("<4Q")
NOTE = struct.Struct("<QQ")  # producer, sequence: the first bytes of each value
VALUE_BYTES = 100
LOOK_EVERY = 500  # records that a consumer reads between two looks at the watermarks
MARKS = {START: "log_start_offset", DURABLE: "durable_offset", HIGH: "high_watermark", END: "log_end_offset"}


def history_of(ledger_path: str | Path) -> Path:
    return Path(f"{ledger_path}.history")


class Ledger:
    def __init__(self, path: Path, create: bool = False) -> None:
        if create:
            path.write_bytes(bytes(LEDGER.size))
        with path.open("r+b") as file:
            self._words = memoryview(mmap.mmap(file.fileno(), LEDGER.size)).cast("Q")

    acknowledged = property(lambda self: self._words[0])
    longest_wait_ns = property(lambda self: self._words[1])
    failures = property(lambda self: self._words[2])
    finished = property(lambda self: bool(self._words[3]))

    def acknowledge(self, count: int, waited_ns: int) -> None:
        self._words[0] = count
        if waited_ns > self._words[1]:
            self._words[1] = waited_ns

    def fail(self) -> None:
        self._words[2] += 1

    def finish(self) -> None:
        self._words[3] = 1


def produce(address: str, topic: str, ledger_path: str, producer_id: int, count: int) -> None:
    """Sends `count` records of 100 bytes with acks=1, one a call; each is noted when it is acknowledged."""
    from shmlog import Producer

    ledger, history = Ledger(Path(ledger_path)), History(history_of(ledger_path))
    log = history.log(topic, 0)
    filler = bytes(VALUE_BYTES - NOTE.size)
    with Producer(bootstrap_servers=address, acks=1) as producer:
        for sequence in range(count):
            value = NOTE.pack(producer_id, sequence) + filler
            begin = time.monotonic_ns()
            token = history.send(log, value_id(producer_id, sequence), crc=zlib.crc32(value), begin_ns=begin)
            try:
                offset = producer.send(topic, value, partition=0).result(timeout=60).offset
            except Exception as error:
                ledger.fail()
                print(f"producer {producer_id}: {error!r}", file=sys.stderr, flush=True)
                raise
            end = time.monotonic_ns()
            history.ok(token, offset, end)
            ledger.acknowledge(sequence + 1, end - begin)
    ledger.finish()


def consume(address: str, topic: str, ledger_path: str) -> None:
    """Reads from the start for ever and looks at the watermarks now and then; what must hold of all that is the checker's."""
    from shmlog import Admin, Consumer, TopicPartition

    ledger, history = Ledger(Path(ledger_path)), History(history_of(ledger_path))
    log, tp, count, looked = history.log(topic, 0), TopicPartition(topic, 0), 0, 0
    with Consumer(bootstrap_servers=address) as consumer, Admin(bootstrap_servers=address) as admin:
        consumer.assign([tp])
        consumer.seek(tp, 0)
        history.seek(log, 0)
        while True:
            begin = time.monotonic_ns()
            records = consumer.poll(timeout_ms=1000, max_records=200).get(tp, [])
            end = time.monotonic_ns()
            for record in records:
                history.read(log, record.offset, value_id(*NOTE.unpack_from(record.value)), begin, end, crc=zlib.crc32(record.value))
            count += len(records)
            if count >= looked + LOOK_EVERY:
                looked = count
                begin = time.monotonic_ns()
                [seen] = admin.describe_topics([topic])[0]["partitions"]
                end = time.monotonic_ns()
                for which, name in MARKS.items():
                    history.mark(log, which, seen[name], begin, end)
                if seen["leader"] is not None:
                    history.leader(log, seen["leader_epoch"], seen["leader"], begin, end)
            ledger.acknowledge(count, 0)


def race(address: str, topic: str, ledger_path: str, racer: int, count: int) -> None:
    """Appends with expected_offset until `count` offsets are taken; notes how many it won."""
    from shmlog import Producer
    from shmlog.errors import OffsetConflictError

    ledger, history = Ledger(Path(ledger_path)), History(history_of(ledger_path))
    log = history.log(topic, 0)
    won, tried, expected = 0, 0, 0
    with Producer(bootstrap_servers=address, acks=1) as producer:
        while expected < count:
            value = NOTE.pack(racer, tried)
            token = history.send(log, value_id(racer, tried), crc=zlib.crc32(value))
            tried += 1
            try:
                delivery = producer.send(topic, value, partition=0, expected_offset=expected)
            except OffsetConflictError as conflict:
                history.fail(token)
                expected = max(expected + 1, conflict.log_end_offset or 0)
                continue
            history.ok(token, delivery.offset)
            assert delivery.offset == expected, f"won {expected} and got {delivery.offset}"
            won += 1
            expected += 1
            ledger.acknowledge(won, 0)
    ledger.finish()


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    {"produce": produce, "consume": consume, "race": race}[name](*[int(a) if a.isdigit() else a for a in arguments])
