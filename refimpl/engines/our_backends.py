"""Our own engine with each of its backends, for `loracle check --engine numpy`."""

from ..backends import BACKENDS
from ..cuda import runner
from ..cuda.runner import cpu
from ..errors import LoracleError
from .interface import Entry
from .ours import CAPABILITIES, Ours

WHAT = {
    "numpy": "our own engine, vectorised: the default backend",
    "reference": "our own engine, by the definition: a loop per token",
    "cuda": "our own engine with the kernels, on a GPU or, thread by thread, on this CPU",
}


def entries() -> list[Entry]:
    """Return a line of `loracle engines` for each backend."""
    return [Entry(name, what, CAPABILITIES, _missing(name)) for name, what in WHAT.items()]


def make(name: str) -> Ours:
    """Return our engine with the backend of this name, which is one of WHAT."""
    return Ours(lambda: BACKENDS[name])


def _missing(name: str) -> str:
    """The kernels need a GPU, or a compiler for their form on this CPU."""
    try:
        if name == "cuda" and runner.device() == "cpu":
            cpu.compiler()
    except LoracleError as error:
        return str(error)
    return ""
