"""Keys of adapter_config.json that change what PEFT trains or writes, and nothing that a trained adapter computes."""

import dataclasses
from typing import Any

import hugging_face as hf
import pytest
from examples import Example, examples, on_disk, worst
from hypothesis import Phase, given, settings

import refimpl

pytestmark = pytest.mark.filterwarnings("ignore::refimpl.errors.AdapterWarning")

TOLERANCE = 1e-9  # times max(1, largest logit)

INERT: dict[str, dict[str, Any]] = {
    "VeLoRA": {"velora_config": hf.peft.tuners.lora.config.VeloraConfig(num_groups=1)},
    "tying, where nothing is tied by it": {"ensure_weight_tying": True},
}


@pytest.mark.parametrize("key", INERT)
def test_peft_computes_plain_lora(key: str) -> None:
    @settings(max_examples=4, phases=[Phase.generate])
    @given(examples((1, 1), saves_modules=False))
    def check(example: Example) -> None:
        spec = example.specs["a"]
        plain = {"r": 4, "lora_alpha": spec.lora["lora_alpha"], "target_modules": ["q_proj", "v_proj", "down_proj"]}
        example = dataclasses.replace(example, specs={"a": dataclasses.replace(spec, lora=plain | INERT[key])})
        with on_disk(example) as testbed:
            ours = refimpl.logits(testbed.model("float64"), testbed.requests)
            theirs = hf.alone(testbed.base, testbed.adapters, example.prompts, example.names)
        assert worst(ours, theirs) <= TOLERANCE

    check()
