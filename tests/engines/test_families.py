"""Every family that loads, against transformers and PEFT in float64: the base, and LoRA on every linear layer.

transformers makes the model and writes it, PEFT makes the adapters; both sides read the same folders. One flat batch of
requests with different adapters is compared with transformers, which runs each alone."""

from pathlib import Path
from typing import Any

import hugging_face as hf
import numpy as np
import pytest
import test_experts

import refimpl
from refimpl.families import FAMILIES

pytestmark = pytest.mark.filterwarnings("ignore:.*is the local path")  # PEFT saves where the base was

T = hf.transformers
SIZES = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
YARN = {"rope_type": "yarn", "rope_theta": 5e4, "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.1],
    "long_factor": [1.5, 3.0],
    "partial_rotary_factor": 0.75,
}
MULTIPLIERS = {
    "attention_multiplier": 0.3,
    "embedding_multiplier": 2.5,
    "residual_multiplier": 0.4,
    "logits_scaling": 6.0,
}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 10,
    "q_lora_rank": 9,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 5,
    "first_k_dense_replace": 4,
}

GEMMA4 = {
    "head_dim": 8,
    "global_head_dim": 16,
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 61,
}

# A name, the class of its config, and what differs from SIZES. Each rule of a family is in one of them at least.
CASES: dict[str, tuple[type, dict[str, Any]]] = {
    "llama yarn": (T.LlamaConfig, {"rope_parameters": YARN | {"truncate": False}}),
    "llama yarn mscale": (T.LlamaConfig, {"rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 1.2}}),
    "llama proportional": (
        T.LlamaConfig,
        {
            "rope_parameters": {
                "rope_type": "proportional",
                "rope_theta": 1e3,
                "partial_rotary_factor": 0.5,
                "factor": 3.0,
            }
        },
    ),
    "qwen2": (T.Qwen2Config, {}),
    "qwen2 window": (T.Qwen2Config, {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}),
    "qwen2 yarn": (T.Qwen2Config, {"rope_parameters": YARN, "tie_word_embeddings": True}),
    "qwen3": (T.Qwen3Config, {"head_dim": 8}),
    "qwen3 biases": (T.Qwen3Config, {"head_dim": 10, "attention_bias": True, "tie_word_embeddings": True}),
    "phi3": (T.Phi3Config, {"sliding_window": 6}),
    "phi3 partial": (
        T.Phi3Config,
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.75}},
    ),
    "phi3 longrope": (T.Phi3Config, {"rope_parameters": LONG, "original_max_position_embeddings": 14}),
    "gemma": (T.GemmaConfig, {"head_dim": 10}),
    "gemma untied": (T.GemmaConfig, {"head_dim": 10, "tie_word_embeddings": False, "attention_bias": True}),
    "gemma2": (T.Gemma2Config, {"head_dim": 10, "query_pre_attn_scalar": 7, "sliding_window": 5}),
    "gemma2 caps": (
        T.Gemma2Config,
        {"head_dim": 8, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "num_hidden_layers": 3},
    ),
    "gemma3": (T.Gemma3TextConfig, {"head_dim": 8, "sliding_window": 4, "sliding_window_pattern": 3}),
    "gemma3 linear": (
        T.Gemma3TextConfig,
        {
            "head_dim": 8,
            "query_pre_attn_scalar": 5,
            "sliding_window": 4,
            "num_hidden_layers": 7,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
            },
        },
    ),
    "granite": (T.GraniteConfig, MULTIPLIERS),
    "granite biases": (T.GraniteConfig, {**MULTIPLIERS, "attention_bias": True, "mlp_bias": True}),
    "granite4": (
        T.GraniteMoeHybridConfig,
        {
            **MULTIPLIERS,
            "num_local_experts": 0,
            "shared_intermediate_size": 44,
            "position_embedding_type": "rope",
            "layer_types": ["full_attention"] * 4,
            "mamba_n_heads": 6,
        },
    ),
    "granite4 without rope": (
        T.GraniteMoeHybridConfig,
        {
            **MULTIPLIERS,
            "num_local_experts": 0,
            "shared_intermediate_size": 44,
            "position_embedding_type": None,
            "layer_types": ["full_attention"] * 4,
            "mamba_n_heads": 6,
        },
    ),
    "smollm3": (T.SmolLM3Config, {}),
    "smollm3 layers": (
        T.SmolLM3Config,
        {"no_rope_layers": [0, 1, 1, 0], "use_sliding_window": True, "sliding_window": 5, "attention_bias": True},
    ),
    "olmo2": (T.Olmo2Config, {}),
    "olmo2 biases": (T.Olmo2Config, {"attention_bias": True, "rope_parameters": LLAMA3}),
    "olmo3": (T.Olmo3Config, {"sliding_window": 5}),
    "olmo3 yarn": (
        T.Olmo3Config,
        {
            "sliding_window": 5,
            "rope_parameters": {
                "full_attention": YARN,
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e4},
            },
        },
    ),
    "ministral3": (
        T.Ministral3Config,
        {"head_dim": 8, "rope_parameters": YARN | {"llama_4_scaling_beta": 0.3, "original_max_position_embeddings": 5}},
    ),
    "ministral3 window": (T.Ministral3Config, {"head_dim": 8, "sliding_window": 7}),
    "glm4": (T.Glm4Config, {"head_dim": 8}),
    "glm4 whole": (
        T.Glm4Config,
        {
            "head_dim": 8,
            "attention_bias": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0},
        },
    ),
    "seed": (T.SeedOssConfig, {"head_dim": 8, "attention_dropout": 0.0, "residual_dropout": 0.0}),
    "seed biases": (
        T.SeedOssConfig,
        {
            "head_dim": 8,
            "attention_dropout": 0.0,
            "residual_dropout": 0.0,
            "attention_bias": False,
            "attention_out_bias": True,
            "mlp_bias": True,
        },
    ),
    "ernie": (T.Ernie4_5Config, {"head_dim": 8}),
    "ernie biases": (T.Ernie4_5Config, {"head_dim": 6, "use_bias": True, "tie_word_embeddings": False}),
    "hunyuan": (T.HunYuanDenseV1Config, {"head_dim": 8}),
    "hunyuan alpha": (
        T.HunYuanDenseV1Config,
        {"head_dim": 8, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "alpha": 50.0, "factor": 1.0}},
    ),
    "deepseek_v2": (T.DeepseekV2Config, LATENT | {"rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 0.7}}),
    "deepseek_v2 biases": (T.DeepseekV2Config, LATENT | {"attention_bias": True, "mlp_bias": True}),
    "deepseek_v3": (T.DeepseekV3Config, LATENT | {"rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 1.2}}),
    "deepseek_v3 without q latent": (
        T.DeepseekV3Config,
        LATENT | {"q_lora_rank": None, "attention_bias": True, "rope_interleave": False},
    ),
}
CASES |= {
    "gemma4": (T.Gemma4TextConfig, GEMMA4),
    "gemma4 k is v": (T.Gemma4TextConfig, {**GEMMA4, "attention_k_eq_v": True, "num_global_key_value_heads": 1}),
    "gemma4 inputs": (
        T.Gemma4TextConfig,
        {
            **GEMMA4,
            "hidden_size_per_layer_input": 6,
            "num_kv_shared_layers": 2,
            "use_double_wide_mlp": True,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma4 shared k is v": (
        T.Gemma4TextConfig,
        {
            **GEMMA4,
            "num_hidden_layers": 7,
            "layer_types": None,
            "attention_k_eq_v": True,
            "num_kv_shared_layers": 1,
            "hidden_size_per_layer_input": 4,  # without, transformers 5.24 fails on a prefill of shared layers
            "vocab_size_per_layer_input": 70,
            "attention_bias": True,
            "tie_word_embeddings": False,
            "rope_parameters": {
                "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 1e4},
                "sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
            },
        },
    ),
}
CASES |= {
    "exaone4": (T.Exaone4Config, {"sliding_window": 4}),
    "exaone4 small": (T.Exaone4Config, {"sliding_window": None, "layer_types": ["full_attention"] * 4}),
    "cohere2": (T.Cohere2Config, {"sliding_window": 4, "logit_scale": 0.3}),
    "cohere2 biases": (T.Cohere2Config, {"attention_bias": True, "tie_word_embeddings": False, "sliding_window": 5}),
    "starcoder2": (T.Starcoder2Config, {"sliding_window": 6}),
    "starcoder2 no bias": (T.Starcoder2Config, {"use_bias": False, "tie_word_embeddings": False}),
    "nemotron": (T.NemotronConfig, {"head_dim": 8}),
    "nemotron biases": (
        T.NemotronConfig,
        {"head_dim": 12, "attention_bias": True, "mlp_bias": True, "partial_rotary_factor": 1.0},
    ),
}
PROMPTS = [[7, 1, 33, 9, 60, 2, 2, 15, 48, 3, 11, 5], [4, 8, 15, 16, 23], [42], list(range(3, 25)), [9, 9, 1]]
NAMES = ["first", hf.BASE, "second", "second", "first"]


def config_of(case: str) -> hf.Config:
    """The config of a case, as transformers completes it."""
    kind, changes = CASES[case]
    return kind(**SIZES | changes)


def write(folder: Path, case: str) -> dict[str, Path]:
    """Write the base and two adapters: on every linear layer, and on some of them at another scale."""
    base = folder / "base"
    hf.write_model(config_of(case), base, seed=len(case))
    linear = refimpl.load_model(base).config.layer_modules
    specs = {
        "first": hf.peft.LoraConfig(r=3, lora_alpha=7, target_modules=list(linear)),
        "second": hf.peft.LoraConfig(
            r=2, lora_alpha=5, use_rslora=True, target_modules=[linear[0], linear[-1], "embed_tokens", "lm_head"]
        ),
    }
    for seed, (name, spec) in enumerate(specs.items()):
        hf.write_adapter(base, spec, folder / name, seed, copies=False)
    return {name: folder / name for name in specs}


@pytest.mark.parametrize("case", CASES)
def test_a_mixed_batch_equals_transformers_and_peft(tmp_path: Path, case: str) -> None:
    with hf.dense_layers():
        adapters = write(tmp_path, case)
        theirs = hf.alone(tmp_path / "base", adapters, PROMPTS, NAMES)
    model = refimpl.load_model(tmp_path / "base", "float64")
    ours = {name: refimpl.load_adapter(path, model.config) for name, path in adapters.items()}
    rows = refimpl.logits(model, [refimpl.Request(p, ours.get(name)) for p, name in zip(PROMPTS, NAMES, strict=True)])
    for row, expected in zip(rows, theirs, strict=True):
        assert np.abs(row - expected).max() <= 1e-9 * np.abs(expected).max()


@pytest.mark.parametrize(
    "case",
    ["phi3", "glm4", "granite4", "starcoder2", "nemotron biases", "gemma3", "gemma4 inputs", "ernie biases", "olmo2"],
)
def test_dora_and_lora_on_modules_that_hold_several(tmp_path: Path, case: str) -> None:
    """Fused modules have one pair and one magnitude for all of their rows; biases and norms of q and k come after."""
    base = tmp_path / "base"
    with hf.dense_layers():
        hf.write_model(config_of(case), base, seed=len(case))
        linear = list(refimpl.load_model(base).config.layer_modules)
        specs = {"first": {"r": 3, "lora_alpha": 7}, "second": {"r": 2, "lora_alpha": 5, "use_rslora": True}}
        for seed, (name, spec) in enumerate(specs.items()):
            config = hf.peft.LoraConfig(**spec, target_modules=linear, use_dora=name == "first")
            hf.write_adapter(base, config, tmp_path / name, seed)
        theirs = hf.alone(base, {name: tmp_path / name for name in specs}, PROMPTS, NAMES)
    model = refimpl.load_model(base, "float64")
    ours = {name: refimpl.load_adapter(tmp_path / name, model.config) for name in specs}
    assert ours["first"].use_dora
    rows = refimpl.logits(model, [refimpl.Request(p, ours.get(name)) for p, name in zip(PROMPTS, NAMES, strict=True)])
    for row, expected in zip(rows, theirs, strict=True):
        assert np.abs(row - expected).max() <= 1e-9 * np.abs(expected).max()


def test_gemma_4_inside_a_model_of_images_and_text(tmp_path: Path) -> None:
    """Its text_config, its tensors and the names of PEFT's adapters have the wrapper's prefix; the parts that see
    are passed by."""
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = T.Gemma4Config(
        text_config={**SIZES, **CASES["gemma4 inputs"][1], "attention_k_eq_v": True},
        vision_config={**vision, "num_key_value_heads": 2, "head_dim": 8},
        audio_config=None,
    )
    model = T.Gemma4ForConditionalGeneration(config)
    hf.randomise_base(model, 3)
    model.save_pretrained(tmp_path / "base")
    targets = ["q_proj", "v_proj", "down_proj", "per_layer_input_gate", "per_layer_model_projection"]
    spec = hf.peft.LoraConfig(r=2, lora_alpha=6, target_modules=targets, exclude_modules=".*vision_tower.*")
    with hf.quiet():
        wrapped = hf.peft.get_peft_model(model, spec)
        hf.randomise(wrapped, 1)
        wrapped.save_pretrained(tmp_path / "adapter")
    theirs = hf.alone(tmp_path / "base", {"one": tmp_path / "adapter"}, PROMPTS, ["one"] * 5)
    base = refimpl.load_model(tmp_path / "base", "float64")
    adapter = refimpl.load_adapter(tmp_path / "adapter", base.config)
    for row, expected in zip(refimpl.logits(base, [refimpl.Request(p, adapter) for p in PROMPTS]), theirs, strict=True):
        assert np.abs(row - expected).max() <= 1e-9 * np.abs(expected).max()


def test_every_family_is_here() -> None:
    dense = {config_of(case).model_type for case in CASES} | {"mistral"}
    experts = {test_experts.config_of(case).model_type for case in test_experts.CASES}
    assert dense | experts == {family.model_type for family in FAMILIES.values()}


# One of each class, and those whose variants round elsewhere.
HALF = ["llama yarn", "mistral", "gemma4 k is v", "gemma4 inputs", "phi3 longrope"]
HALF += [case for case in CASES if " " not in case]


@pytest.mark.parametrize("case", HALF)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_types_lie_in_the_noise_of_their_own_precision(tmp_path: Path, case: str, dtype: str) -> None:
    """transformers' error is as large as ours with the points of its class, and of the same signs: where only orders of
    summation differ, which bfloat16 hardly shows, the two are much nearer to each other than to the exact logits."""
    config = T.MistralConfig(**SIZES, sliding_window=6) if case == "mistral" else config_of(case)
    hf.write_model(config, tmp_path / "base", seed=1, dtype=dtype)
    prompts = [list(range(3, 25)), list(range(59, 20, -2)), [9, 9, 1]]
    theirs = hf.alone(tmp_path / "base", {}, prompts, [hf.BASE] * 3, dtype)
    requests = [refimpl.Request(prompt) for prompt in prompts]
    half = refimpl.load_model(tmp_path / "base", dtype)
    ours = refimpl.logits(half, requests, precision=refimpl.Precision("transformers", dtype))
    exact = refimpl.logits(refimpl.load_model(tmp_path / "base", "float64"), requests)
    error, noise, apart = (
        np.sqrt(np.mean([np.mean((x - y) ** 2) for x, y in zip(one, other, strict=True)]))
        for one, other in ((theirs, exact), (ours, exact), (theirs, ours))
    )
    assert 0.8 < error / noise < 1.25
    assert apart < (0.3 if dtype == "bfloat16" else 0.9) * error
