"""Of the causes that explain some requests, the one that says all of them in the fewest bits; and when none is said."""

import dataclasses
import time
from collections.abc import Sequence

import numpy as np
import pytest
from support.testbed import small_testbed

from refimpl.engines.interface import EngineRequest, EngineResponse
from refimpl.oracle.cases.case import Case, Exchange, Load, Run, Unload
from refimpl.oracle.causes.condition import Fact, condition
from refimpl.oracle.causes.exact import ExactFit
from refimpl.oracle.causes.facts import facts_of
from refimpl.oracle.causes.find import Cause, common_value
from refimpl.oracle.causes.grade import Grade, same_for_each_adapter
from refimpl.oracle.causes.history import history
from refimpl.oracle.causes.mix_up import Source, product
from refimpl.oracle.causes.pursuit import Atom
from refimpl.oracle.causes.regions import token_regions
from refimpl.oracle.causes.relations import relations
from refimpl.oracle.causes.row_sources import order_of
from refimpl.oracle.causes.rule import Rule
from refimpl.oracle.causes.statement import CauseReport, Change
from refimpl.oracle.diagnosis.clock import Clock
from refimpl.oracle.fitted_cause import in_bits, is_cause
from refimpl.oracle.second_look import with_other_tokens

pytestmark = pytest.mark.filterwarnings("ignore::refimpl.errors.AdapterWarning")

LIMIT = 2.0  # x noise
LATE = Fact("it is late")


def cause_with(coefficients: Sequence[Sequence[float]], kind: str = "own", cost: float = 1.0) -> Cause:
    """Return a cause that explains a request for each row of coefficients."""
    rows = np.array(coefficients, float)
    fits = tuple(ExactFit(row, np.zeros((1, 4)), np.ones(1)) for row in rows)
    source = Source("own", "its own delta", lambda point: None, kind)
    n = rows.shape[1]
    return Cause((Atom("own", "", ""),) * n, (source,) * n, (cost,) * n, fits, (True,) * len(rows))


def graded(
    error: float, present: Sequence[bool], late: bool = True, visible: Sequence[bool] | None = None, key: str = "a"
) -> Grade:
    """Return a request that a cause explains if it has one of its changes, and that is right if it has none."""
    failed = any(present)
    values = -np.array(present, float)
    shown = tuple(present) if visible is None else tuple(visible)
    return Grade(("case", 0, 0), key, failed, {LATE: late}, error, 1.0, failed, values, tuple(present), shown)


def test_a_rival_that_would_show_where_requests_are_right_takes_more_bits() -> None:
    cause = cause_with([[-1.0]])
    wrong = [graded(1000, [True]) for _ in range(5)]
    everywhere = in_bits(cause, [*wrong, *(graded(1, [False], visible=[True]) for _ in range(5))])
    only_there = in_bits(cause, [*wrong, *(graded(1, [False]) for _ in range(5))])
    with_a_rule = in_bits(cause, [*wrong, *(graded(1, [False], late=False, visible=[True]) for _ in range(5))])
    assert only_there.bits < with_a_rule.bits < everywhere.bits
    assert with_a_rule.conditions[0].words == "where it is late"


def test_each_change_has_requests_and_a_condition_of_its_own() -> None:
    first = [graded(1000, [True, False], late=True, visible=[True, True]) for _ in range(4)]
    second = [graded(1000, [False, True], late=False, visible=[True, True]) for _ in range(4)]
    description = in_bits(cause_with([[-1.0, 0.0], [0.0, -1.0]]), [*first, *second])
    assert is_cause(description, LIMIT)
    assert (
        description.conditions[0].words == "where it is late" and description.conditions[1].wrong == 4
    )  # there is no other fact
    assert description.cause.common == (-1.0, -1.0)


def test_what_predicts_failures_that_are_none_is_a_cause_only_if_no_coincidence_is_left() -> None:
    cause = cause_with([[-1.0]])
    right = [graded(1, [False], visible=[True]) for _ in range(6)]
    assert not is_cause(in_bits(cause, [*right, *(graded(4 * LIMIT, [True]) for _ in range(3))]), LIMIT)
    assert is_cause(in_bits(cause, [*right, *(graded(500 * LIMIT, [True]) for _ in range(3))]), LIMIT)


