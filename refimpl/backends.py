"""Every backend by its name: the definition, NumPy in two forms, and the CUDA kernels.

The one file of the core that knows cuda/."""

from collections.abc import Iterator, Mapping

from .ops import ABSORBED, NUMPY, REFERENCE, Ops


class Backends(Mapping[str, Ops]):
    """Name -> backend. That of the kernels is imported when it is asked for: everything else works without them."""

    def __iter__(self) -> Iterator[str]:
        return iter(("reference", "numpy", "absorbed", "cuda"))

    def __len__(self) -> int:
        return 4

    def __getitem__(self, name: str) -> Ops:
        if name == "cuda":
            from .cuda.table import CUDA

            return CUDA
        return {"reference": REFERENCE, "numpy": NUMPY, "absorbed": ABSORBED}[name]


BACKENDS = Backends()
