"""How late is a record at a steady rate? (open loop: from the time it was due, so that a stall counts for all records that it held up)"""

from __future__ import annotations

from functools import partial

import numpy as np

from . import measure
from .harness import Cell, Plan
from .peers import Peer

FIGURE, UNIT, LESS_IS_BETTER = "p50_us", "us", True


def cells(plan: Plan, peers: list[type[Peer]]) -> list[Cell]:
    found = []
    for rate, wait in ((10_000, "block"), (1_000, "block"), (10_000, "spin"), (50_000, "spin")) if plan.full else ((10_000, "block"),):
        gaps = np.full(max(100, int(rate * plan.seconds * 2)), 1_000_000_000 // rate, np.int64)
        for peer in peers:
            if "paced" in peer.can and (wait == "spin" or "blocking" in peer.can):
                case = f"{rate // 1000} k/s, receiver {'sleeping' if wait == 'block' else 'polling'}"
                found.append(Cell("paced", case, peer.name, partial(measure.open_loop, peer, 64, gaps, wait), plan.rounds_of(peer)))
    return found
