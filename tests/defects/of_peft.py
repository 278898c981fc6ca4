"""Defects of PEFT on transformers, each on a small Llama: the adapters are Loracle's or PEFT's own."""

import dataclasses
import math
import shutil
from pathlib import Path

import hugging_face as hf
import numpy as np
from adapter_cases import CONFIG, PROMPT, Builder, base_copies, other_prefix, rank_pattern
from showing import Shown, compared, shows

import refimpl
from refimpl.config import LM_HEAD
from refimpl.formats.peft import save_adapter
from refimpl.weights import Linear

T, torch = hf.transformers, hf.torch
LORA = {"r": 4, "lora_alpha": 6}


def alone(base: Path, folder: Path) -> np.ndarray:
    """PEFT's logits of PROMPT, with one adapter loaded and nothing else."""
    return hf.logits(hf.load(base, {"a": folder}, "float32"), [PROMPT])[0]


def combined(root: Path, how: str, **changes: object) -> tuple[Builder, list[refimpl.Adapter], np.ndarray]:
    """Two adapters, a and b, and PEFT's logits with 0.7 a + 0.4 b in one adapter."""
    build = Builder(root)
    adapters = [build.case(name, build.adapter(**changes), None) for name in "ab"]
    one = refimpl.load_adapter(adapters[1].folder, CONFIG)
    other = {module: dataclasses.replace(x, A=x.A[::-1] * 1.5, B=-x.B) for module, x in one.lora.items()}
    shutil.rmtree(adapters[1].folder)
    save_adapter(dataclasses.replace(one, lora=other), adapters[1].folder, "float32")
    model = hf.load(build.base(), {name: case.folder for name, case in zip("ab", adapters, strict=True)}, "float32")
    with hf.quiet():
        model.add_weighted_adapter(["a", "b"], [0.7, 0.4], "sum", combination_type=how)
        model.set_adapter("sum")
    return build, [refimpl.load_adapter(case.folder, CONFIG) for case in adapters], hf.logits(model, [PROMPT])[0]


@shows
def peft_combined_rslora(root: Path) -> Shown:
    build, (a, b), got = combined(root, "cat", use_rslora=True)
    model, rank = build.models[False], 8
    right = refimpl.logits(model, [refimpl.Request(PROMPT, [(a, 0.7), (b, 0.4)])])
    root_of_rank = math.sqrt(rank)
    louder = refimpl.logits(model, [refimpl.Request(PROMPT, [(a, 0.7 * root_of_rank), (b, 0.4 * root_of_rank)])])
    return compared('a * 0.7 + b * 0.4, rsLoRA, combination_type="cat"', [got], right, louder)


@shows
def peft_linear_is_not_the_sum(root: Path) -> Shown:
    build, (a, b), got = combined(root, "linear")
    model = build.models[False]
    right = refimpl.logits(model, [refimpl.Request(PROMPT, [(a, 0.7), (b, 0.4)])])
    scale = a.config.lora_alpha / a.config.r
    lora = {}
    for module in a.lora:  # the sums of the factors, whose product has the cross terms
        pairs = [(weight, x.lora[module]) for weight, x in ((0.7, a), (0.4, b))]
        A = sum(math.sqrt(weight * scale) * x.A.astype(float) for weight, x in pairs)
        B = sum(math.sqrt(weight * scale) * x.B.astype(float) for weight, x in pairs)
        lora[module] = dataclasses.replace(a.lora[module], A=A, B=B)
    crossed = dataclasses.replace(a, config=dataclasses.replace(a.config, lora_alpha=float(a.config.r)), lora=lora)
    predicted = refimpl.logits(model, [refimpl.Request(PROMPT, crossed)])
    return compared('a * 0.7 + b * 0.4, combination_type="linear"', [got], right, predicted)


@shows
def peft_compiled_adapter_is_the_base(root: Path) -> Shown:
    case = other_prefix(Builder(root))
    return compared("an adapter of a compiled model", [alone(case.base, case.folder)], [case.right], [case.without])


@shows
def peft_a_copy_of_the_head_replaces_the_bases(root: Path) -> Shown:
    build = Builder(root)
    case = base_copies(build)
    model = hf.load(case.base, {"a": case.folder}, "float32")
    got = hf.logits(model, [PROMPT], [hf.BASE])
    copy = hf.safetensors.numpy.load_file(case.folder / "adapter_model.safetensors")
    tables = dataclasses.replace(
        build.models[False], lm_head=Linear(copy["base_model.model.lm_head.base_layer.weight"])
    )
    return compared(
        "a request without adapter, beside an adapter that was saved with its copy of lm_head",
        got,
        [build.logits(None)],
        refimpl.logits(tables, [refimpl.Request(PROMPT)]),
    )


@shows
def peft_pissa_takes_its_part_out_of_everybodys_base(root: Path) -> Shown:
    build = Builder(root)
    base, folder = build.base(), root / "pissa"
    spec = hf.peft.LoraConfig(**LORA, target_modules=["q_proj", "down_proj"], init_lora_weights="pissa")
    with hf.quiet():
        model = hf.peft.get_peft_model(T.AutoModelForCausalLM.from_pretrained(base), spec)
        residual = {name: hf.to_numpy(x) for name, x in model.state_dict().items() if ".base_layer." in name}
        model.save_pretrained(folder)
    got = hf.logits(hf.load(base, {"a": folder}, "float32"), [PROMPT], [hf.BASE])
    plain = hf.load(base, {}, "float32")
    with torch.no_grad():
        for name, x in plain.named_parameters():
            key = "base_model.model." + name.replace(".weight", ".base_layer.weight")
            if key in residual:
                x.copy_(torch.as_tensor(residual[key]))
    return compared(
        "a request without adapter, beside a PiSSA adapter", got, [build.logits(None)], hf.logits(plain, [PROMPT])
    )


@shows
def peft_merging_a_tied_head_changes_the_embedding(root: Path) -> Shown:
    build = Builder(root)
    base = build.base(tied=True)
    adapter = build.adapter(("lm_head",), tied=True)
    build.case("head", adapter, None, tied=True)
    with hf.quiet():
        merged = hf.load(base, {"a": root / "head"}, "float32").merge_and_unload()
    model, one = build.models[True], adapter.lora[LM_HEAD]
    table = model.embed_tokens + adapter.config.lora_alpha / adapter.config.r * one.B.astype(float) @ one.A
    both = dataclasses.replace(model, embed_tokens=table, lm_head=Linear(table))
    return compared(
        "merge_and_unload of LoRA on lm_head, which is tied to embed_tokens",
        hf.logits(merged, [PROMPT]),
        [build.logits(adapter, tied=True)],
        refimpl.logits(both, [refimpl.Request(PROMPT)]),
    )


@shows
def peft_a_combined_adapter_is_saved_without_its_ranks(root: Path) -> Shown:
    case = rank_pattern(Builder(root))
    model = hf.load(case.base, dict.fromkeys("ab", case.folder), "float32")
    with hf.quiet():
        model.add_weighted_adapter(["a", "b"], [0.7, 0.4], "sum", combination_type="linear")
        model.save_pretrained(root / "out", selected_adapters=["sum"])
    try:
        hf.load(case.base, {"sum": root / "out" / "sum"}, "float32")
    except RuntimeError as error:
        return Shown(
            "two adapters with a rank_pattern, add_weighted_adapter, save_pretrained, load",
            error=" ".join(str(error).split())[:190],
        )
    return Shown("two adapters with a rank_pattern, add_weighted_adapter, save_pretrained, load")
