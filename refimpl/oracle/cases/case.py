"""A case: what is done to an engine, step by step, and what it must answer.

A stateless case is one batch. A sequence loads, unloads and asks in turn. Truth is our float64 answer to each request,
alone, with whatever weights its adapter's name meant when it was asked.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ...adapter import Adapter
from ...arrays import Array
from ...engines.interface import Engine, EngineRequest, EngineResponse
from ...engines.ours import Ours
from ...model import logits
from ...request import Request, vocab_size
from .testbed import Testbed


@dataclass(frozen=True)
class Load:
    """Make an adapter of the testbed known under a name; in place, if the name is known."""

    name: str
    adapter: str


@dataclass(frozen=True)
class Unload:
    """Forget a name."""

    name: str


@dataclass(frozen=True)
class Run:
    """Serve these requests together."""

    requests: tuple[EngineRequest, ...]


Step = Load | Unload | Run


@dataclass(frozen=True)
class Case:
    """Steps from an engine without adapters and without a prefix; a batch finds the testbed's adapters loaded."""

    name: str
    steps: tuple[Step, ...]
    stateless: bool = True

    @property
    def runs(self) -> list[Run]:
        """The batches of it."""
        return [step for step in self.steps if isinstance(step, Run)]


class HasFolders(Protocol):
    """What a case is played with: a testbed, or its adapters' folders alone."""

    @property
    def paths(self) -> Mapping[str, Path]:
        """Of every adapter that may be loaded, by its key."""


@dataclass(frozen=True, eq=False)
class Exchange:
    """One request and what came of it."""

    request: EngineRequest
    adapters: tuple[tuple[str, float], ...]  # the testbed's keys of the weights that its names meant, and their weights
    response: EngineResponse
    run: int  # which Run of the case it was in
    index: int  # its place in that run

    @property
    def adapter(self) -> str | None:
        """Display name: None for the base, a*0.5+b*1.0 for a sum."""
        if self.request.adapter_weights:
            return "+".join(f"{key}*{weight:g}" for key, weight in self.adapters)
        return self.adapters[0][0] if self.adapters else None


def names_after(step: Step, meaning: Mapping[str, str]) -> dict[str, str]:
    """Return what every name means once the step is done. meaning: before it, name -> the testbed's key."""
    if isinstance(step, Load):
        return {**meaning, step.name: step.adapter}
    if isinstance(step, Unload):
        return {name: key for name, key in meaning.items() if name != step.name}
    return dict(meaning)


def replay(steps: Iterable[Step], meaning: Mapping[str, str] | None = None) -> Iterator[tuple[Step, dict[str, str]]]:
    """Yield each step, and what every name means when it begins. meaning: what they mean before the first."""
    meaning = dict(meaning or {})
    for step in steps:
        yield step, meaning
        meaning = names_after(step, meaning)


def requests_of(
    case: Case, meaning: Mapping[str, str] | None = None
) -> Iterator[tuple[int, int, EngineRequest, dict[str, str]]]:
    """Yield run, index in it, request, and what every name means then, for every request of a case."""
    batches = [(step, now) for step, now in replay(case.steps, meaning) if isinstance(step, Run)]
    for run, (batch, now) in enumerate(batches):
        for i, request in enumerate(batch.requests):
            yield run, i, request, now


def tokens_exist(case: Case, testbed: Testbed) -> bool:
    """Return whether every request's tokens are in its vocabulary: an adapter may have more of them than the base."""
    return all(
        max(request.prompt_ids) < vocab_size_of(keys_of(request, now), testbed)
        for _, _, request, now in requests_of(case, loaded_before(case, testbed))
    )


def loaded_before(case: Case, testbed: HasFolders) -> dict[str, str]:
    """Return what the names mean when a case begins: a batch finds each adapter under its own name, a sequence none."""
    return {key: key for key in testbed.paths} if case.stateless else {}


def with_requests(steps: Iterable[Step], change: Callable[[EngineRequest], EngineRequest]) -> tuple[Step, ...]:
    """Return the steps with every request changed."""
    return tuple(Run(tuple(map(change, step.requests))) if isinstance(step, Run) else step for step in steps)


