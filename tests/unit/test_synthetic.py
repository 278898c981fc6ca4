"""Random models and adapters: in the order in which committed seeds draw, as large as they say, exact where asked."""

from dataclasses import replace

import numpy as np
import pytest

from refimpl import LoracleError
from refimpl.adapter import PeftConfig
from refimpl.adapter_slots import scale_of
from refimpl.arrays import DTYPES
from refimpl.config import EMBED, LAYER_MODULES, LM_HEAD, ModelConfig
from refimpl.engines.interface import Capabilities
from refimpl.oracle.cases.variety import random_adapters, random_config
from refimpl.oracle.vectors.draw import on_grid
from refimpl.synthetic.adapters import (
    LORA_BIAS,
    STRENGTH,
    gain_of,
    gain_of_random_models,
    own_layer,
    random_adapter,
    with_own_biases,
    with_own_layers,
)
from refimpl.synthetic.models import FORWARD_ORDER, HEAD_GAIN, NORMS_FIRST, Recipe, random_model

CONFIG = ModelConfig(60, 48, 80, 1, 4, 2, 16, attention_bias=True)
WIDTHS = {
    "q": (64, 48),
    "k": (32, 48),
    "v": (32, 48),
    "o": (48, 64),
    "gate": (80, 48),
    "up": (80, 48),
    "down": (48, 80),
}


class Recorder:
    """A generator that remembers which shapes it drew."""

    def __init__(self) -> None:
        self.rng, self.shapes = np.random.default_rng(0), []

    def standard_normal(self, shape: tuple[int, ...], dtype: type = float) -> np.ndarray:
        self.shapes.append(shape)
        return self.rng.standard_normal(shape, dtype)


def shapes_of(*names: str) -> list[tuple[int, ...]]:
    """The shapes of these linear layers, each of attention followed by its bias."""
    return [s for name in names for s in (WIDTHS[name], *((WIDTHS[name][:1],) if name in "qkvo" else ()))]


@pytest.mark.parametrize("tied", [False, True])
def test_arrays_are_drawn_in_the_order_of_the_recipe(tied: bool) -> None:
    """Another order is other numbers for every committed seed."""
    norm, vocab, config = (48,), (60, 48), replace(CONFIG, tie_word_embeddings=tied)
    ends = [vocab] if tied else [vocab, vocab]
    oracle, vectors = Recorder(), Recorder()
    random_model(config, oracle, "float32")
    random_model(config, vectors, "float32", FORWARD_ORDER)
    assert oracle.shapes == [norm, norm, *shapes_of(*WIDTHS), *ends, norm]
    assert vectors.shapes == [norm, *shapes_of(*"qkvo"), norm, *shapes_of("gate", "up", "down"), *ends, norm]


def test_the_first_of_the_ends_is_drawn_first_and_is_both_where_they_are_tied() -> None:
    sizes = {"embed_tokens": 1.0, "lm_head": HEAD_GAIN / np.sqrt(CONFIG.hidden_size)}
    for recipe in (NORMS_FIRST, FORWARD_ORDER):
        model = random_model(CONFIG, np.random.default_rng(0), "float64", recipe)
        tied = random_model(replace(CONFIG, tie_word_embeddings=True), np.random.default_rng(0), "float64", recipe)
        assert tied.lm_head.weight is tied.embed_tokens
        assert np.array_equal(
            tied.embed_tokens, model.lm_head.weight if recipe.ends[0] == "lm_head" else model.embed_tokens
        )
        assert tied.embed_tokens.std() == pytest.approx(sizes[recipe.ends[0]], rel=0.1)


def test_a_recipe_in_float32_draws_in_float32() -> None:
    model = random_model(CONFIG, np.random.default_rng(0), "float64", Recipe(number=np.float32))
    assert all(np.array_equal(x, x.astype(np.float32)) for x in model.arrays() if len(x) == CONFIG.vocab_size)


def test_activations_stay_near_1() -> None:
    model = random_model(CONFIG, np.random.default_rng(0), "float64")
    x = np.random.default_rng(1).standard_normal((500, CONFIG.hidden_size))
    for name in ("q_proj", "gate_proj"):
        assert (x @ model.linear((0, name)).weight.T).std() == pytest.approx(1, rel=0.1)
    assert (x @ model.lm_head.weight.T).std() == pytest.approx(HEAD_GAIN, rel=0.1)


