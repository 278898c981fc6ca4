"""What a learner passed serves as ours does: voices, the base, and a sum of two adapters in one batch."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from refimpl import learn
from refimpl.learn import voices
from refimpl.learn.exercise import Exercise
from refimpl.request import Request

SOLUTIONS = Path(__file__).parents[2] / "teacher" / "solutions"
FIELDS = {exercise.name: exercise for exercise in learn.exercises() if exercise.as_ops is not None}
ROUNDING = 1e-3  # of float32 logits up to 30, where a sum is taken in another order


def requests() -> list[Request]:
    half = [(voices.voice(name), 0.5) for name in ("pirate", "merchant")]
    return [*voices.tenants(), Request(voices.prompt(), adapter=half)]


def steps_of(exercise: Exercise, function: Callable[..., Any]) -> voices.Steps:
    assert exercise.as_ops is not None
    return exercise.as_ops(function)


@pytest.mark.parametrize("exercise", FIELDS.values(), ids=FIELDS)
def test_a_solution_serves_as_our_step_does(exercise: Exercise) -> None:
    spec = importlib.util.spec_from_file_location(exercise.name, SOLUTIONS / f"{exercise.name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    steps = steps_of(exercise, getattr(module, exercise.function))
    assert voices.largest_difference(requests(), steps) < ROUNDING
    assert voices.says(requests(), steps, 8, block_size=4) == voices.says(requests(), None, 8)
    assert voices.change_for_a_tenant(steps) == ""


@pytest.mark.parametrize(
    "exercise, mistake",
    [
        ("ch01_linear", "scale_is_one"),
        ("ch02_lora_delta", "minus_one_is_the_last"),
        ("ch02_lora_delta", "never_put_back"),
        ("ch03_adapter_rows", "none_is_slot_zero"),
        ("ch03_adapter_rows", "tiled"),
        ("ch04_slots", "side_by_side"),
        ("ch04_slots", "place_in_the_chunk"),
        ("ch08_segments", "across_adapters"),
        ("ch08_segments", "rest_lost"),
    ],
)
def test_a_mistake_is_seen_by_a_tenant(exercise: str, mistake: str) -> None:
    functions = {each.name: each.function for each in FIELDS[exercise].mistakes}
    steps = steps_of(FIELDS[exercise], functions[mistake])
    assert "three requests in one batch" in voices.change_for_a_tenant(steps, block_size=4)
