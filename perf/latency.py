"""How long does a record take to another process, one in flight? (closed loop, half of the way there and back)"""

from __future__ import annotations

from functools import partial

from . import measure
from .harness import Cell, Plan
from .peers import Peer
from .words import size

FIGURE, UNIT, LESS_IS_BETTER = "p50_us", "us", True


def cells(plan: Plan, peers: list[type[Peer]]) -> list[Cell]:
    found = []
    for value_bytes in (64, 1024, 16384, 1 << 18) if plan.full else (64,):
        for peer in peers:
            if "latency" in peer.can:
                found.append(
                    Cell(
                        "latency",
                        f"{size(value_bytes)}, both polling",
                        peer.name,
                        partial(measure.pingpong, peer, value_bytes, plan.seconds),
                        plan.rounds_of(peer),
                    )
                )
    if plan.full:
        for peer in peers:
            if {"latency", "blocking"} <= peer.can:
                found.append(Cell("latency", "64 B, both sleeping", peer.name, partial(measure.pingpong, peer, 64, plan.seconds, "block")))
    return found
