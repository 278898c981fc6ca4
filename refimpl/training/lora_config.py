"""Which modules get a LoRA, and how large: the arguments of PEFT's LoraConfig, with its names and meanings."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..adapter import PeftConfig, pattern_value
from ..config import EMBED, LM_HEAD, ModelConfig, Module, module_name
from ..errors import LoracleError
from ..loading.json_file import is_integer
from ..loading.peft_config import is_saved, selects

KINDS: dict[str, tuple[Any, str]] = {
    **dict.fromkeys(("rank_pattern", "alpha_pattern"), (Mapping, "a dictionary")),
    **dict.fromkeys(("use_rslora", "lora_bias", "use_dora"), (bool, "True or False")),
    "lora_dropout": (int | float, "a number"),
    "modules_to_save": (tuple, "a list of names"),
    "layers_to_transform": (tuple | None, "layer numbers"),
}


@dataclass(frozen=True)
class LoraConfig:
    """The shape of one adapter that is to be trained (peft/tuners/lora/config.py).

    lora_dropout zeroes that share of a LoRA's input while it trains and scales the rest up; the input of an embedding,
    which is token ids, has none. modules_to_save are trained whole: embed_tokens and lm_head can be.

    LoracleError, one line, for a value that means nothing; `lora_modules` and `saved_modules` raise it for one that
    means nothing in a given base."""

    r: int = 8
    lora_alpha: float = 16
    target_modules: tuple[str, ...] | str = ("q_proj", "v_proj")  # names, one regular expression, or "all-linear"
    exclude_modules: tuple[str, ...] | str = ()
    layers_to_transform: tuple[int, ...] | None = None
    use_rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    lora_dropout: float = 0.0
    lora_bias: bool = False
    use_dora: bool = False
    modules_to_save: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for key in ("target_modules", "exclude_modules", "layers_to_transform", "modules_to_save"):
            if isinstance(value := getattr(self, key), list | set):  # as JSON has it, and PEFT
                object.__setattr__(self, key, tuple(sorted(value, key=str) if isinstance(value, set) else value))
        if isinstance(self.layers_to_transform, int):
            object.__setattr__(self, "layers_to_transform", (self.layers_to_transform,))
        self._check_types()
        for name, rank in (
            ("r", self.r),
            *((f"rank_pattern {key!r}", rank) for key, rank in self.rank_pattern.items()),
        ):
            if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
                raise LoracleError(f"{name} is {rank!r}: a rank must be a whole number of 1 or more")
        for name, alpha in (("lora_alpha", self.lora_alpha), *self.alpha_pattern.items()):
            if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha):
                raise LoracleError(f"{name} is {alpha!r}: an alpha must be a finite number")
            if alpha == 0:
                raise LoracleError(f"{name} is 0: nothing would be learned, because it is a factor of the LoRA")
        if not 0 <= self.lora_dropout < 1:
            raise LoracleError(f"lora_dropout is {self.lora_dropout!r}: it must be at least 0 and below 1")
        if self.use_dora and self.lora_bias:
            raise LoracleError("lora_bias: the LoRA of a DoRA has no bias, in PEFT neither")
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise LoracleError("layers_to_transform needs target_modules to be a list of names")
        for key in ("target_modules", "exclude_modules"):
            _check_expression(key, getattr(self, key))
        for key in ("rank_pattern", "alpha_pattern", "modules_to_save"):
            for name in getattr(self, key):
                _check_expression(key, name)

    def _check_types(self) -> None:
        for key, (kind, expected) in KINDS.items():
            if not isinstance(value := getattr(self, key), kind):
                raise LoracleError(f"{key} is {value!r}: it must be {expected}")
        if not all(map(is_integer, self.layers_to_transform or ())):
            raise LoracleError(f"layers_to_transform is {self.layers_to_transform!r}: it must be layer numbers")

    @property
    def peft(self) -> PeftConfig:
        """The keys that an adapter keeps when it has been trained."""
        return PeftConfig(
            r=self.r,
            lora_alpha=self.lora_alpha,
            use_rslora=self.use_rslora,
            rank_pattern=self.rank_pattern,
            alpha_pattern=self.alpha_pattern,
            target_modules=self.target_modules,
            exclude_modules=self.exclude_modules,
            layers_to_transform=self.layers_to_transform,
            modules_to_save=self.modules_to_save,
            lora_bias=self.lora_bias,
            use_dora=self.use_dora,
        )

    def rank(self, module: Module) -> int:
        """The rank of one module: rank_pattern's where one of its names matches, else r."""
        return pattern_value(self.rank_pattern, module_name(module), self.r)


def lora_modules(config: LoraConfig, base: ModelConfig) -> list[Module]:
    """Return the modules of the base that get a LoRA, in the order of the forward pass.

    LoracleError for a target that is no module of the base, for targets that leave no module over, and for a lora_bias
    on the embedding, which PEFT has not."""
    modules = [module for module in base.modules() if selects(config.peft, module_name(module))]
    names = config.target_modules if isinstance(config.target_modules, tuple) else ()
    for name in names:
        if not any(f".{module_name(module)}".endswith(f".{name}") for module in base.modules()):
            raise LoracleError(f"target_modules: {name!r} is no linear layer of the base; {_choices(base)}")
    if not modules:
        targets = f"target_modules {config.target_modules!r}{_layers(config, base)}"
        raise LoracleError(f"{targets} select no module of the base; {_choices(base)}")
    if config.lora_bias and EMBED in modules:
        raise LoracleError("lora_bias: the LoRA of an embedding has no bias, and embed_tokens is a target")
    return modules


def saved_modules(config: LoraConfig, base: ModelConfig) -> list[Module]:
    """Return the modules of the base that are trained whole. LoracleError for one that cannot be."""
    modules = [module for module in base.modules() if is_saved(config.peft, module_name(module))]
    for name in config.modules_to_save:
        if name not in ("embed_tokens", "lm_head", "model.embed_tokens"):
            raise LoracleError(f"modules_to_save: {name!r} cannot be replaced, only embed_tokens and lm_head can")
    assert set(modules) <= {EMBED, LM_HEAD}
    return modules


def _layers(config: LoraConfig, base: ModelConfig) -> str:
    layers = config.layers_to_transform
    return f" in the layers {list(layers)} (there are 0 to {base.num_hidden_layers - 1})" if layers else ""


def _choices(base: ModelConfig) -> str:
    return f"there are {', '.join(dict.fromkeys(name for _, name in base.modules()))}"


def _check_expression(key: str, value: tuple[str, ...] | str) -> None:
    """LoracleError unless it is a list of names, or a string that PEFT can put into a regular expression."""
    if isinstance(value, str):
        try:
            re.compile(value)
        except re.error as error:
            raise LoracleError(f"{key}: {value!r} is not a regular expression ({error})") from None
    elif not isinstance(value, tuple) or not all(isinstance(name, str) and name for name in value):
        raise LoracleError(f"{key} is {value!r}: it must be names, none of them empty")
