"""What the modules of one forward pass were given: a source may need the input of another module than its own."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from ...arrays import Array, Precision
from ...config import Module
from ...ops import Ops
from .mix_up import GATE, GATE_BEFORE, RESIDUAL, UP

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
    _gates: dict[str, Array] = field(default_factory=dict)

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

        def mlp_activation(gate: Array, up: Array | None, kind: Any, p: Precision) -> Array:
            if up is not None and isinstance(kind, str):
                self._gates = {GATE: ops.mlp_activation(gate, None, kind, p), UP: up, GATE_BEFORE: gate}
            return ops.mlp_activation(gate, up, kind, p)

        norms = watched(ops.rms_norm), watched(ops.layer_norm)
        return replace(
            ops, rms_norm=norms[0], layer_norm=norms[1], lora_delta=lora_delta, mlp_activation=mlp_activation
        )

    def see(self, x: Array, module: Module) -> None:
        """Keep a module's input."""
        layer, name = module
        self.inputs[module] = x[: self.tokens]
        of_layer = self.layers.setdefault(layer, {})
        of_layer[name] = x[: self.tokens]
        if any(gate.shape == x.shape for gate in self._gates.values()):  # what the MLP's last module is given
            of_layer |= {what: gate[: self.tokens] for what, gate in self._gates.items()}
            self._gates = {}
        if self._normed is not None and layer >= 0 and self._normed.shape == x.shape:
            of_layer.setdefault(RESIDUAL, self._normed[: self.tokens])
            if name in FIRST_OF_MLP:  # the MLP has a norm of its own
                of_layer[RESIDUAL] = self._normed[: self.tokens]
