"""The whole of `loracle check` but for its printing: build a stage, run a campaign, keep what failed, repeat it."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from ..engines import registry
from ..engines.interface import Engine, EngineError
from ..engines.known_defects import applicable, match, read_failures, unexpectedly_passing
from .campaign import Campaign, Plan, Played, Progress, Result
from .cases import case as cases
from .cases.synthetic import KINDS, TURNS
from .cases.testbed import build
from .diagnosis.power import DETECTED, NOT_EXERCISED, UNDETECTABLE
from .noise.ensemble import ensemble
from .noise.measure import measure
from .noise.verdict import judge, learn_thresholds, overall
from .reports.repro import load_repro
from .reports.repro import replay as play_again
from .reports.repro_write import save_repro

BATCHES, SEQUENCES = 17, 8  # on one random base, before it gives way to the next: 100 cases on all of them


def check(
    make: Callable[[], Engine],
    model: str,
    adapters: Mapping[str, Path],
    plan: Plan,
    work: Path,
    progress: Progress = lambda *_: None,
    made: int = 5,
) -> Result:
    """A campaign on a stage of its own; with random models, if it is long enough, on several, until one fails.
    made: how many adapters are made where none are given."""
    engine = make()
    capabilities = engine.capabilities
    told = getattr(engine, "about", None) or {}
    for key, given in (("model", str(model)), ("seed", plan.seed), ("dtype", plan.precision)):
        if told.get(key, given) != given:
            raise EngineError(f"these answers were recorded with {key} {told[key]}, not {given}")
    dtype = "float32" if plan.precision == "auto" else plan.precision
    if dtype not in capabilities.dtypes:
        raise EngineError(f"the engine does not compute in {dtype}; it does in {', '.join(capabilities.dtypes)}")
    if model != "random":
        testbed = build(model, dtype, plan.seed, work, capabilities, adapters, made)
        return Campaign(make, testbed, plan, work, progress).run()
    result = None
    for turn, share in enumerate(shares(plan)):
        testbed = build(model, dtype, share.seed, work / f"base-{turn}", capabilities, adapters, max(made, KINDS))
        found = Campaign(make, testbed, share, work, progress).run()
        for p in found.played:
            p.case = replace(p.case, name=f"base {turn}, {p.case.name}")
        result = found if result is None else together(result, found)
        if result.verdict == "fail":
            break
    assert result is not None  # a plan asks something
    return result


def shares(plan: Plan) -> list[Plan]:
    """What each base is asked, each under a seed of its own; the last takes what is left. What a shorter plan asks is
    the beginning of what a longer one does, so that recorded answers go as far as they go."""
    found: list[Plan] = []
    cases, sequences = plan.cases, plan.sequences
    while cases + sequences > 0 and len(found) < TURNS:
        last = len(found) == TURNS - 1
        own = replace(
            plan,
            cases=cases if last else min(cases, BATCHES),
            sequences=sequences if last else min(sequences, SEQUENCES),
            seed=plan.seed + len(found),
        )
        found.append(own)
        cases, sequences = cases - own.cases, sequences - own.sequences
    if plan.budget is None:
        return found
    return [replace(own, budget=plan.budget / len(found)) for own in found]


def together(before: Result, now: Result) -> Result:
    """The later result, with all that was asked before it. What any of the stages would have shown counts."""
    rank = [DETECTED, UNDETECTABLE, NOT_EXERCISED]
    power = {
        name: min(before.power.get(name, NOT_EXERCISED), now.power.get(name, NOT_EXERCISED), key=rank.index)
        for name in before.power | now.power
    }
    return replace(
        now,
        verdict=overall([before.verdict, now.verdict]),
        played=[*before.played, *now.played],
        diagnostics=[*before.diagnostics, *now.diagnostics],
        power=power,
        seconds={
            what: before.seconds.get(what, 0.0) + now.seconds.get(what, 0.0) for what in before.seconds | now.seconds
        },
    )


def expect(result: Result, engine: str, options: Mapping[str, str]) -> None:
    """What is known of this engine's defects, beside what was found: named if it came, and if it did not."""
    failures = applicable(read_failures(engine.partition(":")[0]), engine, result.versions, options)
    mutants = [name for f in result.diagnosis if f.explains for name in (f.name, *f.also)]
    lines = [s.what for s in result.symptoms]
    if (known := match(failures, mutants, lines)) is not None:
        result.diagnostics.append(f"expected: {known.what} ({', '.join(known.link)})")
    for f in unexpectedly_passing(failures, mutants, lines, lambda name: result.power.get(name) == "detected"):
        result.diagnostics.append(f"expected, but it did not come (fixed?): {f.what} ({', '.join(f.link)})")


def keep(result: Result, folder: Path, engine: str, options: Mapping[str, str], seed: int) -> Path:
    """The smallest failure as a folder of its own, asked once more."""
    assert result.smallest is not None and result.small_settings is not None
    testbed, case = result.testbed, result.smallest
    with tempfile.TemporaryDirectory() as scratch:
        campaign = Campaign(lambda: registry.make(engine, options), testbed, Plan(), Path(scratch))
        try:
            exchanges = campaign.ask(case, result.small_settings)
        finally:
            campaign.engine.close()
    measured, raws = measure(case, exchanges, testbed, ensemble(testbed.dtype))
    counted = iter(zip(measured, raws, strict=True))
    truth, units, why = [], [], ""
    for e in exchanges:
        m, raw = next(counted) if e.ask.cancel_after is None else (None, None)
        readable = raw is not None
        truth.append(cases.truth([e], testbed)[0] if readable else None)
        units.append(raw.unit if raw is not None else None)
        if m is not None and (j := judge(m, result.known)).verdict == "fail":
            why = why or j.why
    number = 1
    target = folder
    while target.exists():
        number += 1
        target = folder.with_name(f"{folder.name}-{number}")
    how, known = result.small_settings, result.known
    save_repro(target, testbed, case, exchanges, truth, why, how, engine, options, result.versions, units, seed, known)
    return target


def replay(folder: Path) -> tuple[Result, str]:
    """The folder's case, asked again and judged again."""
    repro = load_repro(folder)
    testbed, case, exchanges = play_again(folder, registry.make)
    measured, _ = measure(case, exchanges, testbed, ensemble(testbed.dtype))
    known = repro.known or learn_thresholds(measured)
    played = Played(case, repro.settings, measured, [judge(m, known) for m in measured])
    return Result(testbed, overall([played.verdict]), [played], known, testbed.dtype, []), repro.engine
