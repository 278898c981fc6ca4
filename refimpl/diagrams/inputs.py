"""What cannot be drawn is refused in one line. What is wrong, but can be drawn, is drawn and marked."""

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import LoracleError


def whole_number(name: str, value: Any, least: int | None = None) -> int:
    """Return the value as an int. LoracleError if it is none, or below the least that can be drawn."""
    try:
        number = operator.index(value)
    except TypeError:
        raise LoracleError(f"{name} is {value!r}, and must be a whole number") from None
    if least is not None and number < least:
        raise LoracleError(f"{name} is {number}, and must be at least {least}")
    return number


def finite_number(name: str, value: Any) -> float:
    """Return the value as a float. LoracleError if it is none, infinite or NaN."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise LoracleError(f"{name} is {value!r}, and must be a number") from None
    if not math.isfinite(number):
        raise LoracleError(f"{name} is {number}, and must be finite")
    return number


def positive_number(name: str, value: Any) -> float:
    """Return the value as a float. LoracleError if it is not finite, or below 0."""
    number = finite_number(name, value)
    if number < 0:
        raise LoracleError(f"{name} is {number:g}, and must be at least 0")
    return number


def parts(name: str, value: Any, count: int) -> tuple[Any, ...]:
    """Return the parts of a tuple. LoracleError if it has another number of them, or is none."""
    if isinstance(value, str) or not hasattr(value, "__len__") or len(value) != count:
        raise LoracleError(f"{name} is {value!r}, and must have {count} parts")
    return tuple(value)


def equal_lengths(columns: Mapping[str, Sequence[Any]]) -> int:
    """Return the one length that all have; 0 if there are none. LoracleError names the first that differs."""
    lengths = {name: len(values) for name, values in columns.items()}
    first = next(iter(lengths), "")
    for name, length in lengths.items():
        if length != lengths[first]:
            raise LoracleError(f"{name} has {length} values, and {first} has {lengths[first]}")
    return lengths[first] if lengths else 0
