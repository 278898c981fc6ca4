"""Request -> Batch: what one forward pass computes, as flat plans on the host, each checked once, here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .adapter import Adapter
from .arrays import Array, Float, Int
from .config import EMBED, ModelConfig, module_name
from .errors import RequestError
from .kv_cache import NO_BLOCK
from .lora import NO_ADAPTER

if TYPE_CHECKING:
    from .ops import Ops

Adapters = Sequence[tuple[int, float]]  # (slot in the bank, weight) of each adapter that one request sums


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


@dataclass(frozen=True, eq=False)
class Batch:
    """One forward pass. Request r owns the flat tokens query_start_loc[r] to query_start_loc[r+1]."""

    token_ids: Int[Array, " tokens"]
    positions: Int[Array, " tokens"]
    slot_mapping: Int[Array, " tokens"]
    adapter_ids: Int[Array, "tokens k"]
    adapter_weights: Float[Array, "tokens k"]
    query_start_loc: Int[Array, " starts"]
    context_lens: Int[Array, " requests"]
    block_tables: Int[Array, "requests table"]
    logits_indices: Int[Array, " rows"]


@dataclass(frozen=True, eq=False)
class ScheduledRequest:
    """The share of one request in a batch: these tokens, after `computed` others that the cache holds already."""

    token_ids: Sequence[int]
    computed: int
    block_table: Sequence[int]
    adapters: Adapters = ()


def lora_mapping(
    per_request: Sequence[Adapters], lengths: Sequence[int]
) -> tuple[Int[Array, "tokens k"], Float[Array, "tokens k"]]:
    """Which adapters, at which weight, each token gets: its request's, in the request's order, then -1 and 0."""
    k = max(1, *(len(adapters) for adapters in per_request))
    ids = np.full((len(lengths), k), NO_ADAPTER, np.int32)
    weights = np.zeros((len(lengths), k))
    for r, adapters in enumerate(per_request):
        for j, (slot, weight) in enumerate(adapters):
            ids[r, j], weights[r, j] = slot, weight
    return ids.repeat(lengths, axis=0), weights.repeat(lengths, axis=0)


def positions(computed: Sequence[int], lengths: Sequence[int]) -> Int[Array, " tokens"]:
    """The place of each token in its own request, counting the tokens that were computed before."""
    return np.concatenate([np.arange(c, c + n, dtype=np.int32) for c, n in zip(computed, lengths, strict=True)])


def logits_indices(query_start_loc: Int[Array, " starts"], every: bool) -> Int[Array, " rows"]:
    """The tokens that get logits: each request's last, or every one."""
    return np.arange(query_start_loc[-1], dtype=np.int32) if every else (query_start_loc[1:] - 1).astype(np.int32)


def make_batch(work: Sequence[ScheduledRequest], block_size: int, ops: "Ops", every_row: bool = False) -> Batch:
    """The plan of one forward pass over these shares, in this order."""
    lengths = [len(w.token_ids) for w in work]
    if not work or min(lengths) == 0:
        raise RequestError("a batch needs at least one token of every request in it")
    computed = [w.computed for w in work]
    query_start_loc = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    block_tables = np.full((len(work), max(len(w.block_table) for w in work)), NO_BLOCK, np.int32)
    for r, w in enumerate(work):
        block_tables[r, : len(w.block_table)] = w.block_table
    token_positions = ops.positions(computed, lengths)
    adapter_ids, adapter_weights = ops.lora_mapping([w.adapters for w in work], lengths)
    return Batch(
        token_ids=np.concatenate([np.asarray(w.token_ids, np.int32) for w in work]),
        positions=token_positions,
        slot_mapping=ops.slot_mapping(block_tables, token_positions, query_start_loc, block_size),
        adapter_ids=adapter_ids,
        adapter_weights=adapter_weights,
        query_start_loc=query_start_loc,
        context_lens=np.asarray([c + n for c, n in zip(computed, lengths, strict=True)], np.int32),
        block_tables=block_tables,
        logits_indices=ops.logits_indices(query_start_loc, every_row),
    )


def vocab_size(request: Request, config: ModelConfig) -> int:
    """How many token ids this request knows: an adapter may bring a larger embedding table along."""
    grown = [a.replaced[EMBED].shape[0] for a, _ in request.adapters if EMBED in a.replaced]
    return max([config.vocab_size, *grown])


def check_list(requests: Sequence[Request]) -> None:
    """RequestError for one request where several belong."""
    if isinstance(requests, Request):
        raise RequestError("expected a list of requests: put the one in brackets")


def check_request(request: Request, config: ModelConfig) -> None:
    """RequestError, in one line, for what can be told from the request alone."""
    _check_adapters(request)
    for adapter, _ in request.adapters:
        _check_fits(adapter, config)
    ids = np.asarray(request.prompt_ids)
    if ids.size == 0:
        raise RequestError("prompt_ids is empty: a request needs at least one token")
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise RequestError(f"prompt_ids must be a flat list of integers, not {ids.dtype} of shape {ids.shape}")
    if ids.size > config.max_position_embeddings:
        most = config.max_position_embeddings
        raise RequestError(f"a prompt of {ids.size} tokens is longer than the model's {most} positions")
    known = vocab_size(request, config)
    outside = ids[(ids < 0) | (ids >= known)]
    if outside.size:
        raise RequestError(f"prompt_ids holds {outside[0]}, outside of the vocabulary of {known} ids")
    if not (request.temperature >= 0 and np.isfinite(request.temperature)):
        raise RequestError(f"temperature {request.temperature} must be 0 (greedy) or more")
    if request.top_k < 0:
        raise RequestError(f"top_k {request.top_k} must be 0 (off) or more")
    if not 0 < request.top_p <= 1:
        raise RequestError(f"top_p {request.top_p} must be above 0 and at most 1")
    if request.max_new_tokens is not None and request.max_new_tokens < 1:
        raise RequestError(f"max_new_tokens {request.max_new_tokens} must be 1 or more")


def _check_adapters(request: Request) -> None:
    given = request.adapter
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
        if (adapter.replaced or adapter.biases) and (len(pairs) > 1 or weight != 1):
            raise RequestError(f"adapter {adapter.name} replaces whole layers: it can be neither summed nor weighted")
    if len({id(adapter) for adapter, _ in pairs}) < len(pairs):
        raise RequestError("a request names the same adapter twice: add the weights instead")


def _check_fits(adapter: Adapter, config: ModelConfig) -> None:
    """An adapter was checked against a base when it was loaded; this may be another one."""
    known = set(config.modules())
    for module, w in adapter.lora.items():
        if module not in known:
            raise RequestError(f"adapter {adapter.name} is for another model: this one has no {module_name(module)}")
        d_out, d_in = config.shape(module[1])[::-1] if module == EMBED else config.shape(module[1])
        if module in adapter.replaced:  # a grown vocabulary
            d_in, d_out = (
                (len(adapter.replaced[module]), d_out) if module == EMBED else (d_in, len(adapter.replaced[module]))
            )
        if (w.B.shape[0], w.A.shape[1]) != (d_out, d_in):
            raise RequestError(
                f"adapter {adapter.name} is for another model: {module_name(module)} is [{d_out}, {d_in}] here, "
                f"[{w.B.shape[0]}, {w.A.shape[1]}] there"
            )


def _kind(x: object) -> str:
    return f"({', '.join(map(_kind, x))})" if isinstance(x, tuple) else type(x).__name__
