"""Programs that are killed, stopped and started again while they use a cluster: `python -m shmlog.testing.workload ROLE ...`.

Each writes a history of what it did and saw, and a ledger of figures for others to look at, in mapped files, so that kill -9 takes nothing of them:
the kernel has the bytes. It ends with the process that started it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shmlog.testing.history import DURABLE, END, HIGH, START, History, value_id
from shmlog.testing.waiting import until

LEDGER = struct.Struct("<4Q")  # operations done, longest of one in ns, failures, finished (1)
NOTE = struct.Struct("<QQ")  # producer, sequence: the first bytes of each value
VALUE_BYTES = 100
PAUSE_S = 0.01  # between two batches, so that an hour's history stays one that can be checked
LOOK_EVERY = 500  # records that a consumer reads between two looks at the watermarks
MARKS = {START: "log_start_offset", DURABLE: "durable_offset", HIGH: "high_watermark", END: "log_end_offset"}
RESULT_S = 60.0  # longer than this is a hang

_PR_SET_PDEATHSIG = 1


class Ledger:
    """Four words that one process writes and others read."""

    def __init__(self, path: Path, create: bool = False) -> None:
        if create:
            path.write_bytes(bytes(LEDGER.size))
        with path.open("r+b") as file:
            self._words = memoryview(mmap.mmap(file.fileno(), LEDGER.size)).cast("Q")

    @property
    def done(self) -> int:
        return self._words[0]

    @property
    def longest_ns(self) -> int:
        return self._words[1]

    @property
    def failures(self) -> int:
        return self._words[2]

    @property
    def finished(self) -> bool:
        return bool(self._words[3])

    def add(self, operations: int, took_ns: int) -> None:
        self._words[0] += operations
        self._words[1] = max(self._words[1], took_ns)

    def fail(self) -> None:
        self._words[2] += 1

    def finish(self) -> None:
        self._words[3] = 1


def history_of(ledger: str | Path) -> Path:
    return Path(f"{ledger}.history")


def noted(value: bytes) -> int:
    """Which of all values this is."""
    return value_id(*NOTE.unpack_from(value))


def produce(address: str, topic: str, acks: str, ledger_path: str, producer_id: str, batch: str) -> None:
    """acks: 1, all or disk. Sends batches of records and waits for all acknowledgements of one before the next. A send that failed is of unknown
    outcome, and counted."""
    from shmlog.client.producer import Producer

    ledger, history = Ledger(Path(ledger_path)), History(history_of(ledger_path))
    log, filler, sequence, pause = history.log(topic, 0), bytes(VALUE_BYTES - NOTE.size), 0, threading.Event()
    options: dict[str, Any] = {"acks": int(acks) if acks.isdigit() else acks, "delivery_timeout_ms": RESULT_S * 1000, "max_block_ms": RESULT_S * 1000}
    with Producer(bootstrap_servers=address, **options) as producer:
        while True:
            sent = []
            begin = time.monotonic_ns()
            for _ in range(int(batch)):
                value = NOTE.pack(int(producer_id), sequence) + filler
                token = history.send(log, value_id(int(producer_id), sequence), crc=zlib.crc32(value), disk=acks == "disk", appended=acks == "1")
                sequence += 1
                try:
                    sent.append((token, producer.send(topic, value, partition=0)))
                except Exception as error:
                    ledger.fail()
                    print(f"producer {producer_id} of {topic}: {error!r}", file=sys.stderr, flush=True)
            done = 0
            for token, delivery in sent:
                try:
                    offset = delivery.result(timeout=RESULT_S).offset
                except Exception as error:
                    ledger.fail()
                    print(f"producer {producer_id} of {topic}: {error!r}", file=sys.stderr, flush=True)
                else:
                    history.ok(token, offset)
                    done += 1
            ledger.add(done, time.monotonic_ns() - begin)
            pause.wait(PAUSE_S)


def consume(address: str, topic: str, ledger_path: str) -> None:
    """Reads from the start for ever and looks at the watermarks now and then; what must hold of all that is the checker's. An error ends it: a consumer
    follows a change of leader without one."""
    from shmlog.client.admin import Admin
    from shmlog.client.consumer import Consumer
    from shmlog.types import TopicPartition

    ledger, history = Ledger(Path(ledger_path)), History(history_of(ledger_path))
    log, tp, looked = history.log(topic, 0), TopicPartition(topic, 0), 0
    with Consumer(bootstrap_servers=address) as consumer, Admin(bootstrap_servers=address) as admin:
        consumer.assign([tp])
        consumer.seek(tp, 0)
        history.seek(log, 0)
        while True:
            begin = time.monotonic_ns()
            records = consumer.poll(timeout_ms=1000, max_records=200).get(tp, [])
            end = time.monotonic_ns()
            for record in records:
                history.read(log, record.offset, noted(record.value), begin, end, crc=zlib.crc32(record.value))
            ledger.add(len(records), 0)
            if ledger.done >= looked + LOOK_EVERY:
                looked = ledger.done
                begin = time.monotonic_ns()
                [seen] = admin.describe_topics([topic])[0]["partitions"]
                end = time.monotonic_ns()
                for which, name in MARKS.items():
                    history.mark(log, which, seen[name], begin, end)
                if seen["leader"] is not None:
                    history.leader(log, seen["leader_epoch"], seen["leader"], begin, end)


def read_all(address: str, topic: str, path: Path, identify: Callable[[bytes], int] = noted) -> int:
    """The end of a run: a full read of partition 0, written down in a history at `path` as all that went before. Returns the log's end."""
    from shmlog.client.consumer import Consumer
    from shmlog.types import TopicPartition

    tp = TopicPartition(topic, 0)
    with History(path) as final, Consumer(bootstrap_servers=address) as consumer:
        log, began = final.log(topic, 0), time.monotonic_ns()
        consumer.assign([tp])
        start, end = consumer.beginning_offsets([tp])[tp], consumer.end_offsets([tp])[tp]
        offset = start
        consumer.seek(tp, offset)
        final.seek(log, offset)
        while offset < end:
            begin = time.monotonic_ns()
            records = until(lambda: consumer.poll(timeout_ms=1000, max_records=5000).get(tp), f"records of {topic} from offset {offset} of {end}")
            done = time.monotonic_ns()
            for record in records:
                final.read(log, record.offset, identify(record.value), begin, done, crc=zlib.crc32(record.value))
                offset = record.offset + 1
        final.final(log, start, end, began)
    return int(end)


def end_with(parent: int) -> None:
    """This process is killed when its parent dies, however it does."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the parent ends us


def main(role: str, parent: str, *arguments: str) -> None:
    end_with(int(parent))
    if role == "produce":
        produce(*arguments)
    else:
        consume(*arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
