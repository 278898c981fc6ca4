"""Requests that a campaign did not have, asked of the same engine: of other adapters, and of fewer requests at once."""

from collections.abc import Sequence

from ..engines.interface import Settings
from .cases.case import Case
from .cases.testbed import Testbed, settings
from .causes.asked import Asked
from .causes.facts import facts_of
from .causes.fewer import alone, in_other_shapes
from .causes.line import Lines
from .causes.others import other_cases, other_testbed
from .causes.suspect import suspect_of
from .failures import Failures
from .second_look import with_other_tokens

CUT = 2  # batches that are asked again with fewer requests; larger: slower, and conditions of batches are surer
RETOLD = 100  # and on: numbers of other tokens that nothing else here is asked with


def asked_of_others(failures: Failures) -> list[Asked]:
    """Requests of adapters that the campaign had not, on the same base, one batch after another; [] if the engine
    can load none."""
    if "load" not in failures.driver.capabilities.operations:
        return []
    testbed = other_testbed(failures.testbed, failures.driver.capabilities, failures.driver.work)
    cases = other_cases(testbed, failures.driver.capabilities)
    return _asked_again(failures, testbed, cases, [None] * len(cases), settings(testbed))


def asked_with_fewer(failures: Failures) -> list[Asked]:
    """Failed requests of a few batches, asked again alone; where that is right, beside fewer others and in other
    orders. [] if the engine would not forget what came before. Other tokens each time, as in `asked_quietly`."""
    if "load" not in failures.driver.capabilities.operations:
        return []
    by_name = {one.case.name: one for one in failures.played if one.case.stateless}
    failed = [one for one in failures.asked_loudly if one.failed and one.place[0] in by_name]
    some = list({one.place[0]: one for one in reversed(failed)}.values())  # the first of each batch
    some.sort(key=lambda one: -len(by_name[one.place[0]].case.runs[0].requests))
    if not some:
        return []
    started, vocab = by_name[some[0].place[0]].settings, failures.testbed.model.config.vocab_size
    alike = [one for one in some if by_name[one.place[0]].settings == started]
    batches = [(by_name[one.place[0]], one.place[2]) for one in alike[:CUT]]
    singles = [with_other_tokens(alone(one.case, at), vocab, RETOLD + n) for n, (one, at) in enumerate(batches)]
    requests = _asked_again(failures, failures.testbed, singles, [0] * len(singles), started)
    right = {one.place[0] for one in requests if not one.failed}
    mixed = [batch for batch, single in zip(batches, singles, strict=True) if single.name in right]
    shapes = [shape for one, at in mixed for shape in in_other_shapes(one.case, at)]
    cases = [with_other_tokens(case, vocab, RETOLD + CUT + n) for n, (case, _) in enumerate(shapes)]
    return requests + _asked_again(failures, failures.testbed, cases, [at for _, at in shapes], started)


def _asked_again(
    failures: Failures, testbed: Testbed, cases: Sequence[Case], places: Sequence[int | None], started: Settings
) -> list[Asked]:
    """Ask batches one after another of an engine that has forgotten what came before.

    places: of each batch the one request that is returned; None: all of them are."""
    requests, lines = list[Asked](), Lines(failures.is_new, failures.reports)
    for number, exchanges in enumerate(failures.driver.run_on(testbed, cases, started)):
        case, here = cases[number], places[number]
        line, first = lines.add(case, started, exchanges, testbed)
        earlier = line.used_before(first)
        some = exchanges if here is None else [exchanges[here]]
        for exchange, raw, verdict in failures.measured(case, some, testbed):
            if verdict in ("fail", "pass"):
                suspect = suspect_of(
                    case, exchange, raw, testbed, earlier, line.reported_occupants(first, exchange.index)
                )
                facts = facts_of(case, exchange, testbed, earlier)
                place = case.name, exchange.run, exchange.index
                requests.append(Asked(suspect, place, facts, verdict == "fail", line, first, True))
    return requests
