"""The same gradients and the same run as PEFT and torch, in float64, over models and adapters that nobody chose."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import hugging_face as hf
import numpy as np
import pytest
from examples import Example as OnDisk
from examples import hf_configs, on_disk, specs
from hugging_face import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_families import CASES, write

import refimpl
from refimpl import NUMPY, Model
from refimpl.adapter import Adapter
from refimpl.config import EMBED, LM_HEAD
from refimpl.plans import LoraMapping
from refimpl.training.arguments import TrainingArguments
from refimpl.training.dropout import Dropout
from refimpl.training.examples import Example, Task, schedule_of
from refimpl.training.gradient_ops import GRADIENTS
from refimpl.training.loop import Run, initial_state, share_of, step_gradients, train
from refimpl.training.lora_config import LoraConfig
from refimpl.training.parameters import Key, Parameters, from_adapter
from refimpl.training.state import TrainingState
from refimpl.training.trainable import without_gradients

pytestmark = [
    pytest.mark.filterwarnings("ignore::refimpl.errors.AdapterWarning"),
    pytest.mark.filterwarnings("ignore:.*is the local path"),  # PEFT saves where the base was
]

TOLERANCE = 1e-9  # of a gradient, times max(1, the largest number of that parameter's gradient)
AFTER_A_RUN = 1e-6  # of a parameter, times max(1, the largest)
PREFIX = "base_model.model."


@st.composite
def lessons(draw: st.DrawFn, adapters: int = 1, max_examples: int = 4) -> tuple[OnDisk, list[Example]]:
    """A base and adapters as PEFT creates them, and what the adapters learn from: ragged, with masks of their own."""
    config = draw(hf_configs())
    pool = {name: dataclasses.replace(spec, copies=False) for name, spec in draw(specs(config, adapters, True)).items()}
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    lengths = draw(st.lists(st.integers(2, 12), min_size=1, max_size=max_examples))
    sequences = [rng.integers(0, config.vocab_size, n).tolist() for n in lengths]
    masks = [[*(rng.random(n - 1) < 0.6).tolist(), True] for n in lengths]
    examples = [Example(ids, mask) for ids, mask in zip(sequences, masks, strict=True)]
    return OnDisk(config, draw(st.integers(0, 1000)), pool, [], []), examples


def config_of(lora: dict) -> LoraConfig:
    """PEFT's own arguments are ours."""
    return LoraConfig(**{name: value for name, value in lora.items() if name != "task_type" and value is not None})


def run_from(
    model: Model, adapters: dict[str, Adapter], examples: Sequence[Example], arguments: TrainingArguments, lora: dict
) -> tuple[Run, TrainingState]:
    """A run of these adapters on the same examples, and its state, with the parameters that the adapters have."""
    tasks = {name: Task(name, config_of(lora[name]), examples) for name in adapters}
    schedules = {name: schedule_of(examples, arguments) for name in adapters}
    run = Run(model, tasks, schedules, arguments, NUMPY, GRADIENTS)
    states = {}
    for name, task in initial_state(run).tasks.items():
        parameters = from_adapter(adapters[name], task.config, model, "float64")
        states[name] = dataclasses.replace(task, parameters=parameters)
    return run, TrainingState(states)


def key_of(name: str) -> Key | None:
    """model.layers.0.self_attn.q_proj.lora_A.NAME.weight -> its key; None for a parameter of the base."""
    name = name.removeprefix(PREFIX)
    for inner, part in (
        (".lora_A.", "A"),
        (".lora_B.", "B"),
        (".lora_embedding_A.", "A"),
        (".lora_embedding_B.", "B"),
        (".lora_magnitude_vector.", "magnitude"),
        (".modules_to_save.", "weight"),
    ):
        module, separator, rest = name.partition(inner)
        if separator:
            return Key.of(f"{module}.{'bias' if rest.endswith('.bias') else part}")
    return None


def trainable(model: "hf.peft.PeftModel") -> dict[Key, "torch.Tensor"]:
    """Every parameter of the adapter, made trainable again: PEFT loads for inference."""
    parameters = {key: x for name, x in model.named_parameters() if (key := key_of(name))}
    for x in parameters.values():
        x.requires_grad_(True)
    return parameters


