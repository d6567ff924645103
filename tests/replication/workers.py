"""A producer in a process of its own, for as long as a test wants; the consumer is that of shmlog.testing.workload."""

from __future__ import annotations

import os
import sys
import time
import zlib
from collections import deque
from pathlib import Path

from shmlog.testing.history import History, value_id
from shmlog.testing.workload import NOTE, VALUE_BYTES, Ledger, history_of

WINDOW = 20  # sends without an acknowledgement


def produce(address: str, topic: str, ledger_path: str, producer_id: int, stop: str) -> None:
    """Sends with acks=all until the file `stop` is there. Any failure ends it: who produces must not notice what the test does."""
    from shmlog import Producer

    ledger, history = Ledger(Path(ledger_path)), History(history_of(ledger_path))
    log = history.log(topic, 0)
    filler = bytes(VALUE_BYTES - NOTE.size)
    sent: deque[tuple[int, object, int]] = deque()
    sequence = 0
    with Producer(bootstrap_servers=address, acks="all") as producer:
        try:
            while sent or not os.path.exists(stop):
                if len(sent) < WINDOW and not os.path.exists(stop):
                    value = NOTE.pack(producer_id, sequence) + filler
                    begin = time.monotonic_ns()
                    token = history.send(log, value_id(producer_id, sequence), crc=zlib.crc32(value), begin_ns=begin)
                    sent.append((token, producer.send(topic, value, partition=0), begin))
                    sequence += 1
                    continue
                token, delivery, begin = sent.popleft()
                offset = delivery.result(timeout=60).offset  # type: ignore[attr-defined]
                end = time.monotonic_ns()
                history.ok(token, offset, end)
                ledger.add(1, end - begin)
        except Exception as error:
            ledger.fail()
            print(f"producer {producer_id}: {error!r}", file=sys.stderr, flush=True)
            raise
    ledger.finish()
