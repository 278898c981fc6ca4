"""The zoo: real bugs of multi-LoRA engines, each a table of steps with one of them wrong; nothing is patched.

The oracle asks which of them explains an engine that is off. One file per class, A to I; README.md says which bug in
which engine each one stands for.
"""

from collections.abc import Sequence

from . import a_scale
from .mutant import NEEDS as NEEDS
from .mutant import Mutant as Mutant

FAMILIES = (a_scale.scale,)


def all_mutants() -> dict[str, Mutant]:
    """Every mutant by its name, in the order of the classes."""
    return {name: mutant for family in FAMILIES for name, mutant in family.mutants.items()}


def mutants_for(adapter_names: Sequence[str] = ()) -> dict[str, Mutant]:
    """The same, and those that have one of these adapters as their parameter."""
    return all_mutants()
