"""Families from their config.json, as the Hub has them: what is read, what is refused by name, and that the fast form
of the forward pass is the definition for each. (tests/engines/test_families.py compares them with transformers.)"""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import BASE, config_json, lora_tensors, refused, safetensors_bytes, write_adapter
from support.build import random_adapter, random_model
from support.counting import counted

from refimpl import Request, load_model, logits
from refimpl.arrays import Precision
from refimpl.bench import cost
from refimpl.bench.cost import Step
from refimpl.config import LayerKind, ModelConfig, Rope, module_name
from refimpl.errors import AdapterError, AdapterWarning, ConfigError, LoracleError, WeightsError
from refimpl.families import FAMILIES
from refimpl.formats.hf import save_model
from refimpl.loading.adapter_folder import load_adapter
from refimpl.loading.checkpoint import expected_tensors, open_checkpoint
from refimpl.loading.config_file import load_config
from refimpl.loading.diagnostics import Diagnostics
from refimpl.model import forward, whole_prompts
from refimpl.ops import NUMPY, REFERENCE
from refimpl.training.examples import Task, check_task
from refimpl.training.lora_config import LoraConfig
from refimpl.training.trainable import check_trainable

# The attention of DeepSeek, and its rope.
LATENT: dict[str, Any] = {
    "num_key_value_heads": 2,
    "num_attention_heads": 2,
    "kv_lora_rank": 5,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 3,
    "rope_scaling": {
        "type": "yarn",
        "factor": 40,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 0.707,
        "mscale_all_dim": 0.707,
    },
}

ROUTED: dict[str, Any] = {
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 4,
    "n_group": 4,
    "topk_group": 2,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
}

# As in the Hub's files, but small. ... removes a key that Llama's config.json has.
SMALL: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {"model_type": "llama"},
    "MistralForCausalLM": {"model_type": "mistral", "sliding_window": 3},
    "Qwen2ForCausalLM": {
        "model_type": "qwen2",
        "use_sliding_window": False,
        "sliding_window": 3,
        "head_dim": ...,
        "hidden_size": 32,
    },
    "Qwen3ForCausalLM": {"model_type": "qwen3", "attention_bias": False, "max_window_layers": 1},
    "Phi3ForCausalLM": {
        "model_type": "phi3",
        "head_dim": ...,
        "hidden_size": 32,
        "rope_scaling": {"type": "su", "short_factor": [1.0, 1.1, 1.2], "long_factor": [1.5, 2.0, 4.0]},
        "partial_rotary_factor": 0.75,
        "original_max_position_embeddings": 6,
    },
    "GemmaForCausalLM": {"model_type": "gemma", "hidden_act": "gelu", "tie_word_embeddings": ...},
    "Gemma2ForCausalLM": {
        "model_type": "gemma2",
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
        "query_pre_attn_scalar": 6,
        "sliding_window": 3,
        "tie_word_embeddings": ...,
    },
    "Gemma3ForCausalLM": {
        "model_type": "gemma3_text",
        "hidden_act": ...,
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": 3,
        "sliding_window_pattern": 2,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "tie_word_embeddings": ...,
    },
    "Gemma4ForCausalLM": {
        "model_type": "gemma4_text",
        "hidden_act": ...,
        "hidden_activation": "gelu_pytorch_tanh",
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "sliding_window": 3,
        "rope_theta": ...,
        "global_head_dim": 16,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
        "num_kv_shared_layers": 2,
        "use_double_wide_mlp": True,
        "hidden_size_per_layer_input": 6,
        "vocab_size_per_layer_input": 13,
        "tie_word_embeddings": ...,
        "use_bidirectional_attention": "vision",
    },
    "Exaone4ForCausalLM": {
        "model_type": "exaone4",
        "sliding_window": 3,
        "sliding_window_pattern": "LG",
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "Cohere2ForCausalLM": {
        "model_type": "cohere2",
        "rms_norm_eps": ...,
        "layer_norm_eps": 1e-5,
        "head_dim": ...,
        "hidden_size": 32,
        "logit_scale": 0.25,
        "sliding_window": 3,
        "sliding_window_pattern": 2,
        "tie_word_embeddings": ...,
    },
    "Starcoder2ForCausalLM": {
        "model_type": "starcoder2",
        "rms_norm_eps": ...,
        "norm_epsilon": 1e-5,
        "hidden_act": "gelu_pytorch_tanh",
        "use_bias": True,
        "sliding_window": 3,
        "attention_bias": ...,
        "mlp_bias": ...,
    },
    "NemotronForCausalLM": {
        "model_type": "nemotron",
        "rms_norm_eps": ...,
        "norm_eps": 1e-5,
        "hidden_act": "relu2",
        "partial_rotary_factor": 0.5,
    },
    "GraniteForCausalLM": {
        "model_type": "granite",
        "attention_multiplier": 0.3,
        "embedding_multiplier": 12,
        "residual_multiplier": 0.22,
        "logits_scaling": 6,
    },
    "GraniteMoeHybridForCausalLM": {
        "model_type": "granitemoehybrid",
        "num_local_experts": 0,
        "shared_intermediate_size": 20,
        "layer_types": ["attention", "attention"],
        "position_embedding_type": "rope",
    },
    "SmolLM3ForCausalLM": {"model_type": "smollm3", "no_rope_layers": [1, 0], "rope_theta": 2e6},
    "Olmo2ForCausalLM": {"model_type": "olmo2", "rope_theta": 5e5},
    "Olmo3ForCausalLM": {
        "model_type": "olmo3",
        "rope_theta": 5e5,
        "sliding_window": 3,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_scaling": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16},
    },
    "Ministral3ForCausalLM": {
        "model_type": "ministral3",
        "rope_theta": ...,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e6,
            "factor": 16.0,
            "original_max_position_embeddings": 4,
            "llama_4_scaling_beta": 0.1,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
        },
    },
    "Glm4ForCausalLM": {"model_type": "glm4", "partial_rotary_factor": 0.5, "attention_bias": True},
    "SeedOssForCausalLM": {"model_type": "seed_oss", "attention_bias": True, "attention_out_bias": False},
    "Ernie4_5ForCausalLM": {"model_type": "ernie4_5", "use_bias": True},
    "GraniteMoeForCausalLM": {
        "model_type": "granitemoe",
        "attention_multiplier": 0.3,
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
    },
    "GraniteMoeSharedForCausalLM": {
        "model_type": "granitemoeshared",
        "residual_multiplier": 0.22,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 9,
    },
    "Glm4MoeForCausalLM": {
        "model_type": "glm4_moe",
        "n_routed_experts": 6,
        "num_experts_per_tok": 3,
        "n_shared_experts": 2,
        "moe_intermediate_size": 7,
        "n_group": 3,
        "topk_group": 2,
        "routed_scaling_factor": 1.5,
        "first_k_dense_replace": 1,
        "attention_bias": True,
        "use_qk_norm": True,
        "num_nextn_predict_layers": 1,
    },
    "MixtralForCausalLM": {
        "model_type": "mixtral",
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
        "sliding_window": None,
        "router_aux_loss_coef": 0.02,
    },
    "Qwen2MoeForCausalLM": {
        "model_type": "qwen2_moe",
        "num_experts": 4,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 7,
        "shared_expert_intermediate_size": 9,
        "norm_topk_prob": False,
        "mlp_only_layers": [],
        "head_dim": ...,
        "hidden_size": 32,
        "use_sliding_window": False,
        "sliding_window": 32768,
        "max_window_layers": 28,
    },
    "Qwen3MoeForCausalLM": {
        "model_type": "qwen3_moe",
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 7,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [0],
        "attention_bias": False,
    },
    "GptOssForCausalLM": {
        "model_type": "gpt_oss",
        "attention_bias": True,
        "experts_per_token": 2,
        "num_experts_per_tok": 2,
        "num_local_experts": 5,
        "sliding_window": 3,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_theta": 150000,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "original_max_position_embeddings": 4096,
            "truncate": False,
        },
        "router_aux_loss_coef": 0.9,
        "initial_context_length": 4096,
        "swiglu_limit": 7.0,
        "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
    },
    "HunYuanDenseV1ForCausalLM": {
        "model_type": "hunyuan_v1_dense",
        "use_qk_norm": True,
        "rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0},
    },
    "DeepseekV2ForCausalLM": {
        "model_type": "deepseek_v2",
        "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV2Config"},
        **LATENT,
        "q_lora_rank": None,
        "first_k_dense_replace": 1,
        "n_routed_experts": 6,
        "n_shared_experts": 2,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 4,
        "topk_method": "group_limited_greedy",
        "n_group": 3,
        "topk_group": 2,
        "routed_scaling_factor": 16.0,
        "scoring_func": "softmax",
        "norm_topk_prob": False,
    },
    "DeepseekV3ForCausalLM": {
        "model_type": "deepseek_v3",
        "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
        **LATENT,
        "q_lora_rank": 7,
        **ROUTED,
        "first_k_dense_replace": 1,
        "num_nextn_predict_layers": 1,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
    },
    "Glm4MoeLiteForCausalLM": {"model_type": "glm4_moe_lite", **LATENT, "q_lora_rank": 5, **ROUTED, "hidden_size": 13},
}


