"""Is an engine's picture right, and if not, which bug is it? By the velocity, before errors grow from step to step.

The yardstick is rounding: our own run in float32 is off from our float64 by so much (the noise), and an engine may be
off by a few times as much. A bug is named only if drawing with it leaves no more than that.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...arrays import Array, Float, Precision
from ...errors import LoracleError
from ...ops import NUMPY, Ops
from ...pictures import PictureModel, PictureRequest, draw_latents
from ...pictures.draw import start_of
from ...pictures.request import grid_of
from .bugs import Setup, all_picture_bugs
from .zoo import zoo_mutants

TIMES_THE_NOISE = 8.0  # an engine in float32 that sums in another order stays below; larger: more is forgiven

Velocities = list[Float[Array, "channels height width"]]  # of each picture of a batch


@dataclass(frozen=True)
class PictureVerdict:
    """What an engine's velocities say of it. Errors are rms, relative to the rms of the right velocities."""

    passed: bool
    error: float  # the worst picture's
    noise: float  # of our float32 run, at its worst picture
    bug: str | None  # None: it passed, or no known bug leaves only rounding
    same_here: tuple[str, ...]  # further bugs that these pictures cannot tell from it
    residual: float  # what the nearest bug leaves
    nearest: str | None

    def __str__(self) -> str:
        if self.passed:
            return f"pass: off by {self.error:.2g}, rounding is {self.noise:.2g}"
        names = f"{self.bug} (or {', '.join(self.same_here)})" if self.same_here else self.bug
        said = f"it is {names}" if self.bug else f"no known bug; the nearest is {self.nearest}"
        return f"FAIL: off by {self.error:.2g}, rounding is {self.noise:.2g}; {said}, which leaves {self.residual:.2g}"


def velocities(
    model: PictureModel, requests: Sequence[PictureRequest], ops: Ops = NUMPY, dtype: str = "float64"
) -> Velocities:
    """The velocity of each picture at its noise, its request's seed and caption: one Euler step, less its start."""
    once = [replace(request, steps=1) for request in requests]
    latents = draw_latents(model, once, ops, Precision("model", dtype))
    starts = [start_of(request, grid_of(request, model.config), model) for request in requests]
    return [latent - start.astype(latent.dtype) for latent, start in zip(latents, starts, strict=True)]


def known_bugs(model: PictureModel, requests: Sequence[PictureRequest]) -> dict[str, Velocities]:
    """The velocities of this batch under each known bug: those of pictures, and the text model's that act on them."""
    setups = {name: each.make(model, requests) for name, each in all_picture_bugs().items()}
    setups |= {name: (model, requests, mutant.make()) for name, mutant in zoo_mutants().items()}
    with np.errstate(all="ignore"):  # some overflow, as the engines did
        return {name: _velocities_under(setup, requests) for name, setup in setups.items()}


def _velocities_under(setup: Setup, requests: Sequence[PictureRequest]) -> Velocities:
    """The velocities with a bug; NaN for all pictures where one is no finite numbers, which `draw` refuses."""
    try:
        return velocities(*setup)
    except LoracleError:
        return [np.full((1, 1, 1), np.nan) for _ in requests]


def judge_pictures(
    model: PictureModel,
    requests: Sequence[PictureRequest],
    observed: Velocities,
    bugs: Mapping[str, Velocities] | None = None,
    times: float = TIMES_THE_NOISE,
) -> PictureVerdict:
    """Compare an engine's velocities of one batch with ours, picture by picture, and name its bug.

    model: in float64 (load_picture_model(path, "float64")). observed: as `velocities` returns them. bugs: known_bugs of
    the same batch, where it is judged more than once."""
    right, single = velocities(model, requests), velocities(model, requests, dtype="float32")
    noise, error = (distance(each, right, right) for each in (single, observed))
    bound = times * noise
    if error <= bound:
        return PictureVerdict(True, error, noise, None, (), error, None)
    bugs = known_bugs(model, requests) if bugs is None else bugs
    shown = {name: wrong for name, wrong in bugs.items() if not distance(wrong, right, right) <= bound}
    residuals = {name: distance(observed, wrong, right) for name, wrong in shown.items()}
    names = sorted(residuals, key=residuals.__getitem__)
    same = tuple(name for name in names if residuals[name] <= bound)
    nearest = names[0] if names else None
    residual = residuals[nearest] if nearest else math.inf
    return PictureVerdict(False, error, noise, same[0] if same else None, same[1:], residual, nearest)


def distance(pictures: Velocities, others: Velocities, right: Velocities) -> float:
    """The largest rms difference of two pictures, relative to the right one's rms. NaN is infinitely far."""
    ratios = [
        np.sqrt(np.mean((one.astype("float64") - other) ** 2) / np.mean(scale**2))
        for one, other, scale in zip(pictures, others, right, strict=True)
    ]
    return math.inf if np.isnan(ratios).any() else float(max(ratios))
