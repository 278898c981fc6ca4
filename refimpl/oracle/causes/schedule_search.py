"""Which schedule an engine has: of all, the one with which what was seen of a few requests is plain to say.

    one limit more or another one, as long as fewer tokens do not fit -> requests that do not fit are added -> again

An engine has one schedule: what was found for one mistake is tried first for the next.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from ...arrays import Array
from ..diagnosis.clock import Clock
from .line import Line
from .schedule import ORDERS, Schedule

CHUNKS: list[dict[str, Any]] = [{"chunk": n} for n in (None, *range(1, 17), 20, 24, 32)]
KEPT: dict[str, Any] = {"evicts": False, "one_step": False, "as_started": False}
FLAGS = ((False, False), (False, True), (True, False), (True, True))
WAITS: list[dict[str, Any]] = [{"overtake": one, **KEPT} for one in (False, True)]
STARTED: list[dict[str, Any]] = [{"as_started": True, "at_load": one, "by_slot": two} for one, two in FLAGS]
SLOTS: list[dict[str, Any]] = [{"adapters": None, "overtake": False, **KEPT}]
SLOTS += [{"adapters": n, **waits} for n in (1, 2, 3, 4, 5, 6, 8) for waits in WAITS]
CHANGES: tuple[dict[str, Any], ...] = (  # of a schedule, one of which is tried at a time
    *CHUNKS,
    *SLOTS,
    *({"adapters": n, "overtake": False, **KEPT, "evicts": True} for n in (1, 2, 3, 4, 5, 6, 8)),
    *({"adapters": n, "overtake": False, **KEPT, "one_step": True} for n in (1, 2, 3, 4, 5, 6, 8)),
    *({"budget": n} for n in (*range(4, 33), *range(36, 65, 4), 80, 96, 128)),
    {"budget": None, "counts_decodes": True, "if_room": False},
    *({"counts_decodes": one} for one in (True, False)),
    *({"if_room": one} for one in (True, False)),
    {**KEPT, "as_started": True, "adapters": None, "budget": None},
    *({"block": one} for one in (None, 4, 8, 16, 32)),
    *({"at_load": one} for one in (True, False)),
    *({"by_slot": one} for one in (True, False)),
    *({"touches": one} for one in (True, False)),
    *({"in_turn": one} for one in (True, False)),
    *({"prompts_first": one} for one in (True, False)),
    *({"by_end": one, "compacts": False} for one in (True, False)),
    *({"compacts": one, "by_end": False} for one in (True, False)),
    *({"prompts_ahead": one} for one in (True, False)),
    *({"running": n, "to_the_end": one and n is not None} for n in (None, 2, 3, 4, 6, 8) for one in (False, True)),
    *({"order": one} for one in ORDERS),
)
FEW = 16  # requests that a schedule is tried on, and that are added in a round; larger: slower
ROUNDS = 2  # in which requests that do not fit are added; larger: slower
BEAM = 4  # schedules that are changed once more; larger: slower
CHANGED = 4  # times; larger: slower
BEST = 2  # schedules that are returned
SIMPLE = Schedule()
# Who is in a slot is a matter of all batches before: no limit alone says anything of that, so two are tried together.
USUAL: list[dict[str, Any]] = [{"chunk": n} for n in (None, 4, 8, 12, 16, 24, 32)]
USUAL += [{"budget": n} for n in (8, 16, 24, 32, 48, 64)]
BEGINNINGS = [replace(SIMPLE, **limit, **slots) for limit in USUAL for slots in SLOTS]
# vLLM's V1 scheduler, and ours.
IN_TURN: dict[str, Any] = {"touches": True, "in_turn": True, "if_room": True}
BLOCKS: list[dict[str, Any]] = [{}, IN_TURN, {**IN_TURN, "block": 8}, {**IN_TURN, "block": 16}]
BEGINNINGS += [replace(SIMPLE, **limits, **kind) for limits in STARTED for kind in BLOCKS]
BEGINNINGS += [
    replace(SIMPLE, budget=budget, adapters=slots, by_slot=by_slot, **IN_TURN)
    for budget in (8, 16, 32, 64)
    for slots in (2, 4, 8)
    for by_slot in (False, True)
]
BEGINNINGS += [replace(SIMPLE, order=one) for one in ORDERS if one]
BEGINNINGS += [replace(SIMPLE, running=n, to_the_end=True) for n in (2, 4, 8)]
BEGINNINGS += [replace(SIMPLE, **chunk) for chunk in CHUNKS if chunk not in USUAL]
BEGINNINGS.sort(key=lambda one: one.cost)


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

    def wrong(self, schedule: Schedule) -> Array:
        """How many of its tokens do not fit, for each of several ways to say it."""
        ...


def fitting_schedules(requests: Sequence[Seen], first: Sequence[Schedule], clock: Clock) -> list[Schedule]:
    """Return the schedules with which more can be said in one way than without any, best first. first: found before.
    clock: when to stop looking."""
    telling = sorted((one for one in requests if one.line and one.evidence()), key=lambda one: -one.evidence())
    few, tried = telling[:FEW], _Tried(())
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


@dataclass(eq=False)
class _Tried:
    """Schedules beside a few requests. Of those that make the same steps the plainest is kept."""

    few: Sequence[Seen]
    of_steps: dict[object, tuple[Array, Schedule]] = field(default_factory=dict)
    tried: set[Schedule] = field(default_factory=set)
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
        """As long as there is time, plain ones first, until one fits; one is tried anyhow."""
        for schedule in sorted(schedules, key=lambda one: one.cost):
            if self.tried and clock.is_late("other schedules of the engine"):
                break
            if schedule not in self.tried and not self.wrong(schedule).min():
                break

    def best(self, count: int) -> list[Schedule]:
        """Those that fit best, and of these the plainest."""
        ranked = sorted(self.of_steps.values(), key=lambda one: (one[0].min(), one[1].cost))
        return [schedule for _, schedule in ranked[:count]]

    def improved(self, beam: Sequence[Schedule], clock: Clock) -> list[Schedule]:
        """Change some schedules, one thing at a time, as long as it helps."""
        self._try(beam, clock)
        beam = self.best(BEAM)
        for _ in range(CHANGED):
            if not self.wrong(beam[0]).min():
                break
            self._try([replace(one, **change) for one in beam for change in CHANGES], clock)
            if (best := self.best(BEAM)) == beam:
                break
            beam = best
        return list(beam)
