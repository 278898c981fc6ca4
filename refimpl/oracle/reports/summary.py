"""A result as JSON: what `loracle check --json` prints, and what the report is drawn from."""

import math
import platform
from dataclasses import asdict
from typing import Any

import numpy as np

from ... import __version__
from ...arrays import Array
from ..cases.case_json import to_json
from ..causes.statement import CauseReport
from ..diagnosis.diagnose import Finding
from ..diagnosis.localise import Location, where_in_words
from ..diagnosis.power import share_seen
from ..diagnosis.projection import limit
from .pictures import Picture
from .result import PlayedCase, Result, worst_row


def summary(result: Result, engine: str, repro: str = "") -> dict[str, Any]:
    """Return the result as JSON; its keys are documented in docs/check.md."""
    verdicts = [one.verdict for one in result.played]
    worst = worst_row(result.played)
    divergence = result.explanation.first_divergence
    return {
        "verdict": result.verdict,
        "engine": engine,
        "cases": len(verdicts),
        "passed": verdicts.count("pass"),
        "failed": verdicts.count("fail"),
        "undecided": verdicts.count("undecided"),
        "asked": _counts_of(result),
        "worst_noise_ratio": _number(worst.ratio if worst else math.nan),
        "worst_fails_from": _number(worst.limit if worst else math.nan),
        "precision": result.dtype,
        "cause": None if result.explanation.cause is None else _cause_json(result.explanation.cause),
        "diagnosis": [_finding_json(finding) for finding in result.explanation.findings],
        "symptoms": [
            {"what": symptom.what, "count": symptom.count, "of": symptom.of} for symptom in result.explanation.symptoms
        ],
        "first_divergence": None if divergence is None else _location(divergence),
        "places": [_location(one) for one in result.explanation.locations],
        "where_in_words": where_in_words(result.explanation.locations),
        "findings": result.diagnostics,
        "power": result.power,
        "seen_from": _seen_from(result),
        "repro": repro,
        "repeats": result.explanation.repeats,
        "environment": _environment() | result.versions,
        "noise": {
            "level": _number(math.exp(result.thresholds.level)),
            "spread": _number(result.thresholds.spread),
            "fails_from": _number(result.thresholds.ratio),
            "base_level": _number(math.exp(result.thresholds.base)),
            "unit": _unit(result),
            "ceiling": _number(result.ceiling),
        },
        "smallest_failure": None if result.explanation.smallest is None else to_json(result.explanation.smallest),
        "smallest_in_words": result.explanation.smallest_in_words,
        "left_out": result.left_out,
        "unasked": result.unasked,
        "picture": None if result.explanation.picture is None else _picture_json(result.explanation.picture),
        "batches": [_case(one) for one in result.played],
        "seconds": {name: round(seconds, 3) for name, seconds in result.seconds.items()},
    }


def _counts_of(result: Result) -> dict[str, int]:
    """How much, and how long: of what is larger a pass says nothing."""
    batches = [run.requests for one in result.played for run in one.case.runs]
    lengths = [len(request.prompt_ids) + request.max_new_tokens for requests in batches for request in requests]
    together = max((len(requests) for requests in batches), default=0)
    return {"requests": len(lengths), "longest": max(lengths, default=0), "together": together}


def _cause_json(cause: CauseReport) -> dict[str, Any]:
    changes = [
        {
            "what": change.sentence,
            "source": change.source,
            "modules": change.modules,
            "tokens": change.tokens,
            "coefficient": None if change.coefficient is None else _number(change.coefficient),
            "by_adapter": {adapter: _number(coefficient) for adapter, coefficient in change.by_adapter},
            "bug": change.bug,
            "links": list(change.links),
            "when": change.when,
            "is_guess": change.is_guess,
        }
        for change in cause.changes
    ]
    return {
        "sentence": cause.sentence,
        "evidence": cause.evidence,
        "changes": changes,
        "where": cause.where,
        "also": list(cause.also),
        "explained": cause.explained,
        "failed": cause.failed,
        "residual": _number(cause.residual),
        "tokens": [asdict(one) for one in cause.tokens],
    }


def _finding_json(finding: Finding) -> dict[str, Any]:
    return {
        "name": finding.name,
        "class": finding.family,
        "coefficient": _number(finding.projection.coefficient),
        "sigma": _number(finding.projection.sigma),
        "residual": _number(finding.residual),
        "explains": finding.explains,
        "only": finding.only,
        "also": list(finding.also),
        "separated_by": finding.separated_by,
        "what": finding.what,
        "links": list(finding.links),
        "evidence": finding.evidence,
    }


def _location(location: Location) -> dict[str, Any]:
    return {
        "layer": location.layer,
        "module": location.module,
        "noise_ratio": _number(location.ratio),
        "by": location.how,
    }


def _seen_from(result: Result) -> dict[str, float]:
    """Return, for each mutant that the cases exercise, the share of it that would have been seen."""
    needed = limit(sum(one.projection.strength > 0 for one in result.candidates))
    shares = {one.mutant.name: share_seen(one, result.thresholds, needed) for one in result.candidates}
    return {name: float(f"{share:.3g}") for name, share in shares.items() if math.isfinite(share)}


def _picture_json(picture: Picture) -> dict[str, Any]:
    """Return the picture as JSON, its numbers to three digits: they are drawn."""
    close = picture.close_up
    return {
        "case": picture.case,
        "mutant": picture.mutant,
        "lines": [
            {
                "run": line.run,
                "index": line.index,
                "adapter": line.adapter,
                "first": line.first,
                "prompt": line.prompt,
                "engine": _three_digits(line.engine),
                "mutant": None if line.bug is None else _three_digits(line.bug),
                "left": None if line.residual is None else _three_digits(line.residual),
            }
            for line in picture.lines
        ],
        "close_up": None
        if close is None
        else {
            "line": close.line,
            "places": close.places,
            "tokens": close.tokens,
            "engine": [_three_digits(row) for row in close.engine],
            "mutant": None if close.bug is None else [_three_digits(row) for row in close.bug],
            "left": None if close.residual is None else [_three_digits(row) for row in close.residual],
        },
    }


def _three_digits(xs: Array) -> list[float | None]:
    return [float(f"{x:.3g}") if math.isfinite(x) else None for x in xs]


def _case(played: PlayedCase) -> dict[str, Any]:
    return {
        "name": played.case.name,
        "verdict": played.verdict,
        "requests": [
            {
                "adapter": ratios.adapter,
                "verdict": verdict.verdict,
                "noise_ratio": _number(verdict.ratio),
                "why": verdict.why,
                "first": ratios.first,
                "ratios": [_number(r) for r in ratios.ratio],
            }
            for ratios, verdict in played.requests
        ],
    }


def _environment() -> dict[str, str]:
    """Return the versions on this side."""
    ours = {"loracle": __version__, "python": platform.python_version(), "numpy": np.__version__}
    return ours | {"machine": f"{platform.system()} {platform.machine()}"}


def _unit(result: Result) -> float | None:
    """Return the median of all noise units, in what the engine shows."""
    units = [ratios.unit for one in result.played for ratios in one.ratios if ratios.unit.size]
    return _number(float(np.median(np.concatenate(units)))) if units else None


def _number(x: float) -> float | None:
    """Return six digits; None for infinity and NaN, which JSON has not."""
    return float(f"{x:.6g}") if math.isfinite(x) else None
