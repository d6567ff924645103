"""shmlog bench: latency and throughput of ways to get bytes from one process to another on this machine, so that one can choose.

Questions: latency rate paced batch large durable core fan growth faults weight. Without any, all are asked. A table goes to stdout, progress to
stderr, the whole as bench.json and bench.html into the results' directory (--out).
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

QUESTIONS = ("latency", "rate", "paced", "batch", "large", "durable", "core", "fan", "growth", "faults", "weight")
EXAMPLES = """Examples:
  shmlog bench                                  every question, in under five minutes
  shmlog bench latency rate --peer zmq --peer shmlog
  shmlog bench --full --resume                  under an hour; goes on where it was interrupted
  shmlog bench --like orders                    a topic's real sizes and gaps, through every peer at hand
  shmlog bench --adapter mine:Mine latency      yours among them
  shmlog bench --list                           who can take part here, and what the others lack
"""


class Parser(argparse.ArgumentParser):
    """Usage errors are one line, as those of `shmlog` are."""

    def error(self, message: str) -> NoReturn:
        print(f"shmlog: {message}; `{self.prog} --help` shows how", file=sys.stderr)
        raise SystemExit(2)


def parser() -> argparse.ArgumentParser:
    p = Parser(prog="shmlog bench", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("question", nargs="*", help=argparse.SUPPRESS)
    p.add_argument("--full", action="store_true", help="more sizes, longer and more rounds (under an hour)")
    p.add_argument("--plan", choices=("tiny", "quick", "full"), help="quick is the default; tiny only shows that everything runs")
    p.add_argument("--rounds", type=int, metavar="N", help="rounds of each cell instead of the plan's")
    p.add_argument("--seconds", type=float, metavar="S", help="how long a round runs instead of the plan's")
    p.add_argument("--limit", type=float, default=60.0, metavar="S", help="what has not answered by then is ended, and the round failed; default 60")
    p.add_argument("--peer", action="append", default=[], metavar="NAME", help="only peers with this in their name; may be repeated")
    p.add_argument("--adapter", action="append", default=[], metavar="MODULE:CLASS", help="a peer of your own (shmlog.bench.peers says how)")
    p.add_argument("--resume", action="store_true", help="go on with the last run of the same plan, if it was interrupted")
    p.add_argument("--like", metavar="TOPIC", help="replay this topic's sizes and gaps (of a running cluster: --cluster NAME)")
    p.add_argument("--out", type=Path, metavar="DIR", help="where bench.json and bench.html go")
    p.add_argument("--report", type=Path, metavar="FILE", help="only make bench.html of this bench.json")
    p.add_argument("--fetch", action="store_true", help="get what peers in Java need (with mvn), then go on; without java and mvn nothing happens")
    p.add_argument("--list", action="store_true", help="list peers")
    p.add_argument("--json", action="store_true", help="the whole as one JSON object on stdout instead of the table")
    p.add_argument("--cluster", metavar="NAME", help="with --like: which cluster; default $SHMLOG_CLUSTER, else 'default'")
    return p


def main(arguments: Sequence[str] | None = None, as_json: bool = False, cluster: str | None = None) -> int:
    p = parser()
    asked = p.parse_args(arguments)
    asked.json |= as_json
    asked.cluster = asked.cluster or cluster
    unknown = [q for q in asked.question if q not in QUESTIONS]
    if unknown:
        p.error(f"{unknown[0]!r} is no question: {', '.join(QUESTIONS)}")
    if asked.like and asked.question:
        p.error("--like is a question of its own; leave the others out")
    if (asked.rounds is not None and asked.rounds < 1) or (asked.seconds is not None and asked.seconds <= 0) or asked.limit <= 0:
        p.error("--rounds is at least 1, --seconds and --limit are more than 0")
    from . import report

    if not asked.list and importlib.util.find_spec("hdrh") is None:
        print("shmlog: the module hdrh is missing; pip install 'shmlog[bench]' (the peers are in it too, each is optional)", file=sys.stderr)
        return 1
    if asked.report:
        return _report_only(asked, report)
    from . import harness, peers

    sys.path.insert(0, os.getcwd())  # for --adapter
    try:
        adapters = [peers.adapter(text) for text in asked.adapter]
    except (ImportError, ValueError) as error:
        p.error(f"{error}" if str(error).startswith("--adapter") else f"--adapter {' '.join(asked.adapter)}: {error}")
    if asked.fetch:
        _fetch(harness, peers)
        if not (asked.question or asked.full or asked.plan or asked.list or asked.like):
            return 0
    here, absent = peers.chosen(asked.peer, adapters)
    if asked.list:
        _list(here, absent, asked.json)
        return 0
    if not here:
        p.error(f"no peer is named like {', '.join(asked.peer)}, or none of those is installed (--list)")
    return _measure(asked, harness, here, absent, report)


def _report_only(asked: argparse.Namespace, report: Any) -> int:
    try:
        results = json.loads(asked.report.read_text())
        html = report.html(results)
    except (OSError, ValueError, KeyError) as error:
        print(f"shmlog: {asked.report} is not a bench.json: {error}", file=sys.stderr)
        return 1
    to = (asked.out or asked.report.parent) / "bench.html"
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(html)
    print(to)
    return 0


def _fetch(harness: Any, peers: Any) -> None:
    from .servers import AERON, CHRONICLE, KAFKA, fetch

    gone = [name for name in ("java", "mvn") if peers.program(name) is None]
    for name, artifact in (("Kafka", KAFKA), ("Aeron", AERON), ("Chronicle Queue", CHRONICLE)):
        if gone:
            harness.progress(f"without {name}: no program {', '.join(gone)}")
            continue
        try:
            harness.progress(f"{name} is in {fetch(artifact)}")
        except harness.Failed as error:
            harness.progress(f"without {name}: {error}")


def _list(here: list[Any], absent: dict[str, str], as_json: bool) -> None:
    if as_json:
        print(json.dumps([*({"name": q.name, "version": q.version(), "can": sorted(q.can), "note": q.note, "missing": None} for q in here),
                          *({"name": name, "missing": why} for name, why in absent.items())]))  # fmt: skip
        return
    for q in here:
        print(f"{q.name:28} {q.version():10} {', '.join(sorted(q.can))}" + (f"   ({q.note})" if q.note else ""))
    for name, why in absent.items():
        print(f"{name:28} absent: {why}")


def _measure(asked: argparse.Namespace, harness: Any, here: list[Any], absent: dict[str, str], report: Any) -> int:
    from dataclasses import replace

    from . import targets

    begun = time.monotonic()
    plan = harness.PLANS["full" if asked.full else asked.plan or "quick"]
    plan = replace(plan, rounds=asked.rounds or plan.rounds, seconds=asked.seconds or plan.seconds)
    harness.mark()
    harness.limit_s = max(asked.limit, plan.seconds)
    if asked.like:
        from . import like

        address = asked.cluster if asked.cluster and ":" in asked.cluster else f"shm://{asked.cluster}" if asked.cluster else None
        taken = like.sample(address, asked.like, 2.0 if not plan.full else 10.0)
        cells = like.cells(plan, here, taken)
        questions: list[str] = ["like"]
    else:
        questions = [q for q in QUESTIONS if not asked.question or q in asked.question]
        cells = [cell for q in questions for cell in importlib.import_module(f".{q}", __package__).cells(plan, here)]
    if not cells:
        print("shmlog: none of these peers takes part in these questions (`shmlog bench --list`)", file=sys.stderr)
        return 1
    out = asked.out or harness.results_directory()
    out.mkdir(parents=True, exist_ok=True)
    machine = harness.machine()
    head = {
        "key": {
            "plan": plan.name,
            "rounds": plan.rounds,
            "seconds": plan.seconds,
            "cells": [c.id for c in cells],
            "versions": {p.name: p.version() for p in here},
        },
        "begun": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    store = harness.Store(harness.results_directory(), head, asked.resume)
    if store.resumed:
        harness.progress(f"going on with the run of {store.head['begun']}: {store.resumed} rounds are finished ({store.path})")
    harness.progress("; ".join(f"{k} {v}" for k, v in machine.items()))
    for name, why in absent.items():
        harness.progress(f"without {name}: {why}")
    harness.run_cells(cells, plan, store, begun, harness.progress)
    store.end()
    summaries = [harness.summary(cell, store.done.get(cell.id, [])) for cell in cells]
    results = {
        "format": 1,
        "tool": "shmlog bench",
        "version": here[0].version() if here[0].name == "shmlog" else "",
        "plan": {"name": plan.name, "rounds": plan.rounds, "seconds": plan.seconds},
        "begun": store.head["begun"],
        "took_s": round(time.monotonic() - begun, 1),
        "over_budget": time.monotonic() - begun > plan.budget_s,
        "machine": machine,
        "noise": noise(summaries),
        "peers": [*({"name": q.name, "version": q.version(), "note": q.note, "lossless": q.lossless, "missing": None} for q in here),
                  *({"name": name, "version": "", "note": "", "lossless": None, "missing": why} for name, why in absent.items())],
        "questions": {q: _about(q) for q in questions},
        "cells": summaries,
        "targets": [] if asked.like else [r for r in targets.table(summaries) if r["value"] is not None or not asked.question],
    }  # fmt: skip
    (out / "bench.json").write_text(json.dumps(results, indent=1))
    (out / "bench.html").write_text(report.html(results))
    if asked.json:
        print(json.dumps(results))
    else:
        report.table(results)
        print(f"\n{out / 'bench.json'}\n{out / 'bench.html'}")
    return 0


def _about(question: str) -> dict[str, Any]:
    module = importlib.import_module(f".{question}", __package__)
    return {
        "text": (module.__doc__ or "").strip().splitlines()[0],
        "figures": {"": [module.FIGURE, module.UNIT, module.LESS_IS_BETTER], **{k: list(v) for k, v in getattr(module, "FIGURES", {}).items()}},
    }


def noise(summaries: list[dict[str, Any]]) -> dict[str, Any]:
    rounds = [r for s in summaries for r in s["rounds"]]
    if not rounds:
        return {}

    def column(name: str) -> dict[str, float]:
        values = sorted(r[name] for r in rounds)
        return {"median": values[len(values) // 2], "high": values[-1]}

    return {
        "stolen_percent": column("stolen_percent"),
        "strangers_percent": column("strangers_percent"),
        "rounds": len(rounds),
        "polluted": sum(not r["quiet"] and r["error"] is None for r in rounds),
        "failed": sum(r["error"] is not None for r in rounds),
        "cells_without_a_quiet_round": sum(not s["quiet"] for s in summaries if s["error"] is None),
    }


if __name__ == "__main__":  # `shmlog bench` comes by way of shmlog/tools/cli.py, which does the same for all commands
    from shmlog.errors import ShmlogError

    try:
        raise SystemExit(main())
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except ShmlogError as error:
        print(f"shmlog: {error}", file=sys.stderr)
        raise SystemExit(1) from None
