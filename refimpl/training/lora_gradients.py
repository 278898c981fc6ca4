"""LoRA's backward pass: what each adapter's A and B would have to change, each token counted for its own adapter.

y[t] += s (B A x[t] + bias), s = weight * scale:

    dB    = sum over t of  s dy[t] (A x[t])^T        dx[t] = s A^T B^T dy[t]
    dA    = sum over t of  s B^T dy[t] x[t]^T
    dbias = sum over t of  s dy[t]

What DoRA adds to y depends on y itself: there dy comes back to the base stretched, and stands stretched in the place of
dy above (dora_gradients.py).
"""

from ..adapter_slots import AdapterSlots
from ..arrays import Array, Float, Precision, namespace, to_host
from ..config import Module
from ..lora import shrink
from ..plans import NO_ADAPTER, LoraMapping
from .dora_gradients import has_dora, magnitude_vjp
from .gradients import embed_weight_vjp
from .parameters import Key

Gradients = dict[int, dict[Key, Array]]  # slot -> one array for each of its parameters that was met


def lora_delta_vjp(
    dy: Float[Array, "tokens d_out"],
    x: Array,
    module: Module,
    adapters: AdapterSlots,
    mapping: LoraMapping,
    p: Precision,
) -> tuple[Float[Array, "tokens d_out"], Float[Array, "tokens d_in"], Gradients]:
    """Return the gradient of what the base computed (dy itself, but for DoRA), dx, and the gradients of the adapters
    that are in this module, one segment at a time.

    x is [tokens, d_in], or token ids [tokens] at the embedding: those have no gradient, dx is [tokens, 0] there."""
    resident, by_id = adapters.at(module), x.dtype.kind in "iu"
    dbase = dy.copy() if has_dora(module, adapters) else dy
    dx = namespace(dy).zeros((x.shape[0], 0 if by_id else x.shape[1]), dy.dtype)
    gradients: Gradients = {}
    for column in mapping.device.columns:
        for segment in column.segments:
            if segment.slot not in resident:
                continue
            lora, rows, d_out = resident[segment.slot], segment.rows, resident[segment.slot].B.shape[0]
            scale, du = lora.scale * segment.weight, dy[rows, :d_out]
            if lora.dora is not None:
                dbase[rows, :d_out] = du = lora.dora.gain * du
            low, low_gradient = scale * shrink(x[rows], lora.A), scale * (du @ lora.B)
            parts = {"A": shrink_vjp(low_gradient, x[rows], lora.A), "B": du.T @ low}
            if not by_id:
                dx[rows] += low_gradient @ lora.A
            if lora.bias is not None:
                parts["bias"] = scale * du.sum(axis=0)
            if lora.dora is not None:
                parts["magnitude"] = magnitude_vjp(dy[rows, :d_out], x[rows], low @ lora.B.T, lora, module, adapters, p)
            add_gradients(gradients, segment.slot, {Key(module, part): gradient for part, gradient in parts.items()})
    return dbase, dx, gradients


def shrink_vjp(dy: Float[Array, "tokens rank"], x: Array, A: Float[Array, "rank d_in"]) -> Float[Array, "rank d_in"]:
    """y = x A^T:  dA = dy^T x. At the embedding, where A's columns are looked up, each token adds to its own."""
    return embed_weight_vjp(dy, x, A.shape[1]).T if x.dtype.kind in "iu" else dy.T @ x


def lora_delta_vjp_per_token(
    dy: Float[Array, "tokens d_out"],
    x: Array,
    module: Module,
    adapters: AdapterSlots,
    mapping: LoraMapping,
    p: Precision,
) -> tuple[Float[Array, "tokens d_out"], Float[Array, "tokens d_in"], Gradients]:
    """The definition: the formulas above, one token at a time."""
    xp, resident, by_id = namespace(dy), adapters.at(module), x.dtype.kind in "iu"
    dbase, dx = dy.copy(), xp.zeros((x.shape[0], 0 if by_id else x.shape[1]), dy.dtype)
    gradients: Gradients = {}
    for t in range(dy.shape[0]):
        for slot, weight in zip(mapping.adapter_ids[t].tolist(), mapping.adapter_weights[t].tolist(), strict=True):
            if slot == NO_ADAPTER or slot not in resident:
                continue
            lora, d_out = resident[slot], resident[slot].B.shape[0]
            column = int(to_host(x[t : t + 1])[0]) if by_id else slice(None)
            low = lora.A[:, column] if by_id else lora.A @ x[t]
            scale, du = lora.scale * weight, dy[t, :d_out]
            if lora.dora is not None:
                dbase[t, :d_out] = du = lora.dora.gain * du
            low_gradient = scale * (lora.B.T @ du)
            A_gradient = xp.zeros_like(lora.A)
            A_gradient[:, column] = low_gradient if by_id else low_gradient[:, None] * x[t][None, :]
            parts = {"A": A_gradient, "B": scale * du[:, None] * low[None, :]}
            if not by_id:
                dx[t] += lora.A.T @ low_gradient
            if lora.bias is not None:
                parts["bias"] = scale * du
            if lora.dora is not None:
                delta = scale * (lora.B @ low)
                parts["magnitude"] = magnitude_vjp(
                    dy[t : t + 1, :d_out], x[t : t + 1], delta[None], lora, module, adapters, p
                )
            add_gradients(gradients, slot, {Key(module, part): gradient for part, gradient in parts.items()})
    return dbase, dx, gradients


def add_gradients(gradients: Gradients, slot: int, more: dict[Key, Array]) -> None:
    """gradients[slot] += more, key by key; a key that is new is taken over."""
    of_slot = gradients.setdefault(slot, {})
    for key, gradient in more.items():
        of_slot[key] = of_slot[key] + gradient if key in of_slot else gradient
