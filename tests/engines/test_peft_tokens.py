"""trainable_token_indices as PEFT computes them, in float64: rows of some tokens in place of the base's, in one batch
with plain LoRA and base requests. Of tied tables one tensor is both, unless each has ids of its own."""

import dataclasses
from typing import Any

import hugging_face as hf
import pytest
from examples import TOP, Example, examples, on_disk, worst
from hypothesis import given, settings
from hypothesis import strategies as st
from test_saved_folders import same

import refimpl
from refimpl.config import EMBED, LM_HEAD
from refimpl.formats.peft import save_adapter

pytestmark = pytest.mark.filterwarnings("ignore::refimpl.errors.AdapterWarning")

TOLERANCE = 1e-9  # times max(1, largest logit)


@st.composite
def token_examples(draw: st.DrawFn) -> Example:
    """Draw an example whose adapter a has rows of some tokens, in one of the ways in which the config can say it."""
    example = draw(examples(saves_modules=False))
    ids = st.lists(st.integers(0, example.config.vocab_size - 1), unique=True, min_size=1, max_size=4)
    first, second = draw(ids), draw(ids)
    tables: list[Any] = [first, {"embed_tokens": first}, {"embed_tokens": first, "lm_head": first}]
    tables += [{"embed_tokens": first, "lm_head": second}, {"lm_head": second}]
    spec = example.specs["a"]
    targets = spec.lora["target_modules"]
    if not isinstance(targets, list):
        targets = ["v_proj"]
    targets = [name for name in targets if name not in TOP]
    lora = spec.lora | {"target_modules": targets, "trainable_token_indices": draw(st.sampled_from(tables))}
    lora.pop("exclude_modules", None)
    specs = example.specs | {"a": dataclasses.replace(spec, lora=lora)}
    # Tokens that have rows of their own stand in every prompt.
    prompts = [[*first[:2], *prompt, *second[:1]] for prompt in example.prompts]
    return dataclasses.replace(example, specs=specs, prompts=prompts)


@settings(max_examples=25)
@given(token_examples())
def test_each_request_of_a_mixed_batch_gets_what_peft_computes_for_it_alone(example: Example) -> None:
    with on_disk(example) as testbed:
        assert testbed.ours["a"].tokens.keys() & {EMBED, LM_HEAD}
        ours = refimpl.logits(testbed.model("float64"), testbed.requests)
        theirs = hf.alone(testbed.base, testbed.adapters, example.prompts, example.names)
    assert worst(ours, theirs) <= TOLERANCE


@settings(max_examples=10)
@given(token_examples())
def test_peft_takes_our_folder_for_its_own(example: Example) -> None:
    with on_disk(example) as testbed:
        for name, adapter in testbed.ours.items():
            save_adapter(adapter, testbed.base / name)
            model = hf.load(testbed.base, {name: testbed.base / name}, "float32")
            assert same(model, hf.load(testbed.base, {name: testbed.adapters[name]}, "float32"))
