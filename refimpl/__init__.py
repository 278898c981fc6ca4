"""Multi-LoRA serving, written so that it can be read: one base, many adapters, one batch."""

from .adapter import Adapter, load_adapter
from .arrays import Precision
from .batch import Request
from .engine import Engine, Output, Token
from .errors import LoracleError
from .model import forward, logits
from .ops import NUMPY, REFERENCE, Ops
from .streaming import generate, stream
from .trace import trace
from .weights import Model, load_model

__version__ = "0.1.0"

__all__ = [
    "NUMPY",
    "REFERENCE",
    "Adapter",
    "Engine",
    "LoracleError",
    "Model",
    "Ops",
    "Output",
    "Precision",
    "Request",
    "Token",
    "forward",
    "generate",
    "load_adapter",
    "load_model",
    "logits",
    "stream",
    "trace",
]
