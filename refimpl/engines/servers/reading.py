"""What a server said, checked before it is believed.

The files of this folder take an answer's JSON apart into a Said, each in the way of its server. Here it becomes an
Answer, if it is one: as many tokens as were asked for, the prompt that was sent, a row for every place, finite
numbers for tokens that exist. Anything else is a BadAnswer with the JSON in it, and so a failed case.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..interface import EngineRequest, EngineResponse
from .client import BadAnswer


@dataclass(frozen=True)
class Said:
    """One answer as its server gave it, apart from the spelling."""

    token_ids: Sequence[Any]
    rows: Sequence[Mapping[int, Any]] | None = None  # token -> log-probability; the last ones are those of token_ids
    logits: Sequence[Sequence[Any]] | None = None  # of the prompt's tokens
    echo: Sequence[int] | None = None  # the prompt, as the server read it
    raw: Any = None


def understood(found: Any, take: Callable[[Any], Said]) -> Said:
    """The JSON taken apart. It comes from a stranger: `take` may index it as if it were well formed, and whatever goes
    wrong is the fault of the answer."""
    try:
        return replace(take(found), raw=found)
    except BadAnswer as error:
        raise BadAnswer(str(error), found) from None
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise BadAnswer(f"an answer of another form: {type(error).__name__} {error}", found) from None


def answer(said: Said, ask: EngineRequest, width: int, vocab: int, floor: float) -> EngineResponse:
    """The Answer that this is. BadAnswer for everything that it should not be.

    width: how many tokens of a row were asked for. Rows are whole where all of the vocabulary is told. A number at
    the floor or below stands for "nearly nothing", so that this token is not told, and the row not whole."""
    try:
        return _checked(said, ask, width, vocab, floor)
    except BadAnswer as error:
        raise BadAnswer(str(error), said.raw) from None


def _checked(said: Said, ask: EngineRequest, width: int, vocab: int, floor: float) -> EngineResponse:
    ids = _tokens(said, ask, vocab)
    if said.echo is not None and list(said.echo) != list(ask.prompt_ids):
        raise BadAnswer(f"the prompt came back as other tokens: {list(said.echo)[:20]}")
    if said.logits is not None:
        return EngineResponse(ids, 0, logits=_matrix(said.logits, ask, vocab))
    if width == 0:
        return EngineResponse(ids)
    if said.rows is None:
        raise BadAnswer(f"no log-probabilities, although {width} were asked for")
    prompt, produced, rows = len(ask.prompt_ids), len(ids), len(said.rows)
    if rows not in (produced, prompt + produced - 1):
        raise BadAnswer(f"{rows} rows for a prompt of {prompt} tokens and {produced} produced ones")
    found = [_row(i, row, width, vocab) for i, row in enumerate(said.rows)]
    first = prompt + produced - 1 - rows
    if all(len(row) == vocab and min(row.values()) > floor for row in found):
        return EngineResponse(ids, first, logprobs=np.array([[row[t] for t in range(vocab)] for row in found]))
    return EngineResponse(ids, first, top=[{t: x for t, x in row.items() if x > floor} for row in found])


def number(value: Any, what: str) -> float:
    """A finite one. JSON has no NaN: it comes as a literal of that name, as null or as a string."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadAnswer(f"{what} is {value!r}")
    return float(value)


def token(value: Any) -> int:
    """An id, which may be a string of digits, as names in a JSON object must be, or vLLM's "token_id:5"."""
    text = value.removeprefix("token_id:") if isinstance(value, str) else value
    if isinstance(text, bool) or not (isinstance(text, int) or (isinstance(text, str) and text.isdecimal())):
        raise BadAnswer(f"a token is {value!r}, which is no id")
    return int(text)


def _tokens(said: Said, ask: EngineRequest, vocab: int) -> tuple[int, ...]:
    ids = tuple(token(t) for t in said.token_ids)
    if len(ids) != ask.max_new_tokens:
        raise BadAnswer(f"{len(ids)} tokens, {ask.max_new_tokens} were asked for")
    for i, t in enumerate(ids):
        if not 0 <= t < vocab:
            raise BadAnswer(f"produced token {i} is {t}, of a vocabulary of {vocab}")
    return ids


def _row(i: int, row: Mapping[int, Any], width: int, vocab: int) -> dict[int, float]:
    if len(row) < width:
        raise BadAnswer(f"row {i} has {len(row)} tokens, {width} were asked for")
    for t in row:
        if not 0 <= t < vocab:
            raise BadAnswer(f"row {i} has token {t}, of a vocabulary of {vocab}")
    return {t: number(x, f"row {i}: the log-probability of token {t}") for t, x in row.items()}


def _matrix(logits: Sequence[Sequence[Any]], ask: EngineRequest, vocab: int) -> np.ndarray:
    if len(logits) != len(ask.prompt_ids):
        raise BadAnswer(f"{len(logits)} rows of logits for {len(ask.prompt_ids)} tokens of a prompt")
    for i, row in enumerate(logits):
        if len(row) != vocab:
            raise BadAnswer(f"row {i} has {len(row)} logits, the vocabulary {vocab}")
    return np.array([[number(x, f"row {i}: logit {t}") for t, x in enumerate(row)] for i, row in enumerate(logits)])
