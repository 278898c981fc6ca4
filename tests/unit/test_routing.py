"""The choice of experts: the fast form is the definition, ties go to the lower number, groups and corrections."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.experts import mixtures

from refimpl.arrays import Precision
from refimpl.config import Groups, Moe
from refimpl.plans import LoraMapping
from refimpl.routing import expert_sum, expert_sum_per_token, margin, route, route_per_token

P64 = Precision("model", "float64")


@st.composite
def router_outputs(draw: st.DrawFn) -> tuple[Moe, np.ndarray, np.ndarray | None]:
    """A mixture, logits of some tokens, often with ties, and a correction or none."""
    moe = draw(mixtures())
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    logits = rng.standard_normal((draw(st.integers(1, 5)), moe.experts)) * draw(st.sampled_from([1.0, 30.0, 800.0]))
    if draw(st.booleans()):
        logits = np.round(logits)
    return moe, logits, draw(st.sampled_from([None, rng.standard_normal(moe.experts)]))


@given(router_outputs())
def test_the_fast_form_is_the_definition(example: tuple[Moe, np.ndarray, np.ndarray | None]) -> None:
    moe, logits, correction = example
    ids, weights = route(logits, correction, moe, P64)
    slow_ids, slow_weights = route_per_token(logits, correction, moe, P64)
    np.testing.assert_array_equal(ids, slow_ids)
    np.testing.assert_allclose(weights, slow_weights, rtol=1e-14)
    assert all(len(set(row)) == moe.top_k for row in ids.tolist())


@pytest.mark.parametrize("form", [route, route_per_token])
def test_of_equals_the_lower_number_is_chosen(form: object) -> None:
    ids, weights = form(np.zeros((2, 5)), None, Moe(5, 3, 1, renormalise=True), P64)  # type: ignore[operator]
    np.testing.assert_array_equal(ids, [[0, 1, 2]] * 2)
    np.testing.assert_allclose(weights, 1 / 3)


@pytest.mark.parametrize("form", [route, route_per_token])
def test_a_correction_changes_the_choice_and_no_weight(form: object) -> None:
    logits, moe = np.array([[2.0, 1.0, 0.0]]), Moe(3, 1, 1, "sigmoid")
    ids, weights = form(logits, np.array([0.0, 0.0, 9.0]), moe, P64)  # type: ignore[operator]
    assert ids.tolist() == [[2]]
    np.testing.assert_allclose(weights, 0.5)


@pytest.mark.parametrize("form", [route, route_per_token])
@pytest.mark.parametrize(("best", "expected"), [(1, [0, 1]), (2, [2, 3])])
def test_a_group_is_as_good_as_its_best_or_as_its_two_best(form: object, best: int, expected: list[int]) -> None:
    """DeepSeek V2's rule takes the group of the best expert, V3's that of the two best together."""
    moe = Moe(4, 2, 1, "softmax_of_chosen", groups=Groups(2, 1, best))
    ids, _ = form(np.array([[5.0, -9.0, 4.0, 3.0]]), None, moe, P64)  # type: ignore[operator]
    assert sorted(ids[0].tolist()) == expected


def test_what_is_softmaxed_is_all_or_the_chosen() -> None:
    logits = np.log(np.array([[1.0, 2.0, 3.0, 4.0]]))
    of_all = route(logits, None, Moe(4, 2, 1), P64)[1]
    np.testing.assert_allclose(of_all, [[0.4, 0.3]])
    renormalised = route(logits, None, Moe(4, 2, 1, renormalise=True), P64)[1]
    of_chosen = route(logits, None, Moe(4, 2, 1, "softmax_of_chosen"), P64)[1]
    np.testing.assert_allclose(renormalised, [[4 / 7, 3 / 7]])
    np.testing.assert_allclose(of_chosen, renormalised)


def test_the_margin_of_a_choice() -> None:
    logits = np.log(np.array([[4.0, 3.0, 2.0, 1.0], [1.0, 1.0, 1.0, 1.0]]))
    np.testing.assert_allclose(margin(logits, None, Moe(4, 2, 1)), [0.1, 0.0])
    assert np.isinf(margin(logits, None, Moe(4, 4, 1))).all()


def test_two_groups_may_tie_where_no_experts_do() -> None:
    moe = Moe(4, 1, 1, "softmax_of_chosen", groups=Groups(2, 1, 2))
    np.testing.assert_allclose(margin(np.array([[5.0, 0.0, 4.0, 1.0], [5.0, 0.0, 4.0, 0.5]]), None, moe), [0.0, 0.5])


@given(router_outputs(), st.integers(0, 99))
def test_no_smaller_change_of_the_scores_changes_the_choice(
    example: tuple[Moe, np.ndarray, np.ndarray | None], seed: int
) -> None:
    """A score may fall and another rise, those of a group together."""
    moe, logits, correction = example
    correction = np.zeros(moe.experts) if correction is None else correction
    change = np.random.default_rng(seed).choice([-0.49, 0.49], moe.experts) / (moe.groups.best if moe.groups else 1)
    margins = margin(logits, correction, moe)
    chosen = np.sort(route(logits, correction, moe, P64)[0])
    for i in np.flatnonzero(margins > 1e-9):
        moved = correction + change * min(margins[i], 1.0)
        np.testing.assert_array_equal(np.sort(route(logits, moved, moe, P64)[0])[i], chosen[i])


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 99), st.sampled_from(["float64", "bfloat16"]))
def test_expert_sum_is_its_definition(tokens: int, chosen: int, seed: int, dtype: str) -> None:
    rng, p = np.random.default_rng(seed), Precision("model", dtype)
    rows = np.sort(rng.permutation(tokens)[:chosen])
    y = rng.standard_normal((tokens, 3)).astype(p.compute)
    out = rng.standard_normal((len(rows), 3)).astype(p.compute)
    weights = rng.standard_normal(len(rows)).astype(p.compute)
    fast, slow = y.copy(), y.copy()
    expert_sum(fast, rows, out, weights, p)
    expert_sum_per_token(slow, rows, out, weights, p)
    np.testing.assert_array_equal(fast, slow)
    others = np.setdiff1d(np.arange(tokens), rows)
    np.testing.assert_array_equal(fast[others], y[others])


@given(st.lists(st.integers(-1, 3), min_size=1, max_size=8), st.integers(0, 99))
def test_the_mapping_of_some_rows(ids: list[int], seed: int) -> None:
    """What an expert sees: the adapters of its rows, counted anew."""
    rng = np.random.default_rng(seed)
    adapters = np.asarray(ids, np.int32)[:, None]
    weights = rng.integers(1, 3, adapters.shape).astype(float)
    mapping = LoraMapping.of(adapters, weights)
    rows = np.sort(rng.permutation(len(ids))[: int(rng.integers(1, len(ids) + 1))])
    part = mapping.of_rows(rows)
    np.testing.assert_array_equal(part.adapter_ids, adapters[rows])
    assert part.slots == {slot for slot in adapters[rows, 0].tolist() if slot != -1}
    for column in part.columns:
        for segment in column.segments:
            np.testing.assert_array_equal(adapters[rows][segment.rows], segment.slot)
            np.testing.assert_array_equal(weights[rows][segment.rows], segment.weight)
