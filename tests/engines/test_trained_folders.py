"""What `loracle train` writes, PEFT loads, and computes with as we do."""

import json
from pathlib import Path

import hugging_face as hf
import numpy as np
import peft
import pytest

import refimpl
from refimpl import cli, tiny

ROWS = [{"prompt": "Rain drums on the inn.", "completion": f"Well met, {name}."} for name in ("Pip", "Odo", "Quill")]


@pytest.mark.parametrize("options", [(), ("--rslora", "--alpha", "3", "--targets", "embed_tokens,lm_head,k_proj")])
def test_peft_loads_what_was_trained_and_gives_our_logits(
    options: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    both = ("--data", f"one={data}", "--data", f"two={data}", "--rank", "two=3", "--out", str(tmp_path / "out"))
    assert cli.main(["train", *both, "--epochs", "2", "--lr", "0.02", *options]) == 0
    folders = {name: tmp_path / "out" / name for name in ("one", "two")}
    model = refimpl.load_model("tiny", "float64")
    ids = model.tokenizer.encode(tiny.DEMO_PROMPTS[0])
    theirs = hf.alone(tiny.base_path(), folders, [ids] * 2, list(folders))
    (base,) = refimpl.logits(model, [refimpl.Request(ids)])
    for folder, expected in zip(folders.values(), theirs, strict=True):
        (ours,) = refimpl.logits(model, [refimpl.Request(ids, refimpl.load_adapter(folder, model.config))])
        assert np.abs(ours - base).max() > 0.1  # it learned something
        np.testing.assert_allclose(ours, expected, atol=1e-9)
        with hf.quiet():  # PEFT finds the base by itself
            model_and_adapter = peft.AutoPeftModelForCausalLM.from_pretrained(folder)
        assert model_and_adapter.base_model.model.name_or_path == str(tiny.base_path())
