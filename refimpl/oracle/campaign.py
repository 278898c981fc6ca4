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

from ..config import EMBED, LM_HEAD
from ..engines.interface import Ask, Engine, EngineError, Settings
from . import archive
from . import precision as precisions
from . import sequences as drawn
from .case import Case, Exchange, Load, Run, draw_batch, play, prepare
from .diagnose import Finding, Looked, diagnose, looked_at, suspicious
from .localise import Place, by_ablation, first_off, intermediates
from .matched import Sample
from .measure import Measured, measure
from .mutants import Mutant, mutants_for
from .noise import Member, ensemble, wider
from .pictures import Picture, picture
from .pool import along, pool, ratios
from .power import power
from .shrink import Budget, shrink
from .stage import Stage, settings
from .suspects import find, search
from .symptoms import Symptom, company, symptoms_of, tally
from .verdict import Judged, Limits, judge, limits, no_chance, overall

SAMPLE = 16  # cases that are looked at below the noise
CLOSELY = 6  # failed cases that a bug is looked for in
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
    measured: list[Measured]
    judged: list[Judged] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """Of its requests, those in which no adapter matters not counted."""
        return overall([j.verdict for j in self.judged])


@dataclass
class Result:
    """All that is known in the end."""

    stage: Stage
    verdict: str
    played: list[Played]
    known: Limits
    dtype: str
    findings: list[str]
    diagnosis: list[Finding] = field(default_factory=list)
    symptoms: list[Symptom] = field(default_factory=list)
    first_divergence: Place | None = None
    places: list[Place] = field(default_factory=list)  # how far off it is by layer and module, as far as was seen
    picture: Picture | None = None  # what the engine did beside what the bug does
    power: dict[str, str] = field(default_factory=dict)
    looked: list[Looked] = field(default_factory=list)
    smallest: Case | None = None  # the shortest case found that fails
    small_settings: Settings | None = None  # how the engine was started for it
    versions: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


Progress = Callable[[str, int, int], None]  # what, done, of how many