def loss_in_torch(model: "hf.peft.PeftModel", step: Sequence[Sequence[Example]]) -> "torch.Tensor":
    """The mean over all targets of a step, each sequence by itself."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for example in [example for batch in step for example in batch]:
        ids = torch.tensor([list(example.token_ids)])
        labels = torch.where(torch.tensor([list(example.loss_mask)]), ids, -100)[:, 1:]
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        total = total + torch.nn.functional.cross_entropy(logits[0], labels[0], ignore_index=-100, reduction="sum")
        count += example.targets
    return total / count


def assert_within(actual: Parameters, expected: dict[Key, np.ndarray], tolerance: float) -> None:
    assert actual.keys() == expected.keys()
    for key, x in expected.items():
        off = np.abs(actual[key] - x).max()
        assert off <= tolerance * max(1, np.abs(x).max()), f"{key}: {off}"


def assert_the_gradients_of_peft(
    base: Path, folder: Path, run: Run, state: TrainingState, masked: bool = False
) -> None:
    """The loss and every gradient of a run's only task in its first step."""
    ((name, task),) = run.tasks.items()
    (loss,), gradients = step_gradients(run, state.tasks)
    theirs = hf.load_exact(base, {name: folder}).train()
    if masked:
        put_masks(theirs, run, name)
    parameters = trainable(theirs)
    with hf.float64_throughout():
        their_loss = loss_in_torch(theirs, [task.examples])
        their_loss.backward()
    assert loss == pytest.approx(their_loss.item(), rel=TOLERANCE)
    assert_within(gradients[0], {key: x.grad.numpy() for key, x in parameters.items()}, TOLERANCE)


@settings(max_examples=40)
@given(lesson=lessons())
def test_every_gradient_is_that_of_peft(lesson: tuple[OnDisk, list[Example]]) -> None:
    example, data = lesson
    with on_disk(example) as testbed:
        lora = {name: spec.lora for name, spec in example.specs.items()}
        arguments = TrainingArguments(epochs=1, batch_tokens=1000)
        run, state = run_from(testbed.model("float64"), testbed.ours, data, arguments, lora)
        assert_the_gradients_of_peft(testbed.base, testbed.adapters["a"], run, state)


@pytest.mark.parametrize("case", CASES)
def test_every_gradient_of_every_family_is_that_of_peft(tmp_path: Path, case: str) -> None:
    """On each linear layer; and on some, on the embedding and the head, at another scale. A base whose forward pass
    has no way back here is refused by what it has, before anything is computed."""
    with hf.dense_layers():
        folders = write(tmp_path, case)
    model, rng = refimpl.load_model(tmp_path / "base", "float64"), np.random.default_rng(len(case))
    data = [Example(rng.integers(3, 61, n).tolist(), [False, *[True] * (n - 1)]) for n in (22, 5, 2)]
    for name, folder in folders.items():
        adapter = refimpl.load_adapter(folder, model.config)
        peft = adapter.config
        lora = {"r": peft.r, "lora_alpha": peft.lora_alpha, "use_rslora": peft.use_rslora}
        lora["target_modules"] = peft.target_modules
        if reasons := without_gradients(model.config):
            with pytest.raises(refimpl.LoracleError, match=f"no gradients for a base with {reasons[0]}"):
                train(model, [Task(name, config_of(lora), data)], TrainingArguments(batch_tokens=1000))
            continue
        run, state = run_from(model, {name: adapter}, data, TrainingArguments(batch_tokens=1000), {name: lora})
        assert_the_gradients_of_peft(tmp_path / "base", folder, run, state)


class Masked(torch.nn.Module):
    """Stands where PEFT's dropout does, and multiplies by a mask that was drawn elsewhere."""

    def __init__(self, mask: np.ndarray) -> None:
        super().__init__()
        self.mask = torch.as_tensor(mask)

    def forward(self, x: "torch.Tensor") -> "torch.Tensor":
        return x * self.mask


