"""DoRA as PEFT computes it: in float64 the same numbers, in the half types rounded at the same points.

PEFT raises for a mixed batch with DoRA in it ("Cannot pass `adapter_names` when DoRA is enabled"), so that it computes
each request alone; ours come from one batch of DoRA, plain LoRA and base requests."""

import dataclasses

import hugging_face as hf
import pytest
from examples import Example, examples, on_disk, worst
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_peft import targets_top
from test_peft_noise import HALVES, ONE_EXAMPLE, SAME_POINTS, in_noise_units, other, pooled, rms, truth
from test_saved_folders import same

import refimpl
from refimpl import Precision
from refimpl.formats.peft import save_adapter

pytestmark = pytest.mark.filterwarnings("ignore::refimpl.errors.AdapterWarning")

TOLERANCE = 1e-9  # times max(1, largest logit)


@st.composite
def dora_examples(draw: st.DrawFn, adapters: tuple[int, int] = (1, 3)) -> Example:
    """Draw an example whose adapter a is DoRA, and the others as chance has it."""
    example = draw(examples(adapters))
    specs = {}
    for name, spec in example.specs.items():
        dora = {"use_dora": True, "lora_bias": False} if name == "a" or draw(st.booleans()) else {}
        specs[name] = dataclasses.replace(spec, lora=spec.lora | dora)
    return dataclasses.replace(example, specs=specs)


@settings(max_examples=25)
@given(dora_examples())
def test_each_request_of_a_mixed_batch_gets_what_peft_computes_for_it_alone(example: Example) -> None:
    with on_disk(example) as testbed:
        assert testbed.ours["a"].use_dora
        ours = refimpl.logits(testbed.model("float64"), testbed.requests)
        theirs = hf.alone(testbed.base, testbed.adapters, example.prompts, example.names)
    assert worst(ours, theirs) <= TOLERANCE


@settings(max_examples=10)
@given(dora_examples(adapters=(1, 1)))
def test_peft_merges_it_into_the_same_model(example: Example) -> None:
    # Merging into one of two tied layers changes the other one too: not what the adapter computes.
    assume(not (example.config.tie_word_embeddings and targets_top(example.specs["a"].lora)))
    with on_disk(example) as testbed:
        ours = refimpl.logits(
            testbed.model("float64"), [refimpl.Request(p, testbed.ours["a"]) for p in example.prompts]
        )
        merged = hf.load_exact(testbed.base, testbed.adapters).merge_and_unload()
        with hf.float64_throughout():
            theirs = hf.logits(merged, example.prompts)
    assert worst(ours, theirs) <= TOLERANCE


@settings(max_examples=10)
@given(dora_examples())
def test_peft_takes_our_folder_for_its_own(example: Example) -> None:
    with on_disk(example) as testbed:
        for name, adapter in testbed.ours.items():
            save_adapter(adapter, testbed.base / name)
            model = hf.load(testbed.base, {name: testbed.base / name}, "float32")
            assert same(model, hf.load(testbed.base, {name: testbed.adapters[name]}, "float32"))


@pytest.mark.parametrize("dtype", HALVES)
def test_in_a_half_type_it_rounds_where_peft_does(dtype: str) -> None:
    """Bit for bit but for ties that a last float32 bit decides; and with either of its two points moved no longer."""
    preset, points = Precision("transformers", dtype), ("linear", "adapter")
    distance: dict[str, list[float]] = {name: [] for name in ("", *points)}

    @settings(max_examples=12)
    @given(dora_examples())
    def measure(example: Example) -> None:
        with on_disk(example, dtype) as testbed:
            theirs = hf.alone(testbed.base, testbed.adapters, example.prompts, example.names, dtype)
            assert in_noise_units(testbed, theirs, preset) <= ONE_EXAMPLE
            model = testbed.model(dtype)
            unit = rms(refimpl.logits(model, testbed.requests, precision=preset), truth(testbed))
            for name in distance:
                p = dataclasses.replace(preset, **{name: other(getattr(preset, name), dtype)}) if name else preset
                distance[name].append(rms(refimpl.logits(model, testbed.requests, precision=p), theirs) / unit)

    measure()
    assert pooled(distance[""]) <= SAME_POINTS
    for name in points:
        assert pooled(distance[name]) > SAME_POINTS, name