@pytest.mark.parametrize("peft", [
    PeftConfig(6, 10.0, target_modules=(*LAYER_MODULES, "embed_tokens", "lm_head"), lora_bias=True),
    PeftConfig(3, 500.0, use_rslora=True, target_modules=("q_proj", "embed_tokens")),
    PeftConfig(1, -0.1, False, {"q_proj": 20}, {"q_proj": 0.3}, target_modules=("q_proj", "k_proj")),
])  # fmt: skip
def test_a_delta_is_half_of_what_the_base_computes_whatever_its_scale_is(peft: PeftConfig) -> None:
    base, sizes = random_model(CONFIG, np.random.default_rng(0), "float64"), []
    for gain in (gain_of(base), gain_of_random_models):
        adapter = random_adapter(CONFIG, peft, "any", np.random.default_rng(1), gain)
        assert {name for _, name in adapter.lora} == set(peft.target_modules)
        for module, lora in adapter.lora.items():
            W = base.linear(module).weight.T if module == EMBED else base.linear(module).weight
            r = 20 if module[1] in peft.rank_pattern else peft.r
            assert lora.A.shape == (r, W.shape[1]) and lora.B.shape == (len(W), r)
            delta = scale_of(peft, module, r) * lora.B @ lora.A
            sizes.append(np.linalg.norm(delta) / np.linalg.norm(W))
            assert sizes[-1] == pytest.approx(STRENGTH, rel=0.9)  # of a rank of 1, its one sample
            assert (lora.bias is not None) == (peft.lora_bias and module != EMBED)
            if lora.bias is not None:
                added = scale_of(peft, module, r) * lora.bias
                assert np.abs(added).mean() == pytest.approx(0.8 * LORA_BIAS * gain(module), rel=0.5)
    assert np.mean(sizes) == pytest.approx(STRENGTH, rel=0.15)


def test_snapped_numbers_are_exact_in_every_type() -> None:
    model = random_model(CONFIG, np.random.default_rng(0), "float32", FORWARD_ORDER, on_grid)
    peft = PeftConfig(3, 5.0, target_modules=LAYER_MODULES, lora_bias=True)
    adapter = random_adapter(CONFIG, peft, "any", np.random.default_rng(1), snap=on_grid)
    layer = own_layer(model.embed_tokens, np.random.default_rng(2), 2, 0.8, 0.6, 1.0, on_grid)
    arrays = [x for lora in adapter.lora.values() for x in (lora.A, lora.B, lora.bias)]
    for x in (*model.arrays(), *arrays, layer):
        for dtype in ("float16", "bfloat16"):
            assert np.array_equal(x.astype(DTYPES[dtype]).astype(np.float32), x)


def test_own_layers_are_the_bases_changed_by_half_and_rows_of_their_own_for_extra_tokens() -> None:
    base = random_model(CONFIG, np.random.default_rng(0), "float32")
    peft = PeftConfig(3, 5.0, target_modules=("v_proj", "lm_head"))
    adapter = random_adapter(CONFIG, peft, "any", np.random.default_rng(1))
    longer = with_own_layers(base, adapter, (EMBED, LM_HEAD), np.random.default_rng(2), extra=3)
    assert longer.config.modules_to_save == ("embed_tokens", "lm_head") and set(longer.lora) == {(0, "v_proj")}
    for module, layer in longer.replaced.items():
        weight = base.linear(module).weight
        assert layer.shape == (63, 48) and layer.dtype == np.float32
        assert (layer[:60] - weight).std() == pytest.approx(STRENGTH * weight.std(), rel=0.1)
        assert layer[60:].std() == pytest.approx(STRENGTH * weight.std(), rel=0.3)
    biased = with_own_biases(base, adapter, np.random.default_rng(3))
    assert {name for _, name in biased.biases} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert biased.config.bias == "all" and all(x.any() for x in biased.biases.values())


def test_an_engine_that_takes_no_adapter_in_a_layer_gets_a_clear_line() -> None:
    base = random_model(CONFIG, np.random.default_rng(0), "float32")
    with pytest.raises(LoracleError, match="no module of the model's layers is among lm_head, query_key_value"):
        random_adapters(base, np.random.default_rng(0), Capabilities(modules=("lm_head", "query_key_value")), 1)


def test_bases_have_heads_of_a_size_that_the_engine_serves() -> None:
    """vLLM's attention on a CPU has none of 16: most of its checks on random bases ended with exit 2."""
    any_size = [random_config(np.random.default_rng(i), Capabilities(), i) for i in range(12)]
    of_32 = [random_config(np.random.default_rng(i), Capabilities(head_dims=(32,)), i) for i in range(12)]
    assert {config.head_dim for config in any_size} == {16, 32} and {config.head_dim for config in of_32} == {32}
    assert [config.num_attention_heads for config in any_size] == [config.num_attention_heads for config in of_32]
