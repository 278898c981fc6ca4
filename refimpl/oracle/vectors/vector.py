"""What a test vector is, and how it lies on disk: a folder with manifest.json and two safetensors files.

Everything is checked when it is read. A vector that is damaged is worse than none: a test over it proves nothing.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...arrays import Array
from ...errors import LoracleError
from ...formats.files import write_safetensors
from ...loading.findings import Findings, one_line, shown
from ...loading.json_file import is_number, read_json
from ...loading.safetensors_file import open_safetensors
from . import contents

FORMAT, VERSION = "loracle-vectors", 1
KINDS = ("lora", "kv_write", "attention", "logits", "sequence")
RESULTS = ("valid", "invalid", "acceptable")
VECTOR_DTYPES = ("float32", "float16", "bfloat16")  # in which something under test may compute
MANIFEST, INPUTS, EXPECTED, INDEX = "manifest.json", "inputs.safetensors", "expected.safetensors", "set.json"
MODELS = "models"  # the folder of a set that its vectors of whole models share


class VectorError(LoracleError):
    """A vector that cannot be read, or contradicts itself. Exit 2: nothing was judged."""


@dataclass(frozen=True)
class Noise:
    """Of one output, in one dtype: rms distances from the truth."""

    unit: float  # of our own honest runs
    limit: float  # the most that is waved through


@dataclass(frozen=True, eq=False)
class Output:
    """One right answer."""

    axes: tuple[str, ...]
    value: Array  # float64; float32 where it was only copied; int32 of tokens, which have to be met exactly
    bound: Mapping[str, Array] = field(default_factory=dict)  # dtype -> how far off each number may be; broadcasts
    noise: Mapping[str, Noise] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Vector:
    """One test vector."""

    name: str
    kind: str  # one of KINDS
    result: str  # one of RESULTS
    comment: str
    bugs: tuple[str, ...]  # keys of bugs.BUGS
    inputs: Mapping[str, Array]
    input_axes: Mapping[str, tuple[str, ...]]
    outputs: Mapping[str, Output] = field(default_factory=dict)  # none where it is invalid
    about: Mapping[str, Any] = field(default_factory=dict)  # what its kind says of it: FORMAT.md
    requires: tuple[str, ...] = ()  # what not every engine can do
    folder: Path = Path()

    @property
    def id(self) -> str:
        """kind/name, its folder in the set."""
        return f"{self.kind}/{self.name}"


# ---- writing --------------------------------------------------------------------------------------------------------


def write_vector(v: Vector, root: Path, seed: int) -> None:
    """Write the vector's folder under `root`, the folder of a set."""
    from ... import __version__
    from .bugs import described

    folder = root / v.kind / v.name
    folder.mkdir(parents=True)
    write_safetensors(folder / INPUTS, v.inputs)
    tensors = {name: out.value for name, out in v.outputs.items()}
    tensors |= {f"{name}.bound.{t}": b for name, out in v.outputs.items() for t, b in out.bound.items()}
    write_safetensors(folder / EXPECTED, tensors)
    files = [INPUTS, EXPECTED, *_model_files(v, folder)]
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "kind": v.kind,
        "name": v.name,
        "result": v.result,
        "comment": v.comment,
        "bugs": [described(key) for key in v.bugs],
        "requires": list(v.requires),
        "inputs": {name: _spec(x, v.input_axes[name]) for name, x in v.inputs.items()},
        "expected": {
            name: _spec(out.value, out.axes)
            | {"noise": {t: {"unit": n.unit, "limit": n.limit} for t, n in out.noise.items()}}
            for name, out in v.outputs.items()
        },
        "about": v.about,
        "made_by": {"loracle": __version__, "seed": seed},
        "sha256": {name: sha256(folder / name) for name in files},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")


def _spec(x: Array, axes: Sequence[str]) -> dict[str, Any]:
    assert len(axes) == x.ndim, (axes, x.shape)
    return {"dtype": x.dtype.name, "axes": list(axes), "shape": list(x.shape)}


def _model_files(v: Vector, folder: Path) -> list[str]:
    """The weights that a vector of a whole model reads, by their path from its own folder."""
    if v.kind not in ("logits", "sequence"):
        return []
    parts = dict.fromkeys([v.about["model"], *v.about["adapters"].values()])
    files = [file for part in parts for file in sorted((folder / part).glob("*.safetensors"))]
    return [Path(os.path.relpath(file, folder)).as_posix() for file in files]


