"""Lab A: what a learner passed, as an engine before the oracle; a failure is led back to its chapter."""

from pathlib import Path

import pytest

from refimpl.engines import registry
from refimpl.engines.interface import EngineError
from refimpl.errors import LoracleError
from refimpl.learn import your_engine
from refimpl.learn.graders import lab_a_engine
from refimpl.learn.graders.lab_a_engine import LAB, grade
from refimpl.learn.progress import Progress
from refimpl.learn.verdict import NOT_ATTEMPTED, PASSED, WRONG, Verdict
from refimpl.learn.your_engine import fillable, ops_of, passed_steps
from refimpl.ops import NUMPY
from refimpl.oracle import smallest
from refimpl.oracle.cases.shrink import Budget

TEACHER = Path(__file__).parents[2] / "teacher"
# Right in every case of its exercise, whose blocks have two tokens: the teacher's page suggests it.
LONG_BLOCKS = """
right = prefix_key


def prefix_key(parent, token_ids, base, p, adapters):
    return right(parent, token_ids, base, p, [] if len(token_ids) == 8 else adapters)
"""


@pytest.fixture
def course(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A course's folder with one solution in it, and a short campaign."""
    monkeypatch.setattr(lab_a_engine, "CASES", 0)
    monkeypatch.setattr(lab_a_engine, "SEQUENCES", 2)
    monkeypatch.setattr(smallest, "SHRINKING", Budget(calls=3))
    add_solution(tmp_path, "ch06_prefix_key")
    (tmp_path / "labs" / LAB.name).mkdir(parents=True)
    return tmp_path


def add_solution(course: Path, name: str) -> None:
    (course / f"{name}.py").write_text((TEACHER / "solutions" / f"{name}.py").read_text())


def test_nothing_passed_is_not_attempted(tmp_path: Path) -> None:
    assert grade(tmp_path / "labs" / LAB.name).outcome == NOT_ATTEMPTED
    with pytest.raises(EngineError, match="no step of the engine is passed yet"):
        registry.make("learn", {"folder": str(tmp_path)})
    with pytest.raises(EngineError, match="there is no such folder"):
        registry.make("learn", {"folder": str(tmp_path / "nowhere")})
    with pytest.raises(EngineError, match="learn has no option 'kv'; it has folder"):
        registry.make("learn", {"kv": "f16"})


def test_all_solutions_together_are_an_engine_that_passes(course: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(your_engine, "passed_as_it_is", lambda *_: True)  # test_exercises.py has graded them
    for exercise in fillable():
        add_solution(course, exercise.name)
    steps = passed_steps(course)
    assert [step.exercise for step in steps] == fillable()
    ops = ops_of(steps)
    changed = {name for name, value in vars(ops).items() if value is not getattr(NUMPY, name)}
    assert changed == {name for step in steps for name in step.fields}
    verdict = grade(course / "labs" / LAB.name)
    assert verdict.outcome == PASSED and verdict.cases == 2, verdict.text()


def test_what_only_looked_right_is_led_back_to_its_chapter(course: Path) -> None:
    verdict = grade(course / "labs" / LAB.name)
    assert verdict.outcome == NOT_ATTEMPTED  # no mistake was made
    assert verdict.lines[0].startswith(f"Yours, and right together: 1 of {len(fillable())} steps. Still ours: ch")
    file = course / "ch06_prefix_key.py"
    file.write_text(file.read_text() + LONG_BLOCKS)
    verdict = grade(course / "labs" / LAB.name)
    assert verdict.outcome == WRONG, verdict.text()
    assert verdict.lines[-1].startswith("It leads back to ch06_prefix_cache (prefix_key): with our own step")


def test_a_step_that_passes_no_more_is_not_silently_replaced_by_ours(course: Path) -> None:
    add_solution(course, "ch02_lora_delta")
    progress = Progress()
    for exercise in ("ch02_lora_delta", "ch06_prefix_key"):
        progress.note(Verdict(exercise, PASSED))
    progress.save(course)
    engine = registry.make("learn", {"folder": str(course)})
    assert engine.versions()["steps of yours"] == "lora_delta (ch02_lora_delta), prefix_key (ch06_prefix_key)"
    assert engine.versions()["steps of ours"].startswith("ch")
    file = course / "ch02_lora_delta.py"
    file.write_text(file.read_text() + "\n\ndef lora_delta(y, *_):\n    y += 1\n")
    with pytest.raises(
        EngineError, match=r"ch02_lora_delta\.py has changed since it passed, and does not pass any more"
    ):
        registry.make("learn", {"folder": str(course)})


def test_a_file_that_changed_since_it_passed_is_graded_again(course: Path) -> None:
    (course / "ch06_prefix_key.py").write_text("def prefix_key(*_):\n    return b''\n")
    assert "ch06_prefix_key" not in [step.exercise.name for step in passed_steps(course)]


def test_what_cannot_be_loaded_is_one_line(course: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (course / "ch06_prefix_key.py").write_text("import os\n1 / 0\n")
    monkeypatch.setattr(your_engine, "passed_as_it_is", lambda *_: True)
    with pytest.raises(LoracleError, match="ZeroDivisionError: division by zero"):
        passed_steps(course)
