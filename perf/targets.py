"""The targets: what the design promises of each figure, as ratios inside one run, and whether this run meets them.

A row has *checks*, each a figure of ours against a figure of a peer (or a plain number) with a limit. `least` must hold, `goal` is what we want.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .words import number, quantity, times

Value = float | None


class Figures:
    """Medians of a run's cells, by question, the beginning of the case, and the candidate."""

    def __init__(self, cells: list[dict[str, Any]]) -> None:
        self.cells = cells

    def all(self, question: str, case: str, peer: str, figure: str) -> dict[str, float]:
        """{case: median}"""
        return {
            c["case"]: c["figures"][figure]["median"]
            for c in self.cells
            if c["question"] == question and c["peer"] == peer and case in c["case"] and figure in c["figures"]
        }

    def __call__(self, question: str, case: str, peer: str, figure: str = "") -> Value:
        figure = figure or ("p50_us" if question in ("latency", "paced") else "records_per_s")
        return next(iter(self.all(question, case, peer, figure).values()), None)


def check(level: str, text: str, ours: Value, other: Value, limit: float, at_most: bool) -> dict[str, Any]:
    ratio = ours / other if ours is not None and other else None
    met = None if ratio is None else (ratio <= limit if at_most else ratio >= limit)
    return {"level": level, "against": text, "ratio": ratio, "limit": limit, "at_most": at_most, "met": met}


def up_to(level: str, limit: float, text: str, ours: Value, other: Value) -> dict[str, Any]:
    return check(level, text, ours, other, limit, True)


def at_least(level: str, limit: float, text: str, ours: Value, other: Value) -> dict[str, Any]:
    return check(level, text, ours, other, limit, False)


def row(what: str, ours: Value, unit: str, *checks: dict[str, Any]) -> dict[str, Any]:
    def verdict_of(level: str) -> bool | None:
        each = [c["met"] for c in checks if c["level"] == level]
        known = [m for m in each if m is not None]
        return None if not known else all(known)

    least, goal = verdict_of("least"), verdict_of("goal")
    if ours is None or (least is None and goal is None):
        verdict = "not measured"
    elif least is False:
        verdict = "missed"
    elif goal and all(c["met"] is not None for c in checks):
        verdict = "goal met"
    elif least is None:
        verdict = "goal met" if goal else "goal missed"
    else:
        verdict = "met"
    return {
        "what": what,
        "value": ours,
        "unit": unit,
        "shown": "–" if ours is None else quantity(ours, unit),
        "checks": list(checks),
        "verdict": verdict,
    }


def best(f: Figures, question: str, case: str, figure: str = "") -> Value:
    """The minimal ring behind the extension, else behind cffi."""
    found = f(question, case, "minimal ring (fastcall)", figure)
    return found if found is not None else f(question, case, "minimal ring (cffi)", figure)


