"""Activated LoRA as PEFT computes it, in float64: one mixed batch of aLoRAs, plain LoRA and the base, prompts in which
the invocation stands several times, at an end or nowhere; and every step of its decoding."""

import dataclasses
from pathlib import Path

import hugging_face as hf
import numpy as np
import pytest
from examples import TOP, Example, examples, on_disk, worst
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_saved_folders import same

import refimpl
from refimpl.engines.peft import why_alone
from refimpl.formats.peft import save_adapter

pytestmark = pytest.mark.filterwarnings("ignore::refimpl.errors.AdapterWarning")

TOLERANCE = 1e-9  # times max(1, largest logit)


@st.composite
def alora_examples(draw: st.DrawFn) -> Example:
    """Draw an example whose adapter a is an aLoRA, and others too as chance has it; prompts of three tokens."""
    example, specs = draw(examples(saves_modules=False)), {}
    for name, spec in example.specs.items():
        if name == "a" or draw(st.booleans()):
            targets = spec.lora["target_modules"]
            targets = [one for one in targets if one != TOP[0]] if isinstance(targets, list) else ["q_proj", "v_proj"]
            invocation = draw(st.lists(st.integers(0, 2), min_size=1, max_size=3))
            lora = spec.lora | {"target_modules": targets or ["v_proj"], "alora_invocation_tokens": invocation}
            lora.pop("exclude_modules", None)
            spec = dataclasses.replace(spec, lora=lora)
        specs[name] = spec
    prompts = [[i % 3 for i in prompt] for prompt in example.prompts]
    return dataclasses.replace(example, specs=specs, prompts=prompts)


@settings(max_examples=12)
@given(alora_examples())
def test_each_request_of_a_mixed_batch_gets_what_peft_computes_for_it_alone(example: Example) -> None:
    with on_disk(example) as testbed:
        assert testbed.ours["a"].config.alora_invocation_tokens
        ours = refimpl.logits(testbed.model("float64"), testbed.requests)
        theirs = hf.alone(testbed.base, testbed.adapters, example.prompts, example.names)
    assert worst(ours, theirs) <= TOLERANCE


@settings(max_examples=5)
@given(alora_examples())
def test_every_step_of_its_decoding_is_pefts(example: Example) -> None:
    """A token at a time with PEFT's own cache and offsets: in chunks and with shared blocks ours are the same."""
    # Of a window of one token transformers' cache keeps all; without a cache PEFT counts back from an end that moves.
    assume(example.config.sliding_window != 1)
    new = 4
    with on_disk(example) as testbed:
        model = hf.load_exact(testbed.base, {"a": testbed.adapters["a"]})
        engine = refimpl.Engine(testbed.model("float64"), block_size=3, max_batch_tokens=4)
        requests = [refimpl.Request(prompt, testbed.ours["a"], stop_ids=()) for prompt in example.prompts]
        ids = [engine.add(request, new) for request in requests]
        rows: dict[int, list] = {i: [] for i in ids}
        tokens: dict[int, list[int]] = {i: [] for i in ids}
        while engine.busy:
            produced = {token.request_id: token.token_id for token in engine.step()}
            for record in engine.last_step:
                if record.request_id in produced:
                    rows[record.request_id].append(record.logits)
                    tokens[record.request_id].append(produced[record.request_id])
        with hf.float64_throughout():
            for i, prompt in zip(ids, example.prompts, strict=True):
                assert worst([np.stack(rows[i])], [np.stack(decoded(model, prompt, tokens[i]))]) <= TOLERANCE


def decoded(model: "hf.peft.PeftModel", prompt: list[int], tokens: list[int]) -> list:
    """The logits from which each of the tokens was to be chosen, when they are forced one after another."""
    rows: list = []

    def force(_: int, ids: "hf.torch.Tensor") -> list[int]:
        return [tokens[len(ids) - len(prompt)]] if len(ids) - len(prompt) < len(tokens) else tokens

    with hf.torch.no_grad(), hf.quiet():
        out = model.generate(
            input_ids=hf.torch.tensor([prompt]),
            attention_mask=hf.torch.ones((1, len(prompt)), dtype=hf.torch.long),
            max_new_tokens=len(tokens),
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            prefix_allowed_tokens_fn=force,
            output_logits=True,
            return_dict_in_generate=True,
        )
    rows += [hf.to_numpy(row[0]) for row in out.logits]
    return rows


@settings(max_examples=4)
@given(alora_examples())
def test_peft_takes_our_folder_for_its_own(example: Example) -> None:
    with on_disk(example) as testbed:
        for name, adapter in testbed.ours.items():
            save_adapter(adapter, testbed.base / name)
            model = hf.load(testbed.base, {name: testbed.base / name}, "float32")
            assert same(model, hf.load(testbed.base, {name: testbed.adapters[name]}, "float32"))


def test_peft_refuses_it_on_the_embedding_as_we_do(tmp_path: Path) -> None:
    config = hf.transformers.LlamaConfig(
        vocab_size=13, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    hf.write_model(config, tmp_path / "base", 0)
    lora = hf.peft.LoraConfig(
        r=2, target_modules=["embed_tokens", "v_proj"], alora_invocation_tokens=[3], task_type="CAUSAL_LM"
    )
    with pytest.raises(ValueError, match="variant"):
        hf.write_adapter(tmp_path / "base", lora, tmp_path / "adapter", 0)


@pytest.mark.parametrize("key", ["alora", "pissa", "layer_replication"])
def test_our_peft_engine_serves_none_that_would_not_be_itself_beside_others(tmp_path: Path, key: str) -> None:
    keys = {"alora": {"alora_invocation_tokens": [1]}, "pissa": {"init_lora_weights": "pissa"}}
    config = hf.peft.LoraConfig(
        r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **keys.get(key, {"layer_replication": [[0, 1]]})
    )
    assert why_alone(config) and not why_alone(hf.peft.LoraConfig(r=2, target_modules=["q_proj"]))
