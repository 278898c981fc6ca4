"""What a caller asks for: one prompt for one choice of adapters, and everything that can be wrong with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .adapter import Adapter
from .config import EMBED, LM_HEAD, SCORE, ModelConfig, Module, module_name
from .errors import RequestError

LARGEST_WEIGHT = float(np.finfo(np.float32).max)  # plans hold weights in float32


@dataclass(frozen=True, eq=False)
class Request:
    """One prompt for one choice of adapters. The adapter is the object itself, never a name."""

    prompt_ids: Sequence[int]
    adapter: "Adapter | Sequence[tuple[Adapter, float]] | None" = None
    max_new_tokens: int | None = None  # None: what generate() was told
    temperature: float = 0.0  # 0 is greedy
    top_k: int = 0  # 0 is off
    top_p: float = 1.0
    seed: int = 0
    stop_ids: Sequence[int] | None = None  # None: the model's own end-of-sequence ids

    @property
    def adapters(self) -> tuple[tuple[Adapter, float], ...]:
        """The adapters that this request sums, with their weights; empty for the base model."""
        if self.adapter is None:
            return ()
        return ((self.adapter, 1.0),) if isinstance(self.adapter, Adapter) else tuple(self.adapter)


def vocab_size(request: Request, config: ModelConfig) -> int:
    """How many token ids this request knows: an adapter may bring a larger embedding table along."""
    extended = [len(adapter.replaced[EMBED]) for adapter, _ in request.adapters if EMBED in adapter.replaced]
    return max([config.vocab_size, *extended])


def check_list(requests: Sequence[Request]) -> None:
    """RequestError for one request where several belong."""
    if isinstance(requests, Request):
        raise RequestError("expected a list of requests: put the one in brackets")


def check_request(request: Request, config: ModelConfig, head: Module = LM_HEAD) -> None:
    """RequestError, in one line, for what can be told from the request alone. `head`: what is read out."""
    check_adapters(request.adapter)
    if head == LM_HEAD:
        _check_generates(request, config)
    elif labels_of(request, config) == 0:
        raise RequestError("neither the base nor an adapter of the request has a classification head (score)")
    for adapter, _ in request.adapters:
        _check_fits(adapter, config.unsharded)
    ids = np.asarray(request.prompt_ids)
    if ids.size == 0:
        raise RequestError("prompt_ids is empty: a request needs at least one token")
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise RequestError(f"prompt_ids must be a flat list of integers, not {ids.dtype} of shape {ids.shape}")
    if ids.size > config.max_position_embeddings:
        most = config.max_position_embeddings
        raise RequestError(f"a prompt of {ids.size} tokens is longer than the model's {most} positions")
    vocabulary = vocab_size(request, config)
    outside = ids[(ids < 0) | (ids >= vocabulary)]
    if outside.size:
        raise RequestError(f"prompt_ids holds {outside[0]}, outside of the vocabulary of {vocabulary} ids")
    if not (request.temperature >= 0 and np.isfinite(request.temperature)):
        raise RequestError(f"temperature {request.temperature} must be 0 (greedy) or more")
    check_whole("top_k", request.top_k, 0)
    check_whole("seed", request.seed)
    if not 0 < request.top_p <= 1:
        raise RequestError(f"top_p {request.top_p} must be above 0 and at most 1")
    if request.max_new_tokens is not None:
        check_whole("max_new_tokens", request.max_new_tokens, 1)


def _check_generates(request: Request, config: ModelConfig) -> None:
    """A text goes on by an lm_head: a classification head is read by refimpl.scores."""
    heads = [f"adapter {adapter.name} has" for adapter, _ in request.adapters if SCORE in adapter.replaced]
    for owner in ["the base has"] * (config.labels > 0) + heads:
        raise RequestError(
            f"{owner} a classification head (score): ask refimpl.scores (loracle scores), not for text or logits"
        )


def labels_of(request: Request, config: ModelConfig) -> int:
    """How many scores this request gets; 0 where there is no head."""
    heads = (len(adapter.replaced[SCORE]) for adapter, _ in request.adapters if SCORE in adapter.replaced)
    return next(heads, config.labels)


def check_whole(name: str, value: object, least: int | None = None) -> None:
    """RequestError for what is no whole number, or below the least."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise RequestError(f"{name} {value!r} is not a whole number")
    if least is not None and value < least:
        raise RequestError(f"{name} {value} must be {least} or more")


