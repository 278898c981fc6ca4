"""Vectors of whole models: steps that are done to an engine, and the logits that each request must get.

Truth is our float64 answer to each request alone, with whatever weights its adapter's name meant when it was asked.
Prompts are drawn until greedy decoding is beyond doubt: at each produced token the best logit is further ahead of the
second than any honest engine is off. So one answer is right, and every row of it can be compared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np

from ...arrays import Array, Precision
from ...engines.interface import EngineRequest, EngineResponse
from ...model import logits
from ...request import Request
from ..cases.case import Case, Exchange, Load, Step, keys_of, requests_of, teacher_forced, with_requests
from ..noise.ensemble import ensemble, honest_runs
from ..noise.rms import rms
from .models import ADAPTERS, BASE, Written
from .steps_json import request_id, to_about
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
class RequestSpec(EngineRequest):
    """A request whose prompt is still to be drawn; what it asks for besides is an EngineRequest's."""

    prompt_ids: tuple[int, ...] = ()  # empty until then
    prompt: Prompt = Prompt(1)


def request(adapter: str | None, prompt: Prompt, max_new_tokens: int = 1, **more: Any) -> RequestSpec:
    """Return a request for so many tokens. more: other fields of an EngineRequest."""
    return RequestSpec((), adapter, max_new_tokens, prompt=prompt, **more)


@dataclass(frozen=True)
class Spec:
    """One vector, before its prompts are drawn."""

    name: str
    comment: str
    bugs: tuple[str, ...]
    steps: Sequence[Step]  # whose requests are RequestSpecs
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
        return _vector(spec, kind, _draw(spec, written, rng), {})
    for _ in range(20):
        case = _draw(spec, written, rng)
        outputs = _expected(spec, kind, written, case)
        if outputs is not None:
            return _vector(spec, kind, case, outputs)
    raise AssertionError(f"{spec.name}: no prompts whose answers are beyond doubt")


Keys = tuple[tuple[str, float], ...]  # folders of adapters, and their weights


def _draw(spec: Spec, written: Written, rng: np.random.Generator) -> Case:
    """Return the case of a spec, a text for each of its prompts."""
    uses: dict[Prompt, list[tuple[Keys, int]]] = {}  # of what is produced after each: adapters, and how many tokens
    undrawn = Case(spec.name, tuple(spec.steps), stateless=False)
    for _, _, request, meaning in requests_of(undrawn):
        of_prompt = uses.setdefault(_prompt_of(request), [])
        if request.max_new_tokens > 1 and spec.result != "invalid":
            of_prompt.append((keys_of(request, meaning), request.max_new_tokens))
    texts = _texts(spec, uses, written, rng)
    steps = with_requests(spec.steps, lambda request: replace(request, prompt_ids=texts[_prompt_of(request)]))
    return replace(undrawn, steps=steps)


def _prompt_of(request: EngineRequest) -> Prompt:
    assert isinstance(request, RequestSpec), request
    return request.prompt


def _texts(
    spec: Spec, uses: Mapping[Prompt, Sequence[tuple[Keys, int]]], written: Written, rng: np.random.Generator
) -> dict[Prompt, tuple[int, ...]]:
    """Return a text for each prompt, after which greedy decoding is beyond doubt for everybody who uses it."""
    vocab = written.models["float64"].config.vocab_size
    pieces = [tuple(rng.integers(2, vocab, PIECE).tolist()) for _ in range(spec.pieces)]
    if spec.nearly:
        first, second = spec.nearly
        pieces[second] = (*pieces[first][:-1], int((pieces[first][-1] + 7) % vocab))
    texts: dict[Prompt, tuple[int, ...]] = {}
    for prompt, of_prompt in uses.items():
        start = tuple(t for p in prompt.prefix for t in (pieces[p] if p >= 0 else (-1 - p,)))
        for _ in range(TRIES):
            text = (*start, *(int(t) for t in rng.integers(2, vocab, prompt.free)))
            if all(_greedy(written, text, adapters, new, doubt(written)) is not None for adapters, new in of_prompt):
                texts[prompt] = text
                break
        else:
            raise AssertionError(f"{spec.name}: no prompt found for {prompt}")
    return texts


