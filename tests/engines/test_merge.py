"""What `loracle merge` writes, read by transformers: every family, every kind of adapter, in float64.

transformers and PEFT answer for the base with the adapter; then transformers alone for the merged folder."""

import json
from pathlib import Path
from typing import Any

import hugging_face as hf
import numpy as np
import pytest
import test_experts
from safetensors.numpy import load_file
from test_families import CASES, PROMPTS, SIZES, write

import refimpl
from refimpl import cli
from refimpl.tools.merge_folder import merge_folder, open_base

pytestmark = pytest.mark.filterwarnings("ignore:.*is the local path")  # PEFT saves where the base was

T = hf.transformers


def merge(base: Path, out: Path, *adapters: str, dtype: str | None = "float64") -> None:
    """Run the command."""
    options = ["--dtype", dtype] if dtype else []
    assert cli.main(["merge", str(base), *adapters, "--out", str(out), *options]) == 0


def check_same(base: Path, adapter: Path, out: Path, prompts: list[list[int]], tolerance: float = 1e-9) -> None:
    """transformers' logits of the merged folder are PEFT's of base + adapter."""
    names = ["a"] * len(prompts)
    theirs = hf.alone(base, {"a": adapter}, prompts, names)
    merged = hf.alone(out, {}, prompts, [hf.BASE] * len(prompts))
    for row, expected in zip(merged, theirs, strict=True):
        assert np.abs(row - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("case", CASES)
def test_transformers_answers_the_same_for_every_family(tmp_path: Path, case: str) -> None:
    """LoRA on every linear layer, or on some, the embedding and the head, of which a tied base has to part."""
    with hf.dense_layers():
        for name, adapter in write(tmp_path, case).items():
            merge(tmp_path / "base", tmp_path / f"merged-{name}", str(adapter))
            check_same(tmp_path / "base", adapter, tmp_path / f"merged-{name}", PROMPTS[:2])


KINDS: dict[str, dict[str, Any]] = {
    "dora": {"target_modules": "all-linear", "use_dora": True},
    "dora on both tables": {"target_modules": ["embed_tokens", "lm_head", "v_proj"], "use_dora": True},
    "lora_bias": {"target_modules": ["q_proj", "gate_proj"], "lora_bias": True},
    "bias all": {"target_modules": ["q_proj"], "bias": "all"},
    "modules_to_save": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [3, 60, 11]}},
    "patterns": {"target_modules": ["q_proj", "down_proj"], "rank_pattern": {"q_proj": 5}, "alpha_pattern": {"q_": 3}},
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_answers_the_same_for_every_kind_of_adapter(tmp_path: Path, kind: str, tied: bool) -> None:
    base = tmp_path / "base"
    config = T.LlamaConfig(**SIZES | {"tie_word_embeddings": tied, "attention_bias": kind == "bias all"})
    hf.write_model(config, base, seed=3)
    hf.write_adapter(base, hf.peft.LoraConfig(r=3, lora_alpha=7, **KINDS[kind]), tmp_path / "a", 5, copies=False)
    merge(base, tmp_path / "out", str(tmp_path / "a"))
    check_same(base, tmp_path / "a", tmp_path / "out", PROMPTS[:2])


@pytest.mark.parametrize("tied", [False, True])
def test_a_grown_vocabulary_in_shards(tmp_path: Path, tied: bool) -> None:
    """The base as it was, and the adapter of one with more tokens that saved both tables: what transformers 45127 is
    about. The merged folder has them, in as many files as the base."""
    base, grown = tmp_path / "base", tmp_path / "grown"
    config = T.LlamaConfig(**SIZES | {"tie_word_embeddings": tied})
    hf.write_model(config, base, seed=3)
    hf.grow(base, grown, 67, seed=1)
    spec = hf.peft.LoraConfig(r=3, lora_alpha=7, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    hf.write_adapter(grown, spec, tmp_path / "a", 5)
    sharded = tmp_path / "sharded"
    T.AutoModelForCausalLM.from_pretrained(base).save_pretrained(sharded, max_shard_size="30KB")
    files = {file.name for file in sharded.glob("*.safetensors")}
    assert len(files) > 2
    merge(sharded, tmp_path / "out", str(tmp_path / "a"))
    assert {file.name for file in (tmp_path / "out").glob("*.safetensors")} == files
    check_same(grown, tmp_path / "a", tmp_path / "out", [[3, 66, 61, 5]])


def test_the_text_part_of_a_model_of_images(tmp_path: Path) -> None:
    """Gemma 3 with images, as transformers 5 writes it: tied, and then not. What sees images is the same."""
    text = T.Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=4)
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    config = T.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=50)
    model = T.Gemma3ForConditionalGeneration(config)
    with hf.torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    model.save_pretrained(tmp_path / "base")
    spec = hf.peft.LoraConfig(r=3, lora_alpha=7, target_modules=["gate_proj", "down_proj", "lm_head"])
    with hf.quiet():
        wrapped = hf.peft.get_peft_model(model, spec)
        hf.randomise(wrapped, 4)
        wrapped.save_pretrained(tmp_path / "a", save_embedding_layers=False)
    merge(tmp_path / "base", tmp_path / "out", str(tmp_path / "a"))
    again = T.Gemma3ForConditionalGeneration.from_pretrained(tmp_path / "out", dtype=hf.torch.float64).eval()
    wrapped = wrapped.double().eval()
    ids = hf.torch.tensor([PROMPTS[0]])
    with hf.torch.no_grad():
        expected, row = (one(input_ids=ids).logits for one in (wrapped, again))
    assert float((row - expected).abs().max()) <= 1e-4 * float(expected.abs().max())  # rms norms are in float32 here
    before = model.model.vision_tower.state_dict()
    assert all(
        hf.torch.equal(x.double(), before[name].double()) for name, x in again.model.vision_tower.state_dict().items()
    )


