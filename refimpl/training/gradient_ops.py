"""The mirror of Ops: of each step that has a gradient, its vector-Jacobian product, in one table passed as an argument.

GRADIENTS runs, PER_TOKEN is its definition, and a mutant of the backward pass is `dataclasses.replace(GRADIENTS, ...)`.
write_kv has none: while an adapter trains, what is written is read back at once. scaled has none: it is its own.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..adapter_slots import AdapterSlots
from ..arrays import Array, Precision
from ..config import Module, View
from ..plans import AttentionMetadata, LoraMapping
from . import attention_gradients, gradients, lora_gradients
from .lora_gradients import Gradients

Pair = tuple[Array, Array]
Triple = tuple[Array, Array, Array]


@dataclass(frozen=True)
class GradientOps:
    """The named steps. Shapes and formulas stand with the functions that fill the tables below."""

    embed_weight: Callable[[Array, Array, int], Array]  # dy, token_ids, vocab -> dW
    linear: Callable[[Array, Array, Precision], Array]  # dy, weight -> dx
    linear_weight: Callable[[Array, Array], Array]  # dy, x -> dW
    lora_delta: Callable[
        [Array, Array, Module, AdapterSlots, LoraMapping, Precision], tuple[Array, Array, Gradients]
    ]  # dy, x -> the base's dy, dx, and A's, B's, bias's, magnitude's
    rms_norm: Callable[[Array, Array, Array, float, Precision], Array]  # dy, x, weight, eps -> dx
    rope: Callable[[Array, Array, Array, bool, Precision], Array]  # dy, cos, sin, interleaved -> dx
    attention: Callable[[Array, Array, Array, Array, AttentionMetadata, View, Precision], Triple]  # dy, q, k, v
    mlp_activation: Callable[[Array, Array, Array, str, Precision], Pair]  # dy, gate, up, kind -> dgate, dup
    softcap: Callable[[Array, Array, float | None], Array]  # dy, y, cap -> dx
    cross_entropy: Callable[[Array, Array, Array], Pair]  # logits, targets, weights -> losses, dlogits


PER_TOKEN = GradientOps(
    embed_weight=gradients.embed_weight_vjp_per_token,
    linear=gradients.linear_vjp_per_token,
    linear_weight=gradients.linear_weight_vjp_per_token,
    lora_delta=lora_gradients.lora_delta_vjp_per_token,
    rms_norm=gradients.rms_norm_vjp_per_token,
    rope=gradients.rope_vjp_per_token,
    attention=attention_gradients.attention_vjp_per_token,
    mlp_activation=gradients.mlp_activation_vjp,
    softcap=gradients.softcap_vjp,
    cross_entropy=gradients.cross_entropy,
)

# The same steps, vectorised: what a definition and a fast form have in common stands once.
GRADIENTS = replace(
    PER_TOKEN,
    embed_weight=gradients.embed_weight_vjp,
    linear=gradients.linear_vjp,
    linear_weight=gradients.linear_weight_vjp,
    lora_delta=lora_gradients.lora_delta_vjp,
    rms_norm=gradients.rms_norm_vjp,
    rope=gradients.rope_vjp,
    attention=attention_gradients.attention_vjp,
)
