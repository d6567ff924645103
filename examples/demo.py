"""What shmlog does, in ten seconds: `make demo`, or `python examples/demo.py`.

Reads what any Debian machine has, the changelogs of its packages and dpkg's log (elsewhere: the source of Python's standard library), counts it in
one process as a reference, and then again through a cluster: three producers publish each entry, keyed by package, to a topic with four partitions,
while two consumers count what arrives. Then once more, and in the middle the broker is killed with SIGKILL. All three counts must agree, to the
record; exit code 0 says so.
"""

from __future__ import annotations

import glob
import gzip
import multiprocessing
import os
import re
import shutil
import sys
import sysconfig
import tempfile
import textwrap
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from shmlog import Admin, Cluster, Consumer, NewTopic, Producer, TopicPartition

PARTITIONS, PRODUCERS, CONSUMERS = 4, 3, 2
KILL_AT = 0.4  # of the input; between 20 % and 80 % counts
LATENCY_S, LATENCY_RATE = 3, 1000
DEADLINE_S = 120

# --- the input: (package, text) of each entry, and what to count about it ----------------------------------------------

HEADER = re.compile(rb"^([a-z0-9][a-z0-9+.-]*) \([^)\n]+\) [^;\n]*;.*?urgency=([a-zA-Z]+)", re.MULTILINE)
TRAILER = re.compile(rb"^ -- .*?, +\d+ [A-Za-z]+ (\d{4})", re.MULTILINE)
DPKG = re.compile(rb"^(\d{4})-\d\d-\d\d [\d:]+ (?:install|upgrade|remove|purge|configure|trigproc|status \S+) ([^: \n]+)", re.MULTILINE)
STDLIB = sysconfig.get_path("stdlib")
BLOCK = re.compile(rb"^(?=(?:async def|def|class|@)\b|\Z)", re.MULTILINE)


def inputs() -> list[str]:
    """The files, the largest first, so that shares come out even."""
    debian = [*glob.glob("/usr/share/doc/*/changelog*.gz"), *glob.glob("/var/log/dpkg.log*")]
    files = {os.path.realpath(path) for path in debian if os.access(path, os.R_OK)}
    if len(files) < 50:
        files = {path for path in glob.glob(f"{STDLIB}/**/*.py", recursive=True) if "-packages" not in path}
    return sorted(files, key=os.path.getsize, reverse=True)


def frozen(files: list[str], folder: str) -> list[str]:
    """Copies, because the machine lives: a package installed meanwhile writes to dpkg.log, and three counts of it would differ."""
    copies = [folder + path for path in files]
    for path, copy in zip(files, copies, strict=True):
        os.makedirs(os.path.dirname(copy), exist_ok=True)
        shutil.copyfile(path, copy)
    return copies


def entries(path: str) -> Iterator[tuple[bytes, bytes]]:
    with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:
        text = file.read()
    if path.endswith(".py"):
        for block in BLOCK.split(text):
            if block.strip():
                yield path.partition(f"{STDLIB}/")[2].partition("/")[0].removesuffix(".py").encode(), block
    elif os.path.basename(path).startswith("dpkg.log"):
        for event in DPKG.finditer(text):
            yield event[2], event[0]
    else:
        headers = list(HEADER.finditer(text))
        starts = [*(header.start() for header in headers), len(text)]
        for n, header in enumerate(headers):
            yield header[1], text[starts[n] : starts[n + 1]]


class Totals:
    """The count, and a checksum over every key and value: equal totals mean the same records, none missing, none twice."""

    def __init__(self) -> None:
        self.records = self.bytes = self.checksum = 0
        self.table: Counter[tuple[str, str]] = Counter()  # (year, urgency)
        self.packages: Counter[str] = Counter()

    def add(self, package: bytes, text: bytes) -> None:
        self.records += 1
        self.bytes += len(text)
        self.checksum += zlib.crc32(text, zlib.crc32(package))
        header, trailer = HEADER.match(text), TRAILER.search(text)
        if header:
            self.table[trailer[1].decode() if trailer else "undated", header[2].decode().lower()] += 1
            self.packages[package.decode()] += 1
        elif text[:2] == b"20":
            self.table[text[:4].decode(), "dpkg.log"] += 1
        else:
            first = text.split(None, 1)[0].decode(errors="replace")
            self.table["Python", first if first in ("def", "class", "async") else "decorated" if first[0] == "@" else "other"] += 1
            self.packages[package.decode()] += 1

    def __add__(self, other: Totals) -> Totals:
        both = Totals()
        both.records, both.bytes, both.checksum = self.records + other.records, self.bytes + other.bytes, self.checksum + other.checksum
        both.table, both.packages = self.table + other.table, self.packages + other.packages
        return both

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Totals) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


# --- the processes -----------------------------------------------------------------------------------------------------


def produce(topic: str, files: list[str]) -> None:
    with Producer() as producer:
        for path in files:
            for package, text in entries(path):
                producer.send(topic, text, key=package)


