"""Sequences: what is done to an engine that serves for a while, drawn so that a bug of its memory must show.

A sequence is a chain of scenarios. Each is a situation that some engine once got wrong (other weights under a name
that was asked before; the same long prompt for another adapter), and ends with the request that would show it. Which
names, prompts and weights take part is read off plain numbers, the choices, and any numbers will do: what a search
deletes from a sequence leaves a legal one, and a campaign draws its choices from a seed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...engines.interface import Capabilities, Settings
from . import situations
from .case import Case
from .scenario_builder import BLOCK, Choices, ScenarioBuilder, check_adapters
from .testbed import Testbed
from .testbed import settings as testbed_settings

CHUNK = 20  # within a block of 8, 16 or 32: prompts are cut where no block ends
SLOTS = 2  # for adapters, where an engine can evict: few, so that it must
MOST_CHOICES = 32  # numbers that a scenario reads at most; where they end, it reads 0

Move = tuple[str, Sequence[int]]  # a scenario and its choices


def variants(testbed: Testbed, capabilities: Capabilities) -> list[Settings]:
    """How the engine is to be started for sequences, one after another: with all that it can do, then with prompts in
    chunks, then with so little room for keys and values that requests are preempted."""
    can = capabilities.operations
    plain = testbed_settings(
        testbed,
        max_adapters=SLOTS if "evict" in can else len(testbed.adapters) + 1,
        prefix_caching="prefix_cache" in can,
    )
    chosen = [plain]
    if "chunked_prefill" in can:
        chosen.append(replace(plain, chunk=CHUNK))
    if "preempt" in can:
        chosen.append(replace(plain, kv_tokens=plain.max_length))
    return chosen


@dataclass(frozen=True)
class Scenario:
    """A situation, and what an engine must be able to do, and how many adapters there must be, for it to come about."""

    run: Callable[[ScenarioBuilder, Choices], None]
    needs: frozenset[str] = frozenset()  # operations and features
    adapters: int = 1


def _scenario(run: Callable[[ScenarioBuilder, Choices], None], needs: str = "", adapters: int = 1) -> Scenario:
    return Scenario(run, frozenset(needs.split()), adapters)


SCENARIOS = {
    "same prompt": _scenario(situations.same_prompt),
    "in place": _scenario(situations.in_place, "load reload", 2),
    "more than slots": _scenario(situations.more_than_slots, "evict", 2),
    "name reused": _scenario(situations.name_reused, "load unload", 2),
    "cancelled": _scenario(situations.cancelled, "cancel"),
    "fork": _scenario(situations.fork),
    "crowd": _scenario(situations.crowd),
    "exchanged": _scenario(situations.exchanged, "load unload", 2),
    "all at once": _scenario(situations.all_at_once, "evict", 2),
    "depth": _scenario(situations.depth),
    "weights": _scenario(situations.weights, "sums"),
    "leaves": _scenario(situations.leaves, "load unload", 2),
    "short of room": _scenario(situations.short_of_room, "preempt"),
}


def scenarios_for(testbed: Testbed, capabilities: Capabilities, settings: Settings) -> list[str]:
    """Return the names of the scenarios that can come about."""
    can = (capabilities.operations | capabilities.features) - (frozenset() if settings.kv_tokens else {"preempt"})
    return [
        name
        for name, scenario in SCENARIOS.items()
        if scenario.needs <= can and scenario.adapters <= len(testbed.paths)
    ]


def write(
    name: str,
    moves: Sequence[Move],
    testbed: Testbed,
    capabilities: Capabilities,
    settings: Settings,
    seed: int = 0,
    block: int = BLOCK,
) -> Case:
    """Return the sequence of these scenarios, run with these choices. seed: of the prompts' tokens."""
    builder = ScenarioBuilder(testbed, capabilities, settings, seed, block)
    for scenario, values in moves:
        SCENARIOS[scenario].run(builder, Choices(values))
    return Case(name, tuple(builder.steps), stateless=False)


def draw_sequence(
    testbed: Testbed,
    capabilities: Capabilities,
    seed: int,
    index: int,
    settings: Settings | None = None,
    block: int = BLOCK,
) -> Case:
    """Sequence `index` of a campaign: three to five scenarios. Each scenario opens one sequence a round of indices."""
    settings = settings or variants(testbed, capabilities)[0]
    check_adapters(testbed)
    rng = np.random.default_rng([seed, index, 7])
    able = scenarios_for(testbed, capabilities, settings)
    rounds, place = divmod(index, len(able))
    opening = np.random.default_rng([seed, rounds, 8]).permutation(len(able))[place]
    chain = [able[opening], *(able[i] for i in rng.integers(0, len(able), rng.integers(2, 5)))]
    if "short of room" in able:  # what these settings are for
        chain.append("short of room")
    moves = [(scenario, rng.integers(0, 2**16, MOST_CHOICES).tolist()) for scenario in chain]
    return write(f"sequence {index}", moves, testbed, capabilities, settings, int(rng.integers(2**31)), block)
