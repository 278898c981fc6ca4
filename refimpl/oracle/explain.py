"""What is behind a failure: the smallest case, the place, the bug, and the symptoms where no bug fits.

The engine is asked again for all of it, the mutants are rerun by the workers.
"""

import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..engines.interface import EngineError, Settings
from .bugs import Mutant
from .bugs.preconditions import is_applicable, spread
from .cases.case import Case, Exchange, Load, Run
from .cases.shrink import Budget, shrink
from .diagnosis.diagnose import Candidate, diagnose, evaluate
from .diagnosis.localise import by_ablation, first_off, intermediates
from .diagnosis.projection import Sample
from .diagnosis.search import find, search
from .diagnosis.symptoms import Symptom, company, symptoms_of, tally
from .diagnosis.workers import along
from .noise.measure import ErrorRatios, measure
from .noise.verdict import Thresholds, Verdict, judge
from .reports.pictures import picture

if TYPE_CHECKING:
    from .campaign import Campaign, Played, Result

CLOSELY = 6  # failed cases that a bug is looked for in


class Explainer:
    """Of one campaign, with its engine still running."""

    def __init__(self, campaign: "Campaign", workers: Executor) -> None:
        self.c, self.workers = campaign, workers

    def explain(self, result: "Result") -> None:
        """Everything that can be said of a campaign that failed."""
        began = time.monotonic()
        failed = [p for p in result.played if p.verdict == "fail"]
        if failed:
            self._smaller(result, failed)
            batches = [p for p in failed if p.case.stateless]
            histories = sorted((p for p in failed if not p.case.stateless), key=_size)
            close = spread(batches, CLOSELY) + histories[: 1 if batches else CLOSELY // 2]
            close += spread(_passed(result.played), 2)
            samples = [self.c.sample(p) for p in close]
            readable = [s for s in samples if any(r is not None for r in s.raws)]
            with_numbers = [p for p in failed if any(m.ratio.size for m, j in _requests(p) if j.verdict == "fail")]
            # An engine that mostly answers errors: the few cases spread over all of them may have no number.
            if not any(p in with_numbers for p in close):
                readable += [self.c.sample(p) for p in spread(with_numbers, CLOSELY)]
            self.c.diagnostics += unreadable(result.played)
            smallest = self._smallest_sample(result) if with_numbers else None
            lines: list[str] = []
            for p, sample in zip(close, samples, strict=True):
                lines += symptoms_of(sample, p.judged, p.measured, self.c.testbed, result.known)
            result.symptoms += tally(lines, sum(j.verdict == "fail" for p in close for j in p.judged))
            looked = []
            if with_numbers:
                self._where(result, failed)
                looked = self._suspects(result, smallest or readable[0], readable)
        else:  # it was seen below the noise, in the cases that were looked at there
            readable = [self.c.sample(p) for p in self.c.chosen(result)]
            looked = result.looked
        if looked:
            elsewhere = [(p.case, self.c.testbed) for p in result.played if p.case.stateless][:12]
            result.diagnosis = diagnose(readable, self.c.testbed, looked, self.c.members, result.known, elsewhere)
        nearest = result.diagnosis[0] if result.diagnosis else None
        bug, only = (nearest.mutant, nearest.only) if nearest else (None, "")
        result.picture = picture(readable, self.c.testbed, result.known, bug, only)
        self.c.seconds["explaining"] = time.monotonic() - began

    def _suspects(self, result: "Result", first: Sample, samples: Sequence[Sample]) -> list[Candidate]:
        """Every bug beside the smallest failure; those that come nearest, beside all of the samples."""

        def shows(m: Mutant) -> bool:
            return is_applicable(m, self.c.testbed, first)

        begins = result.first_divergence
        here = None if begins is None else (begins.layer, begins.module)
        return search(self.c.testbed, lambda on, names: self._beside(on, names), shows, first, samples, here)

    def _beside(self, samples: Sequence[Sample], names: Sequence[str]) -> list[Candidate]:
        share = max(1, -(-len(names) // max(self.c.plan.jobs, 1)))
        batches = [names[i : i + share] for i in range(0, len(names), share)]
        futures = [
            [self.workers.submit(along, s.case, s.exchanges, self.c.members, s.settings, batch) for batch in batches]
            for s in samples
        ]
        by_mutant: dict[str, list[Any]] = {name: [] for name in names}
        for done, of_sample in enumerate(futures, 1):
            for future in of_sample:
                for name, ps in future.result().items():
                    by_mutant[name].append(ps)
            self.c.progress("explaining", done, len(samples))
        return [evaluate(find(name, self.c.testbed), ps) for name, ps in by_mutant.items()]

    def _smallest_sample(self, result: "Result") -> Sample | None:
        if result.smallest is None or result.small_settings is None:
            return None
        exchanges = self.c.ask(result.smallest, result.small_settings)
        raws = measure(result.smallest, exchanges, self.c.testbed, self.c.members)[1]
        return Sample(result.smallest, exchanges, raws, result.small_settings) if any(raws) else None

    def _fails(self, case: Case, way: Settings, known: Thresholds) -> list[tuple[Exchange, Verdict]]:
        """Ask the engine again; the requests that it gets wrong."""
        exchanges = self.c.ask(case, way)
        measured, _ = measure(case, exchanges, self.c.testbed, self.c.members)
        counted = [e for e in exchanges if e.ask.cancel_after is None]
        return [
            (e, j) for e, j in zip(counted, (judge(m, known) for m in measured), strict=True) if j.verdict == "fail"
        ]

    def _smaller(self, result: "Result", failed: Sequence["Played"]) -> None:
        """The first failed case, made small; and whether its requests fail alone."""
        first = min(failed, key=_size)
        try:
            budget = Budget(calls=200, seconds=45.0)
            small = shrink(first.case, lambda c: bool(self._fails(c, first.settings, result.known)), budget)
        except EngineError as error:
            self.c.diagnostics.append(f"while the failure was made smaller: {error}")
            return
        result.smallest, result.small_settings = small, first.settings
        again = self._fails(small, first.settings, result.known)
        if again and self._right_alone(again[0][0], first.settings, result.known):
            result.symptoms += [Symptom(line) for line in company(small, again[0][0])]

    def _right_alone(self, e: Exchange, way: Settings, known: Thresholds) -> bool:
        """Is the same request answered well by an engine that has done nothing else?"""
        names = [name for name, _ in e.ask.adapter_weights] or ([e.ask.adapter] if e.ask.adapter else [])
        loads = [Load(name, key) for name, (key, _) in zip(names, e.adapters, strict=True)]
        alone = Case("alone", (*loads, Run((replace(e.ask, arrival_step=0),))), stateless=False)
        return not self._fails(alone, way, known)

    def _where(self, result: "Result", failed: Sequence["Played"]) -> None:
        """The first layer and module: from intermediates, if the engine shows them; else from adapters cut to size."""
        batch = next((p for p in failed if p.case.stateless), None)
        if batch is None:
            return
        wrong = [e for e, _ in self._fails(batch.case, batch.settings, result.known) if e.adapter is not None]
        traced: Any = getattr(self.c.engine, "traced", None)
        try:
            if self.c.capabilities.trace and traced is not None and wrong:
                e = wrong[0]
                answers = traced(batch.case.runs[e.run].asks)
                result.places = intermediates(e, answers[e.index], self.c.testbed, self.c.members)
                result.first_divergence = first_off(result.places, result.known)
            if result.first_divergence is None and "load" in self.c.capabilities.operations and wrong:
                one = next((e for e in wrong if len(e.adapters) == 1), None)
                adapter = None if one is None else self.c.testbed.adapters[one.adapters[0][0]]
                if adapter is not None and not adapter.replaced and not adapter.biases:
                    result.places = by_ablation(
                        self.c.engine, adapter, self.c.testbed, self.c.members, result.known, self.c.work / "ablation"
                    )
                    result.first_divergence = result.places[0] if result.places else None
        except EngineError as error:
            self.c.diagnostics.append(f"while the failure was located: {error}")

    def layers(self, result: "Result") -> None:
        """How far off each module is in a batch where nothing failed, if the engine shows its intermediates."""
        traced: Any = getattr(self.c.engine, "traced", None)
        batch = next((p for p in result.played if p.case.stateless), None)
        if not self.c.capabilities.trace or traced is None or batch is None:
            return
        try:
            asked = self.c.ask(batch.case, batch.settings)
            e = next((e for e in asked if e.adapter is not None and not e.answer.error), None)
            if e is not None:
                answer = traced(batch.case.runs[e.run].asks)[e.index]
                result.places = intermediates(e, answer, self.c.testbed, self.c.members)
        except EngineError as error:
            self.c.diagnostics.append(f"while the layers were looked at: {error}")


def unreadable(played: Sequence["Played"]) -> list[str]:
    """Return one line that counts the answers without numbers and quotes the most frequent reason; [] if there are
    none, or if they are fewer than half."""
    problems = [m.problem for p in played for m in p.measured if m.problem]
    total = sum(len(p.measured) for p in played)
    if 2 * len(problems) < max(total, 1):
        return []
    most_frequent = max(dict.fromkeys(problems), key=problems.count)
    count = "no answer" if len(problems) == total else f"only {total - len(problems)} of {total} answers"
    return [f"{count} could be read; the engine said: {most_frequent}"]


def _requests(p: "Played") -> list[tuple[ErrorRatios, Verdict]]:
    return list(zip(p.measured, p.judged, strict=True))


def _size(p: "Played") -> tuple[bool, int]:
    """Batches before sequences, short ones before long ones."""
    return not p.case.stateless, len(p.case.steps)


def _passed(played: Sequence["Played"]) -> list["Played"]:
    return [p for p in played if p.verdict == "pass" and p.case.stateless]
