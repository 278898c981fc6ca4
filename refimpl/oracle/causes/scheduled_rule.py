"""For which tokens of which requests, where that is a matter of the steps that an engine computes them in.

rule.py, as if a batch's prompts were one step  --has exceptions-->  the schedules that fit better -> rule.py again
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ...arrays import Array
from ..diagnosis.clock import Clock
from .candidate_schedules import SIMPLE
from .in_steps import in_steps
from .index_regions import regions_by_index
from .line import Line
from .regions import Region
from .reported_regions import regions_of_reported
from .rule import Observed, Rule, rule
from .schedule import Schedule
from .schedule_search import fitting_schedules
from .step_regions import members_of, regions_in_steps, regions_of_steps

# Bits of the plainest rule that goes by the steps of a schedule; some of these assume nothing that is said.
CHEAPEST = min(cost for _, cost in regions_of_steps())


@dataclass(frozen=True, eq=False)
class InBatch:
    """A request of a batch, what is true of it, and in which of its tokens a mistake was made."""

    observed: Observed  # its regions are those that hold whatever the schedule is
    line: Line | None  # None: its batch is not known
    number: int  # which batch of that it is in
    here: int  # which request of the batch it is

    def evidence(self) -> int:
        """Tokens with the mistake beside tokens without it say most of the steps."""
        present = self.observed.present
        return 2 * int(np.abs(np.diff(present[present >= 0])).sum()) + bool((present == 1).any())

    def wrong(self, schedule: Schedule, ways: Sequence[int] | None = None) -> Array:
        """How many tokens each set of tokens has wrong. ways: the numbers of a few of them; None: all."""
        if self.line is None:
            return np.zeros(0, int)
        batch, present = self.line.batches[self.number], self.observed.present
        members = members_of(in_steps(batch, self.here, self.line.steps(self.number, schedule)))
        shown = np.flatnonzero(present >= 0)
        some = members if ways is None else members[list(ways)]
        return (some[:, shown] != (present[shown] == 1)).sum(axis=1)


@dataclass(eq=False)
class Scheduler:
    """What is known of an engine's schedule. clock: how long it is looked for."""

    clock: Clock
    schedules: list[Schedule] = field(default_factory=list)

    def rule(self, requests: Sequence[InBatch], most: float = math.inf) -> Rule:
        """Return the shortest rule for the tokens in which a mistake was made, and for none of the others. most: bits,
        of which a rule that takes more is of no use."""
        simple = _rule_with(requests, SIMPLE)
        if not simple.wrong or most < CHEAPEST:
            return simple
        fitting = fitting_schedules(requests, self.schedules, self.clock)
        rules = [_rule_with(requests, one) for one in fitting]
        self.schedules += [
            one for one, of in zip(fitting, rules, strict=True) if not of.wrong and one not in self.schedules
        ]
        return min([simple, *rules], key=lambda one: one.bits)


def plain_rule(requests: Sequence[InBatch], most: float = math.inf) -> Rule:
    """Return the same, as if all prompts of a batch were one step."""
    return _rule_with(requests, SIMPLE)


def _rule_with(requests: Sequence[InBatch], schedule: Schedule) -> Rule:
    return rule([_with_steps(one, schedule) for one in requests], schedule.cost)


def _with_steps(one: InBatch, schedule: Schedule) -> Observed:
    if one.line is None:
        return one.observed
    count, in_order = len(one.observed.present), one.line.steps(one.number, schedule)
    regions = regions_in_steps(one.line.batches[one.number], one.here, schedule, in_order)
    more = list[Region]()
    if one.line.is_reported:
        more += regions_by_index(one.line, one.number, one.here)
        more += regions_of_reported(one.line.batches[one.number][one.here])
    cut = [replace(region, members=region.members[:count]) for region in (*regions, *more)]
    return replace(one.observed, regions=[*one.observed.regions, *cut])
