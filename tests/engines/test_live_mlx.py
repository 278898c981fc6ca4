"""mlx-lm, live, on a CPU: it computes from an adapter that we wrote what we compute from the PEFT adapter.

LORACLE_MLX_PYTHON names a python with it: `pip install --no-deps mlx mlx-cpu mlx-lm`, and numpy, transformers,
sentencepiece, jinja2, pyyaml beside them (mlx 0.32.4 and mlx-lm 0.32.2 were seen).
"""

import dataclasses
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from support.build import random_adapter, random_model

from refimpl import Request, logits
from refimpl.adapter import Adapter, LoraTensors
from refimpl.config import LAYER_MODULES, ModelConfig
from refimpl.formats.hf import save_model
from refimpl.formats.mlx import write_mlx_adapter

PYTHON = os.environ.get("LORACLE_MLX_PYTHON")
pytestmark = pytest.mark.skipif(PYTHON is None, reason="LORACLE_MLX_PYTHON names no python with mlx-lm")

CONFIG = ModelConfig(40, 32, 48, 3, 4, 2, 8, max_position_embeddings=64)
IDS = [3, 1, 4, 1, 5, 9, 2, 6]
NOISE = 1e-5  # of the largest logit: float32 in two programs


def float32(adapter: Adapter, magnitudes: bool = False) -> Adapter:
    lora = {}
    for i, (module, tensors) in enumerate(adapter.lora.items()):
        magnitude = (1 + np.random.default_rng(i).random(len(tensors.B))).astype(np.float32) if magnitudes else None
        lora[module] = LoraTensors(tensors.A.astype(np.float32), tensors.B.astype(np.float32), None, magnitude)
    return dataclasses.replace(adapter, config=dataclasses.replace(adapter.config, use_dora=magnitudes), lora=lora)


@pytest.mark.parametrize("kind", ["base", "lora", "patterns", "dora"])
def test_logits(tmp_path: Path, kind: str) -> None:
    model = random_model(CONFIG, 0, "float32")
    save_model(model, tmp_path / "base")
    pattern = {"q_proj": 3.0} if kind == "patterns" else {}
    modules = ("q_proj", "up_proj") if kind == "dora" else (*LAYER_MODULES, "lm_head")
    adapter = float32(random_adapter(CONFIG, 1, 3, 7.0, True, modules, alpha_pattern=pattern), kind == "dora")
    command = [
        str(PYTHON),
        str(Path(__file__).parent / "job_mlx.py"),
        str(tmp_path / "base"),
        str(tmp_path / "out.npy"),
    ]
    if kind != "base":
        write_mlx_adapter(adapter, tmp_path / "adapter", CONFIG)
    arguments = [json.dumps(IDS), *([] if kind == "base" else [str(tmp_path / "adapter")])]
    subprocess.run([*command, *arguments], check=True, capture_output=True, timeout=600)
    theirs = np.load(tmp_path / "out.npy")
    ours = logits(model, [Request(IDS, None if kind == "base" else adapter)])[0]
    alone = logits(model, [Request(IDS)])[0]
    error = abs(theirs - ours).max() / abs(ours).max()
    print(f"{kind}: {error:.1e} of the largest logit")
    assert error <= NOISE
    assert kind == "base" or abs(theirs - alone).max() > 1000 * NOISE * abs(ours).max()
