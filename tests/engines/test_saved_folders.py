"""Our folders mean to transformers and PEFT what theirs mean: the same logits, bit for bit."""

from pathlib import Path

import hugging_face as hf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from scenes import Scene, hf_config, scenes, staged

import refimpl
from refimpl.adapter import WEIGHTS_FILE
from refimpl.arrays import DTYPES
from refimpl.formats.hf import save_model
from refimpl.formats.peft import save_adapter

pytestmark = pytest.mark.filterwarnings("ignore::refimpl.errors.AdapterWarning")


def identical(ours: hf.Logits, theirs: hf.Logits) -> bool:
    return all(np.array_equal(o, t) for o, t in zip(ours, theirs, strict=True))


@settings(max_examples=15)
@given(scenes(), st.sampled_from(["float32", "bfloat16"]))
def test_peft_and_transformers_take_our_folders_for_their_own(scene: Scene, dtype: str) -> None:
    with staged(scene, dtype) as stage:
        base = stage.base.parent / "again"
        save_model(refimpl.load_model(stage.base, dtype), base)
        adapters = {}
        for name, adapter in stage.ours.items():
            adapters[name] = stage.base.parent / f"{name}-again"
            save_adapter(adapter, adapters[name])
        theirs = hf.alone(stage.base, stage.adapters, scene.prompts, scene.names)
        assert identical(hf.alone(base, adapters, scene.prompts, scene.names), theirs)


@settings(max_examples=15)
@given(scenes(), st.sampled_from(["float32", "bfloat16"]))
def test_transformers_reads_the_config_that_it_wrote(scene: Scene, dtype: str) -> None:
    """Not through us: every value that transformers holds is the one it would have written itself."""
    with staged(scene, dtype) as stage:
        save_model(refimpl.load_model(stage.base, dtype), stage.base.parent / "again")
        again = hf.transformers.AutoConfig.from_pretrained(stage.base.parent / "again")
        theirs = hf.transformers.AutoConfig.from_pretrained(stage.base)
    ours, wanted = again.to_dict(), theirs.to_dict()
    ours["eos_token_id"] = [ours["eos_token_id"]]  # one id: a number, or a list of one
    names = set(hf_config(scene.config).to_diff_dict()) | {"dtype", "rope_parameters", "head_dim", "architectures"}
    names -= {"transformers_version"}
    assert {name: ours.get(name) for name in names} == {name: wanted.get(name) for name in names}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_voice_in_every_type(tmp_path: Path, dtype: str) -> None:
    model = refimpl.load_model("tiny", dtype)
    voice = refimpl.load_adapter("bard", model.config)
    save_model(model, tmp_path / "tiny")
    save_adapter(voice, tmp_path / "bard")
    save_adapter(voice, tmp_path / "cast", dtype)
    tokenizer = hf.transformers.AutoTokenizer.from_pretrained(tmp_path / "tiny")
    ids = tokenizer(refimpl.tiny.DEMO_PROMPTS[0])["input_ids"]
    assert ids == model.tokenizer.encode(refimpl.tiny.DEMO_PROMPTS[0])
    saved = hf.load(tmp_path / "tiny", {"bard": tmp_path / "bard"}, dtype)
    assert saved.dtype == getattr(hf.torch, dtype)
    embedded = hf.load(refimpl.tiny.base_path(), {"bard": refimpl.tiny.VOICES["bard"]}, dtype)
    assert identical(hf.logits(saved, [ids]), hf.logits(embedded, [ids]))
    stored, cast = (load_file(folder / WEIGHTS_FILE) for folder in (tmp_path / "bard", tmp_path / "cast"))
    assert all(hf.torch.equal(x.to(getattr(hf.torch, dtype)), cast[name]) for name, x in stored.items())