def consume(topic: str, partitions: list[int], pipe: Any) -> None:
    tps = [TopicPartition(topic, n) for n in partitions]
    totals, ends = Totals(), None
    with Consumer(auto_offset_reset="earliest") as consumer:
        consumer.assign(tps)
        while ends is None or any(consumer.position(tp) < ends[tp] for tp in tps):
            for records in consumer.poll(timeout_ms=20, max_records=2000).values():
                for record in records:
                    totals.add(record.key, record.value)
            if ends is None and pipe.poll():
                ends = pipe.recv()  # the producers are done
    pipe.send(totals)


def send_at_a_steady_rate(topic: str) -> None:
    """Open loop: a record is stamped with the time it was due, so a sender that is late does not hide it."""
    with Producer() as producer:
        start = time.time_ns() + 100_000_000
        for n in range(LATENCY_S * LATENCY_RATE):
            due = start + n * 1_000_000_000 // LATENCY_RATE
            while (left := due - time.time_ns()) > 0:
                if left > 150_000:
                    time.sleep((left - 100_000) / 1e9)
            producer.send(topic, b"%128d" % n, partition=0, timestamp_ns=due)


# --- the runs ----------------------------------------------------------------------------------------------------------


def run(cluster: Cluster, topic: str, files: list[str], expected: int, kill: bool) -> tuple[Totals, float, str]:
    """Everything through the log. With `kill` the broker dies on the way; the third result says when."""
    spawn = multiprocessing.get_context("spawn")
    with Admin() as admin, Consumer() as watcher:
        admin.create_topics([NewTopic(topic, PARTITIONS)])
        tps = [TopicPartition(topic, n) for n in range(PARTITIONS)]
        pipes, consumers = [], []
        for n in range(CONSUMERS):
            pipe, theirs = spawn.Pipe()
            consumers.append(spawn.Process(target=consume, args=(topic, list(range(n, PARTITIONS, CONSUMERS)), theirs), daemon=True))
            pipes.append(pipe)
        producers = [spawn.Process(target=produce, args=(topic, files[n::PRODUCERS]), daemon=True) for n in range(PRODUCERS)]
        for process in [*consumers, *producers]:
            process.start()
        began, event, deadline = 0.0, "", time.monotonic() + DEADLINE_S
        while any(process.is_alive() for process in producers):
            if time.monotonic() > deadline:
                raise SystemExit(f"the producers are not done after {DEADLINE_S} s")
            done = sum(watcher.end_offsets(tps).values())
            began = began or (time.monotonic() if done else 0.0)
            if kill and not event and done >= KILL_AT * expected:
                pid = cluster.kill("broker", 0)
                at = sum(watcher.end_offsets(tps).values())
                event = f"broker {pid} killed with SIGKILL at record {at:,} of {expected:,} ({at / expected:.0%})"
                if not 0.2 <= at / expected <= 0.8:
                    raise SystemExit(f"{event}: that was not in the middle")
            progress(f"{topic:<14}", done, expected)
            time.sleep(0.005)
        if failed := [process.exitcode for process in producers if process.exitcode]:
            raise SystemExit(f"a producer ended with exit code {failed[0]}")
        ends = watcher.end_offsets(tps)
    for pipe in pipes:
        pipe.send(ends)
    if not all(pipe.poll(DEADLINE_S) for pipe in pipes):
        raise SystemExit(f"the consumers are not done after {DEADLINE_S} s")
    totals = sum((pipe.recv() for pipe in pipes), Totals())
    seconds = time.monotonic() - began
    progress(f"{topic:<14}", 0, 0)
    for process in [*producers, *consumers]:
        process.join(DEADLINE_S)
    if event:
        event += f"; {cluster.pid('broker')} took over"
    return totals, seconds, event


def read_again(topic: str) -> float:
    """Records per second of one consumer that reads it all once more."""
    with Consumer(auto_offset_reset="earliest") as consumer:
        consumer.assign([TopicPartition(topic, n) for n in range(PARTITIONS)])
        count, began = 0, time.perf_counter()
        while found := consumer.poll(timeout_ms=0, max_records=5000):
            count += sum(map(len, found.values()))
        return count / (time.perf_counter() - began)


def latencies() -> list[float]:
    """Microseconds from due to received."""
    with Admin() as admin:
        admin.create_topics([NewTopic("steady", 1)])
    sender = multiprocessing.get_context("spawn").Process(target=send_at_a_steady_rate, args=("steady",), daemon=True)
    found: list[float] = []
    with Consumer("steady", auto_offset_reset="earliest", consumer_timeout_ms=1000 * DEADLINE_S) as consumer:
        sender.start()
        for record in consumer:
            found.append((time.time_ns() - record.timestamp_ns) / 1000)
            if len(found) % 100 == 0:
                progress("latency", len(found), LATENCY_S * LATENCY_RATE)
            if len(found) == LATENCY_S * LATENCY_RATE:
                break
    sender.join(DEADLINE_S)
    progress("latency", 0, 0)
    return sorted(found)


