"""Which quantised checkpoints load: by the quantization_config of a config.json, and by the names of the tensors."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .bitsandbytes_4bit import quantised_tensors, unsupported
from .diagnostics import Diagnostics, shown
from .fp8_blocks import fp8_tensors, unsupported_fp8
from .gptq_awq import packed_tensors, unsupported_awq, unsupported_gptq
from .mxfp4 import mxfp4_tensors
from .safetensors_file import SafetensorsFile
from .tensor import Tensor, stored_tensor

# quant_method -> what of its keys is not supported, if something is not.
METHODS: dict[str, Callable[[Mapping[str, Any]], str | None]] = {
    "bitsandbytes": unsupported,
    "mxfp4": lambda given: None,
    "fp8": unsupported_fp8,
    "gptq": unsupported_gptq,
    "awq": unsupported_awq,
}
READ = "bitsandbytes' 4-bit nf4, mxfp4, fp8 in blocks, gptq and awq"


def check_quantization(file: Path, data: Mapping[str, Any], diagnostics: Diagnostics) -> None:
    """Of the quantization_config in a config.json, what is not read is refused by its name."""
    given = data.get("quantization_config")
    if given is None:
        return
    if not isinstance(given, dict):
        diagnostics.problem(file, f"quantization_config is {shown(given)}: it must be an object")
        return
    method = given.get("quant_method", "bitsandbytes" if "load_in_4bit" in given else None)
    if not isinstance(method, str) or method not in METHODS:
        diagnostics.problem(file, f"quantization_config has quant_method {shown(method)}: only {READ} are supported")
    elif problem := METHODS[method](given):
        diagnostics.problem(file, f"quantization_config {problem}")


def tensors_of(files: Sequence[SafetensorsFile]) -> list[tuple[str, Tensor]]:
    """Every tensor of these files by its name, those first that are made of several."""
    tensors, used = mxfp4_tensors(files)
    by_name = list(tensors.items())
    for file in files:
        plain = file.stored.keys() - used
        for weights, parts in (quantised_tensors(file), fp8_tensors(file), packed_tensors(file)):
            by_name += weights.items()
            plain -= parts
        by_name += [(name, stored_tensor(file, name)) for name in file.stored if name in plain]
    return by_name
