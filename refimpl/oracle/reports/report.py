"""The report: one HTML page that stands alone, drawn from the JSON that stands beside it.

No script, no font, no picture is loaded from anywhere. Whatever an engine said is escaped by the template, which is in
report.html.j2; what is drawn comes from drawing.py.
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...loading.diagnostics import one_line
from ..bugs import CLASSES, Mutant
from ..diagnosis.power import DETECTED, NOT_EXERCISED, UNDETECTABLE
from . import drawing
from .tokens_in_words import by_request, in_words, which_request

PAGE = "index.html"
REQUESTS = 20  # of each change, whose tokens are drawn; the JSON has all

OUTCOMES = (UNDETECTABLE, NOT_EXERCISED, DETECTED)  # what a reader should worry about comes first


def page(report: Mapping[str, Any], zoo: Mapping[str, Mutant]) -> str:
    """Return the page as HTML.

    report: what summary() gives; zoo: the mutants that its `power` speaks of, for their classes and links."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    env = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda x: one_line(x) if type(x) is str else x,  # an engine's control characters are no HTML
    )
    env.filters |= {"num": num, "times": times, "host": host}
    env.globals |= {
        "which_request": which_request,
        "in_words": in_words,
        "CLASSES": CLASSES,
        "shade": drawing.shade,
        "STEPS": drawing.STEPS,
        "worst": _worst,
    }
    return env.get_template("report.html.j2").render(
        found=report,
        nearest=report["diagnosis"][0] if report["diagnosis"] else None,
        cloud=drawing.cloud(report["batches"], report["noise"]),
        far=_far(report["picture"]),
        near=_near(report["picture"]),
        tokens=_tokens(report["cause"]),
        unexplained=by_request(report["cause"], None) if report["cause"] else [],
        places=_places(report["places"], report["noise"]["fails_from"]),
        power=_power(report, zoo),
        replay=f"loracle check --replay {shlex.quote(report['repro'])}" if report["repro"] else "",
    )


def num(x: float | None) -> str:
    """Return three digits, for people: 3.11, 943,000, 1.99 million, 8.17 × 10⁻⁶; "no number" for what has no size."""
    if x is None:
        return "no number"
    rounded = float(f"{x:.3g}")
    if rounded == 0 or 1e-3 <= abs(rounded) < 1000:
        return f"{rounded:g}"
    if 1000 <= abs(rounded) < 1e6:
        return f"{rounded:,.0f}"
    for size, word in ((1e6, "million"), (1e9, "billion")):
        if size <= abs(rounded) < 1000 * size:
            return f"{rounded / size:.3g} {word}"
    mantissa, power = f"{x:.2e}".split("e")
    return f"{float(mantissa):g} × 10{str(int(power)).translate(_RAISED)}"


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def times(x: float | None) -> str:
    """Return a ratio in words: 3.41 × noise."""
    return "no number" if x is None else f"{num(x)} × noise"


def host(link: str) -> str:
    """Return a link in a few words: NVIDIA/TensorRT-LLM #1668."""
    parts = link.removeprefix("https://").split("/")
    if parts[0] == "github.com" and len(parts) == 5:
        return f"{parts[1]}/{parts[2]} #{parts[4]}"
    return link.removeprefix("https://")


def _worst(batch: Mapping[str, Any]) -> float | None:
    """Return the worst row's ratio of a case; None if some request has no number for it."""
    ratios = [r["noise_ratio"] for r in batch["requests"]]
    return None if None in ratios else max(ratios, default=0.0)


def _panels(picture: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return key in the JSON and heading of each panel."""
    if not picture["mutant"]:
        return [("engine", "What the engine did")]
    return [("engine", "What the engine did"), ("mutant", f"What {picture['mutant']} does"), ("left", "What is left")]


def _far(picture: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return what the picture from far needs: requests by positions; None if no row can be read."""
    if picture is None or not any(line["engine"] for line in picture["lines"]):
        return None
    lines = picture["lines"]
    keys = [(key, head) for key, head in _panels(picture) if any(line[key] is not None for line in lines)]
    top = drawing.reach(x for key, _ in keys for line in lines for x in line[key] or [])
    columns = max(line["first"] + len(line["engine"]) for line in lines)
    panels = [
        {"head": head, "paths": drawing.heat([(line["first"], line[key] or []) for line in lines], top)}
        for key, head in keys
    ]
    faint = top <= drawing.FAINTEST
    return {"panels": panels, "top": top, "columns": columns, "lines": lines, "ticks": _ticks(columns), "faint": faint}


def _near(picture: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return what the picture from near needs: positions by tokens, of one request; None if there is none."""
    close = picture and picture["close_up"]
    if not picture or not close or not close["tokens"]:
        return None
    keys = [(key, head) for key, head in _panels(picture) if close[key] is not None]
    top = drawing.reach(x for key, _ in keys for row in close[key] for x in row)
    panels = [{"head": head, "paths": drawing.heat([(0, row) for row in close[key]], top)} for key, head in keys]
    return {**close, "panels": panels, "top": top, "of": picture["lines"][close["line"]]}


def _tokens(cause: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return a line for each request and change: in which tokens it was made, in words and as cells."""
    if cause is None:
        return []
    lines = [(i, some) for i in range(len(cause["changes"])) for some in by_request(cause, i)[:REQUESTS]]
    columns = max((some[0]["length"] for _, some in lines), default=1)
    return [
        {
            "which": which_request(some[0]),
            "change": i + 1,
            "words": in_words(some, len(some)),
            "paths": drawing.heat([(0, _cells(some))], 1.0),
            "columns": columns,
        }
        for i, some in lines
    ]


def _cells(some: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return for each token of a request whether it has a change: 1 or 0."""
    cells = [0.0] * some[0]["length"]
    for one in some:
        cells[one["first"] : one["last"] + 1] = [1.0] * (one["last"] - one["first"] + 1)
    return cells


def _ticks(columns: int) -> list[int]:
    every = next(n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500, 10**6) if columns / n <= 8)
    return list(range(0, columns, every))


def _places(places: list[dict[str, Any]], fails_from: float | None) -> dict[str, Any] | None:
    """Return the table of layers by modules; `off`: how many of them left the noise."""
    if not places:
        return None
    layers = list(dict.fromkeys(p["layer"] for p in places))
    modules = list(dict.fromkeys(p["module"] for p in places))
    cells = {(p["layer"], p["module"]): p for p in places}
    rows = [(layer, [cells.get((layer, module)) for module in modules]) for layer in layers]
    return {
        "modules": modules,
        "rows": rows,
        "top": drawing.reach(p["noise_ratio"] for p in places),
        "by": places[0]["by"],
        "off": sum(p["noise_ratio"] is None or not p["noise_ratio"] < (fails_from or 0.0) for p in places),
    }


def _power(report: Mapping[str, Any], zoo: Mapping[str, Mutant]) -> dict[str, Any] | None:
    """Return which bugs would have been seen, those that would not first; None if it was not asked for."""
    power: Mapping[str, str] = report["power"]
    if not power:
        return None
    rows = [
        {
            "name": name,
            "outcome": power[name],
            "mutant": zoo.get(name),
            "seen_from": report["seen_from"].get(name),
        }
        for outcome in OUTCOMES
        for name in power
        if power[name] == outcome
    ]
    counts = {outcome: sum(x == outcome for x in power.values()) for outcome in (DETECTED, UNDETECTABLE, NOT_EXERCISED)}
    shares = {outcome: round(100 * n / len(power), 2) for outcome, n in counts.items()}
    return {"rows": rows, "counts": counts, "shares": shares, "of": len(power)}