def write_config(folder: Path, name: str, **changes: Any) -> Path:
    """Write config.json of a family, with changes."""
    (folder / "config.json").write_text(json.dumps(config_json(**{"architectures": [name]} | SMALL[name] | changes)))
    return folder


def test_every_family_is_here() -> None:
    assert SMALL.keys() == FAMILIES.keys()


@pytest.mark.parametrize("name", SMALL)
def test_the_fast_form_is_the_definition(tmp_path: Path, name: str) -> None:
    config = load_config(write_config(tmp_path, name))
    model = random_model(config, 3)
    requests = [
        Request([3, 1, 4, 1, 5, 9, 2, 6], random_adapter(config, 1, modules=config.layer_modules)),
        Request([5, 3, 5]),
        Request([8, 9, 7, 9, 3], random_adapter(config, 2, r=1, modules=("embed_tokens", "lm_head", config.down))),
    ]
    for fast, slow in zip(logits(model, requests), logits(model, requests, REFERENCE), strict=True):
        np.testing.assert_allclose(fast, slow, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", SMALL)
def test_a_last_token_gets_the_same_where_it_is_all_that_is_asked_for(tmp_path: Path, name: str) -> None:
    """The end of the last layer is then computed for these rows alone (ForwardContext.of_logits)."""
    config = load_config(write_config(tmp_path, name))
    model = random_model(config, 3)
    requests = [
        Request([3, 1, 4, 1, 5], random_adapter(config, 1, modules=config.modules_of(config.num_hidden_layers - 1))),
        Request([5]),
        Request([8, 9, 7], random_adapter(config, 2, r=1, modules=("lm_head", "o_proj", config.down))),
    ]
    p = model.precision(Precision("model", "float64"))
    batch, cache, adapters = whole_prompts(model, requests, NUMPY, p, every_row=False)
    last = forward(model, batch, cache, adapters.slots, NUMPY, p)
    np.testing.assert_allclose(last, [rows[-1] for rows in logits(model, requests)], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", SMALL)
def test_the_page_of_cost_counts_what_its_forward_pass_does(tmp_path: Path, name: str) -> None:
    config = load_config(write_config(tmp_path, name))
    model, adapters = random_model(config, 3), [random_adapter(config, i, modules=config.layer_modules) for i in (1, 2)]
    ranks = {module: len(tensors.A) for module, tensors in adapters[0].lora.items()}
    for step in (Step(3, 1, 7, 2), Step(2, 5, 5, 2), Step(2, 1, 4, 0)):
        assert cost.work(config, ranks, step, 8) == counted(model, adapters[: step.adapters], step)
    assert 8 * cost.base_parameters(config) == model.nbytes


@pytest.mark.parametrize("name", SMALL)
def test_its_tensors_load_and_no_others(tmp_path: Path, name: str) -> None:
    config = load_config(write_config(tmp_path, name))
    rng = np.random.default_rng(0)
    tensors = {key: rng.standard_normal(shape).astype(np.float32) for key, shape in expected_tensors(config).items()}
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    model = load_model(tmp_path)
    for norm, weight in model.layers[1].norms.items():
        stored = np.ones(16) if norm == config.norms.v else tensors[f"model.layers.1.{norm}.weight"]
        stored = stored + 1 if config.norms.plus_one else stored
        if config.norms.centred:  # the weight, and the bias below it
            stored = np.stack([stored, tensors[f"model.layers.1.{norm}.bias"]] if config.norms.bias else [stored])
        np.testing.assert_array_equal(weight, stored)
    for module in config.modules()[1:-1]:
        assert model.linear(module).weight.shape == config.shape(module)
    foreign = tensors | {"model.layers.0.self_attn.tanks": np.zeros(4, np.float32)}
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(foreign))
    with refused(WeightsError, "model.layers.0.self_attn.tanks [4] is not one of the model's"):
        load_model(tmp_path)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("Qwen2ForCausalLM", {"attention_bias": True}, "attention_bias is True: Qwen2ForCausalLM has none"),
    ("Qwen2ForCausalLM", {"use_sliding_window": 1}, "use_sliding_window is 1: it must be true or false"),
    (
        "Qwen2ForCausalLM",
        {"layer_types": ["full_attention"]},
        "it must be a list of 2 of full_attention, sliding_attention",
    ),
    ("Qwen3ForCausalLM", {"layer_types": ["chunked_attention"] * 2}, "layer_types is ['chunked_attention'"),
    ("Qwen3ForCausalLM", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic' is not supported"),
    ("Phi3ForCausalLM", {"partial_rotary_factor": 0.7}, "of which 5 channels turn is wrong"),
    ("Phi3ForCausalLM", {"partial_rotary_factor": 1.0}, "short_factor has 3 numbers; 8 channels turn, in 4 pairs"),
    ("GemmaForCausalLM", {"hidden_act": "silu"}, "hidden_act is 'silu', which must be 'gelu_pytorch_tanh' or 'gelu'"),
    ("Gemma2ForCausalLM", {"hidden_act": "gelu"}, "hidden_act is 'gelu', which must be 'gelu_pytorch_tanh'"),
    ("Gemma2ForCausalLM", {"attn_logit_softcapping": 0}, "attn_logit_softcapping is 0: it must be a number above 0"),
    ("Gemma3ForCausalLM", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
    ("Gemma3ForCausalLM", {"sliding_window": None}, "sliding_window is missing"),
    ("Gemma4ForCausalLM", {"enable_moe_block": True}, "enable_moe_block is true: experts beside the MLP"),
    ("Gemma4ForCausalLM", {"use_bidirectional_attention": "all"}, "use_bidirectional_attention is 'all'"),
    (
        "Gemma4ForCausalLM",
        {"layer_types": ["full_attention", "sliding_attention"] * 2},
        "makes the last layer full all the same",
    ),
    ("Gemma4ForCausalLM", {"num_kv_shared_layers": 3}, "none of its kind before it whose keys"),
    ("Gemma4ForCausalLM", {"num_kv_shared_layers": 5}, "none of its kind before it whose keys"),
    ("Gemma4ForCausalLM", {"vocab_size_per_layer_input": 12}, "vocab_size_per_layer_input 12 is below vocab_size 13"),
    ("Gemma4ForCausalLM", {"per_layer_config": {"1": {"head_dim": 10}}}, "per_layer_config and global_head_dim 16"),
    ("Gemma4ForCausalLM", {"per_layer_config": {"1": {"sliding_window": 9}}}, "per_layer_config says '1': {'sliding_w"),
    ("Gemma4ForCausalLM", {"per_layer_config": {"4": {"head_dim": 10}}}, "of which only head_dim and num_key_value"),
    ("Gemma4ForCausalLM", {"per_layer_config": 3}, "per_layer_config says '': 3"),
    ("Gemma4ForCausalLM", {"num_global_key_value_heads": 3}, "not a multiple of num_key_value_heads 3"),
    ("Gemma4ForCausalLM", {"global_head_dim": 15}, "head_dim 15 is odd"),
    ("Gemma4ForCausalLM", {"rope_parameters": {"rope_theta": 1e4}}, "one object for full_attention and one for"),
    ("Gemma4ForCausalLM", {"attn_logit_softcapping": 5.0}, "attn_logit_softcapping is 5.0, which is not supported"),
    ("LlamaForCausalLM", {"per_layer_config": {"1": {"num_key_value_heads": 1}}}, "per_layer_config is {'1'"),
    ("Exaone4ForCausalLM", {"layer_types": ...}, "sliding_window_pattern is 'LG': it must be an integer"),
    ("Exaone4ForCausalLM", {"attention_bias": True}, "attention_bias is True: Exaone4ForCausalLM has none"),
    ("Cohere2ForCausalLM", {"head_dim": 16}, "head_dim is 16, and transformers makes it 8 whatever it says"),
    ("Cohere2ForCausalLM", {"layer_norm_eps": 0}, "layer_norm_eps is 0: it must be a number above 0"),
    ("Cohere2ForCausalLM", {"logit_scale": 0}, "logit_scale is 0: it must be a number above 0"),
    ("Starcoder2ForCausalLM", {"hidden_act": "gelu"}, "hidden_act is 'gelu', which must be 'gelu_pytorch_tanh'"),
    ("NemotronForCausalLM", {"hidden_act": "silu"}, "hidden_act is 'silu', which must be 'relu2'"),
    ("NemotronForCausalLM", {"partial_rotary_factor": 0.4}, "of which 3 channels turn is wrong"),
    ("GraniteForCausalLM", {"residual_multiplier": "half"}, "residual_multiplier is 'half'"),
    ("GraniteMoeHybridForCausalLM", {"num_local_experts": -1}, "num_local_experts is -1"),
    ("GraniteMoeHybridForCausalLM", {"layer_types": ["mamba", "attention"]}, "layer_types holds 'mamba'"),
    ("GraniteMoeHybridForCausalLM", {"layer_types": ...}, "layer_types holds 'mamba'"),
    ("SmolLM3ForCausalLM", {"no_rope_layers": [1]}, "no_rope_layers has no 0 or 1 for layer 1"),
    ("Olmo3ForCausalLM", {"rope_theta": 1e4}, "which versions of transformers read differently"),
    (
        "Olmo3ForCausalLM",
        {"rope_scaling": None, "rope_theta": ..., "rope_parameters": {"full_attention": {"rope_theta": 1e4}}},
        "sliding_attention is None: it must be an object",
    ),
    ("Ministral3ForCausalLM", {"attention_bias": True}, "Ministral3ForCausalLM has none"),
    ("Glm4ForCausalLM", {"rope_parameters": {"full_attention": {}}}, "a rope for each layer type"),
    ("SeedOssForCausalLM", {"use_bias": True}, "SeedOssForCausalLM has none"),
    ("Ernie4_5ForCausalLM", {"num_experts": 64}, "num_experts is 64"),
    ("DeepseekV3ForCausalLM", {"kv_lora_rank": 0}, "kv_lora_rank is 0: it must be an integer"),
    ("DeepseekV3ForCausalLM", {"num_key_value_heads": 1}, "num_key_value_heads is 1: with a latent it must be 2"),
    ("DeepseekV3ForCausalLM", {"n_group": 3}, "n_group 3 and topk_group 2: 8 experts are in no such groups"),
    (
        "DeepseekV3ForCausalLM",
        {"num_experts_per_tok": 5},
        "topk_group 2 of n_group 4 hold fewer experts than num_experts_per_tok",
    ),
    ("DeepseekV3ForCausalLM", {"scoring_func": "softmax"}, "scoring_func is 'softmax': this class has 'sigmoid'"),
    ("DeepseekV3ForCausalLM", {"moe_layer_freq": 2}, "moe_layer_freq is 2: the class has experts in every layer"),
    ("DeepseekV3ForCausalLM", {"model_type": "deepseek_v2"}, "contradicts model_type 'deepseek_v2'"),
    ("DeepseekV2ForCausalLM", {"norm_topk_prob": True}, "norm_topk_prob is True: this class has False"),
    ("DeepseekV2ForCausalLM", {"topk_method": "noaux_tc"}, "topk_method is 'noaux_tc': this class has 'greedy'"),
    ("DeepseekV2ForCausalLM", {"mlp_bias": True}, "mlp_bias is true: with experts it is not supported"),
    ("Glm4MoeLiteForCausalLM", {"mlp_layer_types": ["moe", "dense"]}, "it must be a list of 2 of dense, sparse"),
    ("DeepseekV2ForCausalLM", {"qk_rope_head_dim": 3}, "of which 3 channels turn"),
    ("HunYuanDenseV1ForCausalLM", {"use_qk_norm": False}, "use_qk_norm is false"),
    ("HunYuanDenseV1ForCausalLM", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic' is not supported"),
]


@pytest.mark.parametrize(("name", "changes", "says"), REFUSED)
def test_what_would_be_another_model_is_refused(tmp_path: Path, name: str, changes: dict[str, Any], says: str) -> None:
    with refused(ConfigError, str(tmp_path), says):
        load_config(write_config(tmp_path, name, **changes))


# What another class of transformers 5.24 reads by a key of this name, so that this value makes another model of it.
OF_OTHER_CLASSES: dict[str, Any] = {
    "attention_chunk_size": 4,
    "attention_k_eq_v": True,
    "attention_multiplier": 0.3,
    "attn_logit_softcapping": 2.5,
    "attn_temperature_tuning": True,
    "embedding_multiplier": 2.5,
    "final_logit_softcapping": 2.5,
    "layer_norm_eps": 1e-3,
    "logit_scale": 0.3,
    "logits_scaling": 2.5,
    "no_rope_layer_interval": 2,
    "no_rope_layers": [0, 1, 0, 1],
    "norm_eps": 1e-3,
    "norm_epsilon": 1e-3,
    "num_kv_shared_layers": 1,
    "partial_rotary_factor": 0.25,
    "per_layer_config": {"0": {"head_dim": 4}},
    "position_embedding_type": "nope",
    "query_pre_attn_scalar": 7,
    "residual_multiplier": 2.5,
    "rms_norm_eps": 1e-3,
    "rope_interleave": "turned",  # the other way round than the class does
    "rope_local_base_freq": 7.0,
    "router_logit_softcapping": 30.0,
    "swiglu_alpha": 2.5,
    "swiglu_limit": 2.5,
    "use_bidirectional_attention": True,
    "use_sliding_window": True,
}
OF_OTHER_ROUTERS: dict[str, Any] = {
    "experts_per_token": 1,
    "n_group": 7,
    "n_routed_experts": 12,
    "norm_topk_prob": "turned",
    "num_experts": 12,
    "num_experts_per_tok": 0,
    "num_local_experts": 12,
    "routed_scaling_factor": 3.5,
    "router_bias": "turned",
    "scoring_func": "tanh",
    "top_k_experts": 1,
    "topk_group": 7,
    "topk_method": "best",
}


@pytest.mark.parametrize("name", SMALL)
def test_no_key_of_another_class_is_read_past(tmp_path: Path, name: str) -> None:
    """It is refused by name, or makes another model of it."""
    config = load_config(write_config(tmp_path, name))
    moe = config.moe
    now = {
        "rope_interleave": config.rope.interleaved,
        "norm_topk_prob": moe is not None and (moe.renormalise or moe.scores == "softmax_of_chosen"),
        "router_bias": moe is not None and moe.bias,
    }
    others = {key: value for key, value in OF_OTHER_CLASSES.items() if not FAMILIES[name].understands(key)}
    for key, value in (others | (OF_OTHER_ROUTERS if moe else {})).items():
        own = ("rms_norm_eps", FAMILIES[name].eps) if "eps" in key else ()  # without which it would have another
        write_config(tmp_path, name, **{**dict.fromkeys(own, ...), key: not now[key] if value == "turned" else value})
        try:
            changed = dataclasses.replace(load_config(tmp_path), keys={}) != dataclasses.replace(config, keys={})
        except ConfigError as error:
            changed = key in str(error)
        assert changed, key


@pytest.mark.parametrize("name", ["DeepseekV4ForCausalLM", "Llama4ForCausalLM", "Qwen3NextForCausalLM"])
def test_other_architectures_are_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config_json(architectures=[name], model_type="other")))
    with pytest.raises(ConfigError, match=rf"{name}.*'other'\) is none of the {len(FAMILIES)} that load$"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("named", "model_type", "nearest"),
    [
        (["LamaForCausalLM"], "llama", "LlamaForCausalLM"),
        (["Qwen3MoEForCausalLM"], "qwen3_moe", "Qwen3MoeForCausalLM"),
        (None, "lama", "llama"),
        (["Qwen4ForCausalLM"], "qwen4", None),
        ("LlamaForCausalLM", "llama", None),
        (None, 4, None),
    ],
)
def test_a_misspelt_architecture(tmp_path: Path, named: Any, model_type: Any, nearest: str | None) -> None:
    """The line is short; a class with another number in its name is another model, and not meant."""
    (tmp_path / "config.json").write_text(json.dumps(config_json(architectures=named, model_type=model_type)))
    with pytest.raises(ConfigError, match=f"is none of the {len(FAMILIES)} that load") as error:
        load_config(tmp_path)
    line = str(error.value).removeprefix(str(tmp_path))
    assert len(line) < 150
    assert line.endswith(f"; did you mean {nearest!r}?") if nearest else "did you mean" not in line


EXPERTS: list[tuple[str, dict[str, Any], str]] = [
    ("MixtralForCausalLM", {"num_experts": 4}, "num_experts is 4 and num_local_experts is 5: they mean the same"),
    ("Qwen3MoeForCausalLM", {"num_local_experts": 7}, "num_experts is 6 and num_local_experts is 7"),
    ("MixtralForCausalLM", {"num_experts_per_tok": 6}, "num_experts_per_tok 6 is more than the 5 experts"),
    ("Qwen3MoeForCausalLM", {"mlp_only_layers": "first"}, "mlp_only_layers is 'first': it must be a list"),
    ("Qwen2MoeForCausalLM", {"use_sliding_window": True}, "versions of transformers differ on which layers"),
    ("Qwen2MoeForCausalLM", {"moe_intermediate_size": 0}, "moe_intermediate_size is 0"),
    ("LlamaForCausalLM", {"n_routed_experts": 8}, "n_routed_experts is 8"),
    ("Glm4MoeForCausalLM", {"n_group": 4}, "n_group 4 and topk_group 2: 6 experts are in no such groups"),
    ("Glm4MoeForCausalLM", {"topk_group": 1}, "fewer experts than num_experts_per_tok"),
    ("Glm4MoeForCausalLM", {"n_group": 6, "topk_group": 3}, "a group of 1 has no 2 best experts"),
    ("Glm4MoeForCausalLM", {"norm_topk_prob": "yes"}, "norm_topk_prob is 'yes'"),
    ("MixtralForCausalLM", {"norm_topk_prob": False}, "norm_topk_prob is False: this class has True"),
    ("GptOssForCausalLM", {"norm_topk_prob": False}, "norm_topk_prob is False: this class has True"),
    ("GptOssForCausalLM", {"router_bias": False}, "router_bias is False: this class has True"),
    ("Qwen3MoeForCausalLM", {"router_bias": True}, "router_bias is True: this class has False"),
    ("Qwen3MoeForCausalLM", {"scoring_func": "sigmoid"}, "scoring_func is 'sigmoid': this class has 'softmax'"),
    ("Glm4MoeForCausalLM", {"topk_method": "greedy"}, "topk_method is 'greedy': this class has 'noaux_tc'"),
    ("GraniteMoeForCausalLM", {"router_logit_softcapping": 30.0}, "router_logit_softcapping is 30.0, which must be"),
    ("GptOssForCausalLM", {"experts_per_token": 4}, "experts_per_token is 4 and num_experts_per_tok is 2"),
    ("GptOssForCausalLM", {"swiglu_limit": 0}, "swiglu_limit is 0: it must be a number above 0"),
    ("GptOssForCausalLM", {"sliding_window": None}, "sliding_window is missing"),
]


@pytest.mark.parametrize(("name", "changes", "says"), EXPERTS)
def test_experts_that_contradict_themselves_are_refused(
    tmp_path: Path, name: str, changes: dict[str, Any], says: str
) -> None:
    with refused(ConfigError, str(tmp_path), says):
        load_config(write_config(tmp_path, name, **changes))


@pytest.mark.parametrize("name", ["MixtralForCausalLM", "GptOssForCausalLM"])
def test_training_through_experts_is_refused(tmp_path: Path, name: str) -> None:
    with refused(LoracleError, "mine: there are no gradients for a base with experts"):
        check_task(Task("mine", LoraConfig(), ()), load_config(write_config(tmp_path, name)))


def test_which_layers_have_experts(tmp_path: Path) -> None:
    def sparse(name: str, **changes: Any) -> list[bool]:
        config = load_config(write_config(tmp_path, name, num_hidden_layers=4, **changes))
        return [config.moe is not None and kind.sparse for kind in kinds(config)]

    assert sparse("MixtralForCausalLM") == [True] * 4
    assert sparse("Qwen3MoeForCausalLM") == [False, True, True, True]
    assert sparse("Qwen3MoeForCausalLM", decoder_sparse_step=2, mlp_only_layers=None) == [False, True, False, True]
    assert sparse("Glm4MoeForCausalLM", first_k_dense_replace=2) == [False, False, True, True]
    hybrid = {"layer_types": ["attention"] * 4, "num_experts_per_tok": 2}
    assert sparse("GraniteMoeHybridForCausalLM", **hybrid, num_local_experts=3) == [True] * 4
    assert sparse("GraniteMoeHybridForCausalLM", **hybrid) == [False] * 4
    assert sparse("Qwen2MoeForCausalLM", mlp_only_layers=[0, 1, 2, 3]) == [False] * 4
    both = load_config(write_config(tmp_path, "Qwen3MoeForCausalLM", num_local_experts=6))
    assert both.moe and both.moe.experts == 6


@pytest.mark.parametrize("spelling", ["one by one", "stacked"])
def test_experts_are_read_one_by_one_or_stacked(tmp_path: Path, spelling: str) -> None:
    """As transformers 4 writes them, and as transformers 5 holds them."""
    config = load_config(write_config(tmp_path, "MixtralForCausalLM"))
    rng = np.random.default_rng(0)
    tensors = {key: rng.standard_normal(shape).astype(np.float32) for key, shape in expected_tensors(config).items()}
    stored = dict(tensors) if spelling == "one by one" else stacked(tensors, 5)
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(stored))
    model = load_model(tmp_path)
    for module in config.modules()[1:-1]:
        np.testing.assert_array_equal(model.linear(module).weight, tensors[f"{module_name(module)}.weight"])
        assert model.linear(module).weight.base is not None  # of the map of the file
    if spelling == "stacked":
        name = "model.layers.0.mlp.experts.down_proj"
        (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(stored | {name: stored[name][1:]}))
        with refused(WeightsError, f"tensor {name} has shape [4, 12, 20], config.json makes it [5, 12, 20]"):
            load_model(tmp_path)


