"""The zoo: real bugs of multi-LoRA engines, each an Ops with one step wrong; nothing is patched.

The oracle asks which of them explains an engine that is off. One file per class, A to I; README.md says which bug of
which engine each one stands for.
"""

from collections.abc import Sequence

from . import a_scale, b_identity, c_memory, d_prefix, e_shards, f_not_applied, g_kernels, h_cache, i_merge, named
from .mutant import NEEDS as NEEDS
from .mutant import Mutant as Mutant

FAMILIES = (
    a_scale.scale,
    b_identity.identity,
    c_memory.memory,
    d_prefix.prefix,
    e_shards.layout,  # and e_layout's: one family in two files
    f_not_applied.not_applied,
    g_kernels.kernels,
    h_cache.cache,
    i_merge.merge,
)

CLASSES = {family.letter: family.title for family in FAMILIES}


def all_mutants() -> dict[str, Mutant]:
    """Every mutant by its name, in the order of the classes."""
    return {name: mutant for family in FAMILIES for name, mutant in family.mutants.items()}


def mutants_for(adapter_names: Sequence[str] = ()) -> dict[str, Mutant]:
    """The same, and those that have one of these adapters as their parameter: "another_adapter[bard]"."""
    of_names = [mutant for name in adapter_names for mutant in named.named(name)]
    return all_mutants() | {mutant.name: mutant for mutant in of_names}
