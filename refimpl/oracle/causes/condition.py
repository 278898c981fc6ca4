"""For which requests: what those that a cause explains have in common, and those that it would show in but that are
right have not. The conjunction that takes the fewest bits to say, its exceptions counted (Rissanen 1978).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

EXCEPTION = 7.0  # bits; larger: rules become longer before they leave a request out
NEAR = 1.5  # bits; a rule with as few exceptions that costs so little more is a rival of it
WIDTH = 40  # of the beam of features that are tried in pairs; larger: slower


@dataclass(frozen=True)
class Fact:
    """One true or false thing about a request. `words` follow "where"."""

    words: str
    cost: float = 4.0


@dataclass(frozen=True)
class Condition:
    """Facts that hold together; none: always. `wrong` of the `of` requests do not fit it."""

    facts: tuple[Fact, ...]
    wrong: int
    of: int
    rivals: tuple["Condition", ...] = ()  # rules that these requests cannot tell from it

    @property
    def bits(self) -> float:
        """What it takes to say it, and its exceptions."""
        return sum(fact.cost for fact in self.facts) + EXCEPTION * self.wrong

    @property
    def words(self) -> str:
        """ "where its adapter has rsLoRA and it is not the first of the batch"; "" if it always holds."""
        return "where " + " and ".join(fact.words for fact in self.facts) if self.facts else ""


def condition(positive: Sequence[dict[Fact, bool]], negative: Sequence[dict[Fact, bool]]) -> Condition:
    """Return the shortest rule that holds for the positive requests and for none of the negative ones."""
    total = len(positive) + len(negative)
    if not negative:
        return Condition((), 0, total)
    facts = list(dict.fromkeys(fact for one in (*positive, *negative) for fact in one))
    holds = np.array([[one.get(fact, False) for one in (*positive, *negative)] for fact in facts])
    fits = np.arange(total) < len(positive)  # where a rule should hold
    costs = np.array([fact.cost for fact in facts])
    wrong = (holds != fits).sum(axis=1)
    order = np.argsort(costs + EXCEPTION * wrong, kind="stable")
    beam = order[:WIDTH]
    both = holds[beam][:, None] & holds[beam][None]
    wrong_pairs, cost_pairs = (both != fits).sum(axis=2), costs[beam][:, None] + costs[beam][None]
    rules = [Condition((), len(negative), total)]
    rules += [Condition((facts[i],), int(wrong[i]), total) for i in order]
    rules += [
        Condition((facts[beam[i]], facts[beam[j]]), int(wrong_pairs[i, j]), total)
        for i, j in zip(*np.triu_indices(len(beam), 1), strict=True)
        if cost_pairs[i, j] + EXCEPTION * wrong_pairs[i, j] <= rules[1].bits + NEAR
    ]
    best = min(rules, key=lambda rule: rule.bits)
    near = [rule for rule in rules if rule is not best and rule.bits <= best.bits + NEAR]
    rivals = [rule for rule in near if not set(best.facts) < set(rule.facts)]
    return replace(best, rivals=tuple(rivals) if best.facts else ())
