"""An adapter as it lies on disk: a PEFT folder -> an Adapter, honoured in full or refused by name."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from .arrays import Array, Float
from .config import Site


@dataclass(frozen=True)
class PeftConfig:
    """The keys of adapter_config.json that change the numbers, in its own names."""

    r: int
    lora_alpha: float
    use_rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    target_modules: tuple[str, ...] | str = ()  # names (equal, or a suffix after a dot), or one regular expression
    exclude_modules: tuple[str, ...] | str = ()
    layers_to_transform: tuple[int, ...] | None = None
    layers_pattern: tuple[str, ...] = ()
    modules_to_save: tuple[str, ...] = ()
    bias: str = "none"
    lora_bias: bool = False


@dataclass(frozen=True, eq=False)
class LoraTensors:
    """One module's tensors as stored. A of embed_tokens is [rank, vocab]: its columns are looked up by token id."""

    A: Float[Array, "rank d_in"]
    B: Float[Array, "d_out rank"]
    bias: Float[Array, " d_out"] | None = None  # PEFT's lora_bias: the bias of lora_B


@dataclass(frozen=True, eq=False)
class Adapter:
    """A LoRA adapter: read-only arrays, compared by identity, so that two loads of one folder are two adapters."""

    name: str
    config: PeftConfig
    lora: Mapping[Site, LoraTensors]
    replaced: Mapping[Site, Array] = field(default_factory=dict)  # modules_to_save: a whole embed_tokens or lm_head
    biases: Mapping[Site, Array] = field(default_factory=dict)  # bias="all" or "lora_only": a layer's bias, replaced
