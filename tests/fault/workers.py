"""Programs that a fault test starts, kills and starts again. Each keeps its ledger in a mapped file, so that kill -9 takes nothing of it.

A ledger is four little-endian u64: operations acknowledged, longest wait of one in ns, failures, finished (1).
"""

from __future__ import annotations

import mmap
import struct
import sys
import time
from pathlib import Path

LEDGER = struct.Struct("<4Q")
NOTE = struct.Struct("<QQ")  # producer, sequence: the first bytes of each value
VALUE_BYTES = 100


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

    ledger = Ledger(Path(ledger_path))
    filler = bytes(VALUE_BYTES - NOTE.size)
    with Producer(bootstrap_servers=address, acks=1) as producer:
        for sequence in range(count):
            value = NOTE.pack(producer_id, sequence) + filler
            begin = time.monotonic_ns()
            try:
                producer.send(topic, value, partition=0).result(timeout=60)
            except Exception as error:
                ledger.fail()
                print(f"producer {producer_id}: {error!r}", file=sys.stderr, flush=True)
                raise
            ledger.acknowledge(sequence + 1, time.monotonic_ns() - begin)
    ledger.finish()


def consume(address: str, topic: str, ledger_path: str) -> None:
    """Reads from the start for ever, checking that offsets are dense and each producer's records in order."""
    from shmlog import Consumer

    ledger = Ledger(Path(ledger_path))
    last: dict[int, int] = {}
    consumer = Consumer(topic, bootstrap_servers=address, auto_offset_reset="earliest")
    for offset, record in enumerate(consumer):
        producer_id, sequence = NOTE.unpack_from(record.value)
        before = last.get(producer_id, -1)
        if record.offset != offset or sequence != before + 1:
            ledger.fail()
            print(f"consumer: offset {record.offset} (not {offset}), producer {producer_id}: {sequence} after {before}", file=sys.stderr, flush=True)
            sys.exit(1)
        last[producer_id] = sequence
        ledger.acknowledge(offset + 1, 0)


def race(address: str, topic: str, ledger_path: str, racer: int, count: int) -> None:
    """Appends with expected_offset until `count` offsets are taken; notes how many it won."""
    from shmlog import Producer
    from shmlog.errors import OffsetConflictError

    ledger = Ledger(Path(ledger_path))
    won, expected = 0, 0
    with Producer(bootstrap_servers=address, acks=1) as producer:
        while expected < count:
            try:
                delivery = producer.send(topic, NOTE.pack(racer, expected), partition=0, expected_offset=expected)
            except OffsetConflictError as conflict:
                expected = max(expected + 1, conflict.log_end_offset or 0)
                continue
            assert delivery.offset == expected, f"won {expected} and got {delivery.offset}"
            won += 1
            expected += 1
            ledger.acknowledge(won, 0)
    ledger.finish()


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    {"produce": produce, "consume": consume, "race": race}[name](*[int(a) if a.isdigit() else a for a in arguments])
