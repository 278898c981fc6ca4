"""The whole of `loracle check` but for its printing: build a testbed, run a campaign, keep what failed, repeat it."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..engines import registry
from ..engines.declared import without
from ..engines.interface import Capabilities, Engine, EngineError
from ..engines.known_defects import applicable, match, read_failures, unexpectedly_passing
from .bases import joined, not_asked, shares
from .bugs import all_mutants
from .campaign import Campaign
from .case_order import sequences_of
from .cases.needs import missing
from .cases.testbed import build
from .cases.variety import KINDS
from .diagnosis.power import DETECTED, is_loud
from .noise.ensemble import ensemble
from .noise.measure import measure
from .noise.verdict import judge, learn_thresholds, overall
from .observer import Observer
from .reports.repro import load_repro
from .reports.repro import replay as play_again
from .reports.result import CampaignSettings, PlayedCase, Result
from .threads import one_thread
from .watchdog import SIGNAL, Watchdog

ADAPTERS = 10  # that are drawn for a given base, on which there is one turn; larger: slower to load


def check(
    make: Callable[[], Engine],
    model: str,
    adapters: Mapping[str, Path],
    settings: CampaignSettings,
    work: Path,
    observer: Observer | None = None,
    adapter_count: int = ADAPTERS,
    watch: Watchdog | None = None,
) -> Result:
    """Run a campaign on a testbed of its own; with random models, if it is long enough, on several, until one fails.

    adapter_count: how many adapters are generated where none are given. watch: ends it when its budget is spent, or a
    signal comes, and then knows at any time what is known."""
    watch = watch or Watchdog()
    with watch.asking("imported"):
        engine = make()
    _check_recording(engine, model, settings)
    dtype = "float32" if settings.precision == "auto" else settings.precision
    dtypes = engine.capabilities.dtypes
    if dtype not in dtypes:
        raise EngineError(f"the engine does not compute in {dtype}; it does in {', '.join(dtypes)}")
    if model != "random":
        testbed = build(model, dtype, settings.seed, work, engine.capabilities, adapters, adapter_count)
        if watch.seconds is not None:
            settings = replace(settings, budget=watch.remaining)
        campaign = Campaign(make, testbed, settings, work, observer, watch)
        watch.result_by_now = campaign.known_by_now
        with one_thread(testbed):
            return campaign.run()
    result, shown = None, set[str]()  # mutants of which a hundredth would have made a row fail
    parts = shares(settings, engine.capabilities.families)
    for number, (share, family) in enumerate(parts, 1):
        of_family = f", a {family}" if family else ""
        base = f"base {share.seed - settings.seed}{of_family}"
        if observer is not None and len(parts) > 1:
            observer.begin(f"base {number} of {len(parts)}{of_family}")
        folder = work / base.replace(", a ", "-").replace(" ", "-")
        try:
            testbed = build(model, dtype, share.seed, folder, engine.capabilities, adapters, KINDS, family)
            if watch.seconds is not None:  # whatever the ones before it have left
                share = replace(share, budget=watch.remaining / (len(parts) - number + 1))
            # The same seed asks two bases the same: what they answered is kept apart.
            campaign = Campaign(make, testbed, share, folder if family else work, observer, watch, shown)
            watch.result_by_now = partial(_known_by_now, base, result, campaign)
            with one_thread(testbed):
                of_turn = campaign.run()
        except KeyboardInterrupt:  # before this base can be asked: the ones before it have some answer
            if result is None:
                raise
            result.stopped_by = watch.stopped_by or SIGNAL
            result.verdict = overall([result.verdict, "undecided"])
            result.diagnostics.append(f"{watch.why()}, before {base} was asked")
            break
        # Those of an adapter are others on each base.
        loud = {one.mutant.name for one in of_turn.candidates if is_loud(one.terms, of_turn.thresholds)}
        shown |= loud & set(all_mutants())
        result = joined(base, result, of_turn)
        if result.verdict == "fail" and not result.stopped_by:
            result.unasked = _unasked([share for share, _ in parts], number, engine.capabilities)
        if result.verdict == "fail" or result.stopped_by:
            break
    assert result is not None  # there is at least one share
    result.diagnostics += not_asked(parts, engine.capabilities.families)
    return result


def _unasked(shares: Sequence[CampaignSettings], number: int, capabilities: Capabilities) -> str:
    """Return what a failure on base `number` has spared the others, in words; "" for the last."""
    count = sum(share.cases + sequences_of(share, capabilities) for share in shares[number:])
    return f"it failed on base {number} of {len(shares)}, so {count} more on the others were not asked" if count else ""


def _known_by_now(base: str, before: Result | None, campaign: Campaign) -> Result:
    return joined(base, before, campaign.known_by_now())


def _check_recording(engine: Engine, model: str, settings: CampaignSettings) -> None:
    """EngineError where the engine is a recording, and of other questions."""
    about = getattr(engine, "about", None) or {}
    for key, value in (("model", str(model)), ("seed", settings.seed), ("dtype", settings.precision)):
        if about.get(key, value) != value:
            raise EngineError(f"these answers were recorded with {key} {about[key]}, not {value}")


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


def replay(
    folder: Path,
    make: Callable[[str, Mapping[str, str]], Engine] = registry.make,
    engine: str | None = None,
    options: Mapping[str, str] | None = None,
    watch: Watchdog | None = None,
) -> tuple[Result, str]:
    """Ask the folder's case again and judge again; return the result and the engine's name.

    engine: another one than it was then, with its options. make: what makes an engine of both. watch: ends it where the
    engine does not answer."""
    repro = load_repro(folder)
    if repro.module_folder and Path(repro.module_folder).is_dir():  # a function's file lies where it was checked
        sys.path.append(repro.module_folder)
    if engine is not None:
        repro = replace(repro, engine=engine, options=dict(options or {}))
        if less := missing(repro.case, repro.testbed, make(engine, repro.options).capabilities):
            raise EngineError(f"this case needs {', '.join(less)}, and {engine} does not declare that")
    with (watch or Watchdog()).asking(f"asked {repro.case.name}"):
        testbed, case, exchanges = play_again(repro, make)
    ratios, _ = measure(case, exchanges, testbed, ensemble(testbed.dtype))
    thresholds = repro.thresholds or learn_thresholds(ratios)
    played = PlayedCase(case, repro.settings, ratios, [judge(one, thresholds) for one in ratios])
    return Result(testbed, overall([played.verdict]), [played], thresholds, testbed.dtype, []), repro.engine


def narrowed(engine: Engine, names: Sequence[str]) -> Engine:
    """Return the engine, asked for none of these features, operations and modules. EngineError for an unknown name."""
    engine.capabilities = without(engine.capabilities, names)
    return engine
