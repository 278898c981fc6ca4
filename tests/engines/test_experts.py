"""Every family with experts, against transformers in float64: first which experts each token goes through, and with
which margin, then the logits. LoRA on attention, routers, experts and shared experts is merged into the tensors of the
checkpoint here, since PEFT on transformers 5 has no modules for them, and one mixed batch is compared with the merged
models, each run alone."""

import dataclasses
import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hugging_face as hf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import refimpl
from refimpl import routing
from refimpl.adapter import Adapter, LoraTensors, PeftConfig
from refimpl.config import ModelConfig, Module, module_name
from refimpl.ops import NUMPY

T = hf.transformers
SIZES = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
QWEN = {"num_experts": 5, "moe_intermediate_size": 10, "num_experts_per_tok": 2}
GRANITE = {
    "attention_multiplier": 0.3,
    "embedding_multiplier": 2.5,
    "residual_multiplier": 0.4,
    "logits_scaling": 6.0,
}
HYBRID = {**GRANITE, "layer_types": ["full_attention"] * 3, "mamba_n_heads": 6}
GLM = {"n_routed_experts": 6, "moe_intermediate_size": 10, "num_experts_per_tok": 3, "head_dim": 8}

# A name, the class of its config, and what differs from SIZES. Each rule of a family is in one of them at least.
CASES: dict[str, tuple[type, dict[str, Any]]] = {
    "mixtral": (T.MixtralConfig, {"num_local_experts": 4}),
    "mixtral window": (T.MixtralConfig, {"num_local_experts": 3, "sliding_window": 5, "num_experts_per_tok": 1}),
    "mixtral all": (T.MixtralConfig, {"num_local_experts": 3, "num_experts_per_tok": 3, "tie_word_embeddings": True}),
    "qwen2": (T.Qwen2MoeConfig, {**QWEN, "shared_expert_intermediate_size": 14}),
    "qwen2 dense layers": (
        T.Qwen2MoeConfig,
        {
            **QWEN,
            "shared_expert_intermediate_size": 6,
            "mlp_only_layers": [1],
            "norm_topk_prob": True,
            "qkv_bias": False,
        },
    ),
    "qwen2 window": (
        T.Qwen2MoeConfig,
        {
            **QWEN,
            "shared_expert_intermediate_size": 14,
            "use_sliding_window": True,
            "sliding_window": 4,
            "max_window_layers": 3,
        },
    ),
    "qwen3": (T.Qwen3MoeConfig, {**QWEN, "head_dim": 8, "norm_topk_prob": True}),
    "qwen3 steps": (
        T.Qwen3MoeConfig,
        {**QWEN, "head_dim": 10, "decoder_sparse_step": 2, "num_hidden_layers": 4, "attention_bias": True},
    ),
    "qwen3 window": (
        T.Qwen3MoeConfig,
        {**QWEN, "num_experts_per_tok": 4, "use_sliding_window": True, "sliding_window": 6, "mlp_only_layers": [0]},
    ),
}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 10,
    "q_lora_rank": 9,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 5,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 6,
    "first_k_dense_replace": 1,
}
CASES |= {
    "deepseek_v2": (T.DeepseekV2Config, LATENT | {"n_shared_experts": 2}),
    "deepseek_v2 groups": (
        T.DeepseekV2Config,
        LATENT | {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "routed_scaling_factor": 4.0},
    ),
    "deepseek_v3": (T.DeepseekV3Config, LATENT | {"n_group": 4, "topk_group": 2}),
    "deepseek_v3 one group": (
        T.DeepseekV3Config,
        LATENT | {"n_group": 1, "topk_group": 1, "norm_topk_prob": False, "n_shared_experts": 2, "q_lora_rank": None},
    ),
    "glm_flash": (T.Glm4MoeLiteConfig, LATENT | {"mlp_layer_types": ["sparse", "dense", "sparse"]}),
}
CASES |= {
    "granite": (T.GraniteMoeConfig, {"num_local_experts": 4, **GRANITE}),
    "granite biases": (T.GraniteMoeConfig, {"num_local_experts": 3, "num_experts_per_tok": 3, "attention_bias": True}),
    "granite_shared": (T.GraniteMoeSharedConfig, {"num_local_experts": 4, "shared_intermediate_size": 14, **GRANITE}),
    "granite_shared alone": (T.GraniteMoeSharedConfig, {"num_local_experts": 4, "shared_intermediate_size": 0}),
    "granite4": (
        T.GraniteMoeHybridConfig,
        {"num_local_experts": 4, "shared_intermediate_size": 14, "position_embedding_type": "rope", **HYBRID},
    ),
    "granite4 without rope": (
        T.GraniteMoeHybridConfig,
        {"num_local_experts": 3, "shared_intermediate_size": 14, "position_embedding_type": None, **HYBRID},
    ),
    "glm": (T.Glm4MoeConfig, {**GLM, "routed_scaling_factor": 1.8}),
    "glm groups": (
        T.Glm4MoeConfig,
        {**GLM, "n_group": 3, "topk_group": 2, "n_shared_experts": 2, "use_qk_norm": True, "attention_bias": True},
    ),
    "glm plain": (T.Glm4MoeConfig, {**GLM, "norm_topk_prob": False, "first_k_dense_replace": 0, "head_dim": 12}),
}
GPT = {"num_local_experts": 5, "num_experts_per_tok": 2, "head_dim": 6, "sliding_window": 5}
CASES |= {
    "gptoss": (T.GptOssConfig, GPT),
    "gptoss all full": (
        T.GptOssConfig,
        {**GPT, "layer_types": ["full_attention"] * 3, "attention_bias": False, "num_experts_per_tok": 5},
    ),
    "gptoss layers": (
        T.GptOssConfig,
        {
            **GPT,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
            "num_experts_per_tok": 1,
            "sliding_window": 1,
            "swiglu_alpha": 0.9,
            "swiglu_limit": 1.5,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
}
PROMPTS = [[7, 1, 33, 9, 60, 2, 2, 15, 48, 3, 11, 5], [4, 8, 15, 16, 23], [42], list(range(3, 25)), [9, 9, 1]]


def config_of(case: str) -> hf.Config:
    """The config of a case, as transformers completes it."""
    kind, changes = CASES[case]
    return kind(**SIZES | changes)


def write(folder: Path, case: str, dtype: str = "float32") -> Path:
    """Write the base of a case."""
    return write_base(folder, config_of(case), len(case), dtype)


def write_base(folder: Path, config: hf.Config, seed: int, dtype: str = "float32") -> Path:
    """Write a random base, with corrections of the choice that are not 0."""
    hf.write_model(config, folder, seed, dtype)
    tensors = load_file(folder / "model.safetensors")
    rng = np.random.default_rng(seed)
    for name, x in tensors.items():
        if name.endswith("e_score_correction_bias"):
            x[:] = rng.standard_normal(x.shape) / 3
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def random_adapter(config: ModelConfig, seed: int, modules: list[Module], r: int = 2) -> Adapter:
    """LoRA on these modules, of about the size of the base, of which the router gets less: choices stay clear."""
    rng, lora = np.random.default_rng([seed, 5]), {}
    for module in modules:
        d_out, d_in = config.shape(module)
        A, B = rng.standard_normal((r, d_in)), rng.standard_normal((d_out, r))
        lora[module] = LoraTensors(A / np.sqrt(d_in), B / (2 * np.sqrt(r)))
    return Adapter(f"adapter-{seed}", PeftConfig(r, 3.0), lora)


def write_merged(base: Path, adapter: Adapter, folder: Path) -> Path:
    """Write the base with W + s B A in the place of W, in float64: s is alpha / r."""
    tensors = {name: x.astype(np.float64) for name, x in load_file(base / "model.safetensors").items()}
    for module, lora in adapter.lora.items():
        merge(tensors, module_name(module), adapter.config.lora_alpha / adapter.config.r * (lora.B @ lora.A))
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text((base / "config.json").read_text())
    return folder


def merge(tensors: dict[str, np.ndarray], name: str, delta: np.ndarray) -> None:
    """Add a delta to a module's weight, by its name in the checkpoint, or in the stack of all experts."""
    expert = re.fullmatch(r"(.+\.block_sparse_moe)\.experts\.(\d+)\.(gate|up|down)_proj", name)
    if expert:  # of a Granite
        stack = tensors[f"{expert[1]}.{'output' if expert[3] == 'down' else 'input'}_linear.weight"][int(expert[2])]
        half = len(stack) // 2
        stack[{"gate": slice(half), "up": slice(half, None), "down": slice(None)}[expert[3]]] += delta
        return
    if f"{name}.weight" in tensors:
        tensors[f"{name}.weight"] += delta
        return
    experts, number, module = name.rsplit(".", 2)  # of gpt-oss, whose stacks are transposed
    columns = {"gate_proj": slice(0, None, 2), "up_proj": slice(1, None, 2)}.get(module, slice(None))
    stack = tensors[f"{experts}.{'down_proj' if module == 'down_proj' else 'gate_up_proj'}"]
    stack[int(number), :, columns] += delta.T


def theirs(base: Path, prompts: hf.Prompts, dtype: str = "") -> tuple[hf.Logits, list[list[np.ndarray]]]:
    """(logits, the experts of each layer with experts, sorted, [tokens, top_k]) of each prompt alone."""
    model = hf.load(base, {}, dtype) if dtype else hf.load_exact(base, {})
    stored = load_file(base / "model.safetensors")
    for name, parameter in model.named_parameters():
        if not dtype and name in stored:  # routers of some classes are loaded as float32, whatever is asked for
            parameter.data = hf.torch.as_tensor(stored[name]).double()
    choices: list[np.ndarray] = []
    for name, module in model.named_modules():
        if name.endswith((".mlp.gate", ".mlp.router", ".block_sparse_moe.router")):
            module.register_forward_hook(lambda *call: choices.append(np.sort(call[2][2].numpy(), axis=-1)))
    logits, chosen = [], []
    for prompt in prompts:
        choices.clear()
        with hf.contextlib.nullcontext() if dtype else hf.float64_throughout():
            logits += hf.logits(model, [prompt])
        chosen.append([x.copy() for x in choices])
    return logits, chosen


def ours(base: Path, requests: list[refimpl.Request]) -> tuple[hf.Logits, list[list[np.ndarray]], float]:
    """(logits, the experts of each layer of each request, sorted, the smallest margin of all choices)."""
    choices: list[np.ndarray] = []
    margins = []

    def route(logits: np.ndarray, correction: Any, moe: Any, p: Any) -> Any:
        ids, weights = routing.route(logits, correction, moe, p)
        choices.append(np.sort(ids, axis=-1))
        margins.append(routing.margin(logits, correction, moe).min())
        return ids, weights

    model = refimpl.load_model(base, "float64")
    logits = refimpl.logits(model, requests, dataclasses.replace(NUMPY, route=route))
    edges = np.cumsum([0, *(len(request.prompt_ids) for request in requests)])
    chosen = [[x[start:stop] for x in choices] for start, stop in itertools.pairwise(edges)]
    return logits, chosen, min(margins)


def assert_same(expected: tuple[hf.Logits, list[list[np.ndarray]]], result: tuple[Any, Any, float]) -> None:
    """The same experts, chosen by more than rounding can change, and then the same logits."""
    logits, chosen, margin = result
    assert margin > 1e-9, "a choice is too close: draw another model"
    for i, (experts, expected_experts) in enumerate(zip(chosen, expected[1], strict=True)):
        assert len(experts) == len(expected_experts) > 0
        for x, y in zip(experts, expected_experts, strict=True):
            np.testing.assert_array_equal(x, y, err_msg=f"experts of request {i}")
    for row, expected_row in zip(logits, expected[0], strict=True):
        assert np.abs(row - expected_row).max() <= 1e-9 * np.abs(expected_row).max()


def lora_kinds(config: ModelConfig) -> Mapping[str, list[Module]]:
    """The modules of a model by what they are to its experts."""
    moe = config.moe
    assert moe is not None
    inner = [module for module in config.modules() if module[0] >= 0]
    kinds = {
        "attention": [module for module in inner if module[1] in (*config.qkv, "o_proj")],
        "router": [module for module in inner if module[1] == moe.router],
        "experts": [module for module in inner if module[1].startswith(f"{moe.expert}.")],
    }
    kinds["others"] = [module for module in inner if not any(module in modules for modules in kinds.values())]
    return {name: modules for name, modules in kinds.items() if modules} | {"everything": inner}


@pytest.mark.parametrize("case", CASES)
def test_the_base_and_lora_on_each_kind_of_module(tmp_path: Path, case: str) -> None:
    """One mixed batch: the base, an adapter on each kind of module, and one on all."""
    base = write(tmp_path / "base", case)
    config = refimpl.load_model(base).config
    kinds = lora_kinds(config)
    assert {"attention", "router", "experts", "everything"} <= kinds.keys()
    requests, expected_logits, expected_chosen = [], [], []
    for i, (name, modules) in enumerate([("base", []), *kinds.items()]):
        prompts = [PROMPTS[i % len(PROMPTS)], PROMPTS[(i + 3) % len(PROMPTS)]]
        adapter = random_adapter(config, i, modules) if modules else None
        folder = write_merged(base, adapter, tmp_path / name) if adapter else base
        logits, chosen = theirs(folder, prompts)
        expected_logits += logits
        expected_chosen += chosen
        requests += [refimpl.Request(prompt, adapter) for prompt in prompts]
    assert_same((expected_logits, expected_chosen), ours(base, requests))


@pytest.mark.parametrize("case", [case for case in CASES if " " not in case])
def test_as_transformers_5_holds_them(tmp_path: Path, case: str) -> None:
    """The experts of a layer in two tensors, and the router under another name."""
    base = write(tmp_path / "base", case)
    model = T.AutoModelForCausalLM.from_pretrained(base)
    model.save_pretrained(tmp_path / "held", save_original_format=False)
    stored = load_file(tmp_path / "held/model.safetensors")
    assert any(name.endswith("experts.gate_up_proj") for name in stored)
    first, second = (refimpl.load_model(folder, "float64") for folder in (base, tmp_path / "held"))
    assert first.config == second.config
    requests = [refimpl.Request(prompt) for prompt in PROMPTS]
    for x, y in zip(refimpl.logits(first, requests), refimpl.logits(second, requests), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("case", [case for case in CASES if " " not in case])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_types_lie_in_the_noise_of_their_own_precision(tmp_path: Path, case: str, dtype: str) -> None:
    """Where both choose the experts of the exact model, transformers is as far from it as we are with the points of its
    class, and nearer to us than to it."""
    base = write(tmp_path / "base", case, dtype)
    prompts = [list(range(3, 25)), list(range(59, 20, -2)), [9, 9, 1]]
    rows, _ = theirs(base, prompts, dtype)
    requests = [refimpl.Request(prompt) for prompt in prompts]
    half = refimpl.load_model(base, dtype)
    near = refimpl.logits(half, requests, precision=refimpl.Precision("transformers", dtype))
    exact = refimpl.logits(refimpl.load_model(base, "float64"), requests)
    error, noise, apart = (
        np.median([np.sqrt(np.mean((x - y) ** 2)) for one, two in pairs for x, y in zip(one, two, strict=True)])
        for pairs in (zip(rows, exact, strict=True), zip(near, exact, strict=True), zip(rows, near, strict=True))
    )
    assert 0.6 < error / noise < 1.6
    assert apart < error
