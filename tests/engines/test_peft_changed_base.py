"""PiSSA and OLoRA, unconverted, as PEFT computes them in float64: it takes the part out of the base that they are
trained without, when it loads them; ours have it in a pair of rank 2r, beside others in one batch."""

import dataclasses

import hugging_face as hf
import pytest
from examples import TOP, Example, examples, on_disk, worst
from hypothesis import given, settings
from hypothesis import strategies as st

import refimpl
from refimpl.formats.peft import save_adapter

pytestmark = [
    pytest.mark.filterwarnings("ignore::refimpl.errors.AdapterWarning"),
    pytest.mark.filterwarnings("ignore:Using Rank-Stabilized LoRA with"),
]

TOLERANCE = 1e-9  # times max(1, largest logit)


@st.composite
def changed_examples(draw: st.DrawFn) -> Example:
    """Draw an example whose adapter a took something out of the base; it may be DoRA as well."""
    example = draw(examples((1, 2), saves_modules=False))
    spec = example.specs["a"]
    lora = spec.lora | {
        "init_lora_weights": draw(st.sampled_from(["pissa", "olora"])),
        "use_dora": draw(st.booleans()),
        "lora_bias": False,
        "lora_alpha": abs(spec.lora["lora_alpha"]),  # PEFT takes a root of it
        "target_modules": draw(st.lists(st.sampled_from(["q_proj", "v_proj", "down_proj"]), min_size=1, unique=True)),
    }
    lora.pop("exclude_modules", None)
    if not example.config.tie_word_embeddings and draw(st.booleans()):
        lora["target_modules"].append(TOP[1])
    # PEFT takes no more triples out than there are, and then A has another rank than r says.
    narrowest = min(example.config.shape(module)[0] for module in ("q_proj", "v_proj", "down_proj"))
    narrow = {name: min(rank, narrowest) for name, rank in lora["rank_pattern"].items()}
    lora |= {"r": min(lora["r"], narrowest), "rank_pattern": narrow}
    specs = example.specs | {"a": dataclasses.replace(spec, lora=lora)}
    # All in float64 from the beginning: when PEFT loads the folder, it factors W in "float32".
    specs = {name: dataclasses.replace(one, dtype="float64") for name, one in specs.items()}
    return dataclasses.replace(example, specs=specs)


@settings(max_examples=12)
@given(changed_examples())
def test_each_request_of_a_mixed_batch_gets_what_peft_computes_for_it_alone(example: Example) -> None:
    with hf.float64_throughout(), on_disk(example, "float64") as testbed:
        ours = refimpl.logits(testbed.model("float64"), testbed.requests)
        theirs = hf.alone(testbed.base, testbed.adapters, example.prompts, example.names)
    assert worst(ours, theirs) <= TOLERANCE


@settings(max_examples=4)
@given(changed_examples())
def test_peft_takes_our_folder_for_plain_lora(example: Example) -> None:
    with hf.float64_throughout(), on_disk(example, "float64") as testbed:
        save_adapter(testbed.ours["a"], testbed.base / "a")
        prompts, names = example.prompts, ["a"] * len(example.prompts)
        theirs = hf.alone(testbed.base, {"a": testbed.base / "a"}, prompts, names)
        requests = [refimpl.Request(prompt, testbed.ours["a"]) for prompt in prompts]
        assert worst(refimpl.logits(testbed.model("float64"), requests), theirs) <= TOLERANCE
