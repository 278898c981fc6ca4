"""The kernels as an Ops: CUDA, to be used wherever NUMPY is, on a GPU or on the CPU runner.

The model's numbers are float32 arrays that were rounded at the points of a Precision; a kernel is built for one type T.
So each step here asks three things of the Precision: what is stored is of which type (that is T), which roundings
inside the kernel its flags can do, and what remains for the result. What does not fit is refused by the point's name.
A half-precision number that is stored as float32 becomes a half at the kernel's door and loses nothing.
"""

import dataclasses

from ..arrays import Array, Float, Int, Precision, rounded, widen
from ..config import ClampedGate, View
from ..ops import NUMPY
from ..plans import AttentionMetadata
from . import launch
from .experts import routed_experts
from .launch import stored, widened
from .lora import lora_delta
from .points import kernel_type, rounds


def write_kv(
    k_cache: Float[Array, "blocks block_size kv_heads head_dim"],
    v_cache: Float[Array, "blocks block_size kv_heads value_dim"],
    k: Float[Array, "tokens kv_heads head_dim"],
    v: Float[Array, "tokens kv_heads value_dim"],
    metadata: AttentionMetadata,
    p: Precision,
) -> None:
    """cache[slot_mapping[t]] = k[t], v[t]. T is the type at p.kv, and the cache itself float32."""
    dtype = kernel_type("write_kv", p, ["kv"])
    launch.write_kv(k_cache, v_cache, stored(k, dtype), stored(v, dtype), metadata, dtype)


def attention(
    q: Float[Array, "tokens heads head_dim"],
    k_cache: Float[Array, "blocks block_size kv_heads head_dim"],
    v_cache: Float[Array, "blocks block_size kv_heads value_dim"],
    metadata: AttentionMetadata,
    view: View,
    p: Precision,
) -> Float[Array, "tokens heads*value_dim"]:
    """softmax(scale * q k^T) v, keys and values read from float32 whatever T is."""
    dtype = kernel_type("attention", p, ["rope", "attention"], ["scores", "probabilities"])
    if view.sinks is not None:
        view = dataclasses.replace(view, sinks=widen(view.sinks, "float32"))
    flags = rounds(p, "scores"), rounds(p, "probabilities")
    out = launch.attention(stored(q, dtype), k_cache, v_cache, metadata, view, dtype, *flags)
    return rounded(widened(out, dtype), p.attention)


def rms_norm(
    x: Float[Array, "tokens d_model"], weight: Float[Array, " d_model"], eps: float, p: Precision
) -> Float[Array, "tokens d_model"]:
    """x / sqrt(mean(x^2) + eps) * weight."""
    dtype = kernel_type("rms_norm", p, ["embedding", "linear", "residual", "norm"], ["norm_inner"])
    y = launch.rms_norm(stored(x, dtype), widen(weight, "float32"), eps, dtype, rounds(p, "norm_inner"))
    return rounded(widened(y, dtype), p.norm)


def layer_norm(
    x: Float[Array, "tokens d_model"], weight: Float[Array, "parts d_model"], eps: float, p: Precision
) -> Float[Array, "tokens d_model"]:
    """(x - mean) / sqrt(mean((x - mean)^2) + eps) * weight + bias."""
    dtype = kernel_type("layer_norm", p, ["embedding", "linear", "residual", "norm"], ["norm_inner"])
    y = launch.layer_norm(stored(x, dtype), widen(weight, "float32"), eps, dtype, rounds(p, "norm_inner"))
    return rounded(widened(y, dtype), p.norm)


def rope(
    x: Float[Array, "tokens heads head_dim"],
    cos: Float[Array, "tokens half"],
    sin: Float[Array, "tokens half"],
    interleaved: bool,
    p: Precision,
) -> Float[Array, "tokens heads head_dim"]:
    """Each pair of channels turned by its angle."""
    dtype = kernel_type("rope", p, ["linear", "rope"], ["rope_product"])
    y = launch.rope(stored(x, dtype), cos, sin, interleaved, dtype, rounds(p, "rope_product"))
    return rounded(widened(y, dtype), p.rope)


def mlp_activation(
    gate: Float[Array, "tokens d_mlp"], up: Float[Array, "tokens d_mlp"] | None, kind: str | ClampedGate, p: Precision
) -> Float[Array, "tokens d_mlp"]:
    """act(gate) * up, or act(gate) alone."""
    dtype = kernel_type("mlp_activation", p, ["linear", "activation"], ["activation_inner"])
    up = None if up is None else stored(up, dtype)
    y = launch.mlp_activation(stored(gate, dtype), up, kind, dtype, rounds(p, "activation_inner"))
    return rounded(widened(y, dtype), p.activation)


def embed(
    table: Float[Array, "vocab d_model"], token_ids: Int[Array, " tokens"], p: Precision
) -> Float[Array, "tokens d_model"]:
    """x[t] = table[token_ids[t]]. T is the type of the table as it was loaded."""
    kernel_type("embed", p, ["embedding"])
    dtype = table.dtype.name if table.dtype.name in launch.STORED else "float32"
    rows = launch.embed(as_stored(table, dtype), token_ids, dtype)
    return rounded(widened(rows, dtype), p.embedding)


def as_stored(weight: Array, dtype: str) -> Array:
    """Weights that are of the kernel's type already, as they are; others as float32."""
    if dtype == "float32":
        return widen(weight, "float32")
    return weight.view(launch.STORED[dtype])


CUDA = dataclasses.replace(
    NUMPY,
    lora_delta=lora_delta,
    routed_experts=routed_experts,
    write_kv=write_kv,
    attention=attention,
    rms_norm=rms_norm,
    layer_norm=layer_norm,
    rope=rope,
    mlp_activation=mlp_activation,
    embed=embed,
    precision="flash",
)
