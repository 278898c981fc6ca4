"""Arrays: numpy or cupy, chosen once, here; and the points at which a number is rounded.

float16 and bfloat16 are never computed in. A half-precision model is float32 arithmetic whose intermediates are
rounded at named points, because that is what engines do (float32 accumulation inside each product) and because *which*
points they round is where they differ.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache
from types import ModuleType
from typing import Annotated as Float
from typing import Annotated as Int
from typing import Any

import ml_dtypes
import numpy as np

from .errors import DeviceError, LoracleError

__all__ = ["Array", "Float", "Int", "Precision", "namespace", "rounded", "to_device", "to_host", "widen"]

# Float[Array, "tokens d_model"] names the axes of an argument. When the package runs, Float is typing.Annotated: an
# Array with a note that nobody reads. The tests turn each of these notes into a check (tests/conftest.py).
Array = np.ndarray

DTYPES = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def dtype_of(name: str) -> np.dtype:
    """The numpy dtype of a name. LoracleError for a name that is not one of the four."""
    if name not in DTYPES:
        raise LoracleError(f"dtype {name!r} is not supported; choose one of {', '.join(DTYPES)}")
    return DTYPES[name]


def namespace(x: Any) -> Any:
    """numpy, or cupy if the array lives on a GPU. A NumPy scalar lives where NumPy's arrays do."""
    return np if isinstance(x, np.ndarray | np.generic) else device_namespace("cuda")


@lru_cache
def device_namespace(device: str) -> ModuleType:
    """The array module of a device: 'cpu' -> numpy, 'cuda' -> cupy. DeviceError when it cannot be had."""
    if device == "cpu":
        return np
    if device != "cuda":
        raise DeviceError(f"device {device!r} is not supported; choose cpu or cuda")
    try:
        import cupy
    except ImportError:
        raise DeviceError(
            "device cuda needs CuPy: pip install 'loracle[cuda13]' (or [cuda12], as nvidia-smi says)"
        ) from None
    except Exception as error:  # a CuPy of another CUDA, or half of one, raises whatever it meets
        raise DeviceError(f"device cuda: CuPy cannot be imported ({' '.join(str(error).split())})") from None
    try:
        cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise DeviceError(f"device cuda: CuPy finds no GPU ({error})") from None
    return cupy


