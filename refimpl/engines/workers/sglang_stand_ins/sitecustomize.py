"""What lets SGLang run on a CPU: its PyPI packages are made for CUDA. Python imports this file at the start of every
process that has its folder on PYTHONPATH: the worker, and those that SGLang starts.

SGLang imports packages that its path on a CPU without AMX never calls. In their places are empty modules, of which
every name is an object that does nothing; only SGLang itself sees them, or others would take them for the real ones.
Pinned memory, which needs an accelerator, is plain memory.
"""

import importlib.abc
import importlib.machinery
import importlib.metadata
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

STAND_INS = {
    *("sgl_kernel", "torchvision", "torchaudio", "torchcodec", "flashinfer", "sgl_deep_ep", "deep_ep", "cuda", "av"),
    *("cutlass", "quack", "tilelang", "humming", "timm", "kernels", "torch_memory_saver", "outlines", "anthropic"),
    "datasets",
}
VERSION = "0.0.0"
FACTORIES = ("tensor", "zeros", "empty", "ones", "full", "arange", "empty_like", "zeros_like", "ones_like")


class Named(type):
    """A class of which every name is the class."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls


class Nothing(metaclass=Named):
    """What is in the place of a class, a function or a decorator: it can be subclassed and called."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass

    def __call__(self, *arguments: Any, **named: Any) -> "Nothing":
        return self

    def __class_getitem__(cls, item: Any) -> Any:
        return cls

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing()


class Empty(types.ModuleType):
    """A module of which every name is Nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing


class About(importlib.metadata.Distribution):
    """The name and the version of a stand-in."""

    def __init__(self, name: str) -> None:
        self.package = name

    def read_text(self, filename: str) -> str | None:
        """Return its METADATA, and no other file."""
        return f"Metadata-Version: 2.1\nName: {self.package}\nVersion: {VERSION}\n" if filename == "METADATA" else None

    def locate_file(self, path: Any) -> Any:
        """Return a path, where nothing is."""
        return Path(path)


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the stand-ins for SGLang, after all other finders; `first` comes before them, and waits for SGLang."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> Any:
        """Return the stand-in's spec, if one of SGLang's own files imports it."""
        if name.partition(".")[0] in STAND_INS and imported_by_sglang():
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def find_distributions(self, context: Any = None) -> list[Any]:
        """Return what is known of a stand-in that was imported: who finds it in sys.modules asks for its version."""
        name = getattr(context, "name", None)
        return [About(name)] if name in STAND_INS and name in sys.modules else []

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        """Return an empty module."""
        module = Empty(spec.name)
        module.__version__ = VERSION  # type: ignore[attr-defined]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Do nothing: there is nothing in it."""


class First(importlib.abc.MetaPathFinder):
    """Unpins memory before SGLang is imported."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> None:
        """Find nothing."""
        if name == "sglang":
            sys.meta_path.remove(self)
            unpin_memory()


def imported_by_sglang() -> bool:
    """Is the file that imports one of SGLang's?"""
    frame: types.FrameType | None = sys._getframe(2)
    while frame and "importlib" in frame.f_code.co_filename:
        frame = frame.f_back
    return frame is not None and "/sglang/" in frame.f_code.co_filename


def unpin_memory() -> None:
    """Make torch take no notice of pin_memory."""
    import torch

    def unpinned(factory: Any) -> Any:
        def plain(*arguments: Any, **named: Any) -> Any:
            named.pop("pin_memory", None)
            return factory(*arguments, **named)

        return plain

    for name in FACTORIES:
        setattr(torch, name, unpinned(getattr(torch, name)))
    torch.Tensor.pin_memory = lambda self, *arguments, **named: self


sys.meta_path.append(Finder())
sys.meta_path.insert(0, First())
