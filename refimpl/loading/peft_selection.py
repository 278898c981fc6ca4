"""Whether an adapter's file holds what its config promises, for the base that it is put on."""

from pathlib import Path

import numpy as np

from ..adapter import PeftConfig, pattern_value
from ..config import EMBED, LM_HEAD, SCORE, ModelConfig, Module, module_name
from .diagnostics import Diagnostics, shown
from .peft_config import CONFIG_FILE, is_saved, selects
from .peft_parameters import is_targeted, parameters_of, selects_module, stack_of, targeted_parameter
from .peft_tensors import Part, Parts, full_weights_of


def check_whole(
    parts: Parts, config: PeftConfig, base: ModelConfig | None, file: Path, diagnostics: Diagnostics
) -> None:
    """Weights and biases that the adapter brings along in place of the base's."""
    for module, tensors in parts.items():
        name = module_name(module)
        if "copy" in tensors and ("saved" in tensors or not tensors.keys() & {"A", "tokens"}):
            diagnostics.problem(file, f"tensor {tensors['copy'].name} is the base of a LoRA that is not there")
        if bias := tensors.get("bias"):
            if config.bias == "none":
                diagnostics.problem(file, f"tensor {bias.name} is there, but bias is 'none' in {CONFIG_FILE}")
            elif base and not base.has_bias(module[1]):
                diagnostics.problem(file, f"tensor {bias.name}: {name} of the base has no bias")
            elif base and bias.array.shape != base.shape(module)[:1]:
                expected = list(base.shape(module)[:1])
                diagnostics.problem(
                    file, f"tensor {bias.name} has shape {list(bias.array.shape)}, the base's is {expected}"
                )
    if SCORE in parts:
        _check_score(parts[SCORE]["saved"], config, base, file, diagnostics)
    if config.bias != "none" and not any("bias" in tensors for tensors in parts.values()):
        # PEFT up to 0.20 looked for them under a wrong name when saving, and found none.
        diagnostics.warn(
            file, f"bias is {config.bias!r}, but there is no bias tensor: if biases were trained, they are lost"
        )


def _check_score(
    head: Part, config: PeftConfig, base: ModelConfig | None, file: Path, diagnostics: Diagnostics
) -> None:
    """A classification head is [labels, the base's width], and what modules_to_save names."""
    if not is_saved(config, module_name(SCORE)):
        diagnostics.problem(
            file, f"tensor {head.name} is not for use: modules_to_save does not name it ({CONFIG_FILE})"
        )
        return
    shape = head.array.shape
    width = base.hidden_size if base else shape[-1]
    labels = base.labels if base and base.labels else shape[0]
    if len(shape) != 2 or list(shape) != [labels, width]:
        makes = "the base makes it" if base else "it must be"
        expected = f"{makes} [{base.labels if base and base.labels else 'labels'}, {width if base else 'hidden_size'}]"
        diagnostics.problem(file, f"tensor {head.name} has shape {list(shape)}, {expected}")


def check_vocabulary(parts: Parts, config: PeftConfig, base: ModelConfig, file: Path, diagnostics: Diagnostics) -> None:
    """The two tables of the vocabulary have the base's width, at least its rows, and as many rows as each other."""
    rows = {EMBED: base.vocab_size, LM_HEAD: base.vocab_size}
    full_weights = full_weights_of(parts, config, base)
    for module, part in full_weights.items():
        shape = part.array.shape
        if len(shape) != 2 or shape[1] != base.hidden_size or shape[0] < base.vocab_size:
            expected = f"[{base.vocab_size} or more, {base.hidden_size}]"
            diagnostics.problem(file, f"tensor {part.name} has shape {list(shape)}, the base makes it {expected}")
            return
        if base.vocab_size_per_layer_input and shape[0] > base.vocab_size_per_layer_input:
            most = f"embed_tokens_per_layer of the base has {base.vocab_size_per_layer_input} rows"
            diagnostics.problem(file, f"tensor {part.name} has shape {list(shape)}, and {most}")
        rows[module] = shape[0]
    if rows[EMBED] != rows[LM_HEAD]:
        counts = f"embed_tokens has {rows[EMBED]} rows and lm_head {rows[LM_HEAD]}"
        diagnostics.problem(file, f"{counts}: the vocabulary has grown, and only one of the two was saved")
    one_parameter = base.tie_word_embeddings and not any(is_saved(config, module_name(module)) for module in rows)
    if one_parameter and full_weights and not np.array_equal(full_weights[EMBED].array, full_weights[LM_HEAD].array):
        diagnostics.problem(
            file, f"{full_weights[EMBED].name} and {full_weights[LM_HEAD].name} differ, and the base ties the two"
        )


