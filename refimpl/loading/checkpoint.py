"""The tensors of a base model: which files hold them, which must be there, and whether they are fit to use."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..arrays import Array
from ..config import LAYER_INPUTS, ModelConfig, module_name
from .conversion import CHUNK, all_finite
from .diagnostics import Diagnostics, shown
from .foreign_names import wrapping_of
from .gguf_file import is_gguf
from .gguf_tensors import gguf_spelling, gguf_tensors
from .json_file import read_json
from .quantization import tensors_of
from .safetensors_file import open_safetensors
from .stacked_experts import by_expert
from .tensor import Tensor
from .wrapped_names import text_name

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TIED, EMBED_WEIGHT = "lm_head.weight", "model.embed_tokens.weight"

# Tensors that older versions of transformers saved, and newer ones compute: nothing is lost by not reading them.
HARMLESS = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")

CONVERT = (
    "it is a pickle, which can run code, and is not read; convert it where you trust it: "
    "transformers.AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW)"
)


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a checkpoint of this config has."""
    shapes: dict[str, tuple[int, ...]] = {
        EMBED_WEIGHT: config.shape("embed_tokens"),
    }
    parts = ("weight", "bias") if config.norms.bias else ("weight",)
    shapes |= {f"model.norm.{part}": (config.hidden_size,) for part in parts}
    if config.hidden_size_per_layer_input:
        shapes["model.embed_tokens_per_layer.weight"] = (config.vocab_size_per_layer_input, config.layer_inputs_width)
        shapes["model.per_layer_model_projection.weight"] = config.shape(LAYER_INPUTS)
        shapes["model.per_layer_projection_norm.weight"] = (config.hidden_size_per_layer_input,)
    for i in range(config.num_hidden_layers):
        norms = [name for name in config.norms_of(i) if name != config.norms.v]
        shapes |= {f"model.layers.{i}.{name}.{part}": (config.norm_width(name, i),) for name in norms for part in parts}
        shapes |= {f"model.layers.{i}.{name}": (width,) for name, width in config.vectors_of(i).items()}
        for name in config.modules_of(i):
            module = (i, name)
            shapes[f"{module_name(module)}.weight"] = config.shape(module)
            if config.has_bias(name):
                shapes[f"{module_name(module)}.bias"] = config.shape(module)[:1]
    if config.labels:
        shapes["score.weight"] = (config.labels, config.hidden_size)
    elif not config.tie_word_embeddings:
        shapes["lm_head.weight"] = config.shape("lm_head")
    return shapes


def open_checkpoint(path: Path, config: ModelConfig | None, diagnostics: Diagnostics) -> dict[str, Tensor]:
    """Every expected tensor by name, still in the memory map, with all problems noted. Without a config, every one.

    Tensors of a quantised type are not looked into: whoever reads one sees whether it holds NaN."""
    before = len(diagnostics.problems)
    stored = gguf_tensors(path, config, diagnostics) if is_gguf(path) else folder_tensors(path, diagnostics)
    if config and config.wrapped:
        stored = [(text, tensor) for name, tensor in stored if (text := text_name(name)) is not None]
    if config and config.unread_layers:
        stored = without_unread(stored, config, path, diagnostics)
    if config and len(config.kv_layers) < config.num_hidden_layers:
        stored = without_shared_keys(stored, config, path, diagnostics)
    if config and config.moe:
        stored = by_expert(stored, config)
    complete = len(diagnostics.problems) == before
    expected = expected_tensors(config) if config else None
    tensors: dict[str, Tensor] = {}
    for name, tensor in stored:
        if expected and not tensor.size and name not in expected:
            continue  # transformers writes an MLP of width 0 where there are no shared experts
        if problem := _tensor_problem(name, tensor, expected, tensors):
            diagnostics.problem(tensor.file, f"tensor {tensor.name} {problem}")
        else:
            tensors[name] = tensor
    present = {name for name, _ in stored}
    for name, shape in (expected or {}).items() if complete else ():
        if name not in present and not (
            name == EMBED_WEIGHT and config and config.tie_word_embeddings and TIED in present
        ):
            why = "; tie_word_embeddings is false in config.json" if name == TIED else ""
            spelt = gguf_spelling(name) if is_gguf(path) else name
            diagnostics.problem(path, f"tensor {spelt} {list(shape)} is in no file of the checkpoint{why}")
    if config and config.tie_word_embeddings and TIED in tensors:
        _check_tied(tensors, diagnostics)
    return tensors


def without_unread(
    stored: list[tuple[str, Tensor]], config: ModelConfig, path: Path, diagnostics: Diagnostics
) -> list[tuple[str, Tensor]]:
    """The tensors but those of the layers that predict further tokens, which are named in a warning: the model answers
    the same without them (transformers, modeling_deepseek_v3.py, _keys_to_ignore_on_load_unexpected)."""
    first, past = config.num_hidden_layers, config.num_hidden_layers + config.unread_layers
    prefixes = tuple(f"model.layers.{i}." for i in range(first, past))
    kept = [(name, tensor) for name, tensor in stored if not name.startswith(prefixes)]
    if len(kept) < len(stored):
        layers = ", ".join(prefix.rstrip(".") for prefix in prefixes)
        diagnostics.warn(path, f"{layers}: {len(stored) - len(kept)} tensors that predict further tokens are not read")
    return kept


