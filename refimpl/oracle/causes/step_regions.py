"""For which tokens, by the steps that compute them: the regions of a request that a bug may be confined to, where it is
one of an engine's batches.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

from ...arrays import Array
from .in_steps import InSteps, in_steps
from .regions import Region
from .schedule import Batch, Schedule, Step

TILES = (2, 4, 8, 16)  # rows that a kernel takes together
REQUESTS = (2, 3, 4, 5, 6, 8)  # of a step
FIRST = (1, 2, 3, 4)  # of them
ADAPTERS = (1, 2, 3, 4)  # of a step


def members_of(steps: InSteps) -> Array:
    """For which tokens each of regions_of_steps() holds, [regions, tokens]."""
    alone, index = ~steps.has_prompt, np.arange(len(steps.is_decode))
    in_prompt, later = ~steps.is_decode, steps.chunk > 0
    last_chunk = steps.chunk_end == steps.prompt - 1
    rows = [alone, steps.has_prompt, steps.is_decode & steps.has_prompt, in_prompt & ~later, in_prompt & later]
    rows += [in_prompt & later & (index == steps.chunk), in_prompt & (index == steps.chunk_end)]
    rows += [in_prompt & ~last_chunk & (index == steps.chunk_end), in_prompt & ~last_chunk]
    rows += [in_prompt & (index < steps.chunk_end), in_prompt & (index > steps.chunk)]
    rows += [index == steps.chunk, index > steps.chunk, index == steps.chunk_end, index < steps.chunk_end]
    in_slot, last = steps.slot >= 0, steps.slots - 1
    rows += [steps.moved_in, in_slot & ~steps.moved_in, steps.was_used, in_slot & ~steps.was_used]
    rows += [steps.cached, ~steps.cached]
    rows += [one & ~steps.cached for one in (steps.begins, ~steps.begins, steps.ended, ~steps.ended)]
    rows += [steps.moves == 1, steps.moves > 1, steps.moves == 2, steps.moves > 2]
    rows += [steps.slot == 0, steps.slot > 0, in_slot & (steps.slot == last), in_slot & (steps.slot < last)]
    everything = np.ones(len(index), bool)
    for among, of in ((steps.of_step, everything), (steps.of_phase, in_prompt), (steps.of_phase, steps.is_decode)):
        firsts, lasts = among.row == 0, among.row == among.rows - 1
        first_places, last_places = among.place == 0, among.place == among.places - 1
        some = [among.of_base_first, ~among.of_base_first, firsts, ~firsts, lasts, ~lasts]
        several = among.adapters > 1
        some += [first_places, ~first_places, last_places, ~last_places, several, ~several]
        some += [first_places & several, last_places & several]
        power = 1 << np.maximum(np.ceil(np.log2(among.rows + 1)).astype(int) - 1, 0)  # of two, the largest in it
        some += [among.row >= power]
        for n in ADAPTERS:
            some += [
                among.number >= n,
                (among.number >= 0) & (among.number < n),
                among.in_slots >= n,
                among.in_slots < n,
            ]
        for n in FIRST:
            some += [among.before >= n, among.before < n, among.before_in_slots >= n, among.before_in_slots < n]
        for n in TILES:
            tail, tail_of_own = (
                among.row >= among.rows - among.rows % n,
                among.place >= among.places - among.places % n,
            )
            some += [tail_of_own, tail, tail_of_own & (among.places > n), tail & (among.rows > n)]
            some += [among.row >= n, among.place >= n]
        for n in REQUESTS:
            some += [among.requests >= n, among.requests < n]
        rows += [one & of for one in some]
    return np.array(rows)


@lru_cache
def regions_of_steps() -> list[tuple[str, float]]:
    """The words and the bits of each of members_of()."""
    regions = [
        ("steps without prompt tokens", 3.0),
        ("steps with prompt tokens", 3.0),
        ("decode steps beside prompt tokens", 3.5),
        ("the first part of a prompt", 3.0),
        ("every part of a prompt but the first", 3.0),
        ("the first token of each part of a prompt but the first", 3.0),
        ("the last token of each part of a prompt", 3.0),
        ("the last token of each part of a prompt but the last", 3.0),
        ("every part of a prompt but the last", 3.0),
        ("all tokens of each part of a prompt but its last", 3.0),
        ("all tokens of each part of a prompt but its first", 3.0),
        ("the first row of each request in a step", 3.0),
        ("all rows of each request in a step but its first", 3.0),
        ("the last row of each request in a step", 3.0),
        ("all rows of each request in a step but its last", 3.0),
        ("the step in which its adapter moves into a slot", 3.0),
        ("steps before which its adapter moved into a slot", 3.0),
        ("an adapter in a slot that another one had before", 3.0),
        ("an adapter in a slot that no other one had before", 3.0),
        ("first tokens that were found in a cache", 2.5),
        ("tokens that were not found in a cache", 2.5),
        ("steps in which a request begins", 3.0),
        ("steps in which no request begins", 3.0),
        ("steps after one in which a request ended", 3.0),
        ("steps after one in which no request ended", 3.0),
        ("an adapter that is in a slot for the first time", 3.0),
        ("an adapter that moved into a slot again", 3.0),
        ("an adapter that is in a slot for the second time", 3.5),
        ("an adapter that is in a slot for the third time or more", 3.5),
        ("an adapter in the first slot", 3.5),
        ("an adapter in a slot but the first", 3.5),
        ("an adapter in the last slot", 3.5),
        ("an adapter in a slot but the last", 3.5),
    ]
    for one, bits in (("row of a step", 3.0), ("prompt token of a step", 3.5), ("decode row of a step", 3.5)):
        what, _, step = one.partition(" of ")
        some = f"{what}s of {step}"
        of_own = f"of its adapter's {some}"
        regions += [
            (f"{some}, the first of which is of the base", bits + 0.5),
            (f"{some}, the first of which is of an adapter", bits + 0.5),
            (f"the first {one}", bits),
            (f"every {one} but the first", bits),
            (f"the last {one}", bits),
            (f"every {one} but the last", bits),
            (f"the first {of_own}", bits),
            (f"all {of_own} but the first", bits),
            (f"the last {of_own}", bits),
            (f"all {of_own} but the last", bits),
            (f"{some}, which are of two adapters or more", bits + 0.5),
            (f"{some}, which are of one adapter at most", bits + 0.5),
            (f"the first {of_own}, which are of two adapters or more", bits + 1),
            (f"the last {of_own}, which are of two adapters or more", bits + 1),
            (f"{some} beyond the largest power of two", bits + 1),
        ]
        for n in ADAPTERS:
            regions += [
                (f"{some} whose adapter is number {n + 1} or later to come there", bits + 1),
                (f"{some} whose adapter is before number {n + 1} to come there", bits + 1),
                (f"{some} of all slots there but the first {n}, of which the base's rows count as one", bits + 1),
                (f"{some} of the first {n} slots there, of which the base's rows count as one", bits + 1),
            ]
        for n in FIRST:
            first = "the first request" if n == 1 else f"the first {n} requests"
            regions += [
                (f"{some} of all requests there but {first}", bits + 0.5),
                (f"{some} of {first} there", bits + 0.5),
                (f"{some} of all requests there but {first}, in the order of their slots", bits + 1.5),
                (f"{some} of {first} there, in the order of their slots", bits + 1.5),
            ]
        for n in TILES:
            regions += [
                (f"those {of_own} beyond the last whole {n}", bits + 0.5),
                (f"{some} beyond the last whole {n}", bits + 0.5),
                (f"those {of_own} beyond the last whole {n}, of more than {n}", bits + 1),
                (f"{some} beyond the last whole {n}, of more than {n}", bits + 1),
                (f"{some} from number {n} on", bits + 0.5),
                (f"those {of_own} from number {n} on", bits + 0.5),
            ]
        for n in REQUESTS:
            regions += [
                (f"{some}, which are of {n} requests or more", bits + 1),
                (f"{some}, which are of fewer than {n} requests", bits + 1),
            ]
    return regions


def regions_in_steps(requests: Batch, here: int, schedule: Schedule, in_order: Sequence[Step]) -> Iterator[Region]:
    """Yield sets of one request's tokens by their steps. here: which one it is. schedule: that makes these steps; what
    it takes to say it is not counted."""
    members = members_of(in_steps(requests, here, in_order))
    for (words, cost), tokens in zip(regions_of_steps(), members, strict=True):
        yield Region(words, tokens, cost, schedule.words)
