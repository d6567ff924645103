"""How many records a second, one a call? (lossless, unless a peer cannot: then what was lost is shown)"""

from __future__ import annotations

from functools import partial

from . import measure
from .harness import Cell, Plan
from .peers import Peer
from .words import size

FIGURE, UNIT, LESS_IS_BETTER = "records_per_s", "/s", False


def cells(plan: Plan, peers: list[type[Peer]]) -> list[Cell]:
    return [
        Cell("rate", f"{size(value_bytes)}, one a call", peer.name, partial(measure.stream, peer, value_bytes, plan.seconds), plan.rounds_of(peer))
        for value_bytes in ((100, 1024, 16384) if plan.full else (100,))
        for peer in peers
        if "rate" in peer.can
    ]
