"""Configurations that hypothesis draws, against transformers and PEFT in float64: the families whose layers differ in
shape, and those with LayerNorm."""

import tempfile
from pathlib import Path
from typing import Any

import hugging_face as hf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refimpl

pytestmark = pytest.mark.filterwarnings("ignore:.*is the local path")  # PEFT saves where the base was

T = hf.transformers
PROMPTS = [[7, 1, 3, 9, 20, 2, 2, 15, 8, 3, 11, 5], [4, 8, 15], [21]]


@st.composite
def sizes(draw: st.DrawFn) -> dict[str, Any]:
    """What every family has. hidden_size is what head_dim means where a class has no key for it."""
    kv_heads, group, head_dim = (
        draw(st.sampled_from([1, 2, 3])),
        draw(st.sampled_from([1, 2])),
        4 * draw(st.integers(1, 3)),
    )
    return {
        "vocab_size": 23,
        "hidden_size": kv_heads * group * head_dim,
        "intermediate_size": draw(st.integers(3, 20)),
        "num_hidden_layers": draw(st.integers(1, 5)),
        "num_attention_heads": kv_heads * group,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": 64,
        "sliding_window": draw(st.integers(2, 8)),
        "tie_word_embeddings": draw(st.booleans()),
        "pad_token_id": 0,
    }


@st.composite
def gemma4(draw: st.DrawFn) -> hf.Config:
    """Layers of two kinds in any order that ends in a full one; the last of them may share keys and values."""
    keys = draw(sizes())
    kinds = [*draw(st.lists(st.sampled_from(["sliding_attention", "full_attention"]), max_size=4)), "full_attention"]
    # So many may share: each must have one of its kind before all of them.
    most = sum(set(kinds[:first]) == set(kinds) for first in range(1, len(kinds)))
    keys |= {
        "layer_types": kinds,
        "num_hidden_layers": len(kinds),
        "global_head_dim": 4 * draw(st.integers(1, 4)),
        "attention_k_eq_v": draw(st.booleans()),
        "num_global_key_value_heads": draw(st.sampled_from([1, keys["num_attention_heads"]])),
        "num_kv_shared_layers": draw(st.integers(0, most)),
        "use_double_wide_mlp": draw(st.booleans()),
        "vocab_size_per_layer_input": 23 + draw(st.integers(0, 3)),
        "attention_bias": draw(st.booleans()),
        "final_logit_softcapping": draw(st.sampled_from([None, 3.0])),
    }
    # Without inputs, transformers 5.24 fails on a prefill of layers that share.
    keys["hidden_size_per_layer_input"] = draw(st.integers(1 if keys["num_kv_shared_layers"] else 0, 5))
    return T.Gemma4TextConfig(**keys)


@st.composite
def exaone4(draw: st.DrawFn) -> hf.Config:
    """With a window in all layers but every n-th, or without."""
    keys = draw(sizes())
    if draw(st.booleans()):
        return T.Exaone4Config(**keys, sliding_window_pattern=draw(st.integers(1, 4)))
    return T.Exaone4Config(
        **keys | {"sliding_window": None, "layer_types": ["full_attention"] * keys["num_hidden_layers"]}
    )


@st.composite
def cohere2(draw: st.DrawFn) -> hf.Config:
    keys = draw(sizes())
    del keys["head_dim"]
    kinds = st.sampled_from(["sliding_attention", "full_attention"])
    count = keys["num_hidden_layers"]
    keys["layer_types"] = draw(st.lists(kinds, min_size=count, max_size=count))
    return T.Cohere2Config(**keys, logit_scale=draw(st.sampled_from([0.25, 0.3])), attention_bias=draw(st.booleans()))


@st.composite
def starcoder2(draw: st.DrawFn) -> hf.Config:
    keys = draw(sizes())
    del keys["head_dim"]
    keys["sliding_window"] = draw(st.sampled_from([None, keys["sliding_window"]]))
    return T.Starcoder2Config(**keys, use_bias=draw(st.booleans()))


@st.composite
def nemotron(draw: st.DrawFn) -> hf.Config:
    keys = draw(sizes())
    del keys["sliding_window"]
    biases = {"attention_bias": draw(st.booleans()), "mlp_bias": draw(st.booleans())}
    return T.NemotronConfig(**keys, **biases, partial_rotary_factor=draw(st.sampled_from([0.5, 1.0])))


FAMILIES = {
    "gemma4": gemma4(),
    "exaone4": exaone4(),
    "cohere2": cohere2(),
    "starcoder2": starcoder2(),
    "nemotron": nemotron(),
}


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=5, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**16))
def test_any_configuration_equals_transformers(family: str, data: st.DataObject, seed: int) -> None:
    config = data.draw(FAMILIES[family])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        hf.write_model(config, folder / "base", seed)
        base = refimpl.load_model(folder / "base", "float64")
        modules = [name for name in (*base.config.layer_modules, "lm_head") if data.draw(st.booleans())] or ["q_proj"]
        hf.write_adapter(
            folder / "base", hf.peft.LoraConfig(r=2, lora_alpha=3, target_modules=modules), folder / "one", seed
        )
        names = [hf.BASE, "one", "one"]
        theirs = hf.alone(folder / "base", {"one": folder / "one"}, PROMPTS, names)
        adapter = refimpl.load_adapter(folder / "one", base.config)
        requests = [refimpl.Request(p, None if n == hf.BASE else adapter) for p, n in zip(PROMPTS, names, strict=True)]
        for row, expected in zip(refimpl.logits(base, requests), theirs, strict=True):
            assert np.abs(row - expected).max() <= 1e-9 * np.abs(expected).max()
