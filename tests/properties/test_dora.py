"""DoRA in a mixed batch: each request gets the rows of a base whose every weight was stretched, whatever else is in the
batch, and nobody else's rows change."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.build import Case, adapters, as_dora, configs, random_adapter, random_model
from support.compare import assert_differ, assert_equal_to_rounding
from support.dense import dense_logits, merged
from support.serving import assert_as_if_alone, serve
from support.tables import every_table

from refimpl import NUMPY, REFERENCE, Model, Ops, Precision, Request, logits
from refimpl.adapter import Adapter
from refimpl.adapter_cache import AdapterCache
from refimpl.adapter_slots import bind_adapter
from refimpl.config import EMBED, LAYER_MODULES, LM_HEAD, ModelConfig
from refimpl.digest import digest
from refimpl.dora import dora_gain
from refimpl.errors import AdapterError, RequestError
from refimpl.tools.effect import effect
from refimpl.tools.merge import merged as merged_copy
from refimpl.tracing import trace

FIRST = (0, "q_proj")


@st.composite
def doras(draw: st.DrawFn, model: Model, seed: int) -> Adapter:
    """A DoRA; sometimes with biases of its own, or a table of its own below the LoRA of embed_tokens or lm_head."""
    config, rng = model.config, np.random.default_rng([seed, 79])
    dora = as_dora(draw(adapters(config, 1))[0], model, seed)
    biased = draw(st.lists(st.sampled_from(config.modules()[1:-1]), unique=True, max_size=3))
    biases = {module: 0.5 * rng.standard_normal(config.shape(module)[0]) for module in biased}
    tables = [module for module in (EMBED, LM_HEAD) if module in dora.lora and draw(st.booleans())]
    replaced = {module: rng.standard_normal(config.shape(module)) for module in tables}
    return replace(dora, name=f"dora-{seed}", biases=biases, replaced=replaced)


@st.composite
def dora_cases(draw: st.DrawFn) -> Case:
    """Two DoRAs and one that differs from the first in its magnitudes alone, among plain LoRA and the base."""
    config = draw(configs(max_layers=2))
    model = random_model(config, draw(st.integers(0, 99)))
    first, second = (draw(doras(model, seed)) for seed in (1, 2))
    louder = {module: replace(tensors, magnitude=1.5 * tensors.magnitude) for module, tensors in first.lora.items()}
    pool = [first, second, replace(first, name="dora-louder", lora=louder), *draw(adapters(config, 1))]
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    prefix = rng.integers(0, config.vocab_size, 4).tolist()
    order = draw(st.permutations([*pool, None, draw(st.sampled_from([None, *pool]))]))
    requests = [
        Request([*prefix, *rng.integers(0, config.vocab_size, draw(st.integers(0, 5))).tolist()], one, stop_ids=())
        for one in order
    ]
    return Case(model, pool, requests)


def check_dora_is_the_stretched_base(ops: Ops, case: Case) -> None:
    model, _, requests = case
    for got, request in zip(logits(model, requests, ops), requests, strict=True):
        assert_equal_to_rounding(got, dense_logits(merged(model, request), request.prompt_ids))


def check_dora_does_not_leak(ops: Ops, case: Case) -> None:
    """Those who did not ask for a DoRA get what they get without one in the batch."""
    model, _, requests = case
    others = [r for r in requests if r.adapter is None or not r.adapter.use_dora]
    mixed = logits(model, requests, ops)
    for request, expected in zip(others, logits(model, others, ops), strict=True):
        assert_equal_to_rounding(mixed[requests.index(request)], expected)


def check_dora_while_serving(ops: Ops, case: Case) -> None:
    """Chunks, few blocks, prefixes reused: the one that differs in its magnitudes alone must not find the others'."""
    model, _, requests = case
    engine, ids = serve(model, requests, ops, num_blocks=9, block_size=2, max_batch_tokens=7, prefix_caching=True)
    assert_as_if_alone(engine, ids, requests)


@every_table
@settings(max_examples=25)
@given(case=dora_cases())
def test_a_dora_request_gets_the_rows_of_the_stretched_base(ops: Ops, case: Case) -> None:
    check_dora_is_the_stretched_base(ops, case)


@every_table
@settings(max_examples=8)
@given(case=dora_cases())
def test_rows_of_other_requests_do_not_change(ops: Ops, case: Case) -> None:
    check_dora_does_not_leak(ops, case)


@every_table
@settings(max_examples=5)
@given(case=dora_cases())
def test_serving_keeps_magnitudes_apart(ops: Ops, case: Case) -> None:
    check_dora_while_serving(ops, case)


@settings(max_examples=15)
@given(case=dora_cases())
def test_merging_it_gives_the_same_logits(case: Case) -> None:
    model, pool, requests = case
    for adapter, request in zip(pool, requests, strict=False):
        served = logits(model, [replace(request, adapter=adapter)])[0]
        copy = logits(merged_copy(model, adapter), [replace(request, adapter=None)])[0]
        assert_equal_to_rounding(copy, served)


