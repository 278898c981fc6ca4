"""Numbers of one type into another, chunk by chunk, so that nothing but the result takes memory."""

import numpy as np

from ..arrays import DTYPES, Array, to_odd, widen
from ..errors import DeviceError

CHUNK = 1 << 20  # elements at a time: a few megabytes

# The bits that are all set in an inf or a NaN and in no other number: the exponent.
EXPONENTS = {
    "float64": np.uint64(0x7FF0000000000000),
    "float32": np.uint32(0x7F800000),
    "float16": np.uint16(0x7C00),
    "bfloat16": np.uint16(0x7F80),
}


def all_finite(x: Array) -> bool:
    """Whether no element is NaN or inf. Looks at bits: bfloat16 has no fast isfinite, and a map should stay a map."""
    mask = EXPONENTS[x.dtype.name]
    flat = x.reshape(-1).view(mask.dtype)
    return all(np.max(flat[i : i + CHUNK] & mask) != mask for i in range(0, flat.size, CHUNK))


def converted(x: Array, dtype: str) -> Array:
    """x in another type, to nearest and ties to even; x itself if it has that type."""
    if x.dtype == DTYPES[dtype]:
        return x
    result = np.empty(x.shape, DTYPES[dtype])
    source, target = x.reshape(-1), result.reshape(-1)
    with np.errstate(over="ignore"):  # what is too large becomes inf, and is found by all_finite
        for i in range(0, source.size, CHUNK):
            target[i : i + CHUNK] = _cast(source[i : i + CHUNK], dtype)
    return result


def _cast(x: Array, dtype: str) -> Array:
    if x.dtype == DTYPES["bfloat16"]:
        x = widen(x, "float32")
    elif x.dtype == np.float64 and dtype == "bfloat16":
        x = to_odd(x)
    return x.astype(DTYPES[dtype])


def available_memory() -> int | None:
    """Bytes that can be allocated without swapping (Linux: MemAvailable), or None where this machine does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None


def check_memory(need: int, what: str, available: int | None) -> None:
    """DeviceError, before anything is allocated, if it will not fit."""
    if available is not None and need > available:
        gib = 1 << 30
        raise DeviceError(f"{what} takes {need / gib:.2f} GiB of memory, and {available / gib:.2f} GiB is available")
