"""A model that transformers has quantised with bitsandbytes on a CPU: our numbers are its own, and a QLoRA on them.

Needs torch, transformers, PEFT and bitsandbytes (`pip install -e '.[peft]' bitsandbytes`); 0.50.2 was seen. Its kernel
for CPUs is wrong where rows are no multiple of 64 numbers: it begins a new block with each row, and whoever quantised
did not (a weight of [64, 80] comes back wrong by 2.0, by its own formula in torch by 0.4). So rows here are multiples
of 64, and others are held against that formula.
"""

from pathlib import Path

import numpy as np
import pytest
from support.build import as_dtype, random_adapter, random_model

from refimpl import Request, logits
from refimpl.config import ModelConfig
from refimpl.formats.hf import save_model
from refimpl.formats.peft import save_adapter
from refimpl.loading.adapter_folder import load_adapter
from refimpl.loading.bitsandbytes_4bit import quantised_tensors
from refimpl.loading.diagnostics import Diagnostics
from refimpl.loading.model_folder import load_model
from refimpl.loading.safetensors_file import open_safetensors

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
bitsandbytes = pytest.importorskip("bitsandbytes")

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks for it

CONFIG = ModelConfig(40, 128, 192, 2, 4, 2, 16, max_position_embeddings=64, eos_token_ids=(1,))
IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
NOISE = 1e-5  # of the largest logit: float32 throughout, of two programs


@pytest.mark.parametrize("nested", [False, True], ids=["plain", "double_quant"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_to_the_bit_and_logits(tmp_path: Path, dtype: str, nested: bool) -> None:
    save_model(random_model(CONFIG, 3, "float32"), tmp_path / "base")
    how = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=nested,
        bnb_4bit_compute_dtype=torch.float32,
    )
    torch.set_num_threads(1)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", quantization_config=how, dtype=getattr(torch, dtype), device_map="cpu"
    )
    theirs.save_pretrained(tmp_path / "nf4")
    ours = load_model(tmp_path / "nf4", "float64")
    for i, layer in enumerate(theirs.model.layers):
        for module in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"):
            weight = layer.get_submodule(module).weight
            numbers = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
            mine = ours.linear((i, module.split(".")[1])).weight
            assert numbers.dtype == getattr(torch, dtype)
            assert np.array_equal(numbers.double().numpy(), mine), (i, module)
    if dtype != "float32":
        return
    for module in theirs.modules():  # on processors that have bfloat16 it would multiply in that, whatever the type is
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
    adapter = as_dtype(random_adapter(CONFIG, 4, 3, 6.0, True), "float32")
    save_adapter(adapter, tmp_path / "adapter")
    with_adapter = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    with torch.no_grad():
        for given, model in ((load_adapter(tmp_path / "adapter", CONFIG), with_adapter), (None, None)):
            expected = logits(ours, [Request(IDS, given)])[0]
            if model is None:
                with with_adapter.disable_adapter():
                    rows = with_adapter(torch.tensor([IDS])).logits[0]
            else:
                rows = model(torch.tensor([IDS])).logits[0]
            assert abs(rows.double().numpy() - expected).max() <= NOISE * abs(expected).max()


@pytest.mark.parametrize("shape", [(64, 80), (5, 7), (3, 64), (1, 1)])
def test_rows_that_are_no_multiple_of_a_block(tmp_path: Path, shape: tuple[int, int]) -> None:
    from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
    from safetensors.torch import save_file

    weight = torch.from_numpy(np.random.default_rng(0).standard_normal(shape).astype(np.float32))
    packed, state = bitsandbytes.functional.quantize_4bit(weight, quant_type="nf4")
    file = tmp_path / "w.safetensors"
    parts = {f"w.{name}": part for name, part in state.as_dict(packed=True).items()}
    save_file({"w": packed, **parts}, file)
    opened = open_safetensors(file, Diagnostics())
    assert opened is not None
    ours = quantised_tensors(opened)[0]["w"]
    assert ours.problem is None
    flat = packed.reshape(-1)
    expected = _dequantize_4bit_compute(flat, state.absmax, state.code, state.blocksize, shape, torch.float32)
    assert np.array_equal(ours.read(), expected.numpy().reshape(shape))
    assert abs(ours.read() - weight.numpy()).max() < 0.6
