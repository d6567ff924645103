"""Figures for people."""

from __future__ import annotations


def size(nbytes: int) -> str:
    for bits, unit in ((20, "MiB"), (10, "KiB")):
        if nbytes >= 1 << bits and nbytes % (1 << bits) == 0:
            return f"{nbytes >> bits} {unit}"
    return f"{nbytes} B"


def number(value: float) -> str:
    """Three digits."""
    if value == 0:
        return "0"
    for limit, divisor, unit in ((1e9, 1e9, " G"), (1e6, 1e6, " M"), (1e4, 1e3, " k")):
        if abs(value) >= limit:
            return f"{value / divisor:.3g}{unit}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def quantity(value: float, unit: str) -> str:
    if unit == "us":
        for limit, divisor, name in ((1e6, 1e6, "s"), (1e3, 1e3, "ms"), (1, 1, "µs"), (0, 1e-3, "ns")):
            if value >= limit:
                return f"{value / divisor:.3g} {name}"
    text = number(value)
    if unit == "/s":
        return f"{text}{unit}" if text[-1].isalpha() else f"{text} {unit}"
    return f"{text}{'' if text[-1].isalpha() else ' '}{unit}" if unit else text.strip()


def times(ratio: float) -> str:
    return "0 ×" if ratio < 0.0005 else f"{ratio:.2g} ×" if ratio < 10 else f"{ratio:,.0f} ×"
