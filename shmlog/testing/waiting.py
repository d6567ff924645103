"""Waiting for a condition, with a deadline that turns a hang into a failure."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

LOOK_S = 0.005  # between two looks those we wait for have the CPU
STALL_S = 1.0


class Hang(AssertionError):
    """What was waited for has not come."""


def until(condition: Callable[[], Any], what: str, seconds: float = 120) -> Any:
    """The condition's value, once it is true; what is waited for takes milliseconds.

    Of the time between two looks at most STALL_S counts: a virtual machine that stood still for 20 s has been seen here, and nobody hung in it."""
    waited, last = 0.0, time.monotonic()
    while not (value := condition()):
        if waited >= seconds:
            raise Hang(f"not within {seconds:g} s: {what}")
        threading.Event().wait(LOOK_S)
        now = time.monotonic()
        waited += min(now - last, STALL_S)
        last = now
    return value
