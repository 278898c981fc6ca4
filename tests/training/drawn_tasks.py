"""What the tests of training draw: any small model, tasks of every kind of adapter, parameters that hide nothing."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from support.build import ALWAYS_SEEN, RANKS, configs, random_model

from refimpl import NUMPY, Model, Ops
from refimpl.adapter_slots import scale_of
from refimpl.config import EMBED, LAYER_MODULES, LayerKind, ModelConfig, Module, Norms, Rope
from refimpl.training.arguments import TrainingArguments
from refimpl.training.examples import Example, Task, schedule_of
from refimpl.training.gradient_ops import GRADIENTS, GradientOps
from refimpl.training.loop import Run, initial_state, step_gradients
from refimpl.training.lora_config import LoraConfig
from refimpl.training.lora_gradients import Gradients
from refimpl.training.parameters import Key, Parameters
from refimpl.training.state import TaskState, TrainingState


class Course(NamedTuple):
    """A model, the tasks that train on it, and how. Its repr is what a failing test prints."""

    model: Model
    tasks: list[Task]
    arguments: TrainingArguments

    def __repr__(self) -> str:
        tasks = [
            f"{task.name}: {task.config} on {[len(example.token_ids) for example in task.examples]}"
            for task in self.tasks
        ]
        return "Course(" + ",\n    ".join([repr(self.model.config), *tasks, repr(self.arguments)]) + ")"


@st.composite
def family_configs(draw: st.DrawFn) -> ModelConfig:
    """What no Llama has: norms in other places, fused modules, rotations of part of a head, multipliers, soft-caps."""

    def maybe(value: Any, otherwise: Any = None) -> Any:
        return value if draw(st.booleans()) else otherwise

    kv_heads, head_dim, window = draw(st.integers(1, 2)), draw(st.sampled_from([4, 8])), maybe(3)
    rope = Rope(1e4, partial_rotary_factor=draw(st.sampled_from([0.5, 1.0])), interleaved=draw(st.booleans()))
    rope = replace(rope, attention_factor=maybe(1.3, 1.0), **maybe(GROWING, {}))
    norms = Norms(
        attention_in=maybe("input_layernorm"),
        q=maybe("self_attn.q_norm"),
        k=maybe("self_attn.k_norm"),
        q_turned=maybe("self_attn.q_turned"),
        k_turned=maybe("self_attn.k_turned"),
        attention_out=maybe("attention_out"),
        mlp_in=maybe("post_attention_layernorm"),
        mlp_out=maybe("mlp_out"),
        whole_projection=draw(st.booleans()),
    )
    multipliers = ("embedding_multiplier", "residual_multiplier", "logits_scaling")
    return ModelConfig(
        11,
        10,
        7,
        2,
        kv_heads * draw(st.integers(1, 2)),
        kv_heads,
        head_dim,
        rope=rope,
        sliding_window=window,
        layers=maybe((LayerKind(window, rope), LayerKind(None, maybe(Rope(500.0)))), ()),
        norms=norms,
        qkv=maybe(("qkv_proj",), ("q_proj", "k_proj", "v_proj")),
        gate_up=maybe(("gate_up_proj",), ("gate_proj", "up_proj")),
        activation=maybe("gelu_tanh", "silu"),
        attention_scale=maybe(0.4),
        attention_softcap=maybe(1.5),
        logits_softcap=maybe(4.0),
        biased=("qkv_proj",),
        **{name: maybe(factor, 1.0) for name, factor in zip(multipliers, (2.5, 0.4, 3.0), strict=True)},
    )


GROWING = {"query_growth": 0.3, "original_max_position_embeddings": 2}


@st.composite
def lora_configs(draw: st.DrawFn, base: ModelConfig, dropout: bool = False) -> LoraConfig:
    """Any kind of adapter; some train an embedding or a head whole, or both of them with LoRA."""
    r = draw(st.sampled_from(RANKS))
    modules = [name for _, name in base.modules()]
    others = draw(st.lists(st.sampled_from(modules), unique=True))
    always = [name for name in ALWAYS_SEEN if name in modules]
    targets = list(dict.fromkeys([draw(st.sampled_from(always)), *others]))
    use_dora = draw(st.booleans())
    free = [name for name in ("embed_tokens", "lm_head") if name not in targets]
    return LoraConfig(
        r=r,
        lora_alpha=r * draw(st.sampled_from([0.5, 2.0, 3.0, -1.5])),
        target_modules=tuple(targets),
        use_rslora=draw(st.booleans()),
        rank_pattern=draw(st.dictionaries(st.sampled_from(LAYER_MODULES), st.sampled_from(RANKS), max_size=2)),
        alpha_pattern=draw(st.dictionaries(st.sampled_from(LAYER_MODULES), st.sampled_from([0.5, 9.0]), max_size=2)),
        lora_bias=draw(st.booleans()) and "embed_tokens" not in targets and not use_dora,
        use_dora=use_dora,
        lora_dropout=draw(st.sampled_from([0.0, 0.3])) if dropout else 0.0,
        modules_to_save=tuple(draw(st.lists(st.sampled_from(free), unique=True))) if free else (),
    )


@st.composite
def courses(
    draw: st.DrawFn,
    max_tasks: int = 3,
    dropout: bool = False,
    bases: st.SearchStrategy[ModelConfig] | None = None,
    **arguments: Any,
) -> Course:
    """A float64 model and one to three tasks with a few ragged examples each; some have a single token to learn."""
    config = draw(configs(2) if bases is None else bases)
    model = random_model(config, draw(st.integers(0, 1000)))
    tasks = [
        Task(
            "abc"[i],
            draw(lora_configs(config, dropout)),
            random_examples(
                config, draw(st.lists(st.integers(2, 9), min_size=1, max_size=4)), draw(st.integers(0, 99))
            ),
        )
        for i in range(draw(st.integers(1, max_tasks)))
    ]
    defaults = {"batch_tokens": draw(st.sampled_from([6, 12, 100])), "seed": draw(st.integers(0, 99)), "epochs": 1}
    return Course(model, tasks, TrainingArguments(**defaults | arguments))


def random_examples(config: ModelConfig, lengths: Sequence[int], seed: int) -> list[Example]:
    """Examples of these lengths, each with at least one token to learn: the last."""
    rng = np.random.default_rng([seed, 3])
    return [
        Example(rng.integers(0, config.vocab_size, n).tolist(), [*(rng.random(n - 1) < 0.6).tolist(), True])
        for n in lengths
    ]


def run_of(course: Course, ops: Ops = NUMPY, gradient_ops: GradientOps = GRADIENTS) -> Run:
    """What `train` makes of its arguments."""
    schedules = {task.name: schedule_of(task.examples, course.arguments) for task in course.tasks}
    tasks = {task.name: task for task in course.tasks}
    return Run(course.model, tasks, schedules, course.arguments, ops, gradient_ops)


def random_state(run: Run, seed: int = 0) -> TrainingState:
    """The state before the first step, but with no parameter zero: a B of zeros hides the gradient of A."""
    rng = np.random.default_rng([seed, 5])
    tasks = {}
    for name, task in initial_state(run).tasks.items():
        random = {key: random_parameter(key, x, rng) for key, x in task.parameters.items()}
        tasks[name] = replace(task, parameters=random)
    return TrainingState(tasks)


def random_parameter(key: Key, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Signed numbers with which an adapter changes about as much as the base does."""
    if key.part == "weight":
        return x + 0.3 * rng.standard_normal(x.shape)
    if key.part == "magnitude":
        return x * (1 + 0.3 * rng.standard_normal(x.shape))
    return rng.standard_normal(x.shape) / np.sqrt(x.shape[-1])


