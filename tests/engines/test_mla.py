"""Multi-head latent attention against transformers' DeepSeek V2 and V3 with PEFT's LoRA, in float64: shapes as
Hypothesis draws them, every module of the attention, the expanded form and the absorbed one."""

import tempfile
from pathlib import Path
from typing import Any

import hugging_face as hf
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import refimpl
from refimpl.ops import ABSORBED

pytestmark = pytest.mark.filterwarnings("ignore:.*is the local path")  # PEFT saves where the base was

T = hf.transformers
MODULES = ("kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "q_proj", "q_a_proj", "q_b_proj")
PROMPTS = [[7, 1, 33, 9, 40, 2, 2, 15, 38, 3, 11, 5], [4, 8, 15, 16, 23], [42], list(range(3, 25)), [9, 9, 1]]
NAMES = ["first", hf.BASE, "second", "second", "first"]


@st.composite
def configs(draw: st.DrawFn) -> hf.Config:
    """A small model of either class; with YaRN, biases and a latent of queries, or without."""
    heads, layers = draw(st.integers(1, 4)), draw(st.integers(1, 2))
    keys: dict[str, Any] = {
        "vocab_size": 43,
        "hidden_size": heads * draw(st.sampled_from([5, 6])),
        "intermediate_size": 14,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": 64,
        "kv_lora_rank": draw(st.sampled_from([4, 8, 16])),  # even, as V2's view_as_complex needs it
        "q_lora_rank": draw(st.sampled_from([None, 1, 7])),
        "qk_nope_head_dim": draw(st.sampled_from([2, 6])),
        "qk_rope_head_dim": draw(st.sampled_from([2, 6])),
        "v_head_dim": draw(st.sampled_from([1, 4, 11])),
        "first_k_dense_replace": layers,
        "attention_bias": draw(st.booleans()),
        "rms_norm_eps": draw(st.sampled_from([1e-6, 1e-2])),
    }
    if draw(st.booleans()):
        yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": draw(st.sampled_from([1.5, 40.0]))}
        scales = draw(
            st.sampled_from([{}, {"mscale": 1.0, "mscale_all_dim": 1.0}, {"mscale": 0.5, "mscale_all_dim": 2.0}])
        )
        keys["rope_parameters"] = yarn | {"original_max_position_embeddings": 8} | scales
    return draw(st.sampled_from([T.DeepseekV2Config, T.DeepseekV3Config]))(**keys)


@settings(max_examples=6, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])  # slow to shrink
@given(config=configs(), modules=st.lists(st.sampled_from(MODULES), unique=True), seed=st.integers(0, 99))
def test_both_forms_equal_transformers_and_peft(config: hf.Config, modules: list[str], seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        base, folders = Path(folder, "base"), {}
        hf.write_model(config, base, seed)
        model = refimpl.load_model(base, "float64")
        some = [name for name in modules if name in model.config.qkv] or ["o_proj"]
        for name, targets in (("first", [*model.config.qkv, "o_proj"]), ("second", [*some, "lm_head"])):
            spec = hf.peft.LoraConfig(r=1 + len(targets) % 3, lora_alpha=5, target_modules=targets)
            folders[name] = Path(folder, name)
            hf.write_adapter(base, spec, folders[name], seed, copies=False)
        theirs = hf.alone(base, folders, PROMPTS, NAMES)
        ours = {name: refimpl.load_adapter(path, model.config) for name, path in folders.items()}
        requests = [refimpl.Request(prompt, ours.get(name)) for prompt, name in zip(PROMPTS, NAMES, strict=True)]
        for ops in (refimpl.NUMPY, ABSORBED):
            for row, expected in zip(refimpl.logits(model, requests, ops), theirs, strict=True):
                assert np.abs(row - expected).max() <= 1e-9 * np.abs(expected).max()
