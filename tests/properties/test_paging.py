"""Chunks, blocks and their places are bookkeeping: none of them shows in a logit."""

from hypothesis import given, settings
from hypothesis import strategies as st
from support.build import Case, cases
from support.serving import assert_as_if_alone, serve
from support.tables import every_table

from refimpl import Ops


def check_chunks_do_not_matter(ops: Ops, case: Case, chunk: int) -> None:
    """`chunk` tokens a step, for all requests together; 1 is token by token."""
    model, _, requests = case
    engine, ids = serve(model, requests, ops, max_batch_tokens=chunk, block_size=4, prefix_caching=False)
    assert_as_if_alone(engine, ids, requests)


def check_block_size_does_not_matter(ops: Ops, case: Case, block_size: int) -> None:
    model, _, requests = case
    engine, ids = serve(model, requests, ops, block_size=block_size, prefix_caching=False)
    assert_as_if_alone(engine, ids, requests)


def check_physical_blocks_do_not_matter(ops: Ops, case: Case, seed: int) -> None:
    """The free list is shuffled before the first request, so that nobody's blocks lie side by side."""
    model, _, requests = case
    engine, ids = serve(model, requests, ops, scramble=seed, num_blocks=80, block_size=3, prefix_caching=False)
    assert_as_if_alone(engine, ids, requests)


@every_table
@settings(max_examples=25)
@given(case=cases(), chunk=st.sampled_from([1, 1, 2, 3, 5, 8]))
def test_chunked_equals_whole_equals_token_by_token(ops: Ops, case: Case, chunk: int) -> None:
    check_chunks_do_not_matter(ops, case, chunk)


@every_table
@settings(max_examples=25)
@given(case=cases(), block_size=st.sampled_from([1, 2, 3, 5, 8, 16]))
def test_any_block_size_gives_the_same(ops: Ops, case: Case, block_size: int) -> None:
    check_block_size_does_not_matter(ops, case, block_size)


@every_table
@settings(max_examples=25)
@given(case=cases(), seed=st.integers(0, 99))
def test_any_physical_blocks_give_the_same(ops: Ops, case: Case, seed: int) -> None:
    check_physical_blocks_do_not_matter(ops, case, seed)
