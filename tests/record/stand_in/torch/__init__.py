"""A stand-in for torch, as far as the recorder uses it: arrays that know their torch dtype and their device."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import ml_dtypes
import numpy as np

sys.path.append(str(Path(__file__).parent.parent))
__version__ = "0.0.0+stand.in"
version = SimpleNamespace(cuda="0.0 (stand-in)")
cuda = SimpleNamespace(get_device_name=lambda i: "stand-in, no GPU", get_device_capability=lambda i: (0, 0))


class dtype:
    """torch.float32 and the like."""

    def __init__(self, name: str, kind: Any) -> None:
        self.name, self.kind = name, np.dtype(kind)

    def __repr__(self) -> str:
        return f"torch.{self.name}"


float32, float16 = dtype("float32", np.float32), dtype("float16", np.float16)
bfloat16 = dtype("bfloat16", ml_dtypes.bfloat16)
int16, int32, int64 = dtype("int16", np.int16), dtype("int32", np.int32), dtype("int64", np.int64)
OF_NUMPY = {t.kind: t for t in (float32, float16, int16, int32, int64)}
MEMORY: dict[int, "Tensor"] = {}  # address -> what lies there


def undocumented(where: str, name: str) -> NoReturn:
    """Told, and missing."""
    if not (name.startswith("__") and name.endswith("__")):
        from tensorrt_llm._stand_in import ELSEWHERE, log_use

        if (where, name) not in ELSEWHERE:
            log_use(f"{where}.{name}")
    raise AttributeError(f"the stand-in's {where} has no attribute {name!r}")


class Tensor:
    """An array in its numpy dtype, with the torch dtype and the device that it is said to be on."""

    def __init__(self, array: np.ndarray, kind: dtype, device: str = "cpu") -> None:
        self.array, self.dtype, self.device = array, kind, device

    def __getattr__(self, name: str) -> Any:
        undocumented("torch.Tensor", name)

    def view(self, kind: dtype) -> "Tensor":
        """The same bits."""
        return Tensor(self.array.view(kind.kind), kind, self.device)

    def to(self, device: str) -> "Tensor":
        """A copy on the other device."""
        return Tensor(self.array.copy(), self.dtype, device)

    def cpu(self) -> "Tensor":
        """Back to the host."""
        return Tensor(self.array, self.dtype)

    def float(self) -> "Tensor":
        """As float32."""
        return Tensor(self.array.astype(np.float32), float32, self.device)

    def contiguous(self) -> "Tensor":
        """It is."""
        return self

    def numpy(self) -> np.ndarray:
        """As torch, not from a GPU, and not of bfloat16."""
        if self.device != "cpu" or self.dtype is bfloat16:
            raise TypeError(f"can't convert a {self.dtype} tensor on {self.device} to numpy")
        return self.array

    def data_ptr(self) -> int:
        """Where it lies."""
        MEMORY[self.array.ctypes.data] = self
        return int(self.array.ctypes.data)

    def numbers(self) -> np.ndarray:
        """Not torch's, but the stand-in's own: its numbers as float32."""
        return self.array.astype(np.float32)


def of_numbers(x: np.ndarray, kind: dtype) -> Tensor:
    """Not torch's, but the stand-in's own: an answer on the GPU."""
    return Tensor(np.ascontiguousarray(x).astype(kind.kind), kind, "cuda")


def from_numpy(x: np.ndarray) -> Tensor:
    """torch has few unsigned types: as there, uint16 is refused."""
    if x.dtype not in OF_NUMPY:
        raise TypeError(f"can't convert np.ndarray of type {x.dtype}")
    return Tensor(x, OF_NUMPY[x.dtype])


def tensor(data: Any, dtype: dtype) -> Tensor:
    """From a list."""
    return Tensor(np.array(data, dtype.kind), dtype)


def zeros(n: int, dtype: dtype) -> Tensor:
    """Of one axis."""
    return Tensor(np.zeros(n, dtype.kind), dtype)


class _Ops:
    """torch.ops.trtllm."""

    def __getattr__(self, name: str) -> Any:
        undocumented("torch.ops.trtllm", name)


ops = SimpleNamespace(trtllm=_Ops())


def __getattr__(name: str) -> Any:
    undocumented("torch", name)
