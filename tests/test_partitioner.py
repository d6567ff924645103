"""shmlog.partitioner: where a record goes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmlog.partitioner import STICKY_BYTES, STICKY_NS, Sticky, murmur2, partition_for_key

# The first six are those of Kafka's own UtilsTest; the others are further outputs of the Java client, covering each length of tail.
VECTORS = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
    b"": 275646681,
    b"a": -1563381124,
    b"ab": 316155434,
}
# (key, murmur2, partition of 3) of Java's LongSerializer: bytes above 127 and negative hashes.
LONGS = [(0, -522759933, 2), (3, -1040460169, 1), (7, 748052315, 2), (100, 25822921, 1), (-1, 185950397, 2)]


@pytest.mark.parametrize("key", VECTORS)
def test_murmur2_is_that_of_the_java_client(key: bytes) -> None:
    assert murmur2(key) == VECTORS[key]


@pytest.mark.parametrize(("number", "hashed", "partition"), LONGS)
def test_partition_of_a_long_key_is_that_of_the_java_client(number: int, hashed: int, partition: int) -> None:
    key = struct.pack(">q", number)
    assert (murmur2(key), partition_for_key(key, 3)) == (hashed, partition)


@given(st.binary(max_size=300), st.integers(1, 16384))
def test_partition_exists_and_depends_on_the_bytes_alone(key: bytes, n: int) -> None:
    assert 0 <= partition_for_key(key, n) < n
    assert partition_for_key(key, n) == partition_for_key(bytes(bytearray(key)), n)


def test_sticky_stays_until_64_kib_are_sent() -> None:
    sticky = Sticky()
    chosen = [sticky.choose(STICKY_BYTES // 4, now_ns=5, num_partitions=3) for _ in range(12)]
    assert chosen == [0] * 4 + [1] * 4 + [2] * 4


def test_sticky_moves_on_after_a_millisecond() -> None:
    sticky = Sticky()
    times = (0, STICKY_NS - 1, STICKY_NS, 2 * STICKY_NS - 1, 2 * STICKY_NS)
    assert [sticky.choose(1, t, 3) for t in times] == [0, 0, 1, 1, 2]


def test_sticky_of_a_slow_producer_goes_around() -> None:
    sticky = Sticky(start=2)
    assert [sticky.choose(1, t * 10**9, 4) for t in range(6)] == [2, 3, 0, 1, 2, 3]


def test_sticky_takes_a_record_larger_than_its_measure_whole() -> None:
    sticky = Sticky()
    assert [sticky.choose(10 * STICKY_BYTES, 0, 2) for _ in range(3)] == [0, 1, 0]


def test_sticky_follows_a_changed_number_of_partitions() -> None:
    sticky = Sticky(start=5)
    assert sticky.choose(1, 0, 8) == 5
    assert sticky.choose(1, 0, 4) == 2  # made again with fewer: never a partition that is not there
    assert sticky.choose(STICKY_BYTES, 0, 4) == 2
    assert sticky.choose(1, 0, 16) == 3


@given(st.lists(st.tuples(st.integers(0, 200_000), st.integers(0, 2_000_000)), max_size=200), st.integers(1, 50))
def test_sticky_never_overstays(sends: list[tuple[int, int]], n: int) -> None:
    sticky, now, since, sent, last = Sticky(), 0, 0, 0, -1
    for nbytes, gap in sends:
        now += gap
        partition = sticky.choose(nbytes, now, n)
        assert 0 <= partition < n
        if partition != last or sent >= STICKY_BYTES or now - since >= STICKY_NS:
            since, sent, last = now, 0, partition
        sent += nbytes
        assert sent - nbytes < STICKY_BYTES and now - since < STICKY_NS