def test_no_shared_experts_are_an_mlp_of_width_0(tmp_path: Path) -> None:
    """What transformers writes for n_shared_experts 0. A tensor that holds numbers is refused all the same."""
    config = load_config(write_config(tmp_path, "Glm4MoeForCausalLM", n_shared_experts=0))
    tensors = {name: np.ones(shape, np.float32) for name, shape in expected_tensors(config).items()}
    name = "model.layers.1.mlp.shared_experts.up_proj.weight"
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(tensors | {name: np.ones((0, 12), np.float32)}))
    assert load_model(tmp_path).config.moe == config.moe and config.moe and config.moe.shared is None
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(tensors | {name: np.ones((1, 12), np.float32)}))
    with refused(WeightsError, f"tensor {name} [1, 12] is not one of the model's"):
        load_model(tmp_path)


def test_layers_that_predict_further_tokens_are_not_read(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path, "Glm4MoeForCausalLM"))
    tensors = {name: np.ones(shape, np.float32) for name, shape in expected_tensors(config).items()}
    further = {"model.layers.2.eh_proj.weight": np.ones((12, 24), np.float32)}
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(tensors | further))
    assert len(load_model(tmp_path).layers) == 2
    beyond = {"model.layers.3.eh_proj.weight": np.ones((12, 24), np.float32)}
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(tensors | beyond))
    with refused(WeightsError, "model.layers.3.eh_proj.weight"):
        load_model(tmp_path)


