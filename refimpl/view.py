"""What a query sees of the keys before it, and how it is scored."""

from dataclasses import dataclass, field

from .arrays import Array, Float


@dataclass(frozen=True)
class View:
    """The arguments of the attention step."""

    window: int | None = None  # a token sees itself and the window-1 tokens before it
    scale: float | None = None  # what q k is multiplied by; None: 1/sqrt(head_dim)
    softcap: float | None = None  # scores become cap * tanh(score / cap) (Gemma 2)
    # A learned score of each query head that takes its part of the softmax and has no value (gpt-oss). It is as it is:
    # no scale, no soft-cap and no window applies to it.
    sinks: Float[Array, " heads"] | None = field(default=None, compare=False)
