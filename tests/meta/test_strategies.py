"""What the strategies draw, counted: each rule is there because a real bug once survived a test that broke it."""

import functools
import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from properties.test_lora_delta import Call, calls
from properties.test_reuse import BLOCK_SIZE, reuses
from properties.test_whole_layers import replacing_cases
from support.build import EVERYWHERE, RANKS, Case, cases
from support.dense import scale_of

from refimpl.adapter import Adapter
from refimpl.config import EMBED, LM_HEAD

DRAWS = 200


@functools.cache
def drawn(strategy: str) -> list:
    """Two hundred examples, the same ones every time."""
    found: list = []

    @settings(max_examples=DRAWS, phases=[Phase.generate])
    @given({"cases": cases(), "reuses": reuses(), "replacing": replacing_cases(), "calls": calls()}[strategy])
    def keep(example: object) -> None:
        found.append(example)

    keep()
    return found


def share(strategy: str, holds: Callable[[Case], bool]) -> float:
    examples = drawn(strategy)
    return sum(map(holds, examples)) / len(examples)


every_strategy = pytest.mark.parametrize("strategy", ["cases", "reuses", "replacing"])


@every_strategy
def test_no_layer_is_square(strategy: str) -> None:
    for model, _, _ in drawn(strategy):
        assert all(d_out != d_in for d_out, d_in in map(model.config.shape, EVERYWHERE))


@every_strategy
def test_key_heads_are_often_fewer_than_query_heads_and_more_than_one(strategy: str) -> None:
    assert share(strategy, lambda s: 1 < s.model.config.num_key_value_heads < s.model.config.num_attention_heads) > 0.2


@every_strategy
def test_no_head_dim_is_what_hidden_size_would_give(strategy: str) -> None:
    for model, _, _ in drawn(strategy):
        assert model.config.num_attention_heads * model.config.head_dim != model.config.hidden_size


@every_strategy
def test_no_scale_is_one_and_b_has_both_signs(strategy: str) -> None:
    for _, pool, _ in drawn(strategy):
        for adapter in pool:
            for module, w in adapter.lora.items():
                assert abs(scale_of(adapter, module) - 1) > 0.01
                assert adapter.config.lora_alpha / len(w.A) != 1
                assert (w.B != 0).all()
                assert w.B.size < 20 or w.B.min() < 0 < w.B.max()


@every_strategy
def test_every_adapter_is_in_the_batch_and_so_is_the_base(strategy: str) -> None:
    for _, pool, requests in drawn(strategy):
        assert {a for r in requests for a, _ in r.adapters} == set(pool)
        assert any(not r.adapters for r in requests)


@every_strategy
def test_adapters_are_pairwise_different(strategy: str) -> None:
    for _, pool, _ in drawn(strategy):
        for a, b in itertools.combinations(pool, 2):
            for module in a.lora.keys() & b.lora.keys():
                assert not np.array_equal(a.lora[module].B, b.lora[module].B)


def adapters_of(strategy: str) -> list[Adapter]:
    return [a for case in drawn(strategy) for a in case.pool]


@pytest.mark.parametrize("strategy", ["cases", "reuses"])
def test_ranks_and_kinds_are_mixed(strategy: str) -> None:
    pool = adapters_of(strategy)
    ranks = [len(w.A) for a in pool for w in a.lora.values()]
    assert set(ranks) == set(RANKS)
    assert np.mean([r & (r - 1) != 0 for r in ranks]) > 0.3  # no power of two
    assert 0.2 < np.mean([a.config.use_rslora for a in pool]) < 0.8
    assert 0.2 < np.mean([bool(a.config.alpha_pattern) for a in pool]) < 0.8
    assert 0.2 < np.mean([a.config.lora_bias for a in pool]) < 0.8
    assert min(np.mean([any(s[1] == m for s in a.lora) for a in pool]) for m in EVERYWHERE) > 0.05


def test_scales_differ_within_a_batch() -> None:
    def differ(case: Case) -> bool:
        return len({scale_of(a, s) for a in case.pool for s in a.lora}) > 1

    assert share("cases", differ) > 0.5


@every_strategy
def test_windows_bind_in_some_batches(strategy: str) -> None:
    def binds(case: Case) -> bool:
        window = case.model.config.sliding_window
        return window is not None and max(len(r.prompt_ids) for r in case.requests) > window

    assert share(strategy, binds) > 0.2


def test_batches_are_ragged_and_some_requests_sum_adapters() -> None:
    assert share("cases", lambda s: len({len(r.prompt_ids) for r in s.requests}) > 1) > 0.6
    assert share("cases", lambda s: any(len(r.adapters) > 1 for r in s.requests)) > 0.15


def test_prefixes_are_shared_across_adapters_and_weights() -> None:
    def shared(case: Case) -> bool:
        first = {}
        for r in case.requests:
            if len(r.prompt_ids) > BLOCK_SIZE:
                first.setdefault(tuple(r.prompt_ids[:BLOCK_SIZE]), set()).add(r.adapters)
        return any(len(who) > 1 for who in first.values())

    assert share("reuses", shared) > 0.9
    assert share("reuses", lambda s: any(r.temperature > 0 for r in s.requests)) > 0.5


def test_replaced_layers_come_in_every_kind() -> None:
    for holds in (
        lambda a: EMBED in a.replaced,
        lambda a: LM_HEAD in a.replaced,
        lambda a: bool(a.biases),
        lambda a: len({len(x) for x in a.replaced.values()} - {11, 23, 40}) > 0,
    ):
        assert share("replacing", lambda s, holds=holds: any(map(holds, s.pool))) > 0.2


def test_every_slot_of_a_call_is_named_and_so_is_none() -> None:
    for call in drawn("calls"):
        assert set(call.adapter_ids.flat) == set(range(-1, len(call.pool)))


@pytest.mark.parametrize(
    "holds",
    [
        lambda c: c.adapter_ids.shape[1] == 3 and (c.adapter_ids >= 0).all(axis=1).any(),
        lambda c: c.module == EMBED and len(c.pool) > 2,
        lambda c: (np.diff(c.adapter_ids[:, 0]) < 0).any() and (np.diff(c.adapter_ids[:, 0]) == 0).any(),
    ],
    ids=["three adapters on one row", "the embedding among many", "runs out of order"],
)
def test_a_call_can_have(holds: Callable[[Call], bool]) -> None:
    find(calls(), holds, settings=settings(max_examples=500, phases=[Phase.generate]))


def test_the_strategies_are_the_same_every_time() -> None:
    def first(strategy: st.SearchStrategy) -> list[str]:
        found: list[str] = []

        @settings(max_examples=5)
        @given(strategy)
        def keep(example: object) -> None:
            found.append(repr(example))

        keep()
        return found

    assert first(cases()) == first(cases())
