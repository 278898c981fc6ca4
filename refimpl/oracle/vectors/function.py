"""The user's own function as something under test: module:function, imported from where the command was started."""

import importlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...arrays import Array, dtype_of
from ...errors import LoracleError
from .systems import Outputs, SystemUnderTest
from .vector import Vector, VectorError


def of_function(reference: str) -> SystemUnderTest:
    """`f(kind, inputs, about) -> outputs`: arrays by name in and out; None for a kind that it does not compute; any
    exception for an input that it refuses. LoracleError where there is no such function."""
    module, colon, name = reference.partition(":")
    if not (module and colon and name):
        raise LoracleError(f"--function {reference}: expected module:function, for instance my_kernels:vector")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the user's module does when it is imported
        raise LoracleError(f"--function {reference}: {type(error).__name__}: {error}") from None
    if not callable(function):
        raise LoracleError(f"--function {reference}: {name} is {type(function).__name__}, not a function")

    def tested(v: Vector, dtype: str) -> Outputs | None:
        outputs = function(v.kind, inputs_in(v, dtype), about_of(v, dtype))
        if outputs is None:
            return None
        if not isinstance(outputs, Mapping):
            raise VectorError(
                f"{reference} gave {type(outputs).__name__} for {v.id}: a dict of arrays is wanted, or None"
            )
        return {str(key): np.asarray(x) for key, x in outputs.items()}

    return tested


def inputs_in(v: Vector, dtype: str) -> dict[str, Array]:
    """Copies that may be written to, floats in the dtype: every one of them is exact in it."""
    kind = dtype_of(dtype)
    return {name: x.astype(kind) if x.dtype.kind == "f" else x.copy() for name, x in v.inputs.items()}


def about_of(v: Vector, dtype: str) -> dict[str, Any]:
    """What the manifest says, with the vector's name, the dtype, and folders as absolute paths."""
    about: dict[str, Any] = dict(v.about) | {"name": v.name, "result": v.result, "dtype": dtype}
    if "model" in about:
        folder = v.folder.resolve()
        about["model"] = str((folder / about["model"]).resolve())
        about["adapters"] = {name: str((folder / Path(p)).resolve()) for name, p in about["adapters"].items()}
    return about
