"""Vectors of whole models: steps that are done to an engine, and the logits that each request must get.

Truth is our float64 answer to each request alone, with whatever weights its adapter's name meant when it was asked.
Prompts are drawn until greedy decoding is beyond doubt: at each produced token the best logit is further ahead of the
second than any honest engine is off. So one answer is right, and every row of it can be compared.
"""

import dataclasses
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
    """Tokens that are given, then as many as are free to be drawn; the same Prompt is the same text."""

    free: int
    prefix: tuple[int, ...] = ()  # pieces of the scene (below), or with a minus sign: -1 - token
    key: str = ""  # two prompts of one shape with different keys are different


@dataclass(frozen=True)
class Wanted:
    """One request, before its prompt is drawn."""

    adapter: str | None
    prompt: Prompt
    new: int = 1
    adapter_weights: tuple[tuple[str, float], ...] = ()
    arrival_step: int = 0
    cancel_after: int | None = None


Step = tuple[str, Any]  # ("load", (name, adapter)), ("unload", name), ("run", [Wanted, ...])


@dataclass(frozen=True)
class Scene:
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


def base_of(name: str | None, held: Mapping[str, str]) -> str | None:
    """What a name means."""
    return None if name is None else held[name]


def make(scene: Scene, kind: str, written: Written, rng: np.random.Generator) -> Vector:
    """The vector of a scene. Draws again as a whole in the rare case that a prompt was too near a tie after all."""
    if scene.result == "invalid":
        return _vector(scene, kind, _drawn(scene, written, rng), {})
    for _ in range(20):
        drawn = _drawn(scene, written, rng)
        outputs = _expected(scene, kind, written, drawn)
        if outputs is not None:
            return _vector(scene, kind, drawn, outputs)
    raise AssertionError(f"{scene.name}: no prompts whose answers are beyond doubt")


@dataclass(frozen=True)
class Drawn:
    """A request with its text."""

    wanted: Wanted
    prompt: tuple[int, ...]
    produced: tuple[int, ...]
    adapters: tuple[tuple[str, float], ...]  # folders and weights


def _requests(scene: Scene) -> Iterator[tuple[int, int, Wanted, dict[str, str]]]:
    """(run, place in it, request, what every name means then)."""
    held: dict[str, str] = {}
    run = 0
    for do, what in scene.steps:
        if do == "load":
            held[what[0]] = what[1]
        elif do == "unload":
            del held[what]
        else:
            for i, wanted in enumerate(what):
                yield run, i, wanted, dict(held)
            run += 1


def _drawn(scene: Scene, written: Written, rng: np.random.Generator) -> dict[tuple[int, int], Drawn]:
    exact = written.models["float64"]
    vocab = exact.config.vocab_size
    pieces = [tuple(rng.integers(2, vocab, PIECE).tolist()) for _ in range(scene.pieces)]
    if scene.nearly:
        first, second = scene.nearly
        pieces[second] = (*pieces[first][:-1], int((pieces[first][-1] + 7) % vocab))
    where = list(_requests(scene))
    texts: dict[Prompt, tuple[int, ...]] = {}
    found: dict[tuple[int, int], Drawn] = {}
    for _, _, wanted, _ in where:
        prompt = wanted.prompt
        if prompt in texts:
            continue
        start = tuple(t for p in prompt.prefix for t in (pieces[p] if p >= 0 else (-1 - p,)))
        asks = [(w, _weighted(w, held)) for _, _, w, held in where if w.prompt == prompt]
        for _ in range(TRIES):
            text = (*start, *(int(t) for t in rng.integers(2, vocab, prompt.free)))
            if scene.result == "invalid" or all(
                _greedy(written, text, adapters, w.new, doubt(written)) is not None for w, adapters in asks if w.new > 1
            ):
                break
        else:
            raise AssertionError(f"{scene.name}: no prompt found for {prompt}")
        texts[prompt] = text
    for run, i, wanted, held in where:
        text, adapters = texts[wanted.prompt], _weighted(wanted, held)
        tokens = None if scene.result == "invalid" else _greedy(written, text, adapters, wanted.new, 0.0)
        found[run, i] = Drawn(wanted, text, tokens or (), adapters)
    return found


def _weighted(w: Wanted, held: Mapping[str, str]) -> tuple[tuple[str, float], ...]:
    named = w.adapter_weights or (((w.adapter, 1.0),) if w.adapter else ())
    return tuple((held.get(name, name), weight) for name, weight in named)


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
    some += [Request(rng.integers(0, vocab, 20).tolist(), a) for a in list(written.adapters.values())[:3]]
    truth = logits(written.models["float64"], some)
    found = logits(written.models["bfloat16"], some, precision=Precision("model", "bfloat16"))
    return 2 * FACTOR * max(float(np.abs(a - b).max()) for a, b in zip(truth, found, strict=True))


