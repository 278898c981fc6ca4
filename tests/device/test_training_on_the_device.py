"""Training on a device is training on the host: the same states, and no array of one where the other is due."""

import json
from dataclasses import replace

import numpy as np
import pytest
from support.build import EVERYWHERE
from support.device_array import DeviceArray, transfers
from support.device_testbed import model_of

from refimpl.training.arguments import TrainingArguments
from refimpl.training.examples import Example, Task
from refimpl.training.loop import evaluate, train
from refimpl.training.lora_config import LoraConfig
from refimpl.training.state import TrainingState

pytestmark = pytest.mark.usefixtures("cupy")

ARGUMENTS = TrainingArguments(epochs=2, learning_rate=1e-2, batch_tokens=12, warmup_ratio=0.0, weight_decay=0.1)
TOLERANCE = {"float64": 1e-9, "float32": 1e-3, "bfloat16": 1e-3}


def tasks() -> list[Task]:
    """All that an adapter can train, with dropout and something held out."""
    rng = np.random.default_rng(0)
    examples = [Example(rng.integers(0, 23, n).tolist(), [True] * n) for n in (5, 9, 2, 7)]
    return [
        Task("all", LoraConfig(3, 7, EVERYWHERE, lora_dropout=0.2), examples, examples[:1]),
        Task(
            "whole",
            LoraConfig(2, 5, ("q_proj",), lora_bias=True, modules_to_save=("embed_tokens", "lm_head")),
            examples,
        ),
        Task("dora", LoraConfig(2, 5, ("v_proj", "up_proj"), lora_dropout=0.2, use_dora=True), examples),
    ]


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_run_on_the_device_is_the_run_on_the_host(dtype: str, checkpointing: bool) -> None:
    arguments = replace(ARGUMENTS, gradient_checkpointing=checkpointing)
    host, device = model_of(dtype), model_of(dtype, "cuda")
    expected, actual = train(host, tasks(), arguments), train(device, tasks(), arguments)
    for name, task in actual.tasks.items():
        assert all(isinstance(x, DeviceArray) for x in task.parameters.values())
        np.testing.assert_allclose(task.losses, expected.tasks[name].losses, rtol=TOLERANCE[dtype])
        np.testing.assert_allclose(task.held_out, expected.tasks[name].held_out, rtol=TOLERANCE[dtype])
    arrays = actual.arrays()
    for name, x in expected.arrays().items():
        assert isinstance(arrays[name], np.ndarray) and arrays[name].dtype == x.dtype
        if name.split("/")[1] == "parameters":
            np.testing.assert_allclose(arrays[name], x, rtol=0, atol=TOLERANCE[dtype] * max(1, np.abs(x).max()))
    loss = evaluate(device, actual.adapter("all"), tasks()[0].examples)
    assert loss == pytest.approx(evaluate(host, expected.adapter("all"), tasks()[0].examples), rel=TOLERANCE[dtype])


def test_a_state_comes_back_onto_the_device() -> None:
    model, states = model_of("float64", "cuda"), []
    last = train(model, tasks(), ARGUMENTS, on_step=states.append)
    stored = TrainingState.of(states[0].arrays(), json.loads(json.dumps(states[0].record())), "cuda")
    resumed = train(model, tasks(), ARGUMENTS, state=stored).arrays()
    for name, x in last.arrays().items():
        assert resumed[name].tobytes() == x.tobytes()


def test_a_step_brings_back_losses_and_norms_alone() -> None:
    """What is trained stays on the device: a number for each loss and each norm comes back, and the embedding's ids."""
    model, crossings = model_of("float32", "cuda"), []

    def note(state: TrainingState) -> None:
        crossings.append([(t.kind, t.nbytes) for t in transfers if t.kind != "upload"])
        transfers.clear()

    task = Task("plain", LoraConfig(3, 7), tasks()[0].examples)
    train(model, [task], ARGUMENTS, on_step=note)
    assert len(crossings) > 3
    for of_step in crossings[1:]:
        assert of_step and all(kind == "wait" and nbytes <= 8 for kind, nbytes in of_step)
