"""How fast do megabytes get across: copied, and written and read in place?"""

from __future__ import annotations

from functools import partial

from . import measure
from .harness import Cell, Plan
from .peers import Peer
from .words import size

FIGURE, UNIT, LESS_IS_BETTER = "records_per_s", "/s", False
FIGURES = {"in place": ("gb_per_s", "GB/s", False), "hand-off": ("hand_off_us", "us", True)}


def cells(plan: Plan, peers: list[type[Peer]]) -> list[Cell]:
    found = []
    for value_bytes in (1 << 16, 1 << 20, 1 << 24) if plan.full else (1 << 20,):
        for peer in peers:
            if "large" in peer.can:
                found.append(Cell("large", f"{size(value_bytes)}, copied", peer.name, partial(measure.stream, peer, value_bytes, plan.seconds)))
    for value_bytes in (1 << 16, 1 << 20, 1 << 24) if plan.full else (1 << 20,):
        for peer in peers:
            if "loan" in peer.can:
                found.append(Cell("large", f"{size(value_bytes)}, in place", peer.name, partial(measure.loans, peer, value_bytes, plan.seconds, True)))
    for value_bytes in (1 << 16, 1 << 20, 1 << 24, 60 << 20) if plan.full else (1 << 16, 1 << 22):
        for peer in peers:
            if "loan" in peer.can:
                found.append(Cell("large", f"{size(value_bytes)}, hand-off", peer.name, partial(measure.loans, peer, value_bytes, plan.seconds, False)))
    return found
