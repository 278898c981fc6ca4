"""ensure_weight_tying where it ties nothing: PEFT warns, and computes what it computes without the key."""

import dataclasses

import hugging_face as hf
import pytest
from examples import Example, examples, on_disk, worst
from hypothesis import given, settings

import refimpl

pytestmark = pytest.mark.filterwarnings("ignore::refimpl.errors.AdapterWarning")

TOLERANCE = 1e-9  # times max(1, largest logit)


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
