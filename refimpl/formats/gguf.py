"""An Adapter -> the GGUF file that llama.cpp loads with --lora (loading/gguf_adapter.py reads it).

GGUF has one alpha for all modules, and llama.cpp's scale is alpha / rank of the module. So rsLoRA's alpha is written as
alpha * sqrt(rank), which llama.cpp's own convert_lora_to_gguf.py leaves out, and where patterns give modules scales
that no single alpha can, the rest goes into B.
"""

from pathlib import Path

import numpy as np

from ..adapter import Adapter
from ..config import EMBED, LAYER_MODULES, LM_HEAD, ModelConfig, Module
from ..errors import AdapterError
from ..loading.dequantise import INSTALL
from ..loading.gguf_adapter import ALPHA
from ..loading.gguf_names import (
    INTERLEAVED,
    architecture_of,
    gguf_name,
    interleaved,
    known_architectures,
    rotary_heads,
)
from .files import new_file
from .plain_lora import one_for_all, peft_scales, plain_modules, rounding_note, written

MODULES = (*LAYER_MODULES, EMBED[1], LM_HEAD[1])


def write_gguf_adapter(
    adapter: Adapter, target: Path, base: ModelConfig, dtype: str | None = None, leave_out: bool = False
) -> list[str]:
    """Write the new file, and return what its owner should know: whatever cannot be read back from it.

    The base says how many heads the rows of q and k are. AdapterError, and no file, for what GGUF cannot hold (a whole
    layer, a bias) unless it is left out, or without the gguf package."""
    try:
        import gguf
    except ImportError:
        raise AdapterError(f"GGUF is written by the gguf package, which is not here: {INSTALL}") from None
    modules, notes = plain_modules(adapter, "GGUF", MODULES, leave_out)
    architecture = architecture_of(base)
    if not architecture:
        names = ", ".join(known_architectures())
        raise AdapterError(
            f"GGUF's names and rows are known here for {names}; the base is {base.model_type or 'another'}"
        )
    tied = base.tie_word_embeddings and LM_HEAD in modules
    if tied:
        raise AdapterError("LoRA on lm_head: llama.cpp has no output matrix of its own where embeddings are tied")
    scales = peft_scales(adapter)
    alphas = {module: scales[module] * adapter.lora[module].A.shape[0] for module in modules}
    alpha, factors, more = one_for_all(alphas, "lora_alpha", "GGUF's alpha")
    if float(np.float32(alpha)) != alpha:
        more.append(f"alpha {alpha:.9g} is stored as the float32 {float(np.float32(alpha)):.9g}")
    if adapter.config.use_rslora:
        more.append("use_rslora: it will come back as an alpha that is as large as the scale needs")
    tensors = {}
    for module in modules:
        A, B = _pair(adapter, module, base, dtype, factors.get(module, 1.0))
        tensors[f"{gguf_name(module)}.weight.lora_a"], tensors[f"{gguf_name(module)}.weight.lora_b"] = A, B
    with new_file(target) as scratch:
        writer = gguf.GGUFWriter(scratch, architecture)
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(ALPHA, alpha)
        for name, x in tensors.items():
            if x.dtype.name == "bfloat16":
                writer.add_tensor(name, x.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
            else:
                writer.add_tensor(name, x)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return notes + more + rounding_note(adapter, dtype)


def _pair(
    adapter: Adapter, module: Module, base: ModelConfig, dtype: str | None, factor: float
) -> tuple[np.ndarray, np.ndarray]:
    """A and B as they lie in the file."""
    tensors, name = adapter.lora[module], gguf_name(module)
    A = written(tensors.A.T if module == EMBED else tensors.A, f"A of {name}", dtype)
    heads = rotary_heads(module[1], base) if architecture_of(base) == INTERLEAVED else None
    return A, interleaved(written(tensors.B, f"B of {name}", dtype, factor), heads)
