"""TensorRT-LLM's loaders are torch: our rows are what torch makes of the same tensors, bit for bit."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install -e '.[test,peft]'")
from safetensors.torch import load_file  # noqa: E402

import refimpl  # noqa: E402
from refimpl.formats.convert import convert  # noqa: E402
from refimpl.loading.adapter_folder import WEIGHTS_FILE  # noqa: E402

IDS = {"q_proj": 1, "k_proj": 2, "v_proj": 3, "o_proj": 4, "gate_proj": 5, "down_proj": 6, "up_proj": 7}


@pytest.mark.parametrize("order", ["convert", "manager"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("voice", ["bard", "pirate"])
def test_the_rows_are_torchs(tmp_path: Path, voice: str, dtype: str, order: str) -> None:
    folder, to = refimpl.tiny.VOICES[voice], getattr(torch, dtype)
    convert(folder, tmp_path / "pair", "trtllm", dtype, order)
    weights, config = (np.load(tmp_path / "pair" / f"model.lora_{name}.npy") for name in ("weights", "config"))
    of_row = {(module, layer): row for row, (module, layer, *_) in enumerate(config[0].tolist())}
    tensors = load_file(folder / WEIGHTS_FILE)
    adapter = refimpl.load_adapter(folder, refimpl.load_model("tiny").config)
    peft = adapter.config
    for layer, module in adapter.lora:
        name = next(n for n in tensors if f"layers.{layer}." in n and f".{module}.lora_A" in n)
        A, B = tensors[name], tensors[name.replace("lora_A", "lora_B")]
        scale = peft.lora_alpha / (np.sqrt(peft.r) if peft.use_rslora else peft.r)
        scaled = (B * scale).to(to) if order == "convert" else B.to(to) * scale
        flat = torch.cat([A.to(to).flatten(), scaled.flatten()])
        expected = (flat.view(torch.int16) if dtype == "bfloat16" else flat).numpy().tobytes()
        row = weights[0, of_row.pop((IDS[module], layer))].tobytes()
        assert row[: len(expected)] == expected
        assert not any(row[len(expected) :])
    assert all(not any(weights[0, row].tobytes()) for row in of_row.values())  # q, k, v that LoraManager fills up
    assert not of_row or order == "manager"
