"""Failed requests, asked again with quiet adapters, then less quiet ones, then as they came; and with adapters confined
to some modules."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from ..errors import AdapterWarning
from .cases.case import Case, Exchange, Run
from .cases.testbed import Testbed
from .causes.asked import Asked, Place, is_single
from .causes.confined import Group, confined_testbed, groups
from .causes.quiet import quiet_testbed
from .causes.suspect import Suspect, suspect_of
from .failures import Failures
from .noise.measure import Errors
from .reports.result import PlayedCase
from .second_look import with_other_tokens

FACTORS = {"float32": (1 / 64, 1 / 8), "float64": (1 / 64, 1 / 8), "float16": (1 / 8, 1 / 2), "bfloat16": (1 / 4,)}
LOUD = 30.0  # noise units; a quiet request that is less wrong is asked less quietly
SUSPECTS = 4  # requests that a cause is looked for in; larger: slower
LEAST = 3  # tokens of a request that is asked with confined adapters: fewer do not tell its tokens apart
LENGTH = 8  # tokens of a request that is long enough to tell tokens apart, and short enough to be quick


def asked_quietly(
    failures: Failures, cases: Sequence[PlayedCase], but: frozenset[Place] = frozenset()
) -> Iterator[list[Suspect]]:
    """Yield some wrong requests of these cases, asked quietly; then less quietly; then as they came.

    but: requests that are left out. Other tokens each time: an engine that keeps keys and values would find
    those of the louder adapters."""
    loud = 0
    can_load = "load" in failures.driver.capabilities.operations
    vocab = failures.testbed.model.config.vocab_size
    for number, factor in enumerate(FACTORS.get(failures.testbed.dtype, (1 / 4,)) if can_load else ()):
        quiet = quiet_testbed(failures.testbed, factor, failures.driver.work / "quiet")
        suspects: list[Suspect] = []
        for one in cases:
            case = with_other_tokens(one.case, vocab, number)
            (exchanges,) = failures.driver.run_on(quiet, [case], one.settings)
            suspects += _suspects(quiet, case, failures.measured(case, exchanges, quiet), one.case.name, but)
        suspects = chosen(suspects)
        if suspects and np.median([suspect.ratio for suspect in suspects]) > LOUD:
            yield suspects
            loud += 1
    if loud > 1:  # as they came they are less linear, and say nothing else
        return
    suspects = []
    for one in cases:
        suspects += _suspects(failures.testbed, one.case, failures.as_they_came(one), one.case.name, but)
    if suspects:
        yield chosen(suspects)


def asked_confined(failures: Failures) -> Iterator[tuple[Group, list[Asked]]]:
    """Yield groups of modules, and a request of each adapter that failed, asked again with all adapters confined to
    these: those that fail, and those that pass. Other tokens each time, as in `asked_quietly`."""
    loud = sorted((one for one in failures.asked_loudly if _may_be_confined(one)), key=lambda one: _tokens(one.suspect))
    shortest = {one.suspect.key: one for one in reversed(loud)}
    if "load" not in failures.driver.capabilities.operations or not shortest:
        return
    first, *_ = some = sorted(shortest.values(), key=lambda one: _tokens(one.suspect))
    started = next(one.settings for one in failures.played if one.case.name == first.place[0])
    requests = [replace(one.suspect.exchange.request, adapter=one.suspect.key, arrival_step=0) for one in some]
    for number, (name, group) in enumerate(groups(failures.testbed.model.config).items()):
        testbed = confined_testbed(failures.testbed, name, group, failures.driver.work / "confined")
        case = Case(f"confined to {name}", (Run(tuple(requests)),))
        case = with_other_tokens(case, failures.testbed.model.config.vocab_size, len(FACTORS) + number)
        with warnings.catch_warnings():  # an engine that reads adapters as we do says of some that every B is 0
            warnings.simplefilter("ignore", AdapterWarning)
            (exchanges,) = failures.driver.run_on(testbed, [case], started)
        measured = list(failures.measured(case, exchanges, testbed))
        yield (
            group,
            [
                Asked(suspect_of(case, one, raw, testbed), (case.name, 0, one.index), {}, verdict == "fail")
                for one, raw, verdict in measured
                if verdict in ("fail", "pass")
            ],
        )


def _may_be_confined(one: Asked) -> bool:
    return one.failed and one.is_single and one.suspect.key is not None and _tokens(one.suspect) >= LEAST


def _tokens(suspect: Suspect) -> int:
    return len(suspect.request.prompt_ids)


def _suspects(
    testbed: Testbed,
    case: Case,
    measured: Iterable[tuple[Exchange, Errors, str]],
    name: str,
    but: frozenset[Place],
) -> list[Suspect]:
    """Return the wrong ones of these requests. name: of the case as it came."""
    return [
        suspect_of(case, exchange, raw, testbed)
        for exchange, raw, verdict in measured
        if verdict == "fail" and is_single(exchange) and (name, exchange.run, exchange.index) not in but
    ]


def chosen(suspects: Sequence[Suspect]) -> list[Suspect]:
    """Return a few requests of different adapters, neither long nor too short to tell their tokens apart."""
    ranked = sorted(suspects, key=lambda one: abs(len(one.request.prompt_ids) - LENGTH))
    first = {suspect.key: suspect for suspect in reversed(ranked)}
    different = [suspect for suspect in ranked if first[suspect.key] is suspect]
    return (different + [suspect for suspect in ranked if suspect not in different])[:SUSPECTS]