@settings(max_examples=15)
@given(case=dora_cases())
def test_the_trace_and_the_effect_are_what_it_adds(case: Case) -> None:
    model, pool, requests = case
    request = next(r for r in requests if r.adapter is pool[1])
    with trace("*.base", "*.lora", "lm_head.*", "logits") as t:
        logits(model, [request])
    assert_equal_to_rounding(t["lm_head.base"] + t["lm_head.lora"], t["logits"])
    ratios = effect(model, pool[1], request.prompt_ids)
    assert ratios.keys() == pool[1].lora.keys()
    assert all(np.isfinite(ratio) and ratio > 0 for ratio in ratios.values())


CONFIG = ModelConfig(13, 12, 20, 2, 4, 2, 8, attention_bias=True)
MODEL = random_model(CONFIG, 0)


@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (3, 7)])
def test_the_gain_is_the_length_of_each_row(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    W, A, B = rng.standard_normal(shape), rng.standard_normal((2, shape[1])), rng.standard_normal((shape[0], 2))
    magnitude = rng.standard_normal(shape[0])
    expected = [magnitude[i] / np.sqrt(sum((W[i] + 1.5 * B[i] @ A) ** 2)) for i in range(shape[0])]
    for block in (1, 6, 1 << 22):  # one row at a time, two, all
        monkeypatch.setattr("refimpl.dora.BLOCK", block)
        np.testing.assert_allclose(dora_gain(W, A, B, 1.5, magnitude, FIRST), expected, rtol=1e-14)


def test_magnitudes_that_are_the_lengths_of_the_rows_leave_plain_lora() -> None:
    plain = random_adapter(CONFIG, 1, modules=(*LAYER_MODULES, "embed_tokens", "lm_head"))
    bound, lora = bind_adapter(plain, CONFIG), {}
    for module, tensors in plain.lora.items():
        W = MODEL.linear(module).weight
        delta = bound.lora[module].scale * tensors.B @ tensors.A
        lengths = np.linalg.norm(W.T + delta if module == EMBED else W + delta, axis=1)
        lora[module] = replace(tensors, magnitude=lengths)
    as_loaded, as_plain = logits(MODEL, [Request([1, 2, 3], one) for one in (replace(plain, lora=lora), plain)])
    assert_equal_to_rounding(as_loaded, as_plain)


def test_a_row_without_length_is_refused_by_name_and_the_slot_stays_as_it_was() -> None:
    plain = random_adapter(CONFIG, 1)
    weight = MODEL.linear(FIRST).weight.copy()
    weight[5] = 0
    linears = {**MODEL.layers[0].linears, FIRST[1]: replace(MODEL.linear(FIRST), weight=weight)}
    layer = replace(MODEL.layers[0], linears=linears)
    model = replace(MODEL, layers=(layer, MODEL.layers[1]))
    tensors = plain.lora[FIRST]
    B = tensors.B.copy()
    B[5] = 0
    dora = as_dora(replace(plain, lora={FIRST: replace(tensors, B=B)}), model, 1)
    cache = AdapterCache(model, Precision("model", "float64"), NUMPY, capacity=2)
    slot = cache.acquire(plain)
    with pytest.raises(AdapterError, match=r"model.layers.0.self_attn.q_proj: row 5 of W \+ scale B A is zero"):
        cache.acquire(dora)
    assert cache.slots.slots == {slot} and cache.slot_of == {plain: slot}


@pytest.mark.parametrize("weights", [(0.5,), (1.0, 1.0), (1.0, 0.5)])
def test_it_is_neither_weighted_nor_summed(weights: tuple[float, ...]) -> None:
    plain = random_adapter(CONFIG, 1)
    pairs = list(zip([as_dora(plain, MODEL, 1), plain], weights, strict=False))
    with pytest.raises(RequestError, match="adapter adapter-1 is DoRA: it can be neither summed nor weighted"):
        logits(MODEL, [Request([1], pairs)])
    alone = logits(MODEL, [Request([1], pairs[0][0]), Request([1], [(pairs[0][0], 1.0)])])
    assert np.array_equal(*alone)


def test_the_digest_knows_the_magnitude_and_that_of_plain_lora_is_what_it_was() -> None:
    plain = random_adapter(CONFIG, 1)
    doras = [as_dora(plain, MODEL, seed) for seed in (1, 2)]
    assert len({digest(bind_adapter(one, CONFIG)) for one in (plain, *doras)}) == 3


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("preset", ["model", "transformers"])
def test_both_forms_round_alike(dtype: str, preset: str) -> None:
    """Bit for bit but where a float32 sum in another order falls to the other side of a tie: a share of the rows."""
    model = random_model(CONFIG, 1, dtype)
    wide = random_model(CONFIG, 1)
    dora = as_dora(random_adapter(CONFIG, 1, modules=("embed_tokens", "q_proj")), wide, 1)
    p = Precision(preset, dtype)
    with trace("embed_tokens.*", "layers.0.q_proj.*") as t:
        for ops in (NUMPY, REFERENCE):
            logits(model, [Request([3, 5, 12, 7], dora)], ops, p)
    for name in ("embed_tokens.lora", "layers.0.q_proj.lora"):
        fast, definition = np.split(t[name], 2)
        assert_differ(fast, 0 * fast + 1)
        assert np.mean(fast != definition) < 0.1