def test_a_router_that_stays_float32_in_a_half_model(tmp_path: Path) -> None:
    """GLM-4.5 keeps its routers and their corrections in float32, whatever the model's type."""
    config = load_config(write_config(tmp_path, "Glm4MoeForCausalLM"))
    rng = np.random.default_rng(0)
    tensors = {key: rng.standard_normal(shape).astype(np.float32) for key, shape in expected_tensors(config).items()}
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    layer = load_model(tmp_path, "bfloat16").layers[1]
    np.testing.assert_array_equal(layer.linears["mlp.gate"].weight, tensors["model.layers.1.mlp.gate.weight"])
    (correction,) = layer.vectors.values()
    np.testing.assert_array_equal(correction, tensors["model.layers.1.mlp.gate.e_score_correction_bias"])
    assert layer.linears["mlp.experts.0.up_proj"].weight.dtype == "bfloat16"


def stacked(tensors: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """The tensors of a Mixtral as transformers 5 holds them."""
    stored = {key: x for key, x in tensors.items() if "block_sparse_moe" not in key}
    for layer in range(2):
        old, new = f"model.layers.{layer}.block_sparse_moe", f"model.layers.{layer}.mlp"
        w1, w2, w3 = (
            np.stack([tensors[f"{old}.experts.{i}.{name}.weight"] for i in range(count)]) for name in ("w1", "w2", "w3")
        )
        stored |= {f"{new}.gate.weight": tensors[f"{old}.gate.weight"], f"{new}.experts.down_proj": w2}
        stored[f"{new}.experts.gate_up_proj"] = np.concatenate([w1, w3], axis=1)
    return stored


def kinds(config: ModelConfig) -> list[LayerKind]:
    """Every layer's kind."""
    return [config.kind(layer) for layer in range(config.num_hidden_layers)]


def test_windows_are_where_each_class_has_them(tmp_path: Path) -> None:
    def windows(name: str, **changes: Any) -> list[int | None]:
        return [kind.window for kind in kinds(load_config(write_config(tmp_path, name, **changes)))]

    assert windows("Qwen2ForCausalLM") == [None, None]  # a sliding_window without its flag means nothing
    flag = {"use_sliding_window": True, "sliding_window": 5}
    assert windows("Qwen2ForCausalLM", **flag, max_window_layers=1) == [None, 5]
    assert windows("Qwen2ForCausalLM", **flag) == [None, None]  # from layer 28 on
    assert windows("Qwen3ForCausalLM", **flag, layer_types=["sliding_attention", "full_attention"]) == [5, None]
    assert windows("Phi3ForCausalLM", sliding_window=7) == [7, 7]
    assert windows("Gemma2ForCausalLM") == [3, None]
    assert windows("Gemma3ForCausalLM", sliding_window_pattern=...) == [3, 3]  # every sixth layer is full
    assert windows("Olmo3ForCausalLM", layer_types=..., num_hidden_layers=4) == [3, 3, 3, None]


def test_ropes_are_where_each_class_has_them(tmp_path: Path) -> None:
    def ropes(name: str, **changes: Any) -> list[Rope | None]:
        return [kind.rope for kind in kinds(load_config(write_config(tmp_path, name, **changes)))]

    assert ropes("SmolLM3ForCausalLM", no_rope_layers=...) == [Rope(2e6), Rope(2e6)]
    assert ropes("SmolLM3ForCausalLM") == [Rope(2e6), None]
    assert ropes("Gemma3ForCausalLM") == [Rope(1e4), Rope(1e6, "linear", 8.0)]
    assert ropes("GraniteMoeHybridForCausalLM", position_embedding_type="nope") == [None, None]
    (alpha, _) = ropes("HunYuanDenseV1ForCausalLM")
    assert alpha == Rope(10000.0 * 1000.0 ** (8 / 6))


def test_the_scale_of_deepseeks_scores(tmp_path: Path) -> None:
    """1/sqrt(head_dim) of keys, not of values or of what turns, times mscale squared; that of cos and sin is 1 then."""
    config = load_config(write_config(tmp_path, "DeepseekV3ForCausalLM"))
    assert config.attention_scale == pytest.approx(10**-0.5 * (0.0707 * np.log(40) + 1) ** 2, rel=1e-15)
    assert config.rope.attention_factor == 1 and config.rope.head_dim == 4 and config.rope.interleaved
    half_split = load_config(write_config(tmp_path, "DeepseekV3ForCausalLM", rope_interleave=False, rope_scaling=None))
    assert not half_split.rope.interleaved and half_split.attention_scale == 10**-0.5
    assert config.norm_width("self_attn.kv_a_layernorm") == 5 and config.norm_width("self_attn.q_a_layernorm") == 7


def test_the_groups_of_a_deepseek_v2_that_takes_the_best_of_all_mean_nothing(tmp_path: Path) -> None:
    one, groups = {"topk_method": "greedy", "n_group": 1, "topk_group": 1}, {"topk_method": "greedy"}
    configs = [load_config(write_config(tmp_path, "DeepseekV2ForCausalLM", **changes)) for changes in (one, groups)]
    assert configs[0] == configs[1] and configs[0].moe is not None and configs[0].moe.groups is None


def test_kimi_k2_is_a_deepseek_v3(tmp_path: Path) -> None:
    same = load_config(write_config(tmp_path, "DeepseekV3ForCausalLM"))
    assert load_config(write_config(tmp_path, "DeepseekV3ForCausalLM", model_type="kimi_k2")) == same


def test_layers_that_predict_further_tokens_are_named_and_not_read(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path, "DeepseekV3ForCausalLM"))
    tensors = {name: np.ones(shape, np.float32) for name, shape in expected_tensors(config).items()}
    drafts = {f"model.layers.2.{name}": np.ones(2, np.float32) for name in ("eh_proj.weight", "enorm.weight")}
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(tensors | drafts))
    diagnostics = Diagnostics()
    assert open_checkpoint(tmp_path, config, diagnostics).keys() == tensors.keys() and not diagnostics.problems
    assert diagnostics.warnings == [f"{tmp_path}: model.layers.2: 2 tensors that predict further tokens are not read"]
    beyond = {"model.layers.3.eh_proj.weight": np.ones(2, np.float32)}
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(tensors | beyond))
    with refused(WeightsError, "model.layers.3.eh_proj.weight", "is not one of the model's"):
        load_model(tmp_path)


