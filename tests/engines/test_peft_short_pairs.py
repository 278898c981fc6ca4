"""VeRA and BD-LoRA as PEFT computes them, in float64, and QA-LoRA as its own forward function does: each is written out
as plain LoRA when it is loaded. MiCA and VeLoRA are plain LoRA once they are trained."""

import types
from pathlib import Path
from typing import Any

import hugging_face as hf
import numpy as np
import pytest
from examples import worst

import refimpl
from refimpl.formats.peft import save_adapter
from refimpl.loading.blocks import ungrouped
from refimpl.tools.inspect import inspect

pytestmark = [
    pytest.mark.filterwarnings("ignore::refimpl.errors.AdapterWarning"),
    pytest.mark.filterwarnings("ignore:The target layer.*|Specified to not load"),
]
torch, peft = hf.torch, hf.peft

TOLERANCE = 1e-9  # times max(1, largest logit)
CONFIG = hf.transformers.LlamaConfig(
    vocab_size=23,
    hidden_size=12,
    intermediate_size=20,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
)
PROMPTS = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3, 5, 8, 9, 7]]
INNER = ["q_proj", "v_proj", "gate_proj", "down_proj"]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    hf.write_model(CONFIG, tmp_path / "base", seed=1)
    return tmp_path / "base"


def saved(base: Path, config: "peft.PeftConfig", folder: Path) -> Path:
    """An adapter of this config whose every parameter is random, saved by PEFT."""
    rng = np.random.default_rng(5)
    with hf.quiet():
        model = peft.get_peft_model(hf.transformers.AutoModelForCausalLM.from_pretrained(base), config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name or "vera_lambda" in name:
                    hf.fill(parameter, rng, 0.7)
        model.save_pretrained(folder)
    return folder


def assert_as_peft(base: Path, folder: Path) -> refimpl.Adapter:
    """The adapter, beside the base, gets what PEFT computes for it alone; and so does the plain LoRA that we save."""
    model = refimpl.load_model(base, "float64")
    adapter = refimpl.load_adapter(folder, model)
    requests = [refimpl.Request(prompt, adapter) for prompt in PROMPTS] + [refimpl.Request(PROMPTS[0])]
    names = ["a"] * len(PROMPTS) + [hf.BASE]
    theirs = hf.alone(base, {"a": folder}, [*PROMPTS, PROMPTS[0]], names)
    assert worst(refimpl.logits(model, requests), theirs) <= TOLERANCE
    plain = folder.parent / f"{folder.name}-plain"
    save_adapter(adapter, plain)
    assert worst(hf.alone(base, {"a": plain}, PROMPTS, names[:-1]), theirs[:-1]) <= TOLERANCE
    return adapter


@pytest.mark.parametrize("targets", [INNER, ["q_proj"], r".*\.1\..*(up|k)_proj"])
def test_vera(base: Path, tmp_path: Path, targets: Any) -> None:
    folder = saved(base, peft.VeraConfig(r=5, target_modules=targets, task_type="CAUSAL_LM"), tmp_path / "vera")
    adapter = assert_as_peft(base, folder)
    assert adapter.config.r == adapter.config.lora_alpha == 5
    report = inspect(folder, refimpl.load_model(base).config)
    assert report.ok and {module.scale for module in report.modules} == {1.0}


@pytest.mark.parametrize("targets", [INNER, ["k_proj"], r".*\.1\..*(up|k)_proj", "all-linear"])
@pytest.mark.parametrize("seed", [0, 12345, 2**32 + 3])
@pytest.mark.filterwarnings("ignore:Specified to not save vera_A")
def test_vera_without_its_matrices(base: Path, tmp_path: Path, targets: Any, seed: int) -> None:
    config = peft.VeraConfig(
        r=5, target_modules=targets, task_type="CAUSAL_LM", save_projection=False, projection_prng_key=seed
    )
    assert_as_peft(base, saved(base, config, tmp_path / "vera"))


@pytest.mark.parametrize("use_rslora", [False, True])
def test_bd_lora(base: Path, tmp_path: Path, use_rslora: bool) -> None:
    blocks = peft.tuners.lora.config.BdLoraConfig(
        target_modules_bd_a=["o_proj", "down_proj"], target_modules_bd_b=["q_proj", "gate_proj"], nblocks=2,
        match_strict=False,
    )  # fmt: skip
    targets = ["q_proj", "o_proj", "v_proj", "gate_proj", "down_proj"]
    config = peft.LoraConfig(
        r=4, lora_alpha=7, target_modules=targets, use_bdlora=blocks, use_rslora=use_rslora, task_type="CAUSAL_LM"
    )
    folder = saved(base, config, tmp_path / "bd")
    adapter = assert_as_peft(base, folder)
    A, B = adapter.lora[0, "down_proj"].A, adapter.lora[0, "gate_proj"].B
    assert A.shape == (4, 20) and not A[:2, 10:].any() and not A[2:, :10].any() and A[2:, 10:].all()
    assert B.shape == (20, 4) and not B[:10, 2:].any() and not B[10:, :2].any() and B[10:, 2:].all()


def test_qa_lora_is_what_pefts_forward_makes_of_it() -> None:
    """PEFT has it on GPTQ layers only, whose class needs gptqmodel: its variant's own code runs on a stand-in."""
    rng, group = np.random.default_rng(2), 4
    A, B, x = rng.standard_normal((3, 6)), rng.standard_normal((5, 3)), rng.standard_normal((2, 7, 24))
    linear = {name: types.SimpleNamespace(weight=torch.as_tensor(w)) for name, w in (("A", A), ("B", B))}
    stand_in = types.SimpleNamespace(
        lora_A={"a": linear["A"]},
        lora_B={"a": linear["B"]},
        lora_dropout={"a": torch.nn.Identity()},
        scaling={"a": 1.5},
        qalora_group_size={"a": group},
        training=False,
        in_features=24,
    )
    forward = peft.tuners.lora.variants.QALoraLinearVariant.forward
    theirs = forward(stand_in, "a", torch.as_tensor(x), torch.zeros(2, 7, 5, dtype=torch.float64)).numpy()
    ours = 1.5 * x @ ungrouped(A, group).T @ B.T
    assert np.abs(ours - theirs).max() <= TOLERANCE * np.abs(theirs).max()


@pytest.mark.parametrize(
    "how",
    [
        {"init_lora_weights": "mica"},
        {"init_lora_weights": "orthogonal"},
        {"velora_config": peft.tuners.lora.config.VeloraConfig(num_groups=2)},
    ],
    ids=["mica", "orthogonal", "velora"],
)
def test_what_was_only_trained_otherwise_is_plain_lora(tmp_path: Path, how: dict[str, Any]) -> None:
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=INNER, task_type="CAUSAL_LM", **how)
    with hf.float64_throughout():  # MiCA is for a base of "float32" or a half type
        hf.write_model(CONFIG, tmp_path / "base", 1, "float64")
        assert_as_peft(tmp_path / "base", saved(tmp_path / "base", config, tmp_path / "adapter"))
