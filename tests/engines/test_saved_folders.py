"""Our folders are to transformers and PEFT what theirs are: every tensor the same, bit for bit, and every scale."""

from pathlib import Path
from typing import Any

import hugging_face as hf
import numpy as np
import pytest
import test_experts
import test_families
from examples import Example, examples, hf_config, on_disk
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import refimpl
from refimpl.arrays import DTYPES
from refimpl.formats.hf import save_model
from refimpl.formats.peft import save_adapter
from refimpl.loading.adapter_folder import WEIGHTS_FILE

pytestmark = pytest.mark.filterwarnings("ignore::refimpl.errors.AdapterWarning")


def same(ours: "hf.torch.nn.Module", theirs: "hf.torch.nn.Module") -> bool:
    """All tensors (logits would do, but a BLAS rounds by where in memory a matrix lies), and the scale of each LoRA."""
    x, y = ours.state_dict(), theirs.state_dict()
    equal = x.keys() == y.keys() and all(x[n].dtype == y[n].dtype and hf.torch.equal(x[n], y[n]) for n in x)
    return equal and scales(ours) == scales(theirs)


def scales(model: "hf.torch.nn.Module") -> list[dict[str, Any]]:
    return [dict(layer.scaling) for layer in hf.lora_layers(model)]


@settings(max_examples=20)
@given(examples(), st.sampled_from(["float32", "bfloat16"]))
def test_peft_and_transformers_take_our_folders_for_their_own(example: Example, dtype: str) -> None:
    with on_disk(example, dtype) as testbed:
        base = testbed.base / "again"
        save_model(refimpl.load_model(testbed.base, dtype), base)
        assert same(hf.load(base, {}, dtype), hf.load(testbed.base, {}, dtype))
        for name, adapter in testbed.ours.items():
            save_adapter(adapter, testbed.base / name)
            model = hf.load(base, {name: testbed.base / name}, dtype)
            assert same(model, hf.load(testbed.base, {name: testbed.adapters[name]}, dtype))
            assert scales(model)


# One of each class, and those whose variants have other tensors.
VARIANTS = ("gemma4 inputs", "gemma4 shared k is v", "olmo3 yarn", "gptoss layers", "glm groups", "ernie biases")
FAMILIES = {
    case: module.config_of(case)
    for module in (test_families, test_experts)
    for case in module.CASES
    if " " not in case or case in VARIANTS
}


@pytest.mark.parametrize("case", FAMILIES)
def test_a_model_of_any_family_is_to_transformers_what_it_was(tmp_path: Path, case: str) -> None:
    """The same tensors, and the same answer: nothing of the config is lost that it needs."""
    hf.write_model(FAMILIES[case], tmp_path / "base", len(case), dtype="bfloat16")
    save_model(refimpl.load_model(tmp_path / "base", "bfloat16"), tmp_path / "again")
    first, second = (hf.load(tmp_path / name, {}, "bfloat16") for name in ("base", "again"))
    # A Nemotron rounds 1 + w to the model's type: any w with that sum is as good.
    assert same(first, second) or case == "nemotron"
    prompts = [[7, 1, 33, 9, 60, 2, 2, 15], [42]]
    for x, y in zip(hf.logits(first, prompts), hf.logits(second, prompts), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-3 * np.abs(x).max())


@settings(max_examples=20)
@given(examples(), st.sampled_from(["float32", "bfloat16"]))
def test_transformers_reads_the_config_that_it_wrote(example: Example, dtype: str) -> None:
    with on_disk(example, dtype) as testbed:
        save_model(refimpl.load_model(testbed.base, dtype), testbed.base / "again")
        ours = hf.transformers.AutoConfig.from_pretrained(testbed.base / "again").to_dict()
        theirs = hf.transformers.AutoConfig.from_pretrained(testbed.base).to_dict()
    ours["eos_token_id"] = [ours["eos_token_id"]]  # one id: a number, or a list of one
    names = set(hf_config(example.config).to_diff_dict()) | {"dtype", "rope_parameters", "head_dim", "architectures"}
    names -= {"transformers_version"}
    assert {name: ours.get(name) for name in names} == {name: theirs.get(name) for name in names}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_voice_in_every_type(tmp_path: Path, dtype: str) -> None:
    model = refimpl.load_model("tiny", dtype)
    save_model(model, tmp_path / "tiny")
    assert same(hf.load(tmp_path / "tiny", {}, dtype), hf.load(refimpl.tiny.base_path(), {}, dtype))
    save_adapter(refimpl.load_adapter("bard", model.config), tmp_path / "bard", dtype)
    cast, stored = (load_file(folder / WEIGHTS_FILE) for folder in (tmp_path / "bard", refimpl.tiny.VOICES["bard"]))
    assert cast.keys() == stored.keys()
    assert all(hf.torch.equal(x.to(getattr(hf.torch, dtype)), cast[name]) for name, x in stored.items())
    tokenizer = hf.transformers.AutoTokenizer.from_pretrained(tmp_path / "tiny")
    text = refimpl.tiny.DEMO_PROMPTS[0]
    assert tokenizer(text)["input_ids"] == model.tokenizer.encode(text)
