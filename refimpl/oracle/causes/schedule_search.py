"""Which schedule an engine has: of all, the one with which what was seen of a few requests is plain to say.

    one limit more or another one, as long as fewer tokens do not fit -> requests that do not fit are added -> again

An engine has one schedule: what was found for one mistake is tried first for the next.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from ...arrays import Array
from ..diagnosis.clock import Clock
from .candidate_schedules import BEGINNINGS, DIMENSIONS, SIMPLE
from .line import Line
from .schedule import Schedule

SCREENED = 4  # requests on which schedules are tried first; larger: slower
KEPT_OF = 4  # of so many schedules one is tried on the others; larger: quicker, and the right one is left out sooner
WAYS = 12  # to say it, on which they are tried first; larger: slower
FEW = 16  # requests that a schedule is tried on, and that are added in a round; larger: slower
ROUNDS = 2  # in which requests that do not fit are added; larger: slower
BEAM = 4  # schedules that are changed once more; larger: slower
CHANGED = 4  # times; larger: slower
BEST = 2  # schedules that are returned
LATE = "other schedules of the engine"


class Seen(Protocol):
    """What was seen of one request: it says how well a schedule fits that."""

    @property
    def line(self) -> Line | None:
        """The batches of its engine; None if they are not known."""
        ...

    @property
    def number(self) -> int:
        """Which of them it is in."""
        ...

    def evidence(self) -> int:
        """How much it says; 0: nothing."""
        ...

    def wrong(self, schedule: Schedule, ways: Sequence[int] | None = None) -> Array:
        """How many of its tokens do not fit, for each of several ways to say it, or for these."""
        ...


def fitting_schedules(requests: Sequence[Seen], first: Sequence[Schedule], clock: Clock) -> list[Schedule]:
    """Return the schedules with which more can be said in one way than without any, best first. first: found before.
    clock: when to stop looking. An engine that tells its steps has those with whatever schedule."""
    if any(one.line and one.line.is_reported for one in requests):
        return [SIMPLE]
    telling = sorted((one for one in requests if one.line and one.evidence()), key=lambda one: -one.evidence())
    few, tried = _quickest(telling[:FEW]), _Tried(())
    is_known = bool(few) and any(not _Tried(few).wrong(one).min() for one in first)
    beam = list(first) if is_known else [*first, *BEGINNINGS]
    for _ in range(ROUNDS if few else 0):
        tried = _Tried(few)
        beam = tried.improved(beam, clock)
        way = int(tried.wrong(beam[0]).argmin())
        exceptions = [one for one in requests if one.line and one not in few and one.wrong(beam[0])[way]]
        if not exceptions:
            break
        few = [*few, *exceptions[:FEW]]
    return [one for one in beam if few and tried.wrong(one).min() < tried.wrong(SIMPLE).min()][:BEST]


def _quickest(some: Sequence[Seen]) -> list[Seen]:
    """Return requests, those first that say much for what they take: all batches before one's own are worked out."""
    return sorted(some, key=lambda one: -one.evidence() / (2 + one.number))


@dataclass(eq=False)
class _Tried:
    """Schedules beside a few requests. Of those that make the same steps the plainest is kept."""

    few: Sequence[Seen]
    of_steps: dict[object, tuple[Array, Schedule]] = field(default_factory=dict)
    tried: set[Schedule] = field(default_factory=set)
    ways: list[int] | None = None  # to say it, by their numbers, on which schedules are tried first; None: all
    fewest: list[int] = field(default_factory=list)  # tokens that do not fit, of the schedules that fit best

    def wrong(self, schedule: Schedule) -> Array:
        """How many tokens do not fit, for each way to say it; of as many requests as it takes to see that others fit
        better."""
        self.tried.add(schedule)
        key = tuple(tuple(one.line.steps(one.number, schedule)) if one.line else () for one in self.few)
        if (result := self.of_steps.get(key)) is None:
            total = self.few[0].wrong(schedule)
            for one in self.few[1:]:
                if len(self.fewest) == BEAM and total.min() > self.fewest[-1]:
                    break
                total = total + one.wrong(schedule)
            self.fewest = sorted([*self.fewest, int(total.min())])[:BEAM]
            result = total, schedule
        self.of_steps[key] = result[0], min(result[1], schedule, key=lambda one: one.cost)
        return result[0]

    def _try(self, schedules: Sequence[Schedule], clock: Clock) -> None:
        """As long as there is time, those that fit a part of the requests best first, until one fits all; one is tried
        anyhow."""
        new = dict.fromkeys(one for one in schedules if one not in self.tried)  # in an order that is the same each time
        some = sorted(new, key=lambda one: one.cost)
        if len(some) > FEW and len(self.few) > SCREENED:
            wrong = {one: self._wrong_in_some(one) for n, one in enumerate(some) if not n or not clock.is_late(LATE)}
            some = sorted(wrong, key=lambda one: (wrong[one], one.cost))[: -(-len(some) // KEPT_OF)]
        for schedule in some:
            if self.tried and clock.is_late(LATE):
                break
            if not self.wrong(schedule).min():
                break

    def _wrong_in_some(self, schedule: Schedule) -> int:
        """How many tokens of the first few requests do not fit, said in the best way for those, of the ways that are
        best so far."""
        return int(np.sum([one.wrong(schedule, self.ways) for one in self.few[:SCREENED]], axis=0).min())

    def best(self, count: int) -> list[Schedule]:
        """Those that fit best, and of these the plainest."""
        ranked = sorted(self.of_steps.values(), key=lambda one: (one[0].min(), one[1].cost))
        return [schedule for _, schedule in ranked[:count]]

    def improved(self, beam: Sequence[Schedule], clock: Clock) -> list[Schedule]:
        """Change some schedules, one thing after another."""
        self._try(beam, clock)
        beam = self.best(BEAM)
        least = np.min([total for total, _ in self.of_steps.values()], axis=0)
        self.ways = np.argsort(least, kind="stable")[:WAYS].tolist()
        for changes in DIMENSIONS * CHANGED:
            if not self.wrong(beam[0]).min() or clock.seconds <= 0:
                break
            self._try([replace(one, **change) for one in beam for change in changes], clock)
            beam = self.best(BEAM)
        return beam
