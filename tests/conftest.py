"""Test profiles, and the promise that every annotated shape is checked.

pytest                                  derandomised: the same examples every time
pytest --hypothesis-profile nightly     5,000 random examples each
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # small matrices: a second thread costs more than it computes

import functools
import importlib.abc
import importlib.machinery
import inspect
import sys
import types
import typing
from collections.abc import Sequence

import numpy as np
import pytest
from beartype import beartype
from hypothesis import HealthCheck, settings
from jaxtyping import Shaped, jaxtyped
from support.device_array import DeviceArray
from threadpoolctl import threadpool_limits

# jaxtyping's plugin has imported numpy before this file is read: what was set above is for the processes that tests
# start. Without this line they would sum in another order than this one, and last digits would differ.
threadpool_limits(int(os.environ["OPENBLAS_NUM_THREADS"]), "blas")

settings.register_profile("default", max_examples=25, derandomize=True, deadline=None, database=None)
settings.register_profile(
    "nightly",
    max_examples=5000,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("default")

# The public functions say their shapes as Float[Array, "tokens d_model"], which is typing.Annotated and costs nothing.
# Here each of those is handed to jaxtyping, so that a wrong axis anywhere under the tests is an error.


def with_checks(function: types.FunctionType) -> object:
    """The function, its array annotations turned into jaxtyping's and checked at every call."""
    axes = {}
    for name, hint in function.__annotations__.items():
        if typing.get_origin(hint) is typing.Annotated and isinstance(hint.__metadata__[0], str):
            axes[name] = Shaped[np.ndarray | DeviceArray, hint.__metadata__[0]]
    if not axes:
        return function
    checked = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    checked.__kwdefaults__, checked.__doc__, checked.__module__ = (
        function.__kwdefaults__,
        function.__doc__,
        function.__module__,
    )
    checked.__annotations__, checked.__qualname__ = axes, function.__qualname__
    checked = jaxtyped(checked, typechecker=beartype)
    passed: set[tuple[object, ...]] = set()
    end = end_of_arrays(function)

    @functools.wraps(function)
    def once_per_shape(*args: object, **kwargs: object) -> object:
        """The check costs more than a small product: calls with shapes that have passed before go straight through."""
        shapes: tuple[object, ...] = tuple([getattr(x, "shape", None) for x in args[:end]])
        if kwargs:
            shapes += (*kwargs, *[getattr(x, "shape", None) for x in kwargs.values()])
        if shapes in passed:
            return function(*args, **kwargs)
        result = checked(*args, **kwargs)
        passed.add(shapes)
        return result

    return once_per_shape


def end_of_arrays(function: types.FunctionType) -> int | None:
    """Return how many positional arguments there are up to the last that may be an array; None if nobody can say."""
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters.values()):
        return None
    return max(
        (i for i, name in enumerate(parameters, 1) if may_be_array(function.__annotations__.get(name))), default=0
    )


def may_be_array(hint: object) -> bool:
    """Return False for a class whose objects have no shape: an int, a Precision."""
    return not isinstance(hint, type) or hint in (typing.Any, object) or hasattr(hint, "shape")


class CheckingLoader(importlib.abc.Loader):
    """Loads a module, then puts the checks around its functions before anyone can import them."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self.loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: types.ModuleType) -> None:
        self.loader.exec_module(module)
        for name, value in list(vars(module).items()):
            if isinstance(value, types.FunctionType) and value.__module__ == module.__name__:
                setattr(module, name, with_checks(value))


class CheckingFinder(importlib.abc.MetaPathFinder):
    """Only for refimpl."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] != "refimpl":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = CheckingLoader(spec.loader)
        return spec


assert "refimpl" not in sys.modules, "refimpl was imported before its shapes could be checked"
sys.meta_path.insert(0, CheckingFinder())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The kernels are compiled and executed here: where that cannot be, their tests say why and how to change it."""
    from refimpl import LoracleError
    from refimpl.cuda import runner
    from refimpl.cuda.runner import cpu as runner_cpu

    try:
        if runner.device() == "cpu":
            runner_cpu.compiler()
    except LoracleError as error:
        for item in items:
            if item.path.parent.name in ("kernels", "bench"):
                item.add_marker(pytest.mark.skip(reason=str(error)))
