"""A picture model: its arrays, by the names of the checkpoint (folder.py reads them), and its flow."""

from collections.abc import Mapping
from dataclasses import dataclass

from ..arrays import Array
from ..config import Module
from ..weights import Linear
from .config import PictureConfig


@dataclass(frozen=True)
class Flow:
    """What the model says, and how the noise falls: of scheduler/scheduler_config.json."""

    prediction: str = "velocity"  # picture - noise, as Z-Image's own model says it; or "sample": the clean picture
    shift: float = 1.0  # above 1: more of the steps are taken where the noise is strong (Esser et al. 2024)


@dataclass(frozen=True, eq=False, repr=False)
class PictureModel:
    """A loaded Z-Image transformer: read-only arrays, and nothing that changes while it runs."""

    config: PictureConfig
    linears: Mapping[Module, Linear]
    vectors: Mapping[str, Array]  # norms and the tokens that fill up, by their full names
    flow: Flow = Flow()
    dtype: str = "float32"
    device: str = "cpu"

    def linear(self, module: Module) -> Linear:
        """Return the base weights of a module."""
        return self.linears[module]

    def __repr__(self) -> str:
        config = self.config
        layers = f"{config.n_layers} + 2 * {config.n_refiner_layers} layers"
        return f"PictureModel({layers}, dim {config.dim}, {self.flow.prediction}, {self.dtype}, {self.device})"

    @property
    def nbytes(self) -> int:
        """The size of all weights, as they are held."""
        linears = [x for linear in self.linears.values() for x in (linear.weight, linear.bias) if x is not None]
        return sum(x.nbytes for x in (*linears, *self.vectors.values()))
