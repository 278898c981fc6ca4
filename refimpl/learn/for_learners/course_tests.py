"""One test for each exercise, for pytest and a classroom that counts tests; graded as `loracle learn check` does."""

from pathlib import Path

import pytest

from loracle.learn import Exercise, exercises
from loracle.learn.grade_file import grade_file


@pytest.mark.parametrize("exercise", exercises(), ids=lambda exercise: exercise.name)
def test_exercise(exercise: Exercise) -> None:
    verdict = grade_file(exercise, Path(__file__).parent / f"{exercise.name}.py")
    if not verdict.passed:
        pytest.fail(verdict.text(), pytrace=False)
