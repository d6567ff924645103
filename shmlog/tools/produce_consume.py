"""`produce` and `consume`: bytes between the log and pipes, in large blocks when there is much and at once when there is little.

produce cuts what one read() gave into records and sends them with one call; so a fast pipe makes large atomic batches, and a person at a terminal
sees each line appended as it is typed. consume joins what one poll() found into one write, and flushes when there is nothing more to read.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from shmlog.errors import IllegalArgumentError, KafkaTimeoutError, MessageSizeTooLargeError, OffsetOutOfRangeError, ShmlogError
from shmlog.types import Record, TopicPartition

if TYPE_CHECKING:
    from shmlog.client.consumer import Consumer
    from shmlog.client.producer import Producer

READ_BYTES = 1 << 20
RECORD_MAX_BYTES = 256 << 20  # more without a delimiter is no record of any topic
POLL_RECORDS = 8192
SLICE_MS = 200.0

# --- bytes as people write them ----------------------------------------------------------------------------------------

_ESCAPES = {"n": b"\n", "t": b"\t", "r": b"\r", "0": b"\0", "\\": b"\\"}


def unescape(text: str) -> bytes:
    r"""\n \t \r \0 \\ and \xNN; anything else after a backslash stays as it is."""
    pieces = re.split(r"(\\(?:x[0-9a-fA-F]{2}|.))", text, flags=re.DOTALL)
    out = []
    for piece in pieces:
        if piece.startswith("\\x") and len(piece) == 4:
            out.append(bytes([int(piece[2:], 16)]))
        elif piece.startswith("\\") and len(piece) == 2 and piece[1] in _ESCAPES:
            out.append(_ESCAPES[piece[1]])
        else:
            out.append(piece.encode(errors="surrogateescape"))
    return b"".join(out)


def named_bytes(out: dict[str, Any], name: str, value: bytes | None) -> None:
    """A field of a JSON record: text if it is UTF-8, else base64 under another name; null is null."""
    if value is None:
        out[name] = None
        return
    try:
        out[name] = value.decode()
    except UnicodeDecodeError:
        import base64

        out[f"{name}_base64"] = base64.b64encode(value).decode()


def as_json(record: Record) -> dict[str, Any]:
    out: dict[str, Any] = {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "timestamp_ms": record.timestamp,
        "timestamp_ns": record.timestamp_ns,
    }
    named_bytes(out, "key", record.key)
    named_bytes(out, "value", record.value)
    out["headers"] = [[name, _header_value(value)] for name, value in record.headers]
    return out


def _header_value(value: bytes | None) -> Any:
    field: dict[str, Any] = {}
    named_bytes(field, "value", value)
    return field["value"] if "value" in field else {"base64": field["value_base64"]}


_FIELDS: dict[str, Callable[[Record], bytes]] = {
    "t": lambda r: r.topic.encode(),
    "p": lambda r: b"%d" % r.partition,
    "o": lambda r: b"%d" % r.offset,
    "k": lambda r: r.key or b"",
    "s": lambda r: r.value or b"",
    "T": lambda r: b"%d" % r.timestamp,
    "S": lambda r: b"%d" % (-1 if r.value is None else len(r.value)),
    "K": lambda r: b"%d" % (-1 if r.key is None else len(r.key)),
    "h": lambda r: b",".join(name.encode() + b"=" + (value or b"") for name, value in r.headers),
}


def compile_format(text: str) -> Callable[[Record], bytes]:
    """kcat's %-format: %t topic %p partition %o offset %k key %s value %T time (ms) %S %K sizes (-1: null) %h headers %% percent; \\n \\t escapes."""
    parts: list[Callable[[Record], bytes]] = []
    literal: list[str] = []

    def end_literal() -> None:
        if literal:
            fixed = unescape("".join(literal))
            parts.append(lambda _, fixed=fixed: fixed)  # type: ignore[misc]
            literal.clear()

    position = 0
    while position < len(text):
        if text[position] != "%":
            literal.append(text[position])
            position += 1
            continue
        name = text[position + 1 : position + 2]
        if name == "%":
            literal.append("%")
        elif name in _FIELDS and name:
            end_literal()
            parts.append(_FIELDS[name])
        else:
            raise IllegalArgumentError(f"-f: %{name} means nothing; known are {' '.join('%' + n for n in _FIELDS)} and %%")
        position += 2
    end_literal()
    return lambda record: b"".join([part(record) for part in parts])