# --- what a person sees ------------------------------------------------------------------------------------------------

drawn = 0.0
COLOUR = sys.stdout.isatty() and "NO_COLOR" not in os.environ


def paint(code: str, text: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if COLOUR else text


def bold(text: str) -> str:
    return paint("1", text)


def dim(text: str) -> str:
    return paint("2", text)


def bar(share: float, width: int) -> str:
    eighths = round(share * width * 8)
    return ("█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8]).ljust(width)[:width]


def progress(what: str, done: int, total: int) -> None:
    """A bar on a terminal, drawn 25 times a second at most; total 0 removes it."""
    global drawn
    if sys.stdout.isatty() and (not total or time.monotonic() - drawn > 0.04):
        drawn = time.monotonic()
        shown = f"  {what}  {paint('36', bar(min(1, done / total), 40))} {done:>9,} of {total:,}" if total else ""
        print(f"\r{shown}\x1b[K", end="", flush=True)


def show(totals: Totals) -> None:
    columns = [name for name, _ in Counter({c: sum(n for (_, k), n in totals.table.items() if k == c) for _, c in totals.table}).most_common(5)]
    width = max(8, min(24, shutil.get_terminal_size().columns - 10 * len(columns) - 22))
    rows: Counter[str] = Counter()
    for (row, _), n in totals.table.items():
        rows[row] += n
    years = sorted(rows, key=lambda row: (row.isdigit(), row))  # "undated" counts as before
    print("\n" + bold(f"  {'':<8}" + "".join(f"{c:>10}" for c in columns) + f"{'all':>10}"))
    for title, group in ([("before", years[:-12])] if len(years) > 12 else []) + [(year, [year]) for year in years[-12:]]:
        cells = "".join(f"{sum(totals.table[row, c] for row in group):>10,}" for c in columns)
        n = sum(rows[row] for row in group)
        print(f"  {title:<8}{cells}{n:>10,}  {paint('36', bar(n / max(rows.values()), width)) if len(group) == 1 else ''}".rstrip())
    print("\n" + bold("  most active"))
    top = totals.packages.most_common(6)
    for name, n in top:
        print(f"  {name:<32}{n:>7,}  {paint('36', bar(n / top[0][1], 24))}".rstrip())
    print()


def step(name: str, result: str, note: str = "", found: str = "") -> None:
    """A result, what is to be seen in it, and a note that is broken to the terminal's width."""
    print(f"  {bold(f'{name:<13}')} {result}")
    notes = textwrap.wrap(note, max(40, shutil.get_terminal_size().columns - 17))
    for line in ([found] if found else []) + [dim(line) for line in notes]:
        print(f"  {'':<13} {line}")


def verdict(same: bool) -> str:
    return paint("32", "the totals agree exactly") if same else paint("31", "THE TOTALS DIFFER")


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="shmlog-demo-") as folder:
        return demo(frozen(inputs(), folder))


def demo(files: list[str]) -> int:
    reference = Totals()
    began = time.monotonic()
    for n, path in enumerate(files):
        progress("reference", n, len(files))
        for package, text in entries(path):
            reference.add(package, text)
    progress("", 0, 0)
    rate: Callable[[Totals, float], str] = lambda t, s: f"{t.records:,} entries in {s:.1f} s, {t.records / s:,.0f}/s, {t.bytes / s / 1e6:,.0f} MB/s"  # noqa: E731
    step("input", f"{len(files):,} files with {reference.records:,} entries, {reference.bytes / 1e6:,.0f} MB")
    step("reference", rate(reference, time.monotonic() - began), "one process, without shmlog")

    began = time.monotonic()
    with Cluster() as cluster:
        step(
            "cluster", f"up in {(time.monotonic() - began) * 1000:.0f} ms", f"coordinator {cluster.pid('coordinator')}, broker {cluster.pid('broker')}"
        )
        first, seconds, _ = run(cluster, "undisturbed", files, reference.records, kill=False)
        note = f"{PRODUCERS} producers read, unpack, parse and publish; {CONSUMERS} consumers count {PARTITIONS} partitions"
        step("undisturbed", rate(first, seconds), note, verdict(first == reference))
        second, seconds, event = run(cluster, "killed", files, reference.records, kill=True)
        step("killed", rate(second, seconds), event, verdict(second == reference))
        step("read again", f"{read_again('killed'):,.0f} entries/s by one consumer")
        micros = latencies()
        p50, p99 = micros[len(micros) // 2], micros[len(micros) * 99 // 100]
        step("latency", f"p50 {p50:,.0f} µs, p99 {p99:,.0f} µs", f"append to consumer in another process, {LATENCY_RATE:,} records/s, open loop")
    show(second)

    left = [name for name in os.listdir("/dev/shm") if cluster.name in name] + [d for d in [cluster.data_dir] if os.path.exists(d)]
    print(f"  stopped; left behind: {', '.join(left) or 'nothing'}")
    return 0 if first == second == reference and event and not left else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
