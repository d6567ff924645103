"""Where a follower's log parts from its leader's: every history of leaders, cuts and copies ends with a prefix of the leader's log."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shmlog.broker.replication import parting

Log = list[int]  # the leader epoch of each record; what stands at an offset under an epoch is the same everywhere


def files(log: Log) -> list[tuple[int, int]]:
    return [(n, epoch) for n, epoch in enumerate(log) if n == 0 or log[n - 1] != epoch]


def cut(log: Log, epoch: int, end: int) -> Log:
    """What recovery.cut() does."""
    end = min([end, *(n for n, e in enumerate(log) if e > epoch)])
    return log[:end]


def follow(leader: Log, follower: Log) -> Log:
    """The follower's log when the leader has nothing to object to any more."""
    for _ in range(len(set(leader)) + len(set(follower)) + 2):
        found = parting(files(leader), len(leader), len(follower), follower[-1] if follower else 0)
        if found is None:
            return follower
        epoch, end, begin = found
        assert not begin  # both begin at 0 here
        shorter = cut(follower, epoch, end)
        assert len(shorter) <= len(follower)
        follower = shorter
    raise AssertionError("they never agree")


@given(st.data())
def test_a_follower_ends_with_a_prefix_of_the_leaders_log(data: st.DataObject) -> None:
    """Random lives of three replicas: each epoch somebody leads and appends, others follow and copy a part; then a follower meets a leader."""
    logs: list[Log] = [[], [], []]
    for epoch in range(1, data.draw(st.integers(2, 7))):
        leader = data.draw(st.integers(0, 2))
        logs[leader] = logs[leader] + [epoch] * data.draw(st.integers(0, 3))
        for n in range(3):
            if n != leader and data.draw(st.booleans()):
                logs[n] = follow(logs[leader], logs[n])
                assert logs[n] == logs[leader][: len(logs[n])]
                logs[n] = logs[leader][: data.draw(st.integers(len(logs[n]), len(logs[leader])))]


@given(st.lists(st.integers(1, 4), max_size=12), st.integers(0, 12), st.integers(0, 12))
def test_a_follower_that_is_merely_behind_loses_nothing(epochs: Log, end: int, start: int) -> None:
    log = sorted(epochs)
    end = min(end, len(log))
    start = min(start, end)
    kept = [(max(base, start), epoch) for base, epoch in files(log)]
    kept = [file for n, file in enumerate(kept) if n + 1 == len(kept) or kept[n + 1][0] > start]
    last = log[end - 1] if end else 0
    assert parting(kept, len(log), end, last) is None


def test_a_follower_below_the_leaders_beginning_begins_there() -> None:
    assert parting([(100, 2), (200, 3)], 250, 40, 1) == (0, 100, True)
    assert parting([], 300, 40, 1) == (0, 300, True)
