"""A whole run: a task ends where it would have ended alone, an interruption cannot be seen, the base stays as it is."""

import json
from dataclasses import replace

import numpy as np
import pytest
from drawn_tasks import Course, courses, random_examples
from hypothesis import given, settings
from support.build import EVERYWHERE, random_model
from support.compare import assert_same_bits
from support.device_testbed import CONFIG

from refimpl import LoracleError, Model, Request, logits
from refimpl.training.arguments import TrainingArguments
from refimpl.training.examples import Task
from refimpl.training.loop import evaluate, train
from refimpl.training.lora_config import LoraConfig
from refimpl.training.state import TrainingError, TrainingState

ARGUMENTS = TrainingArguments(epochs=3, learning_rate=1e-2, batch_tokens=12, warmup_ratio=0.2, weight_decay=0.1)


@pytest.fixture(scope="module")
def model() -> Model:
    return random_model(CONFIG, 5)


def tasks_of_every_kind() -> list[Task]:
    """Three tasks of different lengths: everything targeted, an untied head, dropout."""
    return [
        Task(
            "all",
            LoraConfig(3, 7, EVERYWHERE),
            random_examples(CONFIG, [5, 9, 2, 7, 12], 1),
            random_examples(CONFIG, [4], 2),
        ),
        Task(
            "head",
            LoraConfig(2, 5, ("q_proj", "down_proj"), use_rslora=True, lora_bias=True, modules_to_save=("lm_head",)),
            random_examples(CONFIG, [15, 3], 3),
        ),
        Task("noisy", LoraConfig(5, 3, ("v_proj", "up_proj"), lora_dropout=0.3), random_examples(CONFIG, [6, 6, 6], 4)),
    ]


def assert_close(actual: TrainingState, expected: TrainingState, name: str, rtol: float) -> None:
    """One task's parameters and losses are the same in two states."""
    task, other = actual.tasks[name], expected.tasks[name]
    np.testing.assert_allclose(task.losses, other.losses, rtol=rtol)
    assert task.parameters.keys() == other.parameters.keys()
    for key, x in other.parameters.items():
        atol = rtol * max(1, np.abs(x).max())
        np.testing.assert_allclose(task.parameters[key], x, rtol=0, atol=atol, err_msg=str(key))


def assert_same_state(actual: TrainingState, expected: TrainingState) -> None:
    assert actual.record() == expected.record()
    arrays, others = actual.arrays(), expected.arrays()
    assert arrays.keys() == others.keys()
    for name, x in others.items():
        assert_same_bits(arrays[name], x)


@settings(max_examples=8)
@given(course=courses(dropout=True, epochs=2, learning_rate=1e-2))
def test_together_is_alone(course: Course) -> None:
    together = train(*course)
    for task in course.tasks:
        assert_close(together, train(course.model, [task], course.arguments), task.name, 1e-7)


def test_the_loss_falls_and_what_was_trained_is_what_serves(model: Model) -> None:
    tasks = tasks_of_every_kind()
    state = train(model, tasks, replace(ARGUMENTS, epochs=30))
    for task in tasks:
        losses, adapter = state.tasks[task.name].losses, state.adapter(task.name)
        assert np.mean(losses[-3:]) < 0.5 * np.mean(losses[:3])
        rows = logits(model, [Request(example.token_ids, adapter) for example in task.examples])
        expected = mean_loss(rows, task)
        assert evaluate(model, adapter, task.examples) == pytest.approx(expected, rel=1e-12)


def mean_loss(rows: list[np.ndarray], task: Task) -> float:
    """The mean over all targets of minus log softmax, from the logits that a server gives."""
    losses = [
        np.log(np.exp(row[t]).sum()) - row[t][example.token_ids[t + 1]]
        for row, example in zip(rows, task.examples, strict=True)
        for t in range(len(row) - 1)
        if example.loss_mask[t + 1]
    ]
    return float(np.mean(losses))


@pytest.mark.parametrize("changes", [{}, {"gradient_checkpointing": True}, {"gradient_accumulation_steps": 2}])
def test_a_run_that_is_resumed_ends_in_the_same_bits(model: Model, changes: dict) -> None:
    tasks, arguments = tasks_of_every_kind(), replace(ARGUMENTS, **changes)
    states: list[TrainingState] = []
    uninterrupted = train(model, tasks, arguments, on_step=states.append)
    assert len(states) > 5 and states[-1] is uninterrupted
    for state in states[::3]:
        stored = TrainingState.of(state.arrays(), json.loads(json.dumps(state.record())))
        assert_same_state(stored, state)
        assert_same_state(train(model, tasks, arguments, state=stored), uninterrupted)


def test_the_base_is_not_touched(model: Model) -> None:
    before = [x.copy() for x in model.arrays()]
    train(model, tasks_of_every_kind(), ARGUMENTS)
    for x, expected in zip(model.arrays(), before, strict=True):
        assert_same_bits(x, expected)


def test_a_loss_that_is_no_number_names_its_step_and_gives_back_the_last_good_state(model: Model) -> None:
    tasks = tasks_of_every_kind()[:1]
    states: list[TrainingState] = []
    with pytest.raises(TrainingError, match=r"^all: the loss of step 3 is nan$") as info:
        train(model, tasks, replace(ARGUMENTS, learning_rate=1e200, warmup_ratio=0.01), on_step=states.append)
    assert info.value.state is states[0]
    assert np.isfinite(evaluate(model, info.value.state.adapter("all"), tasks[0].examples))


def test_a_state_of_another_run_is_refused(model: Model) -> None:
    tasks = tasks_of_every_kind()
    states: list[TrainingState] = []
    train(model, tasks, ARGUMENTS, on_step=states.append)
    for other, arguments, message in (
        (tasks[:2], ARGUMENTS, "the state is of tasks"),
        (tasks, replace(ARGUMENTS, epochs=4), "all: the state is of a run of"),
        ([replace(tasks[0], config=LoraConfig(4, 7, EVERYWHERE)), *tasks[1:]], ARGUMENTS, "all: the state's config is"),
    ):
        with pytest.raises(LoracleError, match=message):
            train(model, other, arguments, state=states[0])
