"""The embedded picture model: scenes drawn by code, a transformer that learned to draw them, four styles for it."""

from pathlib import Path

from refimpl.loading.embedded import PICTURE_BASE as BASE
from refimpl.loading.embedded import STYLES as STYLES

HERE = Path(__file__).parent

__all__ = ["BASE", "HERE", "STYLES"]
