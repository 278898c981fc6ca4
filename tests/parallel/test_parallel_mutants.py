"""Every bug between ranks is seen: the test of test_equal.py, with the bug, finds other numbers than the model's."""

import numpy as np
import pytest
from ranks import FAMILIES, every_kind, logits_of, mixed_batch, model_of, on_ranks
from test_equal import test_a_prefix_is_an_adapters_own_if_it_differs_on_another_rank_alone as check_prefixes

from refimpl import logits
from refimpl.parallel.mutants import MUTANTS

# The batch and the model that show it: a family of ranks.FAMILIES.
SHOWN_BY = {
    "fused_B_in_one_piece": "phi: fused modules",
    "norm_of_a_ranks_own_heads": "olmo 2: a norm over all heads",
}
# Whose rows it makes wrong, in the order of mixed_batch: 0 is the base, 1 a sum, 2 plain, 3 of rank 1, 4 DoRA, 5 with
# whole layers, 6 with biases, 7 with rows of tokens. What is not there keeps its numbers.
ROWS = {
    "all_reduce_left_out": {0, 1, 2, 3, 4, 5, 6, 7},
    "delta_on_every_rank": {1, 2, 3, 4, 5, 6, 7},
    "fused_B_in_one_piece": {1, 2, 3, 4, 5, 6, 7},
    "zeros_between_shards": {1, 2, 4, 5, 6, 7},  # with one row of A, nothing comes after the zeros
    "lora_bias_on_every_rank": {1, 2},
    "base_bias_on_every_rank": {0, 1, 2, 3, 4, 5, 6, 7},
    "norm_of_a_ranks_own_heads": {0, 1, 2, 3, 4, 5, 6, 7},
    "dora_norm_of_a_ranks_part": {4},
}


@pytest.mark.parametrize("name", sorted(set(MUTANTS) - {"key_of_one_ranks_part"}))
def test_it_shows_where_it_must_and_nowhere_else(name: str) -> None:
    model, mutant = model_of(FAMILIES[SHOWN_BY.get(name, "llama")]), MUTANTS[name]
    requests = mixed_batch(model, every_kind(model))
    expected = logits(model, requests)
    actual = on_ranks(model, 2, logits_of(requests), fully_sharded=mutant.fully_sharded, mutant=mutant)[0]
    wrong = {
        i
        for i, (rows, right) in enumerate(zip(actual, expected, strict=True))
        if not np.abs(rows - right)[np.isfinite(right)].max() <= 1e-9 * np.abs(right[np.isfinite(right)]).max()
    }
    assert wrong == ROWS[name]


def test_a_key_of_one_ranks_part_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 takes the first adapter's blocks for the second's, rank 1 does not: their batches have other tokens."""
    import test_equal

    with_bug = lambda model, size, function: on_ranks(model, size, function, mutant=MUTANTS["key_of_one_ranks_part"])  # noqa: E731
    monkeypatch.setattr(test_equal, "on_ranks", with_bug)
    with pytest.raises(ValueError, match="could not be broadcast together"):
        check_prefixes()


def test_each_says_what_it_does() -> None:
    for mutant in MUTANTS.values():
        assert mutant.what and (mutant.ops or mutant.part)
        assert all(link.startswith("https://github.com/") for link in mutant.links)
