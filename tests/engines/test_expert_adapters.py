"""LoRA on experts as PEFT itself saves it, and what we save as PEFT reads it, in float64.

PEFT runs no mixed batch here, so that it computes each request alone; ours come from one batch. What transformers 4
trained has no PEFT on transformers 5 that computes it right in all cases: it is merged into the tensors of the
checkpoint here, which hold each expert by itself."""

import dataclasses
import json
import math
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hugging_face as hf
import numpy as np
import pytest
import test_experts
from examples import worst
from safetensors.numpy import load_file, save_file

import refimpl
from refimpl.adapter import Adapter, LoraTensors, PeftConfig
from refimpl.adapter_slots import bind_adapter, scale_of
from refimpl.config import ModelConfig, Module, module_name
from refimpl.digest import digest
from refimpl.errors import AdapterWarning
from refimpl.formats.peft import peft_json, peft_tensors, save_adapter
from refimpl.tools.merge_folder import merge_folder, open_base

pytestmark = pytest.mark.filterwarnings("ignore::refimpl.errors.AdapterWarning")

TOLERANCE = 1e-9  # times max(1, largest logit)
SQUARE = {"num_local_experts": 3, "intermediate_size": 24}  # only PEFT's version tells which axis is which
CASES = test_experts.CASES | {"square": (hf.transformers.MixtralConfig, SQUARE)}
DENSE_TOO = ["qwen2 dense layers", "qwen3 steps", "glm groups", "deepseek_v2"]
BASES = ["mixtral", "square", *DENSE_TOO, "granite_shared", "gptoss"]
PROMPTS = [[7, 1, 33, 9, 60, 2, 2, 15, 48, 3, 11, 5], [4, 8, 15, 16, 23], [42], list(range(3, 25)), [9, 9, 1]]
EVERY = ["o_proj", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"]
SPECS: dict[str, dict[str, Any]] = {
    "both": {"r": 3, "lora_alpha": 7, "target_modules": ["o_proj"], "target_parameters": ["down_proj", "gate_up_proj"]},
    "down": {
        "r": 2,
        "lora_alpha": 5,
        "use_rslora": True,
        "target_modules": [],
        "target_parameters": ["experts.down_proj"],
    },
    "choice": {  # not "router": PEFT takes lora_A.router.weight for a router then
        "r": 2,
        "lora_alpha": 7,
        "target_modules": ["o_proj"],
        "target_parameters": ["gate.weight", "router.weight", "gate_up_proj"],
        "rank_pattern": {r".*\.gate_up_proj": 4},
        "alpha_pattern": {"gate.weight": 3, "router.weight": 3, r"layers.1\..*\.gate_up_proj": 11},
    },
    # PEFT on transformers 5 makes target_parameters of these; of a Qwen2-MoE it leaves them on the shared expert
    "named": {"r": 3, "lora_alpha": 7, "target_modules": EVERY},
    "stable": {"r": 3, "lora_alpha": 7, "use_rslora": True, "target_modules": EVERY},
}


def write_base(case: str, folder: Path) -> refimpl.Model:
    """The base as transformers writes it, and as we read it."""
    kind, changes = CASES[case]
    hf.write_model(kind(**test_experts.SIZES | changes), folder, seed=len(case))
    return refimpl.load_model(folder, "float64")


def ours(model: refimpl.Model, adapters: Sequence[Adapter | None]) -> list[np.ndarray]:
    """The logits of each prompt with its adapter, from one batch."""
    return refimpl.logits(model, [refimpl.Request(*pair) for pair in zip(PROMPTS, adapters, strict=True)])


@pytest.mark.parametrize("case", BASES)
def test_a_mixed_batch_equals_what_peft_saved_alone(tmp_path: Path, case: str) -> None:
    model, folders = write_base(case, tmp_path / "base"), {}
    for seed, (name, spec) in enumerate(SPECS.items()):
        hf.write_adapter(tmp_path / "base", hf.peft.LoraConfig(**spec), tmp_path / name, seed)
        folders[name] = tmp_path / name
    adapters = {name: refimpl.load_adapter(folder, model.config) for name, folder in folders.items()}
    for names in (["both", hf.BASE, "down", "choice", "both"], ["named", "choice", "stable", hf.BASE, "named"]):
        theirs = hf.alone(tmp_path / "base", folders, PROMPTS, names)
        assert worst(ours(model, [adapters.get(name) for name in names]), theirs) <= TOLERANCE
    for name, adapter in adapters.items():
        save_adapter(adapter, tmp_path / "again" / name, config=model.config)
        again = refimpl.load_adapter(tmp_path / "again" / name, model.config)
        assert digest(bind_adapter(again, model.config)) == digest(bind_adapter(adapter, model.config))


def test_peft_itself_runs_no_mixed_batch_of_experts(tmp_path: Path) -> None:
    """Why it is asked one by one. If this fails, it can be asked for the batch."""
    write_base("mixtral", tmp_path / "base")
    folders = {name: tmp_path / name for name in "ab"}
    for seed, folder in enumerate(folders.values()):
        hf.write_adapter(tmp_path / "base", hf.peft.LoraConfig(**SPECS["both"]), folder, seed)
    with pytest.raises(ValueError, match="mixed adapter batches"):
        hf.logits(hf.load(tmp_path / "base", folders, "float64"), PROMPTS[:2], ["a", "b"])


def layers_adapter(config: ModelConfig, modules: Sequence[Module], seed: int, **changes: Any) -> Adapter:
    """An adapter as transformers 4 had it: a layer of its own for each of these modules."""
    rng, lora = np.random.default_rng(seed), {}
    for module in modules:
        d_out, d_in = config.shape(module)
        A, B = rng.standard_normal((3, d_in)) / np.sqrt(d_in), rng.standard_normal((d_out, 3)) / 3
        lora[module] = LoraTensors(A.astype(np.float32), B.astype(np.float32))
    peft = PeftConfig(3, 4.0, target_modules=tuple(module_name(module) for module in modules))
    return Adapter("layers", dataclasses.replace(peft, **changes), lora)


def kinds_of_modules(config: ModelConfig) -> dict[str, list[Module]]:
    """What an adapter may be on, by name."""
    modules = [module for module in config.modules() if module[0] >= 0]
    experts = [module for module in modules if ".experts." in module[1]]
    halves = {"all": modules, "experts": experts}
    halves["some experts"] = [module for module in experts if re.search(r"\.experts\.[12]\.", module[1])]
    halves["gates"] = [module for module in modules if module[1].endswith(("gate_proj", "w1", "o_proj"))]
    halves["router"] = [
        module for module in modules if config.moe and module[1] == config.moe.router and module[0] == 0
    ]
    halves["beside"] = [
        module for module in modules if "shared" in module[1] or module[1] in ("gate_proj", "up_proj", "down_proj")
    ]
    return {name: modules for name, modules in halves.items() if modules}


def write_layers(adapter: Adapter, folder: Path, **config: Any) -> None:
    """The folder that PEFT wrote with transformers 4: a pair for each expert."""
    folder.mkdir()
    save_file(peft_tensors(adapter), folder / "adapter_model.safetensors", {"format": "pt"})
    data = peft_json(adapter.config) | config
    (folder / "adapter_config.json").write_text(json.dumps(data))


def merged(base: Path, adapter: Adapter, folder: Path) -> Path:
    """The base with W + scale B A in the place of W."""
    tensors = {name: x.astype(np.float64) for name, x in load_file(base / "model.safetensors").items()}
    for module, lora in adapter.lora.items():
        A, B = lora.A.astype(np.float64), lora.B.astype(np.float64)
        test_experts.merge(tensors, module_name(module), scale_of(adapter.config, module, len(A)) * B @ A)
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text((base / "config.json").read_text())
    return folder


@pytest.mark.parametrize("case", BASES)
def test_a_layer_for_each_expert_and_what_peft_reads_of_our_file(tmp_path: Path, case: str) -> None:
    """The base merged by hand is the truth. Our file of it has one pair for all experts, which PEFT reads; of a shared
    expert and of dense layers, too, whose names it would take for those of experts."""
    model = write_base(case, tmp_path / "base")
    for kind, modules in kinds_of_modules(model.config).items():
        adapter = layers_adapter(model.config, modules, len(kind), use_rslora=len(kind) % 2 == 1)
        write_layers(adapter, tmp_path / f"{kind} layers")
        loaded = refimpl.load_adapter(tmp_path / f"{kind} layers", model.config)
        truth, _ = test_experts.theirs(merged(tmp_path / "base", adapter, tmp_path / f"{kind} merged"), PROMPTS)
        assert worst(ours(model, [loaded] * 5), truth) <= TOLERANCE
        save_adapter(loaded, tmp_path / kind, config=model.config)
        assert worst(ours(model, [refimpl.load_adapter(tmp_path / kind, model.config)] * 5), truth) <= TOLERANCE
        theirs = hf.alone(tmp_path / "base", {kind: tmp_path / kind}, PROMPTS, [kind] * 5)
        assert worst(theirs, truth) <= TOLERANCE


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("case", ["mixtral", "qwen3", "qwen2"])
def test_what_peft_makes_of_an_adapter_of_transformers_4(tmp_path: Path, case: str, use_rslora: bool) -> None:
    """Right, or as PEFT 0.21.2 has it: gate and up of an rsLoRA times sqrt(2), and of a Qwen2-MoE no expert at all."""
    model = write_base(case, tmp_path / "base")
    modules = [
        module for module in model.config.modules() if re.search(r"\.(experts|shared_expert)\.|^o_proj", module[1])
    ]
    names = sorted({module[1].rpartition(".")[2] for module in modules})
    adapter = layers_adapter(model.config, modules, 3, use_rslora=use_rslora)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AdapterWarning)
        write_layers(adapter, tmp_path / "four", target_modules=names)
        right = ours(model, [refimpl.load_adapter(tmp_path / "four", model.config)] * 5)
    theirs = hf.alone(tmp_path / "base", {"four": tmp_path / "four"}, PROMPTS, ["four"] * 5)
    alpha = 4.0 * math.sqrt(2)
    louder = dict.fromkeys(("w1", "w3", "gate_proj", "up_proj"), alpha) if use_rslora else {}
    wrong = dataclasses.replace(adapter, config=dataclasses.replace(adapter.config, alpha_pattern=louder))
    if case == "qwen2":
        wrong = dataclasses.replace(
            adapter, lora={module: one for module, one in adapter.lora.items() if ".experts." not in module[1]}
        )
    defect = ours(model, [wrong] * 5)
    if use_rslora or case == "qwen2":
        assert worst(defect, right) > 1e-3
    assert min(worst(theirs, right), worst(theirs, defect)) <= TOLERANCE