def rows(f: Figures, ours: str = "shmlog") -> Iterator[dict[str, Any]]:
    """ours: the name of the peer that is shmlog with one binding."""
    cloudtoid, zmq = "cloudtoid-interprocess", "pyzmq ipc"
    memory = "shmlog, memory topic"

    v = f("latency", "64 B, both polling", ours)
    zmq_40 = f("latency", "64 B, both polling", zmq)
    yield row(
        "Python, 64 B ping-pong, both polling, p50", v, "us",
        up_to("least", 1.0, "cloudtoid", v, f("latency", "64 B, both polling", cloudtoid)),
        up_to("least", 1.0, "kickmsg", v, f("latency", "64 B, both polling", "kickmsg")),
        up_to("goal", 1.3, "the minimal ring", v, best(f, "latency", "64 B, both polling")),
        up_to("goal", 1 / 40, "pyzmq", v, zmq_40),
    )  # fmt: skip
    v = f("rate", "100 B", ours)
    yield row(
        "Python, 100 B, one a call, lossless", v, "/s",
        at_least("least", 1.0, "cloudtoid", v, f("rate", "100 B", cloudtoid)),
        at_least("goal", 0.7, "the minimal ring", v, best(f, "rate", "100 B")),
    )  # fmt: skip
    v = f("paced", "10 k/s, receiver sleeping", ours)
    yield row(
        "Python, sleeping receiver, 10 k/s open loop, p50", v, "us",
        up_to("least", 0.4, "pyzmq", v, f("paced", "10 k/s, receiver sleeping", zmq)),
        up_to("goal", 1.1, "a bare futex wake", v, f("core", "wake", "bare futex (C)", "p50_us")),
    )  # fmt: skip
    for name, words in ((ours, "Records out"), (f"{ours}, views", "views out")):
        v = f("batch", "500 x 100 B", name)
        yield row(
            f"Python, 500 × 100 B a call, {words}", v, "/s",
            at_least("least", 3.0, "cloudtoid batch", v, f("batch", "500 x 100 B", cloudtoid)),
            at_least("least", 7.0, "faster-fifo", v, f("batch", "500 x 100 B", "faster-fifo")),
            at_least("goal", 0.6, "the minimal ring batched", v, best(f, "batch", "500 x 100 B")),
            at_least("goal", 90.0, "Redis pipelined", v, f("batch", "500 x 100 B", "Redis Streams")),
        )  # fmt: skip
    v, off = f("batch", "500 x 100 B", ours), f("batch", "500 x 100 B", memory)
    yield row(
        "the same with spill to disk, against without", v, "/s", at_least("least", 0.5, "spill off", v, off), at_least("goal", 0.8, "spill off", v, off)
    )
    v, redis = f("durable", "500 x 100 B", "shmlog, acks=disk"), f("durable", "500 x 100 B", "Redis aof always")
    yield row(
        "the same with acks=disk, each batch awaited", v, "/s",
        at_least("least", 3.0, "Redis aof always, pipelined", v, redis), at_least("goal", 20.0, "Redis aof always, pipelined", v, redis),
    )  # fmt: skip

    v, lines = f("core", "64 B", "shmlog (C)", "p50_us"), f("core", "64 B", "two cache lines", "p50_us")
    yield row(
        "C, 64 B ping-pong, one way, p50", v, "us", up_to("least", 3.0, "two cache lines", v, lines), up_to("goal", 1.5, "two cache lines", v, lines)
    )
    v = f("core", "100 B, one an append", "shmlog (C)")
    yield row(
        "C, one producer, 100 B, one an append", v, "/s",
        at_least("least", 1.0, "12 M/s", v, 12e6), at_least("goal", 0.5, "the minimal ring", v, f("core", "100 B, one an append", "minimal ring (C)")),
    )  # fmt: skip
    v = f("core", "32 x 100 B", "shmlog (C)")
    yield row(
        "C, one producer, batches of 32", v, "/s",
        at_least("least", 1.0, "12 M/s", v, 12e6), at_least("goal", 0.5, "the minimal ring", v, f("core", "32 x 100 B", "minimal ring (C)")),
    )  # fmt: skip
    nobody = "100 B appends, nobody reads"
    v, claim = f("core", nobody, "shmlog (C), two on one partition"), f("core", nobody, "bare claim, two")
    yield row("C, two producers on one partition", v, "/s", at_least("least", 0.5, "two that claim and copy", v, claim),
              at_least("goal", 0.8, "two that claim and copy", v, claim))  # fmt: skip
    v, one = f("core", nobody, "shmlog (C), two on two partitions"), f("core", nobody, "shmlog (C), one producer")
    yield row("C, two producers on two partitions", v, "/s", at_least("goal", 1.6, "one producer", v, one))

    case, fig = "1 MiB, in place", "gb_per_s"
    on, off, iox = f("large", case, ours, fig), f("large", case, memory, fig), f("large", case, "iceoryx2", fig)
    yield row("1 MiB numpy through a loan, every byte, spill off", off, "GB/s", at_least("least", 1.0, "iceoryx2", off, iox),
              at_least("goal", 0.9, "two memory passes", off, f("large", case, "bare shared memory", fig)))  # fmt: skip
    yield row("the same, spill on", on, "GB/s", at_least("least", 1.0, "iceoryx2", on, iox), at_least("goal", 0.8, "spill off", on, off))
    mine, theirs = f.all("large", "hand-off", memory, "hand_off_us"), f.all("large", "hand-off", "iceoryx2", "hand_off_us")
    worst = max(((mine[c] / theirs[c], c) for c in mine if theirs.get(c)), default=None)
    cpu = [x for name in ("send_cpu_us", "receive_cpu_us") for x in f.all("large", "hand-off", memory, name).values()]
    yield row(
        "the same, a hand-off alone, the slowest size", max(mine.values(), default=None), "us",
        up_to("least", 1.0, f"iceoryx2's loan ({worst[1].partition(',')[0]})" if worst else "iceoryx2's loan", worst[0] if worst else None, 1.0),
        up_to("goal", 1.0, "2 µs CPU a side", max(cpu, default=None), 2.0),
    )  # fmt: skip
    v = f("large", "1 MiB, copied", f"{memory}, views")
    yield row(
        "1 MiB copied in, view out", v, "/s",
        at_least("least", 2.0, "pyzmq", v, f("large", "1 MiB, copied", zmq)),
        at_least("goal", 0.95, "the minimal ring", v, best(f, "large", "1 MiB, copied")),
    )  # fmt: skip
    for case, words in (("one at a time", "one at a time"), ("500 x", "500 together")):
        v = f("durable", case, "shmlog, acks=disk")
        yield row(
            f"acks=disk, {words}", v, "/s",
            *(
                at_least(level, limit, name, v, f("durable", case, name))
                for level, limit in (("least", 1.0), ("goal", 2.0))
                for name in ("sqlite3 (WAL)", "LMDB")
            ),
        )  # fmt: skip

    from .weight import PROMISED

    for name, promised in PROMISED.items():
        if promised is None:
            continue
        v = f("weight", "one broker", "shmlog", name)
        text, unit = name.rpartition("_")[::2]
        unit = {"ms": "ms", "mib": "MiB", "kib": "KiB", "percent": "%", "up": "KiB"}.get(unit, unit)
        words = "/dev/shm after up" if name == "shm_kib_after_up" else text.replace("_", " ")
        promise = f"{number(promised).strip()} {unit}"
        yield row(f"Weight: {words}", v, unit, up_to("least", 1.0, promise, v, promised), up_to("goal", 0.5, promise, v, promised))

    for figure, words in (("append_us", "append"), ("read_us", "read")):
        small = f("growth", "100 B", "small", figure)
        for cell in f.cells:
            if cell["question"] == "growth" and cell["peer"] != "small":
                v = f("growth", "100 B", cell["peer"], figure)
                yield row(
                    f"Growth: {words}, {cell['peer']}",
                    v,
                    "us",
                    up_to("least", 1.5, "the small case", v, small),
                    up_to("goal", 1.1, "the small case", v, small),
                )
    for cell in f.cells:
        if cell["question"] == "faults" and "restart" in cell["case"]:
            v, allowed = (f("faults", "restart", cell["peer"], name) for name in ("restart_ms", "allowed_ms"))
            text = "50 ms + 1 ms a MiB"
            yield row(
                f"kill -9 of the broker, until on the disk again, {cell['peer']}",
                v,
                "ms",
                up_to("least", 1.0, text, v, allowed),
                up_to("goal", 0.5, text, v, allowed),
            )
    v, failed = f("faults", "feed", "broker killed", "longest_gap_ms"), f("faults", "feed", "broker killed", "failed_sends")
    yield row(
        "kill -9 of every broker under 10 k/s: longest gap", v, "ms",
        up_to("least", 1.0, "no failed send", None if failed is None else failed + 1, 1.0),
        up_to("goal", 1.25, "undisturbed", v, f("faults", "feed", "undisturbed", "longest_gap_ms")),
    )  # fmt: skip


def table(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    f = Figures(cells)
    found = list(rows(f))
    if f("latency", "64 B", "shmlog (cffi)") is not None or f("rate", "100 B", "shmlog (cffi)") is not None:
        found[4:4] = [r | {"what": f"{r['what']} (cffi only)"} for r in list(rows(f, "shmlog (cffi)"))[:4]]
    return found


def together(checks: list[dict[str, Any]]) -> list[tuple[tuple[str, str], list[dict[str, Any]]]]:
    """Checks against the same, in one: ((ratio, against), [checks])."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for c in checks:
        if c["ratio"] is not None:
            found.setdefault((times(c["ratio"]), c["against"]), []).append(c)
    return list(found.items())


def limit(c: dict[str, Any]) -> str:
    return f"{'≤' if c['at_most'] else '≥'} {c['limit']:.3g}"
