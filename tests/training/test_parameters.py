"""What an adapter begins as, what can be said of it, and what cannot."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from drawn_tasks import Course, courses, random_examples, random_state, run_of
from hypothesis import given, settings
from hypothesis import strategies as st
from support.build import EVERYWHERE, random_model
from support.compare import assert_same_bits
from support.device_testbed import CONFIG

from refimpl import LoracleError, Request, logits
from refimpl.adapter import TokenRows
from refimpl.config import EMBED, LM_HEAD
from refimpl.training.arguments import TrainingArguments
from refimpl.training.examples import Example, Task, microbatches, schedule_of
from refimpl.training.loop import evaluate, initial_state, train
from refimpl.training.lora_config import LoraConfig, lora_modules
from refimpl.training.parameters import Key, from_adapter, initial_parameters, to_adapter

MODEL = random_model(CONFIG, 5)


@settings(max_examples=15)
@given(course=courses())
def test_an_adapter_begins_by_changing_nothing(course: Course) -> None:
    state = initial_state(run_of(course))
    prompts = [example.token_ids for task in course.tasks for example in task.examples]
    base = logits(course.model, [Request(prompt) for prompt in prompts])
    for task in course.tasks:
        rows = logits(course.model, [Request(prompt, state.adapter(task.name)) for prompt in prompts])
        for row, expected in zip(rows, base, strict=True):
            np.testing.assert_allclose(row, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def test_the_numbers_it_begins_with_are_those_of_peft() -> None:
    """A uniform within 1 / sqrt(d_in), B zero; the other way round at the embedding, with B normal."""
    parameters = initial_parameters(LoraConfig(64, target_modules=EVERYWHERE), MODEL, 3, "float64")
    for key, x in parameters.items():
        if key.module == EMBED:
            assert not x.any() if key.part == "A" else 0.9 < x.std() < 1.1
        elif key.part == "A":
            bound = 1 / np.sqrt(x.shape[1])
            assert 0.95 * bound < np.abs(x).max() <= bound
            assert x.std() == pytest.approx(bound / np.sqrt(3), rel=0.1) and abs(x.mean()) < 0.1 * bound
        else:
            assert not x.any()
    again, other = (initial_parameters(LoraConfig(64), MODEL, seed, "float64") for seed in (3, 4))
    key = Key((0, "q_proj"), "A")
    assert_same_bits(again[key], initial_parameters(LoraConfig(64), MODEL, 3, "float64")[key])
    assert (again[key] != other[key]).all() and (again[key] != again[Key((1, "q_proj"), "A")]).all()


@settings(max_examples=15)
@given(course=courses(), seed=st.integers(0, 99))
def test_parameters_are_an_adapter_and_back(course: Course, seed: int) -> None:
    for name, task in random_state(run_of(course), seed).tasks.items():
        adapter = to_adapter(name, task.config, task.parameters)
        back = from_adapter(adapter, task.config, course.model, "float64")
        assert back.keys() == task.parameters.keys() and adapter.config == task.config.peft
        for key, x in task.parameters.items():
            assert_same_bits(back[key], x)
            assert Key.of(str(key)) == key


def test_an_adapter_of_another_config_is_refused() -> None:
    config = LoraConfig(2, target_modules=("q_proj",))
    adapter = to_adapter("mine", config, initial_parameters(config, MODEL, 0, "float64"))
    for other, message in (
        (
            LoraConfig(3, target_modules=("q_proj",)),
            r"^mine: .*q_proj.A: the config makes it \[3, 10\] and here it is \[2, 10\]$",
        ),
        (
            LoraConfig(2, target_modules=("v_proj",)),
            r"^mine: .*v_proj.A: the config makes it \[2, 10\] and here it is none$",
        ),
        (LoraConfig(2, target_modules=("q_proj",), lora_bias=True), "q_proj.bias"),
    ):
        with pytest.raises(LoracleError, match=message):
            from_adapter(adapter, other, MODEL, "float64")


def test_an_adapter_with_parts_that_do_not_train_is_refused() -> None:
    config = LoraConfig(2, target_modules=("q_proj",))
    adapter = to_adapter("mine", config, initial_parameters(config, MODEL, 0, "float64"))
    with_biases = replace(adapter, biases={(0, "q_proj"): np.zeros(CONFIG.shape("q_proj")[0])})
    with_tokens = replace(adapter, tokens={EMBED: TokenRows(np.array([3]), np.zeros((1, CONFIG.hidden_size)))})
    for other, part in ((with_biases, "biases"), (with_tokens, "trainable_token_indices")):
        with pytest.raises(LoracleError, match=f"^mine: {part} of the base cannot be trained further$"):
            from_adapter(other, config, MODEL, "float64")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"r": 0}, "r is 0: a rank must be a whole number of 1 or more"),
        ({"r": True}, "r is True"),
        ({"rank_pattern": {"q_proj": 1.5}}, "rank_pattern 'q_proj' is 1.5"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan: an alpha must be a finite number"),
        ({"lora_dropout": 1.0}, "lora_dropout is 1.0: it must be at least 0 and below 1"),
        ({"target_modules": "(q_proj"}, "target_modules: '(q_proj' is not a regular expression"),
        ({"target_modules": ("q_proj", 3)}, "target_modules is ('q_proj', 3): it must be names"),
        ({"target_modules": "q_proj", "layers_to_transform": (0,)}, "layers_to_transform needs target_modules to be"),
        (
            {"target_modules": ("q_prj",)},
            "target_modules: 'q_prj' is no linear layer of the base; there are embed_tokens",
        ),
        ({"target_modules": "nothing"}, "target_modules 'nothing' select no module of the base"),
        ({"target_modules": EVERYWHERE, "lora_bias": True}, "lora_bias: the LoRA of an embedding has no bias"),
        (
            {"layers_to_transform": (9,)},
            "target_modules ('q_proj', 'v_proj') in the layers [9] (there are 0 to 1",
        ),
        ({"layers_to_transform": "all"}, "layers_to_transform is 'all': it must be layer numbers"),
        ({"target_modules": 5}, "target_modules is 5: it must be names"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern is ['q_proj']: it must be a dictionary"),
        ({"use_rslora": "yes"}, "use_rslora is 'yes': it must be True or False"),
        ({"lora_dropout": "0.1"}, "lora_dropout is '0.1': it must be a number"),
        ({"modules_to_save": "lm_head"}, "modules_to_save is 'lm_head': it must be a list of names"),
        ({"modules_to_save": ("norm",)}, "modules_to_save: 'norm' cannot be replaced, only embed_tokens and lm_head"),
    ],
)
def test_a_config_that_means_nothing_is_refused_in_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(LoracleError) as info:
        initial_parameters(LoraConfig(**arguments), MODEL, 0, "float64")
    assert str(info.value).startswith(message) and "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs is 0: it must be a whole number of 1 or more"),
        ({"batch_tokens": 1.5}, "batch_tokens is 1.5"),
        ({"learning_rate": float("inf")}, "learning_rate is inf: it must be a finite number of 0 or more"),
        ({"warmup_ratio": 1.0}, "warmup_ratio is 1.0: it must be at least 0 and below 1"),
        ({"max_grad_norm": 0}, "max_grad_norm is 0: it must be above 0, or None"),
        ({"max_grad_norm": "1"}, "max_grad_norm is '1': it must be above 0, or None"),
        ({"lr_scheduler_type": "step"}, "lr_scheduler_type 'step' is not one of cosine, linear, constant"),
    ],
)
def test_arguments_that_mean_nothing_are_refused_in_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(LoracleError) as info:
        TrainingArguments(**arguments)
    assert str(info.value).startswith(message)


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "mine: there are no examples"),
        ([Example([1, 2], [True])], "mine: example 0: 2 token ids, but 1 in loss_mask"),
        (
            [Example([1, 2], [False, True]), Example([], [])],
            "mine: example 1: token_ids must be a flat list of integers",
        ),
        ([Example([1, 23], [True, True])], "mine: example 0: token id 23 is outside of the vocabulary of 23"),
        ([Example([1] * 65, [True] * 65)], "mine: example 0: 65 tokens are more than the model's 64 positions"),
        ([Example([1], [True])], "mine: example 0: no token after the first is to be learned"),
        ([Example([1, 2], [True, False])], "mine: example 0: no token after the first is to be learned"),
    ],
)
def test_examples_that_cannot_be_learned_are_refused_by_number(examples: list[Example], message: str) -> None:
    with pytest.raises(LoracleError) as info:
        train(MODEL, [Task("mine", LoraConfig(), examples)], TrainingArguments())
    assert str(info.value) == message


def test_a_task_alone_and_its_parts_of_the_wrong_kind_are_refused_in_one_line() -> None:
    task = Task("mine", LoraConfig(), random_examples(CONFIG, [3], 0))
    with pytest.raises(LoracleError, match="train needs a list of tasks, not Task"):
        train(MODEL, task, TrainingArguments())  # type: ignore[arg-type]
    for name in ("../x", "", ".hidden", "a b", 3):
        with pytest.raises(LoracleError, match="is not of letters, digits"):
            Task(name, LoraConfig(), task.examples)  # type: ignore[arg-type]
    with pytest.raises(LoracleError, match="mine: the config is None"):
        Task("mine", None, task.examples)  # type: ignore[arg-type]
    for examples, batch_tokens in (([], 1), (task.examples, 0)):
        with pytest.raises(LoracleError, match=r"^evaluate: "):
            evaluate(MODEL, None, examples, batch_tokens)


def test_two_tasks_of_one_name_are_refused() -> None:
    task = Task("mine", LoraConfig(), random_examples(CONFIG, [3], 0))
    with pytest.raises(LoracleError, match="different names"):
        train(MODEL, [task, task], TrainingArguments())


@given(
    lengths=st.lists(st.integers(2, 20), min_size=1, max_size=12),
    batch_tokens=st.integers(1, 40),
    accumulation=st.integers(1, 3),
    epochs=st.integers(1, 3),
)
def test_each_epoch_has_each_example_once(
    lengths: list[int], batch_tokens: int, accumulation: int, epochs: int
) -> None:
    examples = random_examples(CONFIG, lengths, 0)
    arguments = TrainingArguments(epochs=epochs, batch_tokens=batch_tokens, gradient_accumulation_steps=accumulation)
    schedule = schedule_of(examples, arguments)
    assert max(schedule.epoch_ends) == len(schedule.steps) and len(schedule.epoch_ends) == epochs
    epoch: list[int] = []
    for number, step in enumerate(schedule.steps, 1):
        assert 1 <= len(step) <= accumulation
        for batch in step:
            assert len(batch) == 1 or sum(lengths[i] for i in batch) <= batch_tokens
            epoch += batch
        if number in schedule.epoch_ends:
            assert sorted(epoch) == list(range(len(lengths)))
            epoch = []
    orders = {
        tuple(i for step in schedule_of(examples, TrainingArguments(seed=seed, epochs=1)).steps for i in step[0])
        for seed in range(9)
    }
    assert len(lengths) < 4 or len(orders) > 1


def test_micro_batches_are_filled_in_order() -> None:
    examples = random_examples(CONFIG, [5, 5, 3, 12, 2], 0)
    assert list(microbatches(examples, range(5), 10)) == [[0, 1], [2], [3], [4]]


def test_modules_in_the_order_of_the_forward_pass() -> None:
    config = LoraConfig(target_modules=("lm_head", "v_proj", "embed_tokens", "model.layers.1.self_attn.q_proj"))
    assert lora_modules(config, CONFIG) == [EMBED, (0, "v_proj"), (1, "q_proj"), (1, "v_proj"), LM_HEAD]
