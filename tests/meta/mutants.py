"""Real bugs as tables: dataclasses.replace(NUMPY, step=the wrong step). Nothing is patched.

The headings are families of bugs that were seen in the wild, in engines and in teaching code alike.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from refimpl import NUMPY, Ops, Precision
from refimpl.adapter import Adapter
from refimpl.arrays import Array
from refimpl.attention import attention
from refimpl.batch import adapter_rows
from refimpl.config import EMBED, ModelConfig, Site
from refimpl.kv_cache import prefix_key, slots, write_kv
from refimpl.layers import linear
from refimpl.lora import AdapterBank, BoundAdapter, LoraWeights, bind_adapter, lora_delta

Slots = dict[int, LoraWeights]


def but(**steps: object) -> Ops:
    """NUMPY with these steps replaced."""
    return dataclasses.replace(NUMPY, **steps)


# Scale.

rslora_ignored = but(adapter_scale=lambda alpha, r, use_rslora: alpha / r)

alpha_for_alpha_over_r = but(adapter_scale=lambda alpha, r, use_rslora: alpha)


def _without_pattern(adapter: Adapter, config: ModelConfig, scale: Callable) -> BoundAdapter:
    plain = dataclasses.replace(adapter.config, alpha_pattern={})
    return bind_adapter(dataclasses.replace(adapter, config=plain), config, scale)


alpha_pattern_ignored = but(bind_adapter=_without_pattern)


# What a prefix key is made of.

key_without_adapter = but(prefix_key=lambda parent, ids, base, p, adapters: prefix_key(parent, ids, base, p, ()))

key_without_weight = but(
    prefix_key=lambda parent, ids, base, p, adapters: prefix_key(parent, ids, base, p, [(a, 1.0) for a, _ in adapters])
)

key_without_parent = but(prefix_key=lambda parent, ids, *rest: prefix_key(b"", ids, *rest))


# Positions.


def _decode_at_zero(computed: Sequence[int], lengths: Sequence[int]) -> Array:
    starts = [0 if n == 1 else c for c, n in zip(computed, lengths, strict=True)]
    return NUMPY.positions(starts, lengths)


decode_at_zero = but(positions=_decode_at_zero)

chunk_restarts = but(positions=lambda computed, lengths: NUMPY.positions([0] * len(computed), lengths))


# Scale again, and what a kernel makes of its bank.


class _Seen:
    """A bank as a faulty kernel sees it."""

    def __init__(self, bank: AdapterBank, change: Callable[[Slots], Slots], site: Callable[[Site], Site]) -> None:
        self.bank, self.change, self.site = bank, change, site

    def at(self, site: Site) -> Slots:
        return self.change(dict(self.bank.at(self.site(site))))


def sees(change: Callable[[Slots], Slots] = lambda slots: slots, site: Callable[[Site], Site] = lambda s: s) -> Ops:
    """lora_delta over a bank that is not what was loaded."""
    return but(lora_delta=lambda y, x, bank, own, *rest: lora_delta(y, x, _Seen(bank, change, site), own, *rest))


def each(change: Callable[[LoraWeights], LoraWeights]) -> Ops:
    """The same change to the weights of every slot."""
    return sees(lambda slots: {slot: change(w) for slot, w in slots.items()})


def _scale_of_the_last(slots: Slots) -> Slots:
    return {slot: dataclasses.replace(w, scale=slots[max(slots)].scale) for slot, w in slots.items()}


scale_of_the_last_adapter = sees(_scale_of_the_last)

lora_bias_unscaled = each(lambda w: w if w.bias is None else dataclasses.replace(w, bias=w.bias / w.scale))

odd_rank_cut = each(lambda w: dataclasses.replace(w, A=w.A[: len(w.A) // 2 * 2], B=w.B[:, : len(w.A) // 2 * 2]))

last_slot_skipped = sees(lambda slots: {slot: w for slot, w in slots.items() if slot != max(slots)})

up_takes_the_delta_of_gate = sees(site=lambda s: (s[0], "gate_proj") if s[1] == "up_proj" else s)

first_layer_everywhere = sees(site=lambda s: (min(s[0], 0), s[1]))

adapters_ignored = but(lora_delta=lambda *call: None)


# Which rows get which adapter.


def _ids_not_repeated(per_request: Sequence, lengths: Sequence[int]) -> tuple[Array, Array]:
    ids, weights = adapter_rows(per_request, [1] * len(lengths))
    return np.resize(ids, (sum(lengths), ids.shape[1])), np.resize(weights, (sum(lengths), ids.shape[1]))


ids_not_repeated_per_token = but(adapter_rows=_ids_not_repeated)


def with_ids(change: Callable[[Array], Array], weights: Callable[[Array], Array] = lambda w: w) -> Ops:
    """lora_delta with other ids or weights than the plan's."""
    return but(lora_delta=lambda y, x, bank, site, ids, w, p: lora_delta(y, x, bank, site, change(ids), weights(w), p))


