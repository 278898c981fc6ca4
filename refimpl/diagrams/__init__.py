"""Drawings of what the course, the report and the README speak about: as SVG, and the same in letters.

    >>> from loracle import diagrams
    >>> print(diagrams.block_pool(4, {"pirate": [0, 2], "robot": [1]}, "Four blocks"))
    Four blocks
    block       0      1       2  3
    owner  pirate  robot  pirate  .
    pirate  0 -> 2
    robot   1

A notebook shows the SVG, print() the letters. Wrong answers are drawn, too, and marked; what cannot be drawn (ragged
columns, a negative size, NaN) is a LoracleError in one line. One drawing is the same bytes every time.
"""

from .bars import bars as bars
from .canvas import Diagram as Diagram
from .chains import chains as chains
from .curves import curves as curves
from .launch import launch_grid as launch_grid
from .memory import memory_bars as memory_bars
from .pool import block_pool as block_pool
from .schedule import gantt as gantt
from .shapes import matrices as matrices
from .tokens import flat_batch as flat_batch

__all__ = [
    "Diagram",
    "bars",
    "block_pool",
    "chains",
    "curves",
    "flat_batch",
    "gantt",
    "launch_grid",
    "matrices",
    "memory_bars",
]
