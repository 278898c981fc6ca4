"""Bugs and scopes by name: "k_and_v_deltas_swapped", "rank_cut[5]", "k_and_v_deltas_swapped @ layer 1"."""

from functools import lru_cache

from ..cases.testbed import Testbed
from . import Mutant, mutants_for
from .parameters import parameter_mutants
from .scopes import Scope, scoped, scopes_of, small_scopes_of


@lru_cache(maxsize=4)
def all_bugs(testbed: Testbed) -> dict[str, Mutant]:
    """Return the mutants and those with other values of their parameters, by name; none of them is scoped."""
    return mutants_for(list(testbed.paths)) | parameter_mutants(testbed)


@lru_cache(maxsize=4)
def all_scopes(testbed: Testbed) -> dict[str, Scope]:
    """Return every scope that the base has, by name."""
    config = testbed.model.config
    return {scope.name: scope for scope in (*scopes_of(config), *small_scopes_of(config))}


def find_bug(name: str, testbed: Testbed) -> Mutant:
    """Return the mutant of this name, in its scope if it names one. KeyError where there is none."""
    bug, _, scope = name.partition(" @ ")
    mutant = all_bugs(testbed)[bug]
    return scoped(mutant, all_scopes(testbed)[scope]) if scope else mutant


def scope_of(name: str, testbed: Testbed) -> Scope | None:
    """Return the scope that a bug's name says; None: everywhere."""
    scope = name.partition(" @ ")[2]
    return all_scopes(testbed)[scope] if scope else None
