"""Axes of a picture of curves: what they span, and where a point lies between their ends."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

Point = tuple[float, float]


@dataclass(frozen=True)
class Axes:
    """What the picture spans: from the first x to the last, and all y, rounded outwards to a tick, one every `step`."""

    first: float
    last: float
    low: float
    high: float
    step: float = 0.2
    log_x: bool = False

    @classmethod
    def around(cls, points: Iterable[Point], log_x: bool = False) -> "Axes":
        """Return the axes that hold every point; from 0 to 1 (in a log: from 1 to 10) where there is none."""
        points = list(points)
        if not points:
            return cls(1, 10, 0, 1, log_x=True) if log_x else cls(0, 1, 0, 1)
        xs, ys = zip(*points, strict=True)
        step = tick_step(max(ys) - min(ys))
        low, high = math.floor(min(ys) / step) * step, math.ceil(max(ys) / step) * step
        return cls(min(xs), max(xs), low, high if high > low else low + step, step, log_x)

    def share(self, point: Point) -> Point:
        """Return where a point lies, as shares of the width and of the height."""
        first, last, x = (math.log(x) if self.log_x else x for x in (self.first, self.last, point[0]))
        return (x - first) / ((last - first) or 1), (point[1] - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Return the round y between low and high, both included."""
        return [_round(self.low + i * self.step) for i in range(round((self.high - self.low) / self.step) + 1)]

    def x_ticks(self, xs: Iterable[float], most: int = 9) -> list[float]:
        """Return the x that are labelled: all that there are if they are few and far apart, else round ones."""
        values = sorted(set(xs))
        shares = [self.share((x, self.low))[0] for x in values]
        if len(values) <= most and all(after - before > 0.8 / most for before, after in pairwise(shares)):
            return values
        if self.log_x:
            powers = range(math.ceil(math.log10(self.first)), math.floor(math.log10(self.last)) + 1)
            thin = -(-len(powers) // most) or 1
            return [10.0**n for n in powers[::thin]] or [self.first, self.last]
        step = tick_step(self.last - self.first)
        start, stop = math.ceil(self.first / step), math.floor(self.last / step)
        return [_round(i * step) for i in range(start, stop + 1)]


def _round(x: float) -> float:
    """Return a multiple of a tick's step without the last digits of its rounding."""
    return float(f"{x:.10g}")


def tick_step(span: float) -> float:
    """Return 1, 2 or 5 times a power of ten, at most 8 of which make the span; 1 for a span of 0."""
    if not span > 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(span / 8))
    return next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= 8)


def averaged(points: Sequence[Point], most: int) -> list[Point]:
    """Return at most so many points: the means of runs of neighbours, of equal length but for the last."""
    if not points:
        return []
    size = math.ceil(len(points) / most)
    runs = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in run) / len(run), sum(y for _, y in run) / len(run)) for run in runs]


def spread_labels(heights: Sequence[float], apart: float) -> list[float]:
    """Return the heights of labels: each at its line's or below it, so that no two are nearer than `apart`."""
    result, lowest = list(heights), -math.inf
    for i in sorted(range(len(heights)), key=lambda i: heights[i]):
        result[i] = lowest = max(heights[i], lowest + apart)
    return result
