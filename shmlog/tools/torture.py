"""`shmlog torture`: how its report looks. What it does is shmlog.testing.torture."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

from shmlog.testing import torture
from shmlog.testing.torture import Report

Style = Callable[[str], str]


def run(minutes: float, brokers: int, seed: int | None, keep: str | None, show_progress: bool) -> Report:
    def tell(what: str, share: float) -> None:
        sys.stderr.write(f"\r\033[K  {min(share, 1):4.0%}  {what}")
        sys.stderr.flush()

    try:
        return torture.run(minutes, brokers, seed, keep, tell if show_progress else None)
    finally:
        if show_progress:
            sys.stderr.write("\r\033[K")


def lines(report: Report, *, held: Style = str, broken: Style = str, dim: Style = str) -> Iterator[str]:
    total = sum(report.faults.values())
    yield f"{total} faults in {report.took_s:.0f} s on a private cluster of {report.brokers} broker{'s' * (report.brokers != 1)}, seed {report.seed}"
    faults = ", ".join(f"{n} × {what}" for what, n in report.faults.items())
    yield from (dim(line) for line in textwrap.wrap(faults, 110, initial_indent="  ", subsequent_indent="  "))
    yield ""
    width = max(len(o.promise) for o in report.observed)
    for o in report.observed:
        yield f"{held('held  ') if o.held else broken('BROKEN')}  {o.promise:<{width}}  {o.seen}"
    for problem in report.anomalies[:20]:
        yield broken(problem)
    q = report.queue
    yield ""
    got = f"{q['acknowledged']:,} put, {q['received']:,} came: {q['lost']:,} lost" + (", and it is stuck" if q["stuck"] else "")
    yield f"beside it: multiprocessing.Queue, its users killed {q['kills']} times: {got}"
    if report.kept:
        yield f"the histories are in {report.kept} (python -m shmlog.testing.history FILES)"


def as_dict(report: Report) -> dict[str, Any]:
    return {**report._asdict(), "held": report.held, "observed": [o._asdict() for o in report.observed]}