def do_step(
    engine: Engine, step: Step, paths: Mapping[str, Path], forced: Sequence[Sequence[int]] | None = None
) -> Sequence[EngineResponse]:
    """Do one step to an engine; return its responses, one for each request of a run. paths: the adapters' folders.

    forced: the tokens that each request must produce (our own engine only)."""
    if isinstance(step, Load):
        engine.load(step.name, paths[step.adapter])
        return []
    if isinstance(step, Unload):
        engine.unload(step.name)
        return []
    if forced is not None and isinstance(engine, Ours):
        responses = engine.run(step.requests, forced)
    else:
        responses = engine.run(step.requests)
    if len(responses) != len(step.requests):
        error = f"{len(responses)} answers to {len(step.requests)} requests"
        return [EngineResponse(error=error, raw=responses)] * len(step.requests)
    return responses


class Player:
    """Does steps to an engine as they come. meaning: what its names mean now, name -> the testbed's key."""

    def __init__(self, engine: Engine, testbed: HasFolders, meaning: Mapping[str, str] | None = None) -> None:
        self.engine, self.testbed = engine, testbed
        self.meaning = dict(meaning or {})
        self.runs = 0

    def do(self, step: Step, forced: Sequence[Sequence[int]] | None = None) -> list[Exchange]:
        """Do one step; return what came of it: nothing, unless it is a run. forced: as in do_step."""
        responses = do_step(self.engine, step, self.testbed.paths, forced)
        self.meaning = names_after(step, self.meaning)
        if not isinstance(step, Run):
            return []
        self.runs += 1
        return [
            Exchange(request, keys_of(request, self.meaning), response, self.runs - 1, i)
            for i, (request, response) in enumerate(zip(step.requests, responses, strict=True))
        ]


def keys_of(request: EngineRequest, meaning: Mapping[str, str]) -> tuple[tuple[str, float], ...]:
    """Return the adapters that a request names, as the testbed's keys, and their weights. meaning: name -> key."""
    return tuple((meaning[name], weight) for name, weight in request.adapters)


def play(
    engine: Engine, case: Case, testbed: HasFolders, forced: Mapping[int, Sequence[Sequence[int]]] | None = None
) -> list[Exchange]:
    """Do what the case says. forced: for each run, the tokens that each request must produce (our own engine only)."""
    if not case.stateless:
        engine.reset()
    player = Player(engine, testbed, loaded_before(case, testbed))
    collected: list[Exchange] = []
    for step in case.steps:
        collected += player.do(step, None if forced is None else forced.get(player.runs))
    return collected


def prepare(engine: Engine, testbed: HasFolders) -> None:
    """Load every adapter of the testbed under its own name, for stateless cases."""
    for name, path in testbed.paths.items():
        engine.load(name, path)


def forced_tokens(exchanges: Sequence[Exchange]) -> dict[int, list[Sequence[int]]]:
    """Return, by run, the tokens that each of its requests produced."""
    collected: dict[int, list[Sequence[int]]] = {}
    for exchange in exchanges:
        collected.setdefault(exchange.run, []).append(exchange.response.token_ids)
    return collected


def teacher_forced(exchange: Exchange, adapters: Mapping[str, Adapter]) -> Request:
    """Return a request with the whole text of one exchange as its prompt: what was asked, and what was produced less
    the last token, which predicts nothing. adapters: the testbed's, by key."""
    weighted = [(adapters[key], weight) for key, weight in exchange.adapters]
    return Request([*exchange.request.prompt_ids, *exchange.response.token_ids[:-1]], weighted or None)


def vocab_size_of(adapters: Sequence[tuple[str, float]], testbed: Testbed) -> int:
    """Return how many tokens a request for these keys of the testbed knows: an adapter may have a grown vocabulary."""
    return vocab_size(Request([0], [(testbed.adapters[key], weight) for key, weight in adapters]), testbed.model.config)


def truth(exchanges: Sequence[Exchange], testbed: Testbed) -> list[Array]:
    """Return the exact logits [tokens, vocab] of each exchange's text."""
    return logits(testbed.exact, [teacher_forced(exchange, testbed.adapters) for exchange in exchanges])