def check_selected(
    parts: Parts,
    config: PeftConfig,
    base: ModelConfig,
    folder: Path,
    diagnostics: Diagnostics,
    *,
    all_sorted: bool = True,
) -> None:
    """Everything that the config selects in this base has tensors. Where not all of the file's could be sorted, what
    seems to have none may have some of those: nothing is said of it then.

    PEFT saves every module that it targets, so one that is selected and not saved was lost by whatever wrote the file.
    PEFT itself only warns, and computes as if that module's B were zero: half an adapter, which looks like a whole one.
    Names that select nothing are normal (one list for a text and a vision model), and only worth a warning.
    """
    file = folder / CONFIG_FILE
    _check_tied_pairs(parts, config, base, file, diagnostics)
    _check_invocation(config, base, file, diagnostics)
    selected = [module for module in base.modules() if selects_module(config, module, base)]
    missing = [module for module in selected if not parts.get(module, {}).keys() & {"A", "B"}]
    for module in without_untrained(missing if all_sorted else [], parts, config, base, file, diagnostics):
        by = "target_parameters" if targeted_parameter(config, module, base) else "target_modules"
        diagnostics.problem(file, f"{by} selects {module_name(module)}, but there are no tensors for it")
    for name in config.modules_to_save:
        hit = [full_name for full_name in all_modules(base) if full_name.endswith(name)]
        for full_name in hit:
            if full_name not in (module_name(EMBED), module_name(LM_HEAD), module_name(SCORE)):
                diagnostics.problem(
                    file, f"modules_to_save {name!r}: {full_name} cannot be replaced, only embed_tokens and lm_head"
                )
                break
        for module in (EMBED, LM_HEAD, *((SCORE,) if base.labels else ())):
            if all_sorted and module_name(module) in hit and "saved" not in parts.get(module, {}):
                diagnostics.problem(file, f"modules_to_save {name!r}: there is no tensor for {module_name(module)}")
    note_names_of_nothing(config, base, file, diagnostics)
    if not parts and all_sorted:
        diagnostics.problem(folder, "has no tensors at all")
    covered = {layer for layer, _ in parts if layer >= 0}
    meant = range(base.num_hidden_layers) if config.layers_to_transform is None else config.layers_to_transform
    if covered and all_sorted and not covered.issuperset(meant):
        diagnostics.warn(file, f"the adapter covers {len(covered)} of the base's {base.num_hidden_layers} layers")


def is_as_deep(config: PeftConfig, base: ModelConfig, file: Path, diagnostics: Diagnostics) -> bool:
    """Whether the base's layers are read as often as the adapter's were; if not, that is noted."""
    if config.layer_replication != base.layer_replication:
        runs, others = (list(map(list, one.layer_replication)) or "null" for one in (config, base))
        how = (
            f"refimpl.replicated(model, {runs}) makes that model"
            if config.layer_replication
            else "take the base itself"
        )
        diagnostics.problem(file, f"layer_replication is {runs}, and the base's {others}: {how}")
    return config.layer_replication == base.layer_replication


def _check_tied_pairs(
    parts: Parts, config: PeftConfig, base: ModelConfig, file: Path, diagnostics: Diagnostics
) -> None:
    """With ensure_weight_tying, tied tables have one LoRA, in the file twice: B of the one is A of the other."""
    embed, head = parts.get(EMBED, {}), parts.get(LM_HEAD, {})
    if not (config.ensure_weight_tying and base.tie_word_embeddings and embed.keys() & head.keys() >= {"A", "B"}):
        return
    for half, other in ("AB", "BA"):
        if not np.array_equal(embed[half].array.T, head[other].array):
            names = f"{embed[half].name} and {head[other].name}"
            diagnostics.problem(file, f"ensure_weight_tying makes one LoRA of {names}, and they differ")
            return


