"""A server's completion, checked before it counts.

The files of this folder parse a response's JSON into a Completion, each in the way of its server. Here it becomes an
EngineResponse, if it is valid: as many tokens as were requested, the prompt that was sent, a row for every position,
finite numbers for tokens that exist. Anything else is a BadResponse with the JSON in it, and so a failed case.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..interface import EngineRequest, EngineResponse
from .client import BadResponse


@dataclass(frozen=True)
class Completion:
    """One completion as its server gave it, apart from the spelling."""

    token_ids: Sequence[Any]
    rows: Sequence[Mapping[int, Any]] | None = None  # token -> log-probability; the last ones are those of token_ids
    logits: Sequence[Sequence[Any]] | None = None  # of the prompt's tokens
    echo: Sequence[int] | None = None  # the prompt, as the server read it
    raw: Any = None


def parsed(data: Any, parse: Callable[[Any], Completion]) -> Completion:
    """Return parse(data), with the data as its `raw`.

    The JSON comes from a stranger: `parse` may index it as if it were well formed, and whatever goes wrong is a
    BadResponse."""
    try:
        return replace(parse(data), raw=data)
    except BadResponse as error:
        raise BadResponse(str(error), data) from None
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise BadResponse(f"an answer of another form: {type(error).__name__} {error}", data) from None


def checked(completion: Completion, request: EngineRequest, width: int, vocab: int, floor: float) -> EngineResponse:
    """Return the EngineResponse that a completion is. BadResponse for everything that it should not be.

    width: how many tokens of a row were requested. A row is whole if all of the vocabulary is in it. A number at the
    floor or below stands for "nearly nothing": its token is left out, and the row is not whole."""
    try:
        return _checked(completion, request, width, vocab, floor)
    except BadResponse as error:
        raise BadResponse(str(error), completion.raw) from None


def _checked(completion: Completion, request: EngineRequest, width: int, vocab: int, floor: float) -> EngineResponse:
    ids = _tokens(completion, request, vocab)
    if completion.echo is not None and list(completion.echo) != list(request.prompt_ids):
        raise BadResponse(f"the prompt came back as other tokens: {list(completion.echo)[:20]}")
    if completion.logits is not None:
        return EngineResponse(ids, 0, logits=_matrix(completion.logits, request, vocab))
    if width == 0:
        return EngineResponse(ids)
    if completion.rows is None:
        raise BadResponse(f"no log-probabilities, although {width} were asked for")
    prompt, produced, count = len(request.prompt_ids), len(ids), len(completion.rows)
    if count not in (produced, prompt + produced - 1):
        raise BadResponse(f"{count} rows for a prompt of {prompt} tokens and {produced} produced ones")
    rows = [_row(i, row, width, vocab) for i, row in enumerate(completion.rows)]
    first = prompt + produced - 1 - count
    if all(len(row) == vocab and min(row.values()) > floor for row in rows):
        return EngineResponse(ids, first, logprobs=np.array([[row[t] for t in range(vocab)] for row in rows]))
    return EngineResponse(ids, first, top=[{t: x for t, x in row.items() if x > floor} for row in rows])


def number(value: Any, what: str) -> float:
    """Return the value as a float. BadResponse unless it is finite: NaN comes as a literal, as null or as a string."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadResponse(f"{what} is {value!r}")
    return float(value)


def token(value: Any) -> int:
    """Return a token id: of an int, a string of digits (a key of a JSON object), or vLLM's "token_id:5"."""
    text = value.removeprefix("token_id:") if isinstance(value, str) else value
    if isinstance(text, bool) or not (isinstance(text, int) or (isinstance(text, str) and text.isdecimal())):
        raise BadResponse(f"a token is {value!r}, which is no id")
    return int(text)


def _tokens(completion: Completion, request: EngineRequest, vocab: int) -> tuple[int, ...]:
    ids = tuple(token(t) for t in completion.token_ids)
    if len(ids) != request.max_new_tokens:
        raise BadResponse(f"{len(ids)} tokens, {request.max_new_tokens} were asked for")
    for i, t in enumerate(ids):
        if not 0 <= t < vocab:
            raise BadResponse(f"produced token {i} is {t}, of a vocabulary of {vocab}")
    return ids


def _row(i: int, row: Mapping[int, Any], width: int, vocab: int) -> dict[int, float]:
    if len(row) < width:
        raise BadResponse(f"row {i} has {len(row)} tokens, {width} were asked for")
    for t in row:
        if not 0 <= t < vocab:
            raise BadResponse(f"row {i} has token {t}, of a vocabulary of {vocab}")
    return {t: number(x, f"row {i}: the log-probability of token {t}") for t, x in row.items()}


def _matrix(logits: Sequence[Sequence[Any]], request: EngineRequest, vocab: int) -> np.ndarray:
    if len(logits) != len(request.prompt_ids):
        raise BadResponse(f"{len(logits)} rows of logits for {len(request.prompt_ids)} tokens of a prompt")
    for i, row in enumerate(logits):
        if len(row) != vocab:
            raise BadResponse(f"row {i} has {len(row)} logits, the vocabulary {vocab}")
    return np.array([[number(x, f"row {i}: logit {t}") for t, x in enumerate(row)] for i, row in enumerate(logits)])
