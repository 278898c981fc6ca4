"""LoRA on experts, in the layouts that files hold it in -> one pair of A and B for each projection of each expert.

    1   mlp.experts.7.gate_proj.lora_A.weight    [r, d_in]       a layer for each expert: transformers 4. Nothing to do
    2   mlp.experts.base_layer.lora_A.weight     [E r, d_in]     one pair for a parameter of all E experts, of PEFT from
        mlp.experts.base_layer.lora_B.weight     [d_out, r E]    0.19 on: the expert is the slow axis of A, the fast one
        mlp.experts.lora_A.weight ...                            of B. base_layer is the first parameter that the module
                                                                 has and target_parameters names, the other is around it
    3   the same names                           [E r, d_out]    PEFT 0.17 and 0.18 took [E, d_out, d_in] for [E, d_in,
                                                 [d_in, r E]     d_out]: a pair for the transpose (peft issue 3165)
    4   mlp.experts.w1.lora_A.weight             [1, r, d_in]    a third axis, 1 where all experts share it: Tinker,
        mlp.experts.w1.lora_B.weight             [E, d_out, r]   SGLang ("shared outer")

gate and up are one parameter, so that both halves share A, and B's rows are those of gate, then those of up; or in turn
(gpt-oss). 2 and 3 are told apart by their shapes, or where a layer is square, by peft_version.

The scale is what the training computed: alpha / r of the pair that was trained. Of rsLoRA on layout 1 that is
alpha / sqrt(r); PEFT 0.21.2 makes one pair of rank 2r and alpha 2a of gate and up when it loads that, and so multiplies
both by sqrt(2).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from ..adapter import PeftConfig, pattern_value
from ..config import SCORE, ModelConfig, Module, Moe, Stacked, module_name
from .diagnostics import Diagnostics, shown
from .peft_config import CONFIG_FILE
from .peft_parameters import AXES, UNPLACED, group_of, is_targeted, patterns_with, spellings_of, targeted_parameter
from .peft_tensors import Part, Parts

NEW, OLD = "0.19 and later", "0.17 and 0.18"


@dataclass(frozen=True, eq=False)
class StackedPair:
    """A and B of one parameter of all experts, as they lie in the file."""

    layer: int
    stack: Stacked
    parameter: str  # its dotted name
    A: Part
    B: Part
    rank: int  # of each expert
    shape: tuple[int, int]  # (d_out, d_in) of one expert

    def fits(self, experts: int) -> list[str]:
        """The versions of PEFT whose layout has these shapes: NEW, OLD, both or neither."""
        rows, (d_out, d_in), shapes = experts * self.rank, self.shape, (self.A.array.shape, self.B.array.shape)
        fitting = [NEW] if shapes == ((rows, d_in), (d_out, rows)) else []
        return fitting + ([OLD] if shapes == ((rows, d_out), (d_in, rows)) and not self.stack.transposed else [])


def expand_experts(
    parts: Parts, config: PeftConfig, base: ModelConfig | None, file: Path, diagnostics: Diagnostics
) -> tuple[PeftConfig, Parts]:
    """The parts with a pair for every module of an expert, and the config with patterns by module.

    All problems of a pair for many experts are noted here, in one line each. Without a base, which alone knows how many
    experts there are and how their rows lie, such a pair stays one, with the expert as its first axis."""
    modules = {*base.modules(), SCORE} if base else set()
    packed = {module: tensors for module, tensors in parts.items() if is_packed(module, modules, base)}
    if not packed and not config.target_parameters:
        return config, parts
    before = len(diagnostics.problems)
    for tensors in packed.values():
        check_halves(tensors, file, diagnostics)
    if len(diagnostics.problems) > before:
        return config, parts
    plain = {module: tensors for module, tensors in parts.items() if module not in packed}
    if base is None or base.moe is None:
        plain |= unexpanded(packed, config, file, diagnostics)
        return by_module(config, plain, base), plain
    three_axes = [module for module in packed if module[1].rpartition(".")[2] in AXES]
    pairs = stacked_pairs({module: packed[module] for module in packed.keys() - {*three_axes}}, config, base)
    for module in three_axes:
        add(plain, by_axis(module, packed[module], base, file, diagnostics), file, diagnostics)
    for problem in pairs.problems:
        diagnostics.problem(file, problem)
    version = layout_of(pairs.sound, config, base.moe, file, diagnostics)
    for pair in pairs.sound if version else ():
        add(plain, by_expert(pair, base.moe, version == OLD), file, diagnostics)
    return (config, parts) if len(diagnostics.problems) > before else (by_module(config, plain, base), plain)


def is_packed(module: Module, modules: set[Module], base: ModelConfig | None) -> bool:
    """Whether a tensor under this module is for several experts at once."""
    return module not in modules if base else UNPLACED.fullmatch(module[1]) is not None


def check_halves(tensors: dict[str, Part], file: Path, diagnostics: Diagnostics) -> None:
    """A pair for many experts is A and B, and nothing else."""
    for kind, part in tensors.items():
        if kind not in ("A", "B"):
            diagnostics.problem(file, f"tensor {part.name}: LoRA on all experts at once has lora_A and lora_B alone")
    if missing := [f"lora_{half}" for half in "AB" if half not in tensors]:
        other = next(iter(tensors.values())).name
        diagnostics.problem(file, f"{' and '.join(missing)} is missing beside {other}")


@dataclass(frozen=True, eq=False)
class Pairs:
    """The pairs whose parameter is clear, and why it is not of the others."""

    sound: list[StackedPair]
    problems: list[str]


def stacked_pairs(packed: Parts, config: PeftConfig, base: ModelConfig) -> Pairs:
    """Each pair with the parameter that it is for. The order of wrapping is that of the module's parameters."""
    pairs = Pairs([], [])
    moe = base.moe
    assert moe is not None
    for layer, parent in sorted({(layer, name.removesuffix(".base_layer")) for layer, name in packed}):
        named = [(stack, name) for stack in moe.stacked for name in spellings_of(stack.name, base)]
        stacks = [(stack, name) for stack, name in named if name.rpartition(".")[0] == parent]
        selected = [
            (stack, f"model.layers.{layer}.{name}")
            for stack, name in stacks
            if is_targeted(config.target_parameters, f"model.layers.{layer}.{name}")
        ]
        names = [f"{parent}.base_layer", parent][-len(selected) :] if selected else []
        present = [name for at, name in packed if at == layer and name.removesuffix(".base_layer") == parent]
        if sorted(names) != sorted(present):
            name = packed[layer, present[0]]["A"].name
            parameters = ", ".join(parameter for _, parameter in selected) or "none"
            pairs.problems.append(
                f"tensor {name} is of one of {len(present)} pairs for all experts of a layer, but target_parameters "
                f"{shown(list(config.target_parameters))} in {CONFIG_FILE} names {parameters}"
            )
            continue
        for (stack, parameter), name in zip(selected, names, strict=True):
            tensors = packed[layer, name]
            rank = pattern_value(config.rank_pattern, parameter, config.r)
            shapes = [base.shape((layer, f"{moe.expert}.0.{part}")) for part in stack.modules]
            shape = (sum(d_out for d_out, _ in shapes), shapes[0][1])
            pairs.sound.append(StackedPair(layer, stack, parameter, tensors["A"], tensors["B"], rank, shape))
    return pairs


