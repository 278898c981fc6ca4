"""Vectors of whole models: steps that are done to an engine, and the logits that each request must get.

Truth is our float64 answer to each request alone, with whatever weights its adapter's name meant when it was asked.
Prompts are drawn until greedy decoding is beyond doubt: at each produced token the best logit is further ahead of the
second than any honest engine is off. So one answer is right, and every row of it can be compared.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from ...adapter import Adapter
from ...arrays import Array, Precision
from ...model import logits
from ...request import Request
from ..noise.ensemble import ensemble, honest_runs
from .models import ADAPTERS, BASE, Written
from .units import FACTOR, noise, short
from .vector import MODELS, VECTOR_DTYPES, Output, Vector

ROWS_OF_A_SEQUENCE = 3  # of each answer the last so many; those of the prompt before are not shown after a prefix hit
TRIES = 2000


@dataclass(frozen=True)
class Prompt:
    """Tokens that are given, then as many as are free to be requests; the same Prompt is the same text."""

    free: int
    prefix: tuple[int, ...] = ()  # pieces of the spec (below), or with a minus sign: -1 - token
    key: str = ""  # two prompts of one shape with different keys are different


@dataclass(frozen=True)
class RequestSpec:
    """One request, before its prompt is drawn."""

    adapter: str | None
    prompt: Prompt
    new: int = 1
    adapter_weights: tuple[tuple[str, float], ...] = ()
    arrival_step: int = 0
    cancel_after: int | None = None


Step = tuple[str, Any]  # ("load", (name, adapter)), ("unload", name), ("run", [RequestSpec, ...])


@dataclass(frozen=True)
class Spec:
    """One vector, before its prompts are drawn."""

    name: str
    comment: str
    bugs: tuple[str, ...]
    steps: Sequence[Step]
    model: str = "llama"
    settings: Mapping[str, Any] = field(default_factory=dict)  # what differs from SETTINGS
    requires: tuple[str, ...] = ()
    result: str = "valid"
    pieces: int = 0  # blocks of 16 tokens that prompts are put together from
    nearly: tuple[int, int] | None = None  # (piece, piece): the second is the first with another last token


SETTINGS: dict[str, Any] = {
    "max_adapters": 4,
    "max_rank": 16,
    "max_length": 64,
    "max_requests": 8,
    "prefix_caching": False,
    "chunk": None,
    "kv_tokens": None,
}
PIECE = 16  # a whole number of blocks for engines whose blocks have 1, 2, 4, 8 or 16 tokens


def make(spec: Spec, kind: str, written: Written, rng: np.random.Generator) -> Vector:
    """The vector of a spec. Draws again as a whole in the rare case that a prompt was too near a tie after all."""
    if spec.result == "invalid":
        return _vector(spec, kind, _draw_requests(spec, written, rng), {})
    for _ in range(20):
        requests = _draw_requests(spec, written, rng)
        outputs = _expected(spec, kind, written, requests)
        if outputs is not None:
            return _vector(spec, kind, requests, outputs)
    raise AssertionError(f"{spec.name}: no prompts whose answers are beyond doubt")


@dataclass(frozen=True)
class DrawnRequest:
    """A request with its text."""

    spec: RequestSpec
    prompt: tuple[int, ...]
    produced: tuple[int, ...]
    adapters: tuple[tuple[str, float], ...]  # folders and weights


def _requests(spec: Spec) -> Iterator[tuple[int, int, RequestSpec, dict[str, str]]]:
    """(run, place in it, request, what every name means then)."""
    loaded: dict[str, str] = {}
    run = 0
    for do, what in spec.steps:
        if do == "load":
            loaded[what[0]] = what[1]
        elif do == "unload":
            del loaded[what]
        else:
            for i, request in enumerate(what):
                yield run, i, request, dict(loaded)
            run += 1


def _draw_requests(spec: Spec, written: Written, rng: np.random.Generator) -> dict[tuple[int, int], DrawnRequest]:
    exact = written.models["float64"]
    vocab = exact.config.vocab_size
    pieces = [tuple(rng.integers(2, vocab, PIECE).tolist()) for _ in range(spec.pieces)]
    if spec.nearly:
        first, second = spec.nearly
        pieces[second] = (*pieces[first][:-1], int((pieces[first][-1] + 7) % vocab))
    where = list(_requests(spec))
    texts: dict[Prompt, tuple[int, ...]] = {}
    with_text: dict[tuple[int, int], DrawnRequest] = {}
    for _, _, request, _ in where:
        prompt = request.prompt
        if prompt in texts:
            continue
        start = tuple(t for p in prompt.prefix for t in (pieces[p] if p >= 0 else (-1 - p,)))
        uses = [(request, _weighted(request, loaded)) for _, _, request, loaded in where if request.prompt == prompt]
        for _ in range(TRIES):
            text = (*start, *(int(t) for t in rng.integers(2, vocab, prompt.free)))
            if spec.result == "invalid" or all(
                _greedy(written, text, adapters, request.new, doubt(written)) is not None
                for request, adapters in uses
                if request.new > 1
            ):
                break
        else:
            raise AssertionError(f"{spec.name}: no prompt found for {prompt}")
        texts[prompt] = text
    for run, i, request, loaded in where:
        text, adapters = texts[request.prompt], _weighted(request, loaded)
        tokens = None if spec.result == "invalid" else _greedy(written, text, adapters, request.new, 0.0)
        with_text[run, i] = DrawnRequest(request, text, tokens or (), adapters)
    return with_text


def _weighted(request: RequestSpec, loaded: Mapping[str, str]) -> tuple[tuple[str, float], ...]:
    named = request.adapter_weights or (((request.adapter, 1.0),) if request.adapter else ())
    return tuple((loaded.get(name, name), weight) for name, weight in named)


def _request(written: Written, text: Sequence[int], adapters: Sequence[tuple[str, float]]) -> Request:
    chosen: list[tuple[Adapter, float]] = [(written.adapters[name], weight) for name, weight in adapters]
    return Request(text, chosen or None)


def _greedy(
    written: Written, text: tuple[int, ...], adapters: Sequence[tuple[str, float]], new: int, margin: float
) -> tuple[int, ...] | None:
    """The tokens that the truth produces; None if the second best is nearer than the margin at any of them."""
    produced: list[int] = []
    for _ in range(new):
        row = logits(written.models["float64"], [_request(written, [*text, *produced], adapters)])[0][-1]
        second, best = np.partition(row, -2)[-2:]
        if best - second < margin:
            return None
        produced.append(int(row.argmax()))
    return tuple(produced)


@lru_cache
def doubt(written: Written) -> float:
    """A margin that is wide enough as a rule: how far off bfloat16 was, at worst, on some texts of this model."""
    rng = np.random.default_rng(0)
    vocab = written.models["float64"].config.vocab_size
    some = [Request(rng.integers(0, vocab, 20).tolist(), None)]
    some += [Request(rng.integers(0, vocab, 20).tolist(), adapter) for adapter in list(written.adapters.values())[:3]]
    truth = logits(written.models["float64"], some)
    half = logits(written.models["bfloat16"], some, precision=Precision("model", "bfloat16"))
    return 2 * FACTOR * max(float(np.abs(exact - rounded).max()) for exact, rounded in zip(truth, half, strict=True))


def _expected(
    spec: Spec, kind: str, written: Written, requests: Mapping[tuple[int, int], DrawnRequest]
) -> dict[str, Output] | None:
    """Logits and produced tokens of every request; None if some answer is in doubt."""
    kept = {at: request for at, request in requests.items() if request.spec.cancel_after is None}
    forced = [
        _request(written, [*request.prompt, *request.produced[:-1]], request.adapters) for request in kept.values()
    ]
    truths = logits(written.models["float64"], forced)
    runs = {t: honest_runs(written.models[t], forced, ensemble(t)) for t in VECTOR_DTYPES}
    outputs: dict[str, Output] = {}
    for i, ((run, place), request) in enumerate(kept.items()):
        count = len(truths[i]) if kind == "logits" else ROWS_OF_A_SEQUENCE + request.spec.new - 1
        truth = truths[i][-count:].astype(np.float64)
        honest = {t: [np.asarray(member[i][-count:], np.float64) for member in runs[t]] for t in VECTOR_DTYPES}
        bounds = {t: _row_bounds(runs_of_t, truth) for t, runs_of_t in honest.items()}
        produced = truth[-request.spec.new :]
        best = np.partition(produced, -2, axis=-1)
        widest = max(float(bound[-request.spec.new :].max()) for bound in bounds.values())
        if request.spec.new > 1 and (best[:, -1] - best[:, -2]).min() <= 2 * widest:
            return None
        name = f"{run}.{place}"
        units = {t: noise(runs_of_t, truth, bounds[t]) for t, runs_of_t in honest.items()}
        _check_sensitive(spec, written, request, truth, units["bfloat16"].limit, count)
        outputs[f"{name}.logits"] = Output(("rows", "vocab"), truth, bounds, units)
        if request.spec.new > 1:
            outputs[f"{name}.token_ids"] = Output(("new",), np.asarray(request.produced, np.int32))
    return outputs


def _row_bounds(honest: Sequence[Array], truth: Array) -> Array:
    """[rows, 1]: FACTOR times the worst that any honest run is off in the row."""
    worst = np.max([np.abs(run - truth).max(axis=-1, keepdims=True) for run in honest], axis=0)
    return np.vectorize(short)(FACTOR * worst).astype(np.float32)


def _check_sensitive(
    spec: Spec, written: Written, request: DrawnRequest, truth: Array, limit: float, count: int
) -> None:
    """An adapter that is no further from the base than noise could be left out unnoticed."""
    if not request.adapters:
        return
    vocab = written.models["float64"].config.vocab_size
    if max([*request.prompt, *request.produced]) >= vocab:
        return  # words that the base does not have
    base = logits(written.models["float64"], [_request(written, [*request.prompt, *request.produced[:-1]], ())])[0][
        -count:
    ]
    apart = float(np.sqrt(np.mean((truth[:, :vocab] - base) ** 2)))
    assert apart > 4 * limit, f"{spec.name}: {request.adapters} is only {apart / limit:.1f} limits from the base"


def _vector(
    spec: Spec, kind: str, requests: Mapping[tuple[int, int], DrawnRequest], outputs: Mapping[str, Output]
) -> Vector:
    inputs = {f"{run}.{i}.prompt_ids": np.asarray(request.prompt, np.int32) for (run, i), request in requests.items()}
    steps, run = [], 0
    used = {what[1] for do, what in spec.steps if do == "load"}
    for do, what in spec.steps:
        if do == "load":
            steps.append({"do": "load", "name": what[0], "adapter": what[1]})
        elif do == "unload":
            steps.append({"do": "unload", "name": what})
        else:
            steps.append({"do": "run", "requests": [_json(run, i, request) for i, request in enumerate(what)]})
            run += 1
    up = f"../../{MODELS}/{spec.model}"
    about = {
        "model": f"{up}/{BASE}",
        "adapters": {name: f"{up}/{ADAPTERS}/{name}" for name in sorted(used)},
        "settings": SETTINGS | dict(spec.settings),
        "steps": steps,
    }
    return Vector(
        spec.name,
        kind,
        spec.result,
        spec.comment,
        spec.bugs,
        inputs,
        {name: ("tokens",) for name in inputs},
        outputs,
        about,
        spec.requires,
    )


def _json(run: int, i: int, request: RequestSpec) -> dict[str, Any]:
    return {
        "id": f"{run}.{i}",
        "adapter": request.adapter,
        "mix": [list(pair) for pair in request.adapter_weights],
        "max_new_tokens": request.new,
        "arrives": request.arrival_step,
        "cancel_after": request.cancel_after,
    }
