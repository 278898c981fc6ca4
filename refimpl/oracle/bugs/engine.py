"""Our own engine with one bug, for `loracle check --engine mutant:NAME`.

refimpl/engines/registry.py names this file by its path."""

from ...engines.interface import Entry
from ...engines.ours import CAPABILITIES, Ours
from ...engines.registry import MUTANT
from . import all_mutants


def entries() -> list[Entry]:
    """Return a line of `loracle engines --mutants` for each mutant."""
    return [Entry(MUTANT + name, mutant.what, CAPABILITIES, "") for name, mutant in all_mutants().items()]


def make(name: str) -> Ours:
    """Return our engine with the bug of this name, "mutant:rslora_ignored"; KeyError if there is none."""
    return Ours(all_mutants()[name.removeprefix(MUTANT)].make)
