"""layers.cu: embed, the norms, rope, the activations."""

import numpy as np

from ...arrays import Array, Float, Int, namespace
from ...config import ClampedGate
from ...errors import LoracleError
from . import start
from .checks import check_array
from .start import ceil_div


def embed(table: Float[Array, "vocab d_model"], token_ids: Int[Array, " tokens"], dtype: str) -> Array:
    """y[t] = table[token_ids[t]]."""
    tokens, (vocab, d_model) = len(token_ids), table.shape
    check_array("table", table, dtype)
    check_array("token_ids", token_ids, "int32")
    # On a GPU this would wait for the device; checks.py has looked at the ids while they were on the host.
    if isinstance(token_ids, np.ndarray) and tokens and not (token_ids.min() >= 0 and token_ids.max() < vocab):
        raise LoracleError(f"token ids from {token_ids.min()} to {token_ids.max()}: the table has {vocab} rows")
    y = start.empty(namespace(table), (tokens, d_model), table.dtype)
    arguments = {"y": y, "table": table, "token_ids": token_ids, "d_model": d_model}
    start.launch_kernel("layers.cu", dtype, "embed", (tokens, ceil_div(d_model, 128), 1), 128, arguments)
    return y


def rms_norm(x: Float[Array, "tokens d_model"], weight: Array, eps: float, dtype: str, inner: bool) -> Array:
    """x / sqrt(mean(x^2) + eps) * weight; the weight is float32 whatever x is."""
    tokens, d_model = x.shape
    check_array("x", x, dtype)
    check_array("weight", weight, "float32")
    if weight.shape != (d_model,):
        raise LoracleError(f"weight is {weight.shape}, x {x.shape}")
    y = start.empty(namespace(x), x.shape, x.dtype)
    arguments = {
        "y": y,
        "x": x,
        "weight": weight,
        "d_model": d_model,
        "eps": np.float32(eps),
        "round_inner": int(inner),
    }
    start.launch_kernel("layers.cu", dtype, "rms_norm", (tokens, 1, 1), 128, arguments)
    return y


def layer_norm(
    x: Float[Array, "tokens d_model"], weight: Float[Array, "parts d_model"], eps: float, dtype: str, inner: bool
) -> Array:
    """(x - mean) / sqrt(mean((x - mean)^2) + eps) * weight + bias. weight: float32, the bias, if any, below it."""
    tokens, d_model = x.shape
    check_array("x", x, dtype)
    check_array("weight", weight, "float32")
    if weight.shape not in ((1, d_model), (2, d_model)):
        raise LoracleError(f"weight and bias are {weight.shape}, x {x.shape}")
    y = start.empty(namespace(x), x.shape, x.dtype)
    arguments = {
        "y": y,
        "x": x,
        "weight": weight[0],
        "bias": weight[1] if len(weight) > 1 else None,
        "d_model": d_model,
        "eps": np.float32(eps),
        "round_inner": int(inner),
    }
    start.launch_kernel("layers.cu", dtype, "layer_norm", (tokens, 1, 1), 128, arguments)
    return y


def rope(
    x: Float[Array, "tokens heads head_dim"], cos: Array, sin: Array, interleaved: bool, dtype: str, product: bool
) -> Array:
    """Each pair of channels turned by its angle, the others as they are; cos and sin are float32 [tokens, pairs]."""
    tokens, heads, head_dim = x.shape
    check_array("x", x, dtype)
    half = cos.shape[-1]
    for name, table in (("cos", cos), ("sin", sin)):
        check_array(name, table, "float32")
        if table.shape != (tokens, half) or 2 * half > head_dim:
            raise LoracleError(f"{name} is {table.shape}, x {x.shape}")
    y = start.empty(namespace(x), x.shape, x.dtype)
    arguments = {"y": y, "x": x, "cos": cos, "sin": sin, "heads": heads, "head_dim": head_dim, "half": half}
    arguments |= {"interleaved": int(interleaved), "round_product": int(product)}
    grid = (tokens, ceil_div(heads * ceil_div(head_dim, 2), 128), 1)
    start.launch_kernel("layers.cu", dtype, "rope", grid, 128, arguments)
    return y


ACTIVATIONS = {"silu": 0, "relu2": 1, "gelu_tanh": 2}  # their numbers in layers.cu


def mlp_activation(
    gate: Float[Array, "tokens d_mlp"],
    up: Float[Array, "tokens d_mlp"] | None,
    kind: str | ClampedGate,
    dtype: str,
    inner: bool,
) -> Array:
    """act(gate) * up, or act(gate) alone; gpt-oss's clamped gate is a kernel of its own."""
    check_array("gate", gate, dtype)
    if up is not None:
        check_array("up", up, dtype)
        if gate.shape != up.shape:
            raise LoracleError(f"gate is {gate.shape}, up {up.shape}")
    if gate.size >= 2**31:
        raise LoracleError(f"gate {gate.shape} has {gate.size} numbers; the kernel counts to 2^31 - 1")
    y = start.empty(namespace(gate), gate.shape, gate.dtype)
    arguments = {"y": y, "gate": gate, "up": up, "count": gate.size, "round_inner": int(inner)}
    if isinstance(kind, ClampedGate):
        kernel = "clamped_gate"
        arguments |= {"alpha": np.float32(kind.alpha), "limit": np.float32(kind.limit)}
        if up is None:
            raise LoracleError("clamped_gate multiplies by up, and there is none")
    else:
        kernel = "mlp_activation"
        arguments["kind"] = ACTIVATIONS[kind]
    start.launch_kernel("layers.cu", dtype, kernel, (ceil_div(gate.size, 128), 1, 1), 128, arguments)
    return y
