"""Multi-head latent attention, expanded and absorbed, with LoRA on every module of it: three forms are one."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from support.build import Case, as_dora, random_adapter, random_model
from support.compare import assert_differ, assert_equal_to_rounding
from support.dense import merged
from support.latent import dense_latent_logits, latent_cases, latent_config, without
from support.serving import assert_as_if_alone, finish, serve

from refimpl import NUMPY, REFERENCE, Engine, Ops, Request, logits
from refimpl.arrays import Array
from refimpl.bench import cost
from refimpl.config import Mla
from refimpl.errors import LoracleError
from refimpl.kv_cache import KVCache
from refimpl.ops import ABSORBED
from refimpl.parallel.layout import Layout
from refimpl.training import examples
from refimpl.training.lora_config import LoraConfig
from refimpl.unified_pool import UnifiedPool

FORMS = pytest.mark.parametrize("ops", [NUMPY, REFERENCE, ABSORBED], ids=["numpy", "reference", "absorbed"])
WIDE = Mla(heads=4, kv_lora_rank=6, qk_nope_head_dim=5, qk_rope_head_dim=4, v_head_dim=7, q_lora_rank=3)


def check_merged(ops: Ops, case: Case) -> None:
    for got, request in zip(logits(case.model, case.requests, ops), case.requests, strict=True):
        assert_equal_to_rounding(got, dense_latent_logits(merged(case.model, request), request.prompt_ids))


@FORMS
@settings(max_examples=10)
@given(case=latent_cases())
def test_each_form_is_the_dense_model_with_merged_adapters(ops: Ops, case: Case) -> None:
    check_merged(ops, case)


@settings(max_examples=30)
@given(case=latent_cases())
def test_absorbed_equals_expanded_in_mixed_batches(case: Case) -> None:
    for got, expected in zip(*(logits(case.model, case.requests, ops) for ops in (ABSORBED, NUMPY)), strict=True):
        assert_equal_to_rounding(got, expected, 1e-12)


@FORMS
@settings(max_examples=4)
@given(case=latent_cases())
def test_chunks_and_decode_out_of_blocks_are_as_if_alone(ops: Ops, case: Case) -> None:
    """Prompts in pieces, blocks of two tokens, prefixes found again: as each request alone, and as a whole prefill."""
    model, _, requests = case
    engine, first = serve(model, requests, ops, block_size=2, max_batch_tokens=5, max_running=2, num_blocks=60)
    before = engine.watch.hits
    second = [engine.add(request, 4) for request in requests]
    finish(engine)
    assert engine.watch.hits > before
    assert_as_if_alone(engine, [*first, *second], [*requests, *requests])


@settings(max_examples=4)
@given(case=latent_cases())
def test_absorbed_serves_what_expanded_serves(case: Case) -> None:
    """Every row of logits on the way, of prompts in pieces and of decode steps."""
    model, _, requests = case
    watches = [
        serve(model, requests, ops, block_size=3, max_batch_tokens=4, num_blocks=90)[0].watch
        for ops in (ABSORBED, NUMPY)
    ]
    assert watches[0].tokens == watches[1].tokens
    for i, rows in watches[1].rows.items():
        for (position, got), (same, expected) in zip(watches[0].rows[i], rows, strict=True):
            assert position == same
            assert_equal_to_rounding(got, expected, 1e-11)


@FORMS
def test_an_adapter_of_kv_b_proj_alone_shows_in_keys_and_in_values(ops: Ops) -> None:
    """And in a decode step too, whose keys were cached before: that is where engines lose it."""
    model = random_model(latent_config(4, WIDE))
    adapter = random_adapter(model.config, 1, modules=("kv_b_proj",))
    halves = {"key": np.arange(12) < 5, "value": np.arange(12) >= 5}
    rows = {}
    for name, kept in halves.items():
        kept_rows = np.tile(kept, 4)[:, None]
        lora = {module: replace(x, B=np.where(kept_rows, x.B, 0)) for module, x in adapter.lora.items()}
        rows[name] = decoded(model, replace(adapter, lora=lora), ops)
    rows |= {"both": decoded(model, adapter, ops), "none": decoded(model, without(adapter, "kv_b_proj"), ops)}
    for one, other in (("key", "none"), ("value", "none"), ("both", "key"), ("both", "value")):
        assert_differ(rows[one][0], rows[other][0])
        assert_differ(rows[one][-1], rows[other][-1])


def decoded(model: object, adapter: object, ops: Ops) -> list[Array]:
    """The logits after a prompt, and after each of three tokens."""
    engine, _ = serve(model, [Request([3, 14, 15, 9, 2, 6], adapter, stop_ids=())], ops, block_size=4)
    return [row for _, row in engine.watch.rows[0]]


def test_one_latent_for_all_heads_is_all_that_the_absorbed_form_keeps() -> None:
    config = latent_config(4, WIDE)
    expanded, absorbed = (KVCache(config, 3, 2, kv_shape=ops.latent.kv_shape) for ops in (NUMPY, ABSORBED))
    assert expanded.memory.size == 2 * 6 * 4 * (9 + 7)  # layers, tokens, heads, a key and a value
    assert absorbed.memory.size == 2 * 6 * (4 + 6)  # layers, tokens, what turns and the latent
    assert cost.kv_parameters(config) * 6 == expanded.memory.size
    assert absorbed.v[0].shape == (3, 2, 1, 6) and np.shares_memory(absorbed.v[1], absorbed.k[1])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types_lie_as_near_as_the_rounding_allows(dtype: str) -> None:
    """The two forms round in other places, and are as far from the exact numbers as one another."""
    model, half = (random_model(latent_config(4, WIDE), 5, kind) for kind in ("float64", dtype))
    adapter = random_adapter(model.config, 5, modules=model.config.layer_modules)
    request = [Request(list(range(20)), adapter)]
    exact = logits(model, request)[0]
    errors = [np.sqrt(np.mean((logits(half, request, ops)[0] - exact) ** 2)) for ops in (NUMPY, ABSORBED)]
    assert 0.3 < errors[0] / errors[1] < 3
    assert 0 < errors[0] < {"float16": 0.02, "bfloat16": 0.15}[dtype] * np.abs(exact).max()


def test_a_dora_of_kv_b_proj_is_stretched_on_both_sides() -> None:
    model = random_model(latent_config(4, WIDE), 2)
    adapter = as_dora(random_adapter(model.config, 3, modules=("kv_b_proj", "o_proj")), model, 1)
    requests = [Request([1, 2, 3, 4, 5], adapter), Request([5, 4, 3])]
    for got, request in zip(logits(model, requests, ABSORBED), requests, strict=True):
        assert_equal_to_rounding(got, dense_latent_logits(merged(model, request), request.prompt_ids))


def test_an_alora_of_kv_b_proj_is_expanded_or_refused() -> None:
    """Its keys and values before the invocation are the base's, after it the adapter's."""
    model = random_model(latent_config(4, WIDE), 2)
    plain = random_adapter(model.config, 3, modules=("kv_b_proj", "o_proj"))
    adapter = replace(plain, config=replace(plain.config, alora_invocation_tokens=(3, 4)))
    prompt = [1, 2, 3, 4, 5]
    got, base, whole = (logits(model, [Request(prompt, one)])[0] for one in (adapter, None, plain))
    assert_equal_to_rounding(got[:2], base[:2])
    assert_differ(got[2:], whole[2:])
    with pytest.raises(LoracleError, match="ops absorbed: adapter adapter-3 is an aLoRA with LoRA on kv_b_proj"):
        logits(model, [Request(prompt, adapter)], ABSORBED)
    others = without(adapter, "kv_b_proj")
    requests = [Request(prompt, others), Request(prompt, plain)]
    for one, other in zip(logits(model, requests, ABSORBED), logits(model, requests), strict=True):
        assert_equal_to_rounding(one, other)


def test_what_cannot_be_done_is_refused_in_one_line() -> None:
    model = random_model(latent_config(4, WIDE), 0, "float32")
    with pytest.raises(LoracleError, match=r"multi-head latent attention is not shared among ranks: .* runs on 1"):
        Layout(model.config, 0, 2)
    assert Layout(model.config, 0, 1).size == 1
    with pytest.raises(LoracleError, match="mine: there are no gradients for a base with multi-head latent attention"):
        examples.check_task(examples.Task("mine", LoraConfig(), ()), model.config)
    with pytest.raises(LoracleError, match="keys and values of a block are of several widths"):
        Engine(model, pool=UnifiedPool)
