"""An answer that is wrong, and right once it is transposed: the exercise's own grader is asked again."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from .exercise import Attempt, Case, Exercise
from .numbers import listed

ALL = "It is the transpose of what is expected: tokens are rows."
PART = "Number {} of what it returns is the transpose of what is expected."
PARTS = "Each matrix that it returns is the transpose of what is expected."
MOST = 8  # arrays of an answer that are turned one at a time


def transposed_part(exercise: Exercise, attempt: Attempt, case: Case) -> str:
    """Return in one sentence what of a wrong answer is only transposed, or "" where that is not what is wrong with it.

    Each matrix of the answer is turned, and the grader asked if it is right now, in this one case."""
    if exercise.in_place:
        return ""  # y has the shape that it had
    try:
        sentences = [sentence for sentence, _ in turned(attempt_once(exercise, attempt, case))]
    except Exception:
        return ""
    return next((sentence for sentence in sentences if is_right(exercise, attempt, case, sentence)), "")


def attempt_once(exercise: Exercise, attempt: Attempt, case: Case) -> Any:
    """Return what the attempt answers in the grader's first call of it."""
    answers: list[Any] = []

    def keeps(*args: Any, **kwargs: Any) -> Any:
        answers.append(listed(attempt(*args, **kwargs)))
        return answers[-1]

    exercise.difference(keeps, case)
    return answers[0]


def is_right(exercise: Exercise, attempt: Attempt, case: Case, sentence: str) -> bool:
    """Whether the grader finds nothing wrong with the answer, turned as the sentence says."""

    def turns(*args: Any, **kwargs: Any) -> Any:
        return dict(turned(listed(attempt(*args, **kwargs))))[sentence]

    try:
        return not exercise.difference(turns, case)
    except Exception:
        return False


def turned(answer: Any) -> Iterator[tuple[str, Any]]:
    """Yield the answer with its matrix transposed; or, of several arrays, with one of them, and with all."""
    if is_matrix(answer):
        yield ALL, np.asarray(answer).T
    elif isinstance(answer, list | tuple):
        for i in [i for i, part in enumerate(answer) if is_matrix(part)][:MOST]:
            yield PART.format(i + 1), [*answer[:i], np.asarray(answer[i]).T, *answer[i + 1 :]]
        yield PARTS, everywhere(answer)


def everywhere(answer: Any) -> Any:
    """Return the answer with each matrix in it transposed."""
    if isinstance(answer, np.ndarray):
        return answer.T
    return [everywhere(part) for part in answer] if isinstance(answer, list | tuple) else answer


def is_matrix(value: Any) -> bool:
    """Whether it is numbers in two axes: an array, or a list of rows."""
    if not isinstance(value, np.ndarray | list | tuple):
        return False
    try:
        array = np.asarray(value)
    except ValueError:  # rows, or arrays, of several sizes
        return False
    return array.ndim == 2 and array.dtype.kind in "biuf"
