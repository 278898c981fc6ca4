"""The trainable arrays of one adapter: made as PEFT makes them, and turned into an Adapter that serves."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ..adapter import Adapter, LoraTensors
from ..arrays import Array, namespace, to_device, to_host, widen
from ..config import EMBED, Module, module_name
from ..errors import LoracleError
from ..weights import Model
from .lora_config import LoraConfig, lora_modules, saved_modules

LORA_PARTS = ("A", "B", "bias", "magnitude")  # in the order of LoraTensors


class Key(NamedTuple):
    """One trainable array: a part of a module's LoRA (A, B; bias, of lora_B; magnitude, of DoRA), or a whole weight."""

    module: Module
    part: str

    def __str__(self) -> str:
        return f"{module_name(self.module)}.{self.part}"

    @classmethod
    def of(cls, text: str) -> "Key":
        """Return the key of this text: Key.of(str(key)) == key."""
        name, _, part = text.rpartition(".")
        *parents, leaf = name.split(".")
        layer = int(parents[parents.index("layers") + 1]) if "layers" in parents else -1
        return cls((layer, leaf), part)


# By key, in the order of the forward pass. Nothing writes into such an array: a step of training makes new ones.
Parameters = Mapping[Key, Array]


def parameter_shapes(config: LoraConfig, model: Model) -> dict[Key, tuple[int, ...]]:
    """Return the shape of every parameter of an adapter of this config. LoracleError where the base has no room for it.

    A [r, d_in], B [d_out, r], bias and magnitude [d_out]. The embedding, which is looked up, is [d_model, vocab]."""
    shapes: dict[Key, tuple[int, ...]] = {}
    for module in lora_modules(config, model.config):
        d_out, d_in = model.config.shape(module)[:: -1 if module == EMBED else 1]
        rank = config.rank(module)
        shapes |= {Key(module, "A"): (rank, d_in), Key(module, "B"): (d_out, rank)}
        if config.lora_bias:
            shapes[Key(module, "bias")] = (d_out,)
        if config.use_dora:
            shapes[Key(module, "magnitude")] = (d_out,)
    for module in saved_modules(config, model.config):
        shapes[Key(module, "weight")] = model.config.shape(module)
    return shapes


def initial_parameters(config: LoraConfig, model: Model, seed: int, compute: str) -> Parameters:
    """Return the parameters before the first step: the adapter changes nothing yet.

    As PEFT: A Kaiming uniform with a = sqrt(5), which is uniform within 1 / sqrt(d_in), and B zero; for the embedding A
    zero and B normal; a bias zero; a magnitude the length of the base's row (peft/tuners/lora/layer.py,
    reset_lora_parameters, and dora.py, update_layer); a whole weight is the base's.
    The numbers come from a generator of this seed alone."""
    rng = np.random.default_rng(seed)
    parameters: dict[Key, Array] = {}
    for key, shape in parameter_shapes(config, model).items():
        embedding = key.module == EMBED
        if key.part == "weight":
            parameters[key] = widen(model.linear(key.module).weight, compute).copy()
            continue
        if key.part == "magnitude":
            weight = widen(model.linear(key.module).weight, "float64")
            squares = (weight * weight).sum(axis=0 if embedding else 1)
            parameters[key] = namespace(squares).sqrt(squares).astype(compute)
            continue
        if key.part == "A" and not embedding:
            x = rng.uniform(-1, 1, shape) / np.sqrt(shape[1])
        elif key.part == "B" and embedding:
            x = rng.standard_normal(shape)
        else:
            x = np.zeros(shape)
        parameters[key] = to_device(x.astype(compute), model.device)
    return parameters


def to_adapter(name: str, config: LoraConfig, parameters: Parameters) -> Adapter:
    """Return the adapter of these parameters, its arrays the same ones, where they are."""
    modules = [key.module for key in parameters if key.part == "A"]
    lora = {
        module: LoraTensors(*(parameters.get(Key(module, part)) for part in LORA_PARTS))  # type: ignore[arg-type]
        for module in modules
    }
    replaced = {key.module: x for key, x in parameters.items() if key.part == "weight"}
    return Adapter(name, config.peft, lora, replaced)


def from_adapter(adapter: Adapter, config: LoraConfig, model: Model, compute: str) -> Parameters:
    """Return the parameters of an adapter that exists, to train it further.

    LoracleError if it is of another config, or replaces biases or some tokens' rows of the base, which do not train."""
    for part, kept in (("biases", adapter.biases), ("trainable_token_indices", adapter.tokens)):
        if kept:
            raise LoracleError(f"{adapter.name}: {part} of the base cannot be trained further")
    parameters: dict[Key, Array] = {}
    for module, tensors in adapter.lora.items():
        parts = zip(LORA_PARTS, (tensors.A, tensors.B, tensors.bias, tensors.magnitude), strict=True)
        parameters |= {Key(module, part): x for part, x in parts if x is not None}
    parameters |= {Key(module, "weight"): x for module, x in adapter.replaced.items()}
    check_parameters(adapter.name, parameters, config, model)
    return {key: to_device(widen(to_host(x), compute), model.device) for key, x in parameters.items()}


def check_parameters(name: str, parameters: Parameters, config: LoraConfig, model: Model) -> None:
    """LoracleError, naming the first that is wrong, unless these are the parameters of such an adapter."""
    expected = parameter_shapes(config, model)
    for key in [*expected, *parameters]:
        shape = parameters[key].shape if key in parameters else None
        if expected.get(key) != shape:
            shapes = " and ".join(
                f"{who} {list(value) if value else 'none'}"
                for who, value in (("the config makes it", expected.get(key)), ("here it is", shape))
            )
            raise LoracleError(f"{name}: {key}: {shapes}")