def layout_of(
    pairs: list[StackedPair], config: PeftConfig, moe: Moe, file: Path, diagnostics: Diagnostics
) -> str | None:
    """Which PEFT wrote these pairs, NEW or OLD; None if they fit neither or not one, or nothing tells, as is noted."""
    deciding: dict[str, StackedPair] = {}
    before = len(diagnostics.problems)
    for pair in pairs:
        fits = pair.fits(moe.experts)
        if not fits:
            diagnostics.problem(file, misfit(pair, moe.experts))
        if len(fits) == 1:
            deciding.setdefault(fits[0], pair)
    if len(diagnostics.problems) > before or not pairs:
        return None
    by_version = layout_by_version(config.peft_version)
    if len(deciding) == 2:
        names = " and ".join(f"{pair.A.name} as PEFT {version} has it" for version, pair in deciding.items())
        diagnostics.problem(file, f"{names}: no one PEFT wrote both")
        return None
    if deciding:
        version = next(iter(deciding))
        if by_version not in (None, version):
            says = f"peft_version is {shown(config.peft_version)}, but {deciding[version].A.name}"
            diagnostics.warn(file, f"{says} has the shape that PEFT {version} gives it, and is read so")
        return version
    if by_version is None:
        square = f"tensor {pairs[0].A.name}: experts are square, PEFT {OLD} have the pair the other way round"
        diagnostics.problem(file, f"{square}, and peft_version {shown(config.peft_version)} does not say which it is")
    return by_version


def misfit(pair: StackedPair, experts: int) -> str:
    """What is wrong with a pair that fits no layout."""
    rows, (d_out, d_in) = experts * pair.rank, pair.shape
    shapes = f"{list(pair.A.array.shape)} and {pair.B.name} {list(pair.B.array.shape)}"
    makes = f"{CONFIG_FILE} (rank {pair.rank}) and the base ({experts} experts) make it {[rows, d_in]} and"
    return f"tensor {pair.A.name} has shape {shapes}, {makes} {[d_out, rows]}"


def layout_by_version(version: str) -> str | None:
    """NEW or OLD; None for a version that does not say, as those between 0.18 and 0.19."""
    match = re.match(r"(\d+)\.(\d+)\.\d+(\.dev)?", version)
    if match is None:
        return None
    number, between = (int(match[1]), int(match[2])), match[3] is not None
    if number < (0, 17) or (between and number in ((0, 18), (0, 19))):
        return None
    return NEW if number >= (0, 19) else OLD


