"""Requests in, text out: what most callers want of the engine, as an iterator of tokens or as a list of answers."""

from collections.abc import Iterator, Sequence

from .arrays import Precision
from .engine import Engine, Output, Token
from .errors import LoracleError, RequestError
from .ops import NUMPY, Ops
from .request import Request, check_list
from .weights import Model


def stream(
    model: Model,
    requests: Sequence[Request],
    max_new_tokens: int = 32,
    ops: Ops = NUMPY,
    precision: Precision | None = None,
    engine: Engine | None = None,
) -> Iterator[Token]:
    """Every token of every request as it is produced, from one batch; `request_id` is the index in `requests`.

    Text comes in whole characters: a token that ends inside one has none, and the next one brings it."""
    check_list(requests)
    if not isinstance(max_new_tokens, int):
        raise RequestError(f"max_new_tokens {max_new_tokens!r} is not a whole number")
    engine = engine or roomy_engine(model, requests, max_new_tokens, ops, precision)
    if engine.busy:
        raise RequestError("stream and generate need an engine to themselves: this one is serving other requests")
    index = {engine.add(request, max_new_tokens): i for i, request in enumerate(requests)}
    produced: dict[int, list[int]] = {i: [] for i in index.values()}
    shown = dict.fromkeys(index.values(), "")
    while engine.busy:
        for token in engine.step():
            i = index[token.request_id]
            stopped = token.finish_reason == "stop"
            produced[i] += [] if stopped else [token.token_id]
            text = decode(model, produced[i])
            if text.endswith("\N{REPLACEMENT CHARACTER}") and not token.finish_reason:
                text = shown[i]
            yield Token(i, token.token_id, text[len(shown[i]) :], token.finish_reason)
            shown[i] = text


def generate(
    model: Model,
    requests: Sequence[Request],
    max_new_tokens: int = 32,
    ops: Ops = NUMPY,
    precision: Precision | None = None,
    engine: Engine | None = None,
) -> list[Output]:
    """What each request produces, in request order, all of them served together."""
    ids: list[list[int]] = [[] for _ in requests]
    texts, reasons = ["" for _ in requests], ["" for _ in requests]
    for token in stream(model, requests, max_new_tokens, ops, precision, engine):
        ids[token.request_id].append(token.token_id)
        texts[token.request_id] += token.text
        reasons[token.request_id] = token.finish_reason or ""
    return [Output(*each) for each in zip(ids, texts, reasons, strict=True)]


def roomy_engine(
    model: Model, requests: Sequence[Request], max_new_tokens: int, ops: Ops, precision: Precision | None
) -> Engine:
    """An engine in which all of these requests fit at once."""
    lengths = [len(r.prompt_ids) + (r.max_new_tokens or max_new_tokens) for r in requests]
    blocks = sum(-(-n // 16) + 1 for n in lengths)
    return Engine(model, ops, precision, num_blocks=max(blocks, 1), max_running=len(requests), prefix_caching=False)


def decode(model: Model, token_ids: Sequence[int]) -> str:
    """The text of the ids; empty for a model without a tokenizer, which can still be asked for ids."""
    try:
        return "" if model.tokenizer is None else model.tokenizer.decode(token_ids)
    except LoracleError:
        return ""
