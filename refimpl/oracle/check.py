"""The whole of `loracle check` but for its printing: build a testbed, run a campaign, keep what failed, repeat it."""

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, count
from pathlib import Path

from ..arrays import Array
from ..engines import registry
from ..engines.declared import without
from ..engines.interface import Engine, EngineError
from ..engines.known_defects import applicable, match, read_failures, unexpectedly_passing
from .anew import NotAnew, exchanges_anew
from .campaign import Campaign
from .cases.case import Exchange, truth
from .cases.testbed import build
from .cases.variety import KINDS, TURNS
from .diagnosis.power import DETECTED, NOT_EXERCISED, UNDETECTABLE
from .engine_driver import EngineDriver
from .noise.ensemble import ensemble
from .noise.measure import ErrorRatios, Errors, measure
from .noise.verdict import Thresholds, judge, learn_thresholds, overall
from .observer import Observer
from .reports.repro import load_repro
from .reports.repro import replay as play_again
from .reports.repro_write import Repro
from .reports.result import CampaignSettings, PlayedCase, Result

BATCHES, SEQUENCES = 13, 8  # on one random base, before it gives way to the next: 50 and 30 are on four of them
OTHER_BATCHES, OTHER_SEQUENCES = 3, 1  # of these on a base of another family, if the engine has any
ADAPTERS = 10  # that are drawn for a given base, on which there is one turn; larger: slower to load
LLAMAS = ("llama", "mistral")


def check(
    make: Callable[[], Engine],
    model: str,
    adapters: Mapping[str, Path],
    settings: CampaignSettings,
    work: Path,
    observer: Observer | None = None,
    adapter_count: int = ADAPTERS,
) -> Result:
    """Run a campaign on a testbed of its own; with random models, if it is long enough, on several, until one fails.
    adapter_count: how many adapters are generated where none are given."""
    engine = make()
    _check_recording(engine, model, settings)
    dtype = "float32" if settings.precision == "auto" else settings.precision
    dtypes = engine.capabilities.dtypes
    if dtype not in dtypes:
        raise EngineError(f"the engine does not compute in {dtype}; it does in {', '.join(dtypes)}")
    if model != "random":
        testbed = build(model, dtype, settings.seed, work, engine.capabilities, adapters, adapter_count)
        return Campaign(make, testbed, settings, work, observer).run()
    result = None
    parts = shares(settings, engine.capabilities.families)
    for number, (share, family) in enumerate(parts, 1):
        of_family = f", a {family}" if family else ""
        base = f"base {share.seed - settings.seed}{of_family}"
        if observer is not None and len(parts) > 1:
            observer.begin(f"base {number} of {len(parts)}{of_family}")
        folder = work / base.replace(", a ", "-").replace(" ", "-")
        count = KINDS
        testbed = build(model, dtype, share.seed, folder, engine.capabilities, adapters, count, family)
        try:
            # The same seed asks two bases the same: what they answered is kept apart.
            of_turn = Campaign(make, testbed, share, folder if family else work, observer).run()
        except KeyboardInterrupt:  # before this base has an answer: the ones before it have some
            if result is None:
                raise
            result.interrupted = True
            result.verdict = overall([result.verdict, "undecided"])
            result.diagnostics.append(f"stopped by a signal, before {base} was asked")
            break
        for played in of_turn.played:
            played.case = replace(played.case, name=f"{base}, {played.case.name}")
        result = of_turn if result is None else together(result, of_turn)
        if result.verdict == "fail" or result.interrupted:
            break
    assert result is not None  # there is at least one share
    result.diagnostics += not_asked(parts, engine.capabilities.families)
    return result


def _check_recording(engine: Engine, model: str, settings: CampaignSettings) -> None:
    """EngineError where the engine is a recording, and of other questions."""
    about = getattr(engine, "about", None) or {}
    for key, value in (("model", str(model)), ("seed", settings.seed), ("dtype", settings.precision)):
        if about.get(key, value) != value:
            raise EngineError(f"these answers were recorded with {key} {about[key]}, not {value}")