def without_shared_keys(
    stored: list[tuple[str, Tensor]], config: ModelConfig, path: Path, diagnostics: Diagnostics
) -> list[tuple[str, Tensor]]:
    """The tensors but the keys and values of layers that read an earlier one's, which some files have all the same
    (transformers, modeling_gemma4.py, _keys_to_ignore_on_load_unexpected)."""
    shared = [i for i in range(config.num_hidden_layers) if config.kind(i).kv_from is not None]
    layers = re.compile(rf"model\.layers\.({'|'.join(map(str, shared))})\.self_attn\.[kv]_(proj|norm)\.(weight|bias)")
    read = [(name, tensor) for name, tensor in stored if not layers.fullmatch(name)]
    if len(read) < len(stored):
        diagnostics.warn(
            path, f"{len(stored) - len(read)} tensors of layers that read an earlier one's keys are not read"
        )
    return read


def folder_tensors(folder: Path, diagnostics: Diagnostics) -> list[tuple[str, Tensor]]:
    """Every tensor of the folder's safetensors files, by its name."""
    files = [file for path in checkpoint_files(folder, diagnostics) if (file := open_safetensors(path, diagnostics))]
    return [(name, tensor) for name, tensor in tensors_of(files) if not HARMLESS.fullmatch(name)]


def _tensor_problem(
    name: str, tensor: Tensor, expected: Mapping[str, tuple[int, ...]] | None, others: Mapping[str, Tensor]
) -> str | None:
    """What is wrong with one tensor, if something is: name, shape, type, a second copy, NaN."""
    shape = tensor.shape
    if expected is not None:
        # A tied checkpoint may carry the head as well; _check_tied compares the two.
        expected_shape = expected.get(name, expected[EMBED_WEIGHT] if name == TIED else None)
        if expected_shape is None:
            return f"{list(shape)} is not one of the model's; {_why_unexpected(name)}"
        if shape != expected_shape and not tensor.problem:
            source = "config.json" if tensor.file.suffix == ".safetensors" else "the metadata"
            return f"has shape {list(shape)}, {source} makes it {list(expected_shape)}"
    if tensor.problem:
        return tensor.problem
    if name in others:
        return f"is also in {others[name].file.name}"
    if not tensor.quantised and not all_finite(tensor.read()):
        return "holds NaN or inf"
    return None


def _why_unexpected(name: str) -> str:
    if wrapping := wrapping_of(name):
        return wrapping
    if name.endswith(".bias"):
        return "config.json has no attention_bias or mlp_bias for it"
    if layer := re.match(r"model\.layers\.(\d+)\.", name):
        return f"is layer {layer.group(1)} beyond num_hidden_layers, or of another architecture?"
    return "is it of another architecture?"


def _check_tied(tensors: dict[str, Tensor], diagnostics: Diagnostics) -> None:
    """A tied checkpoint may carry both names, or only the head's (transformers, modeling_utils.py, tie_weights)."""
    head = tensors.pop(TIED)
    embed = tensors.setdefault(EMBED_WEIGHT, head)
    if embed.stored != head.stored or not _same_bits(embed.read(), head.read()):
        # transformers 4 ties the two whatever the file says, transformers 5 keeps them apart.
        diagnostics.problem(head.file, f"tie_word_embeddings is true, but tensor {TIED} is not equal to {EMBED_WEIGHT}")


def _same_bits(first: Array, second: Array) -> bool:
    """Equality without a temporary array of the tensors' size."""
    first, second = first.reshape(-1).view(np.uint8), second.reshape(-1).view(np.uint8)
    return all(np.array_equal(first[i : i + CHUNK], second[i : i + CHUNK]) for i in range(0, first.size, CHUNK))


def checkpoint_files(folder: Path, diagnostics: Diagnostics, name: str = SINGLE) -> list[Path]:
    """model.safetensors, or what it is called here; or the shards that the index beside it names."""
    single, index = folder / name, folder / f"{name}.index.json"
    if not os.path.exists(index):
        if os.path.exists(single):
            return [single]
        diagnostics.problem(folder, f"has no {name} and no {index.name}{_what_else(folder)}")
        return []
    data = read_json(index, diagnostics)
    if data is None:
        return []
    weight_map = data.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        diagnostics.problem(index, f"weight_map is {shown(weight_map)}: it must map tensors to files")
        return []
    files: dict[str, Path] = {}
    for tensor, file in weight_map.items():
        if not isinstance(file, str) or not re.fullmatch(r"[\w.-]+\.safetensors", file):
            diagnostics.problem(
                index, f"weight_map puts {tensor} in {shown(file)}, which is not the name of a file beside it"
            )
        else:
            files.setdefault(file, folder / file)
    if os.path.exists(single) and name not in files:
        diagnostics.problem(
            folder, f"has both {name} and {index.name}, and the index does not name it: remove one of them"
        )
    for file, path in list(files.items()):
        if not os.path.exists(path):
            diagnostics.problem(index, f"names {file}, which is not there")
            del files[file]
    return list(files.values())


def _what_else(folder: Path) -> str:
    """A sentence on what the folder holds instead."""
    if not os.path.isdir(folder):
        return ": there is no such folder"
    for pattern, remark in INSTEAD.items():
        if match := next(iter(sorted(folder.glob(pattern))), None):
            return f"; {match.name}: {remark}"
    return ""


INSTEAD = {
    "pytorch_model*.bin*": CONVERT,
    "adapter_config.json": "this is an adapter, not a base model",
    "*.gguf": "give the file itself: a GGUF is a whole model",
    "consolidated*": "this is the original layout of the weights; take the one that transformers reads",
}
