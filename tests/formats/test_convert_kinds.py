"""Every kind of adapter into every format: the same numbers, or what is lost is said and nothing is written."""

from pathlib import Path

import numpy as np
import pytest
from loading.wild_cases import CASES, folder

from refimpl import Request, cli, logits
from refimpl.adapter import Adapter
from refimpl.config import Module
from refimpl.errors import AdapterError
from refimpl.formats.convert import FORMATS, convert
from refimpl.formats.plain_lora import peft_scales
from refimpl.loading.adapter_folder import load_adapter
from refimpl.loading.model_folder import load_model

KINDS = {
    "plain": folder(),
    "rslora": folder(use_rslora=True),
    "rank and alpha patterns": folder(alpha_pattern={"q_proj": 2.5}),
    "alora": folder(alora_invocation_tokens=[3, 4]),
    "pissa": folder(init_lora_weights="pissa"),
    "olora": folder(init_lora_weights="olora"),
    "tables": CASES["grown_vocabulary_peft_default_save"].write,
    "rows of tokens": CASES["new_tokens_of_a_grown_vocabulary"].write,
    "biases": CASES["bias_all"].write,
    "shards": CASES["sharded_adapter"].write,
    "wrapped names": CASES["text_of_a_wrapper_0"].write,
    "mlx": CASES["mlx_lm"].write,
}
LOST = {  # in every format but PEFT's
    "alora": "alora_invocation_tokens",
    "tables": "a whole model.embed_tokens",
    "rows of tokens": "a whole model.embed_tokens",
    "biases": "the bias of model.layers.0",
}
IDS = [3, 4, 5, 9, 2, 6]


@pytest.mark.filterwarnings("ignore::refimpl.errors.AdapterWarning")
@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_into_every_format(tmp_path: Path, kind: str, to: str) -> None:
    KINDS[kind](tmp_path)
    model, target = load_model(tmp_path / "model", "float64"), tmp_path / f"out.{to}"
    if to != "peft" and kind in LOST:
        with pytest.raises(AdapterError, match=f"cannot hold .*{LOST[kind]}"):
            convert(tmp_path / "adapter", target, to, base=model)
        assert not target.exists()
        return
    dtype = "float32" if kind in ("pissa", "olora") and to == "trtllm" else None  # made in float64
    done = convert(tmp_path / "adapter", target, to, dtype, "peft", base=model)
    if to == "trtllm":
        assert any("multiplied into B" in note for note in done.notes)
        convert(target, tmp_path / "again", "peft", base=model)
        target = tmp_path / "again"
    ours, theirs = (load_adapter(path, model) for path in (target, tmp_path / "adapter"))
    if to == "peft":  # nothing is rounded
        rows = [logits(model, [Request(IDS, adapter)])[0] for adapter in (ours, theirs)]
        assert np.array_equal(*rows)
    mine, yours = delta(ours), delta(theirs)
    assert mine.keys() == yours.keys()
    for module, x in yours.items():
        assert np.allclose(mine[module], x, rtol=0, atol=5e-7 * abs(x).max()), module


def delta(adapter: Adapter) -> dict[Module, np.ndarray]:
    """scale B A of every module, in float64."""
    scales = peft_scales(adapter)
    return {
        module: scales[module] * (lora.B.astype(np.float64) @ lora.A.astype(np.float64))
        for module, lora in adapter.lora.items()
    }


def test_pissa_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder(init_lora_weights="pissa")(tmp_path)
    argv = ["convert", str(tmp_path / "adapter"), str(tmp_path / "out"), "--to", "peft"]
    assert cli.main(argv) == 2
    assert "--model" in capsys.readouterr().err
    assert cli.main([*argv, "--model", str(tmp_path / "model")]) == 0
    model = load_model(tmp_path / "model")
    assert load_adapter(tmp_path / "out", model.config).config.r == 6