def test_half_of_the_failures_and_two_of_them_must_be_explained() -> None:
    cause = cause_with([[-1.0]])
    left_over = Grade(("case", 0, 1), "a", True, {LATE: True}, 900.0, 900.0, False, np.zeros(1), (False,), (True,))
    assert not is_cause(in_bits(cause, [graded(1000, [True]), left_over, left_over, left_over]), LIMIT)
    assert is_cause(in_bits(cause, [graded(1000, [True])] * 3 + [left_over]), LIMIT)


def test_a_factor_is_the_same_in_all_requests_of_an_adapter() -> None:
    cause = cause_with([[-0.3], [0.7]])
    assert cause.common == (None,)

    def of(key: str, value: float) -> Grade:
        return Grade(("case", 0, 0), key, True, {}, 900.0, 1.0, True, np.array([value]), (True,), (True,))

    assert same_for_each_adapter(cause, [of("a", -0.3), of("a", -0.3), of("b", 0.7)], 0.02)
    assert not same_for_each_adapter(cause, [of("a", -0.3), of("a", 0.4), of("b", 0.7)], 0.02)
    assert not same_for_each_adapter(cause, [of("a", -0.3), of("b", 0.7)], 0.02)  # nobody is seen twice


def test_coefficients() -> None:
    assert common_value(np.array([-1.001, 0.0003, -0.999]), "own") == -1  # one request does not have it
    assert common_value(np.array([0.95, 1.04]), "instead") == 1  # in the noise of a half type
    assert common_value(np.array([0.5, 1.0]), "own") is None
    assert not cause_with([[0.5]], kind="instead").may_be_said and cause_with([[0.5]], kind="own").may_be_said


def test_a_known_bug_at_some_modules_is_another_bug() -> None:
    cause = cause_with([[1.0]], kind="bug")
    assert not cause.is_part_of_a_bug
    for atom in (Atom("name", "o_proj", ""), Atom("name", "", "decode steps")):
        assert dataclasses.replace(cause, atoms=(atom,)).is_part_of_a_bug
    assert not dataclasses.replace(cause_with([[1.0]]), atoms=(Atom("own", "o_proj", ""),)).is_part_of_a_bug


def test_what_came_before_a_request() -> None:
    """Uses, loads over a name, and what was thrown out since; a batch has the batches before it in its past."""
    testbed = small_testbed()
    x, y, other = list(testbed.adapters)[:3]

    def ask(*names: str) -> Run:
        return Run(tuple(EngineRequest((1, 2, 3, 4, 5), name) for name in names))

    steps = (Load("n", x), ask("n"), Load("n", y), Load("m", other), ask("m"), Unload("m"), ask("n", "n"))
    case = Case("sequence", steps, stateless=False)
    answer = EngineResponse()
    second = Exchange(EngineRequest((1, 2, 3, 4, 5), "n"), ((y, 1.0),), answer, 2, 1)
    past = history(case, second, testbed)
    assert past.used == (x, other, y) and (past.before, past.unloaded, past.loaded) == (x, other, other)
    facts = {fact.words: holds for fact, holds in facts_of(case, second, testbed).items()}
    assert facts["its name stood for another adapter before"] and facts["its adapter was used before"]
    others = relations(case, second, testbed)
    assert others["the adapter that its name stood for before"] == x
    assert others["the first request with the same first tokens"] == x

    batch = Case("batch", (ask(x),))
    exchange = Exchange(EngineRequest((1, 2, 3, 4, 5), x), ((x, 1.0),), answer, 0, 0)
    for earlier, uses, others_since in (((), 0, 0), ((x, y, None, other), 1, 2), ((y,), 0, 0)):
        past = history(batch, exchange, testbed, earlier)
        assert (past.uses(x), past.others_since(x)) == (uses, others_since)


def test_blocks_of_tokens_go_on_through_the_batch() -> None:
    regions = {region.words: list(np.flatnonzero(region.members)) for region in token_regions(12, 10, offset=5)}
    assert regions["the tokens of the prompt before the next whole 8 of the batch"] == [0, 1, 2]
    assert regions["tokens of the batch's prompts from place 8 on"] == [3, 4, 5, 6, 7, 8, 9]
    assert regions["the tokens of the prompt beyond the last whole 4"] == [8, 9]
    assert [region.words for region in token_regions(3, 2)] == [region.words for region in token_regions(12, 10, 5)]


