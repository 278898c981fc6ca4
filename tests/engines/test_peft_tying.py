"""ensure_weight_tying as PEFT computes it: nothing where it ties nothing, and one LoRA for two tied tables."""

import dataclasses

import hugging_face as hf
import pytest
from examples import Example, examples, on_disk, worst
from hypothesis import given, settings
from hypothesis import strategies as st

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
