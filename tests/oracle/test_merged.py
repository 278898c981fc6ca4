"""What is left of adapters that were merged: which batches those are, and a request to which their deltas are added."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from support.testbed import small_testbed
from test_follow import LIMIT, all_requests, answered

from refimpl import Request as ModelRequest
from refimpl import logits
from refimpl.oracle.causes.line import Line
from refimpl.oracle.causes.merged import merged_sources
from refimpl.oracle.causes.mistakes import Mistake
from refimpl.oracle.causes.schedule import Batch, Scheduled
from refimpl.oracle.causes.traced import Request

pytestmark = pytest.mark.filterwarnings("ignore::refimpl.errors.AdapterWarning")

EACH = "merged: of each batch of one adapter alone"
LAST = "merged: of the last batch of one adapter alone"


def batch(*keys: str | None) -> Batch:
    """Requests of these adapters; None: of the base."""
    return [Scheduled(3, 2, ((key, 1.0),) if key else ()) for key in keys]


def summable() -> list[str]:
    """Adapters that only add to the base, with their biases or without."""
    return [key for key, adapter in small_testbed().wide.items() if adapter.can_be_summed]


def test_batches_of_one_adapter_alone_are_those_that_are_merged() -> None:
    testbed = small_testbed()
    a, b, *_ = summable()
    nothing = [batch(a, b), batch(None, a), batch(None), [Scheduled(3, 2, ((a, 0.5),))]]
    assert not list(merged_sources(nothing, testbed.wide))
    keys = {one.key for one in merged_sources([*nothing, batch(a, a), batch(b)], testbed.wide)}
    assert {EACH, LAST, "merged: of each request that was alone in its batch"} <= keys
    sums = [Scheduled(3, 2, ((b, 1.0), (a, 1.0))), *batch(a, a)]  # they are run by themselves
    assert EACH in {one.key for one in merged_sources([sums], testbed.wide)}


@pytest.mark.parametrize("family", [EACH, LAST])
def test_their_deltas_are_added_to_whatever_comes_later(family: str) -> None:
    """Each as often as it was merged: to requests of the same adapter, of another one and of the base."""
    testbed, (a, b, *_) = small_testbed(), summable()
    earlier = [batch(a), batch(a, b), batch(b, b, b), batch(a)]
    added = [a, b, a] if family == EACH else [a]
    followed_any = False
    for request in [one for one in all_requests() if one.as_it_came.suspect.key in summable()][:4]:
        suspect = request.as_it_came.suspect
        counts = Counter([*(key for key, _ in suspect.exchange.adapters), *added])
        weights = [(testbed.wide[key], float(count)) for key, count in counts.items()]
        (rows,) = logits(testbed.exact, [ModelRequest(suspect.request.prompt_ids, weights)])
        wrong = answered(request, rows, 5)
        wrong = Request(replace(wrong.as_it_came, line=Line([*earlier, batch(suspect.key)]), number=len(earlier)))
        (without,), (followed,) = wrong.follow([()], LIMIT), wrong.follow([(Mistake(family, "", 1.0, 4.0),)], LIMIT)
        assert without.dead is not None and followed.dead is None
        assert (followed.present(0) != 0).all()
        assert np.isfinite(followed.worst)
        followed_any = True
    assert followed_any
