"""Which bug is it? The mutants ranked by how well they explain the engine's numbers.

A bug is named when its coefficient is 1 and what is left of the error is noise: the noise of the mutant's own honest
runs, because a wrong answer is not rounded like a right one. Mutants that these cases cannot tell apart are one
diagnosis, with a case that would separate them. Where a scale is wrong, the factor is fitted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...arrays import Array
from ..bugs import Mutant
from ..cases import case as cases
from ..cases.case import Case
from ..cases.testbed import Testbed
from ..noise.ensemble import Member
from ..noise.verdict import Thresholds
from .projection import (
    Projection,
    ProjectionTerm,
    Sample,
    confined,
    direction,
    limit,
    project,
    remaining,
    rerun,
    without,
)
from .scale_fit import fitted
from .search import apart, explains, place_of

Parts = list[list[ProjectionTerm | None]]  # of each sample, of each exchange that counts

MANY = 6  # candidates that are looked at closely
PLACES = 2  # in which a scale is fitted
FARTHER = 1e3  # times what the nearest leaves: too far off for any noise of its own
SIMPLER = 1.1  # one factor for all adapters may leave so much more than one for each
CASES = 8  # on which a bug is looked for; a campaign that failed has plenty


@dataclass(frozen=True)
class Finding:
    """One mutant, or a class of them that the cases cannot tell apart, beside the engine's numbers."""

    name: str
    family: str
    what: str
    links: tuple[str, ...]
    seen: Projection
    residual: float  # what is left of the error, in units of noise
    explains: bool  # coefficient 1, and nothing but noise is left
    only: str = ""  # the adapter that it is confined to, if it is
    also: tuple[str, ...] = ()  # mutants that do the same on these cases
    separated_by: str = ""  # a case on which they differ
    next_best: tuple[str, float] = ("", float("inf"))  # the next mutant, and what it leaves
    mutant: Mutant | None = None  # the same, to be run: a fitted factor is in no zoo

    @property
    def evidence(self) -> str:
        """One line for people."""
        c = f"c = {self.seen.coefficient:.3g} ± {self.seen.sigma:.1g}, residual {self.residual:.3g} x noise"
        only = f", only for adapter {self.only}" if self.only else ""
        after = f"; next best {self.next_best[0]} {self.next_best[1]:.3g} x" if self.next_best[0] else ""
        return c + only + after


@dataclass(frozen=True, eq=False)
class Candidate:
    """A mutant beside all samples."""

    mutant: Mutant
    parts: Parts
    seen: Projection
    left: float  # with c = 1
    only: str = ""


def evaluate(mutant: Mutant, by_case: Parts, noisier: float = 1.0) -> Candidate:
    """Its parts of all samples, added up."""
    return Candidate(mutant, by_case, project(by_case, noisier), remaining(by_case))


def suspicious(looked: Sequence[Candidate]) -> list[Candidate]:
    """Those whose coefficient is not 0: more of them in the error than chance would have, with as many looked for."""
    tested = sum(x.seen.strength > 0 for x in looked)
    return [x for x in looked if not abs(x.seen.score) <= limit(tested)]


def diagnose(
    samples: Sequence[Sample],
    testbed: Testbed,
    looked: Sequence[Candidate],
    members: Sequence[Member],
    known: Thresholds,
    elsewhere: Sequence[tuple[Case, Testbed]] = (),
) -> list[Finding]:
    """The best explanations, best first; those that explain everything before the others. Empty if none comes near.

    elsewhere: cases to look through for one that separates mutants which these samples do not."""
    nothing = remaining(looked[0].parts, bug=False) if looked else 0.0
    candidates = [x for x in looked if x.seen.strength > 0 and not x.seen.broken]
    candidates += _fitted_scales(samples, testbed, candidates)
    candidates += [one for x in list(candidates) if (one := _confined(x))]
    candidates.sort(key=lambda x: x.left)
    closest = [x for x in candidates[:MANY] if x.left < min(nothing, FARTHER * candidates[0].left)]
    graded = [(x, _left_of_own_noise(samples, testbed, x, members)) for x in closest]
    needed = limit(len(candidates))
    explaining = [
        (x, left)
        for x, left in graded
        if left <= _tolerated(known) and _is_one(x.seen, max(left, x.left)) and abs(x.seen.score) > needed
    ]
    found = []
    if explaining:
        least = min(left for _, left in explaining)
        # A bug that says what went wrong comes before a factor that was fitted to it: 0 is "not applied".
        explaining.sort(key=lambda found: (found[1] > SIMPLER * least, found[0].mutant.scales))
        best, left = explaining[0]
        same = [x for x, _ in explaining[1:] if not (x.mutant.scales and best.mutant.scales)]
        rest = [x for x in candidates if x not in [y for y, _ in explaining] and abs(x.seen.score) > needed]
        after = (rest[0].mutant.name, rest[0].left) if rest and rest[0].left < nothing else ("no bug at all", nothing)
        where = _separating([best, *same], elsewhere) if same else ""
        found.append(_finding(best, left, True, tuple(x.mutant.name for x in same), where, after))
    else:
        found += [_finding(x, left, False) for x, left in graded[:3] if left < 0.5 * nothing]
    return found


def _finding(
    x: Candidate,
    left: float,
    explains: bool,
    also: tuple[str, ...] = (),
    where: str = "",
    after: tuple[str, float] = ("", float("inf")),
) -> Finding:
    m = x.mutant
    return Finding(m.name, m.family, m.what, m.links, x.seen, left, explains, x.only, also, where, after, m)


