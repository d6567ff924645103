"""Decisions about files: facts in, decisions out, no I/O and no clock."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shmlog import config
from shmlog.broker.retention import Clock, FileFacts, Policy, decide, make_room, policy

S = 1_000_000_000
FOREVER = Policy(delete=True, retention_ns=-1, retention_bytes=-1, roll_ns=-1)


def files(*ends: int, size: int = 100, appended: list[int] | None = None, active: bool = True) -> list[FileFacts]:
    """Files that end at these offsets; the last is being written unless told otherwise."""
    facts, base = [], 0
    for i, end in enumerate(ends):
        last = i + 1 == len(ends)
        facts.append(FileFacts(f"{base:020d}-1.log", base, end, size, appended[i] if appended else 0, 0, active and last))
        base = end
    return facts


def test_nothing_goes_without_a_limit() -> None:
    assert not decide(files(10, 20, 30), 0, FOREVER, 10**18)


def test_files_go_whose_last_append_is_too_old() -> None:
    rules = FOREVER._replace(retention_ns=100 * S)
    decision = decide(files(10, 20, 30, appended=[0, 50 * S, 200 * S]), 0, rules, 149 * S)
    assert decision.remove == ("00000000000000000000-1.log",)
    assert decision.log_start == 10
    assert not decision.roll


def test_the_oldest_go_first_even_if_a_later_one_is_older_by_its_clock() -> None:
    rules = FOREVER._replace(retention_ns=100 * S)
    assert not decide(files(10, 20, 30, appended=[150 * S, 0, 200 * S]), 0, rules, 200 * S).remove


def test_a_quiet_topic_loses_its_active_file_by_a_roll() -> None:
    rules = FOREVER._replace(retention_ns=100 * S)
    decision = decide(files(10, 20), 0, rules, 101 * S)
    assert decision.remove == ("00000000000000000000-1.log",)
    assert decision.roll
    closed = decide(files(10, 20, active=False)[1:], decision.log_start, rules, 101 * S)
    assert closed.remove == ("00000000000000000010-1.log",)
    assert closed.log_start == 20
    assert not closed.roll


def test_an_empty_active_file_is_not_rolled() -> None:
    rules = FOREVER._replace(retention_ns=1, roll_ns=1)
    assert not decide(files(0), 0, rules, 100 * S)


def test_the_log_is_cut_to_retention_bytes_but_not_below() -> None:
    rules = FOREVER._replace(retention_bytes=250)
    decision = decide(files(10, 20, 30, 40), 0, rules, 0)
    assert decision.remove == ("00000000000000000000-1.log",)  # 300 left, and 200 would be too few
    assert not decision.roll
    assert decide(files(10, 20, 30, 40), 0, rules._replace(retention_bytes=300), 0).log_start == 10
    assert decide(files(10, 20, 30, 40), 0, rules._replace(retention_bytes=0), 0).log_start == 30  # the active one stays


def test_what_lies_below_the_log_start_goes_under_any_policy() -> None:
    compact = Policy(delete=False, retention_ns=1, retention_bytes=0, roll_ns=-1)
    decision = decide(files(10, 20, 30), 20, compact, 10**18)
    assert len(decision.remove) == 2
    assert decision.log_start == 20
    assert not decision.roll
    assert decide(files(10, 20, 30), 30, compact, 0).roll  # DeleteRecords to the end takes the active file too
    assert not decide(files(10, 20, 30), 19, compact, 0).remove[1:]  # a file that is needed in part stays whole
    assert decide(files(10, 20, 30), 15, compact, 0).log_start == 15


def test_a_file_is_rolled_at_its_age() -> None:
    rules = FOREVER._replace(roll_ns=100 * S)
    assert decide(files(10, 20), 0, rules, 101 * S).roll
    assert not decide(files(10, 20), 0, rules, 100 * S).roll
    assert not decide(files(10, 20, active=False), 0, rules, 10**18).roll


def test_policy_reads_the_topics_config() -> None:
    assert policy(config.topic_config({})) == Policy(True, 7 * 86400 * S, -1, 7 * 86400 * S)
    assert policy(config.topic_config({"cleanup.policy": "compact", "retention.ms": "-1"})) == Policy(False, -1, -1, 7 * 86400 * S)


def test_the_guard_takes_the_oldest_closed_files_of_all_partitions() -> None:
    one = files(10, 20, 30, appended=[5, 9, 20])
    other = files(10, 20, appended=[7, 8])
    kept = files(10, 20, appended=[0, 0])
    found = make_room([(1, FOREVER, one), (2, FOREVER, other), (3, FOREVER._replace(delete=False), kept)], 250)
    assert [(r.partition, r.file.base_offset) for r in found] == [(1, 0), (2, 0), (1, 10)]
    assert make_room([(1, FOREVER, one)], 0) == []
    assert len(make_room([(1, FOREVER, one)], 10**9)) == 2  # never the one being written


def test_a_step_of_the_clock_is_not_believed_but_a_drift_is() -> None:
    clock = Clock(1000 * S, 0)
    assert clock.now_ns(1001 * S, S) == 1001 * S
    assert clock.now_ns(1002 * S + S // 2, 2 * S) == 1002 * S + S // 2  # drifted
    assert clock.now_ns((1002 + 86400) * S, 3 * S) == 1003 * S + S // 2  # set a day ahead
    assert clock.now_ns(5 * S, 4 * S) == 1004 * S + S // 2


@given(
    sizes=st.lists(st.tuples(st.integers(1, 50), st.integers(0, 1000), st.integers(0, 100)), max_size=12),
    active=st.booleans(),
    log_start=st.integers(0, 200),
    retention_ns=st.integers(-1, 120),
    retention_bytes=st.integers(-1, 3000),
    now=st.integers(0, 250),
)
def test_what_is_left_is_one_piece_and_the_log_start_never_goes_back(
    sizes: list[tuple[int, int, int]], active: bool, log_start: int, retention_ns: int, retention_bytes: int, now: int
) -> None:
    facts, base = [], 0
    for i, (count, size, appended) in enumerate(sizes):
        facts.append(FileFacts(str(i), base, base + count, size, appended, appended, active and i + 1 == len(sizes)))
        base += count
    decision = decide(facts, log_start, Policy(True, retention_ns, retention_bytes, -1), now)
    assert decision.log_start >= log_start
    assert decision.remove == tuple(f.name for f in facts[: len(decision.remove)])  # a prefix
    left = facts[len(decision.remove) :]
    assert all(f.end_offset <= decision.log_start for f in facts[: len(decision.remove)])
    assert not left or left[0].end_offset > decision.log_start or left[0].active
    assert not (active and facts and facts[-1].name in decision.remove)
    if retention_bytes >= 0 and decision.remove and retention_ns < 0 and log_start == 0:
        assert sum(f.size for f in left) >= retention_bytes
