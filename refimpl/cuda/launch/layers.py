"""layers.cu: embed, rms_norm, rope, mlp_activation."""

import numpy as np

from ...arrays import Array, Float, Int, namespace
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


def rope(x: Float[Array, "tokens heads head_dim"], cos: Array, sin: Array, dtype: str, product: bool) -> Array:
    """Each pair (x[i], x[i + head_dim/2]) turned by its angle; cos and sin are float32."""
    tokens, heads, head_dim = x.shape
    check_array("x", x, dtype)
    for name, table in (("cos", cos), ("sin", sin)):
        check_array(name, table, "float32")
        if table.shape != (tokens, head_dim // 2) or head_dim % 2:
            raise LoracleError(f"{name} is {table.shape}, x {x.shape}")
    y = start.empty(namespace(x), x.shape, x.dtype)
    arguments = {"y": y, "x": x, "cos": cos, "sin": sin, "heads": heads, "head_dim": head_dim}
    grid = (tokens, ceil_div(heads * head_dim // 2, 128), 1)
    start.launch_kernel("layers.cu", dtype, "rope", grid, 128, {**arguments, "round_product": int(product)})
    return y


def mlp_activation(
    gate: Float[Array, "tokens d_mlp"], up: Float[Array, "tokens d_mlp"], dtype: str, inner: bool
) -> Array:
    """silu(gate) * up."""
    check_array("gate", gate, dtype)
    check_array("up", up, dtype)
    if gate.shape != up.shape:
        raise LoracleError(f"gate is {gate.shape}, up {up.shape}")
    if gate.size >= 2**31:
        raise LoracleError(f"gate {gate.shape} has {gate.size} numbers; the kernel counts to 2^31 - 1")
    y = start.empty(namespace(gate), gate.shape, gate.dtype)
    arguments = {"y": y, "gate": gate, "up": up, "count": gate.size, "round_inner": int(inner)}
    start.launch_kernel("layers.cu", dtype, "mlp_activation", (ceil_div(gate.size, 128), 1, 1), 128, arguments)
    return y
