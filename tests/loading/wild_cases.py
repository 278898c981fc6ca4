"""What people really had on disk, as small folders: each case writes a base and an adapter, and says what must happen.

The reports are linked where a case stands for one. Numbers are drawn; names, keys, shapes and files are the report's.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from loading.folders import (
    BASE,
    lora_name,
    lora_tensors,
    random,
    safetensors_bytes,
    write_adapter,
    write_model,
)

from refimpl.config import ATTENTION_MODULES, EMBED, LAYER_MODULES, LM_HEAD, ModelConfig, module_name

Tensors = dict[str, np.ndarray]
OUTSIDE = "base_model.model."
PREFIX = OUTSIDE + "model."


@dataclass(frozen=True)
class Case:
    """`write` makes ROOT/model and ROOT/adapter. `served`: generate answers; else it stops. Words are in what is said;
    `alone` are in what inspect says without a base, if that is another thing."""

    write: Callable[[Path], None]
    served: bool
    words: tuple[str, ...] = ()
    alone: tuple[str, ...] | None = None
    inspected: str = "adapter"
    sound_alone: bool | None = None  # None: as with the base
    generates: bool | None = None  # None: as inspect says


CASES: dict[str, Case] = {}


def folder(
    tensors: Tensors | Callable[[], Tensors] = lora_tensors,
    model: Mapping[str, Any] = {},
    files: Mapping[str, Any] = {},
    **config: Any,
) -> Callable[[Path], None]:
    """A writer of a plain base, with changes to its config.json, and of a PEFT folder with changes to its own.

    files: more files beside the adapter, as bytes, or as what JSON is made of."""

    def write(root: Path) -> None:
        write_model(root / "model", **model)
        write_adapter(root / "adapter", tensors() if callable(tensors) else tensors, **config)
        for name, content in files.items():
            raw = content if isinstance(content, bytes) else json.dumps(content).encode()
            (root / "adapter" / name).write_bytes(raw)

    return write


def case(name: str, write: Callable[[Path], None], served: bool, *words: str, **more: Any) -> None:
    CASES[name] = Case(write, served, words, **more)


def renamed(old: str, new: str, tensors: Tensors | None = None) -> Callable[[], Tensors]:
    """The tensors of an ordinary adapter under other names."""
    return lambda: {name.replace(old, new, 1): x for name, x in (tensors or lora_tensors()).items()}


def table(rows: int, seed: int = 7) -> np.ndarray:
    return random((rows, BASE.hidden_size), seed)


def pair(name: str, d_out: int, d_in: int, rank: int = 3) -> Tensors:
    return {f"{name}.lora_A.weight": random((rank, d_in)), f"{name}.lora_B.weight": random((d_out, rank), 1)}


def grown(modules: tuple[tuple[int, str], ...] = (EMBED, LM_HEAD), rows: int = 16) -> Tensors:
    """Each table as save_pretrained writes it after resize_token_embeddings: under three names."""
    tensors = lora_tensors()
    for module in (EMBED, LM_HEAD):
        new = table(rows, module == EMBED)
        tensors[lora_name(module, "weight")] = new
        if module in modules:
            tensors[lora_name(module, "modules_to_save.weight")] = new
            tensors[lora_name(module, "original_module.weight")] = new / 2
    return tensors


# ---------------------------------------------------------------------------------------------- other programs' files
def mlx(root: Path) -> None:
    write_model(root / "model")
    tensors = {
        name.removeprefix(OUTSIDE).replace("lora_A.weight", "lora_a").replace("lora_B.weight", "lora_b"): x.T
        for name, x in lora_tensors(modules=("q_proj", "v_proj")).items()
    }
    (root / "adapter").mkdir()
    (root / "adapter" / "adapters.safetensors").write_bytes(safetensors_bytes(tensors))
    keys = ["self_attn.q_proj", "self_attn.v_proj"]
    config = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": {"rank": 3, "scale": 20.0, "keys": keys}}
    (root / "adapter" / "adapter_config.json").write_text(json.dumps(config))


def only(name: str, content: bytes = b"") -> Callable[[Path], None]:
    """A folder that holds this file alone."""

    def write(root: Path) -> None:
        write_model(root / "model")
        (root / "adapter").mkdir()
        (root / "adapter" / name).parent.mkdir(exist_ok=True)
        (root / "adapter" / name).write_bytes(content)

    return write


def below(*folders: str) -> Callable[[Path], None]:
    """Adapters in folders of the folder."""

    def write(root: Path) -> None:
        write_model(root / "model")
        for name in folders:
            write_adapter(root / "adapter" / name)

    return write


def sharded(root: Path) -> None:
    write_model(root / "model")
    write_adapter(root / "adapter")
    (root / "adapter" / "adapter_model.safetensors").unlink()
    tensors, index = lora_tensors(), {}
    for i in range(2):
        name = f"adapter_model-0000{i + 1}-of-00002.safetensors"
        part = dict(list(tensors.items())[i::2])
        (root / "adapter" / name).write_bytes(safetensors_bytes(part))
        index |= dict.fromkeys(part, name)
    (root / "adapter" / "adapter_model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def hub_cache(root: Path) -> None:
    write_model(root / "model")
    cache = root / "models--someone--sql-lora"
    write_adapter(cache / "snapshots" / ("0123456789" * 4))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0123456789" * 4)


MISTRAL = {f"layers.0.attention.w{half}.lora_{side}.weight": random((2, 2)) for half in "qkvo" for side in "AB"}
TINKER = {
    PREFIX + f"unembed_tokens.lora_{side}.weight": random(shape) for side, shape in (("A", (3, 12)), ("B", (13, 3)))
}

case("mlx_lm", mlx, True, "mlx-lm (MLX)")
case("torchtune_minimal_config", folder(lora_dropout=..., bias=..., init_lora_weights=..., task_type=...), True)
case("gguf_lora", only("adapter.gguf", b"GGUF\x03\0\0\0"), False, "adapter.gguf", "GGUF", "give the file itself")
case("mlx_npz", only("adapters.npz"), False, "MLX", "save_safetensors")
case("torchtune_pt", only("adapter_0.pt"), False, "torchtune", "pickle", "safe_serialization")
case("mistral_finetune", only("lora.safetensors", safetensors_bytes(MISTRAL)), False, "mistral-finetune", "load_lora")
case("mistral_names", folder(MISTRAL), False, "mistral-finetune")
case("tinker_names", folder(lora_tensors() | TINKER, target_modules="all-linear"), True)
case("onnx_adapter", only("model.onnx_adapter"), False, "ONNX")
case("archive", only("checkpoint.tar"), False, "unpack it")
case("verl_folders", below("actor/lora_adapter"), False, "actor/lora_adapter")
case("training_folder", below("checkpoint-90", "checkpoint-100"), False, "checkpoint-90, checkpoint-100")
case("hub_cache_layout", hub_cache, False, "snapshots", inspected="models--someone--sql-lora")
case("sharded_adapter", sharded, True, "00001-of-00002", "PEFT does not load")

# ------------------------------------------------------------------------------------------------- damaged by saving
# https://github.com/huggingface/trl/issues/4416
case("zero3_empty_file", folder({}), False, "no tensors", "ZeRO-3")
# https://github.com/huggingface/accelerate/issues/3508
case(
    "zero3_empty_tensors", folder({name: np.zeros(0, np.float32) for name in lora_tensors()}), False, "empty", "ZeRO-3"
)
case(
    "one_empty_tensor",
    folder(lora_tensors() | {lora_name((0, "q_proj"), "lora_A.weight"): np.zeros((0, 12), np.float32)}),
    False,
    "empty",
    "ZeRO-3",
)
# https://github.com/huggingface/peft/issues/2957
case("compiled_outer_prefix", folder(renamed(OUTSIDE, f"_orig_mod.{OUTSIDE}")), False, "torch.compile", "_orig_mod.")
case("compiled_inner_prefix", folder(renamed(OUTSIDE, f"{OUTSIDE}_orig_mod.")), False, "torch.compile")
case("compiled_layers", folder(renamed(".self_attn", "._orig_mod.self_attn")), False, "torch.compile")
case("fsdp_prefix", folder(renamed(OUTSIDE, f"{OUTSIDE}_fsdp_wrapped_module.")), False, "FSDP", "state_dict")
case("fsdp_layers", folder(renamed(".self_attn", "._fsdp_wrapped_module.self_attn")), False, "FSDP")
case(
    "checkpointing_prefix",
    folder(renamed(".mlp", "._checkpoint_wrapped_module.mlp")),
    False,
    "activation checkpointing",
)
case("data_parallel_prefix", folder(renamed(OUTSIDE, f"module.{OUTSIDE}")), False, "DeepSpeed", "model.module")
case("wrapped_twice", folder(renamed(OUTSIDE, OUTSIDE * 2)), False, "wrapped twice")
case("value_head_wrapper", folder(renamed(OUTSIDE, f"{OUTSIDE}pretrained_model.")), False, "value head")
# https://github.com/huggingface/peft/issues/3110
case(
    "embedding_model_prefix",
    folder(renamed(PREFIX, OUTSIDE), task_type="FEATURE_EXTRACTION"),
    False,
    "AutoModel",
    "head",
)
case("one_model_too_much", folder(renamed(PREFIX, f"{PREFIX}model.")), False, "one 'model.' is too much")
case("adapter_name_in_keys", folder(renamed(".weight", ".default.weight")), False, "adapter's name")
case("no_prefix_at_all", folder(renamed(OUTSIDE, "")), False, OUTSIDE)
case(
    "embeddings_targeted_but_lost",
    folder(target_modules=[*LAYER_MODULES, "embed_tokens", "lm_head"]),
    False,
    "embed_tokens",
    "no tensors",
    alone=(),
    sound_alone=True,
)
case("rank_pattern_lost", folder(lora_tensors() | lora_tensors(rank=2, modules=("q_proj",))), False, "rank 3")
case(
    "overflowed_half",
    folder({name: np.full_like(x, np.inf, np.float16) for name, x in lora_tensors().items()}),
    False,
    "NaN or inf",
)

# ------------------------------------------------------------------------------------------- a model of vision and text
for number, prefix in enumerate(
    ("model.language_model.", "language_model.model.", "language_model.", "model.text_model.")
):
    case(
        f"text_of_a_wrapper_{number}",
        folder(renamed("model.layers", f"{prefix}layers")),
        True,
        "vision and text",
        prefix,
        alone=(),
    )
for part in (
    "model.vision_tower",
    "visual",
    "model.multi_modal_projector",
    "model.connector",
    "audio_tower",
    "model.embed_vision",
):
    extra = pair(f"{OUTSIDE}{part}.layers.0.q_proj", 4, 4)
    case(f"part_{part}", folder(lora_tensors() | extra), False, f"{OUTSIDE}{part}", "sees or hears")

# ------------------------------------------------------------------------------------------------- keys of the config
# https://github.com/verl-project/verl: json.dump(asdict(LoraConfig))
case("verl_runtime_config", folder(runtime_config={"ephemeral_gpu_offload": False}), True)
case("swift_keys", folder(lora_dtype="bfloat16", lorap_lr_ratio=4.0, lorap_emb_lr=1e-6), True)
# https://github.com/unslothai/unsloth/pull/9331
case("tying_flag_without_embeddings", folder(ensure_weight_tying=True), True)
case("eva", folder(init_lora_weights="eva", eva_config={"rho": 2.0}), True)
case("loftq", folder(init_lora_weights="loftq"), False, "loftq")
case("corda", folder(init_lora_weights="corda"), False, "corda")
case("null_alpha", folder(lora_alpha=None), False, "lora_alpha")
case("verl_merger_alpha_zero", folder(lora_alpha=0), True, "switched off")
case("moe_target_parameters", folder(target_parameters=["mlp.experts.gate_up_proj"]), False, "target_parameters")
case("all_of_pefts_keys", folder(kasa_config=None, velora_config=None, use_bdlora=None, arrow_config=None), True)
case(
    "unsloth_regex",
    folder(target_modules=r"(?:.*?(?:language|text)?.*?(?:self_attn|mlp).*?(?:q|k|v|o|gate|up|down)_proj)"),
    True,
)
case("axolotl_nulls", folder(fan_in_fan_out=None, modules_to_save=[], rank_pattern=None), True)

# --------------------------------------------------------------------------------------- the base that was trained on
QUANTISED = {
    "bnb_4bit": "unsloth/llama-3-8b-bnb-4bit",
    "unsloth_bnb": "unsloth/Llama-3.2-1B-unsloth-bnb-4bit",
    "gptq": "someone/Llama-3-8B-Instruct-GPTQ",
    "gptq_int4": "Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4",
    "awq": "someone/Llama-3-8B-Instruct-AWQ-INT4",
    "awq_small": "casperhansen/llama-3-8b-instruct-awq",
    "mlx_4bit": "mlx-community/Llama-3.2-3B-Instruct-4bit",
    "mlx_8bit": "mlx-community/Llama-3.2-3B-Instruct-8bit",
    "fp8": "someone/Llama-3.1-8B-Instruct-FP8",
    "fp8_dynamic": "neuralmagic/Llama-3.1-8B-FP8-dynamic",
    "w4a16": "RedHatAI/Llama-3.1-8B-Instruct-quantized.w4a16",
    "nvfp4": "nvidia/Llama-3.1-8B-Instruct-NVFP4",
    "exl2": "turboderp/Llama-3-8B-exl2-4.0bpw",
    "gguf": "someone/Llama-3-8B-Q4_K_M-GGUF",
    "hqq": "mobiuslabsgmbh/Llama-3-8B-HQQ",
    "local": "/nowhere/models/llama-3-8b-int8",
}
for kind, full_name in QUANTISED.items():
    case(f"trained_on_{kind}", folder(base_model_name_or_path=full_name), True, "quantised")
# https://github.com/hiyouga/LLaMA-Factory/issues/6105
case(
    "same_shape_other_base",
    folder(model={"_name_or_path": "example/Base-8B-Instruct"}, base_model_name_or_path="example/Base-8B"),
    True,
    "'example/Base-8B'",
    "'example/Base-8B-Instruct'",
    alone=("example/Base-8B",),
)


def other_base(config: ModelConfig) -> Callable[[], Tensors]:
    return lambda: lora_tensors(config)


case(
    "trained_on_a_wider_base",
    folder(lora_tensors(ModelConfig(13, 24, 40, 2, 4, 2, 8))),
    False,
    "hidden size 24",
    "shape",
    sound_alone=True,
    alone=(),
)
case(
    "trained_on_a_deeper_base",
    folder(lora_tensors(ModelConfig(13, 12, 20, 4, 4, 2, 8))),
    False,
    "4 layers",
    "layer 2",
    sound_alone=True,
    alone=(),
)
ONE_LAYER = {name: x for name, x in lora_tensors().items() if "layers.0." in name}
case("trained_on_a_shallower_base", folder(ONE_LAYER), False, "layers.1", sound_alone=True, alone=())
FUSED = {
    **pair(f"{PREFIX}layers.0.self_attn.qkv_proj", 64, 12),
    **pair(f"{PREFIX}layers.0.mlp.gate_up_proj", 40, 12),
}
case(
    "fused_names",
    folder(FUSED, target_modules=["qkv_proj", "gate_up_proj"]),
    False,
    "qkv_proj",
    "fused",
    alone=(),
    sound_alone=True,
)
FALCON = pair(f"{PREFIX}layers.0.self_attn.query_key_value", 64, 12)
case("fused_falcon", folder(FALCON, target_modules=["query_key_value"]), False, "fused")
GPT2 = pair(f"{OUTSIDE}transformer.h.0.attn.c_proj", 12, 12)
case("gpt2_names", folder(GPT2, target_modules=["c_proj"]), False, "another architecture")

# ------------------------------------------------------------------------------------------------ vocabulary and heads
SAVED = {"modules_to_save": ["embed_tokens", "lm_head"]}
# https://github.com/hiyouga/LLaMA-Factory/issues/7997, peft 1700, unsloth 978
case("grown_vocabulary_peft_default_save", folder(grown(), **SAVED), True)
case("grown_vocabulary_lm_head_saved", folder(grown((LM_HEAD,)), modules_to_save=["lm_head"]), True)
case("grown_vocabulary_embed_saved", folder(grown((EMBED,)), modules_to_save=["embed_tokens"]), True)
OTHER = grown() | {lora_name(LM_HEAD, "modules_to_save.weight"): table(16, 5)}
case("grown_vocabulary_two_versions", folder(OTHER, **SAVED), False, "lm_head.modules_to_save.weight", "differ")
case(
    "base_grew_after_training",
    folder(lora_tensors() | {lora_name(one, "weight"): table(12) for one in (EMBED, LM_HEAD)}, **SAVED),
    False,
    "13 or more",
    sound_alone=True,
    alone=(),
)
case(
    "only_embeddings_grown",
    folder(lora_tensors() | {lora_name(EMBED, "weight"): table(16)}, modules_to_save=["embed_tokens"]),
    False,
    "only one of the two",
    sound_alone=True,
    alone=(),
)
ROWS = {
    lora_name(EMBED, "token_adapter.trainable_tokens_delta"): table(2),
    lora_name(EMBED, "token_adapter.base_layer.weight"): table(16),
    lora_name(LM_HEAD, "weight"): table(16, 9),
}
case(
    "new_tokens_of_a_grown_vocabulary",
    folder(lora_tensors() | ROWS, trainable_token_indices={"embed_tokens": [13, 15]}),
    True,
)
case(
    "new_tokens_without_a_row",
    folder(lora_tensors() | ROWS, trainable_token_indices={"embed_tokens": [13, 16]}),
    False,
    "names token 16, outside of the vocabulary of 16",
)
# https://github.com/vllm-project/vllm/issues/2816
NEW_ROWS = {
    "new_embeddings.safetensors": safetensors_bytes({"input_embeddings": table(2), "output_embeddings": table(2)})
}
WORDS = {"added_tokens.json": {"[user]": 13, "[/user]": 14}}
case("extra_vocabulary_file", folder(files=NEW_ROWS | WORDS), False, "new_embeddings.safetensors")
TABLE = {
    lora_name(EMBED, "lora_embedding_A"): random((3, 15)),
    lora_name(EMBED, "lora_embedding_B"): random((12, 3)),
}
case(
    "extra_vocabulary_with_lora_on_the_tables",
    folder(lora_tensors() | TABLE, files=NEW_ROWS | WORDS, target_modules=[*LAYER_MODULES, "embed_tokens"]),
    False,
    "new_embeddings.safetensors",
)
case("mistral_checkpoint", only("consolidated/lora.safetensors"), False, "mistral-finetune")
case("corda_converted", folder(corda_config={"corda_method": "kpm"}, lora_ga_config={"scale": 1}), True)
case(
    "added_tokens_without_rows",
    folder(files=WORDS),
    False,
    "added_tokens.json",
    "'[user]' as token 13",
    alone=("added_tokens.json",),
    sound_alone=True,
)
case("added_tokens_with_rows", folder(grown(), files=WORDS, **SAVED), True)
case("added_padding", folder(files={"added_tokens.json": {"<pad>": 13}}), True, "can only be padding", alone=())
case(
    "value_head_beside", folder(files={"value_head.safetensors": safetensors_bytes({"v_head.weight": table(1)})}), True
)
case(
    "classification_head",
    folder(lora_tensors() | {f"{OUTSIDE}score.weight": table(3)}, task_type="SEQ_CLS"),
    True,
    "score",
    generates=False,
)
BIASES = {
    lora_name((i, name), "base_layer.bias"): random(BASE.shape((i, name))[:1])
    for i in range(2)
    for name in ATTENTION_MODULES
}


def biased(root: Path) -> None:
    from loading.folders import model_tensors

    zeros = {
        f"{module_name((i, name))}.bias": random(BASE.shape((i, name))[:1], 3)
        for i in range(2)
        for name in ATTENTION_MODULES
    }
    folder(lora_tensors() | BIASES, bias="all")(root)
    write_model(root / "model", model_tensors() | zeros, attention_bias=True)


case("bias_all", biased, True)
case(
    "base_and_adapter_in_one_folder",
    lambda root: (folder()(root), write_adapter(root / "model"), None)[2],
    True,
    inspected="model",
)
