"""Which bugs are worth a close look: thousands, and few of them are tried on more than the smallest failure.

    the mutants, and other values of their parameters -> those in one scope each -> the nearest of all, beside one whole
    case -> beside all

Near is what leaves little of the error when it is taken out, or what points where the error points: a bug that is in
one module alone is only part of the same bug in all of them, and a factor that is not the mutant's has its direction.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..bugs import Mutant, mutants_for
from ..bugs.registry import all_bugs, all_scopes
from ..bugs.scopes import Scope, can_be_scoped, scopes_of, small_scopes_of
from ..cases.testbed import Testbed
from ..noise.measure import Sample
from ..noise.rms import rms
from .candidate import CLEARLY, Candidate, explains, unexplained_fraction
from .clock import Clock

AFTER_THE_SMALLEST = 32  # bugs that stay after the smallest failure; larger: slower, a faint bug is dropped less often
IN_SCOPES = 10  # bugs of which it is asked whether they are in one scope only; each costs a run in every scope
WHERE_IT_BEGINS = 60  # bugs that are tried where the error begins; each costs a run in three scopes
NEXT_BEST = 2  # bugs beside one that has the cause's name, to say how much worse they are
LAST = 14  # bugs that are tried on all samples, each of which is a run of every sample
ANY_SCALE, NOTHING_APPLIED = "scale_times[1.01]", "adapters_ignored"  # asked for in every scope, near or not
DECODE = "decode"  # the scope
IN_ONE_PLACE = "known bugs in one place alone"

Beside = Callable[[Sequence[Sample], Sequence[str]], list[Candidate]]


@dataclass(frozen=True, eq=False)
class Search:
    """What all rounds of a search share."""

    testbed: Testbed
    beside: Beside  # samples, names of bugs -> the bugs beside the samples
    applicable: Callable[[Mutant], bool]  # can the mutant show in the first sample?
    first: Sample  # the smallest failure
    samples: Sequence[Sample]  # failures as they came, and other cases
    divergence: tuple[int | None, str] | None = None  # the first layer and module that are off, if that is known
    clock: Clock | None = None  # when to begin no other round
    cause_is_known: bool = False  # by a fit: then it is only asked whether a mutant has its name
    may_be_a_factor: bool = True  # of the whole delta; else no factor is fitted where the cause is known

    def near(self, tried: Sequence[Candidate]) -> list[Candidate]:
        """Return the nearest of those that were tried on the smallest failure, beside one whole case."""
        return self.beside(self.samples[:1], _nearest(tried, AFTER_THE_SMALLEST))

    def scopable(self) -> list[str]:
        """Return the names of the applicable bugs that can be in one scope alone."""
        bugs = all_bugs(self.testbed).values()
        return [bug.name for bug in bugs if self.applicable(bug) and can_be_scoped(bug)]


def search(work: Search) -> list[Candidate]:
    """Return the nearest bugs, beside all samples; where the cause is known, those mutants that explain the smallest.

    Rounds, from what is most likely and cheapest to what is neither; the first explanation (at most EXPLAINED units
    left, a hundredth of the energy) ends them. A base of three layers has 305 bugs that can be in one scope, 14 scopes
    and 42 small ones: 17,000 runs. So only bugs that point where the error points are tried in all scopes, all bugs
    only where the error begins, and all in decode steps only if no prompt is wrong."""
    if work.cause_is_known:
        names = [name for name, bug in mutants_for(list(work.testbed.paths)).items() if work.applicable(bug)]
        tried = sorted(work.beside([work.first], names), key=lambda one: one.residual)
        named = [one.mutant.name for one in tried if explains(one) or (one.mutant.scales and work.may_be_a_factor)]
        others = [one.mutant.name for one in tried if one.mutant.name not in named]
        return work.beside(work.samples, named[:LAST] + others[:NEXT_BEST]) if named else []
    tried = work.beside([work.first], [name for name, bug in all_bugs(work.testbed).items() if work.applicable(bug)])
    near = work.near(tried)
    # A scope keeps the right form of every LoRA beside the wrong one, and has no base there to make a DoRA's gain of.
    dora = any(adapter.use_dora for adapter in work.testbed.adapters.values())
    for more in () if dora else (_in_each_scope, _where_it_begins, _in_decode_steps):
        if any(explains(one) for one in near) or (work.clock is not None and work.clock.is_late(IN_ONE_PLACE)):
            break
        near += more(work, tried)
    return work.beside(work.samples, _nearest(near, LAST))


def _in_each_scope(work: Search, tried: Sequence[Candidate]) -> list[Candidate]:
    """Try the bugs whose direction is the error's in every scope; the first three in the small scopes as well."""
    config, bugs = work.testbed.model.config, all_bugs(work.testbed)
    by_direction = sorted(tried, key=unexplained_fraction)
    pointing = _distinct([one for one in by_direction if can_be_scoped(bugs[one.mutant.name])])
    likely = list(dict.fromkeys([ANY_SCALE, NOTHING_APPLIED, *pointing[:IN_SCOPES]]))
    large = [f"{name} @ {scope.name}" for name in likely for scope in scopes_of(config) if _sensible(name, scope)]
    small = [f"{name} @ {scope.name}" for name in likely[:3] for scope in small_scopes_of(config)]
    return work.near(work.beside([work.first], [*large, *small]))


