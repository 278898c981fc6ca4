"""What a kernel is asked of a Precision: of which type T its arrays are, and which roundings it does itself."""

from collections.abc import Sequence

from ..arrays import Precision
from ..errors import LoracleError


def kernel_type(step: str, p: Precision, stored_points: Sequence[str], inner: Sequence[str] = ()) -> str:
    """The T of a step's kernel: the type at `stored_points` (what it reads and writes) if they agree, else float32.

    LoracleError for a rounding at one of the points `inner` to another type: a kernel rounds to T or not at all."""
    if p.compute != "float32":
        raise LoracleError(f"ops cuda: the kernels compute in float32, this precision in {p.compute}; use ops numpy")
    types = {wide(p, point) for point in stored_points}
    dtype = types.pop() if len(types) == 1 else "float32"
    for point in inner:
        if wide(p, point) not in ("float32", dtype):
            raise LoracleError(
                f"ops cuda: {step} cannot round {point} to {wide(p, point)}, because not all of "
                f"{', '.join(stored_points)} are stored in that type; use ops numpy"
            )
    return dtype


def wide(p: Precision, point: str) -> str:
    """The type at a point; a float32 number does not change when it is rounded to float64."""
    return getattr(p, point).replace("float64", "float32")


def rounds(p: Precision, point: str) -> bool:
    """Is the kernel to round here?"""
    return wide(p, point) != "float32"