def test_the_text_part_of_a_model_of_images_and_text(tmp_path: Path) -> None:
    """Gemma 3 from 4B on, whose text_config leaves most to the class, under both prefixes."""
    small = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "vocab_size": 13, "head_dim": 8}
    text = {**small, "model_type": "gemma3_text", "sliding_window": 3}
    outer = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": text}
    (tmp_path / "config.json").write_text(json.dumps(outer | {"eos_token_id": [1, 106], "vision_config": {}}))
    config = load_config(tmp_path)
    assert (config.num_attention_heads, config.num_key_value_heads, config.eos_token_ids) == (8, 4, (1, 106))
    assert config.tie_word_embeddings and config.wrapped
    plain = {name: np.ones(shape, np.float32) for name, shape in expected_tensors(config).items()}
    image = {"vision_tower.vision_model.embeddings.weight": np.ones(2, np.float32)}
    for prefix in ("language_model.model.", "model.language_model."):
        stored = {name.replace("model.", prefix, 1): x for name, x in plain.items()} | image
        (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(stored))
        assert load_model(tmp_path).norm.tolist() == [2.0] * 12
    (tmp_path / "config.json").write_text(json.dumps(outer | {"text_config": {"model_type": "gemma2"}}))
    with refused(ConfigError, "text_config is {'model_type': 'gemma2'}: it must be an object of model_type"):
        load_config(tmp_path)


