"""How long an explanation may take: processor seconds of this process, and whatever is left of a budget."""

import math
import time
from collections.abc import Callable


class Clock:
    """Runs from when it is made. What there was no time for is kept, to be said."""

    def __init__(self, seconds: float, end: float = math.inf, hear: Callable[[str], None] | None = None) -> None:
        """seconds: of this process's processor time. end: of the whole command, by time.monotonic(). hear: is told what
        there is time for, as it begins."""
        self.total, self._until, self.end, self._hear = seconds, time.process_time() + seconds, end, hear
        self.left_out: list[str] = []

    @property
    def seconds(self) -> float:
        """That remain; the fewer of the two."""
        return min(self._until - time.process_time(), self.end - time.monotonic())

    def is_late(self, what: str) -> bool:
        """Is no time left for this? Then it is left out."""
        if self.seconds > 0:
            if self._hear is not None:
                self._hear(what)
            return False
        if what not in self.left_out:
            self.left_out.append(what)
        return True

    @property
    def lines(self) -> list[str]:
        """What to say of it; [] if there was time for everything."""
        return [f"left out, for lack of time: {', '.join(self.left_out)}"] if self.left_out else []
