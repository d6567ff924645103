"""What the cluster does right now: rates, lag, latency, memory. From shared memory alone: nobody is asked, nothing is sent, no probe runs.

Rates are differences of offsets between two looks. Latency is the log's own: each reader counts the ages of records it reads (csrc/meter.c), `top`
shows the percentiles of what was added since the look before. Lag is that of readers that have read something; where none has, there is none to show.
"""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from shmlog import config, shm
from shmlog._ffi import ffi, lib
from shmlog.errors import ClosedError
from shmlog.tools import status

BUCKETS = lib.SL_METER_BUCKETS
BOUNDS_NS = [int(lib.sl_meter_bound_ns(b)) for b in range(BUCKETS + 1)]
HISTORY = 24  # intervals of the small curve
CURVE = " ▁▂▃▄▅▆▇█"
WIDE = 120


# --- looking -----------------------------------------------------------------------------------------------------------


class Look:
    """One look at everything; cheap enough for several a second."""

    def __init__(self, attached: status.Attached, address: config.Address) -> None:
        self.ns = time.monotonic_ns()
        self.view = attached.view()
        self.meters: dict[int, list[tuple[tuple[int, int], int, int, list[int]]]] = {}  # block -> (which and whose, position, records, counts)
        for index in range(lib.sl_cluster_meters(attached.handle)):
            meter = lib.sl_cluster_meter(attached.handle, index)
            owner = int(meter.owner)
            if owner:
                seen = ((index, int(meter.claims)), int(meter.position), int(meter.records), ffi.unpack(meter.counts, BUCKETS))
                if (meter.owner, meter.claims) == (owner, seen[0][1]):  # else it changed hands meanwhile, perhaps for another partition's
                    self.meters.setdefault(owner & 0xFFFFFFFF, []).append(seen)
        start = f"{address.namespace}/" if address.namespace else ""
        self.partitions: dict[tuple[str, int], dict[str, Any]] = {}
        for name in sorted(self.view.topics):
            if not name.startswith(start):
                continue
            topic = self.view.topics[name]
            for n, p in enumerate(topic.partitions):
                code, offsets = attached.offsets(p.block)
                words = lib.sl_cluster_partition(attached.handle, p.block)
                if code < 0 or not words:
                    continue
                self.partitions[name[len(start) :], n] = {
                    "block": p.block, "id": topic.topic_id, "start": int(offsets.log_start), "end": int(offsets.end), "durable": int(offsets.durable),
                    "spills": bool(words.flags & lib.SL_PF_SPILL), "spilled_bytes": int(words.spilled_bytes), "shm_bytes": int(words.ring_bytes),
                    "dropped": int(words.dropped_records), "storage": status.STORAGE.get(words.storage_state, "?"),
                }  # fmt: skip
        self.processes = [*status._processes(attached.control, self.view), *status._clients(attached)]
        for process in self.processes:
            process["ticks"], process["rss_bytes"] = _used(process["pid"])
        self.shm_bytes = shm.used_bytes(attached.prefix)
        self.shm_free_bytes = shm.free_bytes()


