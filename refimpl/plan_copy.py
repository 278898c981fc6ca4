"""A plan's way to the device: all of its arrays as one buffer, in one transfer.

plan      token_ids [5] positions [5] cos [5, 4] ...     many small arrays on the host
buffer    cos | token_ids | positions | ...              one copy, the widest numbers first
device    the same plan, each of its arrays a view of that buffer
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np

from .arrays import Array

Plan = TypeVar("Plan")


def on_device(plan: Plan, xp: Any) -> Plan:
    """A copy of a plan whose arrays live in `xp`: one buffer, one transfer, and views of it.

    float64 (cos and sin of an exact run) lies first: a GPU reads a number only from a multiple of its size."""
    arrays = list(_arrays(plan))
    order = sorted(range(len(arrays)), key=lambda i: -arrays[i].itemsize)
    words = {i: np.ascontiguousarray(arrays[i]).reshape(-1).view(np.int32) for i in order}
    buffer = xp.asarray(np.concatenate([np.zeros(0, np.int32), *words.values()]))
    stops = dict(zip(order, np.cumsum([words[i].size for i in order]).tolist(), strict=True))
    views = (buffer[stops[i] - words[i].size : stops[i]].view(x.dtype).reshape(x.shape) for i, x in enumerate(arrays))
    return _with_arrays(plan, views)


def _copied(plan: Any) -> list[str]:
    """The fields of a plan that the device needs."""
    fields = [field for field in dataclasses.fields(plan) if not field.metadata.get("host")]
    return [field.name for field in fields if field.name not in ("device", "_others", "_stacks")]


def _arrays(value: Any) -> Iterator[Array]:
    """Every array of a plan, in the order of the fields."""
    if isinstance(value, np.ndarray):
        if value.dtype not in (np.int32, np.float32, np.float64):
            raise TypeError(f"a plan holds int32, float32 and float64, not {value.dtype}")
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _arrays(item)
    elif dataclasses.is_dataclass(value):
        for name in _copied(value):
            yield from _arrays(getattr(value, name))


def _with_arrays(value: Any, views: Iterator[Array]) -> Any:
    """The same plan with the next of these in the place of each of its arrays."""
    if isinstance(value, np.ndarray):
        return next(views)
    if isinstance(value, tuple):
        return tuple(_with_arrays(item, views) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed: dict[str, Any] = {name: _with_arrays(getattr(value, name), views) for name in _copied(value)}
        changed |= {"device": None} if hasattr(value, "device") else {}
        return dataclasses.replace(value, **changed)
    return value