def test_a_weighted_sum_is_the_sum_of_the_weights(tmp_path: Path) -> None:
    """0.5 a - 1.25 b, against PEFT, which adds the deltas of adapters that are active together."""
    base = tmp_path / "base"
    hf.write_model(T.LlamaConfig(**SIZES), base, seed=3)
    weights = {"a": 0.5, "b": -1.25}
    for seed, name in enumerate(weights):
        spec = hf.peft.LoraConfig(r=3 + seed, lora_alpha=7, target_modules=["q_proj", "up_proj", "embed_tokens"])
        hf.write_adapter(base, spec, tmp_path / name, seed, copies=False)
    merge(base, tmp_path / "out", *(f"{tmp_path / name}:{weight}" for name, weight in weights.items()))
    theirs = hf.load_exact(base, {name: tmp_path / name for name in weights})
    theirs.base_model.set_adapter(list(weights))
    for layer in hf.lora_layers(theirs):
        for name, weight in weights.items():
            layer.scaling[name] *= weight
    with hf.float64_throughout():
        expected = hf.logits(theirs, PROMPTS[:1])[0]
    row = hf.alone(tmp_path / "out", {}, PROMPTS[:1], [hf.BASE])[0]
    assert np.abs(row - expected).max() <= 1e-9 * np.abs(expected).max()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_type_of_the_base_is_kept_and_loaded(tmp_path: Path, dtype: str) -> None:
    """As PEFT's merge_and_unload, but rounded once: at most half a unit in the last place from the exact sum."""
    base = tmp_path / "base"
    hf.write_model(T.Qwen3Config(**SIZES, head_dim=8), base, seed=3, dtype=dtype)
    hf.write_adapter(base, hf.peft.LoraConfig(r=3, lora_alpha=7, target_modules="all-linear"), tmp_path / "a", 5)
    merge(base, tmp_path / "out", str(tmp_path / "a"), dtype=None)
    merged = T.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert merged.dtype == getattr(hf.torch, dtype)
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == dtype
    with hf.quiet():
        theirs = hf.load(base, {"a": tmp_path / "a"}, "float64").merge_and_unload().state_dict()
    for name, x in merged.state_dict().items():
        nearest = theirs[name].to(x.dtype)
        apart = (x.double() - theirs[name]).abs()
        assert bool((apart <= (nearest.double() - theirs[name]).abs() * (1 + 1e-6)).all())


@pytest.mark.parametrize("case", test_experts.CASES)
def test_experts_by_their_own_names(tmp_path: Path, case: str) -> None:
    """LoRA on everything: each tensor of the folder is the one that test_experts.py, whose folders transformers reads,
    makes of it. Routers, shared experts and stacks of all experts among them."""
    base = test_experts.write(tmp_path / "base", case)
    opened = open_base(base)
    adapter = test_experts.random_adapter(opened.config, 1, test_experts.lora_kinds(opened.config)["everything"])
    merge_folder(opened, [(adapter, 1.0)], tmp_path / "out", "float64")
    expected = load_file(test_experts.write_merged(base, adapter, tmp_path / "expected") / "model.safetensors")
    written = load_file(tmp_path / "out/model.safetensors")
    assert written.keys() == expected.keys()
    for name, x in expected.items():
        assert np.abs(written[name] - x).max() <= 1e-12 * np.abs(x).max(), name


@pytest.mark.parametrize("case", [case for case in test_experts.CASES if " " not in case])
def test_experts_as_transformers_5_holds_them(tmp_path: Path, case: str) -> None:
    """All experts of a layer in two tensors, of which an adapter has some: transformers reads the folder again."""
    base = test_experts.write(tmp_path / "base", case)
    T.AutoModelForCausalLM.from_pretrained(base).save_pretrained(tmp_path / "stacked", save_original_format=False)
    opened = open_base(tmp_path / "stacked")
    kinds = test_experts.lora_kinds(opened.config)
    adapter = test_experts.random_adapter(opened.config, 1, [*kinds["experts"][1::2], *kinds["attention"][::3]])
    merged = merge_folder(opened, [(adapter, 1.0)], tmp_path / "out", "float64")
    assert merged.changed < merged.tensors and merged.rounding < 1e-12
    expected = refimpl.logits(
        refimpl.load_model(tmp_path / "stacked", "float64"), [refimpl.Request(PROMPTS[0], adapter)]
    )[0]
    again = refimpl.load_model(tmp_path / "out", "float64")
    for row in (
        refimpl.logits(again, [refimpl.Request(PROMPTS[0])])[0],
        test_experts.theirs(tmp_path / "out", PROMPTS[:1])[0][0],
    ):
        assert np.abs(row - expected).max() <= 1e-9 * np.abs(expected).max()
