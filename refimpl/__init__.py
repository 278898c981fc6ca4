"""Multi-LoRA serving, written so that it can be read: one base, many adapters, one batch.

The public names. Each is imported when it is first asked for, so that `import refimpl` costs nothing, and so that the
command line can still choose how many threads the BLAS gets when it knows what it will run.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adapter import Adapter as Adapter
    from .arrays import Precision as Precision
    from .classification import scores as scores
    from .cuda.table import CUDA as CUDA
    from .engine import Engine as Engine
    from .errors import LoracleError as LoracleError
    from .fixed_slots import FixedPool as FixedPool
    from .formats.peft import save_adapter as save_adapter
    from .loading.adapter_folder import load_adapter as load_adapter
    from .loading.model_folder import load_model as load_model
    from .model import forward as forward
    from .model import logits as logits
    from .ops import NUMPY as NUMPY
    from .ops import REFERENCE as REFERENCE
    from .ops import Ops as Ops
    from .pictures.adapter_file import load_picture_adapter as load_picture_adapter
    from .pictures.adapter_writer import save_picture_adapter as save_picture_adapter
    from .pictures.captions import read_captions as read_captions
    from .pictures.draw import draw as draw
    from .pictures.folder import load_picture_model as load_picture_model
    from .pictures.request import PictureRequest as PictureRequest
    from .pictures.weights import PictureModel as PictureModel
    from .replication import replicated as replicated
    from .request import Request as Request
    from .request_state import Output as Output
    from .request_state import Token as Token
    from .step_record import ScheduledStep as ScheduledStep
    from .streaming import generate as generate
    from .streaming import stream as stream
    from .tools.merge import merged as merged
    from .tracing import trace as trace
    from .unified_pool import UnifiedPool as UnifiedPool
    from .weights import Model as Model

__version__ = "0.1.0"

_HOME = {
    "adapter": ("Adapter",),
    "arrays": ("Precision",),
    "replication": ("replicated",),
    "request": ("Request",),
    "cuda.table": ("CUDA",),
    "engine": ("Engine",),
    "request_state": ("Output", "Token"),
    "step_record": ("ScheduledStep",),
    "errors": ("LoracleError",),
    "fixed_slots": ("FixedPool",),
    "formats.peft": ("save_adapter",),
    "tools.merge": ("merged",),
    "model": ("forward", "logits"),
    "classification": ("scores",),
    "ops": ("NUMPY", "REFERENCE", "Ops"),
    "pictures.adapter_file": ("load_picture_adapter",),
    "pictures.adapter_writer": ("save_picture_adapter",),
    "pictures.captions": ("read_captions",),
    "pictures.draw": ("draw",),
    "pictures.folder": ("load_picture_model",),
    "pictures.request": ("PictureRequest",),
    "pictures.weights": ("PictureModel",),
    "streaming": ("generate", "stream"),
    "tracing": ("trace",),
    "loading.adapter_folder": ("load_adapter",),
    "loading.model_folder": ("load_model",),
    "unified_pool": ("UnifiedPool",),
    "weights": ("Model",),
}

_ROOMS = ("diagrams", "learn", "pictures", "tiny", "training")  # whole packages: `loracle.tiny.VOICES`

__all__ = sorted(name for names in _HOME.values() for name in names)


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            value = globals()[name] = getattr(importlib.import_module(f".{module}", __name__), name)
            return value
    if name in _ROOMS:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module 'refimpl' has no attribute {name!r}")
