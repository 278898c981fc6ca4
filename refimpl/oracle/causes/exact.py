"""What a cause does, exactly: its deltas live in the float64 forward pass, and its coefficients by Gauss and Newton."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...adapter_slots import AdapterSlots
from ...arrays import Array, Float, Precision
from ...config import Module
from ...model import logits
from ...ops import NUMPY, Ops
from ...plans import LoraMapping
from ..noise.rms import rms_shown
from .pursuit import Atom
from .suspect import Suspect
from .watch import Watch

ROUNDS = 4  # of Gauss and Newton; more: no better, the logits are nearly linear in the coefficients
STEP = 1e-3  # of a coefficient, for its derivative


@dataclass(frozen=True, eq=False)
class ExactFit:
    """Atoms with their coefficients in one request, and what they leave there."""

    coefficients: Float[Array, " atoms"]
    residual: Float[Array, "rows vocab"]
    ratios: Float[Array, " rows"]  # what is left, in noise units

    @property
    def worst(self) -> float:
        """The row of which most is left."""
        return float(self.ratios.max(initial=0.0))


def fit(suspect: Suspect, atoms: Sequence[Atom], start: Array) -> ExactFit:
    """Return the coefficients that leave least."""
    coefficients = start
    residual = remainder(suspect, atoms, coefficients)
    weight = np.where(suspect.raw.view.shown, 1 / suspect.raw.unit[:, None], 0.0)
    for _ in range(ROUNDS):
        columns = []
        for i in range(len(atoms)):
            moved = coefficients.copy()
            moved[i] += STEP
            columns.append(((residual - remainder(suspect, atoms, moved)) / STEP * weight).ravel())
        change = np.linalg.lstsq(np.stack(columns, axis=1), (residual * weight).ravel(), rcond=None)[0]
        better = remainder(suspect, atoms, coefficients + change)
        if not np.square(better * weight).sum() < np.square(residual * weight).sum():
            break
        coefficients, residual = coefficients + change, better
        if np.abs(change).max() < 1e-6:
            break
    return measured(suspect, coefficients, residual)


def at(suspect: Suspect, atoms: Sequence[Atom], coefficients: Array) -> ExactFit:
    """Return what these very coefficients leave."""
    return measured(suspect, coefficients, remainder(suspect, atoms, coefficients))


def measured(suspect: Suspect, coefficients: Array, residual: Float[Array, "rows vocab"]) -> ExactFit:
    """Return it, in noise units."""
    return ExactFit(coefficients, residual, rms_shown(residual, suspect.raw.view.shown) / suspect.raw.unit)


def remainder(suspect: Suspect, atoms: Sequence[Atom], coefficients: Array) -> Float[Array, "rows vocab"]:
    """Return the engine's error less what these atoms do, exactly."""
    ops = with_atoms(suspect, atoms, coefficients)
    rows = logits(suspect.testbed.exact, [suspect.request], ops)[0][suspect.raw.rows]
    return suspect.raw.error - (suspect.raw.view.of(rows) - suspect.raw.exact)


def with_atoms(suspect: Suspect, atoms: Sequence[Atom], coefficients: Array) -> Ops:
    """Return the backend in which these atoms are added to what the adapters add. For this request alone in a batch."""
    modules = suspect.testbed.exact.config.modules()
    terms = []
    for atom, coefficient in zip(atoms, coefficients, strict=True):
        if atom.source not in suspect.sources:
            continue
        where = next(region for region in suspect.module_regions if region.words == atom.modules).members
        rows = next(region for region in suspect.token_regions if region.words == atom.tokens).members
        members = {module for module, chosen in zip(modules, where, strict=True) if chosen}
        terms.append((suspect.sources[atom.source], members, rows, float(coefficient)))

    def lora_delta(
        y: Array, x: Array, module: Module, adapters: AdapterSlots, mapping: LoraMapping, p: Precision
    ) -> None:
        watched.lora_delta(y, x, module, adapters, mapping, p)
        for source, members, rows, coefficient in terms:
            delta = source.delta(suspect.point(module, x, watch)) if module in members else None
            if delta is not None:
                y[rows, : delta.shape[1]] += coefficient * delta[rows]

    watch = Watch(len(suspect.request.prompt_ids))
    watched = watch.over(NUMPY)
    return replace(watched, lora_delta=lora_delta)
