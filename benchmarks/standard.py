"""The standard campaign, as short as it can be for one question: is this Ops found out, and by which case?

    loracle check --engine mutant:NAME --model random --cases 68 --sequences 32

is 100 cases on four random bases that have, in turn, all that an engine may be asked for. Here they are asked in that
order until one fails. What is honest is learnt from the same campaign with the clean table; the level is then taken to
be as high, and the spread as wide, as those of any honest run, so that what fails here fails in the whole campaign,
whatever the engine's own base rows say there. A bug that leaves no row outside of the noise is looked for along its
own direction, as the campaign does, at the odds for as many directions as the zoo has.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from refimpl.arrays import Array
from refimpl.engines.interface import Settings
from refimpl.engines.ours import CAPABILITIES, Ours
from refimpl.ops import NUMPY, Ops
from refimpl.oracle.bases import BATCHES, SEQUENCES
from refimpl.oracle.below import SAMPLE
from refimpl.oracle.bugs import mutants_for
from refimpl.oracle.campaign import Campaign
from refimpl.oracle.cases import scenarios as drawn
from refimpl.oracle.cases.batches import draw_batch
from refimpl.oracle.cases.case import Case, Exchange
from refimpl.oracle.cases.testbed import Testbed, build, settings
from refimpl.oracle.cases.variety import KINDS, TURNS
from refimpl.oracle.diagnosis.projection import ProjectionTerm, limit, project, projection_terms
from refimpl.oracle.noise.ensemble import ensemble
from refimpl.oracle.noise.measure import ErrorRatios, Sample, measure
from refimpl.oracle.noise.verdict import Thresholds, judge, learn_thresholds
from refimpl.oracle.reports.result import CampaignSettings

MakeOps = Callable[[], Ops]


@dataclass(frozen=True, eq=False)
class Setting:
    """One testbed of it, and the cases that are asked there, in order."""

    testbed: Testbed
    cases: Sequence[tuple[Case, Settings]]
    work: Path
    clean: dict[str, list[Exchange]] = field(default_factory=dict)  # what the clean table answers to each case


@dataclass(frozen=True)
class Found:
    """How a bug was found out."""

    by: str  # "a row", "a sequence", "no answer", "below the noise"
    after: int  # cases, of 100
    testbed: int
    case: str
    why: str


def setting(dtype: str, seed: int, work: Path) -> Setting:
    """Return the testbed of this seed, in this type."""
    folder = work / f"{dtype}-{seed}"
    testbed = build("random", dtype, seed, folder, CAPABILITIES, None, KINDS)
    plain = settings(testbed)
    cases = []
    for i in range(BATCHES):
        rng = np.random.default_rng([seed, i, 1])
        cases.append((draw_batch(testbed, CAPABILITIES, rng, f"batch {i}"), plain))
    ways = drawn.variants(testbed, CAPABILITIES)
    for number, way in enumerate(ways):
        for i in range(number, SEQUENCES, len(ways)):
            cases.append((drawn.draw_sequence(testbed, CAPABILITIES, seed, i, way), way))
    return Setting(testbed, cases, folder)


def asking(s: Setting, make: MakeOps) -> Campaign:
    """Return a campaign over this backend that plays the cases of a testbed; nothing is read from disk again."""
    adapters = {s.testbed.paths[key]: a for key, a in s.testbed.adapters.items()}
    return Campaign(lambda: Ours(make, None, s.testbed.model, adapters), s.testbed, CampaignSettings(), s.work)


def asked(s: Setting, make: MakeOps) -> Iterator[tuple[Case, Settings, list[Exchange]]]:
    """Case by case."""
    campaign = asking(s, make)
    for case, way in s.cases:
        with np.errstate(all="ignore"):
            exchanges = campaign.driver.run(case, way)
        yield case, way, exchanges


def unchanged(s: Setting, case: Case, exchanges: Sequence[Exchange]) -> bool:
    """Are these the very bits of the clean table? Then there is nothing to measure: it passes."""
    if not s.clean:
        s.clean.update({c.name: exchanged for c, _, exchanged in asked(s, lambda: NUMPY)})
    pairs = zip((e.response for e in exchanges), (e.response for e in s.clean[case.name]), strict=True)
    return all(a.token_ids == b.token_ids and same_bits(a.logits, b.logits) for a, b in pairs)


def same_bits(a: Array | None, b: Array | None) -> bool:
    """Both none, or the same numbers; a NaN is not the same as anything."""
    return a is b or (a is not None and b is not None and np.array_equal(a, b))


def most_lenient(s: Setting, make: MakeOps = lambda: NUMPY) -> tuple[Thresholds, list[str]]:
    """What honest looks like here, for an engine whose base rows are as noisy as an honest run's can be; and the cases
    that an honest engine itself does not pass."""
    members = ensemble(s.testbed.dtype)
    everything = [
        (case.name, m) for case, _, exchanges in asked(s, make) for m in measure(case, exchanges, s.testbed, members)[0]
    ]
    rng = np.random.default_rng(0)
    noisy = [
        replace(m, ratio=1e6 * np.exp(rng.standard_normal(m.ratio.size))) if m.adapter is None else m
        for _, m in everything
    ]
    known, own = learn_thresholds(noisy), learn_thresholds([m for _, m in everything])
    return known, [f"{name}: {j.why}" for name, m in everything if (j := judge(m, own)).verdict != "pass"]


def first_failure(s: Setting, make: MakeOps, known: Thresholds) -> Found | None:
    """By the rows alone."""
    members = ensemble(s.testbed.dtype)
    for i, (case, _, exchanges) in enumerate(asked(s, make)):
        if unchanged(s, case, exchanges):
            continue
        if (found := failure(case, measure(case, exchanges, s.testbed, members)[0], known)) is not None:
            return replace(found, after=i + 1)
    return None


def failure(case: Case, of_case: Sequence[ErrorRatios], known: Thresholds) -> Found | None:
    """Does this case fail?"""
    for m in of_case:
        j = judge(m, known)
        if j.verdict == "fail":
            by = "no answer" if m.problem else "a row" if case.stateless else "a sequence"
            return Found(by, 0, 0, case.name, f"{m.adapter or 'base'}: {j.why}")
    return None


def below_the_noise(s: Setting, make: MakeOps, known: Thresholds) -> tuple[float, float, float]:
    """The coefficient of the bug's own direction in its own campaign, its sigma, and the score that it must exceed."""
    batches = [pair for pair in s.cases if pair[0].stateless][:SAMPLE]
    chosen = replace(s, cases=[*batches, *[pair for pair in s.cases if not pair[0].stateless][: SAMPLE // 4]])
    members = ensemble(s.testbed.dtype)
    by_case: list[list[ProjectionTerm | None]] = []
    for case, way, exchanges in asked(chosen, make):
        if unchanged(s, case, exchanges):
            continue  # nothing of the bug is in this case
        sample = Sample(case, exchanges, measure(case, exchanges, s.testbed, members)[1], way)
        by_case.append(projection_terms(make, sample, s.testbed))
    seen = project(by_case, float(np.exp(max(0.0, known.level))))
    return seen.coefficient, seen.sigma, limit(len(mutants_for(list(s.testbed.paths))))


def search(
    settings_: Sequence[Setting], known: Sequence[Thresholds], make: MakeOps, rows_only: bool = False
) -> Found | None:
    """Testbed by testbed, as they are asked: by the rows first; below the noise what no row shows."""
    for number, (s, k) in enumerate(zip(settings_, known, strict=True)):
        before = number * (BATCHES + SEQUENCES)
        if (found := first_failure(s, make, k)) is not None:
            return replace(found, after=before + found.after, testbed=number)
        if rows_only:
            continue
        c, sigma, needed = below_the_noise(s, make, k)
        if not abs(c) <= needed * sigma:
            why = f"c = {c:.3g} ± {sigma:.1g} ({abs(c) / sigma:.0f} sigma)"
            return Found("below the noise", before + BATCHES + SEQUENCES, number, "all of a stage", why)
    return None


def all_settings(dtype: str, work: Path | None = None) -> list[Setting]:
    """Seeds 0 to 3."""
    root = work or Path(tempfile.mkdtemp())
    return [setting(dtype, seed, root) for seed in range(TURNS)]
