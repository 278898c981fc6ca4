"""What a mutant is, and how the files of the zoo list theirs: one real bug, as the Ops that has it.

    @scale.bug("alpha / r, although the adapter says alpha / sqrt(r)", ISSUE, needs="rslora")
    def rslora_ignored() -> Ops:
        return but(adapter_scale=lambda alpha, r, use_rslora: alpha / r)

The function is the mutant's `make`: its name is the mutant's name, and what it remembers between calls of its steps
(a stale map of names, a cached pointer) lives in it and starts empty each time.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from ...ops import Ops

Make = Callable[[], Ops]

# What a case must have for the mutant to show; the oracle draws such cases, and reports a mutant as not exercised where
# a campaign had none. Each implies "batch": several requests with different adapters, and the base, in one batch.
NEEDS = {
    "batch": "several requests with different adapters, and the base, whole prompts in one batch",
    "sum": "a request that sums two adapters",
    "weight": "a request whose adapter has a weight other than 1",
    "three adapters": "three adapters in one batch",
    "other modules": "an adapter that leaves a module alone which another one has",
    "rslora": "an adapter with rsLoRA and a rank above 1",
    "alpha_pattern": "an adapter with an alpha of its own for some module",
    "rank_pattern": "an adapter whose ranks differ from module to module",
    "mixed ranks": "adapters of different ranks on the same module",
    "rank 8": "an adapter of rank 8",
    "rank over 8": "an adapter with a rank above 8",
    "rank over 16": "an adapter with a rank above 16",
    "odd rank": "an adapter with an odd rank above 1",
    "lora_bias": "an adapter with a bias of lora_B",
    "embed_tokens LoRA": "an adapter with LoRA on the embedding",
    "lm_head LoRA": "an adapter with LoRA on the lm_head",
    "tied embedding": "LoRA on an embedding whose matrix is the lm_head as well",
    "modules_to_save": "adapters that bring a whole embed_tokens or lm_head along",
    "base biases": 'an adapter that brings biases of base layers along (bias="all")',
    "grown vocabulary": "an adapter with more words than the base, and a prompt that has one of them",
    "two layers": "a model of two layers or more",
    "several key heads": "a model with more than one key head",
    "GQA": "several key heads, and more query heads than key heads",
    "square layers": "a module whose d_out equals its d_in",
    "window": "a sliding window shorter than the prompt",
    "kv_b_proj LoRA": "multi-head latent attention, and an adapter with LoRA on kv_b_proj",
    "kv_b_proj LoRA in steps": "the same, and produced tokens that are read back in",
    "experts": "a layer of experts",
    "experts LoRA": "experts, and an adapter with LoRA on them",
    "experts rsLoRA": "experts, and an adapter with rsLoRA and a rank above 1 on them",
    "router LoRA": "experts, and an adapter with LoRA on their router",
    "shared expert LoRA": "an MLP that all tokens share beside the experts, and an adapter with LoRA on it",
    "gated shared expert LoRA": "the same, multiplied by a gate of its own",
    "multiplied embedding LoRA": "an embedding that is multiplied by a factor, and an adapter with LoRA on it",
    "capped logits LoRA": "logits that are capped, and an adapter with LoRA on the lm_head",
    "norms of q and k": "norms of q and k, and an adapter with LoRA on these",
    "sinks": "attention with sinks",
    "sliding and full layers": "layers with a window shorter than the prompt, and layers without",
    "longrope": "a rotation with short and long factors, and requests on both sides of the boundary",
    "DoRA": "adapters with DoRA",
    "DoRA on a bias": "an adapter with DoRA on a layer that has a bias",
    "aLoRA": "an aLoRA, and a prompt that has its invocation twice",
    "aLoRA in sequence": "an aLoRA and the base, with the same prompt, one after another",
    "lm_head LoRA on a prompt": "an adapter with LoRA on the lm_head, and logits of a whole prompt",
    "decode": "produced tokens that are read back in, one at a time",
    "chunks": "prompts that are computed in several steps",
    "another block size": "blocks of another size than 16 tokens, and prompts that have several",
    "scattered blocks": "requests whose blocks do not lie side by side: decode steps of several requests",
    "sequence": "one engine that serves for a while, and names that are used again",
    "prefix cache": "one engine that serves for a while, and prefixes that are cached and come again",
    "eviction": "one engine that serves for a while, and more adapters than there are slots for",
}

IN_SEQUENCES = ("sequence", "prefix cache", "eviction")  # which no single batch meets

# Those of other families and other kinds of adapters, which the campaigns of benchmarks/results do not draw: what was
# measured there, or of pictures, says nothing of their mutants.
NEEDS_OF_FAMILIES = (
    *("kv_b_proj LoRA", "kv_b_proj LoRA in steps", "experts", "experts LoRA", "experts rsLoRA", "router LoRA"),
    *("shared expert LoRA", "gated shared expert LoRA", "multiplied embedding LoRA", "capped logits LoRA"),
    *("norms of q and k", "sinks", "sliding and full layers", "longrope"),
    *("DoRA", "DoRA on a bias", "aLoRA", "aLoRA in sequence", "lm_head LoRA on a prompt"),
)


@dataclass(frozen=True)
class Mutant:
    """One bug. `make()` gives a fresh Ops, to be called once per case or sequence."""

    name: str  # "rslora_ignored"; parameters in brackets: "scale_times[1.01]"
    family: str  # the class letter, "A" to "I"
    what: str  # one line: what the engine does wrong
    links: tuple[str, ...]  # the real bugs it stands for; empty: synthetic
    make: Make
    needs: str = "batch"  # one of NEEDS
    # All values of its parameter move the logits along the same direction, so that a fit finds the value.
    scales: bool = False


class Family:
    """The mutants of one class, in the order in which its file has them."""

    def __init__(self, letter: str, title: str) -> None:
        self.letter, self.title = letter, title
        self.mutants: dict[str, Mutant] = {}

    def bug(self, what: str, *links: str, needs: str = "batch", scales: bool = False) -> Callable[[Make], Make]:
        """List the function under this one as a mutant."""

        def listed(make: Make) -> Make:
            self._add(Mutant(make.__name__, self.letter, what, links, make, needs, scales))
            return make

        return listed

    def bugs(
        self, values: Iterable[Any], what: str, *links: str, needs: str = "batch", scales: bool = False
    ) -> Callable[[Callable[[Any], Ops]], Callable[[Any], Ops]]:
        """One mutant for each value of the function's parameter; `{}` in the texts stands for the value."""

        def listed(make: Callable[[Any], Ops]) -> Callable[[Any], Ops]:
            for value in values:
                texts = what.format(value), links, partial(make, value), needs.format(value), scales
                self._add(Mutant(f"{make.__name__}[{value}]", self.letter, *texts))
            return make

        return listed

    def _add(self, mutant: Mutant) -> None:
        assert mutant.needs in NEEDS, f"{mutant.name} needs {mutant.needs!r}, which is not in NEEDS"
        assert mutant.name not in self.mutants, f"two mutants are named {mutant.name}"
        self.mutants[mutant.name] = mutant
