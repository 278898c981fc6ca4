"""What the modules of one forward pass were given: a source may need the input of another module than its own."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from ...arrays import Array, Precision
from ...config import Module
from ...ops import Ops
from .mix_up import RESIDUAL

Norm = Callable[[Array, Array, float, Precision], Array]
# The modules whose input is the norm before the MLP.
FIRST_OF_MLP = ("gate_proj", "up_proj", "gate_up_proj", "input_linear", "c_fc")


@dataclass(eq=False)
class Watch:
    """The first `tokens` rows of every input, as a pass goes on."""

    tokens: int
    inputs: dict[Module, Array] = field(default_factory=dict)
    layers: dict[int, dict[str, Array]] = field(default_factory=dict)  # layer -> what its modules, and its norms, got
    _normed: Array | None = None

    def over(self, ops: Ops) -> Ops:
        """The same steps, watched."""

        def watched(norm: Norm) -> Norm:
            def step(x: Array, weight: Array, eps: float, p: Precision) -> Array:
                self._normed = x
                return norm(x, weight, eps, p)

            return step

        def lora_delta(y: Array, x: Array, module: Module, *rest: Any) -> None:
            self.see(x, module)
            ops.lora_delta(y, x, module, *rest)

        norms = watched(ops.rms_norm), watched(ops.layer_norm)
        return replace(ops, rms_norm=norms[0], layer_norm=norms[1], lora_delta=lora_delta)

    def see(self, x: Array, module: Module) -> None:
        """Keep a module's input."""
        layer, name = module
        self.inputs[module] = x[: self.tokens]
        of_layer = self.layers.setdefault(layer, {})
        of_layer[name] = x[: self.tokens]
        if self._normed is not None and layer >= 0 and self._normed.shape == x.shape:
            of_layer.setdefault(RESIDUAL, self._normed[: self.tokens])
            if name in FIRST_OF_MLP:  # the MLP has a norm of its own
                of_layer[RESIDUAL] = self._normed[: self.tokens]