def by_expert(pair: StackedPair, moe: Moe, transposed: bool) -> Parts:
    """One A, [rank, d_in], and B, [d_out, rank], of every module that a pair is for: views of the file's."""
    experts, rank = moe.experts, pair.rank
    A = pair.A.array.reshape(experts, rank, -1)  # the expert is the slow axis
    B = pair.B.array.reshape(len(pair.B.array), rank, experts).transpose(2, 0, 1)  # and here the fast one
    if transposed:
        A, B = B.transpose(0, 2, 1), A.transpose(0, 2, 1)
    parts: Parts = {}
    for expert in range(experts):
        shared = Part(pair.A.name, A[expert])
        for half, name in enumerate(pair.stack.modules):
            rows = Part(pair.B.name, B[expert][pair.stack.rows(half, B.shape[1])])
            parts[pair.layer, f"{moe.expert}.{expert}.{name}"] = {"A": shared, "B": rows}
    return parts


def by_axis(module: Module, tensors: dict[str, Part], base: ModelConfig, file: Path, diagnostics: Diagnostics) -> Parts:
    """Layout 4: the expert is the first axis of A and B, which is 1 where all experts have the same."""
    moe = base.moe
    assert moe is not None
    name = (*moe.gate_up, moe.down)[AXES[module[1].rpartition(".")[2]]] if len(moe.gate_up) == 2 else ""
    for part in tensors.values():
        if part.array.ndim != 3 or part.array.shape[0] not in (1, moe.experts) or not name:
            expected = f"[{moe.experts} experts or 1 for all, ...] and three axes"
            diagnostics.problem(file, f"tensor {part.name} has shape {list(part.array.shape)}; it must have {expected}")
            return {}
    halves = {half: [Part(part.name, x) for x in part.array] for half, part in tensors.items()}
    return {
        (module[0], f"{moe.expert}.{expert}.{name}"): {half: each[expert % len(each)] for half, each in halves.items()}
        for expert in range(moe.experts)
    }


def add(parts: Parts, new: Parts, file: Path, diagnostics: Diagnostics) -> None:
    """Put new parts beside the others, unless the module has some: noted once."""
    if twice := [module for module in new if module in parts]:
        first = twice[0]
        names = f"{new[first]['A'].name} and {next(iter(parts[first].values())).name}"
        diagnostics.problem(file, f"{names} are both for {module_name(first)}")
    parts.update(new)


def by_module(config: PeftConfig, parts: Parts, base: ModelConfig | None) -> PeftConfig:
    """The config with the ranks and alphas of parameters by the modules that they are of (peft_parameters.py)."""
    adapted = [module for module, tensors in parts.items() if "A" in tensors]
    parameters = {module: targeted_parameter(config, module, base) for module in adapted}
    others = [module_name(module) for module in adapted if parameters[module] is None]
    ranks, alphas, samples = {}, {}, {}
    for module, parameter in parameters.items():
        if parameter is not None and (group := group_of(module, base)) not in samples:
            samples[group] = module_name(module)
            ranks[group] = pattern_value(config.rank_pattern, parameter, config.r)
            alphas[group] = pattern_value(config.alpha_pattern, parameter, config.lora_alpha)
    return replace(
        config,
        rank_pattern=patterns_with(config.rank_pattern, config.r, ranks, samples, others),
        alpha_pattern=patterns_with(config.alpha_pattern, config.lora_alpha, alphas, samples, others),
        peft_version="",
    )


def unexpanded(packed: Parts, config: PeftConfig, file: Path, diagnostics: Diagnostics) -> Parts:
    """The pairs under their parameters' names, [experts, rank, d_in] and [experts, d_out, rank]: of NEW's layout."""
    parts: Parts = {}
    for (layer, name), tensors in packed.items():
        A, B = tensors["A"], tensors["B"]
        name = parameter_in_file(packed, layer, name, config)
        rank = pattern_value(config.rank_pattern, f"model.layers.{layer}.{name}", config.r)
        if A.array.ndim == 2 and B.array.ndim == 2:
            rows = A.array.shape[0]
            if rows % rank or B.array.shape[1] != rows:
                shapes = f"{list(A.array.shape)} and {B.name} {list(B.array.shape)}"
                diagnostics.problem(file, f"tensor {A.name} has shape {shapes}, and rank {rank} for each expert")
                continue
            A = Part(A.name, A.array.reshape(-1, rank, A.array.shape[1]))
            B = Part(B.name, B.array.reshape(len(B.array), rank, -1).transpose(2, 0, 1))
        parts[layer, name] = {"A": A, "B": B}
    return parts


def parameter_in_file(packed: Iterable[Module], layer: int, name: str, config: PeftConfig) -> str:
    """What a pair is probably for, without a base that says so: the first of two parameters is gate_up_proj."""
    parent = name.removesuffix(".base_layer")
    if not parent.endswith(".experts"):
        return name
    both = (layer, f"{parent}.base_layer") in packed
    inner = name != parent
    last = [word.rpartition(".")[2] for word in config.target_parameters]
    alone = next((word for word in ("gate_up_proj", "down_proj") if word in last), "weight")
    return f"{parent}.{('gate_up_proj' if inner else 'down_proj') if both else alone}"
