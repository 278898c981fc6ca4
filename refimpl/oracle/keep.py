"""The smallest failure of a campaign, asked once more and kept as a folder that repeats it."""

import contextlib
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, count
from pathlib import Path

from ..arrays import Array
from ..engines import registry
from ..engines.interface import Engine, EngineError, Settings
from .anew import NotAnew, exchanges_anew
from .cases.case import Case, Exchange, truth
from .cases.testbed import Testbed
from .engine_driver import EngineDriver
from .noise.ensemble import ensemble
from .noise.measure import Errors, measure
from .noise.verdict import judge
from .reports.repro_write import Repro
from .reports.result import Result
from .watchdog import Watchdog

RIGHT_AGAIN = (
    "It was wrong once, and right, or too close to call, when it was asked again, as far as possible in a new process: "
    "to play it again may pass, bug or not. What made it go wrong was asked before and is not in this folder."
)


def keep(
    result: Result,
    folder: Path,
    engine: str,
    options: Mapping[str, str],
    seed: int,
    make: Callable[[], Engine] | None = None,
    watch: Watchdog | None = None,
) -> Path:
    """Ask the smallest failure once more and save it as a folder; return the folder, numbered if there is one. make:
    what makes the engine, if it is not its name. watch: ends it where the engine does not answer."""
    case, settings = result.explanation.smallest, result.explanation.small_settings
    assert case is not None and settings is not None
    if result.stopped_by and result.explanation.answers:  # whoever stopped it does not wait for others
        testbed, exchanges = result.testbed, result.explanation.answers
    else:
        make = make or (lambda: registry.make(engine, options))
        testbed, exchanges = _once_more(result, case, settings, make, watch)
    ratios, raws = measure(case, exchanges, testbed, ensemble(testbed.dtype))
    failed = [verdict for one in ratios if (verdict := judge(one, result.thresholds)).verdict == "fail"]
    result.explanation.repeats = bool(failed)
    expected, units = _truth_of(exchanges, raws, testbed)
    repro = Repro(
        testbed,
        case,
        exchanges,
        expected,
        units,
        next((verdict.why for verdict in failed if verdict.why), "") if failed else RIGHT_AGAIN,
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


def _once_more(
    result: Result, case: Case, settings: Settings, make: Callable[[], Engine], watch: Watchdog | None
) -> tuple[Testbed, list[Exchange]]:
    """Return the answers, and the testbed that the engine had: of its adapters only those that the case names, if it
    is as wrong with these. Megabytes of others say nothing to whoever has to mend it."""
    members = ensemble(result.testbed.dtype)

    def ask(testbed: Testbed) -> list[Exchange]:
        with tempfile.TemporaryDirectory() as scratch:
            driver = EngineDriver(make, testbed, Path(scratch), watch)
            try:
                return exchanges_anew(driver, case, settings)
            except NotAnew:
                return driver.run(case, settings)
            finally:
                driver.close()

    def wrong(testbed: Testbed, exchanges: Sequence[Exchange]) -> list[tuple[int, int, bool]]:
        """Which requests fail, and whether by an error."""
        ratios, _ = measure(case, exchanges, testbed, members)
        failed = [one for one in ratios if judge(one, result.thresholds).verdict == "fail"]
        return [(one.run, one.index, bool(one.problem)) for one in failed]

    exchanges = ask(result.testbed)
    few = _with_named_adapters(result.testbed, case)
    if case.stateless and len(few.paths) < len(result.testbed.paths):  # of a sequence no other is loaded
        with contextlib.suppress(EngineError):
            again = ask(few)
            if wrong(few, again) == wrong(result.testbed, exchanges) != []:
                return few, again
    return result.testbed, exchanges


def _with_named_adapters(testbed: Testbed, case: Case) -> Testbed:
    requests = [request for run in case.runs for request in run.requests]
    named = {name for request in requests for name, _ in request.adapters}
    paths = {key: path for key, path in testbed.paths.items() if key in named}
    return replace(testbed, paths=paths, adapters={key: testbed.adapters[key] for key in paths})


def _truth_of(
    exchanges: Sequence[Exchange], raws: Sequence[Errors | None], testbed: Testbed
) -> tuple[dict[tuple[int, int], Array], dict[tuple[int, int], Array]]:
    """Return, by (run, index), the exact logits and the noise units of each request whose answer can be read."""
    counted = [exchange for exchange in exchanges if exchange.request.cancel_after is None]
    readable = [(exchange, raw) for exchange, raw in zip(counted, raws, strict=True) if raw is not None]
    expected = {(one.run, one.index): truth([one], testbed)[0] for one, _ in readable}
    return expected, {(one.run, one.index): raw.unit for one, raw in readable}


def _unused(folder: Path) -> Path:
    """Return the folder, or folder-2, folder-3 ...: the first that is not there."""
    numbered = (folder.with_name(f"{folder.name}-{number}") for number in count(2))
    return next(path for path in chain([folder], numbered) if not path.exists())
