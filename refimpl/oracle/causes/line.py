"""The batches of one engine, one after another: what is in its slots goes on from one to the next."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ...engines.interface import Settings
from ..cases.case import Case, Exchange, Load, Run, loaded_before
from ..cases.testbed import Testbed
from .candidate_schedules import SIMPLE
from .reported import reported_steps
from .schedule import Batch, Schedule, Scheduled, Step
from .steps import Caches, steps


@dataclass(eq=False)
class Reports:
    """Does an engine tell its steps? One that does tells none of an answer that is an error."""

    steps: bool = False


@dataclass(eq=False)
class Line:
    """What one engine was asked. Its steps are worked out once for each schedule."""

    batches: list[Batch] = field(default_factory=list)
    loads: list[Sequence[str]] = field(default_factory=list)  # before each of them, of which adapters
    started: Settings | None = None  # how it was started, if that is known
    reports: Reports = field(default_factory=Reports)  # of all lines of the same engine
    _played: dict[Schedule, list[list[Step]]] = field(default_factory=dict, repr=False)
    _reported: list[list[Step]] = field(default_factory=list, repr=False)
    _caches: dict[Schedule, Caches] = field(default_factory=dict, repr=False)
    _codes: dict[str | None, int] = field(default_factory=lambda: {None: 0}, repr=False)
    _counted: int = field(default=0, repr=False)  # of the batches
    _searched: int = field(default=0, repr=False)  # of the batches, for steps

    @property
    def codes(self) -> dict[str | None, int]:
        """A number for whatever adapters are called; None, the base: 0."""
        for batch, loads in self._from(self._counted):
            called = [name for one in batch for name in (one.called, *(key for key, _ in one.adapters))]
            for name in (*called, *loads):
                self._codes.setdefault(name, len(self._codes))
        self._counted = len(self.batches)
        return self._codes

    def _from(self, first: int) -> list[tuple[Batch, Sequence[str]]]:
        """Return the batches from this one on, each with what was loaded before it."""
        loads = [*self.loads[first:], *([()] * (len(self.batches) - len(self.loads)))]
        return list(zip(self.batches[first:], loads, strict=False))

    def steps(self, number: int, schedule: Schedule) -> list[Step]:
        """Return the steps of a batch."""
        return self.played(number, schedule)[-1]

    @property
    def is_reported(self) -> bool:
        """Does the engine tell its steps?"""
        if not self.reports.steps and self._searched < len(self.batches):
            self.reports.steps = any(one.computed for batch in self.batches[self._searched :] for one in batch)
            self._searched = len(self.batches)
        return self.reports.steps

    def knows_steps(self, number: int, request: int) -> bool:
        """Are the steps of a request told, or else to be worked out?"""
        return not self.is_reported or bool(self.batches[number][request].computed)

    def used_before(self, number: int) -> list[str | None]:
        """Return the adapter of each request before a batch, of a sum the first one; None: the base."""
        return [one.adapters[0][0] if one.adapters else None for batch in self.batches[:number] for one in batch]

    def occupants(self, number: int, schedule: Schedule, request: int, key: str) -> tuple[str, ...]:
        """Return which adapters moved into the slot of a request's adapter, one after another, itself last."""
        of_request = (one for one in self.steps(number, schedule) if any(rows.request == request for rows in one.rows))
        step = next((one for one in of_request if key in one.slots), None)
        return step.history[step.slots.index(key)] if step else ()

    def reported_occupants(self, number: int, request: int) -> dict[int, tuple[str, ...]] | None:
        """Return the same of a request of one adapter, by how many slots there are, if the engine tells its steps;
        otherwise None."""
        if not self.is_reported:
            return None
        adapters, steps = self.batches[number][request].adapters, self.steps(number, SIMPLE)
        if len(adapters) != 1 or not self.knows_steps(number, request):
            return {}
        return {len(steps[0].slots): self.occupants(number, SIMPLE, request, adapters[0][0])}

    def played(self, number: int, schedule: Schedule) -> list[list[Step]]:
        """Return the steps of each batch up to this one: those that the engine tells, or those of a schedule."""
        if self.is_reported:
            if len(self._reported) < len(self.batches):
                self._reported = reported_steps(self.batches)
            return self._reported[: number + 1]
        played = self._played.setdefault(schedule, [])
        if len(played) <= number:
            limited = schedule.within(self.started)
            caches = self._caches.setdefault(schedule, Caches.of(limited))
            for batch, loads in self._from(len(played))[: number + 1 - len(played)]:
                if caches.slots and schedule.at_load:
                    for key in loads:
                        caches.slots.move_in(key, set())
                played.append(steps(batch, limited, caches))
        return played[: number + 1]


@dataclass(eq=False)
class Lines:
    """Of what is asked case by case. A sequence has an engine of its own, and a batch where it is new for each.

    is_new: is the engine new for each batch?"""

    is_new: bool
    reports: Reports = field(default_factory=Reports)
    line: Line = field(default_factory=Line)
    _goes_on: bool = False

    def add(self, case: Case, started: Settings, exchanges: Sequence[Exchange], testbed: Testbed) -> tuple[Line, int]:
        """Return the line of a case, and which of its batches is the case's first."""
        goes_on = self._goes_on and case.stateless and started == self.line.started
        if not goes_on:
            self.line = Line(started=started, reports=self.reports)
        self._goes_on = case.stateless and not self.is_new
        line, first = self.line, len(self.line.batches)
        line.batches += batches_of(exchanges)
        self.reports.steps |= any(bool(one.response.steps) for one in exchanges)
        before_each: list[list[str]] = [[] if goes_on else list(loaded_before(case, testbed))]
        for step in case.steps:
            if isinstance(step, Load):
                before_each[-1].append(step.adapter)
            if isinstance(step, Run):
                before_each.append([])
        line.loads += before_each[: len(line.batches) - first]
        return line, first


def batches_of(exchanges: Sequence[Exchange]) -> list[Batch]:
    """Return what the batches of a case ask for, and how much of it came."""
    batches = list[Batch]()
    for run in range(max((one.run for one in exchanges), default=-1) + 1):
        some = [one for one in exchanges if one.run == run]
        batches.append([_scheduled(one) for one in some])
    return batches


def _scheduled(one: Exchange) -> Scheduled:
    prompt = one.request.prompt_ids
    computed = one.response.token_ids[:-1]
    ids = (*prompt, *computed)
    return Scheduled(len(ids), len(prompt), one.adapters, ids, one.request.arrival_step, one.response.steps)
