"""Whether an adapter's file holds what its config promises, for the base that it is put on."""

from pathlib import Path

import numpy as np

from ..config import EMBED, LAYER_NORMS, LM_HEAD, ModelConfig, module_name
from .findings import Findings, shown
from .peft_config import CONFIG_FILE, PeftConfig, is_saved, selects
from .peft_tensors import Parts, whole


def check_whole(parts: Parts, config: PeftConfig, base: ModelConfig | None, file: Path, found: Findings) -> None:
    """Weights and biases that the adapter brings along in place of the base's."""
    for site, held in parts.items():
        module = module_name(site)
        if "copy" in held and ("saved" in held or "A" not in held):
            found.problem(file, f"tensor {held['copy'].name} is the base of a LoRA that is not there")
        if bias := held.get("bias"):
            if config.bias == "none":
                found.problem(file, f"tensor {bias.name} is there, but bias is 'none' in {CONFIG_FILE}")
            elif base and not base.has_bias(site[1]):
                found.problem(file, f"tensor {bias.name}: {module} of the base has no bias")
            elif base and bias.array.shape != base.shape(site[1])[:1]:
                wanted = list(base.shape(site[1])[:1])
                found.problem(file, f"tensor {bias.name} has shape {list(bias.array.shape)}, the base's is {wanted}")
    if config.bias != "none" and not any("bias" in held for held in parts.values()):
        # PEFT up to 0.20 looked for them under a wrong name when saving, and found none.
        found.warn(file, f"bias is {config.bias!r}, but there is no bias tensor: if biases were trained, they are lost")


def check_vocabulary(parts: Parts, config: PeftConfig, base: ModelConfig, file: Path, found: Findings) -> None:
    """The two tables of the vocabulary have the base's width, at least its rows, and as many rows as each other."""
    rows = {EMBED: base.vocab_size, LM_HEAD: base.vocab_size}
    brought = whole(parts, config, base)
    for site, part in brought.items():
        shape = part.array.shape
        if len(shape) != 2 or shape[1] != base.hidden_size or shape[0] < base.vocab_size:
            wanted = f"[{base.vocab_size} or more, {base.hidden_size}]"
            found.problem(file, f"tensor {part.name} has shape {list(shape)}, the base makes it {wanted}")
            return
        rows[site] = shape[0]
    if rows[EMBED] != rows[LM_HEAD]:
        counts = f"embed_tokens has {rows[EMBED]} rows and lm_head {rows[LM_HEAD]}"
        found.problem(file, f"{counts}: the vocabulary has grown, and only one of the two was saved")
    one_parameter = base.tie_word_embeddings and not any(is_saved(config, module_name(site)) for site in rows)
    if one_parameter and brought and not np.array_equal(brought[EMBED].array, brought[LM_HEAD].array):
        found.problem(file, f"{brought[EMBED].name} and {brought[LM_HEAD].name} differ, and the base ties the two")


def check_selected(parts: Parts, config: PeftConfig, base: ModelConfig, folder: Path, found: Findings) -> None:
    """Everything that the config selects in this base has tensors.

    PEFT saves every module that it targets, so one that is selected and not saved was lost by whatever wrote the file.
    PEFT itself only warns, and computes as if that module's B were zero: half an adapter, which looks like a whole one.
    Names that select nothing are normal (one list for a text and a vision model), and only worth a warning.
    """
    file = folder / CONFIG_FILE
    for site in base.sites():
        module = module_name(site)
        if selects(config, module) and "A" not in parts.get(site, {}) and "B" not in parts.get(site, {}):
            found.problem(file, f"target_modules selects {module}, but there are no tensors for it")
    for name in config.modules_to_save:
        hit = [module for module in all_modules(base) if module.endswith(name)]
        for module in hit:
            if module not in (module_name(EMBED), module_name(LM_HEAD)):
                found.problem(
                    file, f"modules_to_save {name!r}: {module} cannot be replaced, only embed_tokens and lm_head"
                )
                break
        for site in (EMBED, LM_HEAD):
            if module_name(site) in hit and "saved" not in parts.get(site, {}):
                found.problem(file, f"modules_to_save {name!r}: there is no tensor for {module_name(site)}")
    names = config.target_modules if isinstance(config.target_modules, tuple) else ()
    nothing = [n for n in names if not any(f".{module_name(site)}".endswith(f".{n}") for site in base.sites())]
    if nothing:
        found.warn(file, f"target_modules: {shown(nothing)} name no linear layer of the base")
    if not parts:
        found.problem(folder, "has no tensors at all")
    covered = {layer for layer, _ in parts if layer >= 0}
    if covered and len(covered) < base.num_hidden_layers:
        found.warn(file, f"the adapter covers {len(covered)} of the base's {base.num_hidden_layers} layers")


def all_modules(base: ModelConfig) -> list[str]:
    """The dotted name of every module of the base that has weights, in or below it."""
    names = {"model.norm"} | {module_name(site) for site in base.sites()}
    for i in range(base.num_hidden_layers):
        names |= {f"model.layers.{i}.{norm}" for norm in LAYER_NORMS}
    parents = {name.rsplit(".", n)[0] for name in names for n in range(1, name.count(".") + 1)}
    return sorted(names | parents)
