"""The embedded model and its voices, served with a learner's step in place of ours: what a tenant would see."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .. import tiny
from ..adapter import Adapter
from ..engine import Engine
from ..loading.adapter_folder import load_adapter
from ..loading.model_folder import load_model
from ..model import logits
from ..ops import NUMPY, Ops
from ..request import Request
from ..step_record import ScheduledStep
from ..streaming import generate
from ..weights import Model

FIRST_TOKENS = 12  # of an answer: more of them show smaller mistakes, and take longer
VISIBLE = 0.01  # a difference of logits: float32 makes about 1e-5

Steps = dict[str, Callable[..., Any]]  # fields of Ops, made of the learner's function


@functools.lru_cache
def model() -> Model:
    """The embedded model, in float32."""
    return load_model("tiny", dtype="float32")


@functools.lru_cache
def voice(name: str) -> Adapter:
    """One of tiny.VOICES, by its name."""
    return load_adapter(name, model().config)


def prompt(number: int = 0) -> list[int]:
    """The token ids of one of the demo's prompts."""
    return model().tokenizer.encode(tiny.DEMO_PROMPTS[number])


def with_steps(steps: Steps | None) -> Ops:
    """Our steps, with the learner's in their fields."""
    fields: dict[str, Any] = dict(steps or {})
    return replace(NUMPY, **fields)


def largest_difference(requests: Sequence[Request], steps: Steps) -> float:
    """Run the requests as one batch with the steps, and each alone without; return the largest difference."""
    together = logits(model(), requests, ops=with_steps(steps))
    alone = [logits(model(), [request])[0] for request in requests]
    return max(float(np.abs(rows - others).max()) for rows, others in zip(together, alone, strict=True))


TENANTS = ("pirate", None, "merchant")  # the base between two voices, whose ranks and scales differ


def tenants() -> list[Request]:
    """Three requests with prompts of different lengths: two voices, and the base."""
    names = enumerate(TENANTS, 2)
    return [Request(prompt(number), adapter=voice(name) if name else None) for number, name in names]


def change_for_a_tenant(steps: Steps, others: Sequence[Request] = (), block_size: int = 16) -> str:
    """Serve the tenants in one batch and say who reads something else with the steps, or how far off the logits are
    where the first words are the same. `others` ask for logits beside them."""
    texts = says(tenants(), steps, FIRST_TOKENS, block_size)
    for name, right, wrong in zip(TENANTS, first_lines(), texts, strict=True):
        wrong = (wrong.splitlines() or ["(nothing)"])[0]
        if right != wrong:
            who = f"who asked the {name}" if name else "who asked the base, without an adapter,"
            return f"of three requests in one batch, {who} reads {wrong!r} instead of {right!r}."
    off = largest_difference([*tenants(), *others], steps)
    if not off > VISIBLE:
        return ""
    return f"the first words of three requests in one batch are right, and logits are off by up to {off:.2g}."


@functools.lru_cache
def first_lines() -> list[str]:
    """What the tenants read without anybody's steps."""
    return [text.splitlines()[0] for text in says(tenants(), None, FIRST_TOKENS)]


def says(
    requests: Sequence[Request], steps: Steps | None = None, max_new_tokens: int = 24, block_size: int = 16
) -> list[str]:
    """What each request of one batch answers, greedily, as text."""
    engine = Engine(model(), with_steps(steps), block_size=block_size, prefix_caching=False)
    outputs = generate(model(), requests, max_new_tokens, engine=engine)
    return [output.text.strip() for output in outputs]


def one_after_another(
    requests: Sequence[Request], steps: Steps | None = None, block_size: int = 16
) -> list[ScheduledStep]:
    """Serve the requests by one engine, one token each, the second when the first has gone.

    Returns the last step of each: the blocks that it found, the logits from which its token was chosen."""
    engine = Engine(model(), with_steps(steps), num_blocks=64, block_size=block_size)
    last_steps: list[ScheduledStep] = []
    for request in requests:
        engine.add(request, 1)
        while engine.busy:
            engine.step()
        last_steps += engine.last_step
    return last_steps
