"""A campaign: many cases, one verdict.

    ask the engine -> measure every response -> learn what honest looks like -> judge -> look below the noise -> explain

The engine is asked in this process, one case after another; the numbers are made by workers meanwhile. The same seed
asks the same questions, however many workers there are.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..engines.interface import Engine, Settings
from .bugs import mutants_for
from .bugs.preconditions import is_applicable, spread
from .cases import scenarios
from .cases.case import Case, draw_batch, teacher_forced
from .cases.testbed import Testbed
from .cases.testbed import settings as testbed_settings
from .context import Context
from .diagnosis.candidate import Candidate, evaluate, in_words, suspicious
from .diagnosis.power import power
from .diagnosis.workers import error_ratios, measure_and_project
from .engine_driver import EngineDriver, ask_all
from .explain import CLOSELY, explain, explain_below
from .location import locate_layers
from .noise import precision as precisions
from .noise.ceiling import ceilings
from .noise.ensemble import Member, ensemble, wider
from .noise.measure import Sample
from .noise.verdict import Thresholds, overall
from .observer import Observer
from .ray_cluster import executor
from .repeatable import ask_twice
from .reports.result import CampaignSettings, Explanation, PlayedCase, Result
from .second_look import SecondLook
from .verdicts import judge_all, why_undecided

SAMPLE = 16  # cases that are looked at below the noise; larger: slower, and smaller bugs are seen
CEILINGS = 3  # batches of which it is computed where rounding ends; larger: slower, the median moves by little
INFERRED_FROM = 3  # batches from which --precision auto infers the type


@dataclass(frozen=True, eq=False)
class Asked:
    """A case that was played, and the future of its error ratios."""

    case: Case
    settings: Settings
    ratios: Future


class Campaign:
    """One engine, one testbed, one set of campaign settings. `make` gives an engine that is not started."""

    def __init__(
        self,
        make: Callable[[], Engine],
        testbed: Testbed,
        settings: CampaignSettings,
        work: Path,
        observer: Observer | None = None,
    ) -> None:
        self.drivers = [EngineDriver(make, testbed, work) for _ in range(settings.engines)]
        self.testbed, self.settings, self.observer = testbed, settings, observer or Observer()
        self.capabilities = self.driver.capabilities
        self.members: tuple[Member, ...] = ensemble(testbed.dtype)
        self.diagnostics: list[str] = []
        self._narrow: precisions.PrecisionFinding | None = None  # what the engine keeps in a lower type
        self.seconds: dict[str, float] = {}
        self._began = time.monotonic()
        self._end = math.inf if settings.budget is None else self._began + settings.budget
        self._pending: list[Asked] = []
        self._result: Result | None = None  # as far as it is known

    def run(self) -> Result:
        """Ask, judge, explain. EngineError if the engine could not be run at all.

        Ctrl-C ends it, and what is known by then is returned; KeyboardInterrupt if that is nothing."""
        try:
            return self._run()
        except KeyboardInterrupt:
            return self._known_by_now()
        finally:
            for driver in self.drivers:
                driver.close()

    def _run(self) -> Result:
        if self.settings.precision == "auto":
            self._infer()
        with executor(self.testbed, self.settings) as workers:
            played = self._run_all(workers)
            thresholds = judge_all(played)
            self.observer.judge(played, thresholds)
            if precisions.too_noisy(thresholds):
                thresholds = self._lower_precision(played, thresholds, workers)
            self.diagnostics += precisions.more_exact(thresholds, self.testbed.dtype)
            look = SecondLook(self.driver, self.testbed, self._wider_members(), thresholds)
            self.diagnostics += look.at_all(played) + ask_twice(self.driver, played, thresholds, self.members)
            self.diagnostics += why_undecided(played)
            self._result = result = self._first_result(played, thresholds)
            result.ceiling = self._ceiling(played)
            if self.settings.below and result.verdict != "fail":  # it says what a pass is worth
                self._below(result, workers)
            self._explain(result, workers)
        result.versions = self.driver.engine.versions()
        result.seconds = self.seconds
        return result

    def _first_result(self, played: list[PlayedCase], thresholds: Thresholds) -> Result:
        verdict = overall([one.verdict for one in played])
        return Result(
            self.testbed,
            verdict,
            played,
            thresholds,
            self.testbed.dtype,
            self.diagnostics,
            left_out=list(self.capabilities.left_out),
        )

    def _known_by_now(self) -> Result:
        """Return what was known when Ctrl-C came. That is no pass: not everything was asked, or looked at."""
        if self._result is None:
            measured = [one for one in self._pending if one.ratios.done() and not one.ratios.cancelled()]
            measured = [one for one in measured if one.ratios.exception() is None]
            if not measured:
                raise KeyboardInterrupt
            played = [PlayedCase(one.case, one.settings, one.ratios.result()) for one in measured]
            self._result = self._first_result(played, judge_all(played))
        result = self._result
        result.interrupted = True
        result.verdict = "undecided" if result.verdict == "pass" else result.verdict
        total = self.settings.cases + self._sequences
        self.diagnostics.append(f"stopped by a signal, with {len(result.played)} of {total} cases measured")
        return result

    def _run_all(self, workers: Executor) -> list[PlayedCase]:
        began = time.monotonic()
        total = self.settings.cases + self._sequences
        for case, settings, exchanges in ask_all(self.drivers, self._cases()):
            self._pending.append(Asked(case, settings, workers.submit(error_ratios, case, exchanges, self.members)))
            self.observer.advance("asking", len(self._pending), total)
            if len(self._pending) == 1 and total > 1 and all(exchange.response.error for exchange in exchanges):
                self.diagnostics.append("every answer to the first case was an error: no other was asked")
                break
        played = []
        for one in self._pending:
            played.append(PlayedCase(one.case, one.settings, one.ratios.result()))
            self.observer.advance("measuring", len(played), len(self._pending))
        self.seconds["asking and measuring"] = time.monotonic() - began
        return played

    def _cases(self) -> Iterator[tuple[Case, Settings]]:
        """Yield batches, then sequences, each with how the engine is to be started, until the budget ends."""
        plain = testbed_settings(self.testbed)
        for i in range(self.settings.cases):
            if self._is_late():
                self.diagnostics.append(f"the budget ended after {i} of {self.settings.cases} batches")
                break
            yield self._batch(i), plain
        variants = scenarios.variants(self.testbed, self.capabilities) if self._sequences else []
        for number, settings in enumerate(variants):  # one way after the other: starting an engine is slow
            for i in range(number, self._sequences, len(variants)):
                if self._is_late():
                    self.diagnostics.append(f"the budget ended before sequence {i}")
                    break
                seed = self.settings.seed
                yield scenarios.draw_sequence(self.testbed, self.capabilities, seed, i, settings), settings

    def _batch(self, i: int) -> Case:
        rng = np.random.default_rng([self.settings.seed, i, 1])
        return draw_batch(self.testbed, self.capabilities, rng, f"batch {i}")

    @property
    def driver(self) -> EngineDriver:
        """The one that is asked whatever is asked after the cases."""
        return next((driver for driver in self.drivers if not driver.lost), self.drivers[0])

    @property
    def _sequences(self) -> int:
        return self.settings.sequences if {"load", "prefix_cache"} & self.capabilities.operations else 0

    def _is_late(self) -> bool:
        """Are two thirds of the budget spent? They are for asking."""
        return time.monotonic() > self._began + (self._end - self._began) * 2 / 3

    # Precision.

    def _infer(self) -> None:
        """Go on in the type that the first cases speak for."""
        settings = testbed_settings(self.testbed)
        cases = [self._batch(i) for i in range(INFERRED_FROM)]
        dtype = precisions.infer([(case, self.driver.exchanges(case, settings)) for case in cases], self.testbed)
        self.testbed, self.members = self.testbed.in_dtype(dtype), ensemble(dtype)
        for driver in self.drivers:
            driver.testbed = self.testbed
        self.diagnostics.append(f"precision: the engine computes in {dtype}")

    def _lower_precision(self, played: Sequence[PlayedCase], thresholds: Thresholds, workers: Executor) -> Thresholds:
        """Name what is kept in a lower type, and judge again with the noise that it makes."""
        samples = [self._sample(one) for one in played[:CLOSELY]]
        finding = precisions.lower_precision(samples, self.testbed)
        if finding is None:
            times = float(np.exp(thresholds.base - thresholds.highest))
            self.diagnostics.append(
                f"precision: base rows are {times:.3g} x as noisy as {self.testbed.dtype} is, unexplained"
            )
            return thresholds
        self.diagnostics.append(f"precision: {finding.what}, not {self.testbed.dtype}")
        self._narrow = finding
        self.members = precisions.narrowed(self.members, finding)
        again = [
            workers.submit(error_ratios, one.case, self.driver.exchanges(one.case, one.settings), self.members)
            for one in played
        ]
        for one, future in zip(played, again, strict=True):
            one.ratios = future.result()
        return judge_all(played)

    def _wider_members(self) -> tuple[Member, ...]:
        members = wider(self.testbed.dtype)
        return members if self._narrow is None else precisions.narrowed(members, self._narrow)

    # Below the noise.

    def _sample(self, played: PlayedCase) -> Sample:
        return self.driver.sample(played.case, played.settings, self.members)

    def _ceiling(self, played: Sequence[PlayedCase]) -> float:
        """Return where rounding ends, as a ratio: the median over the rows of some batches."""
        bounds = []
        for one in spread([one for one in played if one.case.stateless], CEILINGS):
            sample = self._sample(one)
            pairs = [(exchange, raw) for exchange, raw in zip(sample.counted, sample.raws, strict=True) if raw]
            if pairs:
                requests = [teacher_forced(exchange, self.testbed.adapters) for exchange, _ in pairs]
                bounds += ceilings(requests, [raw for _, raw in pairs], self.testbed)
        return float(np.median(np.concatenate(bounds))) if bounds else float("nan")

    def _below(self, result: Result, workers: Executor) -> None:
        """Look for every mutant below the noise; a coefficient that is not 0 is a failure that no row shows."""
        began = time.monotonic()
        chosen = self._chosen(result.played)
        noisier = float(np.exp(max(0.0, result.thresholds.level)))
        result.candidates = self._project_all(chosen, noisier, workers)
        result.power = power(result.candidates, result.thresholds)
        hidden = suspicious(result.candidates)
        if hidden and result.verdict != "fail":
            result.verdict = "fail"
            self.diagnostics.append(in_words(hidden, len(chosen)))
        self.seconds["below the noise"] = time.monotonic() - began

    def _project_all(self, chosen: Sequence[PlayedCase], noisier: float, workers: Executor) -> list[Candidate]:
        """Return every mutant beside these cases; of what cannot show in a case there is no term."""
        mutants = mutants_for(list(self.testbed.paths))
        futures = []
        for one in chosen:
            names = [
                mutant.name
                for mutant in mutants.values()
                if is_applicable(mutant, self.testbed, one.case, one.settings)
            ]
            exchanges = self.driver.exchanges(one.case, one.settings)
            futures.append(workers.submit(measure_and_project, one.case, exchanges, self.members, one.settings, names))
        for done, (one, future) in enumerate(zip(chosen, futures, strict=True), 1):
            one.terms = future.result()
            self.observer.advance("below the noise", done, len(futures))
        return [
            evaluate(mutant, [one.terms.get(name, []) for one in chosen], noisier) for name, mutant in mutants.items()
        ]

    def _chosen(self, played: Sequence[PlayedCase]) -> list[PlayedCase]:
        """Return the cases that are looked at below the noise: batches first, then sequences."""
        batches = spread([one for one in played if one.case.stateless], SAMPLE)
        return batches + spread([one for one in played if not one.case.stateless], SAMPLE // 4)

    # What is behind it.

    def _explain(self, result: Result, workers: Executor) -> None:
        context = Context(
            self.driver, self.testbed, self.members, result.thresholds, workers, self.settings, self.observer, self._end
        )
        if result.verdict == "fail":
            result.explanation = self._explained(context, result)
            self.seconds["explaining"] = result.explanation.seconds
        if not result.explanation.locations:
            result.explanation.locations, more = locate_layers(context, result.played)
            result.explanation.diagnostics += more
        self.diagnostics += result.explanation.diagnostics

    def _explained(self, context: Context, result: Result) -> Explanation:
        if any(one.verdict == "fail" for one in result.played):
            return explain(context, result.played)
        return explain_below(context, result.played, self._chosen(result.played), result.candidates)
