"""The tables that must be indistinguishable in float64: every property runs over each of them.

The kernels compute in float32; tests/kernels/test_model.py holds that table to the same definition."""

import pytest

from refimpl.backends import BACKENDS

IN_FLOAT64 = [name for name in BACKENDS if name not in ("cuda", "absorbed")]  # absorbed: test_mla.py

every_table = pytest.mark.parametrize("ops", [BACKENDS[name] for name in IN_FLOAT64], ids=IN_FLOAT64)
