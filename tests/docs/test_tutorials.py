"""The tutorials run as plain Python, and their graders tell right from wrong."""

import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

TUTORIALS = Path(__file__).parents[2] / "tutorials"
sys.path.insert(0, str(TUTORIALS))

from grader import definition, grade  # noqa: E402


@pytest.mark.parametrize("script", sorted(p.name for p in TUTORIALS.glob("[0-9]*.py")))
def test_a_tutorial_runs_to_its_end(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(TUTORIALS / script), run_name="__main__")
    assert capsys.readouterr().out.rstrip().endswith("not attempted")


def test_it_runs_with_what_the_first_command_installs() -> None:
    """No hypothesis, no pytest: they come with .[test] alone."""
    script = """
import runpy, sys
sys.modules["hypothesis"] = sys.modules["pytest"] = None
sys.path.insert(0, sys.argv[1])
runpy.run_path(sys.argv[2])
"""
    for tutorial in TUTORIALS.glob("[0-9]*.py"):
        subprocess.run([sys.executable, "-c", script, str(TUTORIALS), str(tutorial)], check=True, capture_output=True)


def test_a_forgotten_scale_is_shown_on_one_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert not grade(no_scale)
    printed = capsys.readouterr().out
    for line in ("x = [[1.0]]", "A = [[[1.0]]]", "B = [[[1.0]]]", "adapter_ids = [0]"):
        assert line in printed, printed


def by_adapter(y: np.ndarray, x: np.ndarray, A: list, B: list, scale: list, adapter_ids: np.ndarray) -> None:
    for i in range(len(A)):
        rows = np.flatnonzero(adapter_ids == i)
        y[rows] += scale[i] * (x[rows] @ A[i].T) @ B[i].T


def test_a_right_answer_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert grade(by_adapter) and grade(definition)
    assert "passed" in capsys.readouterr().out


def no_scale(y, x, A, B, scale, adapter_ids):  # type: ignore[no-untyped-def]
    by_adapter(y, x, A, B, [1.0] * len(A), adapter_ids)


def minus_one_is_the_last(y, x, A, B, scale, adapter_ids):  # type: ignore[no-untyped-def]
    by_adapter(y, x, A, B, scale, adapter_ids % len(A))


def never_put_back(y, x, A, B, scale, adapter_ids):  # type: ignore[no-untyped-def]
    by_adapter(y, x, A, B, scale, np.sort(adapter_ids))


def last_adapter_left_out(y, x, A, B, scale, adapter_ids):  # type: ignore[no-untyped-def]
    by_adapter(y, x, A[:-1], B[:-1], scale, adapter_ids)


def out_of_place(y, x, A, B, scale, adapter_ids):  # type: ignore[no-untyped-def]
    by_adapter(y.copy(), x, A, B, scale, adapter_ids)


def crashes_on_mixed_ranks(y, x, A, B, scale, adapter_ids):  # type: ignore[no-untyped-def]
    by_adapter(y, x, np.stack(A), np.stack(B), scale, adapter_ids)


@pytest.mark.parametrize(
    "wrong",
    [no_scale, minus_one_is_the_last, never_put_back, last_adapter_left_out, out_of_place, crashes_on_mixed_ranks],
)
def test_a_wrong_answer_gets_a_small_counter_example(wrong: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    assert not grade(wrong)
    said = capsys.readouterr().out
    assert "yours" in said and "expected" in said
    ids = next(line for line in said.splitlines() if "adapter_ids" in line).split("=")[1]
    assert len(eval(ids)) <= 2, said
