"""How many records a second in batches of 500, objects out?"""

from __future__ import annotations

from functools import partial

from . import measure
from .harness import Cell, Plan
from .peers import Peer
from .words import size

FIGURE, UNIT, LESS_IS_BETTER = "records_per_s", "/s", False


def cells(plan: Plan, peers: list[type[Peer]]) -> list[Cell]:
    return [
        Cell("batch", f"{n} x {size(value_bytes)}", peer.name, partial(measure.stream, peer, value_bytes, plan.seconds, n), plan.rounds_of(peer))
        for n, value_bytes in (((500, 100), (50, 1024)) if plan.full else ((500, 100),))
        for peer in peers
        if "batch" in peer.can
    ]
