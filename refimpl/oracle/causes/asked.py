"""A request of a campaign as it came, with its verdict and with what is true of it."""

from dataclasses import dataclass

from ..cases.case import Exchange
from .condition import Fact
from .line import Line
from .suspect import Suspect

Place = tuple[str, int, int]  # the name of a request's case, its run and its index in that


@dataclass(frozen=True, eq=False)
class Asked:
    """A request of a campaign as it came."""

    suspect: Suspect
    place: Place
    facts: dict[Fact, bool]
    failed: bool
    line: Line | None = None  # the batches of its engine
    number: int = 0  # which of them it is in
    afterwards: bool = False  # was it asked when a cause had been found?

    @property
    def known_line(self) -> Line | None:
        """The batches of its engine, if its steps there are known."""
        return self.line if self.line and self.line.knows_steps(self.number, self.place[2]) else None

    @property
    def is_single(self) -> bool:
        """Has it one adapter at most, without a weight?"""
        return is_single(self.suspect.exchange)


def is_single(exchange: Exchange) -> bool:
    """Is it a request of one adapter at most, without a weight?"""
    return len(exchange.adapters) <= 1 and not exchange.request.adapter_weights