sorted_and_never_put_back = with_ids(lambda ids: np.sort(ids, axis=0))

no_adapter_is_the_last_one = with_ids(lambda ids: np.where(ids < 0, ids.max(), ids), lambda w: np.where(w == 0, 1.0, w))

weights_ignored = with_ids(lambda ids: ids, np.ones_like)


def _none_is_slot_zero(per_request: Sequence, lengths: Sequence[int]) -> tuple[Array, Array]:
    ids, weights = adapter_rows(per_request, lengths)
    return np.maximum(ids, 0), weights


none_is_slot_zero = but(adapter_rows=_none_is_slot_zero)

first_row_for_last = but(
    select_rows=lambda starts, every: NUMPY.select_rows(starts, every) if every else starts[:-1].astype(np.int32)
)


# Memory: adapters and blocks that are not what they were.


def bound_by_name() -> Ops:
    """A load under a name that is known returns what was loaded first."""
    known: dict[tuple[ModelConfig, str], BoundAdapter] = {}

    def bind(adapter: Adapter, config: ModelConfig, scale: Callable) -> BoundAdapter:
        return known.setdefault((config, adapter.name), bind_adapter(adapter, config, scale))

    return but(bind_adapter=bind)


victim_in_use = but(victim=lambda last_used, users: min(last_used, key=last_used.__getitem__, default=None))


def _embedding_only(*call) -> BoundAdapter:
    bound = bind_adapter(*call)
    return dataclasses.replace(bound, weights={s: w for s, w in bound.weights.items() if s == EMBED}, biases={})


saved_lm_head_and_biases_dropped = but(bind_adapter=_embedding_only)


# The cache and attention.


def _off_by_one_block(tables: Array, positions: Array, starts: Array, block_size: int) -> Array:
    return slots(tables, np.maximum(positions - block_size * (positions >= 2 * block_size), 0), starts, block_size)


slots_off_by_one_block = but(slots=_off_by_one_block)

blocks_of_sixteen = but(
    slots=lambda tables, positions, starts, size: slots(tables, positions // 16 * size + positions % size, starts, size)
)


def _side_by_side(q: Array, k: Array, v: Array, starts: Array, contexts: Array, tables: Array, *rest) -> Array:
    contiguous = (tables[:, :1] + np.arange(tables.shape[1], dtype=np.int32)) % len(k)
    return attention(q, k, v, starts, contexts, contiguous, *rest)


block_table_ignored = but(attention=_side_by_side)

window_off_by_one = but(attention=lambda *call: attention(*call[:6], None if call[6] is None else call[6] + 1, call[7]))


def _interleaved(q: Array, k: Array, *rest) -> Array:
    tokens, heads, head_dim = q.shape
    kv_heads = k.shape[2]
    by_group = q.reshape(tokens, heads // kv_heads, kv_heads, head_dim).swapaxes(1, 2)
    out = attention(np.ascontiguousarray(by_group).reshape(q.shape), k, *rest)
    out = out.reshape(tokens, kv_heads, heads // kv_heads, head_dim).swapaxes(1, 2)
    return np.ascontiguousarray(out).reshape(tokens, -1)


query_heads_interleaved = but(attention=_interleaved)

k_and_v_swapped = but(write_kv=lambda k_cache, v_cache, k, v, *rest: write_kv(k_cache, v_cache, v, k, *rest))


# Rounding.


def at(p: Precision, **points: str) -> Precision:
    """Some points of p changed, the others kept."""
    return dataclasses.replace(p, **points)


rank_not_rounded = but(lora_delta=lambda *call: lora_delta(*call[:6], at(call[6], lora_rank=call[6].compute)))

kv_not_rounded = but(write_kv=lambda *call: write_kv(*call[:5], at(call[5], kv=call[5].compute)))

probabilities_not_rounded = but(attention=lambda *call: attention(*call[:7], at(call[7], probabilities="float32")))

attention_not_rounded = but(attention=lambda *call: attention(*call[:7], at(call[7], attention=call[7].compute)))

always_bfloat16 = but(linear=lambda x, w, b, p: linear(x, w, b, at(p, linear="bfloat16")))


def _in_float32(y: Array, x: Array, bank: AdapterBank, site: Site, *plan) -> None:
    if bank.at(site):
        narrow = y.astype(np.float32)
        lora_delta(narrow, x, bank, site, *plan)
        y[:] = narrow


sums_in_float32 = but(lora_delta=_in_float32)


def _wrong_half_type(x: Array, weight: Array, bias: Array | None, p: Precision) -> Array:
    read = weight.view(np.float16).astype(np.float32) if weight.dtype.itemsize == 2 else weight
    return linear(x, read, bias, p)


bfloat16_read_as_float16 = but(linear=_wrong_half_type)
