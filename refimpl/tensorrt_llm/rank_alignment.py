"""Which ranks may share a batch in TensorRT-LLM's grouped GEMM.

Its CUTLASS kernels load several numbers at a time, and how many is chosen once per call from the least rank in it: 8,
4, 2 or 1 (kernels/groupGemm.cu, splitkGroupGemm.cu). Every rank of the call must be a multiple of that, and both widths
of the layer a multiple of 8; else TLLM_CHECK fails and the batch is lost. So ranks 5 and 8 fail together (issue #3684),
12 fails beside tokens of the base model and runs beside a 4. A batch of one adapter alone takes the unified path
(arithmetic.py) and has no such limit: the same adapter may work for one user and fail for two.
"""

from collections.abc import Collection

from ..errors import LoracleError

LOADS = (8, 4, 2, 1)  # numbers of T per load
WIDTHS = 8


def alignment(ranks: Collection[int], d_in: int) -> int:
    """Numbers per load, for the ranks >= 1 of one call whose layers read d_in numbers."""
    least = min(*ranks, d_in)
    return next(n for n in LOADS if least >= n)


def misaligned(ranks: Collection[int], d_in: int) -> list[int]:
    """The ranks that fail if these are in one call together, in rising order. Rank 0 stands for the base model, which
    takes no part."""
    active = {r for r in ranks if r > 0}
    return sorted(r for r in active if r % alignment(active, d_in))


def check_grouped(ranks: Collection[int], d_in: int, d_outs: Collection[int] = ()) -> None:
    """LoracleError, one line, if a mixed batch of these ranks fails in a call of layers [d_out, d_in]."""
    active = {r for r in ranks if r > 0}
    for name, width in [("d_in", d_in), *(("d_out", d_out) for d_out in d_outs)]:
        if active and width % WIDTHS:
            raise LoracleError(f"TensorRT-LLM's grouped GEMM: {name} {width} is not a multiple of {WIDTHS}")
    if wrong := misaligned(active, d_in):
        least = min(*active, d_in)
        raise LoracleError(
            f"TensorRT-LLM's grouped GEMM: rank {wrong[0]} is not a multiple of {alignment(active, d_in)}, "
            f"which the least rank of the batch, {least}, asks for"
        )


def runs_beside_any(rank: int) -> bool:
    """Whether a rank runs in every mixed batch in which the other ranks do, too: 1, 2, 4, and multiples of 8."""
    return rank % 8 == 0 or rank in LOADS