# --- produce -----------------------------------------------------------------------------------------------------------


def split_records(read: Callable[[int], bytes], delimiter: bytes) -> Iterator[list[bytes]]:
    """What a stream holds between delimiters, as many at a time as one read completes. A last one without a delimiter counts."""
    if not delimiter:
        raise IllegalArgumentError("-D: the delimiter is empty")
    buffer = bytearray()
    while chunk := read(READ_BYTES):
        seen = len(buffer)
        buffer += chunk
        if buffer.find(delimiter, max(0, seen - len(delimiter) + 1)) < 0:
            if len(buffer) > RECORD_MAX_BYTES:
                raise MessageSizeTooLargeError(
                    f"{len(buffer):,} bytes of input without a delimiter ({delimiter!r}) are no record", size=len(buffer), limit=RECORD_MAX_BYTES
                )
            continue
        *block, rest = bytes(buffer).split(delimiter)
        buffer = bytearray(rest)
        yield block
    if buffer:
        yield [bytes(buffer)]


class Produced(NamedTuple):
    records: int
    bytes: int
    partitions: dict[int, tuple[int, int]]  # first and last offset written


def produce(
    producer: Producer,
    topic: str,
    blocks: Iterable[list[bytes]],
    *,
    partition: int | None = None,
    key_delimiter: bytes | None = None,
    headers: list[tuple[str, bytes | None]] | None = None,
    null_if_empty: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Produced:
    """Sends every record of `blocks`, a batch a block (one by one where they carry headers), and waits for the acknowledgements."""
    records = size = 0
    partitions: dict[int, tuple[int, int]] = {}

    def note(deliveries: Iterable[Any]) -> None:
        for d in deliveries:
            first, last = partitions.get(d.partition, (d.offset, d.offset))
            partitions[d.partition] = min(first, d.offset), max(last, d.offset + d.count - 1)

    for block in blocks:
        keys: list[bytes | None] | None = None
        values: list[bytes | None] = block  # type: ignore[assignment]
        if key_delimiter is not None:
            keys = []
            values = []
            for line in block:
                key, found, rest = line.partition(key_delimiter)
                keys.append(key if found else None)
                values.append(rest if found else line)
        if null_if_empty:
            values = [value or None for value in values]
        written = 0
        try:
            if headers or len(values) == 1:
                for i, value in enumerate(values):
                    note([producer.send(topic, value, None if keys is None else keys[i], headers or None, partition)])
                    written += 1
            else:
                note(producer.send_many(topic, values, keys, partition=partition))
        except ShmlogError as exc:
            written += sum(d.count for d in getattr(exc, "written", ()))
            exc.args = (f"{exc}; {records + written:,} records before it are written",)
            raise
        records += len(block)
        size += sum(map(len, block))
        if progress is not None:
            progress(records, size)
    producer.flush()
    return Produced(records, size, partitions)


# --- where to read -----------------------------------------------------------------------------------------------------


class Place(NamedTuple):
    """One end of what is to be read, before it is known where that is in each partition."""

    kind: str  # start, end, offset, before_end, after_start, time
    value: int = 0


class Reach(NamedTuple):
    start: Place
    stop: Place | None  # exclusive


_AGO = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def parse_offset(text: str, now_ms: int | None = None) -> Reach:
    """-o: start | end | N | -N (before the end) | +N (after the start) | @TIME (ms, ISO, or 10m for ten minutes ago) | A:B (B exclusive)."""
    now_ms = int(time.time() * 1000) if now_ms is None else now_ms
    place = _place(text, now_ms)
    if place is not None:
        return Reach(place, None)
    for at, character in enumerate(text):  # an ISO time has colons of its own: the split at which both sides mean something
        if character != ":":
            continue
        left, right = text[:at], text[at + 1 :]
        start = _place(left, now_ms) if left else Place("start")
        stop = _place(right, now_ms) if right else Place("end")
        if start is not None and stop is not None and text != ":":
            return Reach(start, stop)
    raise IllegalArgumentError(f"-o {text}: not an offset", hint="start, end, N, -N, +N, @TIME (ms, ISO or 10m) or A:B")


def _place(text: str, now_ms: int) -> Place | None:
    words = {"start": "start", "beginning": "start", "earliest": "start", "end": "end", "latest": "end"}
    if text in words:
        return Place(words[text])
    if number := re.fullmatch(r"([+-]?)([0-9]{1,18})", text, re.ASCII):
        return Place({"+": "after_start", "-": "before_end", "": "offset"}[number[1]], int(number[2]))
    if not text.startswith("@"):
        return None
    text = text[1:]
    if re.fullmatch(r"[0-9]{1,18}", text, re.ASCII):
        return Place("time", int(text))
    if ago := re.fullmatch(r"([0-9]{1,9})(ms|s|m|h|d)", text, re.ASCII):
        return Place("time", now_ms - int(ago[1]) * _AGO[ago[2]])
    from datetime import datetime

    try:
        return Place("time", int(datetime.fromisoformat(text).timestamp() * 1000))
    except (ValueError, OverflowError):
        return None


def _resolve(consumer: Consumer, place: Place, tps: list[TopicPartition]) -> dict[TopicPartition, int]:
    if not tps:
        return {}
    starts, ends = consumer.beginning_offsets(tps), consumer.end_offsets(tps)
    if place.kind == "start":
        return starts
    if place.kind == "end":
        return ends
    if place.kind == "before_end":
        return {tp: max(starts[tp], ends[tp] - place.value) for tp in tps}
    if place.kind == "after_start":
        return {tp: min(ends[tp], starts[tp] + place.value) for tp in tps}
    if place.kind == "time":
        found = consumer.offsets_for_times(dict.fromkeys(tps, place.value))
        return {tp: ends[tp] if (hit := found[tp]) is None else hit.offset for tp in tps}
    return dict.fromkeys(tps, place.value)


# --- consume -----------------------------------------------------------------------------------------------------------


class Consumed(NamedTuple):
    records: int
    timed_out: bool


def consume(
    consumer: Consumer,
    topic: str,
    reach: Reach,
    write: Callable[[list[Record]], None],
    flush: Callable[[], None],
    *,
    partitions: list[int] | None = None,
    count: int | None = None,
    stop_at_end: bool = False,
    timeout: float | None = None,
) -> Consumed:
    """Hands records to `write` until `count`, the end of the reach, the present end (stop_at_end) or the timeout; else for ever."""
    deadline = None if timeout is None else time.monotonic() + timeout

    def left_ms() -> float:
        return SLICE_MS if deadline is None else min(SLICE_MS, max(0.0, (deadline - time.monotonic()) * 1000))

    def over() -> bool:
        return deadline is not None and time.monotonic() >= deadline

    if partitions:
        consumer.assign([TopicPartition(topic, n) for n in partitions])
    else:
        consumer.subscribe([topic])  # partitions that are added later are read too
    while not (tps := sorted(consumer.assignment())):
        if over():
            return Consumed(0, True)
        consumer.poll(left_ms(), 1, update_offsets=False)
    positions = _resolve(consumer, reach.start, tps)
    if reach.start.kind == "offset":
        _check_range(consumer, tps, positions, reach.start.value)
    stops: dict[TopicPartition, int] | None = None
    if reach.stop is not None:
        stops = _resolve(consumer, reach.stop, tps)
    if stop_at_end:
        ends = consumer.end_offsets(tps)
        stops = ends if stops is None else {tp: min(ends[tp], stops[tp]) for tp in tps}
    for tp, offset in positions.items():
        consumer.seek(tp, offset)
    open_tps = set(tps)

    def close_finished() -> None:
        assert stops is not None
        for tp in list(open_tps):
            if consumer.position(tp) >= stops[tp]:
                open_tps.discard(tp)
                consumer.pause(tp)

    done = 0
    if stops is not None:
        close_finished()
    idle = False
    while (count is None or done < count) and (stops is None or open_tps):
        most = POLL_RECORDS if count is None else min(POLL_RECORDS, count - done)
        found = consumer.poll(left_ms() if idle else 0, most)
        for tp, records in found.items():
            if stops is not None and tp in stops and records[-1].offset >= stops[tp]:
                records = [r for r in records if r.offset < stops[tp]]
            if records:
                write(records)
                done += len(records)
        if stops is not None:
            close_finished()
        if not found:
            if not idle:
                flush()
            if over():
                return Consumed(done, True)
        idle = not found
    flush()
    return Consumed(done, False)


def _check_range(consumer: Consumer, tps: list[TopicPartition], positions: dict[TopicPartition, int], offset: int) -> None:
    """An offset that was typed and is nowhere is a mistake; silently reading something else would hide it. One partition that has it is enough."""
    starts, ends = consumer.beginning_offsets(tps), consumer.end_offsets(tps)
    inside = [tp for tp in tps if starts[tp] <= offset <= ends[tp]]
    if not inside:
        tp = tps[0]
        raise OffsetOutOfRangeError(
            f"offset {offset} is outside {tp.topic}-{tp.partition}, which holds {starts[tp]} to {ends[tp]}",
            topic=tp.topic, partition=tp.partition, offset=offset, log_start_offset=starts[tp], log_end_offset=ends[tp],
            hint="-o start, or -o -10 for the last ten",
        )  # fmt: skip
    for tp in tps:
        positions[tp] = min(max(offset, starts[tp]), ends[tp])


def writer(
    out: IO[bytes], *, as_json_lines: bool = False, format: str | None = None, delimiter: bytes = b"\n", key_delimiter: bytes | None = None
) -> Callable[[list[Record]], None]:
    """How records become bytes: JSON lines, a %-format, or values (and keys) between delimiters. Null is nothing."""
    if as_json_lines:
        import msgspec

        encode = msgspec.json.Encoder().encode
        return lambda records: _write(out, b"\n".join([encode(as_json(r)) for r in records]) + b"\n")
    if format is not None:
        shown = compile_format(format)
        return lambda records: _write(out, b"".join([shown(r) for r in records]))
    if key_delimiter is not None:
        return lambda records: _write(out, b"".join([b"".join(((r.key or b""), key_delimiter, (r.value or b""), delimiter)) for r in records]))
    return lambda records: _write(out, delimiter.join([r.value or b"" for r in records]) + delimiter)


def _write(out: IO[bytes], data: bytes) -> None:
    out.write(data)


def timed_out(topic: str, done: int, count: int | None, timeout: float) -> KafkaTimeoutError:
    wanted = f"{done:,} of {count:,} records" if count is not None else f"{done:,} records"
    return KafkaTimeoutError(f"{timeout:g} s passed; {wanted} of {topic} had come", timeout=timeout, hint="produce some, or wait longer (--timeout)")


# --- progress ----------------------------------------------------------------------------------------------------------


class Progress:
    """A line on a terminal that tells how far it is; nothing elsewhere. rich draws it where it is installed."""

    EVERY_S = 0.1

    def __init__(self, what: str, total_bytes: int | None = None) -> None:
        self.shown = sys.stderr.isatty() and (total_bytes is not None or not sys.stdin.isatty())
        self.what = what
        self.total = total_bytes
        self.began = self.last = time.monotonic()
        self.rich: Any = None
        if self.shown and total_bytes:
            try:
                from rich.console import Console
                from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn
                from rich.progress import Progress as RichProgress

                self.rich = RichProgress(
                    "{task.description}",
                    BarColumn(),
                    DownloadColumn(),
                    "{task.fields[rate]}",
                    TimeRemainingColumn(),
                    console=Console(stderr=True),
                    transient=True,
                )
                self.task = self.rich.add_task(what, total=total_bytes, rate="")
                self.rich.start()
            except ImportError:
                pass

    def __call__(self, records: int, size: int) -> None:
        now = time.monotonic()
        if not self.shown or now - self.last < self.EVERY_S:
            return
        self.last = now
        rate = f"{records / (now - self.began):,.0f} records/s"
        if self.rich is not None:
            self.rich.update(self.task, completed=size, rate=rate)
        else:
            print(f"\r{self.what}: {records:,} records, {size / 1e6:,.1f} MB, {rate}\x1b[K", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.rich is not None:
            self.rich.stop()
        elif self.shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