class Campaign:
    """One engine, one stage, one plan. `make` gives an engine that is not started."""

    def __init__(
        self, make: Callable[[], Engine], stage: Stage, plan: Plan, work: Path, progress: Progress = lambda *_: None
    ) -> None:
        self.make, self.stage, self.plan, self.work, self.progress = make, stage, plan, work, progress
        self.engine = make()
        self.capabilities = self.engine.capabilities
        self.members: Sequence[Member] = ensemble(stage.dtype)
        self.findings: list[str] = []
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
        with pool(self.stage, self.plan.jobs) as workers:
            played = self._ask_all(workers)
            known = self._judge(played)
            if precisions.too_noisy(known):
                known = self._lower_precision(played, known, workers)
            self._second_look(played, known)
            verdict = overall([p.verdict for p in played])
            result = Result(self.stage, verdict, played, known, self.stage.dtype, self.findings)
            if self.plan.below:
                self._below(result, workers)
            if result.verdict == "fail":
                self._explain(result, workers)
            if not result.places:
                self._layers(result)
        result.versions = self.engine.versions()
        result.seconds = self.seconds
        return result

    # Asking.

    def _ask_all(self, workers: Executor) -> list[Played]:
        waiting: list[tuple[Case, Settings, Future]] = []
        plain = settings(self.stage)
        total, began = self.plan.cases + self._sequences, time.monotonic()
        for i in range(self.plan.cases):
            if self._late():
                self.findings.append(f"the budget ended after {i} of {self.plan.cases} batches")
                break
            rng = np.random.default_rng([self.plan.seed, i, 1])
            case = draw_batch(self.stage, self.capabilities, rng, f"batch {i}")
            waiting.append((case, plain, workers.submit(ratios, case, self._answers(case, plain), self.members)))
            self.progress("asking", len(waiting), total)
        ways = drawn.variants(self.stage, self.capabilities) if self._sequences else []
        for number, way in enumerate(ways):  # one way after the other: starting an engine is slow
            for i in range(number, self._sequences, len(ways)):
                if self._late():
                    self.findings.append(f"the budget ended before sequence {i}")
                    break
                case = drawn.draw_sequence(self.stage, self.capabilities, self.plan.seed, i, way)
                waiting.append((case, way, workers.submit(ratios, case, self._answers(case, way), self.members)))
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

    def _answers(self, case: Case, way: Settings) -> list[Exchange]:
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
                prepare(self.engine, self.stage)
            self._state = (way, case.stateless)
        elif case.stateless and getattr(self.engine, "new_for_each_batch", False):
            self.engine.reset()
            prepare(self.engine, self.stage)
        return play(self.engine, case, self.stage)

    def _late(self) -> bool:
        """Two thirds of the budget are for asking."""
        budget = self.plan.budget
        return budget is not None and time.monotonic() - self._began > budget * 2 / 3

    def _infer(self) -> None:
        """The type that the first cases speak for."""
        way, asked = settings(self.stage), []
        for i in range(3):
            rng = np.random.default_rng([self.plan.seed, i, 1])
            case = draw_batch(self.stage, self.capabilities, rng, f"batch {i}")
            asked.append((case, self._answers(case, way)))
        dtype = precisions.infer(asked, self.stage)
        self.stage, self.members = self.stage.in_dtype(dtype), ensemble(dtype)
        self.findings.append(f"precision: the engine computes in {dtype}")

    # Judging.

    def _judge(self, played: Sequence[Played]) -> Limits:
        known = limits([m for p in played for m in p.measured])
        for p in played:
            p.judged = [judge(m, known) for m in p.measured]
            blind = [
                j for j, m in zip(p.judged, p.measured, strict=True) if j.verdict == "pass" and m.matters < known.ratio
            ]
            if blind and len(blind) == len(p.judged):  # nothing was shown
                p.judged = [replace(j, verdict="undecided", why="no adapter matters in this case") for j in p.judged]
        return known

    def _lower_precision(self, played: Sequence[Played], known: Limits, workers: Executor) -> Limits:
        """Name what is kept in a lower type, and judge again with the noise that it makes."""
        samples = [self._sample(p) for p in played[:CLOSELY]]
        found = precisions.lower_precision(samples, self.stage)
        if found is None:
            times = float(np.exp(known.base - known.highest))
            self.findings.append(
                f"precision: base rows are {times:.3g} x as noisy as {self.stage.dtype} is, unexplained"
            )
            return known
        self.findings.append(f"precision: {found.what}, not {self.stage.dtype}")
        self._narrow = found
        self.members = precisions.narrowed(self.members, found)
        again = [workers.submit(ratios, p.case, self._answers(p.case, p.settings), self.members) for p in played]
        for p, future in zip(played, again, strict=True):
            p.measured = future.result()
        return self._judge(played)

    def _second_look(self, played: Sequence[Played], known: Limits) -> None:
        """Too close to call: judge with three times as many honest runs, then ask the same of other tokens. What does
        not come again in any of them was chance, and is told; what does stays undecided, or fails."""
        more = (
            wider(self.stage.dtype)
            if self._narrow is None
            else precisions.narrowed(wider(self.stage.dtype), self._narrow)
        )
        for p in [p for p in played if p.verdict == "undecided" and any(m.ratio.size for m in p.measured)]:
            exchanges = self._answers(p.case, p.settings)
            p.judged = _again(p, measure(p.case, exchanges, self.stage, more)[0], known)
            doubtful = [j for j in p.judged if _close(j, known)]
            if not doubtful:
                continue
            fresh = []
            for seed in range(AGAIN):
                case = retold(p.case, self.stage.model.config.vocab_size, seed)
                again = measure(case, self._answers(case, p.settings), self.stage, more)[0]
                fresh.append(overall([judge(m, known).verdict for m in again]))
            if overall(fresh) == "pass":
                self.findings.append(f"{p.case.name}: {doubtful[0].why}; not again in {AGAIN} cases like it")
                p.judged = [replace(j, verdict="pass") if j in doubtful else j for j in p.judged]
            elif "fail" in fresh or no_chance(1 + fresh.count("undecided")):
                p.judged = [replace(j, verdict="fail") if j in doubtful else j for j in p.judged]
        close = [p for p in played if any(_close(j, known) for j in p.judged)]
        if no_chance(len(close)):
            for p in close:
                why = f"; {len(close)} such cases in one campaign are no chance"
                p.judged = [replace(j, verdict="fail", why=j.why + why) if _close(j, known) else j for j in p.judged]

    # Below the noise.

    def _sample(self, p: Played) -> Sample:
        exchanges = self._answers(p.case, p.settings)
        return Sample(p.case, exchanges, measure(p.case, exchanges, self.stage, self.members)[1], p.settings)

    def _below(self, result: Result, workers: Executor) -> None:
        began = time.monotonic()
        chosen = self._chosen(result)
        zoo = mutants_for(list(self.stage.paths))
        futures = []
        for p in chosen:
            names = [m.name for m in zoo.values() if could_show(m, self.stage, p)]
            futures.append(
                workers.submit(along, p.case, self._answers(p.case, p.settings), self.members, p.settings, names)
            )
        by_mutant: dict[str, list[Any]] = {name: [] for name in zoo}
        for done, future in enumerate(futures, 1):
            for name, ps in future.result().items():
                by_mutant[name].append(ps)
            self.progress("below the noise", done, len(futures))
        noisier = float(np.exp(max(0.0, result.known.level)))
        result.looked = [looked_at(zoo[name], ps, noisier) for name, ps in by_mutant.items()]
        result.power = power(result.looked, result.known)
        hidden = suspicious(result.looked)
        if hidden and result.verdict != "fail":
            result.verdict = "fail"
            worst = max(hidden, key=lambda x: abs(x.seen.score))
            self.findings.append(
                f"below the noise: {worst.mutant.name} with c = {worst.seen.coefficient:.3g} ± {worst.seen.sigma:.1g} "
                f"({abs(worst.seen.score):.0f} sigma) in {len(chosen)} cases"
            )
        self.seconds["below the noise"] = time.monotonic() - began

    def _chosen(self, result: Result) -> list[Played]:
        """Batches first, then sequences."""
        batches = _spread([p for p in result.played if p.case.stateless], SAMPLE)
        return batches + _spread([p for p in result.played if not p.case.stateless], SAMPLE // 4)

    # Explaining.

    def _explain(self, result: Result, workers: Executor) -> None:
        began = time.monotonic()
        failed = [p for p in result.played if p.verdict == "fail"]
        if failed:
            self._smaller(result, failed)
            batches = [p for p in failed if p.case.stateless]
            histories = sorted((p for p in failed if not p.case.stateless), key=_size)
            close = _spread(batches, CLOSELY) + histories[: 1 if batches else CLOSELY // 2]
            close += _spread(_passed(result.played), 2)
            samples = [self._sample(p) for p in close]
            readable = [s for s in samples if any(r is not None for r in s.raws)]
            numbers = any(m.ratio.size for p in failed for m, j in _requests(p) if j.verdict == "fail")
            smallest = self._smallest_sample(result) if numbers else None
            lines: list[str] = []
            for p, sample in zip(close, samples, strict=True):
                lines += symptoms_of(sample, p.judged, p.measured, self.stage, result.known)
            result.symptoms += tally(lines, sum(j.verdict == "fail" for p in close for j in p.judged))
            looked = []
            if numbers:
                self._where(result, failed)
                looked = self._suspects(result, smallest or readable[0], readable, workers)
        else:  # it was seen below the noise, in the cases that were looked at there
            readable = [self._sample(p) for p in self._chosen(result)]
            looked = [x for x in result.looked if len(x.parts) == len(readable)]
        if looked:
            elsewhere = [(p.case, self.stage) for p in result.played if p.case.stateless][:12]
            result.diagnosis = diagnose(readable, self.stage, looked, self.members, result.known, elsewhere)
        nearest = result.diagnosis[0] if result.diagnosis else None
        bug, only = (nearest.mutant, nearest.only) if nearest else (None, "")
        result.picture = picture(readable, self.stage, result.known, bug, only)
        self.seconds["explaining"] = time.monotonic() - began

    def _suspects(self, result: Result, first: Sample, samples: Sequence[Sample], workers: Executor) -> list[Looked]:
        """Every bug beside the smallest failure; those that come nearest, beside all of the samples."""

        def shows(m: Mutant) -> bool:
            return could_show(m, self.stage, first)

        begins = result.first_divergence
        here = None if begins is None else (begins.layer, begins.module)
        return search(self.stage, lambda on, names: self._beside(on, names, workers), shows, first, samples, here)

    def _beside(self, samples: Sequence[Sample], names: Sequence[str], workers: Executor) -> list[Looked]:
        share = max(1, -(-len(names) // max(self.plan.jobs, 1)))
        batches = [names[i : i + share] for i in range(0, len(names), share)]
        futures = [
            [workers.submit(along, s.case, s.exchanges, self.members, s.settings, batch) for batch in batches]
            for s in samples
        ]
        by_mutant: dict[str, list[Any]] = {name: [] for name in names}
        for done, of_sample in enumerate(futures, 1):
            for future in of_sample:
                for name, ps in future.result().items():
                    by_mutant[name].append(ps)
            self.progress("explaining", done, len(samples))
        return [looked_at(find(name, self.stage), ps) for name, ps in by_mutant.items()]

    def _smallest_sample(self, result: Result) -> Sample | None:
        if result.smallest is None or result.small_settings is None:
            return None
        exchanges = self.ask(result.smallest, result.small_settings)
        raws = measure(result.smallest, exchanges, self.stage, self.members)[1]
        return Sample(result.smallest, exchanges, raws, result.small_settings) if any(raws) else None

    def _fails(self, case: Case, way: Settings, known: Limits) -> list[tuple[Exchange, Judged]]:
        """Ask the engine again; the requests that it gets wrong."""
        exchanges = self.ask(case, way)
        measured, _ = measure(case, exchanges, self.stage, self.members)
        counted = [e for e in exchanges if e.ask.cancel_after is None]
        return [
            (e, j) for e, j in zip(counted, (judge(m, known) for m in measured), strict=True) if j.verdict == "fail"
        ]

    def _smaller(self, result: Result, failed: Sequence[Played]) -> None:
        """The first failed case, made small; and whether its requests fail alone."""
        first = min(failed, key=_size)
        try:
            budget = Budget(calls=200, seconds=45.0)
            small = shrink(first.case, lambda c: bool(self._fails(c, first.settings, result.known)), budget)
        except EngineError as error:
            self.findings.append(f"while the failure was made smaller: {error}")
            return
        result.smallest, result.small_settings = small, first.settings
        again = self._fails(small, first.settings, result.known)
        if again and self._right_alone(again[0][0], first.settings, result.known):
            result.symptoms += [Symptom(line) for line in company(small, again[0][0])]

    def _right_alone(self, e: Exchange, way: Settings, known: Limits) -> bool:
        """Is the same request answered well by an engine that has done nothing else?"""
        names = [name for name, _ in e.ask.mix] or ([e.ask.adapter] if e.ask.adapter else [])
        loads = [Load(name, key) for name, (key, _) in zip(names, e.adapters, strict=True)]
        alone = Case("alone", (*loads, Run((replace(e.ask, arrives=0),))), stateless=False)
        return not self._fails(alone, way, known)

    def _where(self, result: Result, failed: Sequence[Played]) -> None:
        """The first layer and module: from intermediates, if the engine shows them; else from adapters cut to size."""
        batch = next((p for p in failed if p.case.stateless), None)
        if batch is None:
            return
        wrong = [e for e, _ in self._fails(batch.case, batch.settings, result.known) if e.adapter is not None]
        traced: Any = getattr(self.engine, "traced", None)
        try:
            if self.capabilities.trace and traced is not None and wrong:
                e = wrong[0]
                answers = traced(batch.case.runs[e.run].asks)
                result.places = intermediates(e, answers[e.index], self.stage, self.members)
                result.first_divergence = first_off(result.places, result.known)
            if result.first_divergence is None and "load" in self.capabilities.operations and wrong:
                one = next((e for e in wrong if len(e.adapters) == 1), None)
                adapter = None if one is None else self.stage.adapters[one.adapters[0][0]]
                if adapter is not None and not adapter.replaced and not adapter.biases:
                    result.places = by_ablation(
                        self.engine, adapter, self.stage, self.members, result.known, self.work / "ablation"
                    )
                    result.first_divergence = result.places[0] if result.places else None
        except EngineError as error:
            self.findings.append(f"while the failure was located: {error}")

    def _layers(self, result: Result) -> None:
        """How far off each module is in a batch where nothing failed, if the engine shows its intermediates."""
        traced: Any = getattr(self.engine, "traced", None)
        batch = next((p for p in result.played if p.case.stateless), None)
        if not self.capabilities.trace or traced is None or batch is None:
            return
        try:
            asked = self.ask(batch.case, batch.settings)
            e = next((e for e in asked if e.adapter is not None and not e.answer.error), None)
            if e is not None:
                answer = traced(batch.case.runs[e.run].asks)[e.index]
                result.places = intermediates(e, answer, self.stage, self.members)
        except EngineError as error:
            self.findings.append(f"while the layers were looked at: {error}")


HISTORY = ("sequence", "chunks", "scattered blocks", "sum", "weight")  # needs that sequences are drawn for


def could_show(m: Mutant, stage: Stage, p: Played | Sample) -> bool:
    """Is there, in this kind of case, what the mutant needs? Nothing is computed for those that cannot show, nor in a
    sequence, which is long, for those that show in any batch."""
    if not p.case.stateless and m.needs not in HISTORY:
        return False
    adapters = stage.adapters.values()
    there = {
        "sequence": not p.case.stateless,
        "chunks": p.settings.chunk is not None,
        "window": stage.model.config.sliding_window is not None,
        "embed_tokens LoRA": any(EMBED in a.lora for a in adapters),
        "lm_head LoRA": any(LM_HEAD in a.lora for a in adapters),
        "tied embedding": stage.model.config.tie_word_embeddings and any(EMBED in a.lora for a in adapters),
        "modules_to_save": any(a.replaced for a in adapters),
        "base biases": any(a.biases for a in adapters),
        "grown vocabulary": any(a.replaced for a in adapters),
        "lora_bias": any(a.config.lora_bias for a in adapters),
        "rslora": any(a.config.use_rslora for a in adapters),
        "rank_pattern": any(a.config.rank_pattern for a in adapters),
        "alpha_pattern": any(a.config.alpha_pattern for a in adapters),
        "sum": any(ask.mix for run in p.case.runs for ask in run.asks),
        "weight": any(ask.mix for run in p.case.runs for ask in run.asks),
    }
    return there.get(m.needs, True)


def _spread(xs: Sequence[Any], n: int) -> list[Any]:
    """At most n of them, from all over."""
    return [xs[i] for i in np.unique(np.linspace(0, len(xs) - 1, min(n, len(xs))).astype(int))] if xs else []


def _again(p: Played, measured: Sequence[Measured], known: Limits) -> list[Judged]:
    """What was too close to call, judged anew."""
    return [judge(m, known) if _close(j, known) else j for j, m in zip(p.judged, measured, strict=True)]


def _close(j: Judged, known: Limits) -> bool:
    """Undecided for its numbers, not because nothing could be shown."""
    return j.verdict == "undecided" and not j.score <= known.pass_score


def retold(case: Case, vocab: int, seed: int) -> Case:
    """The same with every token exchanged for another: what was a common prefix still is one."""
    other = np.random.default_rng([seed, 11]).permutation(vocab)

    def asked(ask: Ask) -> Ask:
        return replace(ask, prompt_ids=tuple(int(other[t]) for t in ask.prompt_ids))

    steps = [Run(tuple(asked(a) for a in s.asks)) if isinstance(s, Run) else s for s in case.steps]
    return replace(case, name=f"{case.name}, retold {seed}", steps=tuple(steps))


def _requests(p: Played) -> list[tuple[Measured, Judged]]:
    return list(zip(p.measured, p.judged, strict=True))


def _size(p: Played) -> tuple[bool, int]:
    """Batches before sequences, short ones before long ones."""
    return not p.case.stateless, len(p.case.steps)


def _passed(played: Sequence[Played]) -> list[Played]:
    return [p for p in played if p.verdict == "pass" and p.case.stateless]
