"""What formats that know nothing but A, B and one scale can hold of an adapter, and how the rest gets into B."""

from collections import Counter
from collections.abc import Collection, Mapping

import numpy as np

from ..adapter import Adapter
from ..adapter_slots import scale_of
from ..arrays import Array
from ..config import Module, module_name
from ..errors import AdapterError
from ..loading.conversion import all_finite, converted
from ..loading.diagnostics import shown

HALVES_AND_SINGLE = ("float32", "float16", "bfloat16")


def peft_scales(adapter: Adapter) -> dict[Module, float]:
    """The scale of every module in PEFT."""
    return {module: scale_of(adapter.config, module, tensors.A.shape[0]) for module, tensors in adapter.lora.items()}


def cannot_hold(adapter: Adapter, modules: Collection[str], dora: bool = False) -> list[str]:
    """What of the adapter has no place in a format of pairs on these modules, with magnitudes of DoRA or without."""
    lora = [f"LoRA on {module_name(module)}" for module in adapter.lora if module[1] not in modules]
    tables = [f"a whole {module_name(module)}" for module in adapter.replaced]
    inner = [
        f"lora_bias of {module_name(module)}" for module, tensors in adapter.lora.items() if tensors.bias is not None
    ]
    tables += [f"the rows of some tokens of {module_name(module)}" for module in adapter.tokens]
    inner += [
        f"the DoRA magnitude of {module_name(module)}"
        for module, tensors in adapter.lora.items()
        if tensors.magnitude is not None and not dora
    ]
    if adapter.config.layer_replication:
        inner += ["that layers of the base are read again (layer_replication)"]
    if adapter.config.alora_invocation_tokens:
        inner += ["that it acts from its invocation on (alora_invocation_tokens)"]
    return lora + tables + inner + [f"the bias of {module_name(module)}" for module in adapter.biases]


def plain_modules(
    adapter: Adapter, what: str, modules: Collection[str], leave_out: bool, dora: bool = False
) -> tuple[list[Module], list[str]]:
    """The modules that are written, and a note for each thing that is not. AdapterError unless that was asked for."""
    unheld = cannot_hold(adapter, modules, dora)
    if unheld and not leave_out:
        raise AdapterError(f"{what} cannot hold {shown(unheld)}; leave it out only if it may be lost")
    kept = [module for module in adapter.lora if module[1] in modules]
    if not kept:
        raise AdapterError(f"the adapter has no LoRA that {what} can hold")
    return kept, [f"left out: {item}" for item in unheld]


def one_for_all(values: Mapping[Module, float], what: str, stored: str) -> tuple[float, dict[Module, float], list[str]]:
    """The value that most modules have, what B of each other is multiplied by in its place, and what to say of that.

    `what` names the value where it is PEFT's, `stored` where it is the format's."""
    counts = Counter(values.values())
    value = max(counts, key=lambda value: (counts[value], abs(value)))
    if value == 0:
        raise AdapterError(
            f"{what} is 0 in most modules: the adapter changes nothing there, and {stored} cannot say so"
        )
    factors = {module: other / value for module, other in values.items() if other != value}
    if not factors:
        return value, factors, []
    first = module_name(next(iter(factors)))
    more = f" and {len(factors) - 1} more" if len(factors) > 1 else ""
    return value, factors, [f"{stored} is {value:g} for all: B of {first}{more} is multiplied by the rest, and rounded"]


def written(x: Array, name: str, dtype: str | None, factor: float = 1.0) -> Array:
    """The numbers times the factor, rounded once to the dtype; without one, to their own, and float64 to float32."""
    stored = x.dtype.name if x.dtype.name in HALVES_AND_SINGLE else "float32"
    if dtype not in (None, *HALVES_AND_SINGLE):
        raise AdapterError(f"dtype {dtype!r} is none of {', '.join(HALVES_AND_SINGLE)}")
    wide = x if factor == 1 else x.astype(np.float64) * factor
    result = converted(np.ascontiguousarray(wide), dtype or stored)
    if not all_finite(result):
        raise AdapterError(f"{name} has values too large for {dtype or stored}")
    return result


def rounding_note(adapter: Adapter, dtype: str | None) -> list[str]:
    """Whether numbers are rounded by being written in another type."""
    kinds = {x.dtype.name for tensors in adapter.lora.values() for x in (tensors.A, tensors.B)}
    narrowed = {kind for kind in kinds if not _holds(dtype or (kind if kind in HALVES_AND_SINGLE else "float32"), kind)}
    if not narrowed:
        return []
    return [f"{' and '.join(sorted(narrowed))} became {dtype or 'float32'}: A and B are rounded"]


def _holds(wide: str, narrow: str) -> bool:
    """Whether every number of the second type is one of the first."""
    wider = {"float64": 3, "float32": 2}
    return wide == narrow or wider.get(wide, 0) > wider.get(narrow, 0)
