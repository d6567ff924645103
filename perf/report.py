"""What a run looks like: a table for the terminal, and one HTML file that needs nothing else (inline SVG, no script, light and dark).

Shmlog's own candidates have the accent colour, floors (what the machine allows) are hatched or dashed, peers keep one colour through all curves.
Axes are logarithmic where the largest is more than twenty times the smallest; a bar's fine line runs from the worst to the best round.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape
from typing import Any

from . import histogram
from .words import quantity, times

FLOORS = ("minimal ring", "bare ", "two cache lines")
VERDICTS = ("goal met", "met", "goal missed", "missed", "not measured")

# name, begins with -> colour in the light and in the dark. Of the peers' curves; the order is that of the legend.
COLOURS = (
    ("shmlog, memory topic", "#5aa2e6", "#8cc4ff"),
    ("shmlog", "#0b62c4", "#4ea3ff"),
    ("minimal ring (fastcall)", "#6f7782", "#aab2bd"),
    ("minimal ring", "#8c949f", "#8b939e"),
    ("bare", "#8c949f", "#8b939e"),
    ("cloudtoid", "#e06a1b", "#ff9a52"),
    ("kickmsg", "#12946a", "#3fcf9d"),
    ("iceoryx2", "#7a4fd0", "#b595ff"),
    ("faster-fifo", "#b98900", "#ecc14a"),
    ("multiprocessing.Pipe", "#c2478a", "#f58cc4"),
    ("multiprocessing.Queue", "#8f5a3c", "#cf9a7a"),
    ("pyzmq", "#c9302c", "#ff7b72"),
    ("Redis", "#9b1c4d", "#ff6f9f"),
    ("NATS", "#0f7f93", "#4fd0e3"),
    ("Kafka", "#4d5a2a", "#b9c98a"),
    ("Aeron", "#2f8a2f", "#7fd67f"),
    ("Chronicle", "#a0522d", "#e0a080"),
    ("sqlite3", "#64761a", "#b3c95a"),
    ("LMDB", "#4c5f8a", "#9db3e6"),
    ("", "#55606c", "#b5bfca"),
)


def colour_class(name: str) -> int:
    return next(i for i, (begin, _, _) in enumerate(COLOURS) if name.startswith(begin))


def is_ours(name: str) -> bool:
    return name.startswith("shmlog")


def is_floor(name: str) -> bool:
    return name.startswith(FLOORS)


def figure_of(results: dict[str, Any], question: str, case: str) -> tuple[str, str, bool]:
    """(figure, unit, less is better) that a case is judged by."""
    figures = results["questions"][question]["figures"]
    for part, found in figures.items():
        if part and part in case:
            return tuple(found)
    return tuple(figures[""])


def cases(results: dict[str, Any], question: str) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for cell in results["cells"]:
        if cell["question"] == question:
            found.setdefault(cell["case"], []).append(cell)
    return found


def ranked(cells: list[dict[str, Any]], figure: str, less: bool) -> list[dict[str, Any]]:
    have = [c for c in cells if figure in c["figures"]]
    return sorted(have, key=lambda c: c["figures"][figure]["median"] * (1 if less else -1))


# --- terminal ----------------------------------------------------------------------------------------------------------


def table(results: dict[str, Any]) -> None:
    from . import targets

    for question, about in results["questions"].items():
        print(f"\n{about['text']}")
        for case, cells in cases(results, question).items():
            if question == "weight":
                _weight(cells)
                continue
            figure, unit, less = figure_of(results, question, case)
            print(f"  {case}")
            for cell in ranked(cells, figure, less):
                f = cell["figures"][figure]
                print(f"    {cell['peer']:34} {quantity(f['median'], unit):>18}   ({quantity(f['low'], unit)} .. {quantity(f['high'], unit)}, "
                      f"{f['rounds']} rounds{notes(cell)})")  # fmt: skip
            for cell in cells:
                if cell["error"]:
                    print(f"    {cell['peer']:34} failed: {cell['error']}")
    if results["targets"]:
        print("\nTargets")
    for row in results["targets"]:
        print(f"  {row['verdict']:13} {row['what']}: {row['shown']}")
        for (ratio, against), each in targets.together(row["checks"]):
            print(f"{'':18}{ratio} {against} ({', '.join(c['level'] + ' ' + targets.limit(c) for c in each)})")
    n = results["noise"]
    print(f"\n{n['rounds']} rounds in {results['took_s']:.0f} s; stolen by the host {n['stolen_percent']['median']:.1f} % (median) to {n['stolen_percent']['high']:.1f} %, "
          f"strangers {n['strangers_percent']['median']:.1f} % to {n['strangers_percent']['high']:.1f} % of the CPU; {n['polluted']} polluted, {n['failed']} failed, "
          f"{n['cells_without_a_quiet_round']} cells without a quiet round")  # fmt: skip


def _weight(cells: list[dict[str, Any]]) -> None:
    from .weight import PROMISED

    for cell in cells:
        for name, f in cell["figures"].items():
            promised = PROMISED[name]
            print(f"    {name:34} {f['median']:>18,.1f}" + (f"   (promised {promised:g})" if promised else ""))


def notes(cell: dict[str, Any], alone: bool = True) -> str:
    """alone=False: without what holds for its whole case, and is said there."""
    found = []
    if (lost := cell["figures"].get("lost_percent")) and lost["median"] > 0.05:
        found.append(f"{lost['median']:.0f} % lost")
    if (late := cell["figures"].get("late_percent")) and late["median"] > 20:
        found.append(f"{late['median']:.0f} % sent late")
    if cell["dropped"]:
        found.append(f"{cell['dropped']} polluted dropped")
    if alone and not cell["quiet"]:
        found.append("none quiet")
    return "".join(f", {n}" for n in found)


# --- SVG ---------------------------------------------------------------------------------------------------------------


class Axis:
    """From values to 0..1; logarithmic for a wide range, else linear from 0."""

    def __init__(self, values: list[float], log: bool | None = None) -> None:
        low, high = min(values), max(values)
        self.log = low > 0 and (high / low > 20 if log is None else log)
        if self.log:
            self.low, self.high = math.log10(low) - 0.18, math.log10(high) + 0.04
        else:
            self.low, self.high = 0.0, high * 1.02 or 1.0

    def __call__(self, value: float) -> float:
        v = math.log10(value) if self.log else value
        return min(1.0, max(0.0, (v - self.low) / ((self.high - self.low) or 1)))

    def ticks(self) -> list[float]:
        if self.log:
            decades = range(math.ceil(self.low), math.floor(self.high) + 1)
            found = [10.0**d for d in decades]
            if len(found) < 3:
                found = [m * 10.0**d for d in range(math.floor(self.low), math.ceil(self.high) + 1) for m in (1, 2, 5)]
            return [t for t in found if self.low <= math.log10(t) <= self.high]
        step = 10 ** math.floor(math.log10(self.high / 2))
        step *= next(m for m in (1, 2, 5, 10) if self.high / (step * m) <= 5)
        return [step * i for i in range(int(self.high / step) + 1)]


def bars(cells: list[dict[str, Any]], figure: str, unit: str, less: bool) -> str:
    order = ranked(cells, figure, less)
    failed = [c for c in cells if c["error"]]
    if not order:
        return "".join(f"<p class=failed>{escape(c['peer'])}: {escape(c['error'])}</p>" for c in failed)
    noisy = not any(c["quiet"] for c in order)
    left, right, width, row_height, top = 198, 92, 580, 26, 24
    area = width - left - right
    axis = Axis([v for c in order for v in (c["figures"][figure]["low"], c["figures"][figure]["high"])])
    height = top + row_height * len(order) + 4
    out = [f'<svg class=bars viewBox="0 0 {width} {height}" role=img aria-label="{escape(figure)}">']
    for tick in axis.ticks():
        x = left + area * axis(tick)
        out.append(
            f"<line class=grid x1={x:.1f} x2={x:.1f} y1={top - 5} y2={height} /><text class=tick x={x:.1f} y={top - 10} text-anchor=middle>{quantity(tick, unit)}</text>"
        )
    for i, cell in enumerate(order):
        f = cell["figures"][figure]
        y = top + i * row_height
        kind = "ours" if is_ours(cell["peer"]) else "floor" if is_floor(cell["peer"]) else "peer"
        end = left + area * axis(f["median"])
        a, b = left + area * axis(f["low"]), left + area * axis(f["high"])
        title = f"{cell['peer']}: {quantity(f['median'], unit)}; {quantity(f['low'], unit)} to {quantity(f['high'], unit)} in {f['rounds']} rounds{notes(cell)}"
        middle = y + row_height / 2
        out.append(f"<g><title>{escape(title)}</title><rect x=0 y={y} width={width} height={row_height} class=hit />")
        out.append(f'<text class="name {kind}" x={left - 12} y={middle + 4.5:.1f} text-anchor=end>{escape(shorten(cell["peer"]))}</text>')
        out.append(f'<rect class="bar {kind}" x={left} y={y + 5} width={max(2.0, end - left):.1f} height={row_height - 10} rx=3 />')
        if b - a > 1.5:
            out.append(f'<path class=spread d="M{a:.1f} {middle}H{b:.1f}M{a:.1f} {middle - 4}v8M{b:.1f} {middle - 4}v8" />')
        note = "*" if notes(cell, not noisy) else ""
        out.append(f'<text class="value {kind}" x={max(end, b) + 9:.1f} y={middle + 4.5:.1f}>{quantity(f["median"], unit)}{note}</text></g>')
    out.append("</svg>")
    remarks = [f"{c['peer']}{notes(c, not noisy)}" for c in order if notes(c, not noisy)] + [f"{c['peer']} failed: {c['error']}" for c in failed]
    if remarks:
        out.append("<p class=remark>* " + "; ".join(escape(r) for r in remarks) + "</p>")
    if noisy:
        out.append("<p class=remark>No round of this case was quiet.</p>")
    return "".join(out)


def shorten(name: str) -> str:
    return name if len(name) <= 31 else name[:30] + "…"


def curves(cells: list[dict[str, Any]]) -> str:
    lines = []
    for cell in cells:
        if cell["histogram"]:
            points = histogram.curve(histogram.decode(cell["histogram"]))
            if len(points) > 3:
                lines.append((cell, points))
    if not lines:
        return ""
    left, right, top, bottom, width, height = 52, 182, 14, 34, 580, 372
    deepest = max(-math.log10(1 - p) for _, points in lines for p, _ in points)
    ns = [max(1, v) for _, points in lines for _, v in points]
    y_axis = Axis([float(min(ns)), float(max(ns))], log=True)

    def x(p: float) -> float:
        return left + (width - left - right) * (-math.log10(1 - p)) / (deepest or 1)

    def y(v: float) -> float:
        return top + (height - top - bottom) * (1 - y_axis(max(1, v)))

    out = [f'<svg class=curves viewBox="0 0 {width} {height}" role=img aria-label="percentiles of latency">']
    for tick in y_axis.ticks():
        at = y(tick)
        out.append(
            f"<line class=grid x1={left} x2={width - right} y1={at:.1f} y2={at:.1f} /><text class=tick x={left - 9} y={at + 4:.1f} text-anchor=end>{quantity(tick / 1e3, 'us')}</text>"
        )
    for share, words in ((0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %"), (0.9999, "99.99 %"), (0.99999, "99.999 %")):
        if -math.log10(1 - share) <= deepest + 1e-9:
            out.append(f'<line class=grid x1={x(share):.1f} x2={x(share):.1f} y1={top} y2={height - bottom} />'
                       f'<text class=tick x={x(share):.1f} y={height - bottom + 19} text-anchor=middle>{words}</text>')  # fmt: skip
    ends: list[Any] = []
    for cell, points in sorted(lines, key=lambda line: is_ours(line[0]["peer"])):
        kind = "floor" if is_floor(cell["peer"]) else "ours" if is_ours(cell["peer"]) else "peer"
        sure = [(p, v) for p, v in points if cell["quiet"] or p < 0.99]
        rest = [] if cell["quiet"] else [(p, v) for p, v in points if p >= 0.989]
        style = f"c{colour_class(cell['peer'])}"
        for part, more in ((sure, ""), (rest, " unsure")):
            if len(part) > 1:
                path = "L".join(f"{x(p):.1f} {y(v):.1f}" for p, v in part)
                out.append(f'<path class="curve {kind} {style}{more}" d="M{path}"><title>{escape(cell["peer"])}</title></path>')
        ends.append([y(points[-1][1]), y(points[-1][1]), x(points[-1][0]), cell, style, kind])
    place(ends, top + 4, height - bottom)
    for at, label_at, end_x, cell, style, kind in ends:
        label_x = width - right + 22
        p50 = cell["figures"].get("p50_us")
        out.append(f'<path class="leader {style}" d="M{end_x + 2:.1f} {at:.1f}L{label_x - 5} {label_at:.1f}" />'
                   f'<text class="label {kind} {style}" x={label_x} y={label_at + 4:.1f}>{escape(shorten(cell["peer"]))}'
                   f'<title>{"p50 " + quantity(p50["median"], "us") if p50 else ""}</title></text>')  # fmt: skip
    out.append("</svg>")
    if any(not cell["quiet"] for cell, _ in lines):
        out.append("<p class=remark>Dotted: beyond 99 %, without a quiet round. What shows there is the machine's other work.</p>")
    return "".join(out)


def place(ends: list[list[Any]], top: float, bottom: float, distance: float = 15.5) -> None:
    """Moves labels apart, in their order, within the plot."""
    ends.sort(key=lambda e: e[0])
    for i, end in enumerate(ends):
        end[1] = max(end[1], top if i == 0 else ends[i - 1][1] + distance)
    limit = bottom
    for end in reversed(ends):
        end[1] = min(end[1], limit)
        limit = end[1] - distance


# --- HTML --------------------------------------------------------------------------------------------------------------

HEADLINES = (
    ("latency", "64 B, both polling", "p50_us", "us", True, "a 64 B record, one way", "Python, both polling, median"),
    ("rate", "100 B", "records_per_s", "/s", False, "one record a call", "Python, 100 B, lossless"),
    ("batch", "500 x 100 B", "records_per_s", "/s", False, "in batches of 500", "Python, 100 B, objects out"),
    ("durable", "500 x", "records_per_s", "/s", False, "on the disk, awaited", "500 × 100 B a commit"),
)


def tiles(results: dict[str, Any]) -> Iterator[str]:
    for question, case, figure, unit, less, title, small in HEADLINES:
        cells = [c for c in results["cells"] if c["question"] == question and case in c["case"] and figure in c["figures"]]
        ours = ranked([c for c in cells if is_ours(c["peer"])], figure, less)
        others = ranked([c for c in cells if not is_ours(c["peer"]) and not is_floor(c["peer"])], figure, less)
        if not ours:
            continue
        v = ours[0]["figures"][figure]["median"]
        against = ""
        if others:
            o = others[0]["figures"][figure]["median"]
            ratio = o / v if less else v / o
            words = f"{times(ratio)} as fast as" if ratio >= 1 else f"{times(1 / ratio)} slower than"
            against = f"<div class='against {'better' if ratio >= 1 else 'worse'}'>{words} {escape(others[0]['peer'])}</div>"
        amount, space, name = quantity(v, unit).partition(" ")
        yield f"<div class=tile><div class=tile-title>{title}</div><div class=big>{amount}<small>{space}{name}</small></div><div class=small>{small}; {escape(ours[0]['peer'])}</div>{against}</div>"


def targets_section(results: dict[str, Any]) -> str:
    from . import targets

    rows = results["targets"]
    if not rows:
        return ""
    counts = {v: sum(r["verdict"] == v for r in rows) for v in VERDICTS}
    strip = "".join(f"<span class='part v{VERDICTS.index(v)}' style='flex-grow:{n}' title='{v}: {n}'></span>" for v, n in counts.items() if n)
    legend = "".join(f"<span class=key><i class=v{VERDICTS.index(v)}></i>{n} {v}</span>" for v, n in counts.items() if n)
    body = []
    for r in rows:
        checks = "".join(
            f"<div class=check><b>{escape(ratio)}</b> {escape(against)}"
            + "".join(
                f"<span class='{'' if c['met'] is None else 'yes' if c['met'] else 'no'}'>{c['level']} {escape(targets.limit(c))}</span>" for c in each
            )
            + "</div>"
            for (ratio, against), each in targets.together(r["checks"])
        )
        body.append(
            f"<tr><td>{escape(r['what'])}<td class=num>{escape(r['shown'])}<td class=checks>{checks}<td><span class='chip v{VERDICTS.index(r['verdict'])}'>{r['verdict']}</span>"
        )
    return (
        f"<section id=targets><h2>Targets</h2><p class=lead>Ratios inside this run. <b>least</b> must hold, <b>goal</b> is wanted.</p><div class=strip>{strip}</div>"
        f"<div class=keys>{legend}</div><div class=scroll><table class=targets><thead><tr><th>what<th class=num>measured<th>against<th></thead><tbody>{''.join(body)}</tbody></table></div></section>"
    )


def figures_table(cells: list[dict[str, Any]], figure: str, less: bool) -> str:
    names = list(dict.fromkeys(name for c in cells for name in c["figures"]))
    head = "".join(
        f"<th class=num>{escape(n.replace('_per_s', ' / s').replace('_us', ', µs').replace('_ms', ', ms').replace('_', ' '))}" for n in names
    )
    body = []
    for c in ranked(cells, figure, less):
        columns = "".join(f"<td class=num>{c['figures'][n]['median']:,.4g}" if n in c["figures"] else "<td>" for n in names)
        body.append(f"<tr><td>{escape(c['peer'])}{columns}")
    return f"<details><summary>all figures</summary><div class=scroll><table><thead><tr><th>{head}</thead><tbody>{''.join(body)}</tbody></table></div></details>"


def question_section(results: dict[str, Any], question: str) -> str:
    if question == "weight":
        return ""  # wholly in the table of targets
    about = results["questions"][question]
    text, _, aside = about["text"].partition("(")
    out = [f"<section id={question}><h2>{escape(text.strip())}</h2>"]
    if aside:
        out.append(f"<p class=lead>{escape(aside.rstrip(')'))}</p>")
    out.append("<div class=cards>")
    for case, cells in cases(results, question).items():
        figure, unit, less = figure_of(results, question, case)
        curve = curves(cells)
        out.append(
            f"<div class='card {'wide' if curve else ''}'><h3>{escape(case)}<small>{escape(label(figure))} · {'less' if less else 'more'} is better</small></h3>"
        )
        out.append(f"<div class=pair><div>{bars(cells, figure, unit, less)}</div>{f'<div>{curve}</div>' if curve else ''}</div>")
        out.append(figures_table(cells, figure, less) + "</div>")
    return "".join(out) + "</div></section>"


def label(figure: str) -> str:
    return {"p50_us": "median latency", "records_per_s": "records a second", "gb_per_s": "gigabytes a second", "hand_off_us": "time a hand-off", "append_us": "time an append",
            "longest_gap_ms": "longest gap between two records", "restart_ms": "time until acknowledged"}.get(figure, figure)  # fmt: skip


def html(results: dict[str, Any]) -> str:
    m, n = results["machine"], results["noise"]
    sections = "".join(question_section(results, q) for q in results["questions"])
    here = [p for p in results["peers"] if not p["missing"]]
    absent = [p for p in results["peers"] if p["missing"]]
    peers = "".join(
        f"<tr><td><i class='dot c{colour_class(p['name'])}'></i>{escape(p['name'])}<td>{escape(p['version'])}<td>{escape(p['note'])}" for p in here
    )
    peers += "".join(f"<tr class=absent><td>{escape(p['name'])}<td>absent<td>{escape(p['missing'])}" for p in absent)
    noisy = ""
    if n.get("cells_without_a_quiet_round"):
        noisy = (f"<p class=warning>{n['cells_without_a_quiet_round']} of {len(results['cells'])} cells had no quiet round: others used this machine. "
                 f"Ratios within a case may still be of use, absolute figures and tails are not.</p>")  # fmt: skip
    nav = "".join(f"<a href=#{q}>{q}</a>" for q in (["targets"] if results["targets"] else []) + [q for q in results["questions"] if q != "weight"])
    light = "".join(f"--c{i}:{a};" for i, (_, a, _) in enumerate(COLOURS))
    dark = "".join(f"--c{i}:{b};" for i, (_, _, b) in enumerate(COLOURS))
    classes = "".join(f".c{i}{{--c:var(--c{i})}}" for i in range(len(COLOURS)))
    facts = [m["cpu"], f"{m['cores']} cores", f"{m['memory_gib']:g} GiB", f"Linux {m['kernel']}", f"Python {m['python']}", f"disk {m['disk']}"]
    noise = ""
    if n:
        noise = (
            "<table><tbody>"
            f"<tr><td>rounds<td class=num>{n['rounds']}<tr><td>polluted, run again or left out<td class=num>{n['polluted']}<tr><td>failed<td class=num>{n['failed']}"
            f"<tr><td>stolen by the host, median / most<td class=num>{n['stolen_percent']['median']:.1f} / {n['stolen_percent']['high']:.1f} %"
            f"<tr><td>strangers' CPU, median / most<td class=num>{n['strangers_percent']['median']:.1f} / {n['strangers_percent']['high']:.1f} %"
            f"<tr><td>load at the start<td class=num>{m['load']:.2f}</tbody></table>"
        )
    plan = results["plan"]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width,initial-scale=1'>"
        f"<title>shmlog bench, {escape(results['begun'][:10])}</title><style>{CSS.replace('/*light*/', light).replace('/*dark*/', dark)}{classes}</style>"
        "<svg width=0 height=0 class=defs><defs><pattern id=hatch width=6 height=6 patternTransform='rotate(45)' patternUnits=userSpaceOnUse>"
        "<rect width=6 height=6 class=hatch-a /><rect width=2.4 height=6 class=hatch-b /></pattern></defs></svg>"
        f"<header><div class=kicker>shmlog bench · {escape(plan['name'])} · {escape(results['begun'][:16].replace('T', ' '))}</div>"
        f"<h1>From one process to another</h1><p class=facts>{' <span>·</span> '.join(escape(str(f)) for f in facts)}</p>{noisy}"
        f"<div class=tiles>{''.join(tiles(results))}</div><nav>{nav}<a href=#machine>machine</a></nav></header><main>{targets_section(results)}{sections}"
        f"<section id=machine><h2>Machine, noise, peers</h2><div class=two><div class=card><h3>Noise</h3>{noise}"
        f"<p class=remark>{plan['rounds']} rounds of {plan['seconds']:g} s a cell, interleaved; {results['took_s']:.0f} s in all. Medians of quiet rounds; the fine line "
        "on a bar runs from the lowest to the highest. Processes that poll are pinned. Hatched or dashed: floors, what the machine allows without any promise.</p></div>"
        f"<div class='card scroll'><h3>Peers</h3><table><tbody>{peers}</tbody></table></div></div></section></main>"
    )


CSS = """
:root{color-scheme:light dark;--bg:#f6f5f2;--card:#fff;--ink:#191c20;--soft:#646b75;--faint:#9aa1ab;--line:#e8e6e1;--grid:#eeece8;--ours:#0b62c4;
--ours2:#e4effb;--peer:#b9c0ca;
--hatch:#d9dde2;--good:#0d7a4f;--good2:#dcf3e8;--ok:#3b6fb5;--ok2:#e3edf9;--warn:#9a6a00;--warn2:#fbf0d5;--bad:#b3261e;--bad2:#fbe3e1;
--none:#7b828c;--none2:#ecedef;/*light*/}
@media(prefers-color-scheme:dark){:root{--bg:#0f1216;--card:#171b21;--ink:#e9ecf0;--soft:#a0a8b3;--faint:#6d7580;--line:#272d35;--grid:#222830;
--ours:#4ea3ff;--ours2:#14263b;
--peer:#59636f;--hatch:#3a424c;--good:#5fd6a0;--good2:#12311f;--ok:#86b8f5;--ok2:#15273d;--warn:#ecc14a;--warn2:#33290f;--bad:#ff8a80;
--bad2:#3b1716;--none:#98a1ad;
--none2:#242a32;/*dark*/}}
*{box-sizing:border-box}html{scroll-behavior:smooth}
body{margin:0;background:var(--bg);color:var(--ink);
font:15px/1.5 ui-sans-serif,system-ui,"Segoe UI",Roboto,"Helvetica Neue","DejaVu Sans",sans-serif;
font-variant-numeric:tabular-nums}
header,main{max-width:1240px;margin:0 auto;padding:0 28px}header{padding-top:52px}
.defs{position:absolute}
.kicker{color:var(--ours);font-weight:600;font-size:13px;letter-spacing:.06em;text-transform:uppercase}
h1{font-size:42px;line-height:1.1;letter-spacing:-.025em;margin:8px 0 10px;font-weight:720}
.facts{color:var(--soft);margin:0 0 20px}.facts span{color:var(--faint);padding:0 3px}
.warning{background:var(--warn2);color:var(--warn);border-radius:10px;padding:10px 16px;margin:0 0 20px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(230px,1fr));gap:16px;margin:8px 0 22px}
.tile{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:18px 20px 16px}
.tile-title{font-weight:600}.big small{font-size:19px;font-weight:600;letter-spacing:0}.big{font-size:34px;font-weight:700;letter-spacing:-.02em;
color:var(--ours);margin:4px 0 0;line-height:1.25}
.small{color:var(--soft);font-size:13px}.against{font-size:13px;font-weight:600;margin-top:8px;padding-top:8px;border-top:1px solid var(--line)}
.better{color:var(--good)}.worse{color:var(--bad)}
nav{display:flex;flex-wrap:wrap;gap:4px 6px;margin:0 0 4px -10px}nav a{color:var(--soft);text-decoration:none;padding:4px 10px;border-radius:8px;
font-size:14px}
nav a:hover{background:var(--ours2);color:var(--ours)}
section{padding:34px 0 6px}h2{font-size:25px;letter-spacing:-.015em;margin:0 0 6px;line-height:1.25}
.lead{color:var(--soft);margin:0 0 16px}.lead b{color:var(--ink)}
.card{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:18px 22px 14px;margin:0 0 16px}
h3{font-size:16px;margin:0 0 12px;display:flex;justify-content:space-between;align-items:baseline;gap:16px}h3 small{color:var(--faint);
font-weight:400;font-size:13px}
.pair{display:grid;grid-template-columns:minmax(0,1fr);gap:26px;align-items:start}
@media(min-width:1080px){.wide .pair{grid-template-columns:minmax(0,1fr) minmax(0,1fr)}}
.cards{display:grid;gap:16px;grid-template-columns:minmax(0,1fr)}.cards>.card{margin:0}
@media(min-width:1080px){.cards{grid-template-columns:minmax(0,1fr) minmax(0,1fr)}.cards>.wide{grid-column:1/-1}
.cards>.card:only-child{grid-column:1/-1}
.cards>.card:only-child:not(.wide) .pair{max-width:640px}}
svg{display:block;width:100%;height:auto;overflow:visible}svg text{font-size:13px;fill:var(--ink)}
.grid{stroke:var(--grid);stroke-width:1}svg .tick{fill:var(--faint);font-size:11.5px}
.hit{fill:transparent}g:hover .hit{fill:var(--ours2);opacity:.5}
.bar.peer{fill:var(--peer)}.bar.ours{fill:var(--ours)}.bar.floor{fill:url(#hatch)}
.hatch-a{fill:var(--card)}.hatch-b{fill:var(--hatch)}.bar.floor{stroke:var(--hatch)}
.spread{stroke:var(--ink);stroke-width:1.2;fill:none;opacity:.55}
svg .name.ours,svg .value.ours{fill:var(--ours);font-weight:650}svg .name.floor,svg .value.floor{fill:var(--soft);font-style:italic}
svg .value{font-size:13px}
.curve{fill:none;stroke:var(--c);stroke-width:1.9;stroke-linejoin:round;stroke-linecap:round}.curve.ours{stroke-width:3.2}
.curve.floor{stroke-dasharray:6 5}
.curve.unsure{stroke-dasharray:1 5;opacity:.75}
.leader{stroke:var(--c);stroke-width:1;opacity:.4;fill:none}svg .label{fill:var(--c);font-size:12px;font-weight:550}
svg .label.ours{font-weight:720}
.remark{color:var(--soft);font-size:12.5px;margin:8px 0 4px;max-width:95ch}.failed{color:var(--bad)}
details{margin-top:8px}summary{color:var(--faint);font-size:12.5px;cursor:pointer}summary:hover{color:var(--ours)}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:13.5px}th{text-align:left;color:var(--faint);font-weight:500;
font-size:12.5px}
td,th{padding:7px 12px 7px 0;border-bottom:1px solid var(--line);vertical-align:top}tr:last-child td{border-bottom:0}.num{text-align:right;
white-space:nowrap}
details td,details th{padding:4px 14px 4px 0;white-space:nowrap}
.absent td{color:var(--faint)}.dot{display:inline-block;width:9px;height:9px;border-radius:50%;background:var(--c);margin-right:9px}
.two{display:grid;gap:16px;grid-template-columns:minmax(0,1fr)}@media(min-width:1080px){.two{grid-template-columns:minmax(0,2fr) minmax(0,3fr)}}
.strip{display:flex;height:12px;gap:3px;margin:2px 0 10px}.part{border-radius:4px;min-width:6px}
.keys{display:flex;flex-wrap:wrap;gap:4px 20px;color:var(--soft);font-size:13.5px;margin-bottom:14px}.key i{display:inline-block;width:10px;
height:10px;border-radius:3px;margin-right:7px}
.part.v0,.key .v0{background:var(--good)}.part.v1,.key .v1{background:var(--ok)}.part.v2,.key .v2{background:var(--warn)}
.part.v3,.key .v3{background:var(--bad)}
.part.v4,.key .v4{background:var(--hatch)}
#targets .scroll{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:8px 22px}
.targets td:first-child{font-weight:550;min-width:250px}.checks{color:var(--soft);font-size:12.5px}.check b{color:var(--ink);font-weight:600;
display:inline-block;min-width:58px;text-align:right;margin-right:4px}
.check span{margin-left:10px;color:var(--faint);white-space:nowrap}.check .yes{color:var(--good)}.check .no{color:var(--bad)}
.check .yes::after{content:" ✓"}.check .no::after{content:" ✗"}
.chip{display:inline-block;border-radius:20px;padding:2px 12px;font-size:12.5px;font-weight:600;white-space:nowrap}
.chip.v0{background:var(--good2);color:var(--good)}.chip.v1{background:var(--ok2);color:var(--ok)}.chip.v2{background:var(--warn2);
color:var(--warn)}
.chip.v3{background:var(--bad2);color:var(--bad)}.chip.v4{background:var(--none2);color:var(--none)}
@media(max-width:640px){h1{font-size:31px}header,main{padding-left:16px;padding-right:16px}}
@media print{nav{display:none}.card,.tile{break-inside:avoid}}
"""