def _greedy(
    written: Written, text: tuple[int, ...], adapters: Keys, new: int, margin: float = 0.0
) -> tuple[int, ...] | None:
    """The tokens that the truth produces; None if the second best is nearer than the margin at any of them."""
    produced: list[int] = []
    chosen = [(written.adapters[name], weight) for name, weight in adapters]
    for _ in range(new):
        row = logits(written.models["float64"], [Request([*text, *produced], chosen or None)])[0][-1]
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


def _exchanges(written: Written, case: Case) -> list[Exchange]:
    """Return every request that counts, and the tokens that the truth produces for it."""
    exchanges = []
    for run, i, request, meaning in requests_of(case):
        if request.cancel_after is None:
            adapters = keys_of(request, meaning)
            produced = _greedy(written, request.prompt_ids, adapters, request.max_new_tokens)
            exchanges.append(Exchange(request, adapters, EngineResponse(produced or ()), run, i))
    return exchanges


def _expected(spec: Spec, kind: str, written: Written, case: Case) -> dict[str, Output] | None:
    """Logits and produced tokens of every request; None if some answer is in doubt."""
    exchanges = _exchanges(written, case)
    forced = [teacher_forced(exchange, written.adapters) for exchange in exchanges]
    truths = logits(written.models["float64"], forced)
    runs = {t: honest_runs(written.models[t], forced, ensemble(t)) for t in VECTOR_DTYPES}
    outputs: dict[str, Output] = {}
    for i, exchange in enumerate(exchanges):
        new, tokens = exchange.request.max_new_tokens, exchange.response.token_ids
        count = len(truths[i]) if kind == "logits" else ROWS_OF_A_SEQUENCE + new - 1
        truth = truths[i][-count:].astype(np.float64)
        honest = {t: [np.asarray(member[i][-count:], np.float64) for member in runs[t]] for t in VECTOR_DTYPES}
        bounds = {t: _row_bounds(runs_of_t, truth) for t, runs_of_t in honest.items()}
        best = np.partition(truth[-new:], -2, axis=-1)
        widest = max(float(bound[-new:].max()) for bound in bounds.values())
        if new > 1 and (best[:, -1] - best[:, -2]).min() <= 2 * widest:
            return None
        units = {t: noise(runs_of_t, truth, bounds[t]) for t, runs_of_t in honest.items()}
        _check_sensitive(spec, written, exchange, truth, units["bfloat16"].limit)
        name = request_id(exchange.run, exchange.index)
        outputs[f"{name}.logits"] = Output(("rows", "vocab"), truth, bounds, units)
        if new > 1:
            outputs[f"{name}.token_ids"] = Output(("new",), np.asarray(tokens, np.int32))
    return outputs


def _row_bounds(honest: Sequence[Array], truth: Array) -> Array:
    """[rows, 1]: FACTOR times the worst that any honest run is off in the row."""
    worst = np.max([np.abs(run - truth).max(axis=-1, keepdims=True) for run in honest], axis=0)
    return np.vectorize(short)(FACTOR * worst).astype(np.float32)


def _check_sensitive(spec: Spec, written: Written, exchange: Exchange, truth: Array, limit: float) -> None:
    """An adapter that is no further from the base than noise could be left out unnoticed."""
    vocab = written.models["float64"].config.vocab_size
    text = teacher_forced(exchange, written.adapters).prompt_ids
    if not exchange.adapters or max([*text, *exchange.response.token_ids]) >= vocab:
        return  # nothing to leave out; or words that the base does not have
    base = logits(written.models["float64"], [Request(text)])[0][-len(truth) :]
    apart = float(rms(truth[:, :vocab] - base))
    assert apart > 4 * limit, f"{spec.name}: {exchange.adapters} is only {apart / limit:.1f} limits from the base"


def _vector(spec: Spec, kind: str, case: Case, outputs: Mapping[str, Output]) -> Vector:
    inputs = {
        f"{request_id(run, i)}.prompt_ids": np.asarray(request.prompt_ids, np.int32)
        for run, i, request, _ in requests_of(case)
    }
    used = {step.adapter for step in case.steps if isinstance(step, Load)}
    up = f"../../{MODELS}/{spec.model}"
    about = {
        "model": f"{up}/{BASE}",
        "adapters": {name: f"{up}/{ADAPTERS}/{name}" for name in sorted(used)},
        "settings": SETTINGS | dict(spec.settings),
        "steps": to_about(case),
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
