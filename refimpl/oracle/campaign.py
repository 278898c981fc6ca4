"""A campaign: many cases, one verdict.

    ask the engine -> measure every answer -> learn what honest looks like -> judge -> look below the noise -> explain

The engine is asked in this process, one case after another; the numbers are made by workers meanwhile. The same seed
asks the same questions, however many workers there are.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..engines.interface import Engine, EngineRequest, Settings
from .bugs import mutants_for
from .bugs.preconditions import is_applicable, spread
from .cases import archive
from .cases import scenarios as drawn
from .cases.case import Case, Exchange, Run, draw_batch, play, prepare, request
from .cases.testbed import Testbed, settings
from .diagnosis.diagnose import Candidate, Finding, evaluate, suspicious
from .diagnosis.localise import Location
from .diagnosis.power import power
from .diagnosis.projection import Sample
from .diagnosis.symptoms import Symptom
from .diagnosis.workers import along, pool, ratios
from .explain import CLOSELY, Explainer
from .noise import precision as precisions
from .noise.ceiling import ceilings
from .noise.ensemble import Member, ensemble, wider
from .noise.measure import ErrorRatios, measure
from .noise.verdict import Thresholds, Verdict, judge, learn_thresholds, no_chance, overall
from .reports.pictures import Picture

SAMPLE = 16  # cases that are looked at below the noise
CEILINGS = 3  # batches of which it is computed where rounding ends
AGAIN = 4  # cases with other tokens, where one is too close to call


@dataclass(frozen=True)
class Plan:
    """What is to be done."""

    cases: int = 50
    sequences: int = 20
    seed: int = 0
    budget: float | None = None  # seconds; what was not asked by then is not asked
    precision: str = "float32"  # declared, or "auto"
    jobs: int = 1
    below: bool = True  # look below the noise, and state the power


@dataclass
class Played:
    """One case, as it went."""

    case: Case
    settings: Settings
    measured: list[ErrorRatios]
    judged: list[Verdict] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """Of its requests, those in which no adapter matters not counted."""
        return overall([j.verdict for j in self.judged])


@dataclass
class Result:
    """All that is known in the end."""

    testbed: Testbed
    verdict: str
    played: list[Played]
    known: Thresholds
    dtype: str
    diagnostics: list[str]
    diagnosis: list[Finding] = field(default_factory=list)
    symptoms: list[Symptom] = field(default_factory=list)
    first_divergence: Location | None = None
    places: list[Location] = field(default_factory=list)  # how far off it is by layer and module, as far as was seen
    picture: Picture | None = None  # what the engine did beside what the bug does
    power: dict[str, str] = field(default_factory=dict)
    ceiling: float = float("nan")  # ratio of a row that rounding cannot reach, to first order: the middle one
    looked: list[Candidate] = field(default_factory=list)
    smallest: Case | None = None  # the shortest case found that fails
    small_settings: Settings | None = None  # how the engine was started for it
    versions: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


Progress = Callable[[str, int, int], None]  # what, done, of how many


class Campaign:
    """One engine, one stage, one plan. `make` gives an engine that is not started."""

    def __init__(
        self, make: Callable[[], Engine], testbed: Testbed, plan: Plan, work: Path, progress: Progress = lambda *_: None
    ) -> None:
        self.make, self.testbed, self.plan, self.work, self.progress = make, testbed, plan, work, progress
        self.engine = make()
        self.capabilities = self.engine.capabilities
        self.members: Sequence[Member] = ensemble(testbed.dtype)
        self.diagnostics: list[str] = []
        self._narrow: precisions.PrecisionFinding | None = None  # what the engine keeps in a lower type
        self.seconds: dict[str, float] = {}
        self._began = time.monotonic()
        self._state: tuple[Settings, bool] | None = None  # how the engine was started, and whether for batches

    def run(self) -> Result:
        """Ask, judge, explain. EngineError if the engine could not be run at all."""
        try:
            return self._run()
        finally:
            self.engine.close()

    def _run(self) -> Result:
        if self.plan.precision == "auto":
            self._infer()
        with pool(self.testbed, self.plan.jobs) as workers:
            played = self._ask_all(workers)
            known = self._judge(played)
            if precisions.too_noisy(known):
                known = self._lower_precision(played, known, workers)
            self._second_look(played, known)
            verdict = overall([p.verdict for p in played])
            result = Result(self.testbed, verdict, played, known, self.testbed.dtype, self.diagnostics)
            result.ceiling = self._ceiling(played)
            if self.plan.below:
                self._below(result, workers)
            if result.verdict == "fail":
                Explainer(self, workers).explain(result)
            if not result.places:
                Explainer(self, workers).layers(result)
        result.versions = self.engine.versions()
        result.seconds = self.seconds
        return result

    # Asking.

    def _ask_all(self, workers: Executor) -> list[Played]:
        waiting: list[tuple[Case, Settings, Future]] = []
        plain = settings(self.testbed)
        total, began = self.plan.cases + self._sequences, time.monotonic()
        for i in range(self.plan.cases):
            if self._late():
                self.diagnostics.append(f"the budget ended after {i} of {self.plan.cases} batches")
                break
            rng = np.random.default_rng([self.plan.seed, i, 1])
            case = draw_batch(self.testbed, self.capabilities, rng, f"batch {i}")
            waiting.append((case, plain, workers.submit(ratios, case, self.answers(case, plain), self.members)))
            self.progress("asking", len(waiting), total)
        ways = drawn.variants(self.testbed, self.capabilities) if self._sequences else []
        for number, way in enumerate(ways):  # one way after the other: starting an engine is slow
            for i in range(number, self._sequences, len(ways)):
                if self._late():
                    self.diagnostics.append(f"the budget ended before sequence {i}")
                    break
                case = drawn.draw_sequence(self.testbed, self.capabilities, self.plan.seed, i, way)
                waiting.append((case, way, workers.submit(ratios, case, self.answers(case, way), self.members)))
                self.progress("asking", len(waiting), total)
        played = []
        for case, way, future in waiting:
            played.append(Played(case, way, future.result()))
            self.progress("measuring", len(played), len(waiting))
        self.seconds["asking and measuring"] = time.monotonic() - began
        return played

    @property
    def _sequences(self) -> int:
        return self.plan.sequences if {"load", "prefix_cache"} & self.capabilities.operations else 0

    def answers(self, case: Case, way: Settings) -> list[Exchange]:
        """The engine's answers: those of an earlier run of this campaign, if they are there."""
        folder = self.work / "answers"
        known = archive.saved(folder, case)
        if known is None:
            known = self.ask(case, way)
            archive.save(folder, case, known)
        return known

    def ask(self, case: Case, way: Settings) -> list[Exchange]:
        """One case, on an engine that is started as the case needs it."""
        if self._state != (way, case.stateless):
            if self._state is None or self._state[0] != way:
                if self._state is not None:
                    self.engine.close()
                    self.engine = self.make()
                self.engine.start(way)
            if case.stateless:
                self.engine.reset()
                prepare(self.engine, self.testbed)
            self._state = (way, case.stateless)
        elif case.stateless and getattr(self.engine, "new_for_each_batch", False):
            self.engine.reset()
            prepare(self.engine, self.testbed)
        return play(self.engine, case, self.testbed)

    def _late(self) -> bool:
        """Two thirds of the budget are for asking."""
        budget = self.plan.budget
        return budget is not None and time.monotonic() - self._began > budget * 2 / 3

    def _infer(self) -> None:
        """The type that the first cases speak for."""
        way, asked = settings(self.testbed), []
        for i in range(3):
            rng = np.random.default_rng([self.plan.seed, i, 1])
            case = draw_batch(self.testbed, self.capabilities, rng, f"batch {i}")
            asked.append((case, self.answers(case, way)))
        dtype = precisions.infer(asked, self.testbed)
        self.testbed, self.members = self.testbed.in_dtype(dtype), ensemble(dtype)
        self.diagnostics.append(f"precision: the engine computes in {dtype}")

    # Judging.

    def _judge(self, played: Sequence[Played]) -> Thresholds:
        known = learn_thresholds([m for p in played for m in p.measured])
        for p in played:
            p.judged = [judge(m, known) for m in p.measured]
            blind = [
                j
                for j, m in zip(p.judged, p.measured, strict=True)
                if j.verdict == "pass" and m.adapter_effect < known.ratio
            ]
            if blind and len(blind) == len(p.judged):  # nothing was shown
                p.judged = [replace(j, verdict="undecided", why="no adapter matters in this case") for j in p.judged]
        return known

    def _lower_precision(self, played: Sequence[Played], known: Thresholds, workers: Executor) -> Thresholds:
        """Name what is kept in a lower type, and judge again with the noise that it makes."""
        samples = [self.sample(p) for p in played[:CLOSELY]]
        found = precisions.lower_precision(samples, self.testbed)
        if found is None:
            times = float(np.exp(known.base - known.highest))
            self.diagnostics.append(
                f"precision: base rows are {times:.3g} x as noisy as {self.testbed.dtype} is, unexplained"
            )
            return known
        self.diagnostics.append(f"precision: {found.what}, not {self.testbed.dtype}")
        self._narrow = found
        self.members = precisions.narrowed(self.members, found)
        again = [workers.submit(ratios, p.case, self.answers(p.case, p.settings), self.members) for p in played]
        for p, future in zip(played, again, strict=True):
            p.measured = future.result()
        return self._judge(played)

    def _second_look(self, played: Sequence[Played], known: Thresholds) -> None:
        """Too close to call: judge with three times as many honest runs, then ask the same of other tokens. What does
        not come again in any of them was chance, and is told; what does stays undecided, or fails."""
        more = (
            wider(self.testbed.dtype)
            if self._narrow is None
            else precisions.narrowed(wider(self.testbed.dtype), self._narrow)
        )
        for p in [p for p in played if p.verdict == "undecided" and any(m.ratio.size for m in p.measured)]:
            exchanges = self.answers(p.case, p.settings)
            p.judged = _again(p, measure(p.case, exchanges, self.testbed, more)[0], known)
            doubtful = [j for j in p.judged if _close(j, known)]
            if not doubtful:
                continue
            fresh = []
            for seed in range(AGAIN):
                case = retold(p.case, self.testbed.model.config.vocab_size, seed)
                again = measure(case, self.answers(case, p.settings), self.testbed, more)[0]
                fresh.append(overall([judge(m, known).verdict for m in again]))
            if overall(fresh) == "pass":
                self.diagnostics.append(f"{p.case.name}: {doubtful[0].why}; not again in {AGAIN} cases like it")
                p.judged = [replace(j, verdict="pass") if j in doubtful else j for j in p.judged]
            elif "fail" in fresh or no_chance(1 + fresh.count("undecided")):
                p.judged = [replace(j, verdict="fail") if j in doubtful else j for j in p.judged]
        close = [p for p in played if any(_close(j, known) for j in p.judged)]
        if no_chance(len(close)):
            for p in close:
                why = f"; {len(close)} such cases in one campaign are no chance"
                p.judged = [replace(j, verdict="fail", why=j.why + why) if _close(j, known) else j for j in p.judged]

    def _ceiling(self, played: Sequence[Played]) -> float:
        """Of some batches."""
        found = []
        for p in spread([p for p in played if p.case.stateless], CEILINGS):
            one = self.sample(p)
            shown = [(request(e, self.testbed), raw) for e, raw in zip(one.counted, one.raws, strict=True) if raw]
            if shown:
                found += ceilings([r for r, _ in shown], [raw for _, raw in shown], self.testbed)
        return float(np.median(np.concatenate(found))) if found else float("nan")

    # Below the noise.

    def sample(self, p: Played) -> Sample:
        exchanges = self.answers(p.case, p.settings)
        return Sample(p.case, exchanges, measure(p.case, exchanges, self.testbed, self.members)[1], p.settings)

    def _below(self, result: Result, workers: Executor) -> None:
        began = time.monotonic()
        chosen = self.chosen(result)
        zoo = mutants_for(list(self.testbed.paths))
        futures = []
        for p in chosen:
            names = [m.name for m in zoo.values() if is_applicable(m, self.testbed, p)]
            futures.append(
                workers.submit(along, p.case, self.answers(p.case, p.settings), self.members, p.settings, names)
            )
        by_mutant: dict[str, list[Any]] = {name: [] for name in zoo}
        for done, future in enumerate(futures, 1):
            found = future.result()
            for name in zoo:
                by_mutant[name].append(found.get(name, []))  # of what cannot show there: nothing
            self.progress("below the noise", done, len(futures))
        noisier = float(np.exp(max(0.0, result.known.level)))
        result.looked = [evaluate(zoo[name], ps, noisier) for name, ps in by_mutant.items()]
        result.power = power(result.looked, result.known)
        hidden = suspicious(result.looked)
        if hidden and result.verdict != "fail":
            result.verdict = "fail"
            worst = max(hidden, key=lambda x: abs(x.seen.score))
            self.diagnostics.append(
                f"below the noise: {worst.mutant.name} with c = {worst.seen.coefficient:.3g} ± {worst.seen.sigma:.1g} "
                f"({abs(worst.seen.score):.0f} sigma) in {len(chosen)} cases"
            )
        self.seconds["below the noise"] = time.monotonic() - began

    def chosen(self, result: Result) -> list[Played]:
        """Batches first, then sequences."""
        batches = spread([p for p in result.played if p.case.stateless], SAMPLE)
        return batches + spread([p for p in result.played if not p.case.stateless], SAMPLE // 4)


def _again(p: Played, measured: Sequence[ErrorRatios], known: Thresholds) -> list[Verdict]:
    """What was too close to call, judged anew."""
    return [judge(m, known) if _close(j, known) else j for j, m in zip(p.judged, measured, strict=True)]


def _close(j: Verdict, known: Thresholds) -> bool:
    """Undecided for its numbers, not because nothing could be shown."""
    return j.verdict == "undecided" and not j.score <= known.pass_score


def retold(case: Case, vocab: int, seed: int) -> Case:
    """The same with every token exchanged for another: what was a common prefix still is one."""
    other = np.random.default_rng([seed, 11]).permutation(vocab)

    def asked(ask: EngineRequest) -> EngineRequest:
        return replace(ask, prompt_ids=tuple(int(other[t]) for t in ask.prompt_ids))

    steps = [Run(tuple(asked(a) for a in s.asks)) if isinstance(s, Run) else s for s in case.steps]
    return replace(case, name=f"{case.name}, retold {seed}", steps=tuple(steps))
