"""Defects of transformers' own models, and of PEFT on the experts of transformers 5. Their right answers: Loracle's, or
where both sides are transformers, the same request asked in another way."""

import dataclasses
import json
import math
import re
import warnings
from pathlib import Path

import hugging_face as hf
import numpy as np
import test_expert_adapters as experts
import test_families
from showing import Shown, compared, shows

import refimpl
from refimpl.errors import AdapterWarning

T, torch = hf.transformers, hf.torch
SHORT, LONG = [7, 1, 33, 9, 60, 2], list(range(3, 25))  # of one side and of the other of phi3's 14 positions


def base(root: Path, case: str) -> Path:
    """A small base of a family."""
    kind, changes = test_families.CASES[case]
    hf.write_model(kind(**test_families.SIZES | changes), root / "base", seed=3)
    return root / "base"


@shows
def transformers_longrope_is_chosen_by_the_batch(root: Path) -> Shown:
    folder = base(root, "phi3 longrope")
    right = refimpl.logits(refimpl.load_model(folder, "float64"), [refimpl.Request(SHORT)])
    config = folder / "config.json"
    got = hf.logits(hf.load(folder, {}, "float32"), [SHORT, LONG])[:1]
    keys = json.loads(config.read_text())
    rope = keys["rope_parameters"]
    config.write_text(json.dumps(keys | {"rope_parameters": rope | {"short_factor": rope["long_factor"]}}))
    predicted = refimpl.logits(refimpl.load_model(folder, "float64"), [refimpl.Request(SHORT)])
    return compared(
        "6 tokens beside 22 others, of a Phi-3 that turns to its long factors after 14", got, right, predicted
    )


@shows
def transformers_gemma4_without_layer_inputs(root: Path) -> Shown:
    kind, changes = test_families.CASES["gemma4 inputs"]
    keys = test_families.SIZES | changes | {"hidden_size_per_layer_input": 0}
    hf.write_model(kind(**keys), root / "base", seed=3)
    what = "a prompt, of a Gemma 4 with num_kv_shared_layers 2 and hidden_size_per_layer_input 0"
    try:
        hf.logits(hf.load(root / "base", {}, "float32"), [SHORT])
    except Exception as error:
        return Shown(what, error=f"{type(error).__name__}: {' '.join(str(error).split())[:150]}")
    return Shown(what)


@shows
def transformers_a_window_of_one_token(root: Path) -> Shown:
    config = T.MistralConfig(**test_families.SIZES, sliding_window=1)
    hf.write_model(config, root / "base", seed=3)
    model = hf.load(root / "base", {}, "float32")
    ours = refimpl.load_model(root / "base", "float64")
    ids = torch.tensor([LONG])
    with torch.no_grad():
        past = model(input_ids=ids[:, :-1], use_cache=True).past_key_values
        got = hf.to_numpy(model(input_ids=ids[:, -1:], past_key_values=past, use_cache=True).logits[0])
    right = refimpl.logits(ours, [refimpl.Request(LONG)])[0][-1:]
    return compared("the 22nd token, after 21 in the cache, of a Mistral with sliding_window 1", [got], [right])


def layers_of_experts(root: Path, case: str, rslora: bool) -> tuple[refimpl.Model, refimpl.Adapter, list, list]:
    """A folder of transformers 4, a pair for each expert: the model, the adapter, PEFT's rows and the right ones."""
    model = experts.write_base(case, root / "base")
    modules = [
        module for module in model.config.modules() if re.search(r"\.(experts|shared_expert)\.|^o_proj", module[1])
    ]
    names = sorted({module[1].rpartition(".")[2] for module in modules})
    adapter = experts.layers_adapter(model.config, modules, 3, use_rslora=rslora)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AdapterWarning)
        experts.write_layers(adapter, root / "four", target_modules=names)
        right = experts.ours(model, [refimpl.load_adapter(root / "four", model.config)] * 5)
    return model, adapter, hf.alone(root / "base", {"four": root / "four"}, experts.PROMPTS, ["four"] * 5), right


