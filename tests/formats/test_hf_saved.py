"""What save_model writes is what load_model reads: the same bits, the same config."""

import dataclasses
import json
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from loading.folders import BASE, refused
from support.build import configs, random_adapter, random_model

import refimpl
from refimpl import tiny
from refimpl.config import ModelConfig
from refimpl.errors import WeightsError
from refimpl.formats.hf import save_model
from refimpl.loading.conversion import converted
from refimpl.loading.model_folder import load_model
from refimpl.weights import Model


def same_weights(a: Model, b: Model) -> bool:
    return [x.tobytes() for x in a.arrays()] == [x.tobytes() for x in b.arrays()]


@given(configs(), st.sampled_from(["float64", "float32", "float16", "bfloat16"]), st.booleans())
def test_any_model_survives(config: ModelConfig, dtype: str, bos: bool) -> None:
    if config.sliding_window is not None:
        config = dataclasses.replace(config, attention_bias=False, mlp_bias=False)
    config = dataclasses.replace(config, bos_token_id=0 if bos else None, eos_token_ids=(1, 2) if bos else ())
    model = random_model(config, 1)
    with tempfile.TemporaryDirectory() as name:
        save_model(model, Path(name) / "wide")
        first = load_model(Path(name) / "wide", dtype)
        save_model(first, Path(name) / "a" / "b")  # the folders around it are made
        again = load_model(Path(name) / "a" / "b", dtype)
        assert again.config == config
        assert same_weights(again, first)
        assert (again.lm_head.weight is again.embed_tokens) == config.tie_word_embeddings
        wanted = [converted(x, dtype).tobytes() for x in model.arrays()]
        assert [x.tobytes() for x in again.arrays()] == wanted


def test_the_embedded_model_with_its_tokenizer(tmp_path: Path) -> None:
    model = load_model("tiny", "bfloat16")
    save_model(model, tmp_path / "tiny")
    again = load_model(tmp_path / "tiny", "bfloat16")
    assert same_weights(again, model)
    assert again.config == model.config
    text = tiny.DEMO_PROMPTS[0]
    assert again.tokenizer.encode(text) == model.tokenizer.encode(text)
    names = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {x.name for x in (tmp_path / "tiny").iterdir()} == names
    written = json.loads((tmp_path / "tiny" / "config.json").read_text())
    assert (written["eos_token_id"], written["torch_dtype"], written["rope_scaling"]) == (1, "bfloat16", None)


def test_a_merged_head_is_no_longer_tied(tmp_path: Path) -> None:
    """An adapter on the embedding alone, merged: saved as tied, the head would change with it."""
    model = random_model(dataclasses.replace(BASE, tie_word_embeddings=True), dtype="float32")
    merged = refimpl.merged(model, random_adapter(BASE, 3, modules=("embed_tokens", "q_proj")))
    save_model(merged, tmp_path / "merged")
    again = load_model(tmp_path / "merged")
    assert again.config == dataclasses.replace(model.config, tie_word_embeddings=False)
    requests = [refimpl.Request([1, 2, 3])]
    assert np.array_equal(refimpl.logits(again, requests)[0], refimpl.logits(merged, requests)[0])


def test_what_config_json_cannot_say_leaves_nothing_behind(tmp_path: Path) -> None:
    model, target = random_model(BASE), tmp_path / "m"
    window = dataclasses.replace(BASE, sliding_window=4, attention_bias=True)
    with refused(WeightsError, str(target), "sliding_window 4", "biases"):
        save_model(random_model(window), target)
    grown = dataclasses.replace(model, embed_tokens=np.zeros((14, 12)))
    with refused(WeightsError, "model.embed_tokens.weight has shape [14, 12]", "[13, 12]"):
        save_model(grown, target)
    linears = model.layers[0].linears
    linears = linears | {"q_proj": dataclasses.replace(linears["q_proj"], bias=np.ones(32))}
    biased = dataclasses.replace(model, layers=(dataclasses.replace(model.layers[0], linears=linears), model.layers[1]))
    with refused(WeightsError, "model.layers.0.self_attn.q_proj.bias [32]"):
        save_model(biased, target)
    with refused(WeightsError, str(target), "model.norm.weight holds NaN"):
        save_model(dataclasses.replace(model, norm=np.full(12, np.nan)), target)
    unused = dataclasses.replace(BASE.rope, factor=8.0)
    with refused(WeightsError, str(target), "cannot say", "factor=8.0"):
        save_model(dataclasses.replace(model, config=dataclasses.replace(BASE, rope=unused)), target)
    assert [*tmp_path.iterdir()] == []
