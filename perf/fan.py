"""What do more producers, consumers and partitions do to the rate? (100 B, one a call; where they outnumber the cores the scheduler is measured too)"""

from __future__ import annotations

from functools import partial

from . import measure
from .harness import Cell, Plan
from .peers import Peer

FIGURE, UNIT, LESS_IS_BETTER = "records_per_s", "/s", False
SHAPES = ((2, 1, 1), (4, 1, 1), (8, 1, 1), (1, 1, 16), (1, 2, 2), (2, 2, 4), (4, 4, 16), (8, 8, 64))


def cells(plan: Plan, peers: list[type[Peer]]) -> list[Cell]:
    found = []
    for producers, consumers, partitions in SHAPES if plan.full else ((2, 1, 1), (2, 2, 4)):
        for peer in peers:
            needs = ({"producers"} if producers > 1 else set()) | ({"partitions"} if partitions > 1 else set())
            if "rate" in peer.can and needs <= peer.can:
                case = f"{producers} to {consumers}, {partitions} partition{'s' * (partitions != 1)}"
                run = partial(measure.stream, peer, 100, plan.seconds, senders=producers, receivers=consumers, channels=partitions)
                found.append(Cell("fan", case, peer.name, run, None if plan.full else 2))
    return found
