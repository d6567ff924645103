"""One end of a measurement: a process of its own (forked off a clean one that was made by exec and has no threads and opened nothing) that plays a
role with a peer's adapter.

A role is a generator with four stops: its receivers are open; its senders are open; its receivers have seen that; here is the result. The harness
lets all ends of a round reach each stop before any goes on (so nobody publishes to a subscriber that is not there yet), and looks at the
machine's noise between the last two.

Records begin with a byte that says what they are: 0, 255 for the last one, or 1 for the one from which a rate is counted (memory that is used for the
first time, buffers that still grow and a process that has just begun come before it). A record of the open loop begins with its *intended* time,
big-endian, whose first byte is 0 for the next two thousand years.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

_PR_SET_PDEATHSIG = 1
END = 255
COUNT = 1
CHECK_EVERY = 32  # sends between two looks at the clock

Role = Iterator[dict[str, Any] | None]


def die_with_parent() -> None:
    """The kernel kills this process when the harness is gone, however it went."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main(connection: Any, peer: Any, role: str, options: dict[str, Any]) -> None:
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the harness ends its processes
    try:
        os.environ.update(peer.environment)
        if options.get("core") is not None:
            os.sched_setaffinity(0, {options["core"]})
        work: Any = peer.role(role, options) or ROLES[role](peer, options)
        for _ in range(3):
            next(work)
            connection.send(("ready", None))
            connection.recv()
        gc.collect()
        gc.freeze()
        before = os.times()
        begin_ns = time.monotonic_ns()
        result = next(work)
        after = os.times()
        assert result is not None
        result.setdefault("cpu_s", after.user + after.system - before.user - before.system)
        result.setdefault("wall_s", (time.monotonic_ns() - begin_ns) / 1e9)
        connection.send(("result", result))
        connection.recv()
        next(work, None)  # it closes what it opened
        connection.send(("closed", None))
    except BaseException as error:
        with contextlib.suppress(OSError):  # nobody is there any more
            if not isinstance(error, EOFError):
                connection.send(("error", traceback.format_exc(limit=-3)))
    os._exit(0)  # some peers leave threads that would keep the process


# --- roles -------------------------------------------------------------------------------------------------------------


