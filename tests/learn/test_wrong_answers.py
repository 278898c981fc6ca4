"""Wrong answers that once passed, or got the name of another mistake; and right ones that once failed."""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from refimpl import learn
from refimpl.arrays import Array
from refimpl.learn.attempt import WatchedAttempt
from refimpl.learn.grade import UNSTEADY, difference, grade
from refimpl.learn.verdict import PASSED, RAISES, WRONG

Mapping = dict[int, int]

# Chapter 2.


def patches(y: Array, x: Array, A: Any, B: Any, scale: Any, adapter_ids: Array) -> None:
    for i in range(len(A)):
        rows = np.flatnonzero(adapter_ids == i)
        y[rows] += scale[i] * (x[rows] @ A[i].T @ B[i].T)


def scale_cut_to_a_whole_number(y: Array, x: Array, A: Any, B: Any, scale: Any, adapter_ids: Array) -> None:
    patches(y, x, A, B, [int(number) for number in scale], adapter_ids)


def three_adapters_at_most(y: Array, x: Array, A: Any, B: Any, scale: Any, adapter_ids: Array) -> None:
    patches(y, x, A[:3], B, scale, adapter_ids)


def scale_into_A(y: Array, x: Array, A: Any, B: Any, scale: Any, adapter_ids: Array) -> None:
    for i in range(len(A)):
        A[i] *= scale[i]
    patches(y, x, A, B, [1.0] * len(A), adapter_ids)


def ids_crossed_out(y: Array, x: Array, A: Any, B: Any, scale: Any, adapter_ids: Array) -> None:
    patches(y, x, A, B, scale, adapter_ids)
    adapter_ids[:] = -1


def takes_them_off_the_list(y: Array, x: Array, A: Any, B: Any, scale: Any, adapter_ids: Array) -> None:
    patches(y, x, A, B, scale, adapter_ids)
    A.clear()


# Chapters 3 and 4.


def rows(per_request: Any, lengths: Sequence[int], most: int = 99) -> Array:
    k = min(most, max(1, *map(len, per_request), 0))
    return np.array([(slots + [-1] * k)[:k] for slots in per_request]).repeat(lengths, axis=0)


def rows_of_floats(per_request: Any, lengths: Any) -> Array:
    return rows(per_request, lengths).astype(float)


def two_columns_at_most(per_request: Any, lengths: Any) -> Array:
    return rows(per_request, lengths, 2)


def fills_the_lists_up(per_request: Any, lengths: Any) -> Any:
    k = max(1, *map(len, per_request), 0)
    for slots in per_request:
        slots.extend([-1] * (k - len(slots)))
    return np.repeat(per_request, lengths, axis=0)


