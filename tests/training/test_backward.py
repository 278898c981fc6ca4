"""The backward pass against what it is defined by: the loss, moved a little along each parameter, in float64."""

from dataclasses import replace

import numpy as np
from drawn_tasks import (
    Course,
    courses,
    family_configs,
    gradients_of,
    random_state,
    run_of,
    with_parameter,
    with_parameter_and_gain,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from support.build import configs
from support.compare import assert_equal_to_rounding, assert_same_bits

from refimpl import NUMPY, REFERENCE
from refimpl.adapter_slots import AdapterSlots
from refimpl.arrays import Precision
from refimpl.model import forward as serve
from refimpl.plans import Batch
from refimpl.training.backward import Pass, forward
from refimpl.training.dropout import Dropout
from refimpl.training.gradient_ops import GRADIENTS, PER_TOKEN, GradientOps
from refimpl.training.loop import share_of
from refimpl.training.loss import training_batch
from refimpl.training.parameters import to_adapter

ANY_BASE = st.one_of(configs(2), family_configs())
STEP = 1e-5  # central differences of float64 are good to STEP^2 times the third derivative, and to 1e-16 / STEP


def check_gradients_are_central_differences(gradient_ops: GradientOps, course: Course, seed: int) -> None:
    """Along a random direction of each parameter of each task: (loss(x + h d) - loss(x - h d)) / 2h = gradient . d."""
    run, rng = run_of(course, gradient_ops=gradient_ops), np.random.default_rng(seed)
    state = random_state(run, seed)
    _, gradients = gradients_of(run, state)
    for name, task in state.tasks.items():
        assert gradients[name].keys() == task.parameters.keys()
        for key, x in task.parameters.items():
            direction = rng.standard_normal(x.shape)
            direction /= np.sqrt((direction**2).sum())
            ahead, behind = (
                gradients_of(run, with_parameter_and_gain(course.model, state, name, key, x + sign * STEP * direction))[
                    0
                ][name]
                for sign in (1, -1)
            )
            expected, actual = (ahead - behind) / (2 * STEP), float((gradients[name][key] * direction).sum())
            assert abs(actual - expected) <= 1e-6 * max(1, abs(expected)), f"{name}: {key}: {actual}, not {expected}"


@settings(max_examples=10)
@given(course=courses(max_tasks=2, dropout=True), seed=st.integers(0, 99))
def test_gradients_are_central_differences_of_the_loss(course: Course, seed: int) -> None:
    check_gradients_are_central_differences(GRADIENTS, course, seed)


@settings(max_examples=15)
@given(course=courses(max_tasks=1, bases=family_configs()), seed=st.integers(0, 99))
def test_so_they_are_where_a_family_differs_from_llama(course: Course, seed: int) -> None:
    check_gradients_are_central_differences(GRADIENTS, course, seed)


@settings(max_examples=15)
@given(course=courses(dropout=True, bases=ANY_BASE), seed=st.integers(0, 99))
def test_the_backward_pass_is_its_definition(course: Course, seed: int) -> None:
    fast, slow = run_of(course), run_of(course, REFERENCE, PER_TOKEN)
    state = random_state(fast, seed)
    (losses, gradients), (expected_losses, expected) = gradients_of(fast, state), gradients_of(slow, state)
    np.testing.assert_allclose(list(losses.values()), list(expected_losses.values()), rtol=1e-12)
    assert gradients.keys() == expected.keys()
    for name, of_task in expected.items():
        for key, gradient in of_task.items():
            assert_equal_to_rounding(gradients[name][key].reshape(1, -1), gradient.reshape(1, -1), 1e-9)


@settings(max_examples=15)
@given(course=courses(bases=ANY_BASE), seed=st.integers(0, 99))
def test_the_forward_pass_is_the_one_that_serves_to_the_bit(course: Course, seed: int) -> None:
    run = run_of(course)
    state, p = random_state(run, seed), Precision("model", "float64")
    adapters = AdapterSlots(course.model, p)
    for slot, (name, task) in enumerate(state.tasks.items()):
        bound = NUMPY.bind_adapter(
            to_adapter(name, task.config, task.parameters), course.model.config, NUMPY.adapter_scale
        )
        adapters.put(slot, bound)
    shares = [share_of(run, slot, name, task, 0) for slot, (name, task) in enumerate(state.tasks.items())]
    plan = training_batch(shares, adapters, NUMPY)
    all_layers = training_batch(shares, adapters, NUMPY, course.model.config.num_hidden_layers)
    for change, check in ((every_token_gets_logits, assert_same_bits), (lambda batch: batch, assert_equal_to_rounding)):
        batch, dropout = change(plan.batch), Dropout(course.model.config)
        training = Pass(course.model, batch, plan.cache, adapters, dropout, NUMPY, GRADIENTS, p)
        served = serve(course.model, change(all_layers.batch), all_layers.cache, adapters, NUMPY, p)
        for recompute in (False, True):
            check(forward(training, recompute)[0], served)


def every_token_gets_logits(batch: Batch) -> Batch:
    """Then the last layer is computed for all tokens when it serves, as it is when it learns."""
    rows = np.arange(len(batch.token_ids), dtype=np.int32)
    return replace(batch, logits_indices=rows, logits_lora=batch.lora, device=None)


@settings(max_examples=15)
@given(course=courses(dropout=True, bases=ANY_BASE), seed=st.integers(0, 99))
def test_what_is_computed_again_is_what_was_kept(course: Course, seed: int) -> None:
    again = course._replace(arguments=replace(course.arguments, gradient_checkpointing=True))
    state = random_state(run_of(course), seed)
    (losses, kept), (other_losses, recomputed) = (gradients_of(run_of(each), state) for each in (course, again))
    assert losses == other_losses
    for name, of_task in kept.items():
        for key, gradient in of_task.items():
            assert_same_bits(recomputed[name][key], gradient)


@settings(max_examples=15)
@given(course=courses(dropout=True), seed=st.integers(0, 99))
def test_neighbours_have_no_influence(course: Course, seed: int) -> None:
    """Each task's loss and gradients in the batch of all are those that it has alone."""
    run = run_of(course)
    state = random_state(run, seed)
    losses, gradients = gradients_of(run, state)
    for task in course.tasks:
        alone = replace(state, tasks={task.name: state.tasks[task.name]})
        (loss,), (expected,) = (part.values() for part in gradients_of(run, alone))
        np.testing.assert_allclose(losses[task.name], loss, rtol=1e-12)
        for key, gradient in expected.items():
            assert_equal_to_rounding(gradients[task.name][key].reshape(1, -1), gradient.reshape(1, -1), 1e-9)


@settings(max_examples=15)
@given(course=courses(), seed=st.integers(0, 99))
def test_a_B_of_zeros_stops_the_gradient_of_A_and_not_its_own(course: Course, seed: int) -> None:
    """As an adapter begins: A's gradient is exactly zero, and the loss is the base's."""
    run = run_of(course)
    state = random_state(run, seed)
    for name, task in state.tasks.items():
        for key in task.parameters:
            if key.part == "B":
                state = with_parameter(state, name, key, np.zeros_like(task.parameters[key]))
    _, gradients = gradients_of(run, state)
    for of_task in gradients.values():
        assert all(not gradient.any() for key, gradient in of_task.items() if key.part == "A")
        assert any(gradient.any() for key, gradient in of_task.items() if key.part == "B")
