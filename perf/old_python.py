"""What does a record cost from Python: one a call, and in batches, against the same minimal ring behind cffi?

Producer and consumer are two processes, pinned when they poll. Rows: default topic (spilling to disk) and memory-only topic (tethered, lossless).
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from perf.harness import rounds

ROOT = Path(__file__).parent.parent


def ring_module() -> Any:
    """The minimal ring behind cffi, compiled once into build/perf."""
    import importlib.util

    import cffi

    directory = ROOT / "build" / "perf"
    directory.mkdir(parents=True, exist_ok=True)
    ffi = cffi.FFI()
    ffi.cdef("""
        typedef struct { ...; } ring;
        int put(ring *r, const char *data, uint32_t bytes);
        int64_t get(ring *r, uint64_t *position, char *out);
        int64_t get_many(ring *r, uint64_t *position, int64_t n, char *out);
    """)
    ffi.set_source(
        "minimal_ring_cffi",
        """
        #include "minimal_ring.h"
        static int put(ring *r, const char *data, uint32_t bytes) { return ring_put(r, data, bytes); }
        static int64_t get(ring *r, uint64_t *position, char *out) {
            const uint8_t *data; int64_t n = ring_get(r, position, &data);
            if (n >= 0) { memcpy(out, data, (size_t)n); ring_release(r, *position); }
            return n;
        }
        static int64_t get_many(ring *r, uint64_t *position, int64_t n, char *out) {
            int64_t done = 0; const uint8_t *data; int64_t bytes;
            while (done < n && (bytes = ring_get(r, position, &data)) >= 0) { memcpy(out, data, (size_t)bytes); out += bytes; done++; }
            ring_release(r, *position);
            return done;
        }
        """,
        include_dirs=[str(ROOT / "perf")],
        extra_compile_args=["-O2"],
    )
    path = ffi.compile(tmpdir=str(directory))
    spec = importlib.util.spec_from_file_location("minimal_ring_cffi", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class RingEnd:
    def __init__(self, memory: Any, tx: int, rx: int, value_bytes: int) -> None:
        self.module = sys.modules["minimal_ring_cffi"]
        ffi = self.module.ffi
        ring_bytes = ffi.sizeof("ring")
        self._memory = ffi.from_buffer(memory)
        self._tx = ffi.cast("ring *", self._memory + tx * ring_bytes)
        self._rx = ffi.cast("ring *", self._memory + rx * ring_bytes)
        self._position = ffi.new("uint64_t *")
        self._out = ffi.new("char[]", value_bytes)
        self._buffer = ffi.buffer(self._out)
        self._put, self._get = self.module.lib.put, self.module.lib.get
        self._value_bytes = value_bytes

    def send(self, value: bytes) -> None:
        while not self._put(self._tx, value, self._value_bytes):
            pass

    def receive(self) -> bytes:
        while self._get(self._rx, self._position, self._out) < 0:
            pass
        return self._buffer[:]


class ShmlogEnd:
    def __init__(self, address: str, tx: str, rx: str) -> None:
        from shmlog import Consumer, Producer, TopicPartition

        self.producer = Producer(bootstrap_servers=address, acks=1)
        self.consumer = Consumer(bootstrap_servers=address, wait="spin", auto_offset_reset="latest", check_crcs=False)
        tp = TopicPartition(rx, 0)
        self.consumer.assign([tp])
        self.consumer.seek_to_end(tp)
        self.consumer.position(tp)
        self._tx = tx

    def send(self, value: bytes) -> None:
        self.producer.send(self._tx, value, partition=0)

    def receive(self) -> bytes:
        return next(self.consumer).value  # type: ignore[no-any-return]

    def close(self) -> None:
        self.consumer.close()
        self.producer.close()


def pin(core: int) -> None:
    os.sched_setaffinity(0, {core % (os.cpu_count() or 1)})


def pingpong(make: Callable[[int], Any], value_bytes: int, n: int) -> dict[str, float]:
    context = multiprocessing.get_context("fork")
    ready, go = context.Event(), context.Event()

    def echo() -> None:
        pin(1)
        end = make(1)
        ready.set()
        for _ in range(n + n // 10):
            end.send(end.receive())
        if hasattr(end, "close"):
            end.close()

    other = context.Process(target=echo)
    other.start()
    ready.wait(60)
    before = os.sched_getaffinity(0)
    pin(0)
    end = make(0)
    go.set()
    value, took = bytes(value_bytes), []
    for i in range(n + n // 10):
        begin = time.perf_counter_ns()
        end.send(value)
        end.receive()
        if i >= n // 10:
            took.append(time.perf_counter_ns() - begin)
    os.sched_setaffinity(0, before)
    other.join(60)
    if hasattr(end, "close"):
        end.close()
    cuts = statistics.quantiles(took, n=100)
    return {"p50_us": cuts[49] / 2000, "p90_us": cuts[89] / 2000, "p99_us": cuts[98] / 2000}


def one_way(value_bytes: int, n: int, address: str, topic: str, send: str, batch: int = 500) -> dict[str, float]:
    """Records per second until the consumer has them all.

    send: `one` a call and Records out; `records`: send_many and Records; `bytes`: send_many and views.
    """
    from shmlog import Consumer, Producer, TopicPartition

    context = multiprocessing.get_context("fork")
    ready = context.Event()
    done = context.Value("d", 0.0)

    def read() -> None:
        pin(1)
        consumer = Consumer(bootstrap_servers=address, tether=topic.startswith("memory"), check_crcs=False)
        tp = TopicPartition(topic, 0)
        consumer.assign([tp])
        consumer.seek_to_end(tp)
        consumer.position(tp)
        consumer.poll(timeout_ms=0)
        ready.set()
        got = 0
        if send == "bytes":
            for b in consumer.batches(max_records=4096):
                got += len(b.values())
                if got >= n:
                    break
        else:
            while got < n:
                for records in consumer.poll(timeout_ms=1000, max_records=4096).values():
                    got += len(records)
        done.value = time.perf_counter()
        consumer.close()

    other = context.Process(target=read)
    other.start()
    ready.wait(60)
    before = os.sched_getaffinity(0)
    pin(0)
    value = bytes(value_bytes)
    with Producer(bootstrap_servers=address, acks=1) as producer:
        begin = time.perf_counter()
        if send == "one":
            for _ in range(n):
                producer.send(topic, value, partition=0)
        else:
            values = [value] * batch
            for _ in range(n // batch):
                producer.send_many(topic, values, partition=0)
        other.join(300)
    os.sched_setaffinity(0, before)
    return {"records_per_s": n / (done.value - begin)}


def run(n: int) -> dict[str, Any]:
    import mmap

    from shmlog import Admin, Cluster, NewTopic

    module = ring_module()
    sys.modules["minimal_ring_cffi"] = module
    out: dict[str, Any] = {}
    with Cluster() as cluster:
        admin = Admin(bootstrap_servers=cluster.address)
        admin.create_topics([NewTopic(t) for t in ("ping", "pong", "default")])
        admin.create_topics([NewTopic(t, config={"shmlog.spill": "false"}) for t in ("memory",)])
        admin.close()

        def ring_pingpong() -> dict[str, float]:
            memory = mmap.mmap(-1, 2 * module.ffi.sizeof("ring"))
            return pingpong(lambda side: RingEnd(memory, side, 1 - side, 64), 64, 20_000)

        def shmlog_pingpong() -> dict[str, float]:
            topics = ("ping", "pong")
            return pingpong(lambda side: ShmlogEnd(cluster.address, topics[side], topics[1 - side]), 64, 20_000)

        out["pingpong 64 B, one a call, both polling"] = rounds({"shmlog (cffi)": shmlog_pingpong, "minimal ring (cffi)": ring_pingpong}, n)
        for name, topic, send, count in (
            ("100 B one a call, default topic", "default", "one", 200_000),
            ("100 B one a call, memory topic", "memory", "one", 200_000),
            ("500 x 100 B, Records out, default topic", "default", "records", 1_000_000),
            ("500 x 100 B, views out, default topic", "default", "bytes", 2_000_000),
        ):
            out[name] = rounds({"shmlog (cffi)": lambda topic=topic, send=send, count=count: one_way(100, count, cluster.address, topic, send)}, n)
    return out
