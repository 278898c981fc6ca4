"""A failing case, made as small as it will go, so that a person can read it.

Delta debugging (Zeller and Hildebrandt 2002, ddmin): take parts away, the larger ones first, and keep whatever still
fails. First steps go, then requests, then what is particular about each of them; then prompts get shorter, and their
tokens the same. Nothing is drawn: the same case and the same engine give the same result.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from ...engines.interface import EngineRequest
from .case import Case, Load, Run, Step, Unload, names_after, replay, with_requests

T = TypeVar("T")
Prompt = tuple[int, ...]


@dataclass(frozen=True)
class Budget:
    """Where shrinking ends, small enough or not. Where it is the clock that ends it, another run may end elsewhere."""

    calls: int = 300
    seconds: float = 60.0


class _Spent(Exception):
    """Nothing is left of the budget."""


def shrink(case: Case, fails: Callable[[Case], bool], budget: Budget | None = None) -> Case:
    """The smallest case found that still fails: the last of `ever_smaller`."""
    return ever_smaller(case, fails, budget)[-1]


def ever_smaller(case: Case, fails: Callable[[Case], bool], budget: Budget | None = None) -> list[Case]:
    """The given case, and after it each smaller one that was kept on the way to the smallest. `fails` plays a case to
    the engine; the given one is known to fail.

    A candidate does nothing that the case did not do: it asks only names that are loaded then, knows no more names at
    once, and loads in place only if the case did."""
    search = _Search(case, fails, budget or Budget())
    try:
        while True:
            before = search.best
            for simpler in (
                _fewer_steps,
                _fewer_requests,
                _plainer_requests,
                _fewer_adapters,
                _shorter_prompts,
                _plainer_tokens,
            ):
                simpler(search)
            if search.best == before:
                return search.kept
    except _Spent:
        return search.kept


class _Search:
    """The smallest failing case so far, and those before it."""

    def __init__(self, case: Case, fails: Callable[[Case], bool], budget: Budget) -> None:
        self.kept, self._fails = [case], fails
        self._calls, self._end = budget.calls, time.monotonic() + budget.seconds
        self._most_names, self._in_place = _needs(case.steps)
        self._tried: set[tuple[Step, ...]] = {case.steps}

    @property
    def best(self) -> Case:
        """The smallest so far."""
        return self.kept[-1]

    def keep(self, steps: Sequence[Step]) -> bool:
        """Is this a case, and does it fail as well? Then it is the best one from now on."""
        mended = steps if self.best.stateless else _mended(steps)
        most, in_place = _needs(mended)
        new = tuple(mended)
        if new in self._tried or most > self._most_names or in_place > self._in_place or not _requests(new):
            return False
        if self._calls == 0 or time.monotonic() >= self._end:
            raise _Spent
        self._calls -= 1
        self._tried.add(new)
        candidate = replace(self.best, steps=new)
        if not self._fails(candidate):
            return False
        self.kept.append(candidate)
        return True

    def keep_requests(self, change: Callable[[EngineRequest], EngineRequest]) -> bool:
        """The same with every request changed."""
        return self.keep(with_requests(self._steps, change))

    def keep_request(self, at: tuple[int, int], request: EngineRequest) -> bool:
        """The same with the request at (step, index) changed."""
        steps = list(self._steps)
        run = steps[at[0]]
        assert isinstance(run, Run)
        steps[at[0]] = Run((*run.requests[: at[1]], request, *run.requests[at[1] + 1 :]))
        return self.keep(steps)

    def requests(self) -> list[tuple[tuple[int, int], EngineRequest]]:
        """Every request and where it is."""
        return _requests(self._steps)

    @property
    def _steps(self) -> tuple[Step, ...]:
        return self.best.steps


def minimise(items: Sequence[T], fails: Callable[[Sequence[T]], bool]) -> Sequence[T]:
    """The items without as many of them as can go: ddmin's second half, from large parts to single ones, the last ones
    first, because what comes after the failure is of no account."""
    size = max(len(items) // 2, 1)
    while True:
        end = len(items)
        while end > 0 and len(items) > 1:
            start = max(end - size, 0)
            fewer = [*items[:start], *items[end:]]
            if fewer and fails(fewer):
                items = fewer
            end = start
        if size == 1:
            return items
        size = max(size // 2, 1)


def _fewer_steps(search: _Search) -> None:
    minimise(search.best.steps, search.keep)


def _fewer_requests(search: _Search) -> None:
    for i in reversed(range(len(search.best.steps))):
        run = search.best.steps[i] if i < len(search.best.steps) else None
        if isinstance(run, Run) and len(run.requests) > 1:
            minimise(run.requests, partial(_with_run, search, search.best.steps[:i], search.best.steps[i + 1 :]))


def _with_run(
    search: _Search, before: Sequence[Step], after: Sequence[Step], requests: Sequence[EngineRequest]
) -> bool:
    return search.keep([*before, Run(tuple(requests)), *after])


def _plainer_requests(search: _Search) -> None:
    """One token, at once, to its end; first for all requests together."""
    plain = (
        lambda request: replace(request, max_new_tokens=1, arrival_step=0, cancel_after=None),
        lambda request: replace(request, max_new_tokens=1) if request.cancel_after is None else request,
        lambda request: replace(request, arrival_step=0),
        lambda request: replace(request, cancel_after=None),
        lambda request: replace(request, adapter=None, adapter_weights=()),
        lambda request: replace(
            request, max_new_tokens=max(request.max_new_tokens // 2, (request.cancel_after or 0) + 1)
        ),
        lambda request: replace(request, arrival_step=request.arrival_step // 2),
        lambda request: replace(
            request, max_new_tokens=max(request.max_new_tokens - 1, (request.cancel_after or 0) + 1)
        ),
        lambda request: replace(request, arrival_step=max(request.arrival_step - 1, 0)),
    )
    for change in plain[:4]:
        search.keep_requests(change)
    for at, request in search.requests():
        for change in plain:
            if change(request) != request and search.keep_request(at, change(request)):
                request = change(request)


def _fewer_adapters(search: _Search) -> None:
    """Fewer different names: each in the place of a later one."""
    names = list(dict.fromkeys(step.name for step in search.best.steps if isinstance(step, Load)))
    for i, name in enumerate(names):
        for other in names[i + 1 :]:
            search.keep([_renamed(step, other, name) for step in search.best.steps])


def _shorter_prompts(search: _Search) -> None:
    """To one token, a half, one token less: all prompts that are longer, then each alone; at the end, then at the
    beginning."""
    for shorter in (lambda ids, n: ids[:n], lambda ids, n: ids[-n:]):
        while True:
            longest = max(len(request.prompt_ids) for _, request in search.requests())
            lengths = [n for n in (1, longest // 2, longest * 3 // 4, longest - 1) if 0 < n < longest]
            if not any(search.keep_requests(partial(_cut, shorter, n)) for n in lengths):
                break
        for at, _ in search.requests():
            while True:
                request = dict(search.requests())[at]
                have = len(request.prompt_ids)
                lengths = [n for n in (1, have // 2, have * 3 // 4, have - 1) if 0 < n < have]
                if not any(
                    search.keep_request(at, _with_prompt(request, shorter(request.prompt_ids, n))) for n in lengths
                ):
                    break


def _plainer_tokens(search: _Search) -> None:
    """0 wherever it makes no difference; what must differ from it is counted up from 1. Equal tokens stay equal."""
    tokens = list(dict.fromkeys(t for _, request in search.requests() for t in request.prompt_ids))
    free = [t for t in tokens if t != 0]

    def zeroed_but(kept: Sequence[int]) -> bool:
        return search.keep_requests(
            lambda request: _with_prompt(request, tuple(t if t in kept else 0 for t in request.prompt_ids))
        )

    if free and not zeroed_but(()):
        free = list(minimise(free, zeroed_but))
        place = {t: i + 1 for i, t in enumerate(free)}
        search.keep_requests(lambda request: _with_prompt(request, tuple(place.get(t, 0) for t in request.prompt_ids)))


def _cut(shorter: Callable[[Prompt, int], Prompt], n: int, request: EngineRequest) -> EngineRequest:
    return _with_prompt(request, shorter(request.prompt_ids, n))


def _with_prompt(request: EngineRequest, prompt: tuple[int, ...]) -> EngineRequest:
    return replace(request, prompt_ids=prompt)


def _renamed(step: Step, old: str, new: str) -> Step:
    if isinstance(step, Run):
        return Run(
            tuple(
                replace(
                    request,
                    adapter=new if request.adapter == old else request.adapter,
                    adapter_weights=tuple(
                        (new if name == old else name, weight) for name, weight in request.adapter_weights
                    ),
                )
                for request in step.requests
            )
        )
    return replace(step, name=new) if step.name == old else step


def _requests(steps: Sequence[Step]) -> list[tuple[tuple[int, int], EngineRequest]]:
    return [
        ((i, j), request)
        for i, run in enumerate(steps)
        if isinstance(run, Run)
        for j, request in enumerate(run.requests)
    ]


def _mended(steps: Sequence[Step]) -> list[Step]:
    """The same without what has become impossible: names that are not loaded, asked or unloaded; runs of nobody."""
    kept: list[Step] = []
    for step, meaning in replay(steps):
        if isinstance(step, Run):
            step = Run(tuple(request for request in step.requests if dict(request.adapters).keys() <= meaning.keys()))
        if not (isinstance(step, Unload) and step.name not in meaning) and step != Run(()):
            kept.append(step)
    return kept


def _needs(steps: Sequence[Step]) -> tuple[int, bool]:
    """The most names that are loaded at once, and whether one of them is loaded in place."""
    loads = [(step, meaning) for step, meaning in replay(steps) if isinstance(step, Load)]
    most = max((len(names_after(step, meaning)) for step, meaning in loads), default=0)
    return most, any(step.name in meaning for step, meaning in loads)
