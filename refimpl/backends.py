"""Every backend by its name: the definition, NumPy and the CUDA kernels. The one file of the core that knows cuda/."""

from collections.abc import Iterator, Mapping

from .ops import NUMPY, REFERENCE, Ops


class Backends(Mapping[str, Ops]):
    """Name -> backend. That of the kernels is imported when it is asked for: everything else works without them."""

    def __iter__(self) -> Iterator[str]:
        return iter(("reference", "numpy", "cuda"))

    def __len__(self) -> int:
        return 3

    def __getitem__(self, name: str) -> Ops:
        if name == "cuda":
            from .cuda.table import CUDA

            return CUDA
        return {"reference": REFERENCE, "numpy": NUMPY}[name]


BACKENDS = Backends()