def sha256(file: Path) -> str:
    """Of a file's bytes, in hex."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def write_index(root: Path, names: Sequence[str], seed: int) -> None:
    """set.json: what belongs to a set, so that a missing folder is noticed."""
    index = {"format": FORMAT, "version": VERSION, "seed": seed, "vectors": list(names)}
    (root / INDEX).write_text(json.dumps(index, indent=1) + "\n", "utf-8")


# ---- reading --------------------------------------------------------------------------------------------------------


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
    there = {m.parent.relative_to(root).as_posix() for m in root.glob(f"*/*/{MANIFEST}")}
    for name in sorted(there ^ set(names)):
        what = "has no folder" if name in names else "is not in vectors"
        raise VectorError(one_line(f"{root / INDEX}: {name} {what}"))
    found = [read_vector(root / name) for name in names]
    for v, name in zip(found, names, strict=True):
        if v.id != name:
            raise VectorError(one_line(f"{root / name / MANIFEST}: it says it is {v.id}"))
    return found


def read_vector(folder: Path) -> Vector:
    """One vector from its folder. VectorError, one line, for anything that is not as FORMAT.md says."""
    file = folder / MANIFEST
    data = _json(file)
    _check_version(file, data)
    _check_keys(file, data)
    for name, wanted in data["sha256"].items():
        _check_sha256(folder, name, wanted)
    inputs = _tensors(folder / INPUTS)
    tensors = _tensors(folder / EXPECTED)
    outputs = {name: _output(folder, name, spec, tensors) for name, spec in data["expected"].items()}
    known = {name for name in outputs} | {f"{name}.bound.{t}" for name, out in outputs.items() for t in out.bound}
    for where, held, wanted_names in ((INPUTS, inputs, set(data["inputs"])), (EXPECTED, tensors, known)):
        for name in sorted(set(held) ^ wanted_names):
            what = "is in the manifest alone" if name in wanted_names else "is not in the manifest"
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


TYPES = {
    "kind": str, "name": str, "result": str, "comment": str, "bugs": list, "requires": list, "inputs": dict,
    "expected": dict, "about": dict, "made_by": dict, "sha256": dict,
}  # fmt: skip


def _json(file: Path) -> dict[str, Any]:
    found = Findings()
    data = read_json(file, found)
    found.raise_first(VectorError, file.parent)
    assert data is not None  # None comes with a problem
    return data


def _check_version(file: Path, data: Mapping[str, Any]) -> None:
    if data.get("format") != FORMAT:
        raise VectorError(f"{file}: format is {shown(data.get('format'))}, not {FORMAT!r}: this is no set of vectors")
    if data.get("version") != VERSION:
        raise VectorError(f"{file}: version is {shown(data.get('version'))}; this loracle reads version {VERSION}")


def _check_keys(file: Path, data: Mapping[str, Any]) -> None:
    for key, kind in TYPES.items():
        if not isinstance(data.get(key), kind):
            raise VectorError(f"{file}: {key} is {shown(data.get(key))}: it must be {kind.__name__}")
    for key, allowed in (("kind", KINDS), ("result", RESULTS)):
        if data[key] not in allowed:
            raise VectorError(f"{file}: {key} is {shown(data[key])}: it must be one of {', '.join(allowed)}")
    for name in (INPUTS, EXPECTED):
        if name not in data["sha256"]:
            raise VectorError(f"{file}: sha256 does not name {name}")
    if not all(isinstance(bug, dict) and isinstance(bug.get("bug"), str) for bug in data["bugs"]):
        raise VectorError(f"{file}: bugs is {shown(data['bugs'])}: each must be an object with a bug")


def _check_sha256(folder: Path, name: str, wanted: object) -> None:
    file = folder / name
    try:
        found = sha256(file)
    except OSError as error:
        raise VectorError(one_line(f"{file}: cannot be read ({error.strerror or error})")) from None
    if found != wanted:
        raise VectorError(one_line(f"{file}: sha256 is {found[:16]}..., the manifest says {shown(wanted)[1:17]}..."))


def _tensors(file: Path) -> dict[str, Array]:
    """All of them, as read-only copies."""
    from safetensors.numpy import load_file

    found = Findings()
    open_safetensors(file, found)  # as strict as the library, and says what is wrong in one line
    found.raise_first(VectorError, file.parent)
    tensors = load_file(file)
    for x in tensors.values():
        x.setflags(write=False)
    return tensors


def _check_spec(file: Path, name: str, spec: object, x: Array) -> None:
    """Axes, shape and dtype are those of the tensor."""
    if not isinstance(spec, dict) or not isinstance(spec.get("axes"), list):
        raise VectorError(one_line(f"{file}: {name} is described as {shown(spec)}: axes, shape and dtype wanted"))
    told = spec.get("dtype"), spec.get("shape"), len(spec["axes"])
    if told != (x.dtype.name, list(x.shape), x.ndim):
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
        if bound.ndim != value.ndim or any(b not in (1, n) for b, n in zip(bound.shape, value.shape, strict=True)):
            shapes = f"{list(bound.shape)}, which does not fit {list(value.shape)}"
            raise VectorError(one_line(f"{file}: tensor {name}.bound.{t} is {shapes}"))
        bounds[t] = bound
    if not np.isfinite(value).all():
        raise VectorError(one_line(f"{file}: tensor {name} holds NaN or infinity: nothing can equal it"))
    return Output(
        tuple(spec["axes"]), value, bounds, {t: Noise(float(n["unit"]), float(n["limit"])) for t, n in noise.items()}
    )
