"""A LoRA adapter: its tensors as stored, and the keys of its config that change the numbers (loading/ reads both).

PEFT (Hugging Face's library of adapters) writes a folder:

    adapter_config.json         {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], ...}
    adapter_model.safetensors   base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight    A [8, 256]
                                base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight    B [256, 8]
                                base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight    ...
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from .arrays import Array, Float, Int
from .config import Module, module_name

T = TypeVar("T")
ENDING = r"(.*\.)?({})$"  # what a name in a pattern matches: peft/utils/other.py, get_pattern_key


@dataclass(frozen=True)
class PeftConfig:
    """The keys of adapter_config.json that change the numbers, in its own names."""

    r: int
    lora_alpha: float
    use_rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    target_modules: tuple[str, ...] | str = ()  # names (equal, or a suffix after a dot), or one regular expression
    target_parameters: tuple[str, ...] = ()  # names likewise, of weights that are no layers: those of all experts
    exclude_modules: tuple[str, ...] | str = ()
    layers_to_transform: tuple[int, ...] | None = None
    layers_pattern: tuple[str, ...] = ()
    modules_to_save: tuple[str, ...] = ()
    bias: str = "none"
    lora_bias: bool = False
    use_dora: bool = False
    trainable_token_indices: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # by the table's name
    ensure_weight_tying: bool = False
    base_model_name_or_path: str | None = field(default=None, compare=False)  # changes no number: which base that was
    layer_replication: tuple[tuple[int, int], ...] = ()  # its layers are these of the base (replication.py)
    init_lora_weights: str | None = None  # pissa or olora: A and B hold a part of the base (loading/changed_base.py)
    alora_invocation_tokens: tuple[int, ...] = ()  # the adapter acts from their last occurrence on (alora.py)
    peft_version: str = ""  # of a file with target_parameters, as long as it is being read: how they lie in it


@dataclass(frozen=True, eq=False, slots=True)
class LoraTensors:
    """One module's tensors as stored. A of embed_tokens is [rank, vocab]: its columns are looked up by token id."""

    A: Float[Array, "rank d_in"]
    B: Float[Array, "d_out rank"]
    bias: Float[Array, " d_out"] | None = None  # PEFT's lora_bias: the bias of lora_B
    magnitude: Float[Array, " d_out"] | None = None  # DoRA's lora_magnitude_vector


@dataclass(frozen=True, eq=False, slots=True)
class TokenRows:
    """The rows of some tokens, in place of the base's: PEFT's trainable_tokens_delta, which is no delta."""

    ids: Int[Array, " rows"]
    rows: Float[Array, "rows d_model"]


@dataclass(frozen=True, eq=False, repr=False)
class Adapter:
    """A LoRA adapter: read-only arrays, compared by identity, so that two loads of one folder are two adapters."""

    name: str
    config: PeftConfig
    lora: Mapping[Module, LoraTensors]
    replaced: Mapping[Module, Array] = field(default_factory=dict)  # modules_to_save: a whole embed_tokens or lm_head
    biases: Mapping[Module, Array] = field(default_factory=dict)  # bias="all" or "lora_only": a layer's bias, replaced
    tokens: Mapping[Module, TokenRows] = field(default_factory=dict)  # trainable_token_indices: some rows, replaced

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In another process its arrays are read-only as well: there, too, small ones are packed once (matmul.py)."""
        self.__dict__.update(state)
        for array in self.arrays():
            if isinstance(array, np.ndarray):
                array.flags.writeable = False

    def arrays(self) -> list[Array]:
        """Every array, in a fixed order."""
        tensors = [x for lora in self.lora.values() for x in (lora.A, lora.B, lora.bias, lora.magnitude)]
        replaced = [x for rows in self.tokens.values() for x in (rows.ids, rows.rows)]
        return [x for x in (*tensors, *self.replaced.values(), *self.biases.values(), *replaced) if x is not None]

    @property
    def use_dora(self) -> bool:
        """Whether some module of it is DoRA."""
        return any(lora.magnitude is not None for lora in self.lora.values())

    @property
    def can_be_summed(self) -> bool:
        """Whether a request may weigh it, or sum it with others: nothing but plain LoRA only adds to the base."""
        return not (self.replaced or self.biases or self.tokens or self.use_dora)

    def __repr__(self) -> str:
        return f"Adapter({self.name!r}, r={self.config.r}, {len(self.lora)} modules)"


def pattern_value(pattern: Mapping[str, T], key: str, default: T) -> T:
    """The value of the first pattern that matches the end of a module's dotted name, from a dot on."""
    for name, value in pattern.items():
        if re.match(ENDING.replace("{}", name), key):
            return value
    return pattern.get(key, default)


def lora_alpha_of(config: PeftConfig, module: Module) -> float:
    """The alpha of one module: alpha_pattern's where one of its names matches, as in peft/tuners/lora/model.py."""
    return pattern_value(config.alpha_pattern, module_name(module), config.lora_alpha)
