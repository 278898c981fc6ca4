"""The zoo: real bugs of multi-LoRA engines, each an Ops with one step wrong; nothing is patched.

The oracle asks which of them explains an engine that is off. One file per class, A to I, and one for each thing that
not every base or adapter has, with bugs of several classes; README.md says which bug of which engine each stands for.
"""

from collections.abc import Sequence

from . import (
    a_scale,
    alora,
    b_identity,
    c_memory,
    d_prefix,
    dora,
    e_shards,
    experts,
    f_latent,
    g_kernels,
    h_cache,
    i_merge,
    named,
    other_families,
    routing,
)
from .mutant import IN_SEQUENCES as IN_SEQUENCES
from .mutant import NEEDS as NEEDS
from .mutant import NEEDS_OF_FAMILIES as NEEDS_OF_FAMILIES
from .mutant import Mutant as Mutant

FAMILIES = (
    a_scale.scale,
    b_identity.identity,
    c_memory.memory,
    d_prefix.prefix,
    e_shards.layout,  # and e_layout's: one family in two files
    f_latent.not_applied,  # and f_not_applied's: one family in two files
    g_kernels.kernels,
    h_cache.cache,
    i_merge.merge,
)

# The files whose bugs are in the classes above: importing them lists theirs.
OF_SEVERAL_CLASSES = (experts, routing, dora, alora, other_families)

CLASSES = {family.letter: family.title for family in FAMILIES}


def all_mutants() -> dict[str, Mutant]:
    """Every mutant by its name, in the order of the classes."""
    return {name: mutant for family in FAMILIES for name, mutant in family.mutants.items()}


def llama_mutants() -> dict[str, Mutant]:
    """Those that a Llama with plain LoRA can show: what the tables in benchmarks/results are about."""
    return {name: mutant for name, mutant in all_mutants().items() if mutant.needs not in NEEDS_OF_FAMILIES}


def mutants_for(adapter_names: Sequence[str] = ()) -> dict[str, Mutant]:
    """The same, and those that have one of these adapters as their parameter: "another_adapter[bard]"."""
    of_names = [mutant for name in adapter_names for mutant in named.named(name)]
    return all_mutants() | {mutant.name: mutant for mutant in of_names}
