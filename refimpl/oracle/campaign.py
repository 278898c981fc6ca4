"""A campaign: many cases, one verdict.

    ask the engine -> measure every response -> learn what honest looks like -> judge -> look below the noise -> explain

The engine is asked in this process, one case after another; the numbers are made by workers meanwhile. The same seed
asks the same questions, however many workers there are.
"""

import math
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from pathlib import Path

from ..engines.interface import Engine, Settings
from .below import candidates_below, candidates_in_all, ceiling
from .case_order import cases_of, sequences_of
from .cases.case import Case
from .cases.testbed import Testbed
from .context import Context
from .diagnosis.candidate import in_words, suspicious
from .diagnosis.power import is_loud, power
from .diagnosis.workers import error_ratios
from .engine_driver import EngineDriver, ask_all
from .explain import explain, explain_below
from .location import locate_layers
from .lower_type import in_lower_type, inferred
from .noise import precision as precisions
from .noise.ensemble import Member, ensemble, wider
from .noise.verdict import Thresholds, overall
from .observer import Observer
from .ray_cluster import executor
from .repeatable import NOT_REPEATABLE, ask_twice
from .reports.result import CampaignSettings, Explanation, PlayedCase, Result
from .second_look import SecondLook
from .verdicts import judge_all, why_undecided
from .watchdog import SIGNAL, Watchdog

