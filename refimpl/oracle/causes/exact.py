"""What a cause does, exactly: its deltas live in the float64 forward pass, and its coefficients by Gauss and Newton.

Many causes of one request are tried in one pass: a batch of copies of it, each with changes of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...adapter_slots import AdapterSlots
from ...arrays import Array, Float, Precision, to_host
from ...config import Module
from ...model import forward
from ...ops import NUMPY, Ops
from ...plans import LoraMapping
from ..noise.rms import rms_shown
from .mix_up import CHANGES, EXACT
from .pursuit import Atom
from .suspect import Suspect
from .watch import Watch

ROUNDS = 4  # of Gauss and Newton; more: no better, the logits are nearly linear in the coefficients
STEP = 1e-3  # of a coefficient, for its derivative
TOKENS_AT_ONCE = 512  # of all copies in one pass; larger: more memory, and little is saved

INVISIBLE = 1e-6  # of the error: a change that does less has no coefficient here

Try = tuple[Sequence[Atom], Array]  # atoms, and a coefficient of each


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


def fit(suspect: Suspect, atoms: Sequence[Atom], start: ExactFit) -> ExactFit:
    """Return the coefficients that leave least, from some on that were tried."""
    weight = np.where(suspect.raw.view.shown, 1 / suspect.raw.unit[:, None], 0.0)
    steps = STEP * np.eye(len(atoms))
    best = start
    moved = remainders(suspect, [(atoms, best.coefficients + step) for step in steps])
    for _ in range(ROUNDS):
        columns = [((best.residual - one) / STEP * weight).ravel() for one in moved]
        change = np.linalg.lstsq(np.stack(columns, axis=1), (best.residual * weight).ravel(), rcond=INVISIBLE)[0]
        coefficients = best.coefficients + change
        better, *moved = remainders(suspect, [(atoms, coefficients), *((atoms, coefficients + one) for one in steps)])
        if not np.square(better * weight).sum() < np.square(best.residual * weight).sum():
            break
        best = measured(suspect, coefficients, better)
        if np.abs(change).max() < 1e-6:
            break
    return best


def at(suspect: Suspect, tries: Sequence[Try]) -> list[ExactFit]:
    """Return what these very coefficients leave, of each of several causes."""
    residuals = remainders(suspect, tries)
    return [measured(suspect, one[1], residual) for one, residual in zip(tries, residuals, strict=True)]


def measured(suspect: Suspect, coefficients: Array, residual: Float[Array, "rows vocab"]) -> ExactFit:
    """Return it, in noise units."""
    return ExactFit(coefficients, residual, rms_shown(residual, suspect.raw.view.shown) / suspect.raw.unit)


def remainders(suspect: Suspect, tries: Sequence[Try]) -> list[Float[Array, "rows vocab"]]:
    """Return the engine's error less what these atoms do, exactly, for each of the tries."""
    tokens, model, raw = len(suspect.request.prompt_ids), suspect.testbed.exact, suspect.raw
    at_once = max(1, TOKENS_AT_ONCE // tokens)
    residuals = []
    for start in range(0, len(tries), at_once):
        some = tries[start : start + at_once]
        batch, cache, adapters = suspect.copies(len(some))
        rows = to_host(forward(model, batch, cache, adapters.slots, with_atoms(suspect, some), model.precision(EXACT)))
        for copy in rows.reshape(len(some), tokens, -1)[:, :, : raw.vocab]:
            residuals.append(raw.error - (raw.view.of(copy[raw.rows]) - raw.exact))
    return residuals


def with_atoms(suspect: Suspect, tries: Sequence[Try]) -> Ops:
    """Return the backend in which these atoms are added to what the adapters add. For a batch of one copy of the
    request for each of the tries.

    They follow one another: what scales the own delta, or leaves it out, does so to what stands instead of it."""
    tokens = len(suspect.request.prompt_ids)
    terms = []  # which rows of the batch, its source, at which modules, for which of the tokens, how much
    for i, (atoms, coefficients) in enumerate(tries):
        copy = slice(i * tokens, (i + 1) * tokens)
        for atom, coefficient in zip(atoms, coefficients, strict=True):
            if coefficient and atom.source in suspect.sources:
                members, rows = suspect.members(atom.modules), suspect.rows(atom.tokens)
                terms.append((copy, suspect.sources[atom.source], members, rows, float(coefficient)))
    terms.sort(key=lambda term: term[1].scales)

    def lora_delta(
        y: Array, x: Array, module: Module, adapters: AdapterSlots, mapping: LoraMapping, p: Precision
    ) -> None:
        watched.lora_delta(y, x, module, adapters, mapping, p)
        wrong: dict[int, Array] = {}  # what stands instead of the own delta, less that, in each copy
        for copy, source, members, rows, coefficient in terms:
            if module not in members:
                continue
            point = suspect.point(module, x[copy], watch, copy)
            delta, excess = source.delta(point), source.excess(point) if source.scales else None
            if delta is None:
                continue
            if excess is not None and copy.start in wrong and wrong[copy.start].shape == delta.shape:
                delta = delta + excess * wrong[copy.start]
            change = np.where(rows[:, None], coefficient * delta, 0.0)
            y[copy][:, : delta.shape[1]] += change
            if source.kind in CHANGES:
                before = wrong.get(copy.start)
                wrong[copy.start] = change if before is None or before.shape != change.shape else before + change

    watch = Watch(tokens * len(tries))
    watched = watch.over(NUMPY)
    return replace(watched, lora_delta=lora_delta)
