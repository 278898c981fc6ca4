"""The tables that must be indistinguishable: every property runs over each of them. A table of kernels joins here."""

import pytest

from refimpl.ops import TABLES

every_table = pytest.mark.parametrize("ops", TABLES.values(), ids=TABLES.keys())