@pytest.mark.parametrize("case", BASES)
def test_dora_on_the_layers_of_each_expert(tmp_path: Path, case: str) -> None:
    """As transformers 4 has experts: W becomes the rows of W + scale B A, each of its own length. One batch holds the
    base and two such adapters, one on experts alone; merged, each is a base that answers the same."""
    model = write_base(case, tmp_path / "base")
    adapters: list[Adapter | None] = [None]
    truth, _ = test_experts.theirs(tmp_path / "base", PROMPTS[:1])
    for seed, kind in ((1, "all"), (2, "experts")):
        modules, rng = kinds_of_modules(model.config)[kind], np.random.default_rng(seed)
        plain = layers_adapter(model.config, modules, seed, use_dora=True)
        lengths = {module: 1 + rng.random(model.config.shape(module)[0], np.float32) for module in modules}
        adapter = dataclasses.replace(
            plain,
            lora={module: dataclasses.replace(one, magnitude=lengths[module]) for module, one in plain.lora.items()},
        )
        write_layers(adapter, tmp_path / kind)
        adapters += [refimpl.load_adapter(tmp_path / kind, model.config)] * 2
        folder = stretched(model, tmp_path / "base", adapter, tmp_path / f"{kind} merged")
        truth += test_experts.theirs(folder, PROMPTS[len(truth) : len(truth) + 2])[0]
        with pytest.raises(refimpl.errors.AdapterError, match=r"has DoRA on model\.layers"):
            save_adapter(adapter, tmp_path / f"{kind} again", config=model.config)
        merge_folder(open_base(tmp_path / "base"), [(adapters[-1], 1.0)], tmp_path / f"{kind} tool", dtype="float64")
        alone = refimpl.load_model(tmp_path / f"{kind} tool", "float64")
        requests = [refimpl.Request(prompt) for prompt in PROMPTS[len(truth) - 2 : len(truth)]]
        assert worst(refimpl.logits(alone, requests), truth[-2:]) <= TOLERANCE
    assert worst(ours(model, adapters), truth) <= TOLERANCE


def stretched(model: refimpl.Model, base: Path, adapter: Adapter, folder: Path) -> Path:
    """The base with magnitude (W + scale B A) / |W + scale B A|, row by row, in the place of W."""
    tensors = {name: x.astype(np.float64) for name, x in load_file(base / "model.safetensors").items()}
    for module, lora in adapter.lora.items():
        W, A, B = model.linear(module).weight, lora.A.astype(np.float64), lora.B.astype(np.float64)
        total = W + scale_of(adapter.config, module, len(A)) * B @ A
        rows = lora.magnitude[:, None] / np.linalg.norm(total, axis=1, keepdims=True) * total
        test_experts.merge(tensors, module_name(module), rows - W)
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text((base / "config.json").read_text())
    return folder


def test_peft_has_no_dora_on_parameters(tmp_path: Path) -> None:
    """Why a file with both is refused. If this fails, it can be read."""
    write_base("mixtral", tmp_path / "base")
    with pytest.raises(ValueError, match="does not work with use_dora=True"):
        hf.write_adapter(tmp_path / "base", hf.peft.LoraConfig(**SPECS["both"], use_dora=True), tmp_path / "one", 0)
