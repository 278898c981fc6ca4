"""The exercises: the stub is not attempted, the solution passes, every known mistake fails, small and by name."""

import hashlib
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from refimpl import learn
from refimpl.learn.exercise import Exercise, Mistake
from refimpl.learn.grade import grade
from refimpl.learn.verdict import NOT_ATTEMPTED, PASSED, RAISES, WRONG
from refimpl.ops import NUMPY

COURSE = Path(learn.__file__).parent
TEACHER = Path(__file__).parents[2] / "teacher"
EXERCISES = {exercise.name: exercise for exercise in learn.exercises()}
MISTAKES = [(exercise, mistake) for exercise in EXERCISES.values() for mistake in exercise.mistakes]
MOST_NUMBERS = 16  # in the lines that show the smallest case; what is yours and what is expected included

every_exercise = pytest.mark.parametrize("exercise", EXERCISES.values(), ids=EXERCISES)


def run_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def function_in(folder: Path, exercise: Exercise) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(run_file(folder / f"{exercise.name}.py"), exercise.function)
    return function


@every_exercise
def test_the_stub_is_not_attempted(exercise: Exercise) -> None:
    assert grade(exercise, function_in(COURSE / "exercises", exercise)).outcome == NOT_ATTEMPTED


@every_exercise
def test_the_solution_passes(exercise: Exercise) -> None:
    verdict = grade(exercise, function_in(TEACHER / "solutions", exercise))
    assert verdict.outcome == PASSED, verdict.text()
    assert verdict.cases >= exercise.examples // 4 + len(exercise.fixed)


@every_exercise
def test_what_is_right_in_another_way_passes(exercise: Exercise) -> None:
    others = run_file(TEACHER / "other_right" / f"{exercise.name}.py").MUST_PASS
    assert others
    for other in others:
        verdict = grade(exercise, other)
        assert verdict.outcome == PASSED, f"{other.__name__}\n{verdict.text()}"


@pytest.mark.parametrize(
    "exercise, mistake", MISTAKES, ids=[f"{exercise.name}-{mistake.name}" for exercise, mistake in MISTAKES]
)
def test_a_known_mistake_fails_small_and_under_its_own_name(exercise: Exercise, mistake: Mistake) -> None:
    verdict = grade(exercise, mistake.function)
    assert verdict.outcome in (WRONG, RAISES), verdict.text()
    assert verdict.mistake == mistake.name, verdict.text()
    numbers = re.findall(r"-?\d+\.?\d*", " ".join(verdict.lines[:-1]))
    assert len(numbers) <= MOST_NUMBERS, verdict.text()


@every_exercise
def test_a_known_mistake_fails_on_a_fixed_case_so_that_none_passes_by_chance(exercise: Exercise) -> None:
    for mistake in exercise.mistakes:
        assert any(fails(exercise, mistake.function, case) for case in exercise.fixed), mistake.name


def fails(exercise: Exercise, function: Callable[..., Any], case: Any) -> bool:
    try:
        return bool(exercise.difference(function, case))
    except Exception:
        return True


@every_exercise
def test_it_has_mistakes_hints_minutes_a_chapter_and_a_page_for_the_teacher(exercise: Exercise) -> None:
    assert len(exercise.mistakes) >= 3 and len(exercise.hints) == 3 and 0 < exercise.minutes <= 90
    assert len({mistake.name for mistake in exercise.mistakes}) == len(exercise.mistakes)
    assert (COURSE / "chapters" / f"{exercise.chapter}.py").exists()
    assert all((COURSE.parents[1] / name).exists() for name in exercise.opens)
    page = (TEACHER / "pages" / f"{exercise.name[:4]}.md").read_text("utf-8")
    for heading in ("Goal", "Out of scope", "On the board", "Questions that come"):
        assert f"\n## {heading}\n" in page
    assert f"{exercise.minutes} minutes" in page


@every_exercise
def test_the_solution_goes_into_the_engine(exercise: Exercise) -> None:
    if exercise.as_ops is None:
        return
    steps = exercise.as_ops(function_in(TEACHER / "solutions", exercise))
    assert steps and set(steps) <= set(vars(NUMPY))


@every_exercise
def test_no_hint_is_the_solution(exercise: Exercise) -> None:
    source = (TEACHER / "solutions" / f"{exercise.name}.py").read_text("utf-8")
    lines = [line.strip() for line in source.splitlines() if len(line.strip()) > 20 and "def " not in line]
    texts = [*exercise.hints, *(mistake.says for mistake in exercise.mistakes)]
    assert [line for line in lines for text in texts if line in text] == []


@pytest.mark.parametrize("name", [name for name, exercise in EXERCISES.items() if not exercise.in_place])
def test_a_forgotten_return_is_a_sentence_and_no_exception(name: str) -> None:
    verdict = grade(EXERCISES[name], lambda *arguments, **more: None)
    assert verdict.outcome == WRONG and "outside of your file" not in verdict.text()


def test_a_forgotten_return_is_said() -> None:
    for name in ("ch01_linear", "ch03_adapter_rows", "ch04_slots", "ch05_schedule", "ch08_segments"):
        text = grade(EXERCISES[name], lambda *arguments: None).text()
        assert "Your function returns None: its `return` is missing" in text and "(raises)" not in text


def test_a_prefix_key_that_raises_or_is_text_has_its_case_in_words() -> None:
    exercise = EXERCISES["ch06_prefix_key"]
    raises = grade(exercise, lambda *arguments: 1 // 0)
    text = grade(exercise, lambda parent, *others: hashlib.sha256(parent + repr(others).encode()).hexdigest())
    assert raises.outcome == RAISES and "your keys: (raises)" in raises.text() and "Prompt(" not in raises.text()
    assert text.outcome == WRONG and "your key is text, and bytes are expected" in text.text()
    assert "In the engine" not in text.text()  # what it found there was its own: off by rounding


def test_keys_that_differ_are_both_shown() -> None:
    fresh = iter(range(10**9))
    verdict = grade(EXERCISES["ch06_prefix_key"], lambda *arguments: b"%d" % next(fresh))
    assert "request 1 " in verdict.text() and "request 2 " in verdict.text()