AHEAD = 2  # cases for each worker that are asked before earlier ones are measured, with a budget; larger: late ones
FAR_OFF = 1000.0  # times the noise, of which it is said at once; smaller: others may show that it is no failure


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
        watch: Watchdog | None = None,
        shown: Collection[str] = (),
    ) -> None:
        """shown: mutants that rows of other bases would have shown, which are not looked for below the noise."""
        self.watch = watch or Watchdog()
        self.drivers = [EngineDriver(make, testbed, work, self.watch) for _ in range(settings.engines)]
        self.testbed, self.settings, self.observer = testbed, settings, observer or Observer()
        self.capabilities, self.shown = self.driver.capabilities, shown
        self.members: tuple[Member, ...] = ensemble(testbed.dtype)
        self.diagnostics: list[str] = []
        self._narrow: precisions.PrecisionFinding | None = None  # what the engine keeps in a lower type
        self.seconds: dict[str, float] = {}
        self._began = time.monotonic()
        self._end = math.inf if settings.budget is None else self._began + settings.budget
        self._pending: list[Asked] = []
        self._is_far_off = False  # one of these
        self._result: Result | None = None  # as far as it is known

    def run(self) -> Result:
        """Ask, judge, explain. EngineError if the engine could not be run at all.

        Ctrl-C ends it, and the end of the watchdog's budget; what is known by then is returned."""
        try:
            return self._run()
        except KeyboardInterrupt:
            return self.known_by_now()
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
                lower = in_lower_type(self.driver, self.testbed, played, thresholds, workers, self.members)
                thresholds, self._narrow, self.members = lower.thresholds, lower.finding, lower.members
                self.diagnostics.append(lower.line)
                self.settings = replace(self.settings, name_bug=self.settings.name_bug and not lower.is_cause)
            self.diagnostics += precisions.more_exact(thresholds, self.testbed.dtype)
            look = SecondLook(self.driver, self.testbed, self._wider_members(), thresholds)
            self.diagnostics += look.at_all(played) + ask_twice(self.driver, played, thresholds, self.members)
            self.diagnostics += why_undecided(played)
            self._result = result = self._first_result(played, thresholds)
            context = self._context(thresholds, workers)
            result.ceiling = ceiling(context, played)
            # It says what a pass is worth.
            below = self._below(context, result) if self.settings.below and result.verdict != "fail" else []
            self._explain(context, result, below)
        with self.watch.asking("asked for its versions"):
            result.versions = self.driver.engine.versions()
        result.seconds = self.seconds
        return result

    def _context(self, thresholds: Thresholds, workers: Executor) -> Context:
        return Context(
            self.driver, self.testbed, self.members, thresholds, workers, self.settings, self.observer, self._end
        )

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

    def known_by_now(self) -> Result:
        """Return what was known when it was stopped. That is no pass: not everything was asked, or looked at."""
        if self._result is None:
            measured = [one for one in self._pending if one.ratios.done() and not one.ratios.cancelled()]
            measured = [one for one in measured if one.ratios.exception() is None]
            played = [PlayedCase(one.case, one.settings, one.ratios.result()) for one in measured]
            self._result = self._first_result(played, judge_all(played))
        result = self._result
        if result.stopped_by:
            return result
        result.stopped_by = self.watch.stopped_by or SIGNAL
        result.verdict = "undecided" if result.verdict == "pass" else result.verdict
        said = result.explanation.diagnostics
        self.diagnostics += [line for line in said if line not in self.diagnostics]
        self.diagnostics.append(f"{self.watch.why()}; {len(result.played)} of {self._total} cases were measured")
        return result

    def _run_all(self, workers: Executor) -> list[PlayedCase]:
        began = time.monotonic()
        total = self._total
        cases = cases_of(self.testbed, self.capabilities, self.settings, self._is_late, self.diagnostics)
        for case, settings, exchanges in ask_all(self.drivers, cases):
            self._pending.append(Asked(case, settings, workers.submit(error_ratios, case, exchanges, self.members)))
            self.observer.advance("asking", len(self._pending), total)
            self._say_what_is_far_off()
            self._let_numbers_keep_pace()
            if len(self._pending) == 1 and total > 1 and all(exchange.response.error for exchange in exchanges):
                self.diagnostics.append("every answer to the first case was an error: no other was asked")
                break
        played = []
        for one in self._pending:
            played.append(PlayedCase(one.case, one.settings, one.ratios.result()))
            self.observer.advance("measuring", len(played), len(self._pending))
        self.seconds["asking and measuring"] = time.monotonic() - began
        return played

    def _say_what_is_far_off(self) -> None:
        """As soon as one is known: what honest rows are like is learnt from all cases, but no row is so far off."""
        for one in self._pending if not self._is_far_off else ():
            if one.ratios.done() and not one.ratios.cancelled() and one.ratios.exception() is None:
                worst = max((float(of.ratio.max(initial=0.0)) for of in one.ratios.result()), default=0.0)
                if worst > FAR_OFF:
                    self._is_far_off = True
                    self.observer.be_far_off(one.case.name, worst)
                    break

    def _let_numbers_keep_pace(self) -> None:
        """With a budget, wait for those of earlier answers: what nobody has time to measure is not asked."""
        behind = len(self._pending) - 1 - AHEAD * max(self.settings.jobs, self.settings.engines)
        if self.settings.budget is not None and behind >= 0:
            self._pending[behind].ratios.exception()  # which waits, and raises nothing

    @property
    def driver(self) -> EngineDriver:
        """The one that is asked whatever is asked after the cases."""
        return next((driver for driver in self.drivers if not driver.lost), self.drivers[0])

    @property
    def _total(self) -> int:
        """How many cases there are to be asked."""
        return self.settings.cases + sequences_of(self.settings, self.capabilities)

    def _is_late(self) -> bool:
        """Are two thirds of the budget spent? They are for asking."""
        return time.monotonic() > self._began + (self._end - self._began) * 2 / 3

    def _infer(self) -> None:
        """Go on in the type that the first cases speak for."""
        self.testbed = inferred(self.driver, self.testbed, self.settings.seed)
        self.members = ensemble(self.testbed.dtype)
        for driver in self.drivers:
            driver.testbed = self.testbed
        self.diagnostics.append(f"precision: the engine computes in {self.testbed.dtype}")

    def _wider_members(self) -> tuple[Member, ...]:
        members = wider(self.testbed.dtype)
        return members if self._narrow is None else precisions.narrowed(members, self._narrow)

    def _below(self, context: Context, result: Result) -> list[PlayedCase]:
        """Look for every mutant below the noise; a coefficient that is not 0 is a failure that no row shows.

        Return the cases that were looked at."""
        began = time.monotonic()
        cases, result.candidates, late = candidates_below(context, result.played, self.shown)
        result.power = power(result.candidates, result.thresholds)
        # Of loud ones the rows have said it, and in the few cases that these were looked for in, chance is large.
        faint = [one for one in result.candidates if not is_loud(one.terms, result.thresholds)]
        if hidden := suspicious(faint):
            result.verdict = "fail"
            self.diagnostics.append(in_words(hidden, len(cases)))
            result.candidates = candidates_in_all(context, cases)
        self.diagnostics += late
        self.seconds["below the noise"] = time.monotonic() - began
        return cases

    def _explain(self, context: Context, result: Result, below: Sequence[PlayedCase]) -> None:
        repeatable = not any(line.startswith(NOT_REPEATABLE) for line in self.diagnostics)
        context = replace(context, repeatable=repeatable)
        if self.watch.seconds is not None:  # after a failure no other base is asked: it has the whole budget
            context = replace(context, end=self.watch.end)
        if result.verdict == "fail":
            if any(one.verdict == "fail" for one in result.played):
                result.explanation = explanation = Explanation()  # which is filled while it is looked for
                explain(context, result.played, explanation)
            else:
                result.explanation = explain_below(context, result.played, below, result.candidates)
            self.seconds["explaining"] = result.explanation.seconds
        if not result.explanation.locations:
            result.explanation.locations, more = locate_layers(context, result.played)
            result.explanation.diagnostics += more
        self.diagnostics += result.explanation.diagnostics
