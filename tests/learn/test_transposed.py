"""An answer that is the transpose of the right one is told so, in every exercise whose answer is matrices."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refimpl import learn
from refimpl.learn.grade import grade
from refimpl.learn.transposed import ALL, PART, PARTS, is_matrix, transposed_part
from refimpl.learn.verdict import WRONG

SOLUTIONS = Path(__file__).parents[2] / "teacher" / "solutions"
TRANSPOSES = ("columns_for_rows",)  # the known mistakes that are one in a fixed case

TURNS: list[tuple[str, Callable[[Any], Any], str]] = [
    ("ch01_linear", lambda y: y.T, ALL),
    ("ch01_linear", lambda y: y.T.tolist(), ALL),
    ("ch03_adapter_rows", lambda rows: np.asarray(rows).T, ALL),
    ("ch09_linear_q4", lambda y: y.T, ALL),
    ("ch10_shard", lambda parts: [(A.T, B.T) for A, B in parts], PARTS),
    ("ch11_backward", lambda parts: (parts[0], parts[1].T, parts[2]), PART.format(2)),
    ("ch11_backward", lambda parts: tuple(part.T for part in parts), PARTS),
]


def solution(name: str) -> Callable[..., Any]:
    function: Callable[..., Any] = runpy.run_path(str(SOLUTIONS / f"{name}.py"))[exercise(name).function]
    return function


def exercise(name: str) -> Any:
    return next(each for each in learn.exercises() if each.name == name)


@pytest.mark.parametrize("name, turn, sentence", TURNS)
def test_the_transpose_of_the_right_answer_is_reported_so(name: str, turn: Callable[[Any], Any], sentence: str) -> None:
    right = solution(name)
    verdict = grade(exercise(name), lambda *args: turn(right(*args)))
    assert verdict.outcome == WRONG and verdict.lines[-1].endswith(" " + sentence), verdict.text()


def test_the_formula_as_paper_has_it_is_reported_so() -> None:
    def on_paper(x: Any, W: Any, A: Any, B: Any, alpha: float, use_rslora: bool) -> Any:
        scale = alpha / np.sqrt(len(A)) if use_rslora else alpha / len(A)
        return W @ x + scale * (B @ (A @ x))

    verdict = grade(exercise("ch01_linear"), on_paper)
    assert verdict.outcome == WRONG and verdict.lines[-1].endswith(ALL), verdict.text()


@pytest.mark.parametrize("name", ["ch01_linear", "ch03_adapter_rows", "ch09_linear_q4", "ch10_shard", "ch11_backward"])
def test_what_is_wrong_otherwise_is_not_called_transposed(name: str) -> None:
    of = exercise(name)
    for mistake in of.mistakes:
        said = [transposed_part(of, mistake.function, case) for case in of.fixed if wrong(of, mistake.function, case)]
        assert any(said) == (mistake.name in TRANSPOSES), (mistake.name, said)


def wrong(of: Any, function: Any, case: Any) -> bool:
    try:
        return bool(of.difference(function, case))
    except Exception:
        return False  # it raises: nothing could be transposed


@pytest.mark.parametrize("value", [[1, 2], [[1], [2, 3]], [["a"]], "ab", None, [np.ones((2, 1)), np.ones((1, 2))]])
def test_what_is_no_matrix(value: Any) -> None:
    assert not is_matrix(value) and is_matrix([np.ones(2), [3, 4]])
