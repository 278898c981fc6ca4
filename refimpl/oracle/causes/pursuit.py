"""Orthogonal matching pursuit (Pati et al. 1993) over several requests at once: which change explains most of them?

An atom is a source at a set of modules for a set of tokens. It explains a request if what it leaves of the error there
is noise. Each request has a coefficient of its own: of most bugs they are the same, 1 or -1, and a scale that depends
on the adapter is seen by theirs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...arrays import Array, Float
from .suspect import Suspect

BIT = 0.25  # what a bit of an atom's description weighs, in the logarithm of what it leaves of each request
MOST = 16  # atoms that are tried exactly; larger: slower


@dataclass(frozen=True)
class Atom:
    """A source at some modules for some tokens, by its key and the words of its regions."""

    source: str
    modules: str
    tokens: str


@dataclass(frozen=True, eq=False)
class Ranked:
    """An atom, and the bits that it takes to say it."""

    atom: Atom
    cost: float
    variance: float  # the logarithm of the variance that it leaves, added up over the requests


def nearest(
    suspects: Sequence[Suspect], errors: Sequence[Float[Array, " K"]], chosen: Sequence[Atom] = ()
) -> list[Ranked]:
    """Return the atoms that leave least of these errors beside those that are chosen, best first: the logarithm of the
    variance that is left is added up over the requests, and what is simple comes before what is crooked."""
    keys = list(dict.fromkeys(key for suspect in suspects for key in (*suspect.effects, *suspect.choices)))
    if any(is_choice(suspect, atom) for suspect in suspects for atom in chosen):  # one of them is enough
        keys = [key for key in keys if not any(key in suspect.choices for suspect in suspects)]
    residuals = [_residuals(suspect, error, keys, chosen) for suspect, error in zip(suspects, errors, strict=True)]
    total = np.sum(residuals, axis=0)
    modules, tokens = suspects[0].module_regions, suspects[0].token_regions
    sources = {key: source for suspect in suspects for key, source in suspect.sources.items()}
    described = ([sources[key] for key in keys], modules, tokens)
    costs = [np.array([one.cost for one in some]) for some in described]
    cost = costs[0][:, None, None] + costs[1][None, :, None] + costs[2][None, None, :]
    order = total + BIT * len(suspects) * cost
    flat = order.ravel()
    limit = np.partition(flat, MOST)[MOST] if flat.size > MOST else np.inf
    first = np.flatnonzero(flat <= limit)  # in the order of the sources, so that ties fall the same way each time
    ranked = []
    for i in first[np.argsort(flat[first], kind="stable")][:MOST]:
        where = np.unravel_index(i, order.shape)
        atom = Atom(keys[where[0]], modules[where[1]].words, tokens[where[2]].words)
        ranked.append(Ranked(atom, float(cost[where]), float(total[where])))
    return ranked


def is_choice(suspect: Suspect, atom: Atom) -> bool:
    """Is its source another one in each request?"""
    return atom.source in suspect.sources and bool(suspect.sources[atom.source].members)


def resolved(suspect: Suspect, atoms: Sequence[Atom], error: Float[Array, " K"]) -> tuple[Atom, ...]:
    """Return the atoms with that source in place of a choice which leaves least of the error beside the others."""
    at = next((i for i, atom in enumerate(atoms) if is_choice(suspect, atom)), None)
    if at is None:
        return tuple(atoms)
    options = options_of(suspect, atoms)

    def residual(option: Sequence[Atom]) -> float:
        basis = _orthonormal([vector(suspect, atom) for atom in option], len(error))
        return float(np.square(error - basis.T @ (basis @ error)).sum())

    return min(options, key=residual)


def options_of(suspect: Suspect, atoms: Sequence[Atom]) -> list[tuple[Atom, ...]]:
    """Return the atoms with each source that may stand in place of a choice; if there is none of them, as they are."""
    at = next((i for i, atom in enumerate(atoms) if is_choice(suspect, atom)), None)
    if at is None:
        return [tuple(atoms)]
    members = suspect.sources[atoms[at].source].members
    return [(*atoms[:at], replace(atoms[at], source=member), *atoms[at + 1 :]) for member in members]


def vector(suspect: Suspect, atom: Atom) -> Float[Array, " K"]:
    """Return what an atom with c = 1 does to a request along each direction: zeros where it does nothing."""
    effects = suspect.effects.get(atom.source)
    if effects is None:
        return np.zeros(len(suspect.adjoint.directions))
    modules = next(region for region in suspect.module_regions if region.words == atom.modules).members
    tokens = next(region for region in suspect.token_regions if region.words == atom.tokens).members
    return effects[modules][:, tokens].sum(axis=(0, 1))


def _residuals(
    suspect: Suspect, error: Float[Array, " K"], keys: Sequence[str], chosen: Sequence[Atom]
) -> Float[Array, "sources modules tokens"]:
    """Return the logarithm of the variance that each atom leaves, per direction: 0 is noise."""
    modules = np.array([region.members for region in suspect.module_regions], float)
    tokens = np.array([region.members for region in suspect.token_regions], float)
    tokens, of_region = np.unique(tokens, axis=0, return_inverse=True)  # in a short request many are the same
    basis = _orthonormal([vector(suspect, atom) for atom in resolved(suspect, chosen, error)], len(error))
    residual = error - basis.T @ (basis @ error)
    variance = float(residual @ residual)
    variances = np.full((len(keys), len(modules), len(tokens)), variance)
    firsts: dict[int, int] = {}  # effects that several sources share -> the first of these
    for i, key in enumerate(keys):
        if key not in suspect.effects:
            continue
        effects = suspect.effects[key]
        if (first := firsts.setdefault(id(effects), i)) < i:
            variances[i] = variances[first]
            continue
        somewhere = effects.any(axis=(1, 2))
        sets, of_set = np.unique(modules[:, somewhere], axis=0, return_inverse=True)  # where it does nothing: the same
        atoms = tokens @ np.tensordot(sets, effects[somewhere], axes=1)  # [sets of modules, sets of tokens, K]
        lengths = np.square(atoms).sum(axis=2)
        beside = lengths - np.square(atoms @ basis.T).sum(axis=2)
        with np.errstate(divide="ignore", invalid="ignore"):
            gain = np.where(beside > 1e-9 * np.maximum(lengths, 1e-30), (atoms @ residual) ** 2 / beside, 0.0)
        variances[i] = variance - gain[of_set.reshape(-1)]
    number = {key: i for i, key in enumerate(keys)}
    for key, members in suspect.choices.items():
        if key in number:
            variances[number[key]] = np.min([variances[number[one]] for one in members], axis=0)
    return np.log(np.maximum(variances / len(error), 1.0))[:, :, of_region.reshape(-1)]


def _orthonormal(vectors: Sequence[Float[Array, " K"]], width: int) -> Float[Array, "chosen K"]:
    """Gram and Schmidt; vectors that are zero, or dependent, are left out."""
    basis = np.zeros((0, width))
    for one in vectors:
        rest = one - basis.T @ (basis @ one)
        if np.linalg.norm(rest) > 1e-9 * max(float(np.linalg.norm(one)), 1e-30):
            basis = np.vstack([basis, rest / np.linalg.norm(rest)])
    return basis
