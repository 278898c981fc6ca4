"""Who hears what a campaign finds, as it finds it. The one here is silent; the command line prints."""

from collections.abc import Sequence

from .noise.verdict import Thresholds
from .reports.result import PlayedCase


class Observer:
    """Hears everything, and says nothing."""

    def begin(self, base: str) -> None:
        """Of several bases this one is asked about now: "base 2 of 4, a qwen3"."""

    def advance(self, what: str, done: int, total: int) -> None:
        """So much of a part of the work is done."""

    def be_far_off(self, case: str, ratio: float) -> None:
        """The first case is measured that is so many times the noise off that it fails whatever others are like, unless
        the engine computes in a lower type than was declared."""

    def judge(self, played: Sequence[PlayedCase], thresholds: Thresholds) -> None:
        """The verdicts on all cases are known; what is behind a failure is not, yet."""

    def look(self, what: str) -> None:
        """A cause is looked for, in this now."""

    def shrink(self, smallest: str) -> None:
        """The smallest failing case is known, in words."""
