"""What a family is: one class of transformers, said as its differences from a Llama.

Nearly all of it is data. The functions take the keys of config.json (Keys), and note a problem rather than raise, so
that all of them are found.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..config import ATTENTION_MODULES, MLP_MODULES, LayerKind, Moe, Rope

QKV = ("q_proj", "k_proj", "v_proj")
Kinds = tuple[LayerKind, ...]  # of all layers


class Keys(Protocol):
    """The keys of config.json, read by type (loading/json_file.py): a bad value is noted and answered with 1."""

    file: Path | str
    data: Mapping[str, Any]

    def given(self, key: str) -> bool:
        """Whether the key is there and not null."""

    def integer(self, key: str, default: int | None = None, least: int = 1) -> int:
        """An integer."""

    def positive(self, key: str, default: float | None = None) -> float:
        """A number above 0."""

    def flag(self, key: str, default: bool = False) -> bool:
        """true or false."""

    def problem(self, what: str) -> None:
        """Note what is wrong with the file."""


@dataclass(frozen=True)
class Family:
    """One class of transformers whose checkpoints load."""

    architecture: str  # as config.json names it
    model_type: str
    defaults: Mapping[str, Any]  # what the class assumes where config.json is silent (configuration_*.py)
    # Fields of ModelConfig: those that are the same in every model of the family, and those that keys say.
    fields: Mapping[str, Any] = field(default_factory=dict)
    numbers: Mapping[str, str] = field(default_factory=dict)  # key, a number above 0 or null -> the field that it is
    biases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # key, a flag -> the modules that have one
    eps: str = "rms_norm_eps"  # how the class calls it
    read: Callable[[Keys], dict[str, Any]] = lambda keys: {}
    obeys: tuple[str, ...] = ()  # keys that `read` and the functions below understand, and other classes do not have
    activations: Mapping[str, str] = field(default_factory=lambda: {"silu": "silu"})  # hidden_act -> the field
    # Layer by layer: whether one slides where layer_types is silent (None: layer_types is not obeyed), and turns.
    slides: Callable[[Keys, int], bool] | None = None
    windowed: bool = False  # one sliding_window for all layers, where it is given
    turns: Callable[[Keys, int], bool] = lambda keys, layer: True
    moe: Callable[[Keys], Moe] | None = None  # the experts of its layers, of those that are sparse
    sparse: Callable[[Keys, int], bool] = lambda keys, layer: True
    # What else differs from layer to layer: from the kinds that the keys above have made.
    kinds: Callable[[Keys, Kinds], Kinds] = lambda keys, kinds: kinds
    rope: Mapping[str, Any] = field(default_factory=dict)  # fields of Rope that are the same in every model
    read_rope: Callable[[Keys], dict[str, Any]] = lambda keys: {}  # fields of Rope that keys beside it say
    rope_numbers: Mapping[str, str] = field(default_factory=dict)  # key of rope_parameters -> a field of Rope
    default_theta: float = 10000.0
    partial: bool = False  # partial_rotary_factor is obeyed
    local_rope: Callable[[Keys, Rope], Rope] | None = None  # of sliding layers, from the keys and the others' rope
    respelt: Callable[[dict[str, Any]], dict[str, Any]] = lambda data: data  # old spellings of config.json -> new ones
    other_types: tuple[str, ...] = ()  # further names of model_type under which models of the class are published
    # How other programs hold rows of q and k: torchtune turns halves of a head or neighbours; Megatron (NeMo) has
    # q, k and v together, group by group. "" and False: not known, and its adapters are refused by name.
    torchtune: str = ""
    megatron: bool = False
    gguf: str = ""  # llama.cpp's name of the architecture, where its converter leaves the names of a Llama's modules
    called: tuple[str, ...] = ()  # words in the names of its checkpoints that are of another model_type
    wrappers: tuple[tuple[str, str], ...] = ()  # class and model_type of models of images whose text_config this can be

    def understands(self, key: str) -> bool:
        """Whether the key means something here, so that its value need not be neutral."""
        keys = (*self.obeys, *self.numbers, *self.biases)
        window = key == "sliding_window" and (self.windowed or self.slides is not None)
        return key in keys or window or (key == "partial_rotary_factor" and self.partial)


LLAMA_BIASES = {"attention_bias": ATTENTION_MODULES, "mlp_bias": MLP_MODULES}
EOS = {"bos_token_id": 1, "eos_token_id": 2}
