"""Random adapters: each changes what its base computes by about half, whatever its rank, alpha and scale are."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from ..adapter import Adapter, LoraTensors, PeftConfig, pattern_value
from ..adapter_slots import scale_of
from ..arrays import Array
from ..config import EMBED, LM_HEAD, ModelConfig, Module, module_name
from ..weights import Model
from .models import HEAD_GAIN, NORMS_FIRST, Snap

STRENGTH = 0.5  # how large an adapter's delta is beside what the base computes at the same module
LORA_BIAS = 0.1  # the same for the bias of a lora_B

Gain = Callable[[Module], float]  # the size of what a base's module computes of an input of unit size


def gain_of(base: Model) -> Gain:
    """Return what each module of this base makes of an input of unit size, measured on its weights."""

    def gain(module: Module) -> float:
        weight = base.linear(module).weight.astype(np.float32)
        # The rows of an embedding are looked up, not summed.
        terms = weight.size if module == EMBED else len(weight)
        return float(np.linalg.norm(weight)) / math.sqrt(terms)

    return gain


def gain_of_random_models(module: Module) -> float:
    """What random_model's modules make of an input of unit size, in expectation."""
    return HEAD_GAIN if module == LM_HEAD else 1.0


def as_float32(x: Array) -> Array:
    """Return the array as PEFT stores one."""
    return x.astype(np.float32)


def random_adapter(
    config: ModelConfig,
    peft: PeftConfig,
    name: str,
    rng: np.random.Generator,
    gain: Gain = gain_of_random_models,
    lora_bias: float = LORA_BIAS,
    snap: Snap = as_float32,
) -> Adapter:
    """Return signed random A and B; scale * B A is STRENGTH times as large as the weight that it is added to.

    config, gain: of the base. rng: NumPy's generator, or CuPy's, and the tensors are on the GPU. peft.target_modules:
    names, not a regular expression."""
    lora: dict[Module, LoraTensors] = {}
    for module in config.modules():
        if module[1] not in peft.target_modules:
            continue
        d_out, d_in = config.shape(module)[::-1] if module == EMBED else config.shape(module)
        r = pattern_value(peft.rank_pattern, module_name(module), peft.r)
        scale, size = abs(scale_of(peft, module, r)), gain(module)
        A = rng.standard_normal((r, d_in)) / (1 if module == EMBED else math.sqrt(d_in))
        B = STRENGTH * size * rng.standard_normal((d_out, r)) / (math.sqrt(r) * scale)
        has_bias = peft.lora_bias and module != EMBED
        bias = lora_bias * size * rng.standard_normal(d_out) / scale if has_bias else None
        lora[module] = LoraTensors(snap(A), snap(B), None if bias is None else snap(bias))
    return Adapter(name, peft, lora)


def own_layer(
    weight: Array,
    rng: np.random.Generator,
    extra: int = 0,
    keep: float = 1.0,
    change: float = STRENGTH,
    fresh: float = STRENGTH,
    snap: Snap = as_float32,
) -> Array:
    """Return a whole layer to be served instead of the base's: [vocab + extra, d_model], for weight [vocab, d_model].

    Its rows are keep * the base's + change * noise of the same size, those of the extra tokens fresh * noise."""
    rows, weight = len(weight), weight.astype(np.float32)
    noise = rng.standard_normal((rows + extra, weight.shape[1])) * weight.std()
    return snap(np.vstack([keep * weight + change * noise[:rows], fresh * noise[rows:]]))


def with_own_layers(
    base: Model, adapter: Adapter, modules: Sequence[Module], rng: np.random.Generator, extra: int = 0
) -> Adapter:
    """Return the adapter with these modules as whole layers of its own (modules_to_save), in place of LoRA on them.

    modules: the embedding, the head, or both; with extra tokens both, or one of them cannot name the other's rows."""
    layers = {module: own_layer(base.linear(module).weight, rng, extra) for module in modules}
    config = replace(adapter.config, modules_to_save=tuple(name for _, name in modules))
    lora = {module: tensors for module, tensors in adapter.lora.items() if module not in layers}
    return replace(adapter, config=config, lora=lora, replaced=layers)


def own_biases(base: Model, draw: Callable[[int], Array]) -> dict[Module, Array]:
    """Return another bias, draw(d_out), for every module of the base that has one (bias="all")."""
    modules = [module for module in base.config.modules() if base.config.has_bias(module[1])]
    return {module: draw(base.config.shape(module)[0]) for module in modules}


def with_own_biases(base: Model, adapter: Adapter, rng: np.random.Generator) -> Adapter:
    """Return the adapter with a bias of its own, three times the base's, for every module that has one (bias="all")."""
    biases = own_biases(base, lambda d_out: 3 * as_float32(NORMS_FIRST.bias * rng.standard_normal(d_out)))
    return replace(adapter, config=replace(adapter.config, bias="all"), biases=biases)
