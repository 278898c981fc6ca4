"""What the engine did in a step, for whoever looks on: `engine.last_step`."""

from dataclasses import dataclass, field

import numpy as np

from .arrays import Array, Float


@dataclass(frozen=True, eq=False)
class ScheduledStep:
    """What one step did for one request. One that was admitted in this step, with blocks of four tokens:

    t t t t   t t t t   t t t t t   t t t ...
    blocks_found: 2     tokens: 5   for later steps
    computed_before: 8
    """

    request_id: int
    computed_before: int  # its tokens that were in the KV cache before, those that were found there included
    tokens: int  # how many it computed now; 0 if it was preempted
    blocks_found: int = 0  # in the prefix cache, when it was admitted in this step; 0 in any other step
    adapter_slots: tuple[int, ...] = ()
    evicted: tuple[str, ...] = ()  # the adapters that lost their slots to its own, by name
    preempted: bool = False  # its blocks were taken, and it waits again: all that was computed of it is gone
    # Of the last token that it computed: a view of the step's rows, and empty if it was preempted.
    logits: Float[Array, " vocab"] = field(default_factory=lambda: np.zeros(0))