def gradients_of(run: Run, state: TrainingState) -> tuple[dict[str, float], dict[str, Parameters]]:
    """Losses and gradients of everyone's next step, by the name of the task."""
    losses, gradients = step_gradients(run, state.tasks)
    names = list(state.tasks)
    by_name: dict[str, Parameters] = {names[slot]: of_slot for slot, of_slot in by_slot(gradients)}
    return dict(zip(names, losses, strict=True)), by_name


def by_slot(gradients: Gradients) -> list[tuple[int, Parameters]]:
    return sorted(gradients.items())


def with_parameter(state: TrainingState, name: str, key: Key, x: np.ndarray) -> TrainingState:
    """The state with one parameter exchanged."""
    task: TaskState = state.tasks[name]
    return TrainingState({**state.tasks, name: replace(task, parameters={**task.parameters, key: x})})


def with_parameter_and_gain(model: Model, state: TrainingState, name: str, key: Key, x: np.ndarray) -> TrainingState:
    """The same, and where it is a DoRA's the magnitude with it, so that each row is stretched by as much as before:
    a length is a constant for the gradient, not for the loss."""
    magnitude, task = Key(key.module, "magnitude"), state.tasks[name]
    after = with_parameter(state, name, key, x)
    if key.part not in ("A", "B") or magnitude not in task.parameters:
        return after
    ratio = lengths(model, after.tasks[name], key.module) / lengths(model, task, key.module)
    return with_parameter(after, name, magnitude, task.parameters[magnitude] * ratio)


def lengths(model: Model, task: TaskState, module: Module) -> np.ndarray:
    """The length of each row of W + scale B A; at the embedding the rows are the table's columns."""
    A, B = (task.parameters[Key(module, part)] for part in "AB")
    weight = model.linear(module).weight
    scale = scale_of(task.config.peft, module, A.shape[0])
    return np.sqrt((((weight.T if module == EMBED else weight) + scale * B @ A) ** 2).sum(axis=1))
