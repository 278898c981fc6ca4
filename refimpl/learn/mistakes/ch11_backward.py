"""Wrong backward passes: most of them still learn something, which is why nobody notices."""

from ...arrays import Array
from ..exercise import Mistake

Triple = tuple[Array, Array, Array]


def gradients(x: Array, A: Array, B: Array, scale: float, dy: Array) -> Triple:
    low, low_gradient = scale * (x @ A.T), scale * (dy @ B)
    return low_gradient.T @ x, dy.T @ low, low_gradient @ A


def without_scale(x: Array, A: Array, B: Array, scale: float, dy: Array) -> Triple:
    return gradients(x, A, B, 1.0, dy)


def dx_without_A(x: Array, A: Array, B: Array, scale: float, dy: Array) -> Triple:
    dA, dB, _ = gradients(x, A, B, scale, dy)
    return dA, dB, scale * (dy @ B)


def dx_is_zero(x: Array, A: Array, B: Array, scale: float, dy: Array) -> Triple:
    dA, dB, _ = gradients(x, A, B, scale, dy)
    return dA, dB, 0 * x


def mean_over_tokens(x: Array, A: Array, B: Array, scale: float, dy: Array) -> Triple:
    dA, dB, dx = gradients(x, A, B, scale, dy)
    return dA / len(x), dB / len(x), dx


def scale_once_too_often(x: Array, A: Array, B: Array, scale: float, dy: Array) -> Triple:
    dA, dB, dx = gradients(x, A, B, scale, dy)
    return dA, scale * dB, dx


def last_token_only(x: Array, A: Array, B: Array, scale: float, dy: Array) -> Triple:
    dA, dB, _ = gradients(x[-1:], A, B, scale, dy[-1:])
    return dA, dB, gradients(x, A, B, scale, dy)[2]


def A_and_B_exchanged(x: Array, A: Array, B: Array, scale: float, dy: Array) -> Triple:
    dA, dB, dx = gradients(x, A, B, scale, dy)
    return dB, dA, dx


def frozen_A(x: Array, A: Array, B: Array, scale: float, dy: Array) -> Triple:
    dA, dB, dx = gradients(x, A, B, scale, dy)
    return 0 * dA, dB, dx


MISTAKES = (
    Mistake(
        "without_scale",
        "y was multiplied by the scale, so whatever y does to the loss is, too: in all three.",
        without_scale,
    ),
    Mistake(
        "dx_without_A",
        "dx ends where x began: between the rank and d_in stands a matrix that it has to go back through.",
        dx_without_A,
    ),
    Mistake(
        "dx_is_zero",
        "the layers below have adapters, too, and what they hear of the loss comes through this dx.",
        dx_is_zero,
    ),
    Mistake(
        "mean_over_tokens",
        "each token adds its share to A and B; who wants a mean has divided in the loss, and dy knows it already.",
        mean_over_tokens,
        (
            "https://github.com/huggingface/transformers/pull/34191",
            "https://github.com/huggingface/transformers/issues/35203",
        ),
    ),
    Mistake(
        "scale_once_too_often",
        "the scale stands once in y, and so once in each gradient.",
        scale_once_too_often,
    ),
    Mistake("last_token_only", "A and B were used by every token, not by the last one alone.", last_token_only),
    Mistake(
        "A_and_B_exchanged",
        "the three come back in the order dA, dB, dx.",
        A_and_B_exchanged,
        ("https://github.com/unslothai/unsloth/issues/3314",),
    ),
    Mistake(
        "frozen_A",
        "A learns as well: dA is zero only while B is.",
        frozen_A,
    ),
)
