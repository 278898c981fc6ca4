"""The NumPy backend as an engine whose process ends in the middle of its third batch, the first time: a lost worker."""

import os
from pathlib import Path

from refimpl.engines.ours import Ours
from refimpl.ops import NUMPY


class Dying(Ours):
    """Ends its process once. marker: a file that says that it has."""

    def __init__(self, marker: Path) -> None:
        super().__init__(lambda: NUMPY)
        self.marker, self.batches = marker, 0

    def run(self, requests):
        """Serve them, or be gone."""
        self.batches += 1
        if self.batches == 3 and not self.marker.exists():
            self.marker.write_text(f"{os.getpid()}\n")
            os._exit(1)
        return super().run(requests)
