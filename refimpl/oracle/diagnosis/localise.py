"""Where is it wrong? The first layer and module whose numbers leave the noise.

Where the engine shows its intermediates they are compared in the order in which they are computed. Where it does not,
the input does the cutting: adapters that touch one module only, then one layer of it. Those that fail name the place.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...adapter import Adapter
from ...arrays import Array
from ...config import LAYER_MODULES, module_name
from ...engines.interface import Engine, EngineRequest, EngineResponse
from ...errors import AdapterWarning
from ...formats.peft import save_adapter
from ...model import logits
from ...ops import NUMPY
from ...tracing import trace
from ..cases.case import Case, Exchange, Run, play, request
from ..cases.testbed import Testbed
from ..noise.ensemble import Member
from ..noise.measure import measure
from ..noise.verdict import Thresholds, judge

# The order in which one layer computes what an engine can be heard to compute.
ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "output")


@dataclass(frozen=True)
class Location:
    """One module of one layer (layer None: of all layers), and how far off the engine is there."""

    layer: int | None
    module: str
    ratio: float  # of its error to the noise there
    how: str  # "intermediates" or "ablation"


def first_off(places: Sequence[Location], known: Thresholds) -> Location | None:
    """The first that left the noise, while its input had not; a ratio that is no number did."""
    return next((place for place in places if not place.ratio < known.ratio), None)


def intermediates(
    exchange: Exchange, answer: EngineResponse, testbed: Testbed, members: Sequence[Member]
) -> list[Location]:
    """Every output of a module that the engine showed, in the order in which they are computed: the rms of its error
    over the prompt's tokens, in units of the rms of the honest errors there."""
    whole = prompt_alone(exchange)
    true = _traced(testbed, whole, None)
    honest = [_traced(testbed, whole, m) for m in members]
    found = []
    for layer in range(testbed.model.config.num_hidden_layers):
        for module in ORDER:
            name = f"layers.{layer}.{module}" + ("" if module == "output" else ".output")
            if name not in answer.trace or name not in true:
                continue
            n = len(answer.trace[name])
            unit = np.sqrt(np.mean([np.mean((h[name][:n] - true[name][:n]) ** 2) for h in honest]))
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = float(np.sqrt(np.mean((answer.trace[name] - true[name][:n]) ** 2)) / unit)
            found.append(Location(layer, module, ratio, "intermediates"))
    return found


def prompt_alone(exchange: Exchange) -> Exchange:
    """The prompt alone: intermediates are those of its tokens."""
    return replace(exchange, answer=EngineResponse())


def _traced(testbed: Testbed, exchange: Exchange, member: Member | None) -> Mapping[str, Array]:
    model = testbed.exact if member is None else testbed.model
    with trace("layers.*") as seen:
        own = request(exchange, testbed)
        ops, p = (NUMPY, None) if member is None else (member.make(), member.precision)
        logits(model, [own], ops, p)
    found = {name: seen[name].astype(np.float64) for name in seen if name.endswith(".output")}
    for name in list(seen):
        if name.endswith(".base"):
            module = name.removesuffix(".base")
            found[f"{module}.output"] = seen[name].astype(np.float64) + seen[f"{module}.lora"]
    return found


def by_ablation(
    engine: Engine, adapter: Adapter, testbed: Testbed, members: Sequence[Member], known: Thresholds, work: Path
) -> list[Location]:
    """Adapters with one module, then of each module that fails with one layer. All that fail, in order."""
    found = []
    for name in [m for m in LAYER_MODULES if any(module[1] == m for module in adapter.lora)]:
        whole = _fails(
            engine, _part(adapter, lambda module, m=name: module[1] == m, name), testbed, members, known, work
        )
        if whole is None:
            continue
        layers = sorted({module[0] for module in adapter.lora if module[1] == name})
        bad = []
        for layer in layers:
            one = _part(adapter, lambda module, m=name, n=layer: module == (n, m), f"{name}-{layer}")
            ratio = _fails(engine, one, testbed, members, known, work)
            if ratio is not None:
                bad.append((layer, ratio))
        if bad and len(bad) < len(layers):
            found += [Location(layer, name, ratio, "ablation") for layer, ratio in bad]
        else:
            found.append(Location(None, name, whole, "ablation"))
    return found


def _part(adapter: Adapter, keep: Callable[..., bool], suffix: str) -> Adapter:
    lora = {module: w for module, w in adapter.lora.items() if keep(module)}
    targets = tuple(sorted(module_name(module).removeprefix("model.") for module in lora))
    config = replace(adapter.config, target_modules=targets, modules_to_save=(), layers_to_transform=None, bias="none")
    return Adapter(f"{adapter.name}-{suffix}", config, lora)


def _fails(
    engine: Engine, adapter: Adapter, testbed: Testbed, members: Sequence[Member], known: Thresholds, work: Path
) -> float | None:
    """The worst ratio, if the engine gets this adapter wrong."""
    path = work / adapter.name
    if not path.exists():
        save_adapter(adapter, path, testbed.dtype)
    there = replace(
        testbed, paths={**testbed.paths, adapter.name: path}, adapters={**testbed.adapters, adapter.name: adapter}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AdapterWarning)  # that it covers one layer is why it was made
        engine.load(adapter.name, path)
    try:
        rng = np.random.default_rng(0)
        prompts = [tuple(int(t) for t in rng.integers(0, testbed.model.config.vocab_size, n)) for n in (9, 14)]
        asks = tuple(EngineRequest(p, name, 2) for p in prompts for name in (adapter.name, None))
        case = Case("ablation", (Run(asks),))
        measured, _ = measure(case, play(engine, case, there), there, members)
    finally:
        engine.unload(adapter.name)
    wrong = [j for j in (judge(m, known) for m in measured) if j.verdict == "fail"]
    return max((j.ratio for j in wrong), default=None)
