"""What the ranks send is what the formula says, to the number."""

from collections import Counter

import pytest
from ranks import FAMILIES, every_kind, logits_of, model_of, on_ranks
from support.build import random_adapter

from refimpl import Request
from refimpl.parallel.traffic import numbers, sent_by_each_rank


@pytest.mark.parametrize("fully_sharded", [False, True])
@pytest.mark.parametrize("name", ["llama", "phi: fused modules", "olmo 2: a norm over all heads"])
def test_counted_and_computed(name: str, fully_sharded: bool) -> None:
    model = model_of(FAMILIES[name])
    plain = every_kind(model)["plain"]
    one = random_adapter(model.config, 8, r=1, modules=["o_proj", "down_proj", "gate_proj", "qkv_proj"])
    requests = [Request([1, 2, 3]), Request([4, 5], plain), Request([6], [(plain, 1.0), (one, 0.5)])]
    tokens = [[adapter for adapter, _ in request.adapters] for request in requests for _ in request.prompt_ids]
    for size in (2, 4):
        counters: list = []
        on_ranks(model, size, logits_of(requests), fully_sharded=fully_sharded, counters=counters)
        expected = numbers(model.config, size, tokens, rows=6, fully_sharded=fully_sharded)
        assert [counter.numbers for counter in counters] == [expected] * size
    free = numbers(model.config, 4, [[]] * 6, rows=6)
    assert (expected == free) is not fully_sharded  # where one of A and B is whole, an adapter sends nothing


def test_the_ring() -> None:
    assert sent_by_each_rank(Counter(all_reduce=300, all_gather=100), 4) == 2 * 0.75 * 300 + 0.75 * 100
    assert sent_by_each_rank(Counter(all_reduce=300, all_gather=100), 1) == 0