def _where_it_begins(work: Search, tried: Sequence[Candidate]) -> list[Candidate]:
    """Try bugs that point where the error points in the scopes that begin at the first module that is off, if that is
    known."""
    if work.divergence is None:
        return []
    scopes = _around(work.divergence, work.testbed)
    by_direction = [one.mutant.name for one in sorted(tried, key=unexplained_fraction)]
    names = [name for name in work.scopable() if name in by_direction[:WHERE_IT_BEGINS]]
    return work.near(work.beside([work.first], [f"{name} @ {scope}" for name in names for scope in scopes]))


def _in_decode_steps(work: Search, tried: Sequence[Candidate]) -> list[Candidate]:
    """Try every bug in decode steps alone, if the prompts are right. No adapter there is a mutant of its own."""
    if not all(_prompts_are_right(sample) for sample in work.samples):
        return []
    names = [f"{name} @ {DECODE}" for name in work.scopable() if name != NOTHING_APPLIED]
    return work.beside(work.samples[:1], names)


def _around(divergence: tuple[int | None, str], testbed: Testbed) -> list[str]:
    """Return the scopes that begin at a module of a layer."""
    layer, module = divergence
    names = [module, f"layer {layer}", f"layers.{layer}.{module}"]
    return [name for name in names if name in all_scopes(testbed)]


def _prompts_are_right(sample: Sample) -> bool:
    """Is nothing of the error in the rows of the prompts' tokens? Then every bug may be one of decode steps alone."""
    for exchange, raw in zip(sample.counted, sample.raws, strict=True):
        if raw is None:
            return False
        prompt = raw.error[: max(len(exchange.request.prompt_ids) - raw.rows.start, 0)]
        unit = raw.unit[: len(prompt)]
        if prompt.size and not (rms(prompt, axis=1) / unit).max() <= CLEARLY:
            return False
    return True


def _distinct(candidates: Sequence[Candidate]) -> list[str]:
    """Return at most two names from each group that is indistinguishable on this case."""
    groups: dict[float, list[str]] = {}
    for one in candidates:
        groups.setdefault(round(unexplained_fraction(one), 9), []).append(one.mutant.name)
    return [name for names in groups.values() for name in names[:2]]


def _sensible(name: str, scope: Scope) -> bool:
    """Is it not a mutant already, of another class? No adapter in decode steps is one."""
    return name != NOTHING_APPLIED or scope.decode is None


def _nearest(candidates: Sequence[Candidate], most: int) -> list[str]:
    """Return names: two thirds of them by what they leave; by where they point, the others."""
    exercised = [one for one in candidates if one.projection.strength > 0]
    by_residual = sorted(exercised, key=lambda one: one.residual)[: most - most // 3]
    by_direction = sorted(exercised, key=unexplained_fraction)[: most // 3]
    return list(dict.fromkeys(one.mutant.name for one in (*by_residual, *by_direction)))
