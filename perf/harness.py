"""Rounds, medians, and what else the machine was doing."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Noise:
    """What others took of the machine during a round, from /proc/stat: stolen by the host, and busy beyond our own processes' share."""

    before: list[int] = field(default_factory=list)

    @staticmethod
    def _read() -> list[int]:
        with open("/proc/stat") as f:
            return [int(v) for v in f.readline().split()[1:]]

    def __enter__(self) -> Noise:
        self.before = self._read()
        self.load = os.getloadavg()[0]
        return self

    def __exit__(self, *exc: object) -> None:
        delta = [b - a for a, b in zip(self.before, self._read(), strict=True)]
        total = sum(delta) or 1
        self.stolen_percent = round(100 * delta[7] / total, 2)


def rounds(candidates: Mapping[str, Callable[[], dict[str, float]]], n: int) -> dict[str, Any]:
    """Runs each candidate n times, interleaved. Returns {name: {figure: {median, low, high, rounds}}}, and the noise."""
    results: dict[str, list[dict[str, float]]] = {name: [] for name in candidates}
    noise = []
    for _ in range(n):
        for name, run in candidates.items():
            with Noise() as quiet:
                results[name].append(run())
            noise.append(quiet.stolen_percent)
    out: dict[str, Any] = {}
    for name, each in results.items():
        out[name] = {
            figure: {
                "median": statistics.median(r[figure] for r in each),
                "low": min(r[figure] for r in each),
                "high": max(r[figure] for r in each),
                "rounds": len(each),
            }
            for figure in each[0]
        }
    out["stolen_percent"] = {"median": statistics.median(noise), "high": max(noise)}
    return out


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "?")
    return {"cpu": model, "cores": os.cpu_count(), "kernel": os.uname().release, "load": os.getloadavg()[0], "at": time.strftime("%Y-%m-%d %H:%M")}
