"""What the ranks send is what the formula says, to the number."""

from collections import Counter

import pytest
from ranks import FAMILIES, every_kind, model_of, on_ranks
from support.build import random_adapter

from refimpl import Ops, Request
from refimpl.arrays import Precision
from refimpl.model import forward, whole_prompts
from refimpl.parallel.traffic import numbers, sent_by_each_rank
from refimpl.weights import Model


@pytest.mark.parametrize("every_row", [True, False])
@pytest.mark.parametrize("fully_sharded", [False, True])
@pytest.mark.parametrize("name", ["llama", "phi: fused modules", "olmo 2: a norm over all heads"])
def test_counted_and_computed(name: str, fully_sharded: bool, every_row: bool) -> None:
    model = model_of(FAMILIES[name])
    plain = every_kind(model)["plain"]
    one = random_adapter(model.config, 8, r=1, modules=["o_proj", "down_proj", "gate_proj", "qkv_proj"])
    requests = [Request([1, 2, 3]), Request([4, 5], plain), Request([6], [(plain, 1.0), (one, 0.5)])]
    each = [[adapter for adapter, _ in request.adapters] for request in requests]
    tokens = [adapters for adapters, request in zip(each, requests, strict=True) for _ in request.prompt_ids]
    rows = tokens if every_row else each

    def passed(model: Model, ops: Ops) -> None:
        p = Precision("model", "float64")
        batch, cache, adapters = whole_prompts(model, requests, ops, p, every_row)
        assert len(forward(model, batch, cache, adapters.slots, ops, p)) == len(rows)

    for size in (2, 4):
        counters: list = []
        on_ranks(model, size, passed, fully_sharded=fully_sharded, counters=counters)
        expected = numbers(model.config, size, tokens, rows, fully_sharded)
        assert [counter.numbers for counter in counters] == [expected] * size
    free = numbers(model.config, 4, [[]] * 6, [[]] * len(rows))
    assert (expected == free) is not fully_sharded  # where one of A and B is whole, an adapter sends nothing


def test_the_ring() -> None:
    assert sent_by_each_rank(Counter(all_reduce=300, all_gather=100), 4) == 2 * 0.75 * 300 + 0.75 * 100
    assert sent_by_each_rank(Counter(all_reduce=300, all_gather=100), 1) == 0
