"""Producers and consumers in several processes on one log."""

from __future__ import annotations

import multiprocessing
import os
import signal
import struct
import time
from typing import Any

import numpy as np

from shmlog import Consumer, Producer, TopicPartition

SPAWN = multiprocessing.get_context("spawn")


def produce(p: Producer, me: int, n: int) -> None:
    """In a child: the Producer came as a recipe and was opened here."""
    for i in range(n):
        if i % 10 == 9:
            p.send_many("t", np.array([(me, i), (me, i)], "<u4"), partition=0)
        elif i % 10 == 8:
            with p.loan("t", nbytes=8 + i % 3000, partition=0) as loan:
                struct.pack_into("=II", loan.array, 0, me, i)
        else:
            p.send("t", struct.pack("=II", me, i) + bytes(i % 500), partition=0)
    p.close()


def consume(c: Consumer, n: int, out: Any) -> None:
    seen = []
    for r in c:
        seen.append((r.offset, *struct.unpack_from("=II", r.value)))
        if len(seen) == n:
            break
    out.put(seen)
    out.close()
    out.join_thread()


def test_all_processes_see_one_order_with_each_producers_order_in_it(here: Any) -> None:
    n, each = 3, 1000
    p = here.producer()
    here.topic("t")
    c = here.consumer("t", consumer_timeout_ms=30_000)
    total = n * (each + each // 10)
    out: Any = SPAWN.Queue()
    readers = [SPAWN.Process(target=consume, args=(c, total, out)) for _ in range(2)]
    writers = [SPAWN.Process(target=produce, args=(p, me, each)) for me in range(n)]
    for process in [*readers, *writers]:
        process.start()
    mine = []
    for r in c:
        mine.append((r.offset, *struct.unpack_from("=II", r.value)))
        if len(mine) == total:
            break
    others = [out.get(timeout=30) for _ in readers]
    for process in [*readers, *writers]:
        process.join(30)
        assert process.exitcode == 0
    out.close()
    assert [offset for offset, _, _ in mine] == list(range(total))
    assert others == [mine, mine]
    for me in range(n):
        order = [i for _, who, i in mine if who == me]
        assert order == sorted(order)
        assert len(order) == each + each // 10


def forever(p: Producer, me: int) -> None:
    i = 0
    while True:
        p.send("t", struct.pack("=II", me, i) + b"x" * (i % 700), partition=0)
        i += 1


def test_killed_producers_leave_whole_records_and_hinder_nobody(here: Any) -> None:
    p = here.producer(acks=1)
    here.topic("t")
    processes = []
    for round_ in range(4):
        process = SPAWN.Process(target=forever, args=(p, round_))
        process.start()
        processes.append(process)
    c = here.consumer("t", consumer_timeout_ms=10_000)
    seen: dict[int, int] = {}
    end = time.monotonic() + 30
    for r in c:
        me, i = struct.unpack_from("=II", r.value)
        assert r.value[8:] == b"x" * (i % 700)
        assert i == seen.get(me, -1) + 1
        seen[me] = i
        if len(seen) == 4 and min(seen.values()) > 200:
            break
        assert time.monotonic() < end
    for process in processes:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join(10)
    last = p.send("t", b"\xff" * 8).offset
    for r in c:
        me, i = struct.unpack_from("=II", r.value)
        if r.offset == last:
            break
        assert r.value[8:] == b"x" * (i % 700)
        assert i == seen[me] + 1
        seen[me] = i
    assert c.position(TopicPartition("t", 0)) == last + 1
