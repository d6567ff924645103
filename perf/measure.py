"""The measurements that questions are made of: each runs one round of one peer and returns its figures.

Figures: p50_us and so on from histograms of raw nanoseconds; records_per_s counts what arrived, from the first send until the last is in the
receiver's hand.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import histogram
from .harness import Round, cores, started, together
from .harness import core as nth
from .peers import Peer, Task

MOST = {"latency": 1_000_000, "stream": 50_000_000, "loans": 5_000_000, "commits": 500_000}
MEMORY_BYTES = 2 << 30  # no round sends more than this: what is not read yet may have to be kept


def latencies(figures: dict[str, float], values_ns: np.ndarray[Any, Any]) -> str:
    made = histogram.make(values_ns)
    for name, share in (("p50_us", 0.5), ("p90_us", 0.9), ("p99_us", 0.99), ("p999_us", 0.999)):
        if len(values_ns) * (1 - share) >= 1:
            figures[name] = histogram.at(made, share) / 1e3
    return histogram.encode(made)


def pingpong(kind: type[Peer], value_bytes: int, seconds: float, wait: str = "spin") -> Round:
    with started(kind(Task(value_bytes, channels=2, wait=wait))) as peer:
        most = min(MOST["latency"], MEMORY_BYTES // max(1, value_bytes))
        warm = 5 if value_bytes >= 1 << 20 else 200 if seconds > 0.1 else 20
        (ping, _), noise = together(peer, [
            ("ping", {"core": nth(0), "seconds": seconds, "most": most, "warm": warm}),
            ("echo", {"core": nth(1)}),
        ])  # fmt: skip
    figures = {"round_trips": float(ping["n"])}
    text = latencies(figures, ping["latencies_ns"])
    return noise.into(Round(figures, text))


def stream(kind: type[Peer], value_bytes: int, seconds: float, batch: int = 1, senders: int = 1, receivers: int = 1, channels: int = 1) -> Round:
    task = Task(value_bytes, channels=channels, batch=batch, senders=senders, receivers=receivers)
    most = max(batch, min(MOST["stream"], MEMORY_BYTES // max(1, value_bytes)) // senders)
    polled = senders + receivers <= len(cores())  # more processes than cores: the scheduler places them
    ends: list[tuple[str, dict[str, Any]]] = []
    with started(kind(task)) as peer:
        for i in range(senders):
            mine = list(range(channels)) if channels > 1 else [0]
            options = {"core": nth(i) if polled else None, "seconds": seconds, "most": most, "batch": batch, "channels": mine, "warm_s": seconds / 2}
            ends.append(("source", options))
        for i in range(receivers):
            mine = list(range(i, channels, receivers))
            options = {"core": nth(senders + i) if polled else None, "batch": batch, "channels": mine, "warm_s": seconds / 2}
            ends.append(("sink", options | {"ends": senders * len(mine)}))
        results, noise = together(peer, ends)
    sources, sinks = results[:senders], results[senders:]
    sent, received = sum(r["sent"] for r in sources), sum(r["received"] for r in sinks)
    last_ns = max(r["last_ns"] for r in sinks)
    if all(r.get("count_ns") for r in sinks):
        rate = (received - sum(r["count_n"] for r in sinks)) / (last_ns - min(r["count_ns"] for r in sinks)) * 1e9
    else:  # it was too short, or lost the mark; or an end of its own that was warm before
        rate = received / (last_ns - min(r["begin_ns"] for r in sources)) * 1e9
    figures = {
        "records_per_s": rate,
        "mb_per_s": rate * value_bytes / 1e6,
        "sent_per_s": sent / (max(r["end_ns"] for r in sources) - min(r["begin_ns"] for r in sources)) * 1e9,
        "lost_percent": 100 * (sent - received) / sent if sent else 0.0,
        "send_cpu_us": 1e6 * sum(r["cpu_s"] for r in sources) / max(1, sent),
        "receive_cpu_us": 1e6 * sum(r["cpu_s"] for r in sinks) / max(1, received),
    }
    return noise.into(Round(figures))


def open_loop(kind: type[Peer], value_bytes: int, gaps_ns: np.ndarray[Any, Any], wait: str, sizes: list[int] | None = None) -> Round:
    """Latency from the intended time of each record to its being in hand: a sender that is late does not make the latency look better."""
    with started(kind(Task(max(8, value_bytes), wait=wait))) as peer:
        (clock, watch), noise = together(peer, [
            ("clock", {"core": nth(0), "gaps_ns": gaps_ns, "sizes": sizes}),
            ("watch", {"core": nth(1), "most": len(gaps_ns)}),
        ])  # fmt: skip
    n = len(gaps_ns)
    figures = {
        "late_percent": 100 * clock["late"] / n,
        "lost_percent": 100 * (n - watch["received"]) / n,
        "receive_cpu_percent": 100 * watch["cpu_s"] / watch["wall_s"],
    }
    figures["records_per_s"] = watch["received"] / ((watch["last_ns"] - clock["begin_ns"]) / 1e9)
    figures["mb_per_s"] = watch["nbytes"] / ((watch["last_ns"] - clock["begin_ns"]) / 1e9) / 1e6
    text = latencies(figures, watch["latencies_ns"])
    return noise.into(Round(figures, text))


def loans(kind: type[Peer], value_bytes: int, seconds: float, touch: bool) -> Round:
    """Values written and read in place: every byte of them, or (touch=False) the hand-off alone."""
    most = min(MOST["loans"], max(64, (8 << 30) // value_bytes)) if touch else MOST["loans"]
    with started(kind(Task(value_bytes))) as peer:
        (lender, borrower), noise = together(peer, [
            ("lender", {"core": nth(0), "seconds": seconds, "most": most, "touch": touch}),
            ("borrower", {"core": nth(1), "touch": touch}),
        ])  # fmt: skip
    n = borrower["received"]
    rate = n / ((borrower["last_ns"] - lender["begin_ns"]) / 1e9)
    figures = {
        "records_per_s": rate,
        "gb_per_s": rate * value_bytes / 1e9,
        "hand_off_us": 1e6 / rate if rate else 0.0,
        "send_cpu_us": 1e6 * lender["cpu_s"] / max(1, lender["sent"]),
        "receive_cpu_us": 1e6 * borrower["cpu_s"] / max(1, n),
        "lost_percent": 100 * (lender["sent"] - n) / max(1, lender["sent"]),
    }
    return noise.into(Round(figures))


def commits(kind: type[Peer], value_bytes: int, seconds: float, batch: int) -> Round:
    with started(kind(Task(value_bytes, batch=batch))) as peer:
        (done,), noise = together(peer, [("committer", {"core": nth(0), "seconds": seconds, "most": MOST["commits"], "batch": batch})])
    figures = {"records_per_s": done["sent"] / ((done["end_ns"] - done["begin_ns"]) / 1e9)}
    text = latencies(figures, done["latencies_ns"])
    return noise.into(Round(figures, text))
