"""config.json -> ModelConfig: every spelling in use is read, everything that means another model is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from folders import BASE, LFS_POINTER, config_json

from refimpl.config import ModelConfig, Rope
from refimpl.errors import ConfigError
from refimpl.loading.config_file import load_config

NAN, INF = float("nan"), float("inf")
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
MISTRAL = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}


def load(folder: Path, **changes: Any) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps(config_json(**changes)))
    return load_config(folder)


def test_every_field_is_read(tmp_path: Path) -> None:
    assert load(tmp_path) == BASE


@pytest.mark.parametrize(
    ("changes", "rope"),
    [
        ({}, Rope(10000.0)),
        ({"rope_theta": ...}, Rope(10000.0)),
        ({"rope_theta": 500000}, Rope(500000.0)),
        ({"rope_theta": ..., "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, Rope(5e5)),
        ({"rope_theta": 5e5, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, Rope(5e5)),
        ({"rope_theta": 5e5, "rope_parameters": {"rope_type": "default"}}, Rope(5e5)),
        ({"rope_scaling": None}, Rope()),
        ({"rope_scaling": {"type": "linear", "factor": 2.5}}, Rope(10000.0, "linear", 2.5)),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2}}, Rope(10000.0, "linear", 2.0)),
        ({"rope_scaling": {"rope_type": "linear", "type": "linear", "factor": 2}}, Rope(10000.0, "linear", 2.0)),
        ({"rope_scaling": {"type": "default"}}, Rope()),
        ({"rope_scaling": LLAMA3}, Rope(10000.0, "llama3", 8.0, 1.0, 4.0, 16)),
        ({"rope_parameters": LLAMA3 | {"rope_theta": 5e5}, "rope_theta": ...}, Rope(5e5, "llama3", 8.0, 1.0, 4.0, 16)),
        ({"rope_parameters": LLAMA3, "rope_scaling": LLAMA3}, Rope(10000.0, "llama3", 8.0, 1.0, 4.0, 16)),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 1.0}}, Rope()),
    ],
)
def test_rope_in_all_its_spellings(tmp_path: Path, changes: dict[str, Any], rope: Rope) -> None:
    assert load(tmp_path, **changes).rope == rope


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"num_key_value_heads": ...}, "num_key_value_heads", 4),
        ({"num_key_value_heads": None}, "num_key_value_heads", 4),
        ({"num_key_value_heads": 1}, "num_key_value_heads", 1),
        ({"head_dim": ..., "hidden_size": 16}, "head_dim", 4),
        ({"head_dim": None, "hidden_size": 16}, "head_dim", 4),
        ({"rms_norm_eps": ...}, "rms_norm_eps", 1e-6),
        ({"tie_word_embeddings": True}, "tie_word_embeddings", True),
        ({"tie_word_embeddings": ...}, "tie_word_embeddings", False),
        ({"attention_bias": True}, "attention_bias", True),
        ({"mlp_bias": True}, "mlp_bias", True),
        ({"eos_token_id": [3, 4]}, "eos_token_ids", (3, 4)),
        ({"eos_token_id": None}, "eos_token_ids", ()),
        ({"bos_token_id": None}, "bos_token_id", None),
        ({"bos_token_id": 0}, "bos_token_id", 0),
        ({"architectures": ...}, "vocab_size", 13),
        ({"model_type": ...}, "vocab_size", 13),
        ({"sliding_window": None}, "sliding_window", None),
        ({"pretraining_tp": 2, "use_cache": False, "something_new": 3}, "vocab_size", 13),
        ({"quantization_config": None, "auto_map": None}, "vocab_size", 13),
        ({"layer_types": ["full_attention", "full_attention"]}, "sliding_window", None),
        (MISTRAL, "sliding_window", 4096),
        (MISTRAL | {"sliding_window": None}, "sliding_window", None),
        (MISTRAL | {"sliding_window": 3}, "sliding_window", 3),
        (MISTRAL | {"sliding_window": 3, "layer_types": ["sliding_attention"] * 2}, "sliding_window", 3),
        (MISTRAL | {"num_key_value_heads": ..., "num_attention_heads": 16}, "num_key_value_heads", 8),
    ],
)
def test_what_may_be_left_out_or_differ(tmp_path: Path, changes: dict[str, Any], field: str, value: object) -> None:
    assert getattr(load(tmp_path, **changes), field) == value


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next"}, "Qwen3NextForCausalLM"),
        ({"architectures": ["LlamaForTokenClassification"]}, "LlamaForTokenClassification"),
        ({"architectures": ..., "model_type": "mamba"}, "mamba"),
        ({"architectures": ..., "model_type": ...}, "architectures None (model_type None) is none of the"),
        ({"architectures": "LlamaForCausalLM"}, "architectures"),
        ({"architectures": ["LlamaForCausalLM", "MistralForCausalLM"]}, "architectures"),
        ({"architectures": ["MistralForCausalLM"]}, "contradicts"),
        ({"model_type": 3}, "contradicts"),
        ({"quantization_config": {"quant_method": "aqlm"}}, "quant_method 'aqlm': only bitsandbytes' 4-bit nf4"),
        ({"quantization_config": {"quant_method": "awq", "bits": 3}}, "bits 3: only 4 is supported of awq"),
        ({"quantization_config": {"load_in_8bit": True, "quant_method": "bitsandbytes"}}, "is of 8 bits"),
        ({"quantization_config": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}}, "bnb_4bit_quant_type 'fp4'"),
        ({"quantization_config": "nf4"}, "quantization_config is 'nf4': it must be an object"),
        ({"hidden_act": "gelu"}, "must be 'silu'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"partial_rotary_factor": True}, "partial_rotary_factor"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}, "auto_map"),
        ({"num_local_experts": 8}, "num_local_experts"),
        ({"layer_types": ["sliding_attention", "full_attention"]}, "layer_types"),
        ({"layer_types": 3}, "layer_types"),
        ({"sliding_window": 8}, "LlamaForCausalLM has none"),
        (MISTRAL | {"attention_bias": True}, "MistralForCausalLM has none"),
        (MISTRAL | {"sliding_window": 0}, "sliding_window"),
        (MISTRAL | {"sliding_window": "all"}, "sliding_window"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic' is not supported"),
        ({"rope_scaling": {"type": "axial"}}, "'axial' is not supported"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "short_factor is None: it must be a list of numbers above 0"),
        ({"rope_scaling": LONGROPE | {"long_factor": [1.0]}}, "long_factor has 1 numbers; 8 channels turn, in 4 pairs"),
        ({"rope_scaling": LONGROPE | {"short_factor": [1, 1, 1, 0]}}, "short_factor is [1, 1, 1, 0]"),
        ({"rope_scaling": YARN, "original_max_position_embeddings": 8}, "original_max_position_embeddings is 8 but"),
        ({"rope_scaling": YARN | {"mscale": "1"}}, "mscale is '1': it must be a number"),
        ({"rope_scaling": YARN | {"truncate": 0}}, "truncate is 0"),
        ({"rope_scaling": {"type": "su"}}, "'su' is not supported"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 0}}, "factor is 0"),
        ({"rope_scaling": {"rope_type": "llama3", "type": "linear", "factor": 2.0}}, "rope_type"),
        ({"rope_scaling": "linear"}, "must be an object"),
        ({"rope_scaling": [1]}, "must be an object"),
        ({"rope_scaling": {"type": ["linear"]}}, "rope_type"),
        ({"rope_scaling": {"type": "linear"}}, "factor is missing"),
        ({"rope_scaling": {"type": "linear", "factor": -1}}, "factor is -1"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "attention_factor": 1.2}}, "attention_factor"),
        ({"rope_scaling": LLAMA3 | {"original_max_position_embeddings": None}}, "original_max_position_embeddings"),
        ({"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}}, "low_freq_factor"),
        ({"rope_scaling": LLAMA3 | {"factor": NAN}}, "factor is nan"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "rope_theta is 10000.0"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "a rope for each layer type"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}}, "partial_rotary_factor"),
        ({"rope_parameters": {"rope_type": "default"}, "rope_scaling": LLAMA3}, "differ"),
        ({"rope_theta": 0}, "rope_theta is 0"),
        ({"rope_theta": "1e4"}, "rope_theta is '1e4'"),
        ({"rope_theta": INF}, "rope_theta is inf"),
        ({"hidden_size": ...}, "hidden_size is missing"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"vocab_size": -5}, "vocab_size is -5"),
        ({"vocab_size": 13.0}, "vocab_size is 13.0"),
        ({"vocab_size": "13"}, "vocab_size is '13'"),
        ({"vocab_size": True}, "vocab_size is True"),
        ({"vocab_size": 2**31}, "vocab_size is 2147483648"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"num_key_value_heads": 3}, "not a multiple of num_key_value_heads 3"),
        ({"head_dim": 7}, "head_dim 7 is odd"),
        ({"head_dim": ..., "hidden_size": 13}, "not a multiple of num_attention_heads"),
        ({"rms_norm_eps": NAN}, "rms_norm_eps is nan"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0"),
        ({"rms_norm_eps": -1e-5}, "rms_norm_eps is -1e-05"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
        ({"attention_bias": 1}, "attention_bias is 1"),
        ({"eos_token_id": "</s>"}, "eos_token_id"),
        ({"eos_token_id": [2, -1]}, "eos_token_id"),
        ({"bos_token_id": -1}, "bos_token_id"),
    ],
)
def test_what_is_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(tmp_path, **changes)
    message = str(error.value)
    assert says in message
    assert message.startswith(str(tmp_path / "config.json"))
    assert "\n" not in message


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "is empty"),
        (b"   \n", "is empty"),
        (b"{", "not valid JSON"),
        (b"[1, 2]", "not a JSON object"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b'{"vocab_size": 1, "vocab_size": 2}', "duplicate key 'vocab_size'"),
        (b"[" * 200_000, "not valid JSON"),
        (b'{"vocab_size": ' + b"9" * 10_000 + b"}", "not valid JSON"),
        (LFS_POINTER, "Git LFS pointer to a file of size 167832240 bytes"),
    ],
)
def test_files_that_are_no_config(tmp_path: Path, raw: bytes, says: str) -> None:
    (tmp_path / "config.json").write_bytes(raw)
    with pytest.raises(ConfigError, match=says):
        load_config(tmp_path)


def test_folders_that_have_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no config\.json$"):
        load_config(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="it is an adapter, not a base model"):
        load_config(tmp_path)
    with pytest.raises(ConfigError, match="is not a folder"):
        load_config(tmp_path / "nowhere")


def test_more_than_one_problem_is_counted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\(and 2 more: loracle inspect .*\)$"):
        load(tmp_path, vocab_size=0, rms_norm_eps=-1, hidden_act="relu")


def test_generation_config_says_when_a_text_ends(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    assert load(tmp_path, eos_token_id=2).eos_token_ids == (7, 8)
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.6}')
    assert load(tmp_path, eos_token_id=5).eos_token_ids == (5,)
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"generation_config.json: is not valid JSON"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["Llama", "Mistral"])
def test_what_transformers_writes_and_assumes(tmp_path: Path, name: str) -> None:
    """A config that transformers saves reads back as transformers means it; so do the defaults of a bare one."""
    transformers = pytest.importorskip("transformers", reason="the config classes are compared with transformers'")
    theirs_class = getattr(transformers, f"{name}Config")
    sizes = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 20, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 6}
    theirs = theirs_class(**sizes, **heads, architectures=[f"{name}ForCausalLM"])
    theirs.save_pretrained(tmp_path)
    bare = {"architectures": [f"{name}ForCausalLM"], "model_type": name.lower(), **sizes, "num_attention_heads": 8}
    for _ in range(2):
        ours = load_config(tmp_path)
        for field in ("vocab_size", "num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings"):
            assert getattr(ours, field) == getattr(theirs, field), field
        assert ours.sliding_window == getattr(theirs, "sliding_window", None)
        assert ours.max_position_embeddings == theirs.max_position_embeddings
        assert (ours.bos_token_id, ours.eos_token_ids) == (theirs.bos_token_id, (theirs.eos_token_id,))
        assert ours.rope == Rope(theirs.rope_parameters["rope_theta"], theirs.rope_parameters["rope_type"])
        (tmp_path / "config.json").write_text(json.dumps(bare))
        theirs = theirs_class.from_pretrained(tmp_path)


def test_the_name_of_a_repository_is_not_downloaded() -> None:
    with pytest.raises(ConfigError, match=r"nothing is downloaded here: hf download meta-llama/Llama-3.2-1B --local"):
        load_config("meta-llama/Llama-3.2-1B")
