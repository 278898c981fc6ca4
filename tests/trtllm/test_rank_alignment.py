"""Which ranks may share a batch, against a second formulation, the reported failures, and TensorRT-LLM's own tests."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl import LoracleError
from refimpl.tensorrt_llm.rank_alignment import alignment, check_grouped, misaligned, runs_beside_any

ranks = st.lists(st.integers(0, 70), min_size=1, max_size=6)


@given(ranks=ranks)
def test_every_rank_is_a_multiple_of_the_largest_power_of_two_up_to_the_least(ranks: list[int]) -> None:
    """At most 8. Written with bits: r is a multiple of 2^n if its n lowest bits are zero."""
    active = [r for r in ranks if r]
    bits = min([3, *(r.bit_length() - 1 for r in active)])
    assert misaligned(ranks, 4096) == sorted({r for r in active if r & ((1 << bits) - 1)})
    if active:
        assert alignment(active, 4096) == 1 << bits


@pytest.mark.parametrize(
    ("together", "fails"),
    [((5, 8), [5]), ((8, 12), [12]), ((0, 5), [5]), ((0, 12), [12]), ((4, 12), []), ((1, 5, 12), []), ((0,), [])],
)
def test_known_cases(together: tuple[int, ...], fails: list[int]) -> None:
    """{5, 8} is issue #3684. A 4 in the batch makes a 12 run that would fail without it."""
    assert misaligned(together, 4096) == fails


@pytest.mark.parametrize("own", [[1], [2], [4], [2, 4], [8], [16], [8, 16], [1, 2, 4], [1, 2, 4, 8, 16]])
def test_the_ranks_of_its_own_test_run(own: list[int]) -> None:
    """test_lora.py, test_ranks, with LORA_USE_UNIFIED_GEMM=OFF and hidden size 4096."""
    check_grouped(own, 4096, [4096])


def test_who_runs_beside_any() -> None:
    """Added to a batch that runs, such a rank never breaks it; every other one breaks some, if only that of itself."""
    fine = [set(s) for n in range(3) for s in itertools.combinations(range(1, 25), n) if not misaligned(s, 4096)]
    for rank in range(1, 25):
        assert runs_beside_any(rank) == all(not misaligned({*others, rank}, 4096) for others in fine)


def test_the_message_names_both_ranks() -> None:
    with pytest.raises(
        LoracleError, match=r"rank 5 is not a multiple of 4, which the least rank of the batch, 5, asks"
    ):
        check_grouped([5, 8], 4096)
    with pytest.raises(
        LoracleError, match=r"rank 12 is not a multiple of 8, which the least rank of the batch, 8, asks"
    ):
        check_grouped([12, 0, 8], 4096)
    with pytest.raises(LoracleError, match="d_in 4100 is not a multiple of 8"):
        check_grouped([8], 4100)
    with pytest.raises(LoracleError, match="d_out 100 is not a multiple of 8"):
        check_grouped([8], 4096, [4096, 100])
    check_grouped([0], 4100)  # the base alone: no LoRA product at all
