"""Pairs of A and B from a format that is not PEFT's -> the config and the parts that PEFT's folder would have."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..adapter import PeftConfig
from ..config import EMBED, LAYER_MODULES, ModelConfig, Module, module_name
from .conversion import all_finite
from .diagnostics import Diagnostics
from .peft_tensors import Part, Parts


@dataclass(frozen=True, eq=False)
class Scaled:
    """One module's pair, A [rank, d_in] and B [d_out, rank], and the alpha with which alpha / rank is its scale; and
    the magnitude [d_out] of DoRA, if it is one."""

    A: Part
    B: Part
    alpha: float
    magnitude: Part | None = None

    @property
    def rank(self) -> int:
        """The rank of both."""
        return self.A.array.shape[0]


def checked_pairs(
    path: Path,
    halves: Mapping[Module, Mapping[str, Part]],
    base: ModelConfig | None,
    diagnostics: Diagnostics,
) -> list[Module]:
    """The modules whose A and B are both there, of one rank, finite, and of the base's widths; the others are noted,
    and so is a file without any."""
    if not halves and not diagnostics.problems:
        diagnostics.problem(path, "has no tensors at all")
    sound = []
    for module, parts in sorted(halves.items()):
        before = len(diagnostics.problems)
        for half in "AB":
            if half not in parts:
                other = next(iter(parts.values())).name
                diagnostics.problem(path, f"module {module_name(module)}: its {half} is missing (there is {other})")
        for kind, part in parts.items():
            axes = 1 if kind == "magnitude" else 2
            if part.array.ndim != axes:
                shape = list(part.array.shape)
                diagnostics.problem(path, f"tensor {part.name} has shape {shape}; it must have {axes} axes")
            elif not all_finite(part.array):
                diagnostics.problem(path, f"tensor {part.name} holds NaN or inf")
        if len(diagnostics.problems) == before:
            _check_shapes(path, module, parts, base, diagnostics)
        if len(diagnostics.problems) == before:
            sound.append(module)
    return sound


def _check_shapes(
    path: Path, module: Module, parts: Mapping[str, Part], base: ModelConfig | None, diagnostics: Diagnostics
) -> None:
    A, B = parts["A"], parts["B"]
    rank, d_in = A.array.shape
    if B.array.shape[1] != rank:
        diagnostics.problem(path, f"{A.name} has rank {rank}, and {B.name} has {B.array.shape[1]}")
    elif "magnitude" in parts and len(parts["magnitude"].array) != len(B.array):
        magnitude = parts["magnitude"]
        diagnostics.problem(
            path, f"{magnitude.name} has {len(magnitude.array)} numbers, and {B.name} has {len(B.array)} rows"
        )
    elif base and module not in base.modules():
        diagnostics.problem(path, f"{A.name}: the base has {base.num_hidden_layers} layers")
    elif base:
        expected = base.shape(module)[::-1] if module == EMBED else base.shape(module)
        shape = (B.array.shape[0], d_in)
        if shape != expected:
            diagnostics.problem(
                path, f"{A.name} and its B are for a layer {list(shape)}; the base's is {list(expected)}"
            )


def config_and_parts(pairs: Mapping[Module, Scaled], layers: int) -> tuple[PeftConfig, Parts]:
    """PEFT's config of an adapter that has exactly these pairs, in a base of so many layers, and its parts."""
    parts: Parts = {module: {"A": pair.A, "B": pair.B} for module, pair in pairs.items()}
    for module, pair in pairs.items():
        if pair.magnitude:
            parts[module]["magnitude"] = pair.magnitude
    config = config_of({module: (pair.rank, pair.alpha) for module, pair in pairs.items()}, layers)
    return replace(config, use_dora=any(pair.magnitude for pair in pairs.values())), parts


def config_of(modules: Mapping[Module, tuple[int, float]], layers: int) -> PeftConfig:
    """A config that selects these modules, each with this rank and alpha. The usual ones are r and lora_alpha."""
    counts = Counter(modules.values())
    r, alpha = max(counts, key=lambda pair: (counts[pair], pair))
    ranks = {module_name(module): rank for module, (rank, _) in modules.items() if rank != r}
    alphas = {module_name(module): value for module, (_, value) in modules.items() if value != alpha}
    order = {name: i for i, name in enumerate(LAYER_MODULES)}
    names = sorted({name for _, name in modules}, key=lambda name: (order.get(name, len(order)), name))
    complete = sum(layers if layer >= 0 else 1 for layer, _ in {(min(layer, 0), name) for layer, name in modules})
    if len(modules) < complete:  # not the same in every layer: each by its full name
        names = [module_name(module) for module in modules]
    return PeftConfig(r, alpha, rank_pattern=ranks, alpha_pattern=alphas, target_modules=tuple(names))
