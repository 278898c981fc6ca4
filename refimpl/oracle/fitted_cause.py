"""The cause of failures whose prompts' rows an engine does not show, or of mistakes that lie in one another: asked
quietly, fitted, and then held against every failure as it came.

    failed cases, asked again with quiet adapters -> find -> which of the possible causes says the most requests, failed
    and right, in the fewest bits? -> what does it leave over? -> a sentence

Bits are those of the minimum description length (Rissanen 1978): of the changes, of the condition under which each
holds, of its exceptions, and of every failure that is not explained. Nothing is said of what explains less than half of
the failed requests, or a single one of several, or leaves more than noise.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .asked_quietly import asked_quietly
from .bugs.registry import all_bugs
from .cases.testbed import Testbed
from .causes.condition import Condition, condition
from .causes.find import ALIKE, TERMS, Cause, find
from .causes.grade import Grade, grades, same_for_each_adapter
from .causes.sources import CHOICE, WHICHEVER
from .causes.statement import CauseReport, Change, in_words
from .causes.suspect import Suspect
from .diagnosis.clock import Clock
from .failures import Failures
from .reports.result import PlayedCase

OF_EACH = 2  # requests that a cause explains, and that it does not, in which one of both is looked for
CASES = 3  # that are asked quietly; larger: slower
SHARE = 0.5  # of the failed requests that a cause must explain; less: it may be a coincidence, or a part of the bug
MOST = 0.8  # of them that several changes must explain to need no condition; less: more coincidences
EXCEPTIONS = 0.2  # of the explained requests that a condition may have; more: it is a coincidence more often
UNEXPLAINED = 10.0  # bits of a failure that is left over; larger: more changes are taken in to explain a few more
BEHIND = 25.0  # bits beyond those of the best cause by now, after which one is dropped; larger: slower
DECISIVE = 10.0  # times the limit: an error of that size comes down to noise by no coincidence
RIVALS = 2  # conditions beside the best one that are said; of more only their number is
TIE = 1.0  # bits; causes that differ by less are not told apart


@dataclass(frozen=True, eq=False)
class Description:
    """A cause with what it is to every request, and how many bits it takes to say all of them with it."""

    cause: Cause
    grades: tuple[Grade, ...]
    conditions: tuple[Condition, ...]  # of each of its changes
    bits: float

    @property
    def failed(self) -> list[Grade]:
        """The requests that failed."""
        return [one for one in self.grades if one.failed]

    @property
    def explained(self) -> list[Grade]:
        """Those that it explains to the noise."""
        return [one for one in self.grades if one.explained]


def fitted_cause(failures: Failures, clock: Clock) -> CauseReport | None:
    """Return the cause of these failures; None if none leaves noise. Needs gradients of the base.

    clock: when to stop looking.     EngineError if the engine breaks off."""
    began, thresholds = time.monotonic(), failures.thresholds
    failed = smallest_first(failures.played)
    rivals: list[Description] = []
    for suspects in asked_quietly(failures, failed[:CASES]):
        rivals = _best(failures, find(suspects, thresholds.ratio, clock=clock))
        if rivals or clock.is_late("the failures at other loudness"):
            break
    if rivals and len(rivals[0].explained) < len(rivals[0].failed) and not clock.is_late("what the cause leaves over"):
        rivals = _with_the_rest(failures, failed, rivals, suspects, clock)
    return _report(rivals, failures.testbed, time.monotonic() - began) if rivals else None


def smallest_first(played: Sequence[PlayedCase]) -> list[PlayedCase]:
    """Return the failed cases that have numbers, batches before sequences, few tokens before many."""
    wrong = [one for one in played if one.has_wrong_numbers]
    return sorted(wrong, key=lambda one: (not one.case.stateless, _size(one)))


def _best(failures: Failures, causes: Sequence[Cause]) -> list[Description]:
    """Return the cause that says most in fewest bits, and those that say as much in as few; [] if none may be said."""
    rivals = [one for one in _descriptions(failures, causes) if is_cause(one, failures.thresholds.ratio)]
    if not rivals:
        return []
    least = min(one.bits for one in rivals)
    ties = [one for one in rivals if one.bits <= least + TIE]
    return sorted(ties, key=lambda one: (one.cause.is_part_of_a_bug, one.bits))


def _with_the_rest(
    failures: Failures,
    failed: Sequence[PlayedCase],
    rivals: list[Description],
    before: Sequence[Suspect],
    clock: Clock,
) -> list[Description]:
    """Look at what a cause leaves over: is it something else beside it, or one cause of these and of those in which it
    was found? Return whichever takes fewer bits. before: requests in which it was found."""
    cause, limit = rivals[0].cause, failures.thresholds.ratio
    places = {one.place for one in rivals[0].failed if not one.explained}
    cases = [one for one in failed if any(name == one.case.name for name, _, _ in places)]
    explained = frozenset(one.place for one in rivals[0].explained)
    suspects = next(asked_quietly(failures, cases[:CASES], explained), None)
    if suspects is None:
        return rivals
    more = _best(failures, find(suspects, limit, cause, clock) if len(cause.atoms) < TERMS else [])
    if not more and not clock.is_late("one cause of all failures"):
        more = _best(failures, find([*suspects[:OF_EACH], *before[:OF_EACH]], limit, clock=clock))
    return more if more and more[0].bits < rivals[0].bits else rivals


# The failures as they came.


def _descriptions(failures: Failures, causes: Sequence[Cause]) -> list[Description]:
    """Hold causes against requests as they came, those that failed first: whoever misses many more of them than another
    cause is out, and few are left for what passed."""
    racing: dict[Cause, list[Grade]] = {cause: [] for cause in causes}
    for one in [one for one in failures.asked_loudly if one.is_single] if causes else ():
        now = grades(one.suspect, one.place, one.facts, one.failed, list(racing), failures.thresholds.ratio)
        for of_cause, one_grade in zip(racing.values(), now, strict=True):
            of_cause.append(one_grade)
        racing = _still_racing(racing)
    return [in_bits(cause, of_cause) for cause, of_cause in racing.items()]


def _still_racing(racing: dict[Cause, list[Grade]]) -> dict[Cause, list[Grade]]:
    """Return the causes that can still be the best: none that takes many more bits than another one by now."""
    bits = {cause: _bits(cause, some) for cause, some in racing.items()}
    least = min(bits.values(), default=0.0)
    return {cause: some for cause, some in racing.items() if bits[cause] <= least + BEHIND}


def _bits(cause: Cause, grades: Sequence[Grade]) -> float:
    """Return what it takes to say a cause, which adapter it is where it chooses one, and what it does not explain."""
    missed = sum(one.failed and not one.explained for one in grades)
    chosen = CHOICE * sum(one.explained for one in grades) if cause.chooses else 0.0
    return sum(cause.costs) + UNEXPLAINED * missed + chosen


def in_bits(cause: Cause, grades: Sequence[Grade]) -> Description:
    """Return a cause with the condition of each of its changes, and the bits that all of it takes."""
    conditions = []
    for i in range(len(cause.atoms)):
        having = [one.facts for one in grades if one.explained and one.present[i]]
        absent = [one.facts for one in grades if _is_absent(one, i)]
        conditions.append(condition(having, absent))
    bits = _bits(cause, grades) + sum(one.bits for one in conditions)
    return Description(cause, tuple(grades), tuple(conditions), bits)


def _is_absent(grade: Grade, i: int) -> bool:
    """Would a change show in this request, and is it not there? Nothing is known of failures that are not explained."""
    return grade.visible[i] and not grade.present[i] and (grade.explained or not grade.failed)


def is_cause(description: Description, limit: float) -> bool:
    """Does it explain enough, each of its changes in enough requests, and is that no coincidence?

    Where no condition tells the requests that it explains from those that are right, it may be one: then the errors
    must be so large that they come down to noise by nothing else."""
    explained, failed = description.explained, description.failed
    several = min(2, len(failed))
    if not explained or len(explained) < max(SHARE * len(failed), several):
        return False
    if any(sum(one.present[i] for one in explained) < several for i in range(len(description.cause.atoms))):
        return False
    if not same_for_each_adapter(description.cause, explained, ALIKE):
        return False
    large = np.median([one.error for one in explained]) > DECISIVE * limit
    if description.cause.chooses and not large:  # one of many leaves little by chance more often than one does
        return False
    most = len(description.cause.atoms) == 1 or len(explained) >= MOST * len(failed)
    several = len(explained) >= min(3, len(failed))
    plain = large and most and several and all(one is not None for one in description.cause.common)
    return bool(plain) or all(_holds(rule, i, explained) for i, rule in enumerate(description.conditions))


def _holds(rule: Condition, i: int, explained: Sequence[Grade]) -> bool:
    """Has the condition of a change few exceptions?"""
    return rule.wrong <= EXCEPTIONS * sum(one.present[i] for one in explained)


# In words.


def _report(rivals: Sequence[Description], testbed: Testbed, seconds: float) -> CauseReport:
    """Say the first of these causes, and with what others it could be confused."""
    best = rivals[0]
    changes = tuple(_change(i, best, testbed) for i in range(len(best.cause.atoms)))
    exceptions = sum(rule.wrong for i, rule in enumerate(best.conditions) if _holds(rule, i, best.explained))
    residual = max(one.residual for one in best.explained)
    said_of = {frozenset(atom.source for atom in best.cause.atoms)}  # of the same sources one is enough
    others = []
    for one in rivals[1:]:
        sources = frozenset(atom.source for atom in one.cause.atoms)
        if sources not in said_of and "bug" not in one.cause.kinds:  # a known bug of the same effect is another name
            said_of.add(sources)
            others.append("; and ".join(_change(i, one, testbed).sentence for i in range(len(one.cause.atoms))))
    also = tuple(dict.fromkeys(others))
    return CauseReport(changes, exceptions, len(best.explained), len(best.failed), residual, seconds, also)


def _change(i: int, description: Description, testbed: Testbed) -> Change:
    cause = description.cause
    atom, coefficient, source = cause.atoms[i], cause.common[i], cause.sources[i]
    having = [one for one in description.explained if one.present[i]]
    by_adapter: dict[str, float] = {}
    for one in having:
        by_adapter.setdefault(one.adapter or "the base", float(one.coefficients[i]))
    pairs = tuple(sorted(by_adapter.items())) if coefficient is None else ()
    bug = all_bugs(testbed).get(atom.source)
    named = bug if bug is not None and coefficient == 1 and not atom.modules and not atom.tokens else None
    rule = description.conditions[i]
    # A rule with many exceptions is none; then it is only said how often the change is there.
    absent = sum(_is_absent(one, i) for one in description.grades)
    often = f"in {len(having)} of {len(having) + absent} requests that would show it"
    said = rule.words + "".join(f" (or {rival.words})" for rival in rule.rivals)
    if len(rule.rivals) > RIVALS:
        said = f"{often}; {1 + len(rule.rivals)} rules fit these, one is: {rule.words}"
    chosen = Counter(one.sources[i].removeprefix(atom.source.removesuffix(WHICHEVER)) for one in having)
    whose = ", ".join(f"{name} in {count}" for name, count in chosen.most_common()) if source.members else ""
    return Change(
        in_words(source.words, source.kind, coefficient, pairs) + (f" (of {whose} requests)" if whose else ""),
        atom.source,
        atom.modules,
        atom.tokens,
        coefficient,
        pairs,
        "" if named is None else named.name,
        () if named is None else named.links,
        said if _holds(rule, i, description.explained) else often,
    )


def _size(played: PlayedCase) -> int:
    return sum(len(request.prompt_ids) for run in played.case.runs for request in run.requests)
