"""Plausible mistakes in the backward pass, each of which must be caught: by central differences of the loss.

A mistake of this kind lets the loss fall all the same, more slowly or to another place, so that nobody sees it.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from drawn_tasks import Course, random_examples
from support.build import EVERYWHERE, random_model
from support.device_testbed import CONFIG
from test_backward import check_gradients_are_central_differences

from refimpl.config import ModelConfig, Norms, Rope, View
from refimpl.plans import AttentionMetadata
from refimpl.training.arguments import TrainingArguments
from refimpl.training.examples import Task
from refimpl.training.gradient_ops import GRADIENTS, GradientOps
from refimpl.training.lora_config import LoraConfig
from refimpl.training.parameters import Key

Array = np.ndarray


def course() -> Course:
    """Two layers, a window, grouped heads, biases; LoRA everywhere beside a head trained whole; ragged examples, in
    which tokens come again."""
    few_words = replace(CONFIG, vocab_size=7)
    tasks = [
        Task("all", LoraConfig(3, 7, EVERYWHERE), random_examples(few_words, [5, 9, 2], 1)),
        Task(
            "head",
            LoraConfig(2, 5, ("q_proj", "down_proj"), lora_bias=True, modules_to_save=("lm_head", "embed_tokens")),
            random_examples(few_words, [8, 3], 2),
        ),
        Task("dora", LoraConfig(2, 3, ("k_proj", "up_proj"), use_dora=True), random_examples(few_words, [4, 6], 3)),
    ]
    return Course(random_model(CONFIG, 5), tasks, TrainingArguments(batch_tokens=100))


def changed_lora(change: Callable[..., dict[Key, Array]]) -> GradientOps:
    """The table with the adapters' gradients changed: change(parts, dy, x, lora, rows) for each slot."""

    def lora_delta(dy: Array, x: Array, module: Any, adapters: Any, mapping: Any, p: Any) -> tuple:
        dbase, dx, gradients = GRADIENTS.lora_delta(dy, x, module, adapters, mapping, p)
        for segment in mapping.columns[0].segments:
            if segment.slot in gradients:
                lora = adapters.at(module)[segment.slot]
                gradients[segment.slot] = change(gradients[segment.slot], dy, x, lora, segment.rows)
        return dbase, dx, gradients

    return replace(GRADIENTS, lora_delta=lora_delta)


def scale_left_out(parts: dict[Key, Array], dy: Array, x: Array, lora: Any, rows: slice) -> dict[Key, Array]:
    return {key: gradient / (1 if key.part == "magnitude" else lora.scale) for key, gradient in parts.items()}


def mean_for_sum(parts: dict[Key, Array], dy: Array, x: Array, lora: Any, rows: slice) -> dict[Key, Array]:
    return {key: gradient / (rows.stop - rows.start) for key, gradient in parts.items()}


def of_B_from_the_token_before(
    parts: dict[Key, Array], dy: Array, x: Array, lora: Any, rows: slice
) -> dict[Key, Array]:
    low = lora.A[:, np.roll(x[rows], 1)].T if x.ndim == 1 else np.roll(x[rows], 1, axis=0) @ lora.A.T
    du = dy[rows] * (1 if lora.dora is None else lora.dora.gain)
    return {key: lora.scale * du.T @ low if key.part == "B" else gradient for key, gradient in parts.items()}


def magnitude_for_gain(parts: dict[Key, Array], dy: Array, x: Array, lora: Any, rows: slice) -> dict[Key, Array]:
    """d loss / d gain, with the length left out."""
    return {
        key: gradient * lora.magnitude / lora.dora.gain if key.part == "magnitude" else gradient
        for key, gradient in parts.items()
    }


def of_the_rows_of_everyone(parts: dict[Key, Array], dy: Array, x: Array, lora: Any, rows: slice) -> dict[Key, Array]:
    scaled = lora.scale * dy
    return {key: scaled.sum(axis=0) if key.part == "bias" else gradient for key, gradient in parts.items()}


def nothing_through_the_adapter(*call: Any) -> tuple:
    dbase, dx, gradients = GRADIENTS.lora_delta(*call)
    return dbase, 0 * dx, gradients


