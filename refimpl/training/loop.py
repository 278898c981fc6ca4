"""Several adapters train at once over one base: one batch a step, and each ends where it would have ended alone.

A task has its own examples, order, dropout masks, schedule, clipping and moments; what the tasks share is the base, and
the products with it. One that has had its epochs leaves the batch, and the others go on.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..adapter import Adapter
from ..adapter_slots import AdapterSlots
from ..arrays import Precision, namespace
from ..errors import LoracleError
from ..ops import NUMPY, Ops
from ..plans import NO_ADAPTER
from ..weights import Model
from .arguments import TrainingArguments
from .examples import DROPOUT, Example, Schedule, Task, check_task, microbatches, schedule_of
from .gradient_ops import GRADIENTS, GradientOps
from .lora_gradients import Gradients, add_gradients
from .loss import Share, losses_and_gradients, losses_of
from .optimizer import adamw, clipped, global_norm, learning_rate_at
from .parameters import Parameters, check_parameters, initial_parameters, to_adapter
from .state import TaskState, TrainingError, TrainingState


@dataclass(frozen=True, eq=False)
class Run:
    """What stays the same from the first step to the last."""

    model: Model
    tasks: Mapping[str, Task]
    schedules: Mapping[str, Schedule]
    arguments: TrainingArguments
    ops: Ops
    gradient_ops: GradientOps


def train(
    model: Model,
    tasks: Sequence[Task],
    arguments: TrainingArguments,
    ops: Ops = NUMPY,
    on_step: Callable[[TrainingState], object] | None = None,
    state: TrainingState | None = None,
    gradient_ops: GradientOps = GRADIENTS,
) -> TrainingState:
    """Train every task to the end of its epochs, all of them in one batch per step, and return the last state.

    on_step gets the state after each step: states do not change, so that the last one that came is where to go on from
    when the run is interrupted. state: go on from there, with the result that the run would have had.

    Numbers are those of the model's type: float64 for a float64 model, else float32. LoracleError for tasks that do not
    fit the base, or a state that does not fit the tasks; TrainingError for a loss or a gradient that is no number."""
    if model.config.labels:
        raise LoracleError("the base has a classification head (score): training is of models that write text")
    if not isinstance(tasks, Sequence) or not all(isinstance(task, Task) for task in tasks):
        raise LoracleError(f"train needs a list of tasks, not {type(tasks).__name__}")
    names = [task.name for task in tasks]
    if not tasks or len(set(names)) < len(names):
        raise LoracleError(f"train needs tasks of different names, not {names}")
    for task in tasks:
        check_task(task, model.config)
    schedules = {task.name: schedule_of(task.examples, arguments) for task in tasks}
    run = Run(model, {task.name: task for task in tasks}, schedules, arguments, ops, gradient_ops)
    if state is None:
        state = initial_state(run)
    else:
        check_state(run, state)
    last_good = state
    while any(task.step < task.steps for task in state.tasks.values()):
        with np.errstate(over="ignore", invalid="ignore"):  # a number that is none is what TrainingError says
            state, last_good = one_step(run, state, last_good), state
        if on_step is not None:
            on_step(state)
    return state


def evaluate(
    model: Model,
    adapter: Adapter | None,
    examples: Sequence[Example],
    batch_tokens: int = 1024,
    ops: Ops = NUMPY,
    gradient_ops: GradientOps = GRADIENTS,
) -> float:
    """Return the mean loss over all targets of the examples, with this adapter or with the base alone, in nats.

    LoracleError if there is no target among them, or for batch_tokens below 1."""
    targets = sum(example.targets for example in examples)
    if not targets or batch_tokens < 1:
        raise LoracleError(
            f"evaluate: {len(examples)} examples, {targets} targets, batch_tokens {batch_tokens}: none can be 0"
        )
    slot, adapters = NO_ADAPTER, AdapterSlots(model, compute_precision(model))
    if adapter is not None:
        slot = 0
        adapters.put(slot, ops.bind_adapter(adapter, model.config, ops.adapter_scale))
    batches = microbatches(examples, range(len(examples)), batch_tokens)
    shares = (Share(slot, [examples[i] for i in batch], 1 / targets) for batch in batches)
    return sum(losses_of([share], adapters, ops, gradient_ops)[0] for share in shares)


# ---- one step -------------------------------------------------------------------------------------------------------


def one_step(run: Run, state: TrainingState, last_good: TrainingState) -> TrainingState:
    """Return the state after one step of each task that has steps to do. TrainingError carries last_good."""
    names = [name for name, task in state.tasks.items() if task.step < task.steps]
    losses, gradients = step_gradients(run, {name: state.tasks[name] for name in names})
    norms = [global_norm(gradients[slot]) for slot in range(len(names))]
    for name, loss, norm in zip(names, losses, norms, strict=True):
        step = state.tasks[name].step + 1
        if not math.isfinite(loss):
            raise TrainingError(f"{name}: the loss of step {step} is {loss}", last_good)
        if not math.isfinite(norm):
            raise TrainingError(f"{name}: the norm of the gradient of step {step} is {norm}", last_good)
    tasks = dict(state.tasks)
    for slot, name in enumerate(names):
        tasks[name] = updated(run, name, tasks[name], losses[slot], gradients[slot], norms[slot])
    return TrainingState(tasks)


def step_gradients(run: Run, tasks: Mapping[str, TaskState]) -> tuple[list[float], Gradients]:
    """Return each task's loss in its next step, and the gradients by the task's number, which is its adapter slot."""
    adapters = AdapterSlots(run.model, compute_precision(run.model))
    for slot, (name, task) in enumerate(tasks.items()):
        adapter = to_adapter(name, task.config, task.parameters)
        adapters.put(slot, run.ops.bind_adapter(adapter, run.model.config, run.ops.adapter_scale))
    losses = [0.0] * len(tasks)
    gradients: Gradients = {}
    steps = [run.schedules[name].steps[task.step] for name, task in tasks.items()]
    for micro in range(max(map(len, steps))):
        shares = [
            share_of(run, slot, name, task, micro)
            for slot, (name, task) in enumerate(tasks.items())
            if micro < len(steps[slot])
        ]
        recompute = run.arguments.gradient_checkpointing
        parts, new = losses_and_gradients(shares, adapters, run.ops, run.gradient_ops, recompute)
        for share, loss in zip(shares, parts, strict=True):
            losses[share.slot] += loss
            add_gradients(gradients, share.slot, new[share.slot])
    return losses, gradients


def share_of(run: Run, slot: int, name: str, task: TaskState, micro: int) -> Share:
    """One task's part of a micro-batch. Its loss is the mean over the targets of the whole step."""
    examples = run.tasks[name].examples
    step = [[examples[i] for i in batch] for batch in run.schedules[name].steps[task.step]]
    targets = sum(example.targets for batch in step for example in batch)
    stream = (run.arguments.seed, DROPOUT, task.step, micro)
    return Share(slot, step[micro], 1 / targets, task.config.lora_dropout, stream)


