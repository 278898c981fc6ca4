"""The bugs of the zoo with other numbers in them: a rank that is cut at 5, a shard of four, three tokens too far on.

The zoo has each bug once or twice, to show that a campaign would notice it. Once one has failed, the number is looked
for: all small integers, all powers of two that are a tile, all adapters at hand and all pairs of them.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from ...ops import Ops
from ..cases.testbed import Testbed
from . import Mutant, all_mutants
from .g_kernels import rank_cut
from .parametrised import (
    adapter_in_prompts_only,
    adapter_of_a_request_further_on,
    base_after,
    base_gets,
    decode_too_far,
    exchanged,
    first_stays_merged,
    kept_in,
    last_inputs_lost,
    last_tokens_of_prompts_lost,
    layer_further_on,
    oldest_not_seen,
    only_first_columns,
    request_without,
    rows_dealt_late,
    scale_bound_by_name,
    scale_of_the_rank_padded_to,
    shard_of_A,
    shard_of_B,
    window_longer_by,
)

FAR = 4  # rows, requests, positions, layers that something may be off by
TILES = (2, 4, 8, 16, 32, 64, 128)
PLACES = 24  # tokens after which something may be lost


def parameter_mutants(testbed: Testbed) -> dict[str, Mutant]:
    """By name, for the ranks, layers and adapters of this testbed."""
    listed = [*_scales(), *_identities(testbed), *_layouts(testbed), *_kernels(testbed), *_caches(testbed), *_merges()]
    by_order = [mutant for mutant in (*all_mutants().values(), *listed) if mutant.name.partition("[")[0] in BY_ORDER]
    return {mutant.name: mutant for mutant in (*listed, *map(in_order_of_arrival, by_order))}


# What these do depends on who stands beside whom. Our batches are sorted by adapter; most engines' are not.
BY_ORDER = (
    *("adapter_of_the_previous_request", "adapter_of_the_next_request", "adapter_of_the_first_request"),
    *("rows_shifted", "ids_not_repeated_per_token", "last_token_lost", "token_tail_lost"),
    *("adapter_of_a_request_further_on", "request_without", "rows_dealt_late", "first_stays_merged"),
)


@dataclasses.dataclass(frozen=True)
class OfArrivals:
    """An Ops for batches in the order of arrival (engines/ours.py)."""

    make: Callable[[], Ops]
    arrival: bool = True

    def __call__(self) -> Ops:
        return self.make()


def in_order_of_arrival(mutant: Mutant) -> Mutant:
    """The same bug in an engine that leaves its batches as they came."""
    return dataclasses.replace(mutant, name=f"{mutant.name} by arrival", make=OfArrivals(mutant.make))


def _family(
    letter: str, make: Callable[..., Ops], values: Sequence, what: str, needs: str = "batch"
) -> Iterator[Mutant]:
    """One for each value, named after the function."""
    for value in values:
        shown = ",".join(str(v) for v in value) if isinstance(value, tuple) else value
        call = partial(make, *value) if isinstance(value, tuple) else partial(make, value)
        yield Mutant(f"{make.__name__}[{shown}]", letter, what.format(shown), (), call, needs)


def _but_one(most: int, *present: int) -> list[int]:
    """The integers from -most to most but 0 and those that the zoo has."""
    return [n for n in range(-most, most + 1) if n != 0 and n not in present]


# A, C: scales.


def _scales() -> Iterator[Mutant]:
    yield from _family("A", scale_of_the_rank_padded_to, TILES, "the scale is that of the rank padded to {}")
    what = "a name that is known keeps the scales of what had it first"
    yield Mutant("scale_bound_by_name", "C", what, (), scale_bound_by_name, "sequence")


# B: whose rows.


def _identities(testbed: Testbed) -> Iterator[Mutant]:
    far = _but_one(FAR, 1, -1)
    yield from _family("B", adapter_of_a_request_further_on, far, "row i has the adapter of request i + {}")
    yield from _family("B", request_without, ("first", "last"), "the {} request of every batch gets no adapter")
    yield from _family("B", rows_dealt_late, far, "the plan of the rows is shifted by {} tokens")
    what = "no adapter in decode steps; prompts of one token are right"
    yield Mutant("adapter_in_prompts_only", "B", what, (), adapter_in_prompts_only, "decode")
    names = list(testbed.adapters)
    for name in names:
        what = f"requests without an adapter get {name}"
        yield Mutant(f"base_gets[{name}]", "B", what, (), partial(base_gets, testbed.adapters[name]))
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            yield Mutant(
                f"exchanged[{first},{second}]",
                "B",
                f"{first} and {second} answer for each other",
                (),
                partial(exchanged, testbed, first, second),
            )


# E: layers and shards.


def _layouts(testbed: Testbed) -> Iterator[Mutant]:
    layers = testbed.model.config.num_hidden_layers
    offsets = [n for n in range(1, min(layers - 1, FAR + 1)) if n != layers - 1]
    yield from _family("E", layer_further_on, offsets, "every layer gets the LoRA of the layer {} after it")
    shards = [(rank, tp) for tp in (2, 4, 8) for rank in range(tp) if (rank, tp) != (1, 2)]
    yield from _family("E", shard_of_B, shards, "the rows of B of rank {} (rank, ranks) are lost")
    yield from _family("E", shard_of_A, shards, "the partial sum of rank {} (rank, ranks) is lost")


# G: bounds and types.


def _kernels(testbed: Testbed) -> Iterator[Mutant]:
    most = max((len(lora.A) for first in testbed.adapters.values() for lora in first.lora.values()), default=1)
    yield from _family(
        "G", rank_cut, [r for r in range(1, most) if r not in (8, 16)], "what is beyond rank {} is left out"
    )
    what = "the last {} inputs of every row are left out of x A^T"
    yield from _family("G", last_inputs_lost, [*range(2, 9), *TILES[3:]], what)
    yield from _family("G", only_first_columns, [1, *TILES], "only the first {} columns of a delta are written")
    yield from _family("G", base_after, [n for n in range(1, PLACES) if n != 8], "no adapter after the first {} tokens")
    what = "the last {} tokens of every prompt get no adapter"
    yield from _family("G", last_tokens_of_prompts_lost, range(1, FAR + 1), what)
    both = [(name, dtype) for name in ("A", "B", "A and B") for dtype in ("bfloat16", "float16")]
    yield from _family("G", kept_in, both, "of the weights these are cast down: {}")


# H: positions and what is seen.


def _caches(testbed: Testbed) -> Iterator[Mutant]:
    far = _but_one(FAR, 1)
    yield from _family("H", decode_too_far, far, "decode steps are {} positions too far on", "decode")
    yield from _family("H", window_longer_by, _but_one(2 * FAR, 1, -1), "the sliding window is longer by {}", "window")
    yield from _family(
        "H", oldest_not_seen, range(1, FAR), "decode steps do not see a request's first {} token(s)", "decode"
    )


# I: merged.


def _merges() -> Iterator[Mutant]:
    what = "the first adapter of a batch is merged into the base and stays there: the others have both"
    yield Mutant("first_stays_merged", "I", what, (), first_stays_merged)
