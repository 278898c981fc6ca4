"""VeRA (Kopiczko et al. 2024): two matrices that all modules share, and two vectors for each. It is plain LoRA.

    y = W x + b * (B (d * (A x)))        A [rank, widest d_in], B [widest d_out, rank], cut to the module's widths
      = W x + (diag(b) B) (diag(d) A) x

adapter_model.safetensors has vera_lambda_b [d_out] and vera_lambda_d [rank] of every module, and once base_model.vera_A
and vera_B, unless save_projection is false: then they are drawn again, as PEFT does at every load (vera_projection.py).
Written out, every module has a pair of its own: what VeRA saves is space on disk.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from ..arrays import Array
from ..config import ModelConfig, Module, module_name
from .conversion import all_finite
from .diagnostics import Diagnostics
from .peft_tensors import PREFIX, Part, Parts, modules_in, sort_parts
from .safetensors_file import FLOATS, SafetensorsFile
from .vera_projection import KEY, WAY_OUT
from .wrapped_names import text_name

SHARED = {"base_model.vera_A": "A", "base_model.vera_B": "B"}
LAMBDA = re.compile(rf"{re.escape(PREFIX)}(.+)\.vera_lambda_([bd])")


def sort_vera(
    file: SafetensorsFile,
    base: ModelConfig | None,
    draw: Callable[[], Mapping[str, Array]],
    diagnostics: Diagnostics,
) -> Parts:
    """Return A and B of every module, in float64, in which the products of the file's numbers are exact.

    draw: makes the shared matrices that were not saved, or notes why it cannot."""
    matches = {name: match for name in file.stored if (match := LAMBDA.fullmatch(name))}
    names = matches.keys() | SHARED.keys()
    parts = sort_parts(replace(file, stored=_without(file.stored, names)), base, diagnostics)
    shared = {kind: _part(file, name, 2, diagnostics) for name, kind in SHARED.items() if name in file.stored}
    if not shared:
        shared = {kind: Part(KEY, x) for kind, x in draw().items()}
    elif shared.keys() != {"A", "B"}:
        diagnostics.problem(file.path, f"base_model.vera_A and vera_B are not both there: {WAY_OUT}")
    if shared.keys() != {"A", "B"}:
        return parts
    modules = {module_name(module): module for module in (base.modules() if base else modules_in(file.stored))}
    lambdas: dict[Module, dict[str, Part | None]] = {}
    for name, match in matches.items():
        module = modules.get(text_name(match[1]) or "")
        if module is None:
            diagnostics.problem(file.path, f"tensor {name} {list(file.shapes[name])} is of no module of the base")
        else:
            lambdas.setdefault(module, {})[match[2]] = _part(file, name, 1, diagnostics)
    for module, vectors in lambdas.items():
        if missing := {"b", "d"} - vectors.keys():
            diagnostics.problem(file.path, f"module {module_name(module)}: vera_lambda_{min(missing)} is missing")
        elif pair := _pair(module, shared, vectors, base, file, diagnostics):
            parts.setdefault(module, {}).update(pair)
    return parts


def _pair(
    module: Module,
    shared: Mapping[str, Part | None],
    vectors: Mapping[str, Part | None],
    base: ModelConfig | None,
    file: SafetensorsFile,
    diagnostics: Diagnostics,
) -> dict[str, Part]:
    """Return diag(d) A and diag(b) B at the module's widths; nothing where a problem is noted."""
    A, B, lambda_b, lambda_d = shared["A"], shared["B"], vectors["b"], vectors["d"]
    if A is None or B is None or lambda_b is None or lambda_d is None:
        return {}
    d_out, d_in = base.shape(module) if base else (len(lambda_b.array), A.array.shape[1])
    rank, widest = A.array.shape
    for part, expected in ((lambda_b, [d_out]), (lambda_d, [rank])):
        if list(part.array.shape) != expected:
            makes = f"base_model.vera_A and the base make it {expected}"
            diagnostics.problem(file.path, f"tensor {part.name} has shape {list(part.array.shape)}, {makes}")
            return {}
    if widest < d_in or len(B.array) < d_out:
        shapes = f"vera_A {list(A.array.shape)} and vera_B {list(B.array.shape)}"
        diagnostics.problem(file.path, f"{shapes} are too narrow for {module_name(module)} {[d_out, d_in]}")
        return {}
    wide_A, wide_B = A.array[:, :d_in].astype(np.float64), B.array[:d_out].astype(np.float64)
    return {
        "A": Part(lambda_d.name, lambda_d.array.astype(np.float64)[:, None] * wide_A),
        "B": Part(lambda_b.name, lambda_b.array.astype(np.float64)[:, None] * wide_B),
    }


def _part(file: SafetensorsFile, name: str, axes: int, diagnostics: Diagnostics) -> Part | None:
    """One tensor of so many axes; None where a problem is noted."""
    if file.stored[name] not in FLOATS:
        diagnostics.problem(
            file.path, f"tensor {name} has dtype {file.stored[name]}; supported are {', '.join(FLOATS)}"
        )
    elif len(file.shapes[name]) != axes:
        diagnostics.problem(file.path, f"tensor {name} has shape {list(file.shapes[name])}; it must have {axes} axes")
    elif not all_finite(file.tensors[name]):
        diagnostics.problem(file.path, f"tensor {name} holds NaN or inf")
    else:
        return Part(name, file.tensors[name])
    return None


def _without(stored: Mapping[str, str], names: set[str]) -> dict[str, str]:
    return {name: dtype for name, dtype in stored.items() if name not in names}
