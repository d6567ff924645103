"""What does a record cost that is on the disk before the next is sent? (fdatasync has returned; one, and 500 together)"""

from __future__ import annotations

from functools import partial

from . import measure
from .harness import Cell, Plan
from .peers import Peer

FIGURE, UNIT, LESS_IS_BETTER = "records_per_s", "/s", False


def cells(plan: Plan, peers: list[type[Peer]]) -> list[Cell]:
    return [
        Cell(
            "durable",
            f"{n} x 100 B" if n > 1 else "100 B, one at a time",
            peer.name,
            partial(measure.commits, peer, 100, plan.seconds, n),
            plan.rounds_of(peer),
        )
        for n in (1, 500)
        for peer in peers
        if "durable" in peer.can
    ]
