"""The model that lies in the package: its files, their shapes, and what its committed figures promise."""

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open
from tokenizers import Tokenizer

from refimpl import tiny
from refimpl.tiny.grammar import held_out, read_prompt, write_scene
from refimpl.tiny.voices import BASE, Voice
from refimpl.tiny.voices import VOICES as GRAMMAR_VOICES

FOLDER = Path(tiny.__file__).parent
BASE_FILES = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
VOICE_FILES = {"adapter_config.json", "adapter_model.safetensors"}


def _json(path: Path) -> dict:
    return json.loads(path.read_text())


CONFIG = _json(tiny.base_path() / "config.json")
ADAPTERS = {name: _json(folder / "adapter_config.json") for name, folder in tiny.VOICES.items()}


def test_the_files_are_those_of_hugging_face_and_peft_and_are_small() -> None:
    folders = {tiny.base_path(): BASE_FILES} | dict.fromkeys(tiny.VOICES.values(), VOICE_FILES)
    for folder, expected in folders.items():
        assert {path.name for path in folder.iterdir()} == expected
    assert sum(path.stat().st_size for folder in folders for path in folder.iterdir()) < 10_000_000


def test_the_voices_are_those_of_the_grammar() -> None:
    assert set(tiny.VOICES) == set(GRAMMAR_VOICES)


def test_the_base_is_a_plain_llama() -> None:
    assert CONFIG["architectures"] == ["LlamaForCausalLM"]
    assert CONFIG["num_attention_heads"] > CONFIG["num_key_value_heads"] > 1  # grouped, so that a wrong group shows
    assert CONFIG["head_dim"] == 64
    assert CONFIG["vocab_size"] % 64 == 0
    assert CONFIG["rope_theta"] == CONFIG["rope_parameters"]["rope_theta"] == 10000.0


def test_the_weights_have_the_shapes_of_the_config() -> None:
    hidden, inner, head_dim = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["head_dim"]
    queries, keys = CONFIG["num_attention_heads"] * head_dim, CONFIG["num_key_value_heads"] * head_dim
    expected = {"model.embed_tokens.weight": [CONFIG["vocab_size"], hidden], "model.norm.weight": [hidden]}
    for layer in range(CONFIG["num_hidden_layers"]):
        for name, shape in {
            "self_attn.q_proj": [queries, hidden],
            "self_attn.k_proj": [keys, hidden],
            "self_attn.v_proj": [keys, hidden],
            "self_attn.o_proj": [hidden, queries],
            "mlp.gate_proj": [inner, hidden],
            "mlp.up_proj": [inner, hidden],
            "mlp.down_proj": [hidden, inner],
            "input_layernorm": [hidden],
            "post_attention_layernorm": [hidden],
        }.items():
            expected[f"model.layers.{layer}.{name}.weight"] = shape
    with safe_open(tiny.base_path() / "model.safetensors", "numpy") as file:
        names = file.keys()
        found = {name: file.get_slice(name) for name in names}
        assert {name: part.get_shape() for name, part in found.items()} == expected
        assert {part.get_dtype() for part in found.values()} == {"BF16"}


def test_the_adapters_differ_in_everything_that_an_engine_must_get_right() -> None:
    ranks = {config["r"] for config in ADAPTERS.values()}
    assert len(ranks) == len(ADAPTERS)
    assert any(r & (r - 1) for r in ranks), "one rank is no power of two"
    assert len({frozenset(config["target_modules"]) for config in ADAPTERS.values()}) == len(ADAPTERS)
    assert sum(config["use_rslora"] for config in ADAPTERS.values()) == 1
    assert all(config["lora_alpha"] != config["r"] for config in ADAPTERS.values())


@pytest.mark.parametrize("name", tiny.VOICES)
def test_an_adapter_holds_the_pairs_that_its_config_names(name: str) -> None:
    config = ADAPTERS[name]
    assert config["base_model_name_or_path"] == "loracle-tiny"
    assert config["bias"] == "none"
    assert not config["modules_to_save"]
    key = re.compile(r"base_model\.model\.model\.layers\.(\d)\.(?:self_attn|mlp)\.(\w+)\.lora_([AB])\.weight")
    found = []
    with safe_open(tiny.VOICES[name] / "adapter_model.safetensors", "numpy") as file:
        tensors = file.keys()
        for tensor in tensors:
            layer, module, side = key.fullmatch(tensor).groups()
            assert file.get_slice(tensor).get_shape()[0 if side == "A" else 1] == config["r"]
            found.append((int(layer), module, side))
    layers = range(CONFIG["num_hidden_layers"])
    assert sorted(found) == sorted((i, m, side) for i in layers for m in config["target_modules"] for side in "AB")


def test_no_path_of_the_machine_that_trained_it() -> None:
    for path in FOLDER.rglob("*.json"):
        assert not re.search(r"/(root|tmp|home|work|opt)/", path.read_text()), path.name


TOKENIZER = Tokenizer.from_file(str(tiny.base_path() / "tokenizer.json"))


@pytest.mark.parametrize("voice", [BASE, *GRAMMAR_VOICES.values()], ids=lambda voice: voice.name)
def test_scenes_survive_the_tokenizer_and_fit_the_context(voice: Voice) -> None:
    rng = random.Random(0)
    for _ in range(50):
        scene = write_scene(rng, voice)
        text = f"{scene.prompt}\n{scene.completion}"
        ids = TOKENIZER.encode(text).ids
        assert ids[0] == CONFIG["bos_token_id"]
        assert TOKENIZER.decode(ids) == text
        assert len(ids) < CONFIG["max_position_embeddings"]
        assert ids[: len(TOKENIZER.encode(f"{scene.prompt}\n").ids)] == TOKENIZER.encode(f"{scene.prompt}\n").ids


@pytest.mark.parametrize("text", ["naïve café", "日本語", "\U0001f409 and a\ttab", "  two  spaces\n\n", "</s", "don't"])
def test_any_text_survives_the_tokenizer(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids) == text


def test_the_special_tokens_are_those_of_the_config() -> None:
    assert TOKENIZER.get_vocab_size() == CONFIG["vocab_size"]
    ids = [TOKENIZER.token_to_id(token) for token in ("<s>", "</s>", "<pad>")]
    assert ids == [CONFIG[f"{name}_token_id"] for name in ("bos", "eos", "pad")]


def test_the_demo_prompts_are_meetings_that_no_training_text_contains() -> None:
    for prompt in tiny.DEMO_PROMPTS:
        assert prompt.endswith("\n")
        slots = read_prompt(prompt.removesuffix("\n"))
        assert slots is not None, prompt
        assert held_out(slots), prompt


def test_the_paths_cost_no_imports() -> None:
    code = "import sys, refimpl.tiny; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert not {"numpy", "torch", "tokenizers", "safetensors"} & set(result.stdout.split())


@pytest.mark.parametrize("which", ["tuned", "fresh"])
@pytest.mark.parametrize("name", ["base", *tiny.VOICES])
def test_the_committed_figures_meet_the_bar(which: str, name: str) -> None:
    row = _json(FOLDER / "quality.json")[which][name]
    assert row["scenes"] == 200
    assert row["sentences pass"] >= (0.99 if name == "base" else 0.97)
    assert row["scenes consistent"] >= 0.95
    assert row["scenes end"] >= 0.95
    assert row["scenes not in training"] >= 0.5
    assert row["shuffled sentences rejected"] >= 0.99
    assert row["lines of another voice"] < 0.02
    if name != "base":
        assert row["lines marked"] >= 0.9