def _expected(
    scene: Scene, kind: str, written: Written, drawn: Mapping[tuple[int, int], Drawn]
) -> dict[str, Output] | None:
    """Logits and produced tokens of every request; None if some answer is in doubt."""
    kept = {at: d for at, d in drawn.items() if d.wanted.cancel_after is None}
    requests = [_request(written, [*d.prompt, *d.produced[:-1]], d.adapters) for d in kept.values()]
    truths = logits(written.models["float64"], requests)
    runs = {t: honest_runs(written.models[t], requests, ensemble(t)) for t in VECTOR_DTYPES}
    outputs: dict[str, Output] = {}
    for i, ((run, place), d) in enumerate(kept.items()):
        count = len(truths[i]) if kind == "logits" else ROWS_OF_A_SEQUENCE + d.wanted.new - 1
        truth = truths[i][-count:].astype(np.float64)
        honest = {t: [np.asarray(member[i][-count:], np.float64) for member in runs[t]] for t in VECTOR_DTYPES}
        bounds = {t: _row_bounds(found, truth) for t, found in honest.items()}
        produced = truth[-d.wanted.new :]
        best = np.partition(produced, -2, axis=-1)
        widest = max(float(b[-d.wanted.new :].max()) for b in bounds.values())
        if d.wanted.new > 1 and (best[:, -1] - best[:, -2]).min() <= 2 * widest:
            return None
        name = f"{run}.{place}"
        units = {t: noise(found, truth, bounds[t]) for t, found in honest.items()}
        _check_sensitive(scene, written, d, truth, units["bfloat16"].limit, count)
        outputs[f"{name}.logits"] = Output(("rows", "vocab"), truth, bounds, units)
        if d.wanted.new > 1:
            outputs[f"{name}.token_ids"] = Output(("new",), np.asarray(d.produced, np.int32))
    return outputs


def _row_bounds(honest: Sequence[Array], truth: Array) -> Array:
    """[rows, 1]: FACTOR times the worst that any honest run is off in the row."""
    worst = np.max([np.abs(run - truth).max(axis=-1, keepdims=True) for run in honest], axis=0)
    return np.vectorize(short)(FACTOR * worst).astype(np.float32)


def _check_sensitive(scene: Scene, written: Written, d: Drawn, truth: Array, limit: float, count: int) -> None:
    """An adapter that is no further from the base than noise could be left out unnoticed."""
    if not d.adapters:
        return
    vocab = written.models["float64"].config.vocab_size
    if max([*d.prompt, *d.produced]) >= vocab:
        return  # words that the base does not have
    base = logits(written.models["float64"], [_request(written, [*d.prompt, *d.produced[:-1]], ())])[0][-count:]
    apart = float(np.sqrt(np.mean((truth[:, :vocab] - base) ** 2)))
    assert apart > 4 * limit, f"{scene.name}: {d.adapters} is only {apart / limit:.1f} limits from the base"


def _vector(scene: Scene, kind: str, drawn: Mapping[tuple[int, int], Drawn], outputs: Mapping[str, Output]) -> Vector:
    inputs = {f"{run}.{i}.prompt_ids": np.asarray(d.prompt, np.int32) for (run, i), d in drawn.items()}
    steps, run = [], 0
    used = {what[1] for do, what in scene.steps if do == "load"}
    for do, what in scene.steps:
        if do == "load":
            steps.append({"do": "load", "name": what[0], "adapter": what[1]})
        elif do == "unload":
            steps.append({"do": "unload", "name": what})
        else:
            steps.append({"do": "run", "requests": [_json(run, i, wanted) for i, wanted in enumerate(what)]})
            run += 1
    up = f"../../{MODELS}/{scene.model}"
    about = {
        "model": f"{up}/{BASE}",
        "adapters": {name: f"{up}/{ADAPTERS}/{name}" for name in sorted(used)},
        "settings": SETTINGS | dict(scene.settings),
        "steps": steps,
    }
    return Vector(
        scene.name,
        kind,
        scene.result,
        scene.comment,
        scene.bugs,
        inputs,
        {name: ("tokens",) for name in inputs},
        outputs,
        about,
        scene.requires,
    )


def _json(run: int, i: int, w: Wanted) -> dict[str, Any]:
    request = dataclasses.asdict(w)
    return {
        "id": f"{run}.{i}",
        "adapter": w.adapter,
        "mix": [list(pair) for pair in w.adapter_weights],
        "max_new_tokens": request["new"],
        "arrives": w.arrival_step,
        "cancel_after": w.cancel_after,
    }
