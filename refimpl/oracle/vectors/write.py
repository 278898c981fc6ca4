"""A vector -> its folder."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ... import __version__
from ...arrays import Array
from ...formats.files import write_safetensors
from .bugs import described
from .vector import EXPECTED, FORMAT, INDEX, INPUTS, MANIFEST, VERSION, Vector, sha256


def write_vector(v: Vector, root: Path, seed: int) -> None:
    """Write the vector's folder under `root`, the folder of a set."""
    folder = root / v.kind / v.name
    folder.mkdir(parents=True)
    write_safetensors(folder / INPUTS, v.inputs)
    tensors = {name: out.value for name, out in v.outputs.items()}
    tensors |= {f"{name}.bound.{t}": bound for name, out in v.outputs.items() for t, bound in out.bound.items()}
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


def write_index(root: Path, names: Sequence[str], seed: int) -> None:
    """set.json: what belongs to a set, so that a missing folder is noticed."""
    index = {"format": FORMAT, "version": VERSION, "seed": seed, "vectors": list(names)}
    (root / INDEX).write_text(json.dumps(index, indent=1) + "\n", "utf-8")
