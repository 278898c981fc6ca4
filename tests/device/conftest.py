"""Every test here runs on the double of CuPy (tests/support/cupy_double.py), as CuPy 13 and as CuPy 14."""

from collections.abc import Iterator
from types import ModuleType

import pytest
from support.cupy_double import installed


@pytest.fixture(params=[13, 14], ids=["cupy13", "cupy14"])
def cupy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The double, as the module that `import cupy` gives."""
    monkeypatch.delenv("LORACLE_KERNELS", raising=False)
    with installed(request.param) as module:
        yield module
