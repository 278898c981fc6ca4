"""A LoRA adapter in a GGUF file, as llama.cpp's convert_lora_to_gguf.py writes it.

    general.type                  adapter;  adapter.type: lora;  general.architecture: that of the base
    adapter.lora.alpha            one for all modules: the scale is alpha / rank of the module, and 1 where it is 0
    blk.3.attn_q.weight.lora_a    A [rank, d_in];  .lora_b: B [d_out, rank], q's and k's rows interleaved
    token_embd.weight.lora_a      A transposed, [vocab, rank]: its rows are looked up

(src/llama-adapter.cpp.) The heads whose rows are interleaved are the base's: without it, B is left as it lies.
"""

import re
from pathlib import Path

from ..adapter import PeftConfig
from ..config import EMBED, ModelConfig, Module
from .adapter_pairs import Scaled, checked_pairs, config_and_parts
from .dequantise import is_readable, missing_package, numbers
from .diagnostics import Diagnostics, shown
from .gguf_file import GgufFile, GgufTensor, is_gguf
from .gguf_names import INTERLEAVED, architecture_of, half_split, known_architectures, module_named, rotary_heads
from .gguf_parts import open_gguf
from .json_file import is_number
from .peft_tensors import Part, Parts

NAME = re.compile(r"(.+)\.weight\.lora_([ab])")
ALPHA = "adapter.lora.alpha"
INVOCATION = "adapter.alora.invocation_tokens"


def is_gguf_adapter(path: Path) -> bool:
    """Whether a path is a GGUF file that says it is an adapter."""
    file = open_gguf(path, Diagnostics()) if is_gguf(path) else None
    return file is not None and file.metadata.get("general.type") == "adapter"


def read_gguf_adapter(
    path: Path, base: ModelConfig | None, diagnostics: Diagnostics
) -> tuple[PeftConfig | None, Parts]:
    """PEFT's config and parts of the adapter, with every problem noted."""
    file, before = open_gguf(path, diagnostics), len(diagnostics.problems)
    if file is None:
        return None, {}
    if problem := _not_an_adapter(file, base):
        diagnostics.problem(path, problem)
        return None, {}
    halves: dict[Module, dict[str, Part]] = {}
    for name, stored in file.tensors.items():
        match = NAME.fullmatch(name)
        module = module_named(match[1]) if match else None
        if match is None or module is None or module[1].endswith("norm"):
            diagnostics.problem(path, f"tensor {name} {list(stored.shape)} is not supported: {_what(name)}")
        elif not is_readable(stored.type) or (stored.type.startswith("Q") and missing_package()):
            diagnostics.problem(
                path, f"tensor {name} has type {stored.type}, which {missing_package() or 'is not read'}"
            )
        else:
            by_heads = base if file.metadata.get("general.architecture") == INTERLEAVED else None
            halves.setdefault(module, {})[match[2].upper()] = _part(name, module, match[2], stored, by_heads)
    sound = checked_pairs(path, halves, base, diagnostics)
    if len(diagnostics.problems) > before:
        return None, {}
    alpha = float(file.metadata.get(ALPHA, 0.0))
    pairs = {
        module: Scaled(halves[module]["A"], halves[module]["B"], alpha or float(halves[module]["A"].array.shape[0]))
        for module in sound
    }
    layers = base.num_hidden_layers if base else 1 + max(layer for layer, _ in sound)
    return config_and_parts(pairs, layers)


def _not_an_adapter(file: GgufFile, base: ModelConfig | None) -> str | None:
    """Why the file is no adapter that is read here, if it is none."""
    said = file.metadata
    if said.get("general.type") != "adapter":
        return f"general.type is {shown(said.get('general.type'))}, not 'adapter': it is a base model"
    if said.get("adapter.type") != "lora":
        return f"adapter.type is {shown(said.get('adapter.type'))}; only 'lora' is supported"
    architecture, expected = said.get("general.architecture"), architecture_of(base) if base else None
    if architecture not in known_architectures() or expected == "":
        of_base = f", and the base is {base.model_type or 'another'}" if base and expected == "" else ""
        names = ", ".join(known_architectures())
        return f"general.architecture is {shown(architecture)}{of_base}; supported are {names}"
    if expected not in (None, architecture):
        return f"general.architecture is {shown(architecture)}, and the base's is {expected!r}: it is of another family"
    if said.get(INVOCATION):
        return f"{INVOCATION} is {shown(said[INVOCATION])}: activated LoRA is not supported"
    if not is_number(said.get(ALPHA, 0.0)):
        return f"{ALPHA} is {shown(said[ALPHA])}: it must be a finite number"
    return None


def _part(name: str, module: Module, half: str, stored: GgufTensor, base: ModelConfig | None) -> Part:
    """One tensor as PEFT has it."""
    array = numbers(stored.type, stored.data)
    if half == "a":
        return Part(name, array.T if module == EMBED else array)
    heads = rotary_heads(module[1], base) if base else None
    fits = heads and array.ndim == 2 and array.shape[0] == base.shape(module)[0]  # type: ignore[union-attr]
    return Part(name, half_split(array, heads) if fits else array)


def _what(name: str) -> str:
    """What a tensor that cannot be placed is."""
    if name.endswith("_norm.weight"):
        return "a norm, which llama.cpp ignores"
    return "no module of a Llama, or not its .lora_a or .lora_b"
