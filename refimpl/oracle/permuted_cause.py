"""A cause between requests: what none of them shows alone is tried on whole batches (causes/permuted.py)."""

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence

from .cases.testbed import Testbed
from .causes.line import Line
from .causes.mistakes import FLOPS
from .causes.permuted import WAYS, Permutation, permuted
from .causes.schedule import Schedule
from .causes.statement import CauseReport, Change
from .diagnosis.clock import Clock
from .failures import Batch, Failures
from .fitted_cause import smallest_first
from .reports.result import PlayedCase

# Tried in this order. An engine has its own numbers: where they are others, nothing is named.
SCHEDULES = sorted(
    (Schedule(budget=budget, adapters=slots) for budget in (None, 8, 16, 32, 64) for slots in (None, 2, 3, 4)),
    key=lambda one: one.cost,
)
BATCHES, RIGHT = 6, 3  # that failed and that passed, in which every way is tried; larger: slower
LEAST = 3  # failed requests in these: every row of fewer may come down to noise by coincidence


def permuted_cause(failures: Failures, limit: float, clock: Clock) -> CauseReport | None:
    """Return the way to put deltas back wrongly that explains every row of some batches, those that are right as well;
    None if there is none. limit: the ratio from which on a row is no noise."""
    began, batches = time.monotonic(), list(_batches(failures))
    failed = sum(verdict == "fail" for *_, batch in batches for _, _, verdict in batch)
    is_reported = any(line.is_reported for line, *_ in batches)
    for schedule in SCHEDULES[: 1 if is_reported else None] if failed >= LEAST else ():
        if clock.is_late("deltas that are put back in another order"):
            return None
        if ways := _ways(failures, batches, schedule, limit):
            words = [" ".join(filter(None, (way.words, schedule.words))) for way in ways]
            change = Change(words[0], "permuted rows", "", "", 1.0)
            seconds = time.monotonic() - began
            return CauseReport((change,), 0, failed, failed, next(iter(ways.values())), seconds, tuple(words[1:]))
    return None


def _ways(
    failures: Failures, batches: Sequence[tuple[Line, int, Batch]], schedule: Schedule, limit: float
) -> dict[Permutation, float]:
    """Return the ways that explain all of some batches if an engine makes these steps, and what each leaves."""
    ways = dict.fromkeys(WAYS, 0.0)
    for line, number, batch in batches:
        exchanges, raws = [exchange for exchange, _, _ in batch], [raw for _, raw, _ in batch]
        in_order = line.steps(number, schedule)
        fitting = dict(permuted(exchanges, raws, failures.testbed, limit, in_order, list(ways)))
        ways = {way: max(ways[way], rest) for way, rest in fitting.items()}
        if not ways:
            break
    return ways


def _batches(failures: Failures) -> Iterator[tuple[Line, int, Batch]]:
    """Yield some with failed requests, short cases first, and some that are right; each with its engine's batches, and
    which of them it is. All that is computed in one of them is known."""

    def computed(cases: Iterable[PlayedCase]) -> Iterator[tuple[Line, int, Batch]]:
        for line, number, batch in (one for case in cases for one in failures.batches(case)):
            if _is_affordable(batch, failures.testbed) and _is_computed(line, number):
                yield line, number, batch

    wrong = (one for one in computed(smallest_first(failures.played)) if _has_failed(one[-1]))
    yield from itertools.islice(wrong, BATCHES)
    right = (one for one in failures.played if one.verdict == "pass" and one.case.stateless)
    yield from itertools.islice(computed(right), RIGHT)


def _is_computed(line: Line, number: int) -> bool:
    """Are all tokens of a batch computed in it, as far as the engine tells? What is in a cache was put back before."""
    requests = range(len(line.batches[number]))
    if not line.is_reported:
        return True
    return all(line.knows_steps(number, i) for i in requests) and not any(
        step.is_cached for step in line.steps(number, SCHEDULES[0])
    )


def _is_affordable(batch: Batch, testbed: Testbed) -> bool:
    """Is the base small enough to compute it in every way? And are its adapters plain: what DoRA adds depends on the
    row to which it is added."""
    model = testbed.exact
    weights = sum(model.linear(module).weight.size for module in model.config.modules())
    tokens = sum(len(one.request.prompt_ids) + len(one.response.token_ids) for one, _, _ in batch)
    has_dora = any(testbed.adapters[key].use_dora for one, _, _ in batch for key, _ in one.adapters)
    return not has_dora and 2 * weights * tokens * len(WAYS) < FLOPS


def _has_failed(batch: Batch) -> bool:
    return any(verdict == "fail" for _, _, verdict in batch)
