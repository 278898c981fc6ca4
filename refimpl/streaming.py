"""Requests in, text out: what most callers want of the engine, as an iterator of tokens or as a list of answers."""

from collections.abc import Iterator, Sequence

from .arrays import Precision, ceil_div
from .engine import Engine
from .errors import LoracleError, RequestError
from .ops import NUMPY, Ops
from .request import Request, check_list, check_request, check_whole
from .request_state import Output, Token
from .weights import Model


def stream(
    model: Model,
    requests: Sequence[Request],
    max_new_tokens: int = 32,
    ops: Ops | None = None,
    precision: Precision | None = None,
    engine: Engine | None = None,
) -> Iterator[Token]:
    """Every token of every request as it is produced, from one batch; `request_id` is the index in `requests`.

    Text comes in whole characters: a token that ends inside one has none, and the next one brings it. Without an
    engine, one is made in which all of them fit, with `ops` (NUMPY) and `precision`. An engine must be idle, and is
    idle again when the iterator ends or is closed. RequestError before anything is computed, for any of the requests.
    """
    check_list(requests)
    check_whole("max_new_tokens", max_new_tokens)
    for request in requests:
        check_request(request, model.config)
    if engine is None:
        engine = roomy_engine(model, requests, max_new_tokens, NUMPY if ops is None else ops, precision)
    else:
        _check_engine(engine, model, ops, precision)
    for request in requests:
        engine.check(request, max_new_tokens)
    return _tokens(engine, requests, max_new_tokens)


def _check_engine(engine: Engine, model: Model, ops: Ops | None, precision: Precision | None) -> None:
    """RequestError for an engine that is busy, or that contradicts what else was given."""
    if engine.busy:
        raise RequestError("stream and generate need an engine to themselves: this one is serving other requests")
    for name, value, of_engine in (("ops", ops, engine.ops), ("precision", precision, engine.precision)):
        if value is not None and value != of_engine:
            raise RequestError(f"{name} was given, and an engine that has another: leave {name} out, or the engine")
    if model is not engine.model:
        raise RequestError(f"the engine serves {engine.model}, not the model that was given, {model}")


def _tokens(engine: Engine, requests: Sequence[Request], max_new_tokens: int) -> Iterator[Token]:
    index = {engine.add(request, max_new_tokens): i for i, request in enumerate(requests)}
    produced: dict[int, list[int]] = {i: [] for i in index.values()}
    shown = dict.fromkeys(index.values(), "")
    try:
        while engine.busy:
            for token in engine.step():
                i = index[token.request_id]
                stopped = token.finish_reason == "stop"
                produced[i] += [] if stopped else [token.token_id]
                text = decode(engine.model, produced[i])
                if text.endswith("\N{REPLACEMENT CHARACTER}") and not token.finish_reason:
                    text = shown[i]
                yield Token(i, token.token_id, text[len(shown[i]) :], token.finish_reason)
                shown[i] = text
    finally:  # whoever breaks out of the loop, or whatever is raised: the engine is free again
        for request_id in index:
            engine.cancel(request_id)


def generate(
    model: Model,
    requests: Sequence[Request],
    max_new_tokens: int = 32,
    ops: Ops | None = None,
    precision: Precision | None = None,
    engine: Engine | None = None,
) -> list[Output]:
    """What each request produces, in request order, all of them served together. Arguments and errors of `stream`."""
    check_list(requests)
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
    """An engine in which all of these requests fit at once, as far as the model's positions go."""
    longest = model.config.max_position_embeddings + 1
    lengths = [min(len(r.prompt_ids) + int(r.max_new_tokens or max_new_tokens), longest) for r in requests]
    blocks = sum(ceil_div(n, 16) + 1 for n in lengths)
    running = max(len(requests), 1)
    return Engine(model, ops, precision, num_blocks=max(blocks, 1), max_running=running, prefix_caching=False)


def decode(model: Model, token_ids: Sequence[int]) -> str:
    """The text of the ids; empty for a model without a tokenizer, which can still be asked for ids."""
    try:
        return "" if model.tokenizer is None else model.tokenizer.decode(token_ids)
    except LoracleError:
        return ""
