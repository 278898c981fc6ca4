"""A cause between requests: what none of them shows alone is tried on whole batches (causes/permuted.py)."""

import time
from collections.abc import Iterator

from .cases.testbed import Testbed
from .causes.mistakes import FLOPS
from .causes.permuted import WAYS, permuted
from .causes.statement import CauseReport, Change
from .diagnosis.clock import Clock
from .failures import Batch, Failures
from .fitted_cause import smallest_first

BATCHES, RIGHT = 6, 3  # that failed and that passed, in which every way is tried; larger: slower
LEAST = 3  # failed requests in these: every row of fewer may come down to noise by coincidence


def permuted_cause(failures: Failures, limit: float, clock: Clock) -> CauseReport | None:
    """Return the way to put deltas back wrongly that explains every row of some batches, those that are right as well;
    None if there is none. limit: the ratio from which on a row is no noise."""
    began, batches = time.monotonic(), [one for one in _batches(failures) if _is_affordable(one, failures.testbed)]
    failed = sum(verdict == "fail" for batch in batches for _, _, verdict in batch)
    ways: dict[str, float] | None = None
    for batch in batches if failed >= LEAST else ():
        if clock.is_late("deltas that are put back in another order"):
            return None
        exchanges, raws = [exchange for exchange, _, _ in batch], [raw for _, raw, _ in batch]
        fitting = {way.words: rest for way, rest in permuted(exchanges, raws, failures.testbed, limit)}
        before = fitting if ways is None else ways
        ways = {words: max(before[words], rest) for words, rest in fitting.items() if words in before}
        if not ways:
            return None
    if not ways:
        return None
    (words, residual), *others = ways.items()
    change = Change(words, "permuted rows", "", "", 1.0)
    also = tuple(other for other, _ in others)
    return CauseReport((change,), 0, failed, failed, residual, time.monotonic() - began, also)


def _batches(failures: Failures) -> Iterator[Batch]:
    """Yield some with failed requests, short cases first, and some that are right."""
    wrong = [batch for one in smallest_first(failures.played) for batch in failures.batches(one) if _has_failed(batch)]
    yield from wrong[:BATCHES]
    right = [one for one in failures.played if one.verdict == "pass" and one.case.stateless][:RIGHT]
    yield from (batch for one in right for batch in failures.batches(one))


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