def ceil_div(amount: int, size: int) -> int:
    """How many pieces of a size it takes to cover an amount."""
    return -(-amount // size)


def to_device(x: Array, device: str) -> Array:
    """Return the array on the device; unchanged if it is there already.

    A half becomes float32 on its way to a GPU: CuPy before 14 has no bfloat16."""
    if device == "cpu":
        return np.asarray(x)
    half = isinstance(x, np.ndarray) and x.dtype in (DTYPES["float16"], DTYPES["bfloat16"])
    return device_namespace(device).asarray(widen(x, "float32") if half else x)


def to_host(x: Array) -> Array:
    """The array as numpy; unchanged if it is."""
    return x if isinstance(x, np.ndarray) else x.get()


def widen(x: Array, compute: str) -> Array:
    """The same numbers in the type that products are taken in; no copy where it has that type already."""
    if x.dtype == DTYPES["bfloat16"] and compute == "float32":
        return (x.view(np.uint16).astype(np.uint32) << 16).view(np.float32)  # four times faster than astype
    return x.astype(compute, copy=False)


def rounded(x: Array, to: str) -> Array:
    """x rounded to the type (to nearest, ties to even), in x's own type; unchanged if it is no wider than that."""
    dtype = DTYPES[to]
    if dtype == x.dtype or to == "float64":
        return x
    with np.errstate(over="ignore"):  # beyond 65504 a float16 is inf, in an engine as here
        if to != "bfloat16":
            return x.astype(dtype).astype(x.dtype)
        narrow = to_odd(x) if x.dtype == np.float64 else x
        return _round_bfloat16(narrow).astype(x.dtype, copy=False)


def to_odd(x: Array) -> Array:
    """float64 -> float32, rounded to odd, so that bfloat16 is rounded to once, not twice (Boldo & Melquiond 2008)."""
    xp = namespace(x)
    near = x.astype(np.float32)
    bits = near.view(np.uint32)
    towards_zero = xp.where(xp.abs(near.astype(np.float64)) > xp.abs(x), bits - 1, bits)
    inexact = (near.astype(np.float64) != x) & xp.isfinite(near)
    return xp.where(inexact, towards_zero | 1, bits).astype(np.uint32).view(np.float32)


def _round_bfloat16(x: Array) -> Array:
    """Keep the upper 16 bits, rounding the lower 16 to nearest even. Works the same in numpy and cupy."""
    xp = namespace(x)
    bits = xp.ascontiguousarray(x).view(xp.uint32)
    nearest = (bits + (((bits >> 16) & 1) + xp.uint32(0x7FFF))) & xp.uint32(0xFFFF0000)
    return xp.where(xp.isnan(x), x, nearest.view(xp.float32))


@dataclass(frozen=True)
class Precision:
    """Which intermediates are rounded to what. Products are taken in `compute` and rounded at these points.

    Precision()                            float32 throughout: no rounding anywhere
    Precision("model", "bfloat16")         every point in bfloat16: the definition of a bfloat16 model
    Precision("flash", "bfloat16")         the same, but scores and probabilities stay float32, as in kernels that never
                                           store them (FlashAttention, vLLM's paged attention)
    Precision("transformers", "bfloat16")  the points of Hugging Face transformers (eager) + PEFT: modeling_llama.py and
                                           peft/tuners/lora/layer.py, which keep adapters and their products in float32;
                                           with adapter_names=[...], a mixed batch, PEFT rounds lora_delta as well;
                                           a model of a family that rounds less (Gemma, OLMo, ERNIE) is computed with
                                           the points of its own class (Model.precision)
    dataclasses.replace(p, kv="float16")   one point changed

    LoracleError for a preset or a dtype that is not known.
    """

    preset: str = "model"
    dtype: str = "float32"
    compute: str = ""  # float32, or float64 for a float64 model
    embedding: str = ""  # the rows of the embedding table
    norm_inner: str = ""  # x / rms(x), before it meets the norm's weight
    norm: str = ""  # the norm's output
    linear: str = ""  # x W^T + b, and again after each LoRA delta is added
    adapter: str = ""  # A and B themselves
    lora_rank: str = ""  # the rank-r intermediate x A^T
    lora_delta: str = ""  # scale * (x A^T) B^T
    rope_angle: str = ""  # position * frequency: float64 unless an engine does otherwise
    rope_table: str = ""  # cos and sin
    rope_product: str = ""  # x * cos and rotate(x) * sin
    rope: str = ""  # their sum
    kv: str = ""  # what is stored in the cache
    scores: str = ""  # q k^T, and again after 1/sqrt(head_dim)
    probabilities: str = ""  # softmax(scores)
    attention: str = ""  # probabilities @ v
    activation_inner: str = ""  # silu(gate)
    activation: str = ""  # silu(gate) * up
    router: str = ""  # the logits of experts
    router_weights: str = ""  # what the outputs of the chosen experts are multiplied by
    expert_sum: str = ""  # these products, and their sum after each addition
    scaled: str = ""  # a vector times one of the multipliers that Granite and Gemma have
    residual: str = ""  # the residual stream after each addition
    logits: str = ""

    def __post_init__(self) -> None:
        dtype_of(self.dtype)
        if self.preset in BACKENDS_NOW:
            raise LoracleError(
                f'Precision("{self.preset}") is a backend now: pass ops=refimpl.tensorrt_llm.backend.backend('
                f'"{self.dtype}", "{BACKENDS_NOW[self.preset]}") with Precision("model", "{self.dtype}")'
            )
        if self.preset not in PRESETS:
            raise LoracleError(f"precision {self.preset!r} is not known; choose one of {', '.join(PRESETS)}")
        chosen = PRESETS[self.preset](self.dtype)
        for point in fields(self)[2:]:
            if not getattr(self, point.name):
                object.__setattr__(self, point.name, chosen.get(point.name, self.dtype))
            dtype_of(getattr(self, point.name))

    def describe(self) -> str:
        """One line that names every point that is not the model's dtype."""
        points = [
            f"{point.name}={getattr(self, point.name)}"
            for point in fields(self)[3:]
            if getattr(self, point.name) != self.dtype
        ]
        return f"{self.preset} {self.dtype}" + (f" ({', '.join(points)})" if points else "")


def _compute(dtype: str) -> str:
    return "float64" if dtype == "float64" else "float32"


def _model(dtype: str) -> dict[str, str]:
    return {"compute": _compute(dtype), "rope_angle": "float64"}


def _flash(dtype: str) -> dict[str, str]:
    wide = _compute(dtype)
    return {**_model(dtype), "scores": wide, "probabilities": wide}


def _transformers(dtype: str) -> dict[str, str]:
    wide = _compute(dtype)
    return {"compute": wide, "adapter": wide, "lora_rank": wide, "lora_delta": wide, "rope_angle": "float32"}


# name -> dtype of the model -> the points that differ from that dtype
PRESETS: dict[str, Callable[[str], dict[str, str]]] = {
    "model": _model,
    "flash": _flash,
    "transformers": _transformers,
}

# Presets of earlier versions that are backends now, and the order of their scale (tensorrt_llm/prescale.py).
BACKENDS_NOW = {"tensorrt_llm": "manager", "tensorrt_llm_convert": "convert"}