def _check_invocation(config: PeftConfig, base: ModelConfig, file: Path, diagnostics: Diagnostics) -> None:
    """An aLoRA is on no embedding, where PEFT refuses it, and its invocation can stand in a prompt."""
    invocation = config.alora_invocation_tokens
    if invocation and selects(config, module_name(EMBED)):
        why = "which PEFT does not support: the rows of the base would have to change before the invocation is read"
        diagnostics.problem(file, f"alora_invocation_tokens and a LoRA on {module_name(EMBED)}, {why}")
    if invocation and max(invocation) >= base.vocab_size:
        outside = f"names token {max(invocation)}, outside of the vocabulary of {base.vocab_size}"
        diagnostics.problem(file, f"alora_invocation_tokens {outside}: it would never act")


def check_parameters(parts: Parts, config: PeftConfig, file: Path, diagnostics: Diagnostics) -> None:
    """Without a base: some of target_parameters have tensors. Names that select nothing are normal."""
    adapted = [module_name(module) for module, tensors in parts.items() if "A" in tensors]
    names = [*adapted, *(f"{name}.weight" for name in adapted)]
    targets = config.target_parameters
    if targets and not any(is_targeted(targets, name) for name in names):
        diagnostics.problem(file, f"target_parameters names {shown(list(targets))}, but there are no tensors for any")


def note_names_of_nothing(config: PeftConfig, base: ModelConfig, file: Path, diagnostics: Diagnostics) -> None:
    """Targets and patterns that the base has not: a warning, or a problem if no target_parameters is there."""
    names = config.target_modules if isinstance(config.target_modules, tuple) else ()
    nothing = [n for n in names if not any(f".{module_name(module)}".endswith(f".{n}") for module in base.modules())]
    if nothing:
        diagnostics.warn(file, f"target_modules: {shown(nothing)} name no linear layer of the base")
    modules = [module_name(module) for module in base.modules()]
    for key in ("rank_pattern", "alpha_pattern") if base.moe is None else ():  # of experts: names of parameters
        nothing = [
            n for n in getattr(config, key) if not any(pattern_value({n: True}, name, False) for name in modules)
        ]
        if nothing:
            diagnostics.warn(file, f"{key}: {shown(nothing)} match no linear layer of the base")
    weights = [name for module in base.modules() for name in parameters_of(module, base)]
    nothing = [n for n in config.target_parameters if not any(is_targeted((n,), weight) for weight in weights)]
    if nothing:  # PEFT targets them where they are: without any, it was trained on another base
        note = diagnostics.problem if len(nothing) == len(config.target_parameters) else diagnostics.warn
        note(file, f"target_parameters: {shown(nothing)} name no weight of a linear layer of the base")


def without_untrained(
    missing: list[Module], parts: Parts, config: PeftConfig, base: ModelConfig, file: Path, diagnostics: Diagnostics
) -> list[Module]:
    """The selected modules that have no tensors, without experts and routers if not one of these has any: a warning.

    In transformers 5 these are no linear layers, so that the usual target_modules name them and do not reach them."""
    moe = base.moe
    if moe is None:
        return missing
    for what, of_it in (
        ("the experts", [module for module in base.modules() if stack_of(module, base)]),
        ("the routers", [module for module in base.modules() if module[1] == moe.router]),
    ):
        lost = [module for module in missing if module in {*of_it}]
        if lost and not any(module in parts or targeted_parameter(config, module, base) for module in of_it):
            trained = "right if it was trained with transformers 5, where these are no layers"
            diagnostics.warn(file, f"target_modules selects {what}, but there are no tensors for any: {trained}")
            missing = [module for module in missing if module not in {*lost}]
    return missing


def all_modules(base: ModelConfig) -> list[str]:
    """The dotted name of every module of the base that has weights, in or below it."""
    names = {"model.norm"} | {module_name(module) for module in base.modules()}
    for i in range(base.num_hidden_layers):
        names |= {f"model.layers.{i}.{norm}" for norm in base.norms_of(i)}
    names |= {module_name(SCORE)} if base.labels else set()
    parents = {name.rsplit(".", n)[0] for name in names for n in range(1, name.count(".") + 1)}
    return sorted(names | parents)
