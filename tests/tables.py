"""The tables that must be indistinguishable: every property runs over each of them. One more implementation joins here."""

import pytest

from refimpl.ops import TABLES

every_table = pytest.mark.parametrize("ops", TABLES.values(), ids=TABLES.keys())
