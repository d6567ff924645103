"""HdrHistograms out of arrays of nanoseconds: three significant digits from 1 ns to a minute, mergeable, and portable (base64 of HdrHistogram's V2
format).

record_value() of the Python package costs microseconds, so nothing is recorded while the clock runs: the ends keep raw numbers in an array made
before, and here equal buckets are counted by numpy and recorded once with their count.
"""

from __future__ import annotations

from typing import Any

import numpy as np

HIGHEST_NS = 60_000_000_000
DIGITS = 3
_SUB_BUCKET_BITS = 11  # 2,048 buckets a power of two: what HdrHistogram makes of three digits

# One minus these is the share of records that were slower; the x axis of a percentile curve is logarithmic in it.
CURVE = tuple(sorted({0.0, *(1 - 10 ** (-k / 12) for k in range(61)), 0.5, 0.9, 0.99, 0.999, 0.9999}))


def make(values_ns: np.ndarray[Any, Any]) -> Any:
    from hdrh.histogram import HdrHistogram

    found = HdrHistogram(1, HIGHEST_NS, DIGITS)
    if len(values_ns):
        v = np.clip(values_ns.astype(np.int64), 1, HIGHEST_NS)
        shift = np.maximum(np.frexp(v.astype(np.float64))[1] - _SUB_BUCKET_BITS, 0)
        for value, count in zip(*np.unique((v >> shift) << shift, return_counts=True), strict=True):
            found.record_value(int(value), int(count))
    return found


def decode(text: str) -> Any:
    from hdrh.histogram import HdrHistogram

    return HdrHistogram.decode(text)


def encode(histogram: Any) -> str:
    return str(histogram.encode().decode())


def merged(texts: list[str]) -> Any:
    total = make(np.empty(0, np.int64))
    for text in texts:
        total.add(decode(text))
    return total


def at(histogram: Any, share: float) -> int:
    """The value that `share` of the records do not exceed, ns."""
    return int(histogram.get_value_at_percentile(100 * share))


def curve(histogram: Any) -> list[tuple[float, int]]:
    """[(share, ns), ...], no further out than one record in the histogram can say."""
    n = histogram.get_total_count()
    return [(p, at(histogram, p)) for p in CURVE if n and 1 - p >= 1 / n]
