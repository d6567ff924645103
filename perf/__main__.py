"""python -m perf [QUESTION ...] [--rounds N] [--json FILE]"""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

from perf.harness import machine

QUESTIONS = ("core", "python", "weight")


def show(results: dict[str, Any]) -> None:
    for question, answer in results.items():
        print(f"\n{question}")
        for name, figures in answer.items():
            if name == "stolen_percent":
                print(f"    (stolen by the host: {figures['median']:.1f} % in the median round, {figures['high']:.1f} % at most)")
            elif name == "promised":
                print("    promised: " + ", ".join(f"{k} {v}" for k, v in figures.items()))
            else:
                for figure, f in figures.items():
                    print(f"    {name:24} {figure:20} {f['median']:>14,.2f}   ({f['low']:,.2f} .. {f['high']:,.2f}, {f['rounds']} rounds)")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m perf", description=__doc__)
    parser.add_argument("question", nargs="*", choices=[*QUESTIONS, []], help=f"of {', '.join(QUESTIONS)}; default all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="nine rounds")
    parser.add_argument("--json", type=Path, help="write everything there too")
    arguments = parser.parse_args()
    everything: dict[str, Any] = {"machine": machine()}
    print(" ".join(f"{k}={v}" for k, v in everything["machine"].items()))
    for question in arguments.question or QUESTIONS:
        everything[question] = importlib.import_module(f"perf.{question}").run(9 if arguments.full else arguments.rounds)
        show(everything[question])
    if arguments.json:
        arguments.json.write_text(json.dumps(everything, indent=1))


if __name__ == "__main__":
    main()