def put_masks(model: "hf.peft.PeftModel", run: Run, name: str) -> None:
    """Give every LoRA of PEFT the mask that ours draws for it, in the first step of the one example of a task."""
    (example,), dropout = run.tasks[name].examples, run.tasks[name].config.lora_dropout
    (share,) = [share_of(run, 0, name, state, 0) for state in [initial_state(run).tasks[name]]]
    targets = np.flatnonzero(np.asarray(example.loss_mask)[1:])
    masks = Dropout(run.model.config, {0: dropout}, {0: share.stream})
    for path, layer in model.named_modules():
        if isinstance(layer, hf.peft.tuners.lora.LoraLayer) and "lora_A" in dict(layer.named_children()):
            module = Key.of(path.removeprefix(PREFIX) + ".A").module
            if module == EMBED:
                continue
            rows = targets if module == LM_HEAD else np.arange(len(example.token_ids) - 1)
            mask = np.ones((len(example.token_ids), layer.in_features))
            mapping = LoraMapping.of(np.zeros((len(rows), 1), np.int32), np.ones((len(rows), 1)))
            mask[rows] = masks(np.ones((len(rows), layer.in_features)), module, mapping)
            layer.lora_dropout[name] = Masked(mask)


@settings(max_examples=20)
@given(lesson=lessons(max_examples=1), rate=st.sampled_from([0.1, 0.5]))
def test_every_gradient_is_that_of_peft_under_the_same_dropout_masks(
    lesson: tuple[OnDisk, list[Example]], rate: float
) -> None:
    example, data = lesson
    example.specs["a"].lora["lora_dropout"] = rate
    with on_disk(example) as testbed:
        arguments = TrainingArguments(epochs=1, batch_tokens=1000)
        lora = {"a": example.specs["a"].lora}
        run, state = run_from(testbed.model("float64"), testbed.ours, data, arguments, lora)
        assert_the_gradients_of_peft(testbed.base, testbed.adapters["a"], run, state, masked=True)


@settings(max_examples=4)
@given(lesson=lessons(adapters=2), scheduler=st.sampled_from(["cosine", "linear"]), seed=st.integers(0, 9))
def test_fifty_steps_of_two_adapters_at_once_follow_peft_and_adamw_of_torch(
    lesson: tuple[OnDisk, list[Example]], scheduler: str, seed: int
) -> None:
    """Warm-up, decay, clipping and accumulation included. PEFT trains one adapter after the other."""
    example, data = lesson
    arguments = TrainingArguments(
        epochs=50,
        learning_rate=3e-3,
        batch_tokens=12,
        seed=seed,
        lr_scheduler_type=scheduler,
        warmup_ratio=0.1,
        weight_decay=0.1,
        max_grad_norm=0.5,
        gradient_accumulation_steps=len(data),
    )
    with on_disk(example) as testbed:
        lora = {name: spec.lora for name, spec in example.specs.items()}
        run, state = run_from(testbed.model("float64"), testbed.ours, data, arguments, lora)
        ours = train(run.model, list(run.tasks.values()), arguments, state=state)
        for name, folder in testbed.adapters.items():
            losses, parameters = run_in_torch(hf.load_exact(testbed.base, {name: folder}), run, name)
            assert len(losses) == 50
            np.testing.assert_allclose(ours.tasks[name].losses, losses, rtol=AFTER_A_RUN)
            assert_within(ours.tasks[name].parameters, parameters, AFTER_A_RUN)


def run_in_torch(model: "hf.peft.PeftModel", run: Run, name: str) -> tuple[list[float], dict[Key, np.ndarray]]:
    """The same steps by torch and transformers: the losses, and the parameters at the end."""
    parameters, arguments, steps = trainable(model.train()), run.arguments, run.schedules[name].steps
    decayed, others = ([x for key, x in parameters.items() if (key.part == "bias") == flag] for flag in (False, True))
    groups = [{"params": decayed, "weight_decay": arguments.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=arguments.learning_rate, betas=(0.9, 0.999), eps=1e-8)
    scheduler = hf.transformers.get_scheduler(arguments.lr_scheduler_type, optimizer, -(-len(steps) // 10), len(steps))
    losses = []
    for step in steps:
        with hf.float64_throughout():
            loss = loss_in_torch(model, [[run.tasks[name].examples[i] for i in batch] for batch in step])
            loss.backward()
        torch.nn.utils.clip_grad_norm_(list(parameters.values()), arguments.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, {key: x.detach().numpy() for key, x in parameters.items()}
