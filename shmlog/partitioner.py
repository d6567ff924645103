"""Which partition a record goes to: by key exactly as Kafka's Java client, without a key sticky.

Pure functions and a state that is told sizes and times; no clock and no randomness inside. The C core has its own murmur2 for
the hot path; this one is the reference it is tested against.
"""

from __future__ import annotations

STICKY_BYTES = 64 * 1024
STICKY_NS = 1_000_000

_M = 0x5BD1E995
_SEED = 0x9747B28C
_MASK = 0xFFFFFFFF


def murmur2(data: bytes) -> int:
    """MurmurHash2 of Kafka's Java client, as the signed 32-bit number that Java shows."""
    h = _SEED ^ len(data)
    end = len(data) & ~3
    for i in range(0, end, 4):
        k = int.from_bytes(data[i : i + 4], "little") * _M & _MASK
        h = (h * _M & _MASK) ^ ((k ^ k >> 24) * _M & _MASK)
    if end != len(data):
        h = (h ^ int.from_bytes(data[end:], "little")) * _M & _MASK
    h = (h ^ h >> 13) * _M & _MASK
    h ^= h >> 15
    return h - 0x1_0000_0000 if h & 0x8000_0000 else h


def partition_for_key(key: bytes, num_partitions: int) -> int:
    """toPositive(murmur2(key)) % n: Java masks the sign bit, it does not take the absolute value."""
    return (murmur2(key) & 0x7FFF_FFFF) % num_partitions


class Sticky:
    """Keeps to one partition for 64 KiB or 1 ms, whichever is first, then takes the next.

    Staying makes batches; moving on spreads the load, also for a producer of one record a minute, whose records then simply
    go around. `start` should differ between producers, or all of them crowd the same partition at the same time.
    """

    __slots__ = ("_next", "_partition", "_bytes", "_since_ns")

    def __init__(self, start: int = 0) -> None:
        self._next = start
        self._partition = -1
        self._bytes = 0
        self._since_ns = 0

    def choose(self, nbytes: int, now_ns: int, num_partitions: int) -> int:
        """The partition for a record of nbytes sent at now_ns (monotonic); num_partitions may grow between calls."""
        if (
            self._partition < 0
            or self._partition >= num_partitions  # the topic was deleted and made again, smaller
            or self._bytes >= STICKY_BYTES
            or now_ns - self._since_ns >= STICKY_NS
        ):
            self._partition = self._next % num_partitions
            self._next = self._partition + 1
            self._bytes = 0
            self._since_ns = now_ns
        self._bytes += nbytes
        return self._partition
