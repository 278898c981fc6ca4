"""The vector-Jacobian product of each step of layers.py: what a change of the step's output does to its input.

Each function is called with dy, the gradient of the loss with respect to the step's output, and then with what the
step itself was called with; it returns dx. Above each formula stands that of the forward pass. Training rounds nowhere:
a Precision says only in which type products are taken. Where two forms differ, the definition, one token at a time,
stands under the form that runs.
"""

import math

import numpy as np

from ..arrays import Array, Float, Int, Precision, namespace, to_host, widen
from ..matmul import WIDEN_AT_ONCE
from ..rope import apply_rope, apply_rope_per_token


def linear_vjp(
    dy: Float[Array, "tokens d_out"], weight: Float[Array, "d_out d_in"], p: Precision
) -> Float[Array, "tokens d_in"]:
    """y = x W^T + b:  dx = dy W. A weight of a half type passes through a small buffer, as on the way forward."""
    if weight.dtype == dy.dtype:
        return dy @ weight
    (d_out, d_in), xp = weight.shape, namespace(dy)
    dx, piece = xp.zeros((dy.shape[0], d_in), dy.dtype), max(1, WIDEN_AT_ONCE // d_in)
    for start in range(0, d_out, piece):
        dx += dy[:, start : start + piece] @ widen(weight[start : start + piece], p.compute)
    return dx


def linear_vjp_per_token(
    dy: Float[Array, "tokens d_out"], weight: Float[Array, "d_out d_in"], p: Precision
) -> Float[Array, "tokens d_in"]:
    """The definition: dx[t] = W^T dy[t]."""
    W = widen(weight, p.compute)
    dx = namespace(dy).zeros((dy.shape[0], W.shape[1]), dy.dtype)
    for t in range(dy.shape[0]):
        dx[t] = W.T @ dy[t]
    return dx


def linear_weight_vjp(dy: Float[Array, "tokens d_out"], x: Float[Array, "tokens d_in"]) -> Float[Array, "d_out d_in"]:
    """y = x W^T + b:  dW = dy^T x, a sum over the tokens."""
    return dy.T @ x


def linear_weight_vjp_per_token(
    dy: Float[Array, "tokens d_out"], x: Float[Array, "tokens d_in"]
) -> Float[Array, "d_out d_in"]:
    """The definition: dW = sum over t of the outer product of dy[t] and x[t]."""
    weight_gradient = namespace(dy).zeros((dy.shape[1], x.shape[1]), dy.dtype)
    for t in range(dy.shape[0]):
        weight_gradient += dy[t][:, None] * x[t][None, :]
    return weight_gradient


def embed_weight_vjp(
    dy: Float[Array, "tokens width"], token_ids: Int[Array, " tokens"], vocab: int
) -> Float[Array, "vocab width"]:
    """x[t] = W[token_ids[t]]:  dW[i] = the sum of dy[t] over the tokens with id i.

    The sum is a product with a matrix of 0 and 1 [ids, tokens]: on a GPU a scatter adds in another order each time."""
    xp = namespace(dy)
    ids, which = np.unique(to_host(token_ids), return_inverse=True)
    weight_gradient = xp.zeros((vocab, dy.shape[1]), dy.dtype)
    chosen = xp.arange(len(ids))[:, None] == xp.asarray(which.reshape(-1))[None, :]
    weight_gradient[xp.asarray(ids)] = chosen.astype(dy.dtype) @ dy
    return weight_gradient


def embed_weight_vjp_per_token(
    dy: Float[Array, "tokens width"], token_ids: Int[Array, " tokens"], vocab: int
) -> Float[Array, "vocab width"]:
    """The definition: each token adds its gradient to its row."""
    weight_gradient = namespace(dy).zeros((vocab, dy.shape[1]), dy.dtype)
    for t, token in enumerate(to_host(token_ids).tolist()):
        weight_gradient[token] += dy[t]
    return weight_gradient


def rms_norm_vjp(
    dy: Float[Array, "tokens d_model"],
    x: Float[Array, "tokens d_model"],
    weight: Float[Array, " d_model"],
    eps: float,
    p: Precision,
) -> Float[Array, "tokens d_model"]:
    """y = s x w with s = 1 / sqrt(mean(x^2) + eps):  dx = s (dy w) - x s^3 mean(dy w x)."""
    xp, d_model = namespace(x), x.shape[1]
    inverse = 1 / xp.sqrt(xp.einsum("td,td->t", x, x)[:, None] / d_model + eps)
    scaled = dy * widen(weight, p.compute)
    return inverse * scaled - x * (inverse**3 * (xp.einsum("td,td->t", scaled, x)[:, None] / d_model))


def rms_norm_vjp_per_token(
    dy: Float[Array, "tokens d_model"],
    x: Float[Array, "tokens d_model"],
    weight: Float[Array, " d_model"],
    eps: float,
    p: Precision,
) -> Float[Array, "tokens d_model"]:
    """The definition: dx[t] = J^T dy[t] with the Jacobian J = diag(w) (s I - s^3 x x^T / d_model)."""
    xp, dx = namespace(x), namespace(x).empty_like(x)
    for t in range(x.shape[0]):
        inverse = 1 / xp.sqrt((x[t] * x[t]).mean() + eps)
        identity = (xp.arange(x.shape[1])[:, None] == xp.arange(x.shape[1])[None, :]).astype(x.dtype)
        jacobian = widen(weight, p.compute)[:, None] * (
            inverse * identity - inverse**3 / x.shape[1] * x[t][:, None] * x[t][None]
        )
        dx[t] = jacobian.T @ dy[t]
    return dx


def rope_vjp(
    dy: Float[Array, "tokens heads head_dim"],
    cos: Float[Array, "tokens half"],
    sin: Float[Array, "tokens half"],
    interleaved: bool,
    p: Precision,
) -> Float[Array, "tokens heads head_dim"]:
    """y = R x with a rotation R, or a multiple of one:  dx = R^T dy, which is the rotation by the opposite angle."""
    return apply_rope(dy, cos, -sin, interleaved, p)


def rope_vjp_per_token(
    dy: Float[Array, "tokens heads head_dim"],
    cos: Float[Array, "tokens half"],
    sin: Float[Array, "tokens half"],
    interleaved: bool,
    p: Precision,
) -> Float[Array, "tokens heads head_dim"]:
    """The same by the definition of rope."""
    return apply_rope_per_token(dy, cos, -sin, interleaved, p)


def mlp_activation_vjp(
    dy: Float[Array, "tokens d_mlp"],
    gate: Float[Array, "tokens d_mlp"],
    up: Float[Array, "tokens d_mlp"],
    kind: str,
    p: Precision,
) -> tuple[Float[Array, "tokens d_mlp"], Float[Array, "tokens d_mlp"]]:
    """y = act(g) u:  dg = dy u act'(g),  du = dy act(g).

    silu       act = g s,            s = 1 / (1 + e^-g)           act' = s (1 + g (1 - s))
    gelu_tanh  act = g/2 (1 + t),    t = tanh(c (g + a g^3))      act' = (1 + t)/2 + g/2 (1 - t^2) c (1 + 3 a g^2)
    """
    xp = namespace(gate)
    if kind == "silu":
        with np.errstate(over="ignore"):  # e^-g may be inf: then s is 0, which is right
            sigmoid = 1 / (1 + xp.exp(-gate))
        return dy * up * sigmoid * (1 + gate * (1 - sigmoid)), dy * gate * sigmoid
    inner = math.sqrt(2 / math.pi)
    tanh = xp.tanh(inner * (gate + 0.044715 * gate**3))
    slope = 0.5 * (1 + tanh) + 0.5 * gate * (1 - tanh * tanh) * inner * (1 + 3 * 0.044715 * gate * gate)
    return dy * up * slope, dy * (0.5 * gate * (1 + tanh))


def softcap_vjp(dy: Array, y: Array, cap: float | None) -> Array:
    """y = cap tanh(x / cap):  dx = dy (1 - (y / cap)^2). dy itself where there is no cap."""
    return dy if cap is None else dy * (1 - (y / cap) ** 2)


def cross_entropy(
    logits: Float[Array, "rows vocab"], targets: Int[Array, " rows"], weights: Float[Array, " rows"]
) -> tuple[Float[Array, " rows"], Float[Array, "rows vocab"]]:
    """Each row's share of the loss, and the gradient of their sum with respect to the logits z.

    loss[t] = weight[t] (log sum_i e^z[t, i] - z[t, target[t]]):
    dz[t] = weight[t] (softmax(z[t]) - onehot(target[t]))"""
    xp, rows = namespace(logits), namespace(logits).arange(logits.shape[0])
    shifted = logits - logits.max(axis=-1, keepdims=True)
    gradient = xp.exp(shifted)
    total = gradient.sum(axis=-1, keepdims=True)
    losses = weights * (xp.log(total)[:, 0] - shifted[rows, targets])
    gradient /= total
    gradient[rows, targets] -= 1
    gradient *= weights[:, None]
    return losses, gradient
