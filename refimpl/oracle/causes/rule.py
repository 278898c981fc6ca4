"""For which tokens of which requests: what those in which a mistake was made have in common, and those in which it was
not have not. The conjunction that takes the fewest bits to say, its exceptions counted (Rissanen 1978).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...arrays import Array
from .condition import Fact
from .regions import Region

EXCEPTION = 7.0  # bits of a request with a token that does not fit; larger: rules are longer before they leave one out
NEAR = 1.5  # bits; a rule with as few exceptions that costs so little more is a rival of it
WIDTH = 48  # of the beam of facts that are tried together; larger: slower
THREE = 12  # pairs to which a third fact is tried; larger: slower
MORE = 1.0  # bits of each further fact
EXCEPTIONS, AMONG_THEM = 0.1, 0.2  # of all requests, and of those that have it, which a rule may be wrong in; more: it
# is said how often, and not when
LEAST = 3  # requests that a rule is learnt from; fewer: coincidences are said


Noted = tuple[float, tuple[int, ...], int]  # bits, the facts by their numbers, and in how many requests it is wrong


@dataclass(frozen=True, eq=False)
class Observed:
    """One request: what is true of it, of its tokens, and in which of these a mistake was made."""

    facts: Mapping[Fact, bool]
    regions: Sequence[Region]
    present: Array  # of each token: 1, 0, or -1 where it cannot be seen


@dataclass(frozen=True)
class Rule:
    """Facts that hold together; none: always. In `wrong` of the `of` requests a token does not fit; in `having` of them
    it was made."""

    tokens: tuple[str, ...]  # words that follow "for"
    requests: tuple[str, ...]  # words that follow "where"
    bits: float
    wrong: int
    of: int
    rivals: tuple["Rule", ...] = ()
    assumes: str = ""  # of its tokens
    having: int = 0

    @property
    def holds(self) -> bool:
        """Has it few exceptions, and is it learnt from more than a request or two? Of so few many things are true."""
        few = self.wrong <= min(EXCEPTIONS * self.of, AMONG_THEM * self.having)
        return few and (self.having >= LEAST or not self.words)

    @property
    def where(self) -> str:
        """ "where its adapter has rsLoRA and it is not the first of the batch"; "" if in all."""
        return "where " + " and ".join(self.requests) if self.requests else ""

    @property
    def words(self) -> str:
        """All of it."""
        tokens = "for " + ", and of these ".join(self.tokens) if self.tokens else ""
        return " ".join(filter(None, (tokens, self.where)))


def rule(observed: Sequence[Observed], assumption: float = 0.0) -> Rule:
    """Return the shortest rule that holds for the tokens in which it was made and for none of the others.

    assumption: bits of what some regions take to be so; a rule pays for it once, however many of those it has."""
    masks = [one.present >= 0 for one in observed]
    kept = [(one, mask) for one, mask in zip(observed, masks, strict=True) if mask.any()]
    if not kept:
        return Rule((), (), 0.0, 0, 0)
    fits = np.concatenate([one.present[mask] == 1 for one, mask in kept])
    starts = np.cumsum([0, *(int(mask.sum()) for _, mask in kept)])[:-1]
    names, costs, holds = _facts(kept)
    assumes = {region.words: region.assumes for one, _ in kept for region in one.regions}
    is_assumed = [of_tokens and bool(assumes[words]) for words, of_tokens in names]

    def exceptions(some: Array) -> Array:
        """In how many requests is a token of each of these rules wrong? some: [rules, tokens]"""
        return np.logical_or.reduceat(some != fits, starts, axis=1).sum(axis=1)

    rules = list[Noted]()

    def note(chosen: Sequence[tuple[int, ...]], some: Array) -> None:
        for which, wrong in zip(chosen, exceptions(some), strict=True):
            bits = sum(costs[i] for i in which) + MORE * max(len(which) - 1, 0) + EXCEPTION * int(wrong)
            bits += assumption * any(is_assumed[i] for i in which)
            rules.append((float(bits), which, int(wrong)))

    note([()], np.ones((1, len(fits)), bool))
    note([(i,) for i in range(len(names))], holds)
    if min(rules)[2]:
        # A fact that leaves out what should be in cannot be mended by another one: of the beam are those that keep it.
        misses = np.logical_or.reduceat(~holds & fits, starts, axis=1).sum(axis=1)
        by_cost = np.argsort(costs, kind="stable")[::-1]
        plainest = np.sort([*{holds[i].tobytes(): i for i in by_cost}.values()])  # of those that are the same here
        rank = (EXCEPTION * misses + costs + exceptions(holds))[plainest]
        order = plainest[np.argsort(rank, kind="stable")][:WIDTH]
        pairs = [(int(i), int(j)) for n, i in enumerate(order) for j in order[n + 1 :]]
        both = np.array([holds[i] & holds[j] for i, j in pairs]) if pairs else np.zeros((0, len(fits)), bool)
        note(pairs, both)
        best = sorted(one for one in rules if len(one[1]) == 2)[:THREE]
        if best and min(rules)[2]:
            some = (tuple(sorted((*pair, int(k)))) for _, pair, _ in best for k in order if k not in pair)
            triples = list(dict.fromkeys(some))
            note(triples, np.array([holds[i] & holds[j] & holds[k] for i, j, k in triples]))
    rules += _of_equal_facts(min(rules), holds, costs)
    rules.sort(key=lambda one: (one[0], len(one[1])))
    having = int(np.logical_or.reduceat(fits, starts).sum())
    present = [_rule(one, names, len(kept), having, assumes) for one in rules if one[0] <= rules[0][0] + NEAR]
    rivals = [one for one, raw in zip(present[1:], rules[1:], strict=False) if not set(rules[0][1]) < set(raw[1])]
    return replace(present[0], rivals=tuple(rivals) if rules[0][1] else ())


def _of_equal_facts(best: Noted, holds: Array, costs: Array) -> list[Noted]:
    """Return the same rule with another fact that holds for the same tokens in place of each of several."""
    bits, which, wrong = best
    return [
        (bits + more, (*which[:n], int(other), *which[n + 1 :]), wrong)
        for n, i in enumerate(which if len(which) > 1 else ())
        for other in np.flatnonzero((holds == holds[i]).all(axis=1))
        if other not in which and (more := float(costs[other] - costs[i])) <= NEAR
    ]


def _rule(
    one: Noted,
    names: Sequence[tuple[str, bool]],
    of: int,
    having: int,
    assumes: Mapping[str, str],
) -> Rule:
    bits, which, wrong = one
    tokens = tuple(names[i][0] for i in which if names[i][1])
    requests = tuple(names[i][0] for i in which if not names[i][1])
    assumed = next(filter(None, (assumes[words] for words in tokens)), "")
    return Rule(tokens, requests, bits, wrong, of, assumes=assumed, having=having)


def _facts(kept: Sequence[tuple[Observed, Array]]) -> tuple[list[tuple[str, bool]], Array, Array]:
    """Return words and whether they are of tokens; what each takes to say; and for which tokens each holds."""
    costs: dict[tuple[str, bool], float] = {}
    for one, _ in kept:
        costs |= {(fact.words, False): fact.cost for fact in one.facts}
        costs |= {(region.words, True): region.cost for region in one.regions if region.words}
    names = list(costs)
    number = {name: n for n, name in enumerate(names)}
    parts = []
    for one, mask in kept:
        part = np.zeros((len(names), int(mask.sum())), bool)
        for fact, holds in one.facts.items():
            part[number[fact.words, False]] = holds
        for region in one.regions:
            if region.words:
                part[number[region.words, True]] = region.members[mask]
        parts.append(part)
    return names, np.array([costs[name] for name in names]), np.concatenate(parts, axis=1)
