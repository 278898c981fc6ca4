"""The adapters of seed 42 have, to the last bit, the numbers that torch drew; and they load as PEFT folders."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from refimpl.adapter import Adapter
from refimpl.config import ModelConfig
from refimpl.errors import LoracleError
from refimpl.formats.peft import save_adapter
from refimpl.loading.adapter_folder import load_adapter
from refimpl.published.seeded_adapters import QKV, qwen3_layer_0, tinyllama_nemo
from refimpl.published.torch_randn import manual_seed, randn_float16, randn_float16_of_2_13, randn_float32

MEASURED = json.loads((Path(__file__).parent / "seeded_adapters.json").read_text("utf-8"))
TINYLLAMA = ModelConfig(
    vocab_size=32000,
    hidden_size=2048,
    intermediate_size=5632,
    num_hidden_layers=22,
    num_attention_heads=32,
    num_key_value_heads=4,
    head_dim=64,
    rms_norm_eps=1e-5,
    max_position_embeddings=2048,
    bos_token_id=1,
    eos_token_ids=(2,),
)


def fused(adapter: Adapter) -> dict[str, np.ndarray]:
    """q, k and v put together again: name -> tensor, in the order in which they were drawn."""
    tensors = {}
    for layer in range(22):
        q, k, v = (adapter.lora[(layer, module)] for module in QKV)
        assert q.A is k.A and k.A is v.A
        tensors[f"layer {layer} linear_in"] = q.A
        tensors[f"layer {layer} linear_out"] = np.concatenate([q.B, k.B, v.B])
    return tensors


def apart(adapter: Adapter) -> dict[str, np.ndarray]:
    """Name -> tensor of the adapter of one layer."""
    return {f"{module} {part}": getattr(adapter.lora[(0, module)], part) for module in QKV for part in "AB"}


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("tinyllama_nemo of torch 2.8", lambda: fused(tinyllama_nemo())),
        ("tinyllama_nemo of torch 2.13", lambda: fused(tinyllama_nemo("2.13"))),
        ("qwen3_layer_0", lambda: apart(qwen3_layer_0())),
    ],
    ids=["nemo-2.8", "nemo-2.13", "qwen3"],
)
def test_every_number_is_the_one_that_torch_drew(name: str, make: Callable[[], dict[str, np.ndarray]]) -> None:
    measured, tensors = MEASURED[name], make()
    for tensor, wanted in measured["tensors"].items():
        x = tensors[tensor]
        assert (list(x.shape), x.dtype.name) == (wanted["shape"], wanted["dtype"])
        assert x.ravel()[:4].tolist() == wanted["first"]
        wide = x.astype(np.float64)
        statistics = [wide.mean(), wide.std(), abs(wide).max()]
        assert statistics == pytest.approx([wanted["mean"], wanted["std"], wanted["largest"]], rel=1e-9)
        assert hashlib.sha256(x.tobytes()).hexdigest() == wanted["sha256"]
    everything = b"".join(x.tobytes() for x in tensors.values())
    assert hashlib.sha256(everything).hexdigest() == measured["sha256"]


def test_the_two_torches_draw_different_adapters_of_one_seed() -> None:
    old, new = tinyllama_nemo(), tinyllama_nemo("2.13")
    same = [np.mean(old.lora[module].A == new.lora[module].A) for module in old.lora]
    assert max(same) < 0.01


def test_the_old_float16_ends_at_the_largest_of_its_2048_radii() -> None:
    x = randn_float16(manual_seed(1), (1 << 20,))
    assert float(abs(x).max()) == pytest.approx(np.sqrt(2 * np.log(2048)), rel=1e-3)
    assert float(abs(randn_float16_of_2_13(manual_seed(1), (1 << 20,))).max()) > 4.5


@pytest.mark.parametrize("shape", [(0,), (15,), (17,), (3, 7)])
def test_a_size_that_torch_draws_otherwise_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(LoracleError, match="only sizes that 16 divides"):
        randn_float32(manual_seed(0), shape)


@pytest.mark.parametrize("torch", ["2.8", "2.13"])
def test_saved_as_peft_it_loads_for_tinyllama_unchanged(tmp_path: Path, torch: str) -> None:
    made = tinyllama_nemo(torch)
    save_adapter(made, tmp_path / "nemo")
    loaded = load_adapter(tmp_path / "nemo", TINYLLAMA)
    assert {module: w.B.shape for module, w in loaded.lora.items() if module[0] == 21} == {
        (21, "q_proj"): (2048, 8),
        (21, "k_proj"): (256, 8),
        (21, "v_proj"): (256, 8),
    }
    assert len(loaded.lora) == 66 and loaded.config.lora_alpha == loaded.config.r == 8  # a scale of 1
    for module, w in loaded.lora.items():
        assert np.array_equal(w.A, made.lora[module].A) and np.array_equal(w.B, made.lora[module].B)