def unstretched(*call: Any) -> tuple:
    _, dx, gradients = GRADIENTS.lora_delta(*call)
    return call[0], dx, gradients


def stale_norm() -> Callable[..., Array]:
    """Each call gets the x of the call before it, as if activations had been kept one layer too long."""
    kept: list[Array] = []

    def rms_norm(dy: Array, x: Array, weight: Array, eps: float, p: Any) -> Array:
        kept.append(x)
        before = kept[-2] if len(kept) > 1 and kept[-2].shape == x.shape else x
        return GRADIENTS.rms_norm(dy, before, weight, eps, p)

    return rms_norm


def stale_gate() -> Callable[..., tuple]:
    kept: list[Array] = []

    def mlp_activation(dy: Array, gate: Array, up: Array, kind: str, p: Any) -> tuple:
        kept.append(gate)
        return GRADIENTS.mlp_activation(dy, kept[-2] if len(kept) > 1 else gate, up, kind, p)

    return mlp_activation


def norm_without_the_mean(dy: Array, x: Array, weight: Array, eps: float, p: Any) -> Array:
    return dy * weight / np.sqrt((x * x).mean(axis=1, keepdims=True) + eps)


def silu_without_its_own_product(dy: Array, gate: Array, up: Array, kind: str, p: Any) -> tuple:
    sigmoid = 1 / (1 + np.exp(-gate))
    return dy * up * sigmoid, dy * gate * sigmoid


def rope_once_more(dy: Array, cos: Array, sin: Array, interleaved: bool, p: Any) -> Array:
    return GRADIENTS.rope(dy, cos, -sin, interleaved, p)


def keys_unscaled(dy: Array, q: Array, *others: Any) -> tuple:
    dq, dk, dv = GRADIENTS.attention(dy, q, *others)
    return dq, dk * np.sqrt(q.shape[-1]), dv


def window_forgotten(dy: Array, q: Array, k: Array, v: Array, metadata: AttentionMetadata, view: View, p: Any) -> tuple:
    return GRADIENTS.attention(dy, q, k, v, metadata, replace(view, window=None), p)


def one_query_head_for_its_group(dy: Array, q: Array, *others: Any) -> tuple:
    first = np.zeros(dy.shape).reshape(q.shape)
    group = q.shape[1] // others[0].shape[1]
    first[:, ::group] = dy.reshape(q.shape)[:, ::group]
    (dq, dk, _), (_, _, dv) = (
        GRADIENTS.attention(dy, q, *others),
        GRADIENTS.attention(first.reshape(dy.shape), q, *others),
    )
    return dq, dk, dv


def loss_unweighted(logits: Array, targets: Array, weights: Array) -> tuple:
    losses, gradient = GRADIENTS.cross_entropy(logits, targets, weights)
    return losses, gradient / weights[:, None] / len(weights)


def last_of_equal_ids(dy: Array, token_ids: Array, vocab: int) -> Array:
    gradient = np.zeros((vocab, dy.shape[1]))
    gradient[token_ids] = dy
    return gradient


MUTANTS: dict[str, Callable[[], GradientOps]] = {
    "scale left out": lambda: changed_lora(scale_left_out),
    "mean for sum": lambda: changed_lora(mean_for_sum),
    "dB from the token before": lambda: changed_lora(of_B_from_the_token_before),
    "dbias from everyone's rows": lambda: changed_lora(of_the_rows_of_everyone),
    "nothing comes back through the adapter": lambda: replace(GRADIENTS, lora_delta=nothing_through_the_adapter),
    "DoRA's gain forgotten on the way to the base": lambda: replace(GRADIENTS, lora_delta=unstretched),
    "a magnitude without its length": lambda: changed_lora(magnitude_for_gain),
    "a norm's stale activations": lambda: replace(GRADIENTS, rms_norm=stale_norm()),
    "the gate of another layer": lambda: replace(GRADIENTS, mlp_activation=stale_gate()),
    "a norm's mean is a constant": lambda: replace(GRADIENTS, rms_norm=norm_without_the_mean),
    "silu's derivative is the sigmoid": lambda: replace(GRADIENTS, mlp_activation=silu_without_its_own_product),
    "rope turned forward": lambda: replace(GRADIENTS, rope=rope_once_more),
    "dk without 1 / sqrt(head_dim)": lambda: replace(GRADIENTS, attention=keys_unscaled),
    "no window on the way back": lambda: replace(GRADIENTS, attention=window_forgotten),
    "dv of one query head of each group": lambda: replace(GRADIENTS, attention=one_query_head_for_its_group),
    "the mean over all tasks": lambda: replace(GRADIENTS, cross_entropy=loss_unweighted),
    "half of a whole weight's gradient": lambda: replace(GRADIENTS, linear_weight=lambda dy, x: 0.5 * dy.T @ x),
    "the last of several equal ids": lambda: replace(GRADIENTS, embed_weight=last_of_equal_ids),
}


