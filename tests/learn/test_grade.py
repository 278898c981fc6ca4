"""What a learner does besides thinking wrongly: prints, loops, raises, returns what should have been changed."""

import contextlib
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from refimpl.learn.exercise import Exercise, Mistake
from refimpl.learn.grade import grade
from refimpl.learn.numbers import Primes, columns, plain
from refimpl.learn.verdict import NOT_ATTEMPTED, PASSED, RAISES, TOO_SLOW, WRONG


def result(function: Any, length: int) -> list[float]:
    y = Primes()(length)
    function(y)
    return [float(value) for value in y]


def difference(function: Any, length: int) -> str:
    expected = [2 * value for value in Primes()(length)]
    return "" if result(function, length) == expected else f"{length} numbers: not doubled"


def minus_one(y: np.ndarray) -> None:
    y *= -1


def first_only(y: np.ndarray) -> None:
    y[:1] *= 2


DOUBLE = Exercise(
    name="double",
    title="",
    chapter="",
    opens=(),
    minutes=1,
    hints=(),
    function="double",
    cases=st.integers(0, 5),
    difference=difference,
    describe=lambda function, length: [f"yours {plain(result(function, length))}"],
    behaviour=lambda function, length: tuple(result(function, length)),
    fixed=[1, 2],
    mistakes=[Mistake("minus_one", "that is the negative.", minus_one), Mistake("first_only", "all.", first_only)],
    in_place=True,
)


def right(y: np.ndarray) -> None:
    y *= 2


def test_right() -> None:
    verdict = grade(DOUBLE, right)
    assert verdict.outcome == PASSED and verdict.cases >= 6 and "passed" in verdict.text()


def test_a_known_mistake_has_its_name_and_the_smallest_case() -> None:
    verdict = grade(DOUBLE, lambda y: y.__imul__(-1) is None)
    assert (verdict.outcome, verdict.lines[0]) == (WRONG, "yours [-2]")
    assert verdict.mistake == "minus_one" and "that is the negative." in verdict.text()


def test_another_mistake_has_no_name() -> None:
    verdict = grade(DOUBLE, lambda y: y.__iadd__(1) is None)
    assert verdict.outcome == WRONG and verdict.mistake == ""


def test_a_mistake_that_chance_would_pass_is_met_in_a_fixed_case() -> None:
    def only_of_one(y: np.ndarray) -> None:
        y *= 2 if len(y) != 7 else 1

    assert grade(DOUBLE, only_of_one).outcome == PASSED
    exercise = Exercise(**{**vars(DOUBLE), "fixed": [7]})
    verdict = grade(exercise, only_of_one)
    assert verdict.outcome == WRONG and "7 numbers" in verdict.lines[-1]


def test_not_attempted() -> None:
    def stub(y: np.ndarray) -> None:
        raise NotImplementedError

    assert grade(DOUBLE, stub).outcome == NOT_ATTEMPTED


def test_returned_instead_of_changed() -> None:
    verdict = grade(DOUBLE, lambda y: y * 2)
    assert verdict.outcome == WRONG and "changes that in place" in verdict.text() and not verdict.mistake


def test_it_raises_and_the_line_is_said() -> None:
    def raises(y: np.ndarray) -> None:
        y *= 2
        y.missing  # noqa: B018

    verdict = grade(DOUBLE, raises)
    line = raises.__code__.co_firstlineno + 2
    assert verdict.outcome == RAISES and "AttributeError" in verdict.text() and f"line {line} of" in verdict.text()


def test_what_it_prints_is_kept_short_and_not_printed(capsys: Any) -> None:
    def talks(y: np.ndarray) -> None:
        print("shape", y.shape, "x" * 1000)
        y *= 2

    verdict = grade(DOUBLE, talks)
    assert verdict.outcome == PASSED and verdict.printed.startswith("shape (") and len(verdict.printed) == 200
    assert capsys.readouterr().out == "" and "Your function prints" in verdict.text()


def test_an_endless_loop() -> None:
    def loop(y: np.ndarray) -> None:
        while True:
            pass

    verdict = grade(DOUBLE, loop, limit=0.3)
    assert verdict.outcome == TOO_SLOW and "loop" in verdict.text()
    time.sleep(0.4)  # nothing comes later


def test_one_call_has_a_limit_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def loop(y: np.ndarray) -> None:
        while True:
            pass

    monkeypatch.setattr("refimpl.learn.attempt.ONE_CALL", 0.2)
    verdict = grade(DOUBLE, loop, limit=1000)
    assert verdict.outcome == TOO_SLOW and "Not done after 0 s" in verdict.text()


def test_a_loop_that_catches_the_first_interrupt_is_interrupted_again() -> None:
    def stubborn(y: np.ndarray) -> None:
        with contextlib.suppress(BaseException):
            while True:
                pass
        while True:
            pass

    assert grade(DOUBLE, stubborn, limit=0.3).outcome == TOO_SLOW


def test_time_that_is_up_between_two_calls_is_seen_at_the_next() -> None:
    def slow_difference(function: Any, length: int) -> str:
        time.sleep(0.1)  # where the grader works nothing is interrupted
        return difference(function, length)

    exercise = Exercise(**{**vars(DOUBLE), "difference": slow_difference})
    assert grade(exercise, right, limit=0.25).outcome == TOO_SLOW


def test_a_score_is_said_of_what_passes() -> None:
    exercise = Exercise(**{**vars(DOUBLE), "summary": lambda function: [f"1 becomes {result(function, 1)[0] / 2:g}"]})
    verdict = grade(exercise, right)
    assert verdict.lines == ["1 becomes 2"] and verdict.text() == "double: passed\n  1 becomes 2"
    assert grade(exercise, minus_one).lines[0] == "yours [-2]"


def test_a_slow_end_is_no_interrupt_afterwards() -> None:
    for _ in range(20):
        grade(DOUBLE, right, limit=0.05)
    time.sleep(0.1)


def test_what_keeps_something_between_calls_is_reported_so() -> None:
    calls = []

    def at_the_third_call(y: np.ndarray) -> None:
        calls.append(y)
        y *= 2 if len(calls) != 3 else 1

    verdict = grade(DOUBLE, at_the_third_call)
    assert verdict.outcome == WRONG and "Called twice with the same arguments" in verdict.lines[-1]

    def at_every_second(y: np.ndarray) -> None:
        calls.append(y)
        y *= 2 - len(calls) % 2

    verdict = grade(DOUBLE, at_every_second)
    assert verdict.outcome == WRONG and "Called twice with the same arguments" in verdict.lines[-1]


def test_primes_and_columns() -> None:
    primes = Primes()
    assert primes((2, 3)).tolist() == [[2, 3, 5], [7, 11, 13]] and primes(2).tolist() == [17, 19]
    assert primes() == 23 and plain(np.array([[1.0, 2.5]])) == "[[1, 2.5]]"
    assert columns([{"a": 1, "b": "xx"}, {"a": 100}]) == ["1    xx", "100"]
