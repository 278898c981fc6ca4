"""The pages of TensorRT-LLM's LoRA cache: worked examples, and what must hold of every layout."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl import LoracleError
from refimpl.tensorrt_llm.pages import PageShape, Row, page_count, page_shape, pages_for, placements

# module id -> widths: q, k and v of a model with 4 query heads for one key head
WIDTHS = {1: (16, 16), 2: (16, 4), 3: (16, 4)}

rows = st.lists(st.tuples(st.sampled_from([1, 2, 3]), st.integers(0, 3), st.integers(1, 9)), max_size=12)


def test_the_shape_by_hand() -> None:
    """The narrowest module is 20 wide; q, 32 wide, needs two slots for each rank: (2 + 1 + 1) * 8 a layer. A small
    model's page is as large as its widest row at the largest rank: 64 * 32 / 20 slots."""
    assert page_shape(WIDTHS, layers=4) == PageShape(20, 4 * (2 + 1 + 1) * 8)
    assert page_shape(WIDTHS, layers=1) == PageShape(20, 103)


def test_a_row_never_reaches_over_the_end_of_a_page() -> None:
    """Rank 3 in q is 96 numbers, five slots of 20; rank 2 in k is two. Of ten slots a page, or seven, the second q
    begins a new one, and leaves three of them empty, or none."""
    adapter = [(1, 0, 3), (2, 0, 2), (1, 1, 3), (2, 1, 2)]
    for shape in (PageShape(20, 10), PageShape(20, 7)):
        assert placements(adapter, WIDTHS, shape) == [(0, 0, 5), (0, 5, 2), (1, 0, 5), (1, 5, 2)]
        assert pages_for(adapter, WIDTHS, shape) == 2
        assert pages_for([], WIDTHS, shape) == 1


@given(rows=rows, layers=st.integers(1, 4))
def test_every_layout(rows: list[Row], layers: int) -> None:
    shape = page_shape(WIDTHS, layers, optimal_rank=2, max_rank=9)
    taken = set()
    for (module, _, rank), (page, slot, count) in zip(rows, placements(rows, WIDTHS, shape), strict=True):
        numbers = rank * sum(WIDTHS[module])
        assert (count - 1) * shape.slot_width < numbers <= count * shape.slot_width
        assert slot + count <= shape.slots_per_page and page < pages_for(rows, WIDTHS, shape)
        mine = {(page, s) for s in range(slot, slot + count)}
        assert not mine & taken, "two rows in one slot"
        taken |= mine
    assert {page for page, _ in taken} == set(range(pages_for(rows, WIDTHS, shape) if rows else 0)), "an empty page"


def test_a_cache_that_is_too_small_is_refused_in_its_words() -> None:
    """One adapter of rank 64 in all modules of four layers: 64 * 4 * 72 numbers, 922 slots of 20, in float16."""
    shape = page_shape(WIDTHS, layers=4)
    assert page_count("host", 922 * 40, 2, WIDTHS, 4, shape) == 8  # pages of 128 slots
    with pytest.raises(
        LoracleError,
        match="Not enough space allocated to device LoRA cache to hold 1 max sized LoRA 921 < 922",
    ):
        page_count("device", 922 * 40 - 1, 2, WIDTHS, 4, shape)
