"""Several ranks compute what one does: every kind of adapter, every family, for each number of ranks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import FAMILIES, every_kind, logits_of, mixed_batch, model_of, on_ranks, small
from support.build import random_adapter
from support.compare import assert_differ, assert_equal_to_rounding, assert_same_bits

from refimpl import REFERENCE, Engine, LoracleError, Precision, Request, logits
from refimpl.config import ModelConfig, Rope
from refimpl.ops import NUMPY, Ops
from refimpl.parallel.layout import Layout
from refimpl.parallel.shards import shard_model
from refimpl.parallel.threads import on_threads
from refimpl.streaming import generate
from refimpl.unified_pool import UnifiedPool
from refimpl.weights import Model

SIZES = {"llama": (1, 2, 4, 6), "three key heads": (3, 12)}  # with 2 key heads, 4 ranks and more share each of them


def check_ranks_are_one(config: ModelConfig, size: int, fully_sharded: bool, seed: int = 0, ops: Ops = NUMPY) -> None:
    """Every rank has the logits of the whole model, and all the same bits."""
    model = model_of(config, seed)
    adapters = every_kind(model, seed)
    requests = mixed_batch(model, adapters, seed)
    expected = logits(model, requests)
    results = on_ranks(model, size, logits_of(requests), ops, fully_sharded)
    assert len(results) == size
    for rows in results:
        for actual, other, first in zip(rows, expected, results[0], strict=True):
            assert_equal_to_rounding(actual, other)
            assert_same_bits(actual, first)
    assert_differ(expected[2], logits(model, [Request(requests[2].prompt_ids)])[0])  # there is something to be lost


@pytest.mark.parametrize("fully_sharded", [False, True], ids=["one of A and B is cut", "fully sharded"])
@pytest.mark.parametrize("name", FAMILIES)
def test_ranks_are_one(name: str, fully_sharded: bool) -> None:
    for size in SIZES.get(name, (2, 4)):
        check_ranks_are_one(FAMILIES[name], size, fully_sharded)


def test_the_definition_on_ranks() -> None:
    check_ranks_are_one(small(num_hidden_layers=1), 2, False, ops=REFERENCE)


@st.composite
def cuts(draw: st.DrawFn) -> tuple[ModelConfig, int]:
    """A small model and a number of ranks that can share it."""
    size, kv_heads = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    heads = kv_heads * draw(st.integers(1, 4))
    config = small(
        vocab_size=draw(st.integers(23, 26)),
        hidden_size=draw(st.sampled_from([5, 10, 17])),
        intermediate_size=12 * draw(st.integers(1, 2)),
        num_hidden_layers=draw(st.integers(1, 2)),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=draw(st.sampled_from([2, 6])),
        tie_word_embeddings=draw(st.booleans()),
        attention_bias=draw(st.booleans()),
        mlp_bias=draw(st.booleans()),
        sliding_window=draw(st.sampled_from([None, 2])),
        qkv=draw(st.sampled_from([("q_proj", "k_proj", "v_proj"), ("qkv_proj",)])),
        rope=Rope(interleaved=draw(st.booleans())),
    )
    return config, size


@settings(max_examples=15)
@given(cuts(), st.booleans(), st.integers(0, 3))
def test_any_model_is_the_same_on_ranks_or_is_refused(cut: tuple, fully_sharded: bool, seed: int) -> None:
    config, size = cut
    divides = config.num_attention_heads % size == 0 and (
        config.num_key_value_heads % size == 0 or size % config.num_key_value_heads == 0
    )
    if divides:
        check_ranks_are_one(config, size, fully_sharded, seed)
    else:
        with pytest.raises(LoracleError, match=f"cannot be shared by {size} ranks"):
            Layout(config, 0, size)


@pytest.mark.parametrize(
    ("changes", "size", "says"),
    [
        ({}, 5, "num_attention_heads 12 cannot be shared by 5 ranks: this model runs on 1, 2, 4, 6, 12"),
        ({}, 3, "num_key_value_heads 2 cannot be shared by 3 ranks"),
        ({"intermediate_size": 22}, 4, "intermediate_size 22 cannot be shared by 4 ranks: this model runs on 1, 2"),
        ({"vocab_size": 3}, 4, "vocab_size 3 cannot be shared by 4 ranks"),
    ],
)
def test_what_does_not_divide_is_refused_by_its_key(changes: dict, size: int, says: str) -> None:
    with pytest.raises(LoracleError, match=says):
        Layout(small(**changes), 0, size)


def test_half_types_differ_by_their_rounding_alone() -> None:
    """A partial sum is rounded on its rank, as in an engine: the results differ, by no more than a few units."""
    model = model_of(small())
    requests = mixed_batch(model, every_kind(model))[:4]
    p = Precision("model", "bfloat16")
    run = lambda part, ops: logits(part, requests, ops, p)  # noqa: E731
    exact, alone, two = logits(model, requests), logits(model, requests, precision=p), on_ranks(model, 2, run)[0]
    for exactly, one, ranks in zip(exact, alone, two, strict=True):
        finite = np.isfinite(exactly)
        noise = np.abs(one - exactly)[finite].max()
        assert 0 < np.abs(ranks - exactly)[finite].max() <= 4 * noise


def test_an_engine_on_ranks_serves_the_same_tokens() -> None:
    """Chunks, preemption, adapters that come and go, prefix hits: every rank schedules the same."""
    model = model_of(small(max_position_embeddings=64))
    adapters = every_kind(model)
    rng = np.random.default_rng(1)
    shared = rng.integers(0, 23, 9).tolist()
    requests = [Request([*shared, i], adapter, max_new_tokens=6) for i, adapter in enumerate(adapters.values())]
    requests += [Request([*shared, 3], None, max_new_tokens=4, temperature=1.5, seed=5), requests[0]]

    def serve(part: Model, ops: Ops) -> list[list[int]]:
        engine = Engine(part, ops, num_blocks=14, block_size=4, max_batch_tokens=7, max_running=3, max_adapters=2)
        return [output.token_ids for output in generate(part, requests, engine=engine)]

    expected = serve(model, NUMPY)
    assert len({tuple(ids) for ids in expected[:6]}) == 6
    assert on_ranks(model, 4, serve) == [expected] * 4


def test_a_prefix_is_an_adapters_own_if_it_differs_on_another_rank_alone() -> None:
    """The second adapter is the first one but for a row of B that is rank 1's; on rank 0 both are the same numbers."""
    model = model_of(small(num_hidden_layers=2))
    first = random_adapter(model.config, 3, modules=["v_proj"], name="first")
    second = random_adapter(model.config, 3, modules=["v_proj"], name="second")
    for module, tensors in second.lora.items():
        half = len(tensors.B) // 2
        tensors.B[half:] *= 2
        assert (tensors.B[:half] == first.lora[module].B[:half]).all()
    prompt = [5, 6, 7, 8, 9, 10, 11, 12]

    def last_rows(part: Model, ops: Ops) -> list[np.ndarray]:
        engine, rows = Engine(part, ops, block_size=2), []
        for adapter in (first, second):
            engine.add(Request(prompt, adapter), max_new_tokens=1)
            while engine.busy:
                engine.step()
                rows.append(engine.last_step[0].logits)
        return rows

    expected = last_rows(model, NUMPY)
    assert_differ(expected[0], expected[1])
    for rows in on_ranks(model, 2, last_rows):
        for actual, other in zip(rows, expected, strict=True):
            assert_equal_to_rounding(actual, other)


def test_a_dora_that_only_one_rank_can_see_to_be_impossible_is_refused_by_all() -> None:
    model = model_of(small())
    adapter = every_kind(model)["DoRA"]
    module = (0, "q_proj")
    model.linear(module).weight[-1], adapter.lora[module].B[-1] = 0, 0  # the last row is the last rank's

    def refused(part: Model, ops: Ops) -> str:
        with pytest.raises(LoracleError, match="zero") as error:
            logits(part, [Request([1, 2], adapter)], ops)
        return str(error.value)

    assert len(on_ranks(model, 2, refused)) == 2


def test_a_unified_pool_is_refused() -> None:
    part = shard_model(model_of(small()), Layout(small(), 0, 2))
    with pytest.raises(LoracleError, match="a unified pool is for one rank"):
        Engine(part, NUMPY, pool=UnifiedPool)


def test_what_one_rank_raises_ends_all() -> None:
    def fail(communicator: object) -> None:
        if communicator.rank == 1:
            raise ZeroDivisionError("on rank 1")
        communicator.all_reduce(np.ones(3))

    with pytest.raises(ZeroDivisionError, match="on rank 1"):
        on_threads(3, fail)
