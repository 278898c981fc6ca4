"""A folder -> its vectors, everything in it checked.

A vector that is damaged is worse than none: a test over it proves nothing.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...arrays import Array
from ...loading.diagnostics import Diagnostics, one_line, shown
from ...loading.json_file import is_number, read_json, typed
from ...loading.safetensors_file import open_safetensors
from . import contents
from .vector import (
    EXPECTED,
    FORMAT,
    INDEX,
    INPUTS,
    KINDS,
    MANIFEST,
    RESULTS,
    VECTOR_DTYPES,
    VERSION,
    Noise,
    Output,
    Vector,
    VectorError,
    sha256,
)


def read_set(root: Path) -> list[Vector]:
    """Every vector of a set, or the one whose own folder this is. VectorError for the first thing that is wrong."""
    if (root / MANIFEST).is_file():
        return [read_vector(root)]
    if not root.is_dir():
        raise VectorError(one_line(f"{root}: is not a folder"))
    index = _json(root / INDEX)
    _check_version(root / INDEX, index)
    names = index.get("vectors")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise VectorError(f"{root / INDEX}: vectors is {shown(names)}: it must be a list of names")
    folders = {file.parent.relative_to(root).as_posix() for file in root.glob(f"*/*/{MANIFEST}")}
    for name in sorted(folders ^ set(names)):
        what = "has no folder" if name in names else "is not in vectors"
        raise VectorError(one_line(f"{root / INDEX}: {name} {what}"))
    vectors = [read_vector(root / name) for name in names]
    for v, name in zip(vectors, names, strict=True):
        if v.id != name:
            raise VectorError(one_line(f"{root / name / MANIFEST}: it says it is {v.id}"))
    return vectors


def read_vector(folder: Path) -> Vector:
    """One vector from its folder. VectorError, one line, for anything that is not as FORMAT.md says."""
    file = folder / MANIFEST
    data = _json(file)
    _check_version(file, data)
    _check_keys(file, data)
    for name, expected in data["sha256"].items():
        _check_sha256(folder, name, expected)
    inputs = _tensors(folder / INPUTS)
    tensors = _tensors(folder / EXPECTED)
    outputs = {name: _output(folder, name, spec, tensors) for name, spec in data["expected"].items()}
    described = {name for name in outputs} | {f"{name}.bound.{t}" for name, out in outputs.items() for t in out.bound}
    for where, present, expected_names in ((INPUTS, inputs, set(data["inputs"])), (EXPECTED, tensors, described)):
        for name in sorted(set(present) ^ expected_names):
            what = "is in the manifest alone" if name in expected_names else "is not in the manifest"
            raise VectorError(one_line(f"{folder / where}: tensor {name} {what}"))
    for name, spec in data["inputs"].items():
        _check_spec(folder / INPUTS, name, spec, inputs[name])
    for problem in contents.problems(data["kind"], data["about"], inputs, folder):
        raise VectorError(one_line(f"{file}: {problem}"))
    if not outputs and data["result"] != "invalid":
        raise VectorError(f"{file}: result is {data['result']}, but expected is empty: nothing would be compared")
    return Vector(
        name=data["name"],
        kind=data["kind"],
        result=data["result"],
        comment=data["comment"],
        bugs=tuple(bug["bug"] for bug in data["bugs"]),
        inputs=inputs,
        input_axes={name: tuple(spec["axes"]) for name, spec in data["inputs"].items()},
        outputs=outputs,
        about=data["about"],
        requires=tuple(data["requires"]),
        folder=folder,
    )


TYPES: dict[str, type] = {
    "kind": str, "name": str, "result": str, "comment": str, "bugs": list, "requires": list, "inputs": dict,
    "expected": dict, "about": dict, "made_by": dict, "sha256": dict,
}  # fmt: skip


def _json(file: Path) -> dict[str, Any]:
    diagnostics = Diagnostics()
    data = read_json(file, diagnostics)
    diagnostics.raise_first(VectorError, file.parent)
    assert data is not None  # None comes with a problem
    return data


def _check_version(file: Path, data: Mapping[str, Any]) -> None:
    if data.get("format") != FORMAT:
        raise VectorError(f"{file}: format is {shown(data.get('format'))}, not {FORMAT!r}: this is no set of vectors")
    if data.get("version") != VERSION:
        raise VectorError(f"{file}: version is {shown(data.get('version'))}; this loracle reads version {VERSION}")


def _check_keys(file: Path, data: Mapping[str, Any]) -> None:
    for key, kind in TYPES.items():
        typed(data, key, kind, file, VectorError)
    for key, allowed in (("kind", KINDS), ("result", RESULTS)):
        if data[key] not in allowed:
            raise VectorError(f"{file}: {key} is {shown(data[key])}: it must be one of {', '.join(allowed)}")
    for name in (INPUTS, EXPECTED):
        if name not in data["sha256"]:
            raise VectorError(f"{file}: sha256 does not name {name}")
    if not all(isinstance(bug, dict) and isinstance(bug.get("bug"), str) for bug in data["bugs"]):
        raise VectorError(f"{file}: bugs is {shown(data['bugs'])}: each must be an object with a bug")


def _check_sha256(folder: Path, name: str, expected: object) -> None:
    file = folder / name
    try:
        actual = sha256(file)
    except OSError as error:
        raise VectorError(one_line(f"{file}: cannot be read ({error.strerror or error})")) from None
    if actual != expected:
        raise VectorError(one_line(f"{file}: sha256 is {actual[:16]}..., the manifest says {shown(expected)[1:17]}..."))


def _tensors(file: Path) -> dict[str, Array]:
    """All of them, as read-only copies."""
    from safetensors.numpy import load_file

    diagnostics = Diagnostics()
    open_safetensors(file, diagnostics)  # as strict as the library, and says what is wrong in one line
    diagnostics.raise_first(VectorError, file.parent)
    tensors = load_file(file)
    for x in tensors.values():
        x.setflags(write=False)
    return tensors


def _check_spec(file: Path, name: str, spec: object, x: Array) -> None:
    """Axes, shape and dtype are those of the tensor."""
    if not isinstance(spec, dict) or not isinstance(spec.get("axes"), list):
        raise VectorError(one_line(f"{file}: {name} is described as {shown(spec)}: axes, shape and dtype wanted"))
    stated = spec.get("dtype"), spec.get("shape"), len(spec["axes"])
    if stated != (x.dtype.name, list(x.shape), x.ndim):
        raise VectorError(
            one_line(f"{file}: {name} is {x.dtype.name} {list(x.shape)}, the manifest says {shown(spec)}")
        )


def _output(folder: Path, name: str, spec: Any, tensors: Mapping[str, Array]) -> Output:
    """One expected output with its bounds and noise; nothing in it may be NaN, or it would let everything pass."""
    file = folder / EXPECTED
    if name not in tensors:
        raise VectorError(one_line(f"{file}: tensor {name} is in the manifest alone"))
    value = tensors[name]
    _check_spec(file, name, spec, value)
    if value.dtype.kind == "i":
        return Output(tuple(spec["axes"]), value)
    noise = spec.get("noise")
    if not isinstance(noise, dict) or set(noise) != set(VECTOR_DTYPES):
        raise VectorError(one_line(f"{folder / MANIFEST}: {name}: noise must have {', '.join(VECTOR_DTYPES)}"))
    bounds = {}
    for t, n in noise.items():
        if not isinstance(n, dict) or not all(is_number(n.get(k)) and n[k] >= 0 for k in ("unit", "limit")):
            raise VectorError(one_line(f"{folder / MANIFEST}: {name}: noise of {t} is {shown(n)}: unit, limit wanted"))
        bound = tensors.get(f"{name}.bound.{t}")
        if bound is None:
            raise VectorError(one_line(f"{file}: tensor {name}.bound.{t} is missing"))
        if not (np.isfinite(bound).all() and (bound >= 0).all()):
            raise VectorError(one_line(f"{file}: tensor {name}.bound.{t} holds NaN, infinity or a negative number"))
        if bound.ndim != value.ndim or any(
            length not in (1, n) for length, n in zip(bound.shape, value.shape, strict=True)
        ):
            shapes = f"{list(bound.shape)}, which does not fit {list(value.shape)}"
            raise VectorError(one_line(f"{file}: tensor {name}.bound.{t} is {shapes}"))
        bounds[t] = bound
    if not np.isfinite(value).all():
        raise VectorError(one_line(f"{file}: tensor {name} holds NaN or infinity: nothing can equal it"))
    return Output(
        tuple(spec["axes"]), value, bounds, {t: Noise(float(n["unit"]), float(n["limit"])) for t, n in noise.items()}
    )
