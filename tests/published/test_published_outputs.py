"""NVIDIA's prompts, on NVIDIA's weights, by NVIDIA's own measure. Every one of them skips where the weights are not."""

import pytest
from published_tables import agrees, loaded, outputs, table


@pytest.mark.parametrize("stem", ["llama_7b", "guide"])
def test_llama_7b_with_two_adapters_and_none(stem: str) -> None:
    """Greedy: all six rows. The guide's were sampled, and it claims, in words, three of the six."""
    t = table(stem)
    said = outputs(t, *loaded(t))
    claimed = [(row, text) for row, text in zip(t.rows, said, strict=True) if "keyword" in row]
    assert [(row, text) for row, text in claimed if not agrees(t.asserts, row, text)] == []


def test_tinyllama_with_the_adapter_of_seed_42_says_exactly_this_and_the_base_does_not() -> None:
    t = table("tinyllama_nemo")
    model, adapters = loaded(t)
    (said,) = outputs(t, model, adapters)
    assert agrees(t.asserts, t.rows[0], said), said
    (base,) = outputs(t, model, {})
    assert base != said
