"""A request of a campaign along which causes are followed, and a cause that was followed through all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from .asked import Asked
from .families import families_of
from .find import common_value
from .follow import Followed, follow
from .kept import OF_ANOTHER, follow_kept
from .measures import factor
from .merged import merged_sources
from .mistakes import Mistake
from .mix_up import OF_THE_CACHE, Source
from .stored import WITHOUT_DELTA, follow_stored
from .trial import Given
from .walk import Walk

FLIPPED = 0.5  # of what a row is off: of a few dozen numbers that are rounded one weighs a third or less
Cause = tuple[Mistake, ...]
OF_CACHES = (OF_ANOTHER, *WITHOUT_DELTA)


@dataclass(eq=False)
class Request:
    """A request of the campaign, with its cache and the sources of every family."""

    as_it_came: Asked
    # How often a mistake is made here that is made in another measure for each adapter.
    measures: dict[Mistake, float] = field(default_factory=dict)
    _in_cache: Cause | None = None  # the cause that was followed last, if it was one by itself

    @cached_property
    def walk(self) -> Walk:
        """Its cache is made once."""
        return Walk(self.as_it_came.suspect)

    @property
    def tokens(self) -> int:
        """How many it has."""
        return len(self.as_it_came.suspect.request.prompt_ids)

    @property
    def modules(self) -> int:
        """On how many its adapters are: the more, the more it tells apart."""
        adapters = [self.as_it_came.suspect.testbed.wide[key] for key, _ in self.as_it_came.suspect.exchange.adapters]
        return sum(len(adapter.lora) for adapter in adapters)

    @cached_property
    def families(self) -> dict[str, list[Source]]:
        """Sources by their family."""
        suspect, line = self.as_it_came.suspect, self.as_it_came.line
        earlier = line.batches[: self.as_it_came.number] if line else []
        return families_of(suspect) | {one.key: [one] for one in merged_sources(earlier, suspect.testbed.wide)}

    @property
    def sources(self) -> list[tuple[str, Source]]:
        """Each that may be made in one token, with its family."""
        some = [(family, source) for family, of_family in self.families.items() for source in of_family]
        return [(family, source) for family, source in some if source.kind not in OF_THE_CACHE]

    def follow(self, causes: Sequence[Cause], limit: float) -> list[Followed]:
        """Follow causes along it."""
        measured = [self.measured(cause) for cause in causes]
        limits = [self._limit_of(cause, limit) for cause in causes]
        together: dict[tuple[float, int], list[int]] = {}  # what goes on from the keys and values of its line, alone
        for i, cause in enumerate(causes):
            together.setdefault((limits[i], i if set(OF_CACHES) & set(cause) else -1), []).append(i)
        followed: dict[int, Followed] = {}
        for (here, _), some in together.items():
            for i, one in zip(some, follow(self.walk, [measured[i] for i in some], self.families, here), strict=True):
                followed[i] = replace(self._with_the_cache(measured[i], one, here), cause=causes[i])
        self._in_cache = causes[0] if len(causes) == 1 else None
        return [followed[i] for i in range(len(causes))]

    def before_its_end(self, one: Followed, limit: float) -> tuple[int, ...] | None:
        """Return the blocks of the tokens before the one at which a cause ends, their keys and values as that has them;
        None if it does not end."""
        if one.dead is None or one.line is None:
            return None
        if self._in_cache != one.cause:  # others have been followed since
            (again,) = self.follow([one.cause], limit)
            return again.line.blocks if again.line and again.dead == one.dead else None
        return one.line.blocks

    def is_rounded(self, cause: Cause) -> bool:
        """Are numbers rounded that are computed on the way?"""
        return any(self.families[one.family][0].rounds for one in cause if self.families.get(one.family))

    def _limit_of(self, cause: Cause, limit: float) -> float:
        """Return what a row may be off with a cause: beside a computed number that is rounded to the other side of a
        tie noise is small."""
        flipped = FLIPPED * self.as_it_came.suspect.ratio if self.is_rounded(cause) else 0.0
        return max(limit, flipped)

    def _with_the_cache(self, cause: Cause, followed: Followed, limit: float) -> Followed:
        """The same, if a mistake of the cause is one of what a cache gives or keeps."""
        if OF_ANOTHER in cause:
            followed = follow_kept(self.walk, cause, self.families, followed, limit)
        if set(WITHOUT_DELTA) & set(cause):
            followed = follow_stored(self.walk, cause, self.families, followed, limit)
        return followed

    def measured(self, cause: Cause) -> Cause:
        """The cause as it is here; 0 times a mistake of which nobody knows how often it is made."""
        return tuple(
            replace(one, coefficient=self.measures.get(one, 0.0)) if one.coefficient is None else one for one in cause
        )

    def measure(self, mistake: Mistake, before: Sequence[int], given: Sequence[Given], limit: float) -> None:
        """Find out how often a mistake is made, at a token that is wrong."""
        for source in self.families.get(mistake.family, ())[:1]:
            (value,) = factor(self.walk, before, source, [self.walk.at(mistake.modules)], limit, given)
            if value is not None:
                self.measures[mistake], self._in_cache = value, None


@dataclass(frozen=True, eq=False)
class Traced:
    """A cause followed through the failed requests."""

    cause: Cause
    followed: Mapping[Request, Followed]

    @cached_property
    def common(self) -> "Traced":
        """The same, with one measure of each mistake that is made in the same measure in all requests."""
        measures = [
            [one.measures[mistake] for one in self.followed if mistake in one.measures] for mistake in self.cause
        ]
        values = [common_value(np.array(some), "own") if some else None for some in measures]
        cause = tuple(
            replace(mistake, coefficient=value) if mistake.coefficient is None and value else mistake
            for mistake, value in zip(self.cause, values, strict=True)
        )
        return Traced(cause, self.followed)

    def with_others(self, requests: Sequence[Request], limit: float) -> "Traced":
        """The same, followed through more requests."""
        return Traced(self.cause, {**self.followed, **{one: one.follow([self.cause], limit)[0] for one in requests}})

    def as_far_as_visible(self, limit: float) -> "Traced":
        """The same, with each request that its first mistakes explain followed along all of them: where a later one
        does nothing to a row it is not known not to have been made."""
        followed = dict(self.followed)
        for request, one in self.followed.items():
            if one.dead is None and len(one.cause) < len(self.cause):
                (again,) = request.follow([self.cause], limit)
                followed[request] = again if again.dead is None else one
        return Traced(self.cause, followed)

    @property
    def explained(self) -> list[Request]:
        """Those that it brings down to noise."""
        return [request for request, one in self.followed.items() if one.dead is None]

    @property
    def makes_its_last(self) -> bool:
        """Is the last mistake made, for certain, in some token that is explained? Where it is in none, a request was
        followed another way with it, and that is all."""
        return any(bool((self.followed[request].present(-1) == 1).any()) for request in self.explained)

    @property
    def rest(self) -> list[Request]:
        """The others."""
        return [request for request, one in self.followed.items() if one.dead is not None]

    @property
    def rank(self) -> tuple[float, ...]:
        """Whatever explains more comes first, or goes further; then what is simple."""
        further = sum(one.dead for one in self.followed.values() if one.dead is not None)
        return -len(self.explained), -further, sum(mistake.cost for mistake in self.cause)
