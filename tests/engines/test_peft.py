"""The same numbers as Hugging Face transformers and PEFT, in float64, over models and adapters that nobody chose.

transformers is made float64 throughout (hugging_face.float64_throughout), so that what is left is the order of sums.
"""

import hugging_face as hf
import numpy as np
import pytest
from examples import TOP, Example, examples, on_disk, worst
from hypothesis import assume, given
from hypothesis import strategies as st

import refimpl

pytestmark = pytest.mark.filterwarnings("ignore::refimpl.errors.AdapterWarning")

TOLERANCE = 1e-9  # times max(1, largest logit)
WEIGHTS = st.sampled_from([0.25, 0.75, 1.0, -2.0])


@given(examples())
def test_each_request_of_a_mixed_batch_gets_what_peft_computes_for_it_alone(example: Example) -> None:
    with on_disk(example) as testbed:
        ours = refimpl.logits(testbed.model("float64"), testbed.requests)
        theirs = hf.alone(testbed.base, testbed.adapters, example.prompts, example.names)
    assert worst(ours, theirs) <= TOLERANCE


@given(examples(saves_modules=False))  # PEFT mixes no adapters of which only some have modules_to_save
def test_a_mixed_batch_is_a_mixed_batch_of_peft(example: Example) -> None:
    with on_disk(example) as testbed:
        ours = refimpl.logits(testbed.model("float64"), testbed.requests)
        model = hf.load_exact(testbed.base, testbed.adapters)
        with hf.float64_throughout():
            theirs = hf.logits(model, example.prompts, example.names)
    assert worst(ours, theirs) <= TOLERANCE


@given(examples((2, 3), saves_modules=False), st.data())
def test_a_weighted_sum_is_several_active_adapters_of_peft(example: Example, data: st.DataObject) -> None:
    weights = {name: data.draw(WEIGHTS) for name in example.specs}
    with on_disk(example) as testbed:
        adapters = [(testbed.ours[name], weight) for name, weight in weights.items()]
        ours = refimpl.logits(testbed.model("float64"), [refimpl.Request(p, adapters) for p in example.prompts])
        model = hf.load_exact(testbed.base, testbed.adapters)
        model.base_model.set_adapter(list(weights))
        for layer in hf.lora_layers(model):
            for name, weight in weights.items():
                layer.set_scale(name, weight)
        with hf.float64_throughout():
            theirs = hf.logits(model, example.prompts)
    assert worst(ours, theirs) <= TOLERANCE


@given(examples(adapters=(1, 1)))
def test_merging_into_the_base_gives_the_same_logits_and_a_folder_that_loads(example: Example) -> None:
    spec = example.specs["a"].lora
    # PEFT: "Impossible to merge LoRA with `lora_bias=True` because the base layer has no bias."
    assume(not spec["lora_bias"])
    # Merging into one of two tied layers changes the other one too: not what the adapter computes.
    assume(not (example.config.tie_word_embeddings and targets_top(spec)))
    with on_disk(example) as testbed:
        ours = refimpl.logits(
            testbed.model("float64"), [refimpl.Request(p, testbed.ours["a"]) for p in example.prompts]
        )
        merged = hf.load_exact(testbed.base, testbed.adapters).merge_and_unload()
        with hf.float64_throughout():
            theirs = hf.logits(merged, example.prompts)
        merged.save_pretrained(testbed.base / "merged")
        model = refimpl.load_model(testbed.base / "merged", "float64")
        loaded = refimpl.logits(model, [refimpl.Request(p) for p in example.prompts])
    assert worst(ours, theirs) <= TOLERANCE
    assert worst(loaded, theirs) <= TOLERANCE


@given(examples(saves_modules=False))
def test_greedy_decoding_of_a_mixed_batch_yields_the_tokens_of_hugging_face(example: Example) -> None:
    with on_disk(example) as testbed:
        outputs = refimpl.generate(testbed.model("float64"), testbed.requests, max_new_tokens=8)
        model = hf.load_exact(testbed.base, testbed.adapters)
        with hf.float64_throughout():
            theirs = hf.generate(model, example.prompts, example.names, 8, example.config.eos_token_ids)
    for output, (ids, margins) in zip(outputs, theirs, strict=True):
        # From the first tie on, the two may go on differently.
        n = next((i for i, margin in enumerate(margins) if not margin > TOLERANCE), len(ids))
        assert output.token_ids[:n] == ids[:n]
        assert n < len(ids) or output.token_ids == ids
    assert any(np.min(margins) > TOLERANCE for _, margins in theirs)


def targets_top(lora: dict) -> bool:
    """Whether embed_tokens or lm_head gets a LoRA or is replaced."""
    return bool(lora.get("modules_to_save")) or any(name in lora["target_modules"] for name in (*TOP, "head"))