def updated(run: Run, name: str, task: TaskState, loss: float, gradients: Parameters, norm: float) -> TaskState:
    """Return the task's state after its optimizer step; at an epoch's end with its loss on the held-out examples."""
    rate = learning_rate_at(task.step, task.steps, run.arguments)
    moments = (task.first_moments, task.second_moments)
    gradients = clipped(gradients, norm, run.arguments.max_grad_norm)
    parameters, (first, second) = adamw(task.parameters, gradients, moments, task.step + 1, rate, run.arguments)
    task = replace(
        task,
        step=task.step + 1,
        parameters=parameters,
        first_moments=first,
        second_moments=second,
        losses=(*task.losses, loss),
        grad_norms=(*task.grad_norms, norm),
    )
    return with_held_out(run, name, task) if task.step in run.schedules[name].epoch_ends else task


def with_held_out(run: Run, name: str, task: TaskState) -> TaskState:
    """Return the state with the loss on the held-out examples as it is now; as it was, if there are none."""
    examples = run.tasks[name].held_out
    if not examples:
        return task
    adapter = to_adapter(name, task.config, task.parameters)
    loss = evaluate(run.model, adapter, examples, run.arguments.batch_tokens, run.ops, run.gradient_ops)
    return replace(task, held_out=(*task.held_out, (task.step, loss)))


# ---- where it begins ------------------------------------------------------------------------------------------------


def compute_precision(model: Model) -> Precision:
    """No rounding anywhere: float64 where the model is, else float32, whatever the base's weights are stored in."""
    return Precision("model", "float64" if model.dtype == "float64" else "float32")


def initial_state(run: Run) -> TrainingState:
    """The state before the first step: PEFT's initialisation, moments of zero, the base's loss on what is held out."""
    tasks, compute = {}, compute_precision(run.model).compute
    for name, task in run.tasks.items():
        parameters = initial_parameters(task.config, run.model, run.arguments.seed, compute)
        zeros = {key: namespace(x).zeros_like(x) for key, x in parameters.items()}
        steps = len(run.schedules[name].steps)
        tasks[name] = with_held_out(run, name, TaskState(task.config, 0, steps, parameters, zeros, zeros))
    return TrainingState(tasks)


def check_state(run: Run, state: TrainingState) -> None:
    """LoracleError, naming the task and both values, for a state that these tasks cannot go on from."""
    if list(state.tasks) != list(run.tasks):
        raise LoracleError(f"the state is of tasks {list(state.tasks)}, not of {list(run.tasks)}")
    for name, task in state.tasks.items():
        steps = len(run.schedules[name].steps)
        if task.config != run.tasks[name].config:
            raise LoracleError(f"{name}: the state's config is {task.config}, not {run.tasks[name].config}")
        if task.steps != steps:
            raise LoracleError(f"{name}: the state is of a run of {task.steps} steps, this one has {steps}")
        for parameters in (task.parameters, task.first_moments, task.second_moments):
            check_parameters(name, parameters, task.config, run.model)
