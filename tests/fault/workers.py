"""Programs that a fault test starts, kills and starts again; each writes a history and a ledger, as those of shmlog.testing.workload do."""

from __future__ import annotations

import sys
import time
import zlib
from pathlib import Path

from shmlog.testing.history import History, value_id
from shmlog.testing.workload import NOTE, VALUE_BYTES, Ledger, consume, history_of


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
            ledger.add(1, end - begin)
    ledger.finish()


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
            ledger.add(1, 0)
    ledger.finish()


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    {"produce": produce, "consume": consume, "race": race}[name](*[int(a) if a.isdigit() else a for a in arguments])
