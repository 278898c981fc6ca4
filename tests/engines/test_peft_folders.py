"""What else a PEFT folder can bring along, by the logits that it gives: biases, a larger vocabulary, a sum of others.

That each kind of folder is read tensor by tensor, or refused by name, is in tests/loading/test_peft_saves.py.
"""

import dataclasses
from typing import Any

import hugging_face as hf
import pytest
from examples import LAYER_MODULES, TOP, Example, examples, on_disk, worst
from hypothesis import given
from hypothesis import strategies as st

import refimpl
from refimpl.config import ModelConfig

pytestmark = pytest.mark.filterwarnings("ignore::refimpl.errors.AdapterWarning")

TOLERANCE = 1e-9  # times max(1, largest logit)


@given(examples(), st.sampled_from(["all", "lora_only"]))
def test_trained_biases_belong_to_their_adapter_and_to_no_other_request(example: Example, bias: str) -> None:
    config = example.config
    if config.sliding_window is None:  # a Mistral has no biases
        config = dataclasses.replace(config, attention_bias=True)
    with on_disk(changed(example, config=config, bias=bias)) as testbed:
        ours = refimpl.logits(testbed.model("float64"), testbed.requests)
        theirs = hf.alone(testbed.base, testbed.adapters, example.prompts, example.names)
    assert worst(ours, theirs) <= TOLERANCE


@given(examples(adapters=(1, 1), saves_modules=False), st.integers(1, 5), st.booleans())
def test_an_adapter_may_know_more_tokens_than_its_base(example: Example, more: int, as_modules: bool) -> None:
    """Its embed_tokens and lm_head come as modules_to_save, or as copies of the layers of a base that has grown."""
    config, size = example.config, example.config.vocab_size + more
    modules = {"modules_to_save": list(TOP)} if as_modules else {}
    example = changed(example, target_modules=list(LAYER_MODULES), exclude_modules=None, **modules)
    spec = dataclasses.replace(example.specs["a"], copies=not as_modules)
    prompts = [[*p, size - 1] if name == "a" else p for p, name in zip(example.prompts, example.names, strict=True)]
    with on_disk(dataclasses.replace(example, specs={})) as testbed:
        grown, folder = testbed.base / "grown", testbed.base / "a"
        hf.grow(testbed.base, grown, size, example.seed)
        hf.write_adapter(grown, hf.peft.LoraConfig(**spec.lora), folder, spec.seed, spec.dtype, spec.copies)
        adapters = {"a": refimpl.load_adapter(folder, config)}
        requests = [refimpl.Request(p, adapters.get(n)) for p, n in zip(prompts, example.names, strict=True)]
        ours = refimpl.logits(testbed.model("float64"), requests)
        theirs = [
            hf.alone(testbed.base if name == hf.BASE else grown, {"a": folder}, [prompt], [name])[0]
            for prompt, name in zip(prompts, example.names, strict=True)
        ]
    assert [rows.shape for rows in ours] == [rows.shape for rows in theirs]
    assert worst(ours, theirs) <= TOLERANCE


@given(examples((2, 3), saves_modules=False), st.data())
def test_a_sum_that_peft_saves_as_one_adapter_is_the_sum_that_we_serve(example: Example, data: st.DataObject) -> None:
    """add_weighted_adapter("cat"). It leaves lora_bias out, and gives the sum the rsLoRA and the layers of its first
    adapter, which is right only where there are none."""
    names = st.lists(st.sampled_from((*LAYER_MODULES, *TOP)), min_size=1, unique=True)
    specs = {
        name: dataclasses.replace(spec, lora=plain(spec.lora) | {"target_modules": data.draw(names)})
        for name, spec in example.specs.items()
    }
    weights = [data.draw(st.sampled_from([0.25, 1.0, -2.0])) for _ in specs]
    with on_disk(dataclasses.replace(example, specs=specs)) as testbed:
        model = testbed.model("float64")
        pairs = list(zip(testbed.ours.values(), weights, strict=True))
        summed = refimpl.logits(model, [refimpl.Request(p, pairs) for p in example.prompts])
        peft_model = hf.load_exact(testbed.base, testbed.adapters)
        with hf.quiet():
            peft_model.add_weighted_adapter(list(specs), weights, "sum", combination_type="cat")
        peft_model.set_adapter("sum")
        with hf.float64_throughout():
            theirs = hf.logits(peft_model, example.prompts)
        peft_model.save_pretrained(testbed.base, selected_adapters=["sum"], save_embedding_layers=False)
        loaded = refimpl.load_adapter(testbed.base / "sum", example.config)
        ours = refimpl.logits(model, [refimpl.Request(p, loaded) for p in example.prompts])
    assert worst(summed, theirs) <= TOLERANCE
    assert worst(ours, theirs) <= TOLERANCE


def plain(lora: dict[str, Any]) -> dict[str, Any]:
    """Of the arguments of a LoraConfig those that add_weighted_adapter keeps."""
    kept = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "task_type")
    return {key: lora[key] for key in kept}


def changed(example: Example, config: ModelConfig | None = None, **lora: Any) -> Example:
    """The example with these arguments for every adapter."""
    specs = {name: dataclasses.replace(spec, lora=spec.lora | lora) for name, spec in example.specs.items()}
    return dataclasses.replace(example, config=config or example.config, specs=specs)
