"""Where is it wrong? The first layer and module whose numbers leave the noise.

Where the engine shows its intermediates they are compared in the order in which they are computed. Where it does not,
the input does the cutting: adapters that touch one module only, then one layer of it. Those that fail name the place.
"""

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...adapter import Adapter
from ...arrays import Array
from ...config import LAYER_MODULES, Module, module_name
from ...engines.interface import Engine, EngineRequest, EngineResponse
from ...errors import AdapterWarning
from ...formats.peft import save_adapter
from ...model import logits
from ...ops import NUMPY
from ...tracing import trace
from ..cases.case import Case, Exchange, Run, play, teacher_forced
from ..cases.testbed import Testbed
from ..noise.ensemble import Member
from ..noise.measure import measure
from ..noise.rms import rms
from ..noise.verdict import Thresholds, judge

# The order in which one layer computes what an engine can be heard to compute.
ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "output")


ALIKE = 4  # modules that are off in all layers: from so many on, it is no module's fault


@dataclass(frozen=True)
class Location:
    """One module of one layer (layer None: of all layers), and how far off the engine is there."""

    layer: int | None
    module: str
    ratio: float  # of its error to the noise there
    how: str  # "intermediates" or "ablation"


def first_off(locations: Sequence[Location], thresholds: Thresholds) -> Location | None:
    """Return the first that left the noise; a ratio that is no number did. Its input had not: they are in order."""
    return next((location for location in locations if not location.ratio < thresholds.ratio), None)


def where_in_words(locations: Sequence[Location]) -> str:
    """Say what adapters cut to size have shown: one module alone is at fault, or every one alike; "" where it is
    neither, or intermediates have shown more."""
    if any(location.how != "ablation" for location in locations):
        return ""
    modules = list(dict.fromkeys(location.module for location in locations))
    layers = [location.layer for location in locations]
    if len(modules) == 1:
        of_layers = "" if None in layers else f", in {_layers(list(map(str, layers)))} alone"
        return f"only {modules[0]}{of_layers}: adapters on any other module alone are answered well"
    if len(modules) >= ALIKE and set(layers) == {None}:
        return "every module alike: not a module's fault, but which rows get the adapter, or how much of it"
    return ""


def _layers(numbers: Sequence[str]) -> str:
    """ "layer 2", or "layers 0, 1 and 3"."""
    return f"layer {numbers[0]}" if len(numbers) == 1 else f"layers {', '.join(numbers[:-1])} and {numbers[-1]}"


def intermediates(
    exchange: Exchange, response: EngineResponse, testbed: Testbed, members: Sequence[Member]
) -> list[Location]:
    """Return every output of a module that the engine showed, in the order in which they are computed: the rms of its
    error over the prompt's tokens, in units of the rms of the honest errors there."""
    prompt = prompt_alone(exchange)
    true = _traced(testbed, prompt, None)
    honest = [_traced(testbed, prompt, member) for member in members]
    locations = []
    for layer in range(testbed.model.config.num_hidden_layers):
        for module in ORDER:
            name = f"layers.{layer}.{module}" + ("" if module == "output" else ".output")
            if name not in response.trace or name not in true:
                continue
            n = len(response.trace[name])
            unit = np.sqrt(np.mean([np.mean((run[name][:n] - true[name][:n]) ** 2) for run in honest]))
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = float(rms(response.trace[name] - true[name][:n]) / unit)
            locations.append(Location(layer, module, ratio, "intermediates"))
    return locations


def prompt_alone(exchange: Exchange) -> Exchange:
    """Return the exchange without its answer: intermediates are those of the prompt's tokens."""
    return replace(exchange, response=EngineResponse())


def _traced(testbed: Testbed, exchange: Exchange, member: Member | None) -> Mapping[str, Array]:
    model = testbed.exact if member is None else testbed.model
    with trace("layers.*") as values:
        prompt = teacher_forced(exchange, testbed.adapters)
        ops, p = (NUMPY, None) if member is None else (member.make(), member.precision)
        logits(model, [prompt], ops, p)
    outputs = {name: values[name].astype(np.float64) for name in values if name.endswith(".output")}
    for name in list(values):
        if name.endswith(".base"):
            module = name.removesuffix(".base")
            outputs[f"{module}.output"] = values[name].astype(np.float64) + values[f"{module}.lora"]
    return outputs


def by_ablation(
    engine: Engine, adapter: Adapter, testbed: Testbed, members: Sequence[Member], thresholds: Thresholds, work: Path
) -> list[Location]:
    """Return all that fail, in order: adapters with one module, then of each module that fails with one layer."""

    def worst(part: Adapter) -> float | None:
        return _worst_ratio(engine, part, testbed, members, thresholds, work)

    locations = []
    for name in LAYER_MODULES:
        layers = sorted({layer for layer, module in adapter.lora if module == name and layer is not None})
        if not layers or (everywhere := worst(_part(adapter, {(layer, name) for layer in layers}, name))) is None:
            continue
        alone = {layer: worst(_part(adapter, {(layer, name)}, f"{name}-{layer}")) for layer in layers}
        wrong = {layer: ratio for layer, ratio in alone.items() if ratio is not None}
        if wrong and len(wrong) < len(layers):
            locations += [Location(layer, name, ratio, "ablation") for layer, ratio in wrong.items()]
        else:
            locations.append(Location(None, name, everywhere, "ablation"))
    return locations


def _part(adapter: Adapter, modules: Collection[Module], suffix: str) -> Adapter:
    """Return the adapter with these modules alone."""
    kept = {module: lora for module, lora in adapter.lora.items() if module in modules}
    targets = tuple(sorted(module_name(module).removeprefix("model.") for module in kept))
    config = replace(
        adapter.config,
        target_modules=targets,
        target_parameters=(),
        modules_to_save=(),
        layers_to_transform=None,
        bias="none",
    )
    return Adapter(f"{adapter.name}-{suffix}", config, kept)


def _worst_ratio(
    engine: Engine, adapter: Adapter, testbed: Testbed, members: Sequence[Member], thresholds: Thresholds, work: Path
) -> float | None:
    """Return the worst ratio if the engine gets this adapter wrong, else None."""
    path = work / adapter.name
    if not path.exists():
        save_adapter(adapter, path, testbed.dtype, config=testbed.model.config)
    with_part = replace(
        testbed, paths={**testbed.paths, adapter.name: path}, adapters={**testbed.adapters, adapter.name: adapter}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AdapterWarning)  # that it covers one layer is why it was made
        engine.load(adapter.name, path)
    try:
        rng = np.random.default_rng(0)
        prompts = [tuple(int(token) for token in rng.integers(0, testbed.model.config.vocab_size, n)) for n in (9, 14)]
        requests = tuple(EngineRequest(prompt, name, 2) for prompt in prompts for name in (adapter.name, None))
        case = Case("ablation", (Run(requests),))
        measured, _ = measure(case, play(engine, case, with_part), with_part, members)
    finally:
        engine.unload(adapter.name)
    wrong = [verdict for verdict in (judge(ratios, thresholds) for ratios in measured) if verdict.verdict == "fail"]
    return max((verdict.ratio for verdict in wrong), default=None)