def test_gemma_4_as_google_and_as_transformers_spell_the_widths_of_its_layers(tmp_path: Path) -> None:
    google = load_config(write_config(tmp_path, "Gemma4ForCausalLM"))
    by_layer = {i: {"head_dim": 16, "num_key_value_heads": 1} for i in ("1", "3")}
    changes = {"global_head_dim": ..., "num_global_key_value_heads": ..., "per_layer_config": by_layer}
    assert load_config(write_config(tmp_path, "Gemma4ForCausalLM", **changes)) == google
    assert [google.head_shape(i) for i in range(4)] == [(2, 8), (1, 16)] * 2
    assert [kind.kv_from for kind in kinds(google)] == [None, None, 0, 1]
    full = Rope(1e6, "proportional", partial_rotary_factor=0.25, head_dim=16)
    assert [kind.rope for kind in kinds(google)] == [Rope(1e4), full] * 2
    unshared = {"attention_k_eq_v": False, "num_kv_shared_layers": 0, "global_head_dim": ...}
    plain = load_config(write_config(tmp_path, "Gemma4ForCausalLM", **unshared))  # the other heads come with k as v
    assert [plain.head_shape(i) for i in range(4)] == [(2, 8), (2, 512)] * 2


def test_keys_that_a_layer_of_gemma_4_does_not_read_may_be_in_the_file(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path, "Gemma4ForCausalLM"))
    tensors = {name: np.ones(shape, np.float32) for name, shape in expected_tensors(config).items()}
    unread = {f"model.layers.2.self_attn.{name}.weight": np.ones((16, 12), np.float32) for name in ("k_proj", "v_proj")}
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(tensors | unread))
    assert set(load_model(tmp_path).layers[2].linears).isdisjoint(("k_proj", "v_proj"))
    read = {"model.layers.1.self_attn.v_proj.weight": np.ones((16, 12), np.float32)}  # k_proj makes its values
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(tensors | read))
    with refused(WeightsError, "model.layers.1.self_attn.v_proj.weight [16, 12] is not one of the model's"):
        load_model(tmp_path)


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model."])
def test_adapters_of_the_text_part_under_both_prefixes(tmp_path: Path, prefix: str) -> None:
    tensors = {name.replace(".model.model.", f".model.{prefix}", 1): x for name, x in lora_tensors().items()}
    inside = dataclasses.replace(BASE, wrapped=True)
    assert load_adapter(write_adapter(tmp_path, tensors), inside).lora.keys() == set(BASE.modules()[1:-1])
    with pytest.warns(AdapterWarning, match="those inside a model of vision and text"):
        load_adapter(tmp_path, BASE)
    image = {"base_model.model.model.vision_tower.layers.0.q_proj.lora_A.weight": np.ones((3, 2), np.float32)}
    with refused(AdapterError, "a vision tower"):
        load_adapter(write_adapter(tmp_path, tensors | image), inside)


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model."])
def test_a_pattern_of_modules_may_be_written_for_a_model_of_images_and_text(tmp_path: Path, prefix: str) -> None:
    """As it must be for Gemma 4, whose vision tower has modules of the same names that PEFT cannot target."""
    base = dataclasses.replace(BASE, wrapped=True)
    tensors = lora_tensors(modules=("q_proj", "down_proj"))
    stored = {name.replace(".model.model.", f".model.{prefix}", 1): x for name, x in tensors.items()}
    pattern = rf"{re.escape(prefix)}layers\.\d+\.(self_attn\.q_proj|mlp\.down_proj)"
    adapter = load_adapter(write_adapter(tmp_path, stored, target_modules=pattern), base)
    assert {name for _, name in adapter.lora} == {"q_proj", "down_proj"}
    with refused(AdapterError, "target_modules does not select it"):
        load_adapter(write_adapter(tmp_path, stored, target_modules=pattern, exclude_modules=rf"{prefix}.*"), base)
    with refused(AdapterError, "target_modules does not select it"):
        load_adapter(write_adapter(tmp_path, stored, target_modules=pattern.replace("q_proj", "k_proj")), base)