def shares(settings: CampaignSettings, families: Sequence[str] = ()) -> list[tuple[CampaignSettings, str]]:
    """Return what each base is asked, each under a seed of its own, and of which family it is ("": a Llama or Mistral).

    Where settings name families, each gets as much. Otherwise Llamas take turns with bases of the other families that
    the engine has, which get less; the last gets the rest. A shorter campaign is a prefix of a longer one, so recorded
    answers can be reused."""
    parts = _of_families(settings) if settings.families else _of_llamas(settings, families)
    if settings.budget is None:
        return parts
    return [(replace(share, budget=settings.budget / len(parts)), family) for share, family in parts]


def not_asked(parts: Sequence[tuple[CampaignSettings, str]], families: Sequence[str]) -> list[str]:
    """Return one line where an engine has other families, and there were too few cases for any of them."""
    others = [family for family in families if family not in LLAMAS]
    if not others or any(family for _, family in parts):
        return []
    names = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
    return [f"so few cases are all on Llamas: no base of {names} was asked (--families, or more cases)"]


def _of_families(settings: CampaignSettings) -> list[tuple[CampaignSettings, str]]:
    """Return an equal share for each family, as far as there are cases."""
    number, parts = len(settings.families), []
    for i, family in enumerate(settings.families):
        cases, sequences = ((n + number - 1 - i) // number for n in (settings.cases, settings.sequences))
        if cases + sequences:
            parts.append((replace(settings, cases=cases, sequences=sequences, seed=settings.seed + i), family))
    return parts


def _of_llamas(settings: CampaignSettings, families: Sequence[str]) -> list[tuple[CampaignSettings, str]]:
    """Return the shares of TURNS Llamas, and after each that of a base of another family, if there are any."""
    others = [family for family in families if family not in LLAMAS]
    less = (OTHER_BATCHES, OTHER_SEQUENCES) if others else (0, 0)
    parts: list[tuple[CampaignSettings, str]] = []
    cases, sequences = settings.cases, settings.sequences
    for turn in range(TURNS):
        seed, last = settings.seed + turn, turn == TURNS - 1
        llama = ("", BATCHES - less[0], SEQUENCES - less[1]) if not last else ("", cases, sequences)
        other = (others[seed % len(others)] if others else "", *less)
        for family, batches, scenarios in (other, llama) if last else (llama, other):
            share = replace(settings, cases=min(cases, batches), sequences=min(sequences, scenarios), seed=seed)
            if share.cases + share.sequences:
                parts.append((share, family))
            cases, sequences = cases - share.cases, sequences - share.sequences
    return parts


def together(before: Result, now: Result) -> Result:
    """Return the later result, with all that was asked before it. What any of the bases would have shown counts."""
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
    """Add a line for each known defect of this engine: that it came, or that it did not."""
    failures = applicable(read_failures(engine.partition(":")[0]), engine, result.versions, options)
    explanation = result.explanation
    mutants = [name for one in explanation.findings if one.explains for name in (one.name, *one.also)]
    lines = [symptom.what for symptom in explanation.symptoms]
    if (expected := match(failures, mutants, lines)) is not None:
        result.diagnostics.append(f"expected: {expected.what} ({', '.join(expected.link)})")
    for failure in unexpectedly_passing(failures, mutants, lines, lambda name: result.power.get(name) == DETECTED):
        text = f"expected, but it did not come (fixed?): {failure.what} ({', '.join(failure.link)})"
        result.diagnostics.append(text)


def keep(
    result: Result,
    folder: Path,
    engine: str,
    options: Mapping[str, str],
    seed: int,
    make: Callable[[], Engine] | None = None,
) -> Path:
    """Ask the smallest failure once more and save it as a folder; return the folder, numbered if there is one. make:
    what makes the engine, if it is not its name."""
    case, settings, testbed = result.explanation.smallest, result.explanation.small_settings, result.testbed
    assert case is not None and settings is not None
    exchanges = _run_once_more(result, make or (lambda: registry.make(engine, options)))
    ratios, raws = measure(case, exchanges, testbed, ensemble(testbed.dtype))
    expected, units = _truth_of(exchanges, raws, result)
    repro = Repro(
        testbed,
        case,
        exchanges,
        expected,
        units,
        _first_reason(ratios, result.thresholds),
        settings,
        engine,
        dict(options),
        dict(result.versions),
        seed,
        result.thresholds,
        folder_of_module(engine),
    )
    target = _unused(folder)
    repro.save(target)
    return target


def folder_of_module(engine: str) -> str:
    """Return where the file of "module:function" lies, so that a replay finds it from any folder; "" for others."""
    module = sys.modules.get(engine.partition(":")[0])
    file = getattr(module, "__file__", None)
    return str(Path(file).resolve().parent) if ":" in engine and file else ""


def _run_once_more(result: Result, make: Callable[[], Engine]) -> list[Exchange]:
    explanation = result.explanation
    assert explanation.smallest is not None and explanation.small_settings is not None
    with tempfile.TemporaryDirectory() as scratch:
        driver = EngineDriver(make, result.testbed, Path(scratch))
        try:
            return exchanges_anew(driver, explanation.smallest, explanation.small_settings)
        except NotAnew:
            return driver.run(explanation.smallest, explanation.small_settings)
        finally:
            driver.close()


def _truth_of(
    exchanges: Sequence[Exchange], raws: Sequence[Errors | None], result: Result
) -> tuple[dict[tuple[int, int], Array], dict[tuple[int, int], Array]]:
    """Return, by (run, index), the exact logits and the noise units of each request whose answer can be read."""
    counted = [exchange for exchange in exchanges if exchange.request.cancel_after is None]
    readable = [(exchange, raw) for exchange, raw in zip(counted, raws, strict=True) if raw is not None]
    expected = {(one.run, one.index): truth([one], result.testbed)[0] for one, _ in readable}
    return expected, {(one.run, one.index): raw.unit for one, raw in readable}


def _first_reason(ratios: Sequence[ErrorRatios], thresholds: Thresholds) -> str:
    verdicts = [judge(one, thresholds) for one in ratios]
    return next((verdict.why for verdict in verdicts if verdict.verdict == "fail" and verdict.why), "")


def _unused(folder: Path) -> Path:
    """Return the folder, or folder-2, folder-3 ...: the first that is not there."""
    numbered = (folder.with_name(f"{folder.name}-{number}") for number in count(2))
    return next(path for path in chain([folder], numbered) if not path.exists())


def replay(
    folder: Path,
    make: Callable[[str, Mapping[str, str]], Engine] = registry.make,
    engine: str | None = None,
    options: Mapping[str, str] | None = None,
) -> tuple[Result, str]:
    """Ask the folder's case again and judge again; return the result and the engine's name.

    engine: another one than it was then, with its options. make: what makes an engine of both."""
    repro = load_repro(folder)
    if repro.module_folder and Path(repro.module_folder).is_dir():  # a function's file lies where it was checked
        sys.path.append(repro.module_folder)
    if engine is not None:
        repro = replace(repro, engine=engine, options=dict(options or {}))
    testbed, case, exchanges = play_again(repro, make)
    ratios, _ = measure(case, exchanges, testbed, ensemble(testbed.dtype))
    thresholds = repro.thresholds or learn_thresholds(ratios)
    played = PlayedCase(case, repro.settings, ratios, [judge(one, thresholds) for one in ratios])
    return Result(testbed, overall([played.verdict]), [played], thresholds, testbed.dtype, []), repro.engine


def narrowed(engine: Engine, names: Sequence[str]) -> Engine:
    """Return the engine, asked for none of these features, operations and modules. EngineError for an unknown name."""
    engine.capabilities = without(engine.capabilities, names)
    return engine
