"""The history checker finds what is planted, in a file of real rows, and nothing in histories of a log that behaves."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmlog.testing import history
from shmlog.testing.history import History, check, load, value_id

RECORDS = 20


class Book:
    """A history made by hand on a clock of its own, with sends() and finish() that are right: 10 sends of each of two producers, all read."""

    def __init__(self, path: Path) -> None:
        self.path = path / "planted.history"
        self.h = History(self.path)
        self.t = self.h.log("t", 0)
        self.now = 1000

    def tick(self) -> int:
        self.now += 10
        return self.now

    def send(self, value: int, offset: int | None, *, client: int = 0, crc: int = 7, disk: bool = False) -> int:
        """offset None: unknown, -1: failed."""
        token = self.h.send(self.t, value, client=client, crc=crc, disk=disk, begin_ns=self.tick())
        if offset is not None:
            self.h.fail(token, self.tick()) if offset < 0 else self.h.ok(token, offset, self.tick())
        return token

    def read(self, offset: int, value: int, *, client: int = 9, crc: int = 7) -> None:
        self.h.read(self.t, offset, value, self.tick(), self.tick(), client=client, crc=crc)

    def sends(self, without: tuple[int, ...] = ()) -> None:
        for n in range(RECORDS):
            if n not in without:
                self.send(value_id(n % 2, n // 2), n, client=n % 2)

    def finish(self, without: tuple[int, ...] = (), more: tuple[tuple[int, int], ...] = (), end: int = RECORDS) -> None:
        """The final read, of client 10, of all that sends() sent but `without`, and of `more` (offset, value)."""
        begin = self.tick()
        records = sorted([(n, value_id(n % 2, n // 2)) for n in range(RECORDS) if n not in without] + list(more))
        for offset, value in records:
            self.read(offset, value, client=10)
        self.h.final(self.t, 0, end, begin, self.tick(), client=10)

    def found(self, **options: bool) -> set[str]:
        self.h.close()
        return {anomaly.kind for anomaly in check(load([self.path]), **options)}


def test_a_clean_history_has_no_anomaly(tmp_path: Path) -> None:
    book = Book(tmp_path)
    book.sends()
    for n in range(RECORDS):
        book.read(n, value_id(n % 2, n // 2))
    book.finish()
    assert book.found() == set()


PLANTED: list[tuple[str, set[str], Callable[[Book], None]]] = []


def planted(*kinds: str) -> Callable[[Callable[[Book], None]], Callable[[Book], None]]:
    def add(plant: Callable[[Book], None]) -> Callable[[Book], None]:
        PLANTED.append((plant.__name__, set(kinds), plant))
        return plant

    return add


@planted("lost", "watermark_behind")
def acknowledged_and_cut_off_at_the_end(b: Book) -> None:
    b.sends()
    b.finish(without=(19,), end=19)


@planted("lost", "hole", "skipped")
def acknowledged_and_missing_in_the_middle(b: Book) -> None:
    b.sends()
    b.finish(without=(7,))


@planted("lost")
def acknowledged_and_passed_over_by_every_reader(b: Book) -> None:
    b.sends()
    for n in (5, 7):
        b.h.seek(b.t, n, client=9)
        b.read(n, value_id(n % 2, n // 2))


@planted("lost", "hole", "skipped", "real_time")
def of_unknown_outcome_read_once_and_gone_later(b: Book) -> None:
    b.sends(without=(9,))
    b.send(value_id(1, 4), None, client=5)
    b.read(9, value_id(1, 4))
    b.finish(without=(9,))


@planted("lost", "inconsistent_offset", "real_time")
def an_acknowledged_record_overwritten_by_another(b: Book) -> None:
    b.sends()
    b.send(value_id(2, 0), None, client=2)
    b.finish(without=(7,), more=((7, value_id(2, 0)),))


@planted("duplicate")
def one_value_at_two_offsets(b: Book) -> None:
    b.sends()
    b.send(value_id(2, 0), None, client=2)
    b.finish(more=((20, value_id(2, 0)), (21, value_id(2, 0))), end=22)


@planted("duplicate", "misplaced")
def an_acknowledged_value_a_second_time(b: Book) -> None:
    b.sends()
    b.finish(more=((20, value_id(0, 3)),), end=21)


@planted("misplaced", "watermark_behind")
def acknowledged_at_another_offset_than_it_has(b: Book) -> None:
    b.sends(without=(19,))
    b.send(value_id(1, 9), 23, client=1)
    b.finish()


@planted("inconsistent_offset")
def two_readers_see_two_values_at_one_offset(b: Book) -> None:
    b.sends()
    b.send(value_id(2, 0), None, client=2)
    b.send(value_id(2, 1), None, client=2)
    b.read(20, value_id(2, 0))
    b.read(20, value_id(2, 1), client=11)


@planted("inconsistent_offset")
def two_acknowledgements_of_one_offset(b: Book) -> None:
    b.sends()
    one = b.h.send(b.t, value_id(2, 0), client=2, begin_ns=b.tick())
    two = b.h.send(b.t, value_id(3, 0), client=3, begin_ns=b.tick())
    b.h.ok(one, 20, b.tick())
    b.h.ok(two, 20, b.tick())


@planted("phantom")
def a_value_that_nobody_sent(b: Book) -> None:
    b.sends()
    b.finish(more=((20, value_id(77, 0)),), end=21)


@planted("phantom")
def a_value_that_was_sent_to_another_partition(b: Book) -> None:
    b.sends()
    other = b.h.log("t", 1)
    b.h.send(other, value_id(2, 0), begin_ns=b.tick())
    b.finish(more=((20, value_id(2, 0)),), end=21)


@planted("failed_but_there")
def a_send_that_failed_is_read(b: Book) -> None:
    b.sends()
    b.send(value_id(2, 0), -1, client=2)
    b.finish(more=((20, value_id(2, 0)),), end=21)


@planted("from_the_future")
def read_before_it_was_sent(b: Book) -> None:
    b.read(0, value_id(0, 0))
    b.send(value_id(0, 0), None)


@planted("altered")
def a_record_with_other_bytes(b: Book) -> None:
    b.sends()
    b.read(3, value_id(1, 1), crc=8)


@planted("non_monotonic")
def a_consumer_reads_one_record_twice(b: Book) -> None:
    b.sends()
    for n in (3, 4, 4, 5):
        b.read(n, value_id(n % 2, n // 2))


@planted("non_monotonic")
def a_consumer_goes_back(b: Book) -> None:
    b.sends()
    for n in (3, 4, 3, 4):
        b.read(n, value_id(n % 2, n // 2))


@planted("skipped")
def a_consumer_passes_over_a_record(b: Book) -> None:
    b.sends()
    for n in (3, 4, 6):
        b.read(n, value_id(n % 2, n // 2))
    b.finish()


@planted("skipped")
def a_consumer_begins_behind_where_it_sought(b: Book) -> None:
    b.sends()
    b.h.seek(b.t, 3, client=9)
    b.read(4, value_id(0, 2))


@planted("seek_missed")
def a_consumer_begins_before_where_it_sought(b: Book) -> None:
    b.sends()
    b.h.seek(b.t, 3, client=9)
    b.read(2, value_id(0, 1))


@planted("reordered")
def two_sends_in_flight_of_one_producer_change_places(b: Book) -> None:
    b.sends()
    one = b.h.send(b.t, value_id(2, 0), client=2, begin_ns=b.tick())
    two = b.h.send(b.t, value_id(2, 1), client=2, begin_ns=b.tick())
    b.h.ok(two, 20, b.tick())
    b.h.ok(one, 21, b.tick())


@planted("reordered")
def two_sends_of_unknown_outcome_change_places(b: Book) -> None:
    b.sends()
    b.send(value_id(2, 0), None, client=2)
    b.send(value_id(2, 1), None, client=2)
    b.finish(more=((20, value_id(2, 1)), (21, value_id(2, 0))), end=22)


@planted("real_time")
def a_later_send_of_another_producer_stands_before(b: Book) -> None:
    b.sends(without=(7,))
    b.send(value_id(2, 0), 7, client=2)


@planted("real_time")
def a_send_that_began_after_a_read_stands_before_it(b: Book) -> None:
    b.send(value_id(2, 0), None, client=2)
    b.read(5, value_id(2, 0))
    b.send(value_id(3, 0), 4, client=3)


@planted("hole", "skipped")
def an_offset_that_holds_nothing(b: Book) -> None:
    b.sends(without=(7,))
    b.finish(without=(7,))


@planted("damaged", "skipped")
def an_acknowledged_record_that_was_named_as_lost(b: Book) -> None:
    b.sends()
    b.h.gap(b.t, 7)
    b.finish(without=(7,))


@planted("watermark_back")
def the_end_goes_back_for_one_client(b: Book) -> None:
    for end in (5, 6, 5):
        b.h.mark(b.t, history.END, end, b.tick(), b.tick())


@planted("watermark_back")
def the_high_watermark_goes_back_from_one_client_to_another(b: Book) -> None:
    b.h.mark(b.t, history.HIGH, 6, b.tick(), b.tick(), client=1)
    b.h.mark(b.t, history.HIGH, 5, b.tick(), b.tick(), client=2)


@planted("watermark_back")
def the_log_start_goes_back(b: Book) -> None:
    for start in (5, 4):
        b.h.mark(b.t, history.START, start, b.tick(), b.tick())


@planted("watermark_back")
def the_final_read_ends_below_an_end_that_was_seen(b: Book) -> None:
    b.sends()
    b.h.mark(b.t, history.END, 21, b.tick(), b.tick())
    b.finish()


@planted("watermark_behind")
def the_end_lies_below_an_acknowledged_record(b: Book) -> None:
    b.sends()
    b.h.mark(b.t, history.END, 19, b.tick(), b.tick())


@planted("watermark_behind")
def the_high_watermark_lies_below_a_record_that_was_read(b: Book) -> None:
    b.sends(without=(19,))
    b.send(value_id(1, 9), None, client=1)
    b.read(19, value_id(1, 9))
    b.h.mark(b.t, history.HIGH, 19, b.tick(), b.tick())


@planted("watermark_behind")
def durable_lies_below_an_acknowledgement_from_disk(b: Book) -> None:
    b.sends()
    b.send(value_id(2, 0), 20, client=2, disk=True)
    b.h.mark(b.t, history.DURABLE, 20, b.tick(), b.tick())


@planted("watermarks_crossed")
def durable_lies_above_spilled(b: Book) -> None:
    begin, end = b.tick(), b.tick()
    for which, offset in ((history.START, 0), (history.DURABLE, 9), (history.SPILLED, 8), (history.END, 12)):
        b.h.mark(b.t, which, offset, begin, end)


@planted("two_leaders")
def two_leaders_in_one_epoch(b: Book) -> None:
    b.h.leader(b.t, 5, 1, b.tick(), b.tick())
    b.h.leader(b.t, 5, 2, b.tick(), b.tick())


@planted("epoch_back")
def an_older_epoch_after_a_newer_one(b: Book) -> None:
    b.h.leader(b.t, 6, 1, b.tick(), b.tick())
    b.h.leader(b.t, 5, 2, b.tick(), b.tick())


@planted("two_leaders")
def two_coordinators_in_one_epoch(b: Book) -> None:
    log = b.h.named("coordinator")
    b.h.leader(log, 1, 100, b.tick(), b.tick())
    b.h.leader(log, 1, 101, b.tick(), b.tick())


@planted("stale_commit")
def a_zombies_commit_is_accepted(b: Book) -> None:
    b.h.commit(b.t, 1, 2, 5, b.tick(), b.tick(), client=1)
    b.h.commit(b.t, 1, 1, 7, b.tick(), b.tick(), client=2)


@planted("commit_back")
def a_commit_goes_back(b: Book) -> None:
    b.h.commit(b.t, 1, 1, 7, b.tick(), b.tick())
    b.h.commit(b.t, 1, 1, 5, b.tick(), b.tick())


@planted("commit_lost")
def a_commit_is_forgotten(b: Book) -> None:
    b.h.commit(b.t, 1, 1, 7, b.tick(), b.tick())
    b.h.committed(b.t, 1, 5, b.tick(), b.tick())


@planted("commit_lost")
def a_committed_offset_is_seen_to_go_back(b: Book) -> None:
    b.h.committed(b.t, 1, 7, b.tick(), b.tick())
    b.h.committed(b.t, 1, 5, b.tick(), b.tick())


@planted("value_reused")
def a_workload_that_sends_a_value_twice(b: Book) -> None:
    b.send(value_id(0, 0), 0)
    b.send(value_id(0, 0), None)


@planted("malformed")
def an_operation_that_ends_before_it_begins(b: Book) -> None:
    b.h.mark(b.t, history.END, 5, 100, 50)


def test_there_are_at_least_25_planted_anomalies_and_every_kind_is_among_them() -> None:
    assert len(PLANTED) >= 25
    assert {kind for _, kinds, _ in PLANTED for kind in kinds} == set(history.KINDS)


@pytest.mark.parametrize(("kinds", "plant"), [p[1:] for p in PLANTED], ids=[p[0] for p in PLANTED])
def test_a_planted_anomaly_is_found_and_nothing_else(tmp_path: Path, kinds: set[str], plant: Callable[[Book], None]) -> None:
    book = Book(tmp_path)
    plant(book)
    assert book.found() == kinds


def simulate(path: Path, seed: int, operations: int = 300) -> list[Path]:
    """Two files of a log that behaves: sends overlap, fail or are of unknown outcome (there or not); consumers lag and seek."""
    r = random.Random(seed)
    paths = [path / f"{seed}-{i}" for i in range(2)]
    files = [History(p) for p in paths]
    logs = [[h.log("t", n) for n in range(2)] for h in files]
    now, next_value = 0, 0
    log: list[list[tuple[int, int]]] = [[], []]  # (value, crc)
    pending: list[tuple[int, int, int, int, int | None]] = []  # file, token, partition, client, offset
    position: dict[tuple[int, int, int], int] = {}

    def tick() -> int:
        nonlocal now
        now += r.randrange(1, 20)
        return now

    for _ in range(operations):
        file, partition, client = r.randrange(2), r.randrange(2), r.randrange(3)
        h, number = files[file], logs[file][partition]
        what = r.randrange(10)
        if what < 4 and not any(p[0] == file and p[3] == client for p in pending):
            token = h.send(number, next_value, client=client, crc=next_value % 97, begin_ns=tick())
            offset = None
            fate = r.randrange(10)
            if fate > 0:
                log[partition].append((next_value, next_value % 97))
                offset = len(log[partition]) - 1
            next_value += 1
            if fate == 1:
                pass  # it is there, and nobody was told
            elif fate == 0:
                if r.random() < 0.5:
                    h.fail(token, tick())
            else:
                pending.append((file, token, partition, client, offset))
        elif what < 6 and pending:
            done = pending.pop(r.randrange(len(pending)))
            assert done[4] is not None
            files[done[0]].ok(done[1], done[4], tick())
        elif what < 8:
            reader = (file, client + 10, partition)
            if r.random() < 0.1:
                position[reader] = r.randrange(len(log[partition]) + 1)
                h.seek(number, position[reader], client=client + 10)
            at = position.get(reader, 0)
            begin, some = tick(), r.randrange(5)
            end = tick()
            for offset, (value, crc) in enumerate(log[partition][at : at + some], at):
                h.read(number, offset, value, begin, end, client=client + 10, crc=crc)
                position[reader] = offset + 1
        else:
            begin, end = tick(), tick()
            for which in (history.START, history.DURABLE, history.HIGH, history.END):
                offset = 0 if which == history.START else len(log[partition]) // 2 if which == history.DURABLE else len(log[partition])
                h.mark(number, which, offset, begin, end, client=client)
            h.leader(number, now // 1000, now // 1000 % 3, begin, end, client=client)
            h.commit(number, 1, now // 1000, len(log[partition]) // 2, begin, end, client=client)
            h.committed(number, 1, len(log[partition]) // 2, begin, end, client=client)
    for partition in range(2):
        begin = tick()
        for offset, (value, crc) in enumerate(log[partition]):
            files[0].read(logs[0][partition], offset, value, begin, tick(), client=99, crc=crc)
        files[0].final(logs[0][partition], 0, len(log[partition]), begin, tick(), client=99)
    files[0].close()  # the other is left as a killed writer leaves it
    return paths


@given(st.integers(0, 1 << 30))
@settings(max_examples=60)
def test_a_log_that_behaves_has_no_anomaly(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    assert check(load(simulate(tmp_path_factory.mktemp("h"), seed))) == []


def test_what_names_an_offset_as_lost_excuses_the_hole_and_the_skip(tmp_path: Path) -> None:
    book = Book(tmp_path)
    book.sends(without=(7,))
    begin = book.tick()
    for n in range(RECORDS):
        if n == 7:
            book.h.gap(book.t, 7, client=10)
        else:
            book.read(n, value_id(n % 2, n // 2), client=10)
    book.h.final(book.t, 0, RECORDS, begin, book.tick(), client=10)
    assert book.found() == set()


def test_expected_gaps_and_rewinds_are_no_anomalies(tmp_path: Path) -> None:
    book = Book(tmp_path)
    book.sends(without=(7,))
    book.finish(without=(7,))
    book.h.commit(book.t, 1, 1, 7, book.tick(), book.tick())
    book.h.commit(book.t, 1, 1, 3, book.tick(), book.tick(), rewind=True)
    book.h.committed(book.t, 1, 3, book.tick(), book.tick())
    assert book.found(gaps=True) == set()


def test_many_of_a_kind_are_counted_and_a_few_are_shown(tmp_path: Path) -> None:
    book = Book(tmp_path)
    book.finish()
    book.h.close()
    anomalies = check(load([book.path]), most=5)
    assert [a.message for a in anomalies][-1] == "15 more of this kind" and len(anomalies) == 6


WRITER = """
import sys
from shmlog.testing.history import History
h = History(sys.argv[1])
log = h.log("t", 0)
for n in range(1 << 40):
    token = h.send(log, n)
    h.ok(token, n)
    if n == 5000: print("writing", flush=True)
