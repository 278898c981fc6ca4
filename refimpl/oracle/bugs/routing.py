"""G. The choice of experts, which engines make in one fused kernel: of what, and with which weights.

Without LoRA on the router these are bugs of the base: rows without an adapter are wrong as well.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from ...adapter_slots import AdapterSlots
from ...arrays import Array, Precision
from ...config import Module, Moe
from ...ops import NUMPY, Ops
from ...plans import LoraMapping
from ...routing import scores_of, weights_of
from .experts import moe_of
from .g_kernels import kernels
from .steps import add, but


def routed(change: Callable[[Moe], dict]) -> Ops:
    """The experts are chosen by another rule: these fields of Moe are changed."""
    return but(
        route=lambda logits, correction, moe, p: NUMPY.route(
            logits, correction, dataclasses.replace(moe, **change(moe)), p
        )
    )


@kernels.bug(
    "softmax of the chosen experts' logits where it is that of all, and of all where it is that of the chosen",
    needs="experts",
)
def softmax_on_the_other_side_of_the_choice() -> Ops:
    other = {"softmax": "softmax_of_chosen", "softmax_of_chosen": "softmax", "sigmoid": "sigmoid"}
    return routed(lambda moe: {"scores": other[moe.scores]})


@kernels.bug(
    "the weights of the chosen experts are divided by their sum where they should not be, and not where they should",
    needs="experts",
)
def renormalised_the_other_way() -> Ops:
    return routed(lambda moe: {"renormalise": not moe.renormalise})


@kernels.bug("the router's scores are sigmoids where they should be a softmax, or the reverse", needs="experts")
def sigmoid_for_softmax() -> Ops:
    return routed(lambda moe: {"scores": "softmax" if moe.scores == "sigmoid" else "sigmoid"})


@kernels.bug(
    "the router's LoRA changes the weights of the experts, and not which are chosen: it is added after the choice",
    needs="router LoRA",
)
def router_delta_after_the_choice() -> Ops:
    base: list[Array] = []  # the router's logits without LoRA, of the layer that is computed now

    def delta(y: Array, x: Array, module: Module, adapters: AdapterSlots, mapping: LoraMapping, p: Precision) -> None:
        moe = moe_of(adapters.model.config)
        if moe is not None and module[1] == moe.router:
            base[:] = [y.copy()]
        add(y, x, adapters.at(module), mapping, p)

    def route(logits: Array, correction: Array | None, moe: Moe, p: Precision) -> tuple[Array, Array]:
        ids = NUMPY.route(base[0], correction, moe, p)[0]
        return ids, weights_of(np.take_along_axis(scores_of(logits, moe), ids, axis=1), moe, p)

    return but(lora_delta=delta, route=route)
