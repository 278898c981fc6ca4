"""In which ways one token may have been computed, if a cause is known: each of its mistakes is made there, or not."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from .mistakes import Mistake
from .mix_up import OF_THE_CACHE, Source
from .walk import Term, Walk

STATES = 40  # ways to compute one token; larger: slower

State = tuple[str, ...]  # for each change of a cause the source that it is here; "": it is not made


def states_of(cause: Sequence[Mistake], options: Mapping[str, Sequence[Source]]) -> list[State]:
    """Return every combination of a cause's changes in one token, none first. options: the sources of each family
    here."""
    of_each = [
        ["", *(source.key for source in options.get(change.family, ()) if source.kind not in OF_THE_CACHE)]
        for change in cause
    ]
    return sorted(itertools.product(*of_each), key=lambda state: sum(map(bool, state)))[:STATES]


def terms_of(
    walk: Walk, causes: Sequence[Sequence[Mistake]], present: Sequence[tuple[int, State]], sources: Mapping[str, Source]
) -> list[Term]:
    """Return what is added in each row."""
    by_source: dict[str, list[tuple[int, Mistake]]] = {}
    for n, (i, state) in enumerate(present):
        for change, key in zip(causes[i], state, strict=True):
            if key:
                by_source.setdefault(key, []).append((n, change))
    regions = {change.modules: walk.at(change.modules) for cause in causes for change in cause}
    return [
        Term(
            sources[key],
            np.array([n for n, _ in some]),
            np.array([regions[change.modules] for _, change in some]),
            np.array([change.coefficient or 0.0 for _, change in some]),
        )
        for key, some in by_source.items()
    ]
