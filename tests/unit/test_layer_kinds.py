"""Layers that differ from each other: in their heads, in their modules, and in whose keys and values they read."""

import numpy as np
import pytest
from support.build import random_adapter, random_model

from refimpl import Engine, Request, logits
from refimpl.adapter import Adapter
from refimpl.arrays import Precision
from refimpl.bench.cost import Step
from refimpl.bench.launches import launches
from refimpl.config import LayerKind, ModelConfig, Norms, Rope
from refimpl.errors import LoracleError, RequestError
from refimpl.kv_cache import KVCache
from refimpl.ops import NUMPY, REFERENCE, Ops
from refimpl.parallel.layout import Layout
from refimpl.training.trainable import check_trainable
from refimpl.unified_pool import UnifiedPool

WIDE = Rope(50.0, "proportional", partial_rotary_factor=0.5, head_dim=8)
SLIDING = LayerKind(3, Rope(20.0))
FULL = LayerKind(None, WIDE, head_dim=8, kv_heads=1, absent=("v_proj",))
OF_KEYS = ("k_proj", "v_proj", "k_norm", "v_norm")
CONFIG = ModelConfig(
    29, 12, 14, 5, 4, 2, 4, max_position_embeddings=64, attention_scale=1.0, layer_scalar=True,
    layers=(
        SLIDING,
        FULL,
        LayerKind(3, Rope(20.0), absent=OF_KEYS, kv_from=0, mlp_width=28),
        LayerKind(None, WIDE, head_dim=8, kv_heads=1, absent=OF_KEYS, kv_from=1),
        LayerKind(None, WIDE, head_dim=8, kv_heads=1, absent=OF_KEYS, kv_from=1),
    ),
    norms=Norms(q="q_norm", k="k_norm", v="v_norm", layer_input="input_norm"),
    hidden_size_per_layer_input=3,
    vocab_size_per_layer_input=31,
)  # fmt: skip
MODEL = random_model(CONFIG, 5)
ADAPTERS = [
    random_adapter(CONFIG, 1, modules=CONFIG.layer_modules),
    random_adapter(CONFIG, 2, r=1, modules=("v_proj", "per_layer_model_projection", "per_layer_input_gate", "lm_head")),
]
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], [2, 7, 1, 8, 2, 8], [11], [3, 1, 4, 1, 5, 9, 2, 6, 28]]


def test_a_layer_has_what_its_kind_says() -> None:
    assert CONFIG.modules_of(1)[:3] == ("q_proj", "k_proj", "o_proj")
    assert CONFIG.modules_of(2)[:2] == ("q_proj", "o_proj")
    assert CONFIG.shape((0, "q_proj")) == (16, 12) and CONFIG.shape((1, "q_proj")) == (32, 12)
    assert CONFIG.shape((1, "k_proj")) == (8, 12) and CONFIG.shape((2, "down_proj")) == (12, 28)
    assert (3, "k_proj") not in CONFIG.modules() and (0, "v_proj") in CONFIG.modules()


def test_the_cache_has_a_part_for_each_layer_with_keys_and_they_do_not_overlap() -> None:
    cache = KVCache(CONFIG, 3, 4, Precision("model", "float64"))
    assert [k.shape for k in cache.k] == [(3, 4, 2, 4), *[(3, 4, 1, 8), (3, 4, 2, 4)], *[(3, 4, 1, 8)] * 2]
    for value, part in enumerate((cache.k[0], cache.k[1], cache.v[0], cache.v[1]), 1):
        part[...] = value
    assert [float(x.mean()) for x in (*cache.k, *cache.v)] == [1, 2, 1, 2, 2, 3, 4, 3, 4, 4]
    assert cache.memory.size == sum(x.size for x in (cache.k[0], cache.k[1], cache.v[0], cache.v[1]))


def test_the_fast_form_is_the_definition() -> None:
    requests = [Request(prompt, adapter) for prompt, adapter in zip(PROMPTS, [None, *ADAPTERS, None], strict=True)]
    for fast, slow in zip(logits(MODEL, requests), logits(MODEL, requests, REFERENCE), strict=True):
        np.testing.assert_allclose(fast, slow, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("ops", [NUMPY, REFERENCE], ids=["numpy", "reference"])
@pytest.mark.parametrize("max_tokens", [3, 64])
def test_chunks_decoding_and_shared_prefixes_compute_what_one_prefill_does(ops: Ops, max_tokens: int) -> None:
    """Every row of every step is that of the whole text so far, in one batch without a cache. The second time, the
    prompts' blocks are there."""
    engine = Engine(MODEL, block_size=2, num_blocks=64, ops=ops, max_batch_tokens=max_tokens)
    chosen = [None, *ADAPTERS, None]
    blocks_found = 0
    for _ in range(2):
        numbers = [
            engine.add(Request(prompt, adapter, stop_ids=()), 4)
            for prompt, adapter in zip(PROMPTS, chosen, strict=True)
        ]
        texts = {number: list(prompt) for number, prompt in zip(numbers, PROMPTS, strict=True)}
        adapters = dict(zip(numbers, chosen, strict=True))
        while engine.busy:
            tokens = {token.request_id: token.token_id for token in engine.step()}
            for step in engine.last_step:
                blocks_found += step.blocks_found
                text = texts[step.request_id][: step.computed_before + step.tokens]
                expected = logits(MODEL, [Request(text, adapters[step.request_id])])[0][-1]
                np.testing.assert_allclose(step.logits, expected, rtol=1e-9, atol=1e-9)
            for number, token in tokens.items():
                texts[number].append(token)
    assert blocks_found >= 10


def test_what_needs_layers_that_are_alike_refuses_the_others() -> None:
    with pytest.raises(LoracleError, match="a unified pool needs layers that are alike"):
        UnifiedPool(MODEL, Precision("model", "float64"), NUMPY)
    with pytest.raises(LoracleError, match="such a model runs on one rank"):
        Layout(CONFIG, 0, 2)
    with pytest.raises(LoracleError, match="training: there are no gradients for a base with layers that differ"):
        check_trainable(CONFIG)
    with pytest.raises(LoracleError, match="launches: layers that read another's keys"):
        launches(CONFIG, {}, Step(1, 1, 4, 0), "float32")


def test_a_vocabulary_may_not_outgrow_the_inputs_of_the_layers() -> None:
    def grown(rows: int) -> Adapter:
        tables = {(-1, name): np.ones((rows, 12)) for name in ("embed_tokens", "lm_head")}
        return Adapter("grown", ADAPTERS[0].config, {}, tables)

    assert logits(MODEL, [Request([30], grown(31))])[0].shape == (1, 31)
    with pytest.raises(RequestError, match="extends the vocabulary to 32 ids; embed_tokens_per_layer has 31"):
        logits(MODEL, [Request([31], grown(32))])
