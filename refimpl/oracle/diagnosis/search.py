"""Which bugs are worth a close look: thousands, and few of them are tried on more than the smallest failure.

    the zoo, and its other values -> those in one place each -> the nearest of all, beside one whole case -> beside all

Near is what leaves little of the error when it is taken out, or what points where the error points: a bug that is in
one module alone is only part of the same bug in all of them, and a factor that is not the zoo's has its direction.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from ..bugs import Mutant, mutants_for
from ..bugs.parameters import parameter_mutants
from ..bugs.scopes import Scope, can_be_scoped, scoped, scopes_of, small_scopes_of
from ..cases.testbed import Testbed
from .projection import Sample

if TYPE_CHECKING:
    from .diagnose import Candidate

AFTER_THE_SMALLEST = 32  # of the bugs that were tried on the smallest failure
IN_PLACES = 10  # of which it is asked whether they are in one place only
LAST = 14  # that are tried on all samples
EXPLAINED = 2.0  # units of noise: what an explanation may leave
CLEARLY = 10.0  # times as much must have been there before
ANY_SCALE, NOTHING_APPLIED = "scale_times[1.01]", "adapters_ignored"  # asked for in every place, near or not
DECODE = "decode"  # the place

Beside = Callable[[Sequence[Sample], Sequence[str]], "list[Candidate]"]


@lru_cache(maxsize=4)
def everywhere(testbed: Testbed) -> dict[str, Mutant]:
    """The zoo and its other values, by name."""
    return mutants_for(list(testbed.paths)) | parameter_mutants(testbed)


@lru_cache(maxsize=4)
def all_places(testbed: Testbed) -> dict[str, Scope]:
    """By name."""
    config = testbed.model.config
    return {p.name: p for p in (*scopes_of(config), *small_scopes_of(config))}


def find(name: str, testbed: Testbed) -> Mutant:
    """ "k_and_v_deltas_swapped", "rank_cut[5]", "k_and_v_deltas_swapped @ layer 1"."""
    bug, _, where = name.partition(" @ ")
    m = everywhere(testbed)[bug]
    return scoped(m, all_places(testbed)[where]) if where else m


def place_of(name: str, testbed: Testbed) -> Scope | None:
    """Where a bug of this name is; None: everywhere."""
    where = name.partition(" @ ")[2]
    return all_places(testbed)[where] if where else None


def search(
    testbed: Testbed,
    beside: Beside,
    shows: Callable[[Mutant], bool],
    first: Sample,
    whole: Sequence[Sample],
    here: tuple[int | None, str] | None = None,
) -> "list[Candidate]":
    """The nearest, beside all samples. first: the smallest failure; whole: failures as they came, and other cases;
    here: the first layer and module that are off, where that is known."""
    known = everywhere(testbed)
    tried = beside([first], [name for name, m in known.items() if shows(m)])
    on_one = beside(whole[:1], _nearest(tried, AFTER_THE_SMALLEST))
    if not any(explains(x) for x in on_one):
        config = testbed.model.config
        pointing = _distinct([x for x in sorted(tried, key=apart) if can_be_scoped(known[x.mutant.name])])
        likely = list(dict.fromkeys([ANY_SCALE, NOTHING_APPLIED, *pointing[:IN_PLACES]]))
        large = [f"{name} @ {p.name}" for name in likely for p in scopes_of(config) if _sensible(name, p)]
        small = [f"{name} @ {p.name}" for name in likely[:3] for p in small_scopes_of(config)]
        confined = beside([first], [*large, *small])
        on_one += beside(whole[:1], _nearest(confined, AFTER_THE_SMALLEST))
    if not any(explains(x) for x in on_one) and here is not None:
        every = [m.name for m in known.values() if shows(m) and can_be_scoped(m)]
        confined = beside([first], [f"{name} @ {place}" for name in every for place in _around(here, testbed)])
        on_one += beside(whole[:1], _nearest(confined, AFTER_THE_SMALLEST))
    if not any(explains(x) for x in on_one) and all(_prompts_are_right(x) for x in whole):
        every = [m.name for m in known.values() if shows(m) and can_be_scoped(m) and m.name != NOTHING_APPLIED]
        on_one += beside(whole[:1], [f"{name} @ {DECODE}" for name in every])
    return beside(whole, _nearest(on_one, LAST))


def _around(here: tuple[int | None, str], testbed: Testbed) -> list[str]:
    """The places that begin at a module of a layer."""
    layer, module = here
    named = [module, f"layer {layer}", f"layers.{layer}.{module}"]
    return [name for name in named if name in all_places(testbed)]


def _prompts_are_right(x: Sample) -> bool:
    """Is nothing of the error in the rows of the prompts' tokens? Then every bug may be one of decode steps alone."""
    for e, raw in zip(x.counted, x.raws, strict=True):
        if raw is None:
            return False
        prompt = raw.error[: max(len(e.ask.prompt_ids) - raw.rows.start, 0)]
        unit = raw.unit[: len(prompt)]
        if prompt.size and not np.sqrt(np.mean(prompt**2, axis=1) / unit**2).max() <= CLEARLY:
            return False
    return True


def _distinct(looked: Sequence["Candidate"]) -> list[str]:
    """The first two of those that do the same on this case."""
    seen: dict[float, list[str]] = {}
    for x in looked:
        seen.setdefault(round(apart(x), 9), []).append(x.mutant.name)
    return [name for names in seen.values() for name in names[:2]]


def _sensible(name: str, scope: Scope) -> bool:
    """No adapter in decode steps is a bug of the zoo, and its class is another one."""
    return name != NOTHING_APPLIED or scope.decode is None


def explains(x: "Candidate") -> bool:
    """Is what it leaves about noise, and far less than there was?"""
    before = sum(p.energy for ps in x.parts for p in ps if p is not None)
    after = sum(p.left for ps in x.parts for p in ps if p is not None)
    return x.left <= EXPLAINED and before >= CLEARLY**2 * after


def apart(x: "Candidate") -> float:
    """What of the error the direction does not hold, at whatever coefficient: 0 to 1."""
    ps = [p for of_case in x.parts for p in of_case if p is not None]
    energy, length, along = (sum(getattr(p, name) for p in ps) for name in ("energy", "length", "along"))
    return 1.0 - along * along / (energy * length) if energy > 0 and length > 0 else 1.0


def _nearest(looked: Sequence["Candidate"], most: int) -> list[str]:
    """By what they leave, two thirds of them; by where they point, the others."""
    seen = [x for x in looked if x.seen.strength > 0]
    by_left = sorted(seen, key=lambda x: x.left)[: most - most // 3]
    by_direction = sorted(seen, key=apart)[: most // 3]
    return list(dict.fromkeys(x.mutant.name for x in (*by_left, *by_direction)))