def test_the_embedding_factor_of_gemma_has_the_models_type(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path, "GemmaForCausalLM", hidden_size=3072))
    assert config.embedding_multiplier == 3072**0.5
    small = load_config(write_config(tmp_path, "GemmaForCausalLM"))
    tensors = {name: np.ones(shape, np.float32) for name, shape in expected_tensors(small).items()}
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    assert load_model(tmp_path, "bfloat16").config.embedding_multiplier == 3.46875  # of sqrt(12) = 3.4641


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Cohere2ForCausalLM", "LayerNorm, attention and MLP beside each other"),
        ("Starcoder2ForCausalLM", "LayerNorm, an MLP without a gate"),
        ("NemotronForCausalLM", "LayerNorm, an MLP without a gate"),
        ("Gemma4ForCausalLM", "layers that differ in their heads or modules, an input of its own for each layer"),
    ],
)
def test_a_family_without_gradients_is_refused_by_what_it_has(tmp_path: Path, name: str, says: str) -> None:
    with refused(LoracleError, f"training: there are no gradients for a base with {says}"):
        check_trainable(load_config(write_config(tmp_path, name)))


@pytest.mark.parametrize("name", ["Exaone4ForCausalLM", "LlamaForCausalLM", "Gemma3ForCausalLM"])
def test_a_family_with_gradients_is_not(tmp_path: Path, name: str) -> None:
    check_trainable(load_config(write_config(tmp_path, name)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", SMALL)
def test_what_is_saved_is_read_again_bit_for_bit(tmp_path: Path, name: str, dtype: str) -> None:
    config = load_config(write_config(tmp_path, name))
    rng = np.random.default_rng(0)
    shapes = expected_tensors(config)
    tensors = {key: rng.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    model = load_model(tmp_path, dtype)
    save_model(model, tmp_path / "saved")
    again = load_model(tmp_path / "saved", dtype)
    assert again.config == model.config
    for x, y in zip(model.arrays(), again.arrays(), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)
    assert json.loads((tmp_path / "saved/config.json").read_text())["architectures"] == [name]


def test_a_classifier_is_saved_with_its_head(tmp_path: Path) -> None:
    changes = {"architectures": ["Qwen3ForSequenceClassification"], "num_labels": 3}
    config = load_config(write_config(tmp_path, "Qwen3ForCausalLM", **changes))
    tensors = {name: np.ones(shape, np.float32) for name, shape in expected_tensors(config).items()}
    tensors["score.weight"] = np.arange(36, dtype=np.float32).reshape(3, 12)
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    model = load_model(tmp_path)
    save_model(model, tmp_path / "saved")
    again = load_model(tmp_path / "saved")
    assert again.config == config and config.labels == 3 and model.score is not None and again.score is not None
    np.testing.assert_array_equal(again.score.weight, model.score.weight)


@pytest.mark.parametrize("name", ["Qwen3ForCausalLM", "Phi3ForCausalLM"])
def test_a_family_whose_config_is_of_no_file_cannot_be_written(tmp_path: Path, name: str) -> None:
    config = dataclasses.replace(load_config(write_config(tmp_path, name)), keys={})
    says = "a model of no file is written as a Llama or Mistral", "norms" if "Qwen" in name else "qkv"
    with refused(WeightsError, str(tmp_path / "saved"), *says):
        save_model(random_model(config, 0), tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_config_that_has_changed_since_it_was_read_is_not_written(tmp_path: Path) -> None:
    config = dataclasses.replace(load_config(write_config(tmp_path, "GraniteForCausalLM")), logits_scaling=7.0)
    with refused(WeightsError, str(tmp_path / "saved"), "cannot say logits_scaling 7.0; it would be read as"):
        save_model(random_model(config, 0), tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