def slots(block_tables: Array, positions: Array, query_starts: Array, block_size: int) -> Array:
    request = np.repeat(np.arange(len(block_tables)), np.diff(query_starts))
    return block_tables[request, positions // block_size] * block_size + positions % block_size


def slots_as_floats(block_tables: Array, positions: Array, query_starts: Array, block_size: int) -> Array:
    return slots(block_tables, positions, query_starts, block_size) * 1.0


def positions_reduced(block_tables: Array, positions: Array, query_starts: Array, block_size: int) -> Array:
    result = slots(block_tables, positions, query_starts, block_size)
    positions %= block_size
    return result


def slots_in_sixteen_bits(block_tables: Array, positions: Array, query_starts: Array, block_size: int) -> Array:
    return slots(block_tables, positions, query_starts, block_size).astype(np.int16)


def three_requests_at_most(block_tables: Array, positions: Array, query_starts: Array, block_size: int) -> Array:
    return slots(block_tables[[0, 1, 2][: len(block_tables)]], positions, query_starts[:4], block_size)


# Chapters 5 and 7.


def greedy(missing: Sequence[int], budget: int) -> list[int]:
    return [min(n, max(0, budget - sum(missing[:i]))) for i, n in enumerate(missing)]


def chunks_of_512_at_most(missing: Sequence[int], budget: int) -> list[int]:
    return [min(n, 512) for n in greedy(missing, budget)]


def eight_requests_at_most(missing: Sequence[int], budget: int) -> list[int]:
    return greedy(missing[:8], budget) + [0] * (len(missing) - 8)


def least_recent(last_used: Mapping, ref_counts: Mapping, never: float = math.inf) -> int | None:
    victim = None
    for slot, time in last_used.items():
        if not ref_counts.get(slot) and time < never:
            victim, never = slot, time
    return victim


def a_thousand_is_never(last_used: Mapping, ref_counts: Mapping) -> int | None:
    return least_recent(last_used, ref_counts, 1000)


def slot_as_a_float(last_used: Mapping, ref_counts: Mapping) -> float | None:
    slot = least_recent(last_used, ref_counts)
    return slot if slot is None else float(slot)


def says_that_it_was_used(last_used: Mapping, ref_counts: Mapping) -> int | None:
    slot = least_recent(last_used, ref_counts)
    if slot is not None:
        last_used[slot] = max(last_used.values()) + 1
    return slot


# Chapter 6.


def key_of(*parts: Any) -> bytes:
    return hashlib.sha256(repr(parts).encode()).digest()


def key_without_precision(parent: Any, token_ids: Any, base: Any, p: Any, adapters: Any) -> bytes:
    return key_of(parent, token_ids, base, adapters)


def key_is_a_list(parent: Any, token_ids: Any, base: Any, p: Any, adapters: Any) -> list[Any]:
    return [parent, token_ids, base, p, adapters]


def key_is_a_text(parent: Any, token_ids: Any, base: Any, p: Any, adapters: Any) -> str:
    return key_of(parent, token_ids, base, p, adapters).hex()


def weights_as_whole_numbers(parent: Any, token_ids: Any, base: Any, p: Any, adapters: Any) -> bytes:
    return key_of(parent, token_ids, base, p, [(digest, int(weight)) for digest, weight in adapters])


def weights_to_two_places(parent: Any, token_ids: Any, base: Any, p: Any, adapters: Any) -> bytes:
    return key_of(parent, token_ids, base, p, [(digest, round(weight, 2)) for digest, weight in adapters])


def ids_in_sixteen_bits(parent: Any, token_ids: Any, base: Any, p: Any, adapters: Any) -> bytes:
    return key_of(parent, [token % 2**16 for token in token_ids], base, p, adapters)


def digests_cut(parent: Any, token_ids: Any, base: Any, p: Any, adapters: Any) -> bytes:
    return key_of(parent, token_ids, base, p, [(digest[:8], weight) for digest, weight in adapters])


def base_cut(parent: Any, token_ids: Any, base: Any, p: Any, adapters: Any) -> bytes:
    return key_of(parent, token_ids, base[-8:], p, adapters)


def sum_of_the_weights(parent: Any, token_ids: Any, base: Any, p: Any, adapters: Any) -> bytes:
    weights = sum(weight for _, weight in adapters)
    return key_of(parent, token_ids, base, p, sorted(digest for digest, _ in adapters), weights)


def two_adapters_at_most(parent: Any, token_ids: Any, base: Any, p: Any, adapters: Any) -> bytes:
    return key_of(parent, token_ids, base, p, adapters[:2])


# Chapters 8, 9 and 11.


def in_segments(adapter_ids: Array, size: int) -> tuple[list[int], list[int]]:
    tokens, starts = [], [0]
    for adapter in sorted(set(adapter_ids.tolist()) - {-1}):
        run = np.flatnonzero(adapter_ids == adapter).tolist()
        for i in range(0, len(run), size):
            tokens += run[i : i + size]
            starts.append(len(tokens))
    return tokens, starts


def rows_that_are_no_numbers(adapter_ids: Array, size: int) -> Any:
    tokens, starts = in_segments(adapter_ids, size)
    return np.array(tokens) + 0.4, [str(start) for start in starts]


def three_adapters_in_all(adapter_ids: Array, size: int) -> Any:
    return in_segments(np.where(adapter_ids > 2, -1, adapter_ids), size)


def four_bits(x: Array, q: Array, steps: Array, A: Array, B: Array, scale: float) -> Array:
    W = q * np.repeat(steps, q.shape[1] // steps.shape[1], axis=1)
    return x @ W.T + scale * (x @ A.T) @ B.T


def steps_as_whole_numbers(x: Array, q: Array, steps: Array, A: Array, B: Array, scale: float) -> Array:
    return four_bits(x, q, steps.astype(int), A, B, scale)


def codes_of_the_first_row(x: Array, q: Array, steps: Array, A: Array, B: Array, scale: float) -> Array:
    return four_bits(x, np.tile(q[:1], (len(q), 1)), steps, A, B, scale)


def codes_of_the_first_group(x: Array, q: Array, steps: Array, A: Array, B: Array, scale: float) -> Array:
    first = q[:, : q.shape[1] // steps.shape[1]]
    return four_bits(x, np.tile(first, (1, steps.shape[1])), steps, A, B, scale)


def scale_into_B(x: Array, q: Array, steps: Array, A: Array, B: Array, scale: float) -> Array:
    B *= scale
    return four_bits(x, q, steps, A, B, 1.0)


def scale_into_dy(x: Array, A: Array, B: Array, scale: float, dy: Array) -> Any:
    dy *= scale
    return (dy @ B).T @ x, dy.T @ (x @ A.T), dy @ B @ A


def A_taken_away(A: Array, B: Array, split: str, ranks: int) -> Any:
    parts = [(A, part) for part in np.split(B, ranks)]
    if split == "in":
        parts = [(part.copy(), B) for part in np.split(A, ranks, axis=1)]
        A[:] = 0
    return parts


ONCE_PASSED = {
    "ch02_lora_delta": [
        *(scale_cut_to_a_whole_number, three_adapters_at_most, scale_into_A, ids_crossed_out, takes_them_off_the_list),
    ],
    "ch03_adapter_rows": [rows_of_floats, two_columns_at_most, fills_the_lists_up],
    "ch04_slots": [slots_as_floats, positions_reduced, slots_in_sixteen_bits, three_requests_at_most],
    "ch05_schedule": [chunks_of_512_at_most, eight_requests_at_most],
    "ch06_prefix_key": [
        *(key_without_precision, key_is_a_list, key_is_a_text, weights_as_whole_numbers, weights_to_two_places),
        *(ids_in_sixteen_bits, digests_cut, base_cut, sum_of_the_weights, two_adapters_at_most),
    ],
    "ch07_select_victim": [a_thousand_is_never, slot_as_a_float],
    "ch08_segments": [rows_that_are_no_numbers, three_adapters_in_all],
    "ch09_linear_q4": [steps_as_whole_numbers, codes_of_the_first_row, codes_of_the_first_group, scale_into_B],
    "ch10_shard": [A_taken_away],
    "ch11_backward": [scale_into_dy],
}
PAIRS = [(name, function) for name, functions in ONCE_PASSED.items() for function in functions]


@pytest.mark.parametrize(("name", "function"), PAIRS, ids=[f"{name}-{function.__name__}" for name, function in PAIRS])
def test_it_fails_on_a_fixed_case(name: str, function: Callable[..., Any]) -> None:
    exercise = learn.load(name)
    attempt = WatchedAttempt(function, exercise.in_place)
    assert any(difference(exercise, attempt, case) for case in exercise.fixed)


def yields_rows(x: Array, W: Array, A: Array, B: Array, alpha: float, use_rslora: bool) -> Iterator[Array]:
    scale = alpha / (math.sqrt(len(A)) if use_rslora else len(A))
    for row in x:
        yield W @ row + scale * (B @ (A @ row))


def yields_slots(tables: Array, places: Array, starts: Array, size: int) -> Iterator[int]:
    yield from slots(tables, places, starts, size)


def yields_rows_and_starts(ids: Array, most: int) -> Iterator[Any]:
    yield from in_segments(ids, most)


def zips_parts(A: Array, B: Array, split: str, ranks: int) -> Any:
    return zip([A] * ranks, np.split(B, ranks)) if split == "out" else zip(np.split(A, ranks, axis=1), [B] * ranks)  # noqa: B905


def names_of_its_own(one: Array, two: Array, three: Array, four: float, five: Array) -> Any:
    return scale_into_dy(one, two, three, four, five.copy())


def names_of_its_own_too(*parts: Any) -> Array:
    return four_bits(*parts)


ONCE_FAILED = {
    "ch01_linear": yields_rows,
    "ch04_slots": yields_slots,
    "ch07_select_victim": functools.partial(least_recent, never=math.inf),
    "ch08_segments": yields_rows_and_starts,
    "ch09_linear_q4": names_of_its_own_too,
    "ch10_shard": zips_parts,
    "ch11_backward": names_of_its_own,
}


@pytest.mark.parametrize("name", ONCE_FAILED)
def test_what_is_right_passes_whatever_its_form(name: str) -> None:
    exercise = dataclasses.replace(learn.load(name), examples=5)
    verdict = grade(exercise, ONCE_FAILED[name])
    assert verdict.outcome == PASSED, verdict.text()


def test_the_argument_that_was_changed_is_named_as_the_learner_names_it() -> None:
    verdict = grade(learn.load("ch02_lora_delta"), scale_into_A)
    assert verdict.outcome == WRONG and not verdict.mistake
    assert "right, but A is not what it was before" in verdict.lines[-1]


def test_what_is_right_in_fewer_digits_or_complex_is_reported_so() -> None:
    for dtype, says in (("float32", "rounded to fewer digits"), ("float16", "to fewer digits"), (complex, "complex")):

        def narrow(*arguments: Any, dtype: Any = dtype) -> Array:
            return np.array(list(yields_rows(*arguments))).astype(dtype)

        verdict = grade(learn.load("ch01_linear"), narrow)
        assert (verdict.outcome, verdict.mistake) == (WRONG, "") and says in verdict.lines[-1]


def test_parts_that_fit_nowhere_get_no_name_of_others_that_do_not() -> None:
    def whole_inputs(A: Array, B: Array, split: str, ranks: int) -> Any:
        return [(A, part) for part in np.split(B, ranks)] if split == "out" else [(A, B)] * ranks

    verdict = grade(learn.load("ch10_shard"), whole_inputs)
    assert (verdict.outcome, verdict.mistake) == (WRONG, "") and "gets 1 inputs" in verdict.lines[-1]


def test_another_change_of_the_tables_is_not_called_emptying_the_slot() -> None:
    verdict = grade(learn.load("ch07_select_victim"), says_that_it_was_used)
    assert verdict.outcome == WRONG and verdict.mistake == "" and "tables are not what they were" in verdict.lines[-1]


def test_what_remembers_an_earlier_call_gets_no_name() -> None:
    patched: set[int] = set()

    def each_adapter_once(y: Array, x: Array, A: Any, B: Any, scale: Any, adapter_ids: Array) -> None:
        new = [i for i in range(len(A)) if i not in patched]
        patched.update(new)
        patches(y, x, A, B, scale, np.where(np.isin(adapter_ids, new), adapter_ids, -1))

    verdict = grade(learn.load("ch02_lora_delta"), each_adapter_once)
    assert (verdict.outcome, verdict.mistake, verdict.lines) == (WRONG, "", [UNSTEADY])


def test_what_is_no_plain_function_has_its_line_as_well() -> None:
    class Raises:
        def __call__(self, last_used: Mapping, ref_counts: Mapping) -> None:
            raise KeyError("inside")

    class Silent(Exception):
        def __str__(self) -> str:
            raise ValueError("no text")

    def silent(last_used: Mapping, ref_counts: Mapping) -> None:
        raise Silent

    line = Raises.__call__.__code__.co_firstlineno + 1
    for function in (Raises(), functools.partial(Raises())):
        verdict = grade(learn.load("ch07_select_victim"), function)
        assert verdict.outcome == RAISES and f"KeyError: 'inside' (line {line} of" in verdict.lines[-1]
    assert grade(learn.load("ch07_select_victim"), divmod).outcome == RAISES  # in C: there is no line
    assert "raises Silent:" in grade(learn.load("ch07_select_victim"), silent).lines[-1]


LEAKS = "def prefix_key(parent, token_ids, base, p, adapters):\n    return repr((parent, token_ids, base)).encode()\n"


def test_two_parts_that_are_missing_are_a_mistake_of_their_own() -> None:
    namespace: dict[str, Any] = {}
    exec(LEAKS, namespace)
    assert grade(learn.load("ch06_prefix_key"), namespace["prefix_key"]).mistake == "without_adapter_and_precision"