"""


def test_a_history_outlives_kill_9_of_its_writer_with_at_most_one_operation_of_unknown_outcome(tmp_path: Path) -> None:
    path = tmp_path / "h"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
    assert writer.stdout and writer.stdout.readline() == b"writing\n"
    os.kill(writer.pid, signal.SIGKILL)
    writer.communicate()
    operations = load([path])
    sends = operations.rows[operations.rows["kind"] == history.SEND]
    assert len(sends) > 5000
    assert (sends["outcome"][:-1] == history.OK).all()
    assert (sends["value"] == np.arange(len(sends))).all()
    assert check(operations) == []


@pytest.mark.parametrize("cut", range(1, 64, 9))
def test_a_torn_last_row_is_none(tmp_path: Path, cut: int) -> None:
    book = Book(tmp_path)
    book.sends()
    book.h.close()
    whole = book.path.read_bytes()
    book.path.write_bytes(whole[:-cut])
    assert len(load([book.path]).rows) == len(whole) // 64 - 2


@pytest.mark.parametrize("size", [0, 1, 64, 4096])
def test_a_file_whose_writer_was_killed_while_it_made_it_holds_nothing(tmp_path: Path, size: int) -> None:
    (tmp_path / "h").write_bytes(bytes(size))
    assert len(load([tmp_path / "h"]).rows) == 0


def test_the_command_prints_what_it_found_with_its_evidence(tmp_path: Path) -> None:
    book = Book(tmp_path)
    acknowledged_and_missing_in_the_middle(book)
    book.h.close()
    command = [sys.executable, "-m", "shmlog.testing.history", str(book.path)]
    bad = subprocess.run(command, capture_output=True, text=True, check=False)
    assert bad.returncode == 1
    assert "lost: t-0: acknowledged at offset 7, not in the final read of 0 to 20" in bad.stdout
    assert "planted.history row 8: send (ok), client 1, value 1.3, offset 7" in bad.stdout
    book.path.write_bytes(b"something else")
    other = subprocess.run(command, capture_output=True, text=True, check=False)
    assert other.returncode == 2 and "is no history" in other.stderr and other.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_million_operations_are_checked(tmp_path: Path) -> None:
    """Half sends of eight producers, half reads; the time is printed (the promise is a minute)."""
    n = 500_000
    rows = np.zeros(2 * n + 2, history.ROW)
    rows[0] = (history.NAME, history.OK, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0)
    raw = rows[:1].view(np.uint8).copy()
    raw[24:27] = np.frombuffer(b"t-0", np.uint8)
    rows[:1] = raw.view(history.ROW)
    at, sends, reads = np.arange(n), rows[1 : n + 1], rows[n + 1 : 2 * n + 1]
    for part, kind in ((sends, history.SEND), (reads, history.READ)):
        part["kind"], part["outcome"], part["value"], part["offset"], part["extra"] = kind, history.OK, at, at, at + 1
    sends["client"], sends["begin_ns"], sends["end_ns"] = at % 8, at * 10, at * 10 + 75
    reads["client"], reads["begin_ns"], reads["end_ns"] = 9, n * 10 + at * 10 + 100, n * 10 + at * 10 + 110
    rows[-1] = (history.FINAL, history.OK, 0, 0, 9, 0, 0, 0, n * 10 + 99, n * 20 + 200, n, 0)
    path = tmp_path / "million"
    path.write_bytes(history.HEADER.pack(history.MAGIC, history.VERSION, history.ROW.itemsize, 1) + rows.tobytes())
    begin = time.perf_counter()
    assert check(load([path])) == []
    print(f"{2 * n} operations checked in {time.perf_counter() - begin:.2f} s")
    sends["offset"][n // 2], sends["offset"][n // 2 + 8] = sends["offset"][n // 2 + 8], sends["offset"][n // 2]
    path.write_bytes(history.HEADER.pack(history.MAGIC, history.VERSION, history.ROW.itemsize, 1) + rows.tobytes())
    assert {a.kind for a in check(load([path]))} == {"misplaced", "reordered", "real_time", "inconsistent_offset"}