def _tolerated(known: Thresholds) -> float:
    """The largest rms that a whole request of honest noise may have."""
    return float(np.exp(known.whole_level + known.fail_score * known.whole_spread))


def _is_one(seen: Projection, left: float) -> bool:
    """c = 1, as far as the noise lets it be known."""
    return abs(seen.coefficient - 1) <= 6 * seen.sigma * max(left, 1.0)


# Parameters of a bug: the factor of a scale, the adapter that is hit.


def _fitted_scales(samples: Sequence[Sample], testbed: Testbed, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The factors, in the places that the error points to most: one for all adapters, and one for each. None of them
    where a bug without a factor explains it all."""
    if any(explains(x) for x in candidates if not x.mutant.scales):
        return []
    likely = sorted((x for x in candidates if x.mutant.scales), key=apart)
    found = []
    for place in list({place_of(x.mutant.name, testbed): None for x in likely})[:PLACES]:
        one, each = (fitted(samples, testbed, place, several) for several in (False, True))
        fits = [evaluate(*fit) for fit in (one, each) if fit is not None]
        simple = len(fits) == 2 and fits[0].left <= SIMPLER * fits[1].left
        found += [x for x in (fits[:1] if simple else fits) if x.seen.strength > 0]
    return found


def _confined(x: Candidate) -> Candidate | None:
    """The same bug in the requests of some adapters only, if the others have nothing of it."""
    names = sorted({p.adapter for ps in x.parts for p in ps if p is not None and p.adapter is not None})
    alone = {name: project(confined(x.parts, name)) for name in names}
    hit = {name: seen for name, seen in alone.items() if seen.strength > 0}
    full = [name for name, seen in hit.items() if _is_one(seen, 1.0) and abs(seen.score) > limit(len(hit))]
    if not full or len(full) == len(hit):
        return None
    by_case = [[p if p is None or p.adapter in full else without(p) for p in ps] for ps in x.parts]
    return replace(x, parts=by_case, seen=project(by_case), left=remaining(by_case), only=" and ".join(full))


def _left_of_own_noise(samples: Sequence[Sample], testbed: Testbed, x: Candidate, members: Sequence[Member]) -> float:
    """What is left, in units of how far honest runs *of the mutant* are from its exact answer. An ensemble of the truth
    would call a bug that makes logits ten times larger unexplained, because its noise is larger as well.

    Row by row, or over all rows together if that is less: a bug that rounds has noise in a few rows only, where a
    number fell to the other side, and in which rows is chance."""
    total, count, together, own_noise = 0.0, 0, 0.0, 0.0
    for sample in samples:
        ds = direction(x.mutant.make, sample, testbed)
        runs = [rerun(x.mutant.make, sample, testbed, m.precision) for m in members[:2]]
        for i, (e, raw, d) in enumerate(zip(sample.counted, sample.raws, ds, strict=True)):
            if raw is None or d is None:
                continue
            if x.only and e.adapter not in x.only.split(" and "):
                d = np.zeros_like(d)
            left = raw.error / raw.unit[:, None] - d
            noise = np.ones_like(raw.unit)[:, None]
            if np.any(d):
                own = [run[i] for run in runs]
                there = [raw.view.of(np.nan_to_num(o)) - raw.exact for o in own if o is not None]
                errors = np.stack(there) / raw.unit[None, :, None] - d[None]
                per_row = np.sqrt(np.mean(errors**2, axis=(0, 2)))
                noise = np.maximum(noise, per_row[:, None])
            together += float(np.sum(left[raw.view.shown] ** 2))
            own_noise += float(np.sum(noise**2 * raw.view.shown))
            left = (left / noise)[raw.view.shown]
            if not np.isfinite(left).all():
                return float("inf")
            total, count = total + float(np.sum(left**2)), count + left.size
    return float(np.sqrt(min(total / count, together / own_noise))) if count else float("inf")


# Mutants that cannot be told apart.


def _separating(same: Sequence[Candidate], elsewhere: Sequence[tuple[Case, Testbed]]) -> str:
    """The first case on which not all of them do the same, in words; "" if none was found."""
    from ...engines.ours import Ours
    from ..cases.testbed import settings as stage_settings

    for case, testbed in elsewhere:
        answers: list[list[Array]] = []
        for x in same:
            adapters = {testbed.paths[key]: a for key, a in testbed.adapters.items()}
            engine = Ours(x.mutant.make, None, testbed.exact, adapters)
            engine.start(stage_settings(testbed))
            cases.prepare(engine, testbed)
            played = cases.play(engine, case, testbed)
            answers.append([e.answer.logits for e in played if e.answer.logits is not None])
        first = answers[0]
        for x, other in zip(same[1:], answers[1:], strict=True):
            if any(a.shape != b.shape or not np.allclose(a, b) for a, b in zip(first, other, strict=True)):
                asks = case.runs[0].asks
                used = sorted({a.adapter for a in asks if a.adapter})
                shapes = ", ".join(_shape(testbed, name) for name in used)
                return f"{same[0].mutant.name} and {x.mutant.name} differ on {shapes}"
    return ""


def _shape(testbed: Testbed, name: str) -> str:
    c = testbed.adapters[name].config
    return f"{name} (r={c.r}, alpha={c.lora_alpha:g}{', rsLoRA' if c.use_rslora else ''})"
