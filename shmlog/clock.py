"""Time and deadlines. Every timer uses the monotonic clock, which does not step; the wall clock only stamps.

`timeout` is in seconds and None waits long (a year: no wait is without an end); a deadline is absolute, in monotonic nanoseconds as the C core
wants it, and is made once where a call comes in, so that its parts share it.
"""

from __future__ import annotations

import time

monotonic_ns = time.monotonic_ns
wall_ns = time.time_ns

NS = 1_000_000_000
MS = 1_000_000
FOREVER_NS = 365 * 86400 * NS


def deadline_ns(timeout: float | None) -> int:
    return monotonic_ns() + (FOREVER_NS if timeout is None else min(max(0, int(timeout * NS)), FOREVER_NS))


def left(deadline: int) -> float:
    """Seconds until `deadline`, 0.0 when it has passed."""
    return max(0, deadline - monotonic_ns()) / NS
