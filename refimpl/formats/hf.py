"""A Model -> a Hugging Face folder: config.json, model.safetensors, and its tokenizer."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np

from ..arrays import Array, to_host, widen
from ..config import LAYER_INPUTS, LM_HEAD, ModelConfig, Module, module_name
from ..errors import WeightsError
from ..loading.checkpoint import EMBED_WEIGHT, SINGLE, expected_tensors, open_checkpoint
from ..loading.config_file import read_config
from ..loading.conversion import converted
from ..loading.diagnostics import Diagnostics
from ..loading.model_folder import in_dtype
from ..loading.stacked_experts import stacked
from ..tokenizer import Tokenizer
from ..weights import Linear, Model
from .config_json import config_json
from .files import new_folder, write_safetensors

# What a tokenizer consists of: tokenizer.json is what is read here, the others are for transformers and its readers.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def save_model(model: Model, folder: Path) -> None:
    """Write a new folder that `load_model(folder, model.dtype)` and transformers read: the same bits, the same config.

    A head that the config ties, but that is no longer the embedding (`merged` unties them), is written out, and the
    config says so. Of a model of images and text, the text model. WeightsError, and no folder, for a model that its
    config does not describe: a vocabulary that has grown, a bias that is in no checkpoint, a window together with
    biases (a Mistral has none), NaN; and for one of another family whose config was read from no file."""
    folder, config = Path(folder), model.config
    if config.beyond_llama and not config.keys:
        names = ", ".join(config.beyond_llama)
        raise WeightsError(f"{folder}: a model of no file is written as a Llama or Mistral; this differs in {names}")
    tied = config.tie_word_embeddings if config.labels else model.lm_head.weight is model.embed_tokens
    config = dataclasses.replace(config, tie_word_embeddings=tied, wrapped=False)
    tensors = model_tensors(model, config, folder)
    with new_folder(folder) as scratch:
        write_safetensors(scratch / SINGLE, stacked(tensors, config))
        (scratch / "config.json").write_text(json.dumps(config_json(config, model.dtype), indent=2) + "\n", "utf-8")
        if getattr(model.tokenizer, "inner", None) is not None:
            write_tokenizer(model.tokenizer, scratch)
        check_reads_back(scratch, folder, config, model.dtype)


def check_reads_back(scratch: Path, folder: Path, config: ModelConfig, dtype: str) -> None:
    """What load_model would refuse, or would read as another model, does not get its name."""
    diagnostics = Diagnostics()
    again = read_config(scratch, diagnostics)
    if again:
        open_checkpoint(scratch, again, diagnostics)
    if diagnostics.problems:
        raise WeightsError(diagnostics.problems[0].replace(str(scratch), str(folder)))
    assert again is not None  # None comes with a problem
    again = in_dtype(again, dtype)
    for item in dataclasses.fields(config) if again != config else ():
        was, read = getattr(config, item.name), getattr(again, item.name)
        if item.compare and was != read:
            raise WeightsError(f"{folder}: config.json cannot say {item.name} {was}; it would be read as {read}")


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """The files that the tokenizer came from; tokenizer.json alone of one that a GGUF file had."""
    if tokenizer.file.name != TOKENIZER_FILES[0]:
        tokenizer.inner.save(str(folder / TOKENIZER_FILES[0]))
        return
    for name in TOKENIZER_FILES:
        if (tokenizer.file.parent / name).is_file():
            shutil.copyfile(tokenizer.file.parent / name, folder / name)


def model_tensors(model: Model, config: ModelConfig, folder: Path) -> dict[str, Array]:
    """Every tensor under its name in the checkpoint, in the model's dtype (a GPU holds halves as float32)."""
    if not config.beyond_llama and config.sliding_window and (config.attention_bias or config.mlp_bias):
        window = f"sliding_window {config.sliding_window}"
        raise WeightsError(f"{folder}: {window} with biases: a Mistral has none, and a Llama no window")
    tensors = parameters(model)
    expected = expected_tensors(config)
    for name, x in tensors.items():
        if name not in expected:
            raise WeightsError(f"{folder}: the model has {name} {list(x.shape)}, its config makes it none")
        if x.shape != expected[name]:
            shape = list(expected[name])
            raise WeightsError(f"{folder}: {name} has shape {list(x.shape)}, the model's config makes it {shape}")
    return {name: narrowed(to_host(tensors[name]), model.dtype) for name in expected}


def narrowed(x: Array, dtype: str) -> Array:
    """x in the model's type; as it is held, where that would change it (some routers are float32 in any model)."""
    half = converted(x, dtype)
    return half if half is x or np.array_equal(widen(half, x.dtype.name), x, equal_nan=True) else x


def parameters(model: Model) -> dict[str, Array]:
    """Name in the checkpoint -> array, of all that the model holds."""
    config, tensors = model.config, {EMBED_WEIGHT: model.embed_tokens}
    tensors |= norm_parameters("model.norm", model.norm, config)
    for i, layer in enumerate(model.layers):
        for name, weight in layer.norms.items():
            if name != config.norms.v:  # all ones, and no tensor of the checkpoint
                tensors |= norm_parameters(f"model.layers.{i}.{name}", weight, config)
        tensors |= {f"model.layers.{i}.{name}": vector for name, vector in layer.vectors.items()}
        for name, linear in layer.linears.items():
            tensors |= linear_parameters((i, name), linear)
    if model.layer_inputs is not None:
        tensors["model.embed_tokens_per_layer.weight"] = model.layer_inputs.embed_tokens
        tensors |= linear_parameters(LAYER_INPUTS, model.layer_inputs.projection)
        tensors |= norm_parameters("model.per_layer_projection_norm", model.layer_inputs.norm, config)
    if model.score is not None:
        return tensors | {"score.weight": model.score.weight}
    if model.lm_head.weight is model.embed_tokens and model.lm_head.bias is None:
        return tensors
    return tensors | linear_parameters(LM_HEAD, model.lm_head)


def norm_parameters(name: str, weight: Array, config: ModelConfig) -> dict[str, Array]:
    """The tensors of a norm, of which LayerNorm's bias is the second row. What is held as 1 + w is written as w: the
    difference is exact, and its sum with 1 is what is held."""
    parts = dict(zip(("weight", "bias"), weight, strict=False)) if config.norms.centred else {"weight": weight}
    if config.norms.plus_one:
        parts["weight"] = parts["weight"] - 1
    return {f"{name}.{part}": x for part, x in parts.items()}


def linear_parameters(module: Module, linear: Linear) -> dict[str, Array]:
    """The tensors of a linear layer."""
    name = module_name(module)
    return {f"{name}.weight": linear.weight} | ({} if linear.bias is None else {f"{name}.bias": linear.bias})
