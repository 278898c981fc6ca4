"""ADAPTER[:WEIGHT] on the command line: what merge and combine make a weighted sum of."""

import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from .. import tiny
from ..adapter import Adapter
from ..config import ModelConfig
from ..errors import AdapterError, AdapterWarning, RequestError
from ..loading.adapter_folder import adapter_folder, load_adapter, read_adapter
from ..loading.diagnostics import Diagnostics


def read_terms(specs: Sequence[str], base: ModelConfig | None) -> list[tuple[Adapter, float, Path]]:
    """Return each ADAPTER[:WEIGHT] as adapter, weight and folder. LoracleError, one line, for what is not one."""
    parsed = [adapter_and_weight(spec) for spec in specs]
    names = [os.path.basename(os.path.abspath(folder)) for folder, _ in parsed]
    terms = []
    for (folder, weight), name in zip(parsed, names, strict=True):
        unique = name if names.count(name) == 1 else str(folder)
        terms.append((load_adapter(folder, base, unique) if base else alone(folder, unique), weight, folder))
    return terms


def alone(folder: Path, name: str) -> Adapter:
    """Load an adapter without its base, as far as that can be checked."""
    diagnostics = Diagnostics()
    adapter = read_adapter(folder, None, name, diagnostics)
    diagnostics.raise_first(AdapterError, folder)
    assert adapter is not None  # None comes with a problem
    for warning in diagnostics.warnings:
        warnings.warn(warning, AdapterWarning, stacklevel=2)
    return adapter


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
