"""The batches of one engine, one after another: what is in its slots goes on from one to the next."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..cases.case import Exchange
from .schedule import Batch, Schedule, Scheduled, Slots, Step, steps


@dataclass(eq=False)
class Line:
    """What one engine was asked. Its steps are worked out once for each schedule."""

    batches: list[Batch] = field(default_factory=list)
    _played: dict[Schedule, list[list[Step]]] = field(default_factory=dict, repr=False)
    _slots: dict[Schedule, Slots] = field(default_factory=dict, repr=False)
    _codes: dict[str | None, int] = field(default_factory=lambda: {None: 0}, repr=False)
    _counted: list[Batch] = field(default_factory=list, repr=False)

    @property
    def codes(self) -> dict[str | None, int]:
        """A number for whatever adapters are called; None, the base: 0."""
        some = [one for batch in self.batches[len(self._counted) :] for one in batch]
        self._counted += self.batches[len(self._counted) :]
        for one in some:
            for called in (one.called, *(key for key, _ in one.adapters)):
                self._codes.setdefault(called, len(self._codes))
        return self._codes

    def steps(self, number: int, schedule: Schedule) -> list[Step]:
        """Return the steps of a batch."""
        return self.played(number, schedule)[-1]

    def played(self, number: int, schedule: Schedule) -> list[list[Step]]:
        """Return the steps of each batch up to this one."""
        played = self._played.setdefault(schedule, [])
        slots = self._slots.setdefault(schedule, Slots(schedule.adapters)) if schedule.adapters else None
        while len(played) <= number:
            played.append(steps(self.batches[len(played)], schedule, slots))
        return played[: number + 1]


def batches_of(exchanges: Sequence[Exchange]) -> list[Batch]:
    """Return what the batches of a case ask for, and how much of it came."""
    batches = list[Batch]()
    for run in range(max((one.run for one in exchanges), default=-1) + 1):
        some = [one for one in exchanges if one.run == run]
        lengths = [len(one.request.prompt_ids) for one in some]
        produced = [max(len(one.response.token_ids) - 1, 0) for one in some]
        batches.append(
            [Scheduled(n + more, n, one.adapters) for one, n, more in zip(some, lengths, produced, strict=True)]
        )
    return batches
