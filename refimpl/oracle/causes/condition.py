"""For which requests: what those that a cause explains have in common, and those that it would show in but that are
right have not. The conjunction that takes the fewest bits to say, its exceptions counted (Rissanen 1978).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

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
    facts = list(dict.fromkeys(fact for one in (*positive, *negative) for fact in one))

    def errors(rule: tuple[Fact, ...]) -> int:
        missed = sum(not all(one.get(fact, False) for fact in rule) for one in positive)
        return missed + sum(all(one.get(fact, False) for fact in rule) for one in negative)

    def bits(rule: tuple[Fact, ...]) -> float:
        return sum(fact.cost for fact in rule) + EXCEPTION * errors(rule)

    if not negative:
        return Condition((), 0, total)
    singles = sorted(((fact,) for fact in facts), key=bits)
    pairs = itertools.combinations([rule[0] for rule in singles[:WIDTH]], 2)
    rules: list[tuple[Fact, ...]] = [(), *singles, *pairs]
    in_bits = [bits(rule) for rule in rules]
    best = rules[int(np.argmin(in_bits))]
    rivals = [rule for rule, n in zip(rules, in_bits, strict=True) if rule != best and n <= min(in_bits) + NEAR]
    apart = [rule for rule in rivals if best and not set(best) < set(rule)]
    return Condition(best, errors(best), total, tuple(Condition(rule, errors(rule), total) for rule in apart))
