"""The memory of large arrays is used again, and never while somebody has the array or a part of it."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support.testbed import small_testbed

from refimpl import memory_pool
from refimpl.memory_pool import Arena, MemoryPool, empty
from refimpl.model import logits
from refimpl.request import Request

FLOAT = np.dtype(np.float32)


def address(x: np.ndarray) -> int:
    return x.__array_interface__["data"][0]


def test_a_block_is_used_again_when_its_array_and_all_views_of_it_are_gone() -> None:
    pool = MemoryPool()
    array = pool.empty((4, 100), FLOAT)
    assert array.shape == (4, 100) and array.dtype == FLOAT and array.flags.writeable and array.flags.c_contiguous
    array[:], first, view = 7, address(array), array.T[3:].view()[:, 1:]
    del array
    other = pool.empty((4, 100), FLOAT)
    assert address(other) != first, "a view has the first"
    other[:] = 8
    assert (view == 7).all()
    del view
    assert pool.free == 1600
    again = pool.empty((400,), FLOAT)
    assert address(again) == first


def test_a_smaller_array_takes_a_block_but_not_one_of_more_than_twice_its_size() -> None:
    pool = MemoryPool()
    pool.empty((1000,), FLOAT)  # and it is gone
    less = pool.empty((499,), FLOAT)
    assert pool.free == 4000, "a block of its own"
    half = pool.empty((500,), FLOAT)
    assert pool.free == 0 and half.nbytes == 2000 and less.nbytes == 1996


def test_no_more_is_kept_than_the_pool_may_and_what_was_free_for_longest_goes_first() -> None:
    pool = MemoryPool(kept=1000)
    arrays = [pool.empty((size,), FLOAT) for size in (100, 120, 100)]
    while arrays:
        del arrays[0]
    assert pool.free == 880, "the first is gone"
    pool.empty((251,), FLOAT)  # and it is gone
    assert pool.free == 0, "1004 bytes are more than it may keep"


def test_no_two_threads_have_the_same_block() -> None:
    pool = MemoryPool(kept=1 << 16)

    def work(number: int) -> bool:
        rng, right = np.random.default_rng(number), True
        held: list[np.ndarray] = []
        for size in rng.integers(100, 1000, 500).tolist():
            held.append(pool.empty((size,), FLOAT))
            held[-1][:] = number
            right &= bool((held[rng.integers(len(held))] == number).all())
            held = held[-rng.integers(1, 9) :]
        return right

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(work, range(4)))


def test_what_is_small_is_no_business_of_the_pool() -> None:
    like = np.zeros(1, np.float64)
    assert empty((memory_pool.LARGE // 8 - 1,), like).base is None
    assert empty((memory_pool.LARGE // 8,), like).base is not None


def test_an_answer_stays_as_it_is_while_others_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With every array in the pool, a forward pass says the same, and so does what an earlier one has returned."""
    model = small_testbed().model
    requests = [Request([3, 1, 4, 1, 5, 9, 2, 6] * 12), Request([2, 7, 1, 8])]
    expected = logits(model, requests)
    monkeypatch.setattr(memory_pool, "LARGE", 1)
    monkeypatch.setattr(memory_pool, "POOL", MemoryPool())
    answers = [logits(model, requests) for _ in range(3)]
    assert memory_pool.POOL.free
    for answer in answers:
        for rows, of_request in zip(answer, expected, strict=True):
            np.testing.assert_array_equal(rows, of_request)


def test_arrays_of_an_arena_lie_side_by_side_and_none_over_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_pool, "PIECE", 1 << 12)
    arena, arrays = Arena(), []
    for i, shape in enumerate([(3, 5), (16, 4), (0, 7), (1000,), (2000,), (9,)]):
        arrays.append(arena.empty(shape, np.dtype("float64")))
        arrays[-1][...] = i
    assert all((array == i).all() for i, array in enumerate(arrays))
    assert address(arrays[1]) - address(arrays[0]) == 128, "120 bytes, and the next line of the cache"
    assert arrays[4].nbytes > memory_pool.PIECE