def ping(peer: Any, options: dict[str, Any]) -> Role:
    """Sends a record, waits for its echo; half of the way there and back is one latency."""
    receiver = peer.receiver([1])
    yield None
    sender = peer.sender(0)
    yield None
    receiver.connected()
    yield None
    value = bytes(peer.task.value_bytes)
    last = bytes([END]) + value[1:]
    send, receive, now = sender.send, receiver.receive, time.perf_counter_ns
    most = options["most"]
    took = np.zeros(most, np.int64)  # touched before the clock runs
    for _ in range(options["warm"]):
        send(value)
        receive()
    n = 0
    until = now() + int(options["seconds"] * 1e9)
    begin = now()
    while n < most and begin < until:
        begin = now()
        send(value)
        receive()
        took[n] = now() - begin
        n += 1
    send(last)
    receive()
    yield {"latencies_ns": took[:n] // 2, "n": n}
    close(sender, receiver)


def echo(peer: Any, options: dict[str, Any]) -> Role:
    receiver = peer.receiver([0])
    yield None
    sender = peer.sender(1)
    yield None
    receiver.connected()
    yield None
    send, receive = sender.send, receiver.receive
    while True:
        value = receive()
        send(value)
        if value[0] == END:
            break
    yield {}
    close(sender, receiver)


def source(peer: Any, options: dict[str, Any]) -> Role:
    """Sends as fast as it goes for some seconds, one a call or `batch` a call, round robin over its channels; then tells each that this was all."""
    yield None
    senders = [peer.sender(c) for c in options["channels"]]
    yield None
    yield None
    batch, most, size = options["batch"], options["most"], peer.task.value_bytes
    value = bytes(size)
    values, every = [value] * batch, max(1, CHECK_EVERY // batch) if size < 1 << 16 else 1
    n, warm = 0, True
    begin = time.monotonic_ns()
    warm_until = begin + int(options["warm_s"] * 1e9)
    until = warm_until + int(options["seconds"] * 1e9)
    while n < most:
        for sender in senders:
            if batch > 1:
                for _ in range(every):
                    sender.send_many(values)
            else:
                send = sender.send
                for _ in range(every):
                    send(value)
            n += every * batch
        now = time.monotonic_ns()
        if now > until:
            break
        if warm and (now > warm_until or n >= most // 2):
            warm = False
            if batch == 1:  # of batches the receiver can afford to look at the clock
                for sender in senders:
                    sender.send(bytes([COUNT]) + value[1:])
                n += len(senders)
    for sender in senders:
        sender.flush()
    end = time.monotonic_ns()
    for sender in senders:
        sender.send(bytes([END]) + value[1:])
        sender.flush()
    yield {"sent": n, "begin_ns": begin, "end_ns": end}
    close(*senders)


def sink(peer: Any, options: dict[str, Any]) -> Role:
    """Counts what comes on its channels until all senders have said that it was all."""
    receiver = peer.receiver(options["channels"])
    yield None
    yield None
    receiver.connected()
    yield None
    left, n = options["ends"], 0
    count_n, count_ns = 0, 0  # from where the rate counts
    warm_ns, now = int(options["warm_s"] * 1e9), time.monotonic_ns
    if options["batch"] > 1:
        receive_many = receiver.receive_many
        warm_until = 0
        while left > 0:
            values = receive_many()
            n += len(values)
            if not count_ns:
                at = now()
                warm_until = warm_until or at + warm_ns
                if at > warm_until:
                    count_n, count_ns = n, at
            if options["ends"] == 1:
                left -= values[-1][0] == END
            else:
                for value in values:
                    left -= value[0] == END
    else:
        receive = receiver.receive
        while left > 0:
            value = receive()
            n += 1
            if value[0]:
                if value[0] == END:
                    left -= 1
                elif not count_ns:
                    count_n, count_ns = n, now()
    yield {"received": n - options["ends"], "last_ns": now(), "count_n": count_n, "count_ns": count_ns}
    close(receiver)


def clock(peer: Any, options: dict[str, Any]) -> Role:
    """Open loop: record i is due at t0 + gaps[i] whatever became of those before it, and carries that time."""
    yield None
    sender = peer.sender(0)
    yield None
    yield None
    due = np.cumsum(options["gaps_ns"]).tolist()
    sizes = options.get("sizes")
    rest = bytes(max(peer.task.value_bytes, 8) - 8)
    send, now = sender.send, time.monotonic_ns
    begin = now() + 2_000_000
    late = 0
    for i, at in enumerate(due):
        at += begin
        at_bytes = at.to_bytes(8, "big")
        value = at_bytes + (rest if sizes is None else rest[: max(0, sizes[i] - 8)])
        if now() >= at:
            late += 1
        while now() < at:
            pass
        send(value)
    sender.flush()
    end = now()
    time.sleep(0.01)  # after the measured time: a peer that drops when full can empty its queue before the end mark
    sender.send(b"\xff" * 8)
    sender.flush()
    yield {"sent": len(due), "late": late, "begin_ns": begin, "end_ns": end}
    close(sender)


def watch(peer: Any, options: dict[str, Any]) -> Role:
    """How long after its intended time each record is in hand."""
    receiver = peer.receiver([0])
    yield None
    yield None
    receiver.connected()
    yield None
    took = np.zeros(options["most"] + 1, np.int64)
    receive, now, n, nbytes = receiver.receive, time.monotonic_ns, 0, 0
    last, gap = 0, 0
    while True:
        value = receive()
        at = now()
        if value[0] == END:
            break
        if last and at - last > gap:
            gap = at - last
        last = at
        took[n] = at - int.from_bytes(value[:8], "big")
        nbytes += len(value)
        n += 1
    yield {"latencies_ns": took[:n], "received": n, "nbytes": nbytes, "last_ns": last, "longest_gap_ns": gap}
    close(receiver)


def lender(peer: Any, options: dict[str, Any]) -> Role:
    """Writes values in place (every byte of them, or none: then only the hand-off is left)."""
    yield None
    sender = peer.sender(0)
    yield None
    yield None
    nbytes, touch, n = peer.task.value_bytes, options["touch"], 0
    begin = time.monotonic_ns()
    until = begin + int(options["seconds"] * 1e9)
    while n < options["most"] and time.monotonic_ns() < until:
        with sender.loan(nbytes) as array:
            if touch:
                array[:] = n & 127
            else:
                array[0] = 0
        n += 1
    end = time.monotonic_ns()
    with sender.loan(nbytes) as array:
        array[0] = END
    yield {"sent": n, "begin_ns": begin, "end_ns": end}
    close(sender)


def borrower(peer: Any, options: dict[str, Any]) -> Role:
    """Reads values where they lie (every byte of them, or one)."""
    receiver = peer.receiver([0])
    yield None
    yield None
    receiver.connected()
    yield None
    touch, n, total = options["touch"], 0, 0
    while True:
        array = receiver.view()
        if array[0] == END:
            break
        if touch:
            total += int(array.view(np.uint64).sum())
        n += 1
    del array
    yield {"received": n, "last_ns": time.monotonic_ns(), "total": total}
    close(receiver)


def committer(peer: Any, options: dict[str, Any]) -> Role:
    """Sends a record, or `batch` of them, and waits until they are on the disk; again for some seconds."""
    yield None
    sender = peer.sender(0)
    yield None
    yield None
    batch, most = options["batch"], options["most"]
    values = [bytes(peer.task.value_bytes)] * batch
    took = np.zeros(most, np.int64)
    n, now = 0, time.monotonic_ns
    begin = at = now()
    until = begin + int(options["seconds"] * 1e9)
    while n < most and at < until:
        if batch > 1:
            sender.send_many(values)
        else:
            sender.send(values[0])
        sender.flush()
        before, at = at, now()
        took[n] = at - before
        n += 1
    yield {"sent": n * batch, "latencies_ns": took[:n], "begin_ns": begin, "end_ns": at}
    close(sender)


def cost(peer: Any, options: dict[str, Any]) -> Role:
    """What an append and a read cost this one process, by turns of 200."""
    receiver = peer.receiver([0])
    yield None
    sender = peer.sender(0)
    yield None
    yield None
    value, now = bytes(peer.task.value_bytes), time.perf_counter_ns
    send, receive = sender.send, receiver.receive
    until = now() + int(options["seconds"] * 1e9)
    sends: list[float] = []
    receives: list[float] = []
    while now() < until or len(sends) < 3:
        a = now()
        for _ in range(200):
            send(value)
        b = now()
        for _ in range(200):
            receive()
        sends.append((b - a) / 200)
        receives.append((now() - b) / 200)
    yield {"send_ns": float(np.median(sends)), "receive_ns": float(np.median(receives))}
    close(sender, receiver)


def idlers(peer: Any, options: dict[str, Any]) -> Role:
    """Consumers that sleep on a topic on which nothing happens, a thread each."""
    import threading

    from shmlog import Consumer

    consumers = [Consumer("quiet", bootstrap_servers=peer.address, wait="block") for _ in range(options["n"])]
    threads = [threading.Thread(target=c.poll, args=(600_000,), daemon=True) for c in consumers]
    for thread in threads:
        thread.start()
    yield None
    yield None
    yield None
    yield {}  # they go on sleeping until the process is closed


def close(*ends: Any) -> None:
    for end in ends:
        end.close()


ROLES: dict[str, Callable[[Any, dict[str, Any]], Role]] = {
    "ping": ping,
    "echo": echo,
    "source": source,
    "sink": sink,
    "clock": clock,
    "watch": watch,
    "lender": lender,
    "borrower": borrower,
    "committer": committer,
    "cost": cost,
    "idlers": idlers,
}
