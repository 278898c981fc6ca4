"""A device array as CuPy has it, for machines without a GPU: the numbers are NumPy's, the manners are CuPy's.

NumPy forgives what a GPU does not. This array forgives nothing:

    it is no NumPy array          cupy.ndarray is not either: isinstance, np.concatenate and the like must not work
    NumPy operands are refused    x + host raises TypeError, x[i] = host raises ValueError, as in CuPy
    no silent way back            np.asarray(x) raises; `get`, `item`, `bool` and the like are counted as downloads
    an index out of range wraps   a GPU has no IndexError: it reads another row, which may be another tenant's
    memory is not zero            `empty` is NaN
    bfloat16                      CuPy 13 has none; CuPy 14 has (its class of numbers is ml_dtypes')

Every crossing between host and device is noted down in `transfers`, with the line of refimpl/ that made it.
"""

import operator
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np

PACKAGE = f"{Path(__file__).parents[2] / 'refimpl'}/"
TESTS = Path(__file__).parents[1]

IMPLICIT = "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array"


@dataclass(frozen=True)
class Transfer:
    """One crossing between host and device.

    upload     host -> device, asked for by asarray
    index      host -> device, because a device array was indexed with a host one: nobody asked, and it blocks
    download   device -> host by `get`
    wait       a number was asked for (item, bool, int, float, tolist), or a stream was synchronised: the host waits
    """

    kind: str
    nbytes: int
    where: str  # file:line of refimpl/, or of a test


transfers: list[Transfer] = []
version = 14  # of the CuPy that is imitated: 13 or 14
capturing = False  # is a stream being captured into a graph? Then nothing may cross.


def note(kind: str, nbytes: int = 0) -> None:
    """Note a transfer down. RuntimeError while a graph is captured, as CUDA's own error is."""
    where = source_line()
    if capturing:
        raise RuntimeError(f"cudaErrorStreamCaptureUnsupported: {kind} at {where}")
    transfers.append(Transfer(kind, nbytes, where))


def source_line() -> str:
    """The innermost line of refimpl/ that is being executed; of a test, where there is none."""
    frame, of_a_test = sys._getframe(1), "?"
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(PACKAGE):
            return f"{file.removeprefix(PACKAGE)}:{frame.f_lineno}"
        if of_a_test == "?" and Path(file).name.startswith("test_"):
            of_a_test = f"{Path(file).name}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return of_a_test


def check_dtype(dtype: Any) -> np.dtype:
    """The dtype, if this CuPy has it. ValueError in CuPy's words."""
    dtype = np.dtype(dtype)
    if dtype == ml_dtypes.bfloat16 and version < 14:
        raise ValueError(f"Unsupported dtype {dtype}")
    if dtype != ml_dtypes.bfloat16 and dtype.char not in "?bhilqBHILQefdFD":
        raise ValueError(f"Unsupported dtype {dtype}")
    return dtype


def to_operand(x: Any) -> Any:
    """The other side of an operator, for NumPy to compute with. TypeError for a NumPy array."""
    if isinstance(x, DeviceArray):
        return x.host
    if isinstance(x, np.ndarray):
        raise TypeError(f"Unsupported type {type(x)}")
    if isinstance(x, np.generic) and version < 14:
        return x.item()  # a NumPy scalar was a number without a type of its own; NEP 50 gives it one
    return x


def to_index(index: Any, shape: tuple[int, ...]) -> Any:
    """An index, for NumPy to use: its arrays wrap around, and those that come from the host are counted."""
    parts = index if isinstance(index, tuple) else (index,)
    result, axis = [], 0
    for part in parts:
        if isinstance(part, (np.ndarray, list)):
            part = np.asarray(part)
            note("index", part.nbytes)
        elif isinstance(part, DeviceArray):
            part = part.host
        if isinstance(part, np.ndarray) and part.dtype.kind in "iu":
            part = part % shape[axis]
        if part is Ellipsis:
            axis = len(shape) - sum(p is not None for p in parts[len(result) + 1 :])
        elif part is not None:
            axis += part.ndim if isinstance(part, np.ndarray) and part.dtype == bool else 1
        result.append(part)
    return tuple(result) if isinstance(index, tuple) else result[0]


