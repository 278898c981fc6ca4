"""What a cache keeps without the adapter's delta: found as the definition makes it, step by step with a cache."""

import copy
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.testbed import small_testbed
from test_follow import LIMIT, all_requests, answered

from refimpl import NUMPY
from refimpl.adapter_cache import AdapterCache
from refimpl.alora import starts_of
from refimpl.arrays import Array, to_host
from refimpl.batch import ScheduledRequest, make_batch
from refimpl.config import Module
from refimpl.kv_cache import KVCache
from refimpl.model import forward
from refimpl.oracle.causes.mix_up import EXACT
from refimpl.oracle.causes.stored import WITHOUT_DELTA, stored_sources
from refimpl.oracle.causes.suspect import Suspect

pytestmark = pytest.mark.filterwarnings("ignore::refimpl.errors.AdapterWarning")


def without_delta(suspect: Suspect, names: Sequence[str], starts: Sequence[int], first: int) -> Array:
    """The definition: logits of a request whose steps begin at these tokens. Each step is computed twice, the second
    time without the delta at some modules, and with the attention of the first: the keys and values of that one stay,
    from token `first` on."""
    model, request = suspect.testbed.exact, suspect.request
    p, tokens = model.precision(EXACT), len(request.prompt_ids)
    cache = KVCache(model.config, tokens, 1, p, model.device, NUMPY.select_victim, NUMPY.latent.kv_shape)
    adapters = AdapterCache(model, p, NUMPY)
    slots = [(adapters.acquire(adapter), weight) for adapter, weight in request.adapters]
    activation = starts_of(request, NUMPY.activation_start)
    logits = []
    for start, end in itertools.pairwise([*starts, tokens]):
        step = ScheduledRequest(request.prompt_ids[start:end], start, list(range(end)), slots, tokens, activation)
        batch = make_batch([step], cache, adapters.slots, NUMPY, every_row=True)
        logits.append(to_host(forward(model, batch, cache, adapters.slots, NUMPY, p)))
        right = copy.deepcopy((cache.k, cache.v))
        keys, values = iter(right[0]), iter(right[1])

        def attention(q: Array, _k: Array, _v: Array, *rest: Any, keys: Any = keys, values: Any = values) -> Array:
            return NUMPY.attention(q, next(keys), next(values), *rest)

        def lora_delta(y: Array, x: Array, module: Module, *rest: Any) -> None:
            if module[1] not in names:
                NUMPY.lora_delta(y, x, module, *rest)

        forward(model, batch, cache, adapters.slots, replace(NUMPY, attention=attention, lora_delta=lora_delta), p)
        for now, before in ((cache.k, right[0]), (cache.v, right[1])):
            for layer, right_layer in zip(now, before, strict=True):
                layer[:first] = right_layer[:first]
    return np.concatenate(logits)


@given(st.data())
@settings(deadline=None, max_examples=16, suppress_health_check=list(HealthCheck))
def test_what_the_cache_lacks_is_found(data: st.DataObject) -> None:
    """In steps of any length, of all tokens or of those that were produced."""
    request = data.draw(st.sampled_from([one for one in all_requests() if 3 <= one.tokens <= 12]))
    suspect, prompt = request.as_it_came.suspect, len(request.as_it_came.suspect.exchange.request.prompt_ids)
    mistake = data.draw(st.sampled_from(WITHOUT_DELTA))
    cuts = data.draw(st.sets(st.integers(1, request.tokens - 1), min_size=1, max_size=4))
    starts = sorted({0, *cuts, *range(prompt, request.tokens)})
    first = data.draw(st.sampled_from([0, prompt]))
    logits = without_delta(suspect, mistake.modules.split(" and "), starts, first)
    wrong = answered(request, logits, 5)
    (nothing,), (followed,) = wrong.follow([()], LIMIT), wrong.follow([(mistake,)], LIMIT)
    assert followed.dead is None
    if nothing.dead is None:  # so little came of it that nobody can say that it was made
        assert not (followed.present(0) == 1).any()
    else:
        assert nothing.dead >= starts[1]
        made = followed.present(0)
        assert (made[: starts[1]] != (0 if first == 0 else 1)).all() and (made == 1).any()
        assert made[starts[-1]] == -1  # what the last step stored nobody reads


def test_where_it_would_show_it_is_known_not_to_be_made() -> None:
    """In a right request: of tokens that a later step has read."""
    for request in all_requests():
        suspect = request.as_it_came.suspect
        prompt, key = len(suspect.exchange.request.prompt_ids), suspect.key
        if (0, "v_proj") in suspect.testbed.adapters[key or ""].lora and prompt < request.tokens:
            (followed,) = request.follow([(WITHOUT_DELTA[0],)], LIMIT)
            made = followed.present(0)
            assert followed.dead is None and (made[:prompt] == 0).all() and made[-1] == -1
            break
    else:
        raise AssertionError("no request has v_proj and produced tokens")


def test_the_base_has_no_delta_that_could_be_missing() -> None:
    """So that its requests say nothing of when that is made."""
    assert stored_sources([], small_testbed().exact.config) == []