def check_adapters(given: Any) -> None:
    """RequestError for what is no adapter and no list of (adapter, weight), or names one twice."""
    if given is None or isinstance(given, Adapter):
        return
    pairs = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    for pair in pairs:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], Adapter)):
            raise RequestError(
                f"adapter must be an Adapter from load_adapter, or pairs (Adapter, weight), not {_kind(pair)}"
            )
        adapter, weight = pair
        if not np.isfinite(weight):
            raise RequestError(f"adapter {adapter.name}: weight {weight} is not a finite number")
        if abs(weight) > LARGEST_WEIGHT:
            raise RequestError(f"adapter {adapter.name}: weight {weight:g} is more than float32 holds")
        if not adapter.can_be_summed and (len(pairs) > 1 or weight != 1):
            layers = "rows of tokens" if adapter.tokens else "whole layers"
            why = "is DoRA" if adapter.use_dora else f"replaces {layers}"
            raise RequestError(f"adapter {adapter.name} {why}: it can be neither summed nor weighted")
    if len({id(adapter) for adapter, _ in pairs}) < len(pairs):
        raise RequestError("a request names the same adapter twice: add the weights instead")


def _check_fits(adapter: Adapter, config: ModelConfig) -> None:
    """An adapter was checked against a base when it was loaded; this may be another one."""
    modules = set(config.modules())
    for module in (*adapter.lora, *adapter.replaced, *adapter.biases, *adapter.tokens):
        if module not in modules and module != SCORE:
            raise RequestError(f"adapter {adapter.name} is for another model: this one has no {module_name(module)}")
    for module, lora in adapter.lora.items():
        d_out, d_in = _shape(adapter, module, config)
        if module == EMBED:  # its rows are looked up: A is [rank, vocab]
            d_out, d_in = d_in, d_out
        _check_shape(adapter, module, (d_out, d_in), (lora.B.shape[0], lora.A.shape[1]))
    vocabulary, inputs = max([0, *map(len, adapter.replaced.values())]), config.vocab_size_per_layer_input
    if inputs and vocabulary > inputs:
        raise RequestError(
            f"adapter {adapter.name} extends the vocabulary to {vocabulary} ids; embed_tokens_per_layer has {inputs}"
        )
    for module, weight in adapter.replaced.items():
        _check_shape(adapter, module, _shape(adapter, module, config), weight.shape)
    for module, bias in adapter.biases.items():
        _check_shape(adapter, module, _shape(adapter, module, config)[:1], bias.shape)
    for module, tokens in adapter.tokens.items():
        rows, width = _shape(adapter, module, config)
        _check_shape(adapter, module, (max(rows, int(tokens.ids.max()) + 1), width), (rows, tokens.rows.shape[1]))


def _shape(adapter: Adapter, module: Module, config: ModelConfig) -> tuple[int, int]:
    """What the module's weight must be [d_out, d_in]: the base's, or with the rows of a vocabulary that is extended."""
    if module == SCORE:
        return len(adapter.replaced[SCORE]), config.hidden_size
    d_out, d_in = config.shape(module)
    if module in (EMBED, LM_HEAD):
        tables = [weight for table, weight in adapter.replaced.items() if table != SCORE]
        return max([d_out, *map(len, tables)]), d_in
    return d_out, d_in


def _check_shape(adapter: Adapter, module: Module, expected: tuple[int, ...], shape: tuple[int, ...]) -> None:
    if expected != shape:
        shapes = f"{module_name(module)} is {list(expected)} here, {list(shape)} there"
        raise RequestError(f"adapter {adapter.name} is for another model: {shapes}")


def _kind(x: object) -> str:
    return f"({', '.join(map(_kind, x))})" if isinstance(x, tuple) else type(x).__name__