@shows
def peft_rslora_on_experts(root: Path) -> Shown:
    model, adapter, got, right = layers_of_experts(root, "mixtral", True)
    louder = dict.fromkeys(("w1", "w3"), 4.0 * math.sqrt(2))
    wrong = dataclasses.replace(adapter, config=dataclasses.replace(adapter.config, alpha_pattern=louder))
    return compared("an rsLoRA on the experts of a Mixtral", got, right, experts.ours(model, [wrong] * 5))


@shows
def peft_experts_beside_a_shared_one(root: Path) -> Shown:
    model, adapter, got, right = layers_of_experts(root, "qwen2", False)
    rest = {module: one for module, one in adapter.lora.items() if ".experts." not in module[1]}
    return compared(
        "LoRA on the experts of a Qwen2-MoE",
        got,
        right,
        experts.ours(model, [dataclasses.replace(adapter, lora=rest)] * 5),
    )


@shows
def peft_dense_layers_of_a_class_with_experts(root: Path) -> Shown:
    model = experts.write_base("qwen3 steps", root / "base")
    dense = [m for m in model.config.modules() if m[0] >= 0 and m[1] in ("gate_proj", "up_proj", "down_proj", "o_proj")]
    adapter = experts.layers_adapter(model.config, dense, 3)
    experts.write_layers(adapter, root / "dense", target_modules=["gate_proj", "up_proj", "down_proj", "o_proj"])
    right = experts.ours(model, [adapter] * 5)
    rest = {module: one for module, one in adapter.lora.items() if module[1] == "o_proj"}
    predicted = experts.ours(model, [dataclasses.replace(adapter, lora=rest)] * 5)
    got = hf.alone(root / "base", {"dense": root / "dense"}, experts.PROMPTS, ["dense"] * 5)
    return compared("LoRA on the dense layers of a Qwen3-MoE", got, right, predicted)


@shows
def peft_alora_without_a_cache(root: Path) -> Shown:
    config = T.LlamaConfig(**test_families.SIZES)
    hf.write_model(config, root / "base", seed=3)
    spec = hf.peft.LoraConfig(
        r=3, lora_alpha=7, target_modules=["q_proj", "v_proj"], alora_invocation_tokens=[9, 60], task_type="CAUSAL_LM"
    )
    hf.write_adapter(root / "base", spec, root / "one", 1)
    model = hf.load(root / "base", {"a": root / "one"}, "float32")
    scores = {}
    for cached in (True, False):
        with torch.no_grad(), hf.quiet():
            out = model.generate(
                input_ids=torch.tensor([SHORT]),
                max_new_tokens=8,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                attention_mask=torch.ones((1, len(SHORT)), dtype=torch.long),
                use_cache=cached,
                output_logits=True,
                return_dict_in_generate=True,
            )
        scores[cached] = np.stack([hf.to_numpy(row[0]) for row in out.logits]), out.sequences[0].tolist()
    ids = scores[False][1]
    agreed = next((i for i, (x, y) in enumerate(zip(scores[True][1], ids, strict=True)) if x != y), len(ids))
    rows = range(len(SHORT), agreed + 1 if agreed < len(ids) else len(ids))  # the prompts that both were asked
    ours = refimpl.load_model(root / "base", "float64")
    adapter = refimpl.load_adapter(root / "one", ours.config)
    right = refimpl.logits(ours, [refimpl.Request(ids[: rows[-1]], adapter)])[0][len(SHORT) - 1 :]
    predicted = []
    for n in rows:  # from as far before the end as the prompt's invocation was before its own
        config = dataclasses.replace(adapter.config, alora_invocation_tokens=tuple(ids[n - 3 : n]))
        moved = dataclasses.replace(adapter, config=config)
        predicted.append(refimpl.logits(ours, [refimpl.Request(ids[:n], moved)])[0][-1])
    got = scores[False][0][: len(rows)]
    return compared("the tokens of an aLoRA, generate(use_cache=False)", [got], [right], [np.stack(predicted)])
