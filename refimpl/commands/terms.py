"""ADAPTER[:WEIGHT] on the command line: what merge and combine make a weighted sum of."""

import math
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from .. import tiny
from ..adapter import Adapter
from ..config import ModelConfig
from ..errors import AdapterError, AdapterWarning, RequestError
from ..loading.adapter_folder import adapter_folder, read_adapter
from ..loading.changed_base import NEEDS_BASE
from ..loading.diagnostics import Diagnostics
from ..weights import Model

LARGEST_USUAL = 100  # larger: fewer weights are warned of


def read_terms(
    specs: Sequence[str], base: ModelConfig | None, model: Callable[[], Model] | None = None
) -> list[tuple[Adapter, float, Path]]:
    """Return each ADAPTER[:WEIGHT] as adapter, weight and folder. LoracleError, one line, for what is not one.

    model: loads the base, for an adapter into which a part of its weights went (PiSSA, OLoRA)."""
    parsed = [adapter_and_weight(spec) for spec in specs]
    names = [os.path.basename(os.path.abspath(folder)) for folder, _ in parsed]
    terms = []
    for (folder, weight), name in zip(parsed, names, strict=True):
        unique = name if names.count(name) == 1 else str(folder)
        diagnostics = Diagnostics()
        adapter = read_adapter(folder, base, unique, diagnostics)
        if model is not None and any(NEEDS_BASE in problem for problem in diagnostics.problems):
            diagnostics = Diagnostics()
            adapter = read_adapter(folder, base, unique, diagnostics, model())
        diagnostics.raise_first(AdapterError, folder, " --model BASE" if base else "")
        assert adapter is not None  # None comes with a problem
        for warning in diagnostics.warnings:
            warnings.warn(warning, AdapterWarning, stacklevel=2)
        terms.append((adapter, weight, folder))
    return terms


def warn_of_weights(terms: Sequence[tuple[Adapter, float]]) -> None:
    """Warn of weights that nobody means: sums of adapters have weights about 1."""
    for adapter, weight in terms:
        if weight == 0:
            what = f"the weight of {adapter.name} is 0: nothing of it is in the sum"
            warnings.warn(what, AdapterWarning, stacklevel=2)
        if abs(weight) > LARGEST_USUAL:
            what = f"the weight {weight:g} of {adapter.name} is far from 1: no model was trained for so large a change"
            warnings.warn(what, AdapterWarning, stacklevel=2)


def adapter_and_weight(spec: str) -> tuple[Path, float]:
    """Return what ADAPTER:0.5 means: a path, which may have a colon in it, and a number, 1 without one."""
    path, colon, number = spec.rpartition(":")
    if not colon or os.path.exists(spec) or spec in tiny.VOICES:
        return adapter_folder(spec), 1.0
    try:
        weight = float(number)
    except ValueError:
        raise RequestError(f"{spec}: there is no such adapter, and {number!r} is not a weight") from None
    if not path or not math.isfinite(weight):
        raise RequestError(f"{spec}: expected ADAPTER:WEIGHT with a finite number, for instance ./my-adapter:0.5")
    return adapter_folder(path), weight
