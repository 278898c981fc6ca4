"""B. Identity: the right adapter, on the wrong rows of the batch."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from ...adapter_slots import AdapterSlots, BoundAdapter
from ...arrays import Array, Precision
from ...config import LM_HEAD, Module
from ...ops import NUMPY, Ops
from ...plans import Adapters, LoraMapping
from .mutant import Family
from .steps import Plan, Slots, add, but, only, planning, reading, remapped, routing

identity = Family("B", "which rows get which adapter")
EMPTY = BoundAdapter({}, {}, {})

# Rows without an adapter.


@identity.bug("a request without an adapter gets slot 0", "https://github.com/NVIDIA/TensorRT-LLM/issues/2096")
def none_is_slot_zero() -> Ops:
    def rows(per_request: Sequence[Adapters], lengths: Sequence[int]) -> Plan:
        ids, weights = NUMPY.lora_mapping(per_request, lengths)
        if (ids < 0).all():  # nothing was loaded: there is no slot 0
            return ids, weights
        return np.maximum(ids, 0), np.where(only_base(ids), 1.0, weights)

    return but(lora_mapping=rows)


def only_base(ids: Array) -> Array:
    """[tokens, k]: true in column 0 of the rows that have no adapter."""
    first = np.arange(ids.shape[1]) == 0
    return (ids < 0).all(axis=1, keepdims=True) & first


@identity.bug(
    "-1 wraps around: a row without an adapter gets the last slot of the batch",
    "https://github.com/NVIDIA/TensorRT-LLM/issues/2096",
    "https://github.com/vllm-project/vllm/issues/49063",
)
def no_adapter_is_the_last_one() -> Ops:
    def wrapped(ids: Array, weights: Array) -> Plan:
        base = only_base(ids) & (ids.max() >= 0)
        return np.where(base, ids.max(), ids).astype(np.int32), np.where(base, 1.0, weights)

    return but(lora_delta=routing(wrapped))


# Rows that are off by a request or a token.


@identity.bug("each request gets the adapters of the one before it in the batch")
def adapter_of_the_previous_request() -> Ops:
    return planning(lambda requests: requests[-1:] + requests[:-1])


@identity.bug("each request gets the adapters of the one after it in the batch")
def adapter_of_the_next_request() -> Ops:
    return planning(lambda requests: requests[1:] + requests[:1])


@identity.bug("everyone gets what the first request asked for: one configuration a batch")
def adapter_of_the_first_request() -> Ops:
    return planning(lambda requests: requests[:1] * len(requests))


@identity.bugs(
    (1, -1),
    "the plan of the rows is shifted by {} token(s)",
    "https://github.com/vllm-project/vllm-metal/pull/351",
    "https://github.com/vllm-project/vllm/pull/7585",
)
def rows_shifted(by: int) -> Ops:
    return but(lora_delta=routing(lambda ids, weights: (np.roll(ids, by, axis=0), np.roll(weights, by, axis=0))))


@identity.bug(
    "one row of the plan for each request, not for each of its tokens",
    "https://github.com/predibase/lorax/pull/570",
    "https://github.com/vllm-project/vllm/pull/21068",
    "https://github.com/vllm-project/vllm-metal/pull/351",
)
def ids_not_repeated_per_token() -> Ops:
    def rows(per_request: Sequence[Adapters], lengths: Sequence[int]) -> Plan:
        ids, weights = NUMPY.lora_mapping(per_request, [1] * len(lengths))
        shape = (sum(lengths), ids.shape[1])
        return np.resize(ids, shape), np.resize(weights, shape)

    return but(lora_mapping=rows)


@identity.bug("the rows are sorted by adapter for the kernel, those without one last, and never put back")
def sorted_and_never_put_back() -> Ops:
    def in_order(ids: Array, weights: Array) -> Plan:
        order = np.argsort(np.where(ids < 0, ids.max() + 1, ids)[:, 0], kind="stable")
        return ids[order], weights[order]

    return but(lora_delta=routing(in_order))


# The lm_head sees fewer rows than the layers do.


@identity.bug(
    "the plan of the lm_head is shifted by one row",
    "https://github.com/predibase/lorax/pull/570",
    "https://github.com/vllm-project/vllm/pull/21068",
    needs="lm_head LoRA",
)
def lm_head_rows_shifted() -> Ops:
    shifted = routing(lambda ids, weights: (np.roll(ids, 1, axis=0), np.roll(weights, 1, axis=0)), LM_HEAD)
    return but(lora_delta=shifted)


@identity.bug(
    "the lm_head takes the first rows of the batch's plan, not those of the requests' last tokens",
    "https://github.com/vllm-project/vllm/pull/24081",
    needs="lm_head LoRA",
)
def lm_head_plan_not_narrowed() -> Ops:
    last: list[Array] = []  # the row of each request's last token

    def rows(query_start_loc: Array, every: bool) -> Array:
        last[:] = [query_start_loc[1:] - 1]
        return NUMPY.logits_indices(query_start_loc, every)

    def plan(per_request: Sequence[Adapters], lengths: Sequence[int]) -> Plan:
        all_tokens[:] = NUMPY.lora_mapping(per_request, lengths)
        return all_tokens[0], all_tokens[1]

    all_tokens: list[Array] = []  # adapter_ids, adapter_weights of all tokens

    def first_rows(ids: Array, weights: Array) -> Plan:
        if not last or not all_tokens:
            return ids, weights
        every = len(ids) == len(all_tokens[0])
        rows = last[0] if every else np.arange(len(ids))
        ids, weights = ids.copy(), weights.copy()
        ids[rows], weights[rows] = (part[: len(rows)] for part in all_tokens)
        return ids, weights

    return but(logits_indices=rows, lora_mapping=plan, lora_delta=routing(first_rows, LM_HEAD))


@identity.bug(
    "the logits of a request are those of its first token, not of its last",
    "https://github.com/vllm-project/vllm/pull/21068",
    needs="decode",
)
def first_row_for_last() -> Ops:
    def rows(query_start_loc: Array, every: bool) -> Array:
        return NUMPY.logits_indices(query_start_loc, every) if every else query_start_loc[:-1].astype(np.int32)

    return but(logits_indices=rows)


# Graphs and kernels that were built for another batch.


@identity.bug(
    "the last slot is not launched: the graph was captured with one adapter less",
    "https://github.com/vllm-project/vllm/pull/32005",
)
def last_slot_skipped() -> Ops:
    def captured(adapters: AdapterSlots, module: Module) -> Slots:
        return {slot: lora for slot, lora in adapters.at(module).items() if slot != max(adapters.slots)}

    return but(lora_delta=reading(captured))


@identity.bug(
    "the kernel was compiled for two adapters: the third of a batch and all after it are left out",
    "https://github.com/sgl-project/sglang/pull/11579",
    needs="three adapters",
)
def third_adapter_skipped() -> Ops:
    def first_two(ids: Array, weights: Array) -> Plan:
        served = np.unique(ids[ids >= 0])[:2]
        return only(np.isin(ids, served), ids), weights

    return but(lora_delta=routing(first_two))


@identity.bug(
    "no adapter in decode steps: the graph was captured without",
    "https://github.com/huggingface/text-generation-inference/pull/2180",
    "https://github.com/NVIDIA/TensorRT-LLM/pull/5480",
    needs="decode",
)
def adapter_not_in_the_decode_graph() -> Ops:
    def rows(per_request: Sequence[Adapters], lengths: Sequence[int]) -> Plan:
        without = [() if n == 1 else adapters for adapters, n in zip(per_request, lengths, strict=True)]
        return NUMPY.lora_mapping(without, lengths)

    return but(lora_mapping=rows)


@identity.bug("every adapter's slot is read one further on, the last one's from the first")
def slots_rotated() -> Ops:
    def next_one(adapters: AdapterSlots, module: Module) -> Slots:
        order = sorted(adapters.slots)
        following = dict(zip(order, order[1:] + order[:1], strict=True))
        return {slot: adapters.at(module)[other] for slot, other in following.items() if other in adapters.at(module)}

    return but(lora_delta=reading(next_one))


@identity.bug(
    "the slot id reaches only the first of two ranks: the other one adds its half of slot 0",
    "https://github.com/Avarok-Cybersecurity/atlas/issues/1133",
)
def second_rank_has_slot_zero() -> Ops:
    def delta(y: Array, x: Array, module: Module, adapters: AdapterSlots, mapping: LoraMapping, p: Precision) -> None:
        halves = {slot: (half(lora.B, 0), half(lora.B, 1)) for slot, lora in adapters.at(module).items()}
        first = {slot: dataclasses.replace(lora, B=halves[slot][0]) for slot, lora in adapters.at(module).items()}
        second = {
            slot: dataclasses.replace(lora, B=halves[slot][1], bias=None) for slot, lora in adapters.at(module).items()
        }
        add(y, x, first, mapping, p)
        slot = min(adapters.slots, default=0)
        if slot not in of_slot:
            of_slot[slot] = remapped(lambda ids, weights: (np.where(ids < 0, ids, slot), weights))
        add(y, x, second, of_slot[slot](mapping), p)

    of_slot: dict[int, Callable[[LoraMapping], LoraMapping]] = {}
    return but(lora_delta=delta)


def half(B: Array, which: int) -> Array:
    """B with the rows of the other half set to zero."""
    kept, middle = np.zeros_like(B), len(B) // 2
    rows = slice(middle, None) if which else slice(middle)
    kept[rows] = B[rows]
    return kept


@identity.bug(
    "an adapter that leaves a module alone gets the first slot's weights there: results depend on the load order",
    "https://github.com/huggingface/peft/issues/2270",
    needs="other modules",
)
def untargeted_module_takes_the_first() -> Ops:
    def filled(adapters: AdapterSlots, module: Module) -> Slots:
        at = adapters.at(module)
        return {slot: at.get(slot, at[min(at)]) for slot in adapters.slots} if at else at

    return but(lora_delta=reading(filled))


# Requests that sum adapters.


@identity.bug("of the adapters that a request sums, only the first is applied", needs="sum")
def first_of_a_sum() -> Ops:
    return planning(lambda requests: [adapters[:1] for adapters in requests])


@identity.bug(
    "of the adapters that a request sums, only the last is applied: each overwrites the one before", needs="sum"
)
def last_of_a_sum() -> Ops:
    return planning(lambda requests: [adapters[-1:] for adapters in requests])


@identity.bug("the weights of a sum are handed to its adapters in reverse order", needs="sum")
def weights_of_a_sum_reversed() -> Ops:
    def reverse(adapters: Adapters) -> Adapters:
        return [(slot, weight) for (slot, _), (_, weight) in zip(adapters, adapters[::-1], strict=True)]

    return planning(lambda requests: [reverse(adapters) for adapters in requests])