def gelu_for_its_derivative(dy: Array, gate: Array, up: Array, kind: str, p: Any) -> tuple:
    _, dup = GRADIENTS.mlp_activation(dy, gate, up, kind, p)
    return dup / gate * up, dup


MUTANTS_BEYOND_LLAMA: dict[str, Callable[[], GradientOps]] = {
    "the caps pass everything": lambda: replace(GRADIENTS, softcap=lambda dy, y, cap: dy),
    "scores are scaled by 1 / sqrt(head_dim) all the same": lambda: replace(
        GRADIENTS,
        attention=lambda *call: GRADIENTS.attention(*call[:5], replace(call[5], scale=None), call[6]),
    ),
    "no cap in attention": lambda: replace(
        GRADIENTS,
        attention=lambda *call: GRADIENTS.attention(*call[:5], replace(call[5], softcap=None), call[6]),
    ),
    "gelu(g) / g for gelu's derivative": lambda: replace(GRADIENTS, mlp_activation=gelu_for_its_derivative),
    "pairs of the other layout": lambda: replace(
        GRADIENTS, rope=lambda dy, cos, sin, interleaved, p: GRADIENTS.rope(dy, cos, sin, not interleaved, p)
    ),
    "the norm of the second head as of the first": lambda: replace(
        GRADIENTS,
        rms_norm=lambda dy, x, *others: GRADIENTS.rms_norm(dy, np.roll(x, 1, axis=0), *others),
    ),
}


def course_beyond_llama() -> Course:
    """Norms of each head, half a head that turns in neighbouring pairs, caps, gelu, fused modules, multipliers."""
    base = ModelConfig(
        *(7, 10, 7, 2, 4, 2, 8),
        rope=Rope(1e4, partial_rotary_factor=0.5, interleaved=True),
        norms=Norms(q="self_attn.q_norm", k="self_attn.k_norm", attention_out="attention_out", mlp_out="mlp_out"),
        qkv=("qkv_proj",),
        gate_up=("gate_up_proj",),
        activation="gelu_tanh",
        attention_scale=0.7,
        attention_softcap=1.5,
        logits_softcap=2.0,
        residual_multiplier=0.4,
    )
    lora = LoraConfig(2, 5, ("qkv_proj", "o_proj", "gate_up_proj", "down_proj", "embed_tokens"))
    return Course(
        random_model(base, 5),
        [Task("all", lora, random_examples(base, [5, 7], 1))],
        TrainingArguments(batch_tokens=100),
    )


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mistake_in_the_backward_pass_is_caught(name: str) -> None:
    with pytest.raises(AssertionError, match="not"):
        check_gradients_are_central_differences(MUTANTS[name](), course(), 0)


def test_what_they_are_caught_in_is_right_without_them() -> None:
    check_gradients_are_central_differences(GRADIENTS, course(), 0)


@pytest.mark.parametrize("name", MUTANTS_BEYOND_LLAMA)
def test_so_is_one_that_shows_in_other_families_alone(name: str) -> None:
    with pytest.raises(AssertionError, match="not"):
        check_gradients_are_central_differences(MUTANTS_BEYOND_LLAMA[name](), course_beyond_llama(), 0)


def test_their_course_is_right_without_them() -> None:
    check_gradients_are_central_differences(GRADIENTS, course_beyond_llama(), 0)