def test_steps_are_told_apart_by_who_is_still_there() -> None:
    """A prompt of two tokens and three steps of decoding, beside one request before it of two tokens and one after it
    of three."""
    regions = {region.words: list(np.flatnonzero(region.members)) for region in token_regions(5, 2, 0, (2, -3), 1)}
    assert regions["steps of 3 requests or more"] == [0, 1, 2]
    assert regions["decode steps of 2 requests or more"] == [2, 3]
    assert regions["decode steps in which it is the last of the batch"] == [4]
    assert regions["decode steps in which it is the first of the batch"] == [3, 4]
    assert regions["those of its first tokens that were asked before"] == [0]


def test_rules_that_fit_as_well_are_kept_beside_the_best() -> None:
    late, loud, odd = Fact("it is late"), Fact("it is loud"), Fact("it is odd", 9.0)
    positive, negative = [{late: True, loud: True, odd: True}] * 3, [{late: False, loud: False, odd: False}] * 3
    rule = condition(positive, negative)
    assert (rule.words, [rival.words for rival in rule.rivals]) == ("where it is late", ["where it is loud"])


def test_a_clock_says_what_there_was_no_time_for() -> None:
    clock = Clock(60.0)
    assert not clock.is_late("a name") and clock.lines == []
    clock = Clock(60.0, end=time.monotonic() - 1)
    assert clock.is_late("a name") and clock.is_late("a name") and clock.is_late("a place")
    assert clock.lines == ["left out, for lack of time: a name, a place"]
    heard: list[str] = []
    clock = Clock(60.0, hear=heard.append)
    assert not clock.is_late("a name") and heard == ["a name"] and clock.total == 60.0


@pytest.mark.parametrize(
    ("words", "wrong", "having", "holds"),
    [("", 0, 1, True), ("it is late", 0, 2, False), ("it is late", 0, 3, True), ("it is late", 1, 4, False)],
)
def test_of_a_request_or_two_no_rule_is_learnt(words: str, wrong: int, having: int, holds: bool) -> None:
    """Nor is it one if a quarter of those in which the mistake was made do not fit it."""
    assert Rule((), (words,) if words else (), 3.0, wrong, 40, having=having).holds == holds


def ordered(name: str, width: int, head: int) -> list[int] | None:
    order = order_of(name, width, head)
    return None if order is None else list(map(int, order))


def test_orders_of_channels() -> None:
    assert ordered("neighbours swapped", 6, 2) == [1, 0, 3, 2, 5, 4]
    assert ordered("heads reversed", 6, 2) == [4, 5, 2, 3, 0, 1]
    assert ordered("heads and channels exchanged", 6, 2) == [0, 2, 4, 1, 3, 5]
    assert ordered("channels and heads exchanged", 6, 2) == [0, 3, 1, 4, 2, 5]
    assert ordered("neighbours swapped", 5, 2) is None and ordered("heads reversed", 2, 2) is None


def test_a_sentence_of_two_changes_and_of_a_tie() -> None:
    missing = Change("its own delta is missing", "own", "v_proj", "", -1.0, when="where it is late")
    twice = Change("its own delta is counted twice", "own", "k_proj", "", 1.0)
    report = CauseReport((missing, twice), 0, 4, 4, 1.2, 1.0)
    sentence = "its own delta is missing, at v_proj, where it is late; and its own delta is counted twice, at k_proj"
    assert report.sentence == sentence and report.where == ""
    tie = CauseReport((missing,), 0, 4, 4, 1.2, 1.0, ("the delta of b is added, at every module",))
    assert tie.where == "where it is late"
    assert tie.sentence.endswith("; or, which cannot be told apart here: the delta of b is added, at every module")


def test_other_tokens_leave_the_words_of_an_adapter() -> None:
    case = Case("batch", (Run((EngineRequest((3, 9, 12), "a"),)),))
    for seed in range(3):
        ids = with_other_tokens(case, 10, seed).runs[0].requests[0].prompt_ids
        assert ids[2] == 12 and max(ids[:2]) < 10


def test_a_token_that_an_adapter_has_not_gets_nothing_of_it() -> None:
    """Another adapter of the batch extends the vocabulary: its tokens have no column in the A of this one."""
    A, B = np.arange(10.0).reshape(2, 5), np.ones((3, 2))
    rows = product(np.array([1, 7, 4]), A, B, 2.0)
    assert rows.tolist() == [[2 * A[:, 1].sum()] * 3, [0.0] * 3, [2 * A[:, 4].sum()] * 3]
