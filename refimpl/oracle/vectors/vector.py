"""What a test vector is: inputs, the right answers, and how far off an answer may be.

On disk it is a folder with manifest.json and two safetensors files; write.py and read.py.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...arrays import Array
from ...errors import LoracleError

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


def sha256(file: Path) -> str:
    """Of a file's bytes, in hex."""
    return hashlib.sha256(file.read_bytes()).hexdigest()