def _used(pid: int) -> tuple[int, int]:
    """CPU ticks and resident bytes of a process; zeroes when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b") ")[2].split()
        return int(fields[11]) + int(fields[12]), int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0, 0


def percentile_ns(counts: list[int], part: float) -> float | None:
    """The middle of the bucket in which that part of all ages is reached; None without any."""
    total = sum(counts)
    if not total:
        return None
    rank, seen = part * total, 0
    for bucket, count in enumerate(counts):
        seen += count
        if count and seen >= rank:
            return (BOUNDS_NS[bucket] + BOUNDS_NS[bucket + 1]) / 2
    return float(BOUNDS_NS[BUCKETS])


def between(before: Look, now: Look, disk_bytes: int) -> dict[str, Any]:
    """The object of --json: what happened between two looks."""
    seconds = (now.ns - before.ns) / 1e9
    partitions, every = [], [0] * BUCKETS
    for (topic, n), p in now.partitions.items():
        old = before.partitions.get((topic, n))
        if old is None or old["id"] != p["id"]:
            old = {**p, "end": p["start"], "spilled_bytes": 0}  # new since the look before
        known = {which: (records, counts) for which, _, records, counts in before.meters.get(p["block"], [])}
        ages, read, lags = [0] * BUCKETS, 0, []
        for which, position, records, counts in now.meters.get(p["block"], []):
            records_before, counts_before = known.get(which, (0, [0] * BUCKETS))
            read += max(0, records - records_before)
            lags.append(max(0, p["end"] - position))
            ages = [a + max(0, c - b) for a, c, b in zip(ages, counts, counts_before, strict=True)]
        every = [a + b for a, b in zip(every, ages, strict=True)]
        partitions.append(
            {
                "topic": topic, "partition": n, "log_start_offset": p["start"], "log_end_offset": p["end"],
                "appended_per_second": round(max(0, p["end"] - old["end"]) / seconds, 1), "read_per_second": round(read / seconds, 1),
                "spilled_bytes_per_second": round(max(0, p["spilled_bytes"] - old["spilled_bytes"]) / seconds),
                "readers": len(lags), "lag": max(lags) if lags else None, **_latency(ages), "shm_bytes": p["shm_bytes"],
                "not_durable": max(0, p["end"] - max(p["durable"], p["start"])) if p["spills"] else None,
                "dropped_records": p["dropped"], "storage": p["storage"],
            }
        )  # fmt: skip
    ticks = {(q["pid"], q["role"]): q["ticks"] for q in before.processes}
    hertz = os.sysconf("SC_CLK_TCK")
    processes = [
        {
            "role": q["role"], "id": q["id"], "pid": q["pid"], "state": q["state"], "rss_bytes": q["rss_bytes"],
            "cpu_percent": round(100 * max(0, q["ticks"] - ticks.get((q["pid"], q["role"]), q["ticks"])) / hertz / seconds, 1),
        }
        for q in now.processes
    ]  # fmt: skip
    return {
        "time_ms": time.time_ns() // 1_000_000, "interval_seconds": round(seconds, 3), "cluster": now.view.name,
        "appended_per_second": round(sum(p["appended_per_second"] for p in partitions), 1),
        "read_per_second": round(sum(p["read_per_second"] for p in partitions), 1),
        "lag": max((p["lag"] for p in partitions if p["lag"] is not None), default=None), **_latency(every),
        "shm_bytes": now.shm_bytes, "shm_free_bytes": now.shm_free_bytes, "disk_bytes": disk_bytes, "partitions": partitions, "processes": processes,
    }  # fmt: skip


def _latency(counts: list[int]) -> dict[str, Any]:
    found = {f"latency_p{round(100 * part)}_us": percentile_ns(counts, part) for part in (0.5, 0.99)}
    return {**{name: None if ns is None else round(ns / 1000, 2) for name, ns in found.items()}, "latency_samples": sum(counts)}


def run(address: config.Address, interval_s: float, count: int | None, wait: Callable[[float], bool] | None = None) -> Iterator[dict[str, Any]]:
    """An object for each interval. wait(seconds): whether to go on."""
    with status.Attached(address.cluster) as attached:
        before, turn, disk_bytes = Look(attached, address), 0, 0
        while count is None or turn < count:
            if wait is None:
                time.sleep(interval_s)
            elif not wait(interval_s):
                return
            if attached.control.cluster_state == lib.SL_CLUSTER_DOWN:
                raise ClosedError(f"cluster {address.cluster} was shut down")
            now = Look(attached, address)
            if turn % 5 == 0:  # a walk over all files
                disk_bytes = sum(status.used_bytes(directory) for directory in now.view.data_dirs)
            yield between(before, now, disk_bytes)
            before, turn = now, turn + 1


# --- showing -----------------------------------------------------------------------------------------------------------


def rate(n: float) -> str:
    """Per second, in four or five characters."""
    if n < 1000:
        return f"{n:.0f}" if n >= 10 or n == int(n) else f"{n:.1f}"
    for unit in ("k", "M", "G"):
        n /= 1000
        if n < 999.5:
            return f"{n:.1f}{unit}" if n < 99.95 else f"{n:.0f}{unit}"
    return f"{n / 1000:.1f}T"


def duration(us: float | None) -> str:
    if us is None:
        return "-"
    for limit, unit, by in ((1, "ns", 0.001), (1000, "us", 1), (1_000_000, "ms", 1000)):
        if us < limit:
            return f"{us / by:.3g} {unit}"
    return f"{us / 1e6:.3g} s"


def plain_line(seen: dict[str, Any]) -> str:
    clock = time.strftime("%H:%M:%S", time.localtime(seen["time_ms"] / 1000))
    lag = "-" if seen["lag"] is None else f"{seen['lag']:,}"
    cpu = sum(p["cpu_percent"] for p in seen["processes"] if p["role"] != "client")
    return (
        f"{clock}  in {rate(seen['appended_per_second'])}/s  out {rate(seen['read_per_second'])}/s  lag {lag}  p50 {duration(seen['latency_p50_us'])}  "
        f"p99 {duration(seen['latency_p99_us'])}  shm {status.size(seen['shm_bytes'])}  disk {status.size(seen['disk_bytes'])}  cpu {cpu:.0f} %"
    )


def curve(values: list[float]) -> str:
    most = max(values, default=0)
    return "".join(CURVE[0 if not v else max(1, round(v / most * 8))] for v in values).rjust(HISTORY)


def _process_text(p: dict[str, Any]) -> str:
    name = f"broker-{p['id']}" if p["role"] == "broker" else f"client {p['pid']}" if p["role"] == "client" else p["role"]
    return f"{name} {p['cpu_percent']:.0f} %" if p["state"] in ("up", "active") else f"[red]{name} {p['state']}[/red]"


def screen(seen: dict[str, Any], history: dict[tuple[str, int], list[float]], width: int, height: int) -> Any:
    """A rich renderable of at most that size."""
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    wide = width >= WIDE
    clock = time.strftime("%H:%M:%S", time.localtime(seen["time_ms"] / 1000))
    lag = "-" if seen["lag"] is None else f"{seen['lag']:,}"
    rates = f"in [green]{rate(seen['appended_per_second'])}/s[/green]  out [cyan]{rate(seen['read_per_second'])}/s[/cyan]"
    latency = f"p50 {duration(seen['latency_p50_us'])}  p99 {duration(seen['latency_p99_us'])}"
    head = Text.from_markup(f"[bold]{seen['cluster']}[/bold]  {clock}  {rates}  lag {lag}  {latency}", overflow="ellipsis")
    places = f"{status.size(seen['shm_bytes'])} of /dev/shm, {status.size(seen['shm_free_bytes'])} free"
    memory = Text(f"memory {places}  disk {status.size(seen['disk_bytes'])}", style="dim")
    ordered = sorted(seen["processes"], key=lambda p: (p["role"] == "client", p["role"] == "client" and -p["cpu_percent"]))
    cpu = Text.from_markup("cpu    " + "  ".join(_process_text(p) for p in ordered), overflow="ellipsis")
    for line in (head, memory, cpu):
        line.no_wrap = True
    memory.overflow = "ellipsis"

    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold", expand=True, show_edge=False)
    table.add_column("TOPIC", ratio=1, no_wrap=True, overflow="ellipsis", min_width=10)
    if wide:
        table.add_column("LAST INTERVALS", no_wrap=True, min_width=HISTORY)
    for name in ("IN/s", "OUT/s", "READERS", "LAG", "P50", "P99", *(("END", "NOT DURABLE", "DISK/s") if wide else ()), "MEMORY"):
        if name == "READERS" and not wide:
            continue
        table.add_column(name, justify="right", no_wrap=True)
    partitions = sorted(seen["partitions"], key=lambda p: (-p["appended_per_second"] - p["read_per_second"], p["topic"], p["partition"]))
    room = max(1, height - 6)
    for p in partitions[:room]:
        busy = p["appended_per_second"] or p["read_per_second"]
        trouble = p["storage"] != "ok"
        row = [escape(f"{p['topic']}-{p['partition']}") + (f" [red]{escape(p['storage'])}[/red]" if trouble else "")]
        if wide:
            row.append(f"[green]{curve(history.get((p['topic'], p['partition']), []))}[/green]")
        row += [f"[green]{rate(p['appended_per_second'])}[/green]", f"[cyan]{rate(p['read_per_second'])}[/cyan]"]
        row += [str(p["readers"])] if wide else []
        row += ["-" if p["lag"] is None else rate(p["lag"]), duration(p["latency_p50_us"]), duration(p["latency_p99_us"])]
        if wide:
            waiting = "-" if p["not_durable"] is None else f"{p['not_durable']:,}"
            row += [f"{p['log_end_offset']:,}", waiting, status.size(p["spilled_bytes_per_second"]) if p["not_durable"] is not None else "-"]
        row.append(status.size(p["shm_bytes"]))
        table.add_row(*row, style="" if busy or trouble else "dim")
    more = len(partitions) - room
    below = Text(f"{more} more partitions; " if more > 0 else "" if partitions else "no topics yet; ", style="dim", end="")
    below.append("q leaves")
    return Group(head, memory, cpu, Text(), table, below)


class _Keys:
    """The terminal reports single keys while this is entered; `wait` ends early with q."""

    def __enter__(self) -> _Keys:
        self.saved: Any = None
        if sys.stdin.isatty():
            import termios
            import tty

            self.saved = termios.tcgetattr(sys.stdin)
            tty.setcbreak(sys.stdin)
        return self

    def __exit__(self, *exc: object) -> None:
        if self.saved is not None:
            import termios

            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self.saved)

    def wait(self, seconds: float) -> bool:
        if self.saved is None:
            time.sleep(seconds)
            return True
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if select.select([sys.stdin], [], [], left)[0]:
                key = os.read(sys.stdin.fileno(), 1)
                if key in (b"q", b"Q", b""):
                    return False
        return True


def show(address: config.Address, interval_s: float, count: int | None) -> None:
    """For people: a screen where there is a terminal and rich, else a line an interval."""
    try:
        import rich.live
        from rich.console import Console
    except ImportError:
        rich = None  # type: ignore[assignment]
    if not sys.stdout.isatty():
        for seen in run(address, interval_s, count):
            print(plain_line(seen), flush=True)
        return
    if rich is None:
        print("a line an interval; q leaves; for a whole screen pip install 'shmlog[rich]'", file=sys.stderr)
        with _Keys() as keys:
            for seen in run(address, interval_s, count, keys.wait):
                print(plain_line(seen), flush=True)
        return
    console = Console()
    history: dict[tuple[str, int], list[float]] = {}
    with _Keys() as keys:
        stream = run(address, interval_s, count, keys.wait)
        with rich.live.Live(f"{address}: looking ...", console=console, screen=True, auto_refresh=False) as live:
            live.refresh()
            for seen in stream:
                for p in seen["partitions"]:
                    values = history.setdefault((p["topic"], p["partition"]), [])
                    values.append(p["appended_per_second"])
                    del values[:-HISTORY]
                live.update(screen(seen, history, console.width, console.height), refresh=True)