class DeviceArray:
    """cupy.ndarray. Views share memory, as NumPy's do."""

    __slots__ = ("__weakref__", "host")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, host: Any) -> None:
        self.host = np.asarray(host)

    # What it is.
    dtype = property(lambda self: self.host.dtype)
    shape = property(lambda self: self.host.shape)
    ndim = property(lambda self: self.host.ndim)
    size = property(lambda self: self.host.size)
    nbytes = property(lambda self: self.host.nbytes)
    itemsize = property(lambda self: self.host.itemsize)
    strides = property(lambda self: self.host.strides)
    flags = property(lambda self: self.host.flags)
    data = property(lambda self: SimpleNamespace(ptr=self.host.ctypes.data))
    T = property(lambda self: DeviceArray(self.host.T))

    def __len__(self) -> int:
        return len(self.host)

    def __repr__(self) -> str:
        return f"DeviceArray({self.host!r})"

    # The way back to the host, each time seen.
    def get(self) -> np.ndarray:
        """A copy on the host."""
        note("download", self.nbytes)
        return self.host.copy()

    def item(self) -> Any:
        """Its only number."""
        note("wait", self.itemsize)
        return self.host.item()

    def tolist(self) -> list:
        """Its numbers."""
        note("wait", self.nbytes)
        return self.host.tolist()

    def __bool__(self) -> bool:
        return bool(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __index__(self) -> int:
        return operator.index(self.item())

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise TypeError(IMPLICIT)

    # NumPy's functions. CuPy takes over those that it has; here all but operators with a scalar are refused.
    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> "DeviceArray":
        if method != "__call__" or kwargs or not any(isinstance(x, np.generic) for x in inputs):
            raise TypeError(f"np.{ufunc.__name__} of a device array: use its own namespace")
        return DeviceArray(ufunc(*map(to_operand, inputs)))

    def __array_function__(self, function: Callable, types: Any, args: Any, kwargs: Any) -> Any:
        raise TypeError(f"np.{function.__name__} of a device array: use its own namespace")

    # Parts of it.
    def __getitem__(self, index: Any) -> "DeviceArray":
        return DeviceArray(self.host[to_index(index, self.shape)])

    def __setitem__(self, index: Any, value: Any) -> None:
        if isinstance(value, np.ndarray) and value.shape:
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        self.host[to_index(index, self.shape)] = to_operand(value)

    def __iter__(self) -> Any:
        return iter([DeviceArray(part) for part in self.host])

    def dot(self, other: "DeviceArray", out: "DeviceArray | None" = None) -> "DeviceArray":
        """The product of two matrices; out is contiguous and of its type."""
        if not isinstance(other, DeviceArray):
            raise TypeError(f"Argument 'b' has incorrect type (expected cupy.ndarray, got {type(other).__name__})")
        if out is None:
            return DeviceArray(self.host.dot(other.host))
        self.host.dot(other.host, out=out.host)
        return out

    # The same numbers in another form.
    def view(self, dtype: Any) -> "DeviceArray":
        """The same bits as another type."""
        return DeviceArray(self.host.view(check_dtype(dtype)))

    def astype(self, dtype: Any, copy: bool = True) -> "DeviceArray":
        """The numbers in another type."""
        if not copy and check_dtype(dtype) == self.dtype:
            return self
        return DeviceArray(self.host.astype(check_dtype(dtype)))

    def copy(self) -> "DeviceArray":
        """A copy on the device."""
        return DeviceArray(self.host.copy())

    def reshape(self, *shape: Any) -> "DeviceArray":
        """A view where that is possible."""
        return DeviceArray(self.host.reshape(*shape))

    def transpose(self, *axes: Any) -> "DeviceArray":
        """A view with its axes in another order."""
        return DeviceArray(self.host.transpose(*axes))

    def fill(self, value: Any) -> None:
        """Set every number."""
        self[...] = value


ARITHMETIC = [operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod, operator.pow]
OPERATORS = [*ARITHMETIC, operator.matmul, operator.and_, operator.or_, operator.xor, operator.lshift, operator.rshift]
COMPARISONS = [operator.lt, operator.le, operator.eq, operator.ne, operator.gt, operator.ge]


def define_operators() -> None:
    """x + y, y + x and x += y for every operator, x < y for every comparison."""

    def forward(compute: Callable) -> Callable:
        return lambda self, other: DeviceArray(compute(self.host, to_operand(other)))

    def backward(compute: Callable) -> Callable:
        return lambda self, other: DeviceArray(compute(to_operand(other), self.host))

    def unary(compute: Callable) -> Callable:
        return lambda self: DeviceArray(compute(self.host))

    def in_place(compute: Callable) -> Callable:
        def update(self: DeviceArray, other: Any) -> DeviceArray:
            self.host[...] = compute(self.host, to_operand(other))
            return self

        return update

    for compute in OPERATORS:
        name = compute.__name__.rstrip("_")
        for prefix, make in (("", forward), ("r", backward), ("i", in_place)):
            setattr(DeviceArray, f"__{prefix}{name}__", make(compute))
    for compare in COMPARISONS:
        setattr(DeviceArray, f"__{compare.__name__}__", forward(compare))
    for change in (operator.neg, operator.invert, operator.abs):
        setattr(DeviceArray, f"__{change.__name__}__", unary(change))


def define_reductions() -> None:
    """x.sum(axis, keepdims=...) and the like: device arrays, without NumPy's further arguments (initial, where)."""

    def reduction(name: str) -> Callable:
        def reduce(self: DeviceArray, axis: Any = None, keepdims: bool = False) -> DeviceArray:
            return DeviceArray(getattr(self.host, name)(axis=axis, keepdims=keepdims))

        return reduce

    for name in ["max", "min", "sum", "mean", "any", "all", "argmax", "argmin"]:
        setattr(DeviceArray, name, reduction(name))


define_operators()
define_reductions()
