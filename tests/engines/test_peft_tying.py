"""ensure_weight_tying as PEFT computes it: nothing where it ties nothing, and one LoRA for two tied tables."""

import dataclasses
from pathlib import Path

import hugging_face as hf
import pytest
import test_families
from examples import Example, examples, on_disk, worst
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import refimpl
from refimpl.config import EMBED, LM_HEAD

pytestmark = pytest.mark.filterwarnings("ignore::refimpl.errors.AdapterWarning")

TOLERANCE = 1e-9  # times max(1, largest logit)
TABLES = [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]]


@settings(max_examples=8)
@given(examples((1, 1), saves_modules=False))
def test_ensure_weight_tying_changes_nothing_inside_the_layers(example: Example) -> None:
    spec = example.specs["a"]
    lora = spec.lora | {"target_modules": ["q_proj", "v_proj", "down_proj"], "ensure_weight_tying": True}
    for key in ("exclude_modules", "layers_to_transform"):
        lora.pop(key, None)
    example = dataclasses.replace(example, specs={"a": dataclasses.replace(spec, lora=lora)})
    with on_disk(example) as testbed:
        assert testbed.ours["a"].config.ensure_weight_tying
        ours = refimpl.logits(testbed.model("float64"), testbed.requests)
        theirs = hf.alone(testbed.base, testbed.adapters, example.prompts, example.names)
    assert worst(ours, theirs) <= TOLERANCE


@settings(max_examples=8)
@given(examples((1, 2), saves_modules=False), st.sampled_from(TABLES), st.booleans())
def test_one_lora_for_two_tied_tables(example: Example, tables: list[str], copies: bool) -> None:
    """PEFT saves both pairs, and a copy of the table if asked to, which is the base's: it can be weighted."""
    spec = example.specs["a"]
    lora = spec.lora | {"target_modules": ["v_proj", *tables], "ensure_weight_tying": True, "lora_bias": False}
    lora |= {"rank_pattern": {}, "alpha_pattern": {}}
    for key in ("exclude_modules", "layers_to_transform"):
        lora.pop(key, None)
    specs = example.specs | {"a": dataclasses.replace(spec, lora=lora, copies=copies)}
    config = dataclasses.replace(example.config, tie_word_embeddings=True)
    with on_disk(dataclasses.replace(example, config=config, specs=specs)) as testbed:
        adapter = testbed.ours["a"]
        assert adapter.lora.keys() >= {EMBED, LM_HEAD} and adapter.can_be_summed
        ours = refimpl.logits(testbed.model("float64"), testbed.requests)
        theirs = hf.alone(testbed.base, testbed.adapters, example.prompts, example.names)
    assert worst(ours, theirs) <= TOLERANCE


@pytest.mark.parametrize("tying", [False, True])
@pytest.mark.parametrize("case", ["gemma", "gemma2", "gemma3", "gemma4", "gemma4 inputs", "granite", "cohere2"])
def test_copies_of_scaled_tables_are_summed_and_weighted(tmp_path: Path, case: str, tying: bool) -> None:
    """Of families that multiply what they look up, and divide or cap their logits: an adapter that was saved with
    copies of both tables weighs as one of half its alpha, and two of them as one of both ranks."""
    kind, changes = test_families.CASES[case]
    hf.write_model(kind(**test_families.SIZES | changes | {"tie_word_embeddings": True}), tmp_path / "base", seed=3)
    for name, alpha in (("a", 6), ("b", 3)):
        spec = hf.peft.LoraConfig(
            r=3, lora_alpha=alpha, target_modules=["embed_tokens", "v_proj"], ensure_weight_tying=tying
        )
        hf.write_adapter(tmp_path / "base", spec, tmp_path / name, 1, copies=True)
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert any(name.endswith("embed_tokens.base_layer.weight") for name in tensors)
    save_file(tensors, tmp_path / "b" / "adapter_model.safetensors")  # hf.randomise makes B smaller at larger scales
    model = refimpl.load_model(tmp_path / "base", "float64")
    whole, half = (refimpl.load_adapter(tmp_path / name, model) for name in ("a", "b"))
    assert whole.can_be_summed and not whole.replaced
    ids = test_families.PROMPTS[0]
    sums = [whole, [(whole, 0.5)], [(whole, 0.25), (half, 0.5)], [(half, 1.0), (whole, 0.5)]]
    folders = {"a": tmp_path / "a", "b": tmp_path / "b"}
    expected = hf.alone(tmp_path / "base", folders, [ids] * 4, ["a", "b", "b", "a"])
    ours = refimpl.logits(model, [refimpl.Request(ids, chosen) for chosen in sums])
    assert worst(ours, expected) <= TOLERANCE
