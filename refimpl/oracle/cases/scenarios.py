"""Sequences: what is done to an engine that serves for a while, drawn so that a bug of its memory must show.

A sequence is a chain of plots. Each plot is a situation that some engine once got wrong (other weights under a name
that was asked before; the same long prompt for another adapter), and ends with the request that would show it. Which
names, prompts and weights take part is read off plain numbers, and any numbers will do: what a search deletes from a
sequence leaves a legal one, and a campaign draws its numbers from a seed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...engines.interface import Capabilities, EngineRequest, Settings
from ...errors import LoracleError
from .case import Case, Load, Run, Step, Unload
from .testbed import Testbed
from .testbed import settings as stage_settings

BLOCK = 16  # tokens of a piece; prompts are put together from pieces, so that whole blocks of 8 or 16 are found again
CHUNK = 20  # within a block of 8, 16 or 32: prompts are cut where no block ends
SLOTS = 2  # for adapters, where an engine can evict: few, so that it must
NAMES = ("one", "two", "three", "four", "five", "six")
LONGEST_PLOT = 32  # numbers that a plot reads at most; where they end, it reads 0

Move = tuple[str, Sequence[int]]  # a plot and its numbers


def variants(testbed: Testbed, capabilities: Capabilities) -> list[Settings]:
    """How the engine is to be started for sequences, one after another: with all that it can do, then with prompts in
    chunks, then with so little room for keys and values that requests are preempted."""
    can = capabilities.operations
    plain = stage_settings(
        testbed,
        max_adapters=SLOTS if "evict" in can else len(testbed.adapters) + 1,
        prefix_caching="prefix_cache" in can,
    )
    found = [plain]
    if "chunked_prefill" in can:
        found.append(replace(plain, chunk=CHUNK))
    if "preempt" in can:
        found.append(replace(plain, kv_tokens=plain.max_length))
    return found


class Choices:
    """Choices, read one after another. 0 is the simplest of any, and all that comes after the last one."""

    def __init__(self, values: Sequence[int]) -> None:
        self._values = iter(values)

    def below(self, n: int) -> int:
        """A number from 0 to n - 1."""
        return next(self._values, 0) % n

    def order(self, n: int) -> list[int]:
        """0 to n - 1 in some order; unchanged where all numbers are 0."""
        rest = list(range(n))
        return [rest.pop(self.below(len(rest))) for _ in range(n)]


class ScenarioBuilder:
    """The steps so far, and what the names mean."""

    def __init__(
        self, testbed: Testbed, capabilities: Capabilities, settings: Settings, seed: int = 0, block: int = BLOCK
    ) -> None:
        self.can, self.settings, self.block = capabilities.operations, settings, block
        self.keys, self.adapters = list(testbed.paths), testbed.adapters
        _check_adapters(testbed)
        self.shapes = {
            key: {module: (w.A.shape, w.B.shape) for module, w in a.lora.items()} for key, a in testbed.adapters.items()
        }
        self.steps: list[Step] = []
        self.known: dict[str, str] = {}  # name -> the stage's key of its weights
        self.had: dict[str, list[str]] = {}  # name -> all that it ever meant
        rng = np.random.default_rng([seed, 11])
        vocab = testbed.model.config.vocab_size
        self.pieces = [tuple(int(t) for t in rng.integers(0, vocab, block)) for _ in range(3)]
        self.strangers = [int(t) for t in rng.integers(0, vocab, 64)]  # tokens for ends and forks
        self._open()

    def _open(self) -> None:
        """Two names, or, for an engine that takes no adapter while it runs, all that there will ever be."""
        if "load" in self.can:
            for name in NAMES[: min(2, len(self.keys))]:
                self.load(name, Choices(()))
        else:
            for key in self.keys[: len(self.keys) if "evict" in self.can else self.settings.max_adapters]:
                self.load_key(key, key)

    # What plots are made of.

    def load(self, name: str, n: Choices) -> None:
        """Weights under a name that it never had, and that no other name has, as long as there are some."""
        had = self.had.get(name, [])
        never = [k for k in self.keys if k not in had]
        choices = never or [k for k in self.keys if k != self.known.get(name)] or self.keys
        choices = [k for k in choices if k not in self.known.values()] or choices
        # Where the shapes agree, something of the old weights can stay behind unseen.
        alike = [k for k in choices if had and self.shapes[k] == self.shapes[had[-1]]]
        choices = alike if alike and n.below(2) else choices
        self.load_key(name, choices[n.below(len(choices))])

    def load_key(self, name: str, key: str) -> None:
        """These weights under the name."""
        self.steps.append(Load(name, key))
        self.known[name] = key
        self.had.setdefault(name, []).append(key)

    def unload(self, name: str) -> None:
        """Forget the name."""
        self.steps.append(Unload(name))
        del self.known[name]

    def run(self, *asks: EngineRequest) -> None:
        """Together, in this order."""
        self.steps.append(Run(asks[: self.settings.max_requests]))

    def ask(self, name: str | None, prompt: Sequence[int], new: int = 1, **more: Any) -> EngineRequest:
        """One request; a prompt that would not fit is cut."""
        return EngineRequest(tuple(prompt[: self.settings.max_length - new]), name, new, **more)

    def name(self, n: Choices) -> str:
        """Some name that is known; there is always one."""
        return list(self.known)[n.below(len(self.known))]

    def free_name(self, *but: str) -> str | None:
        """A name that nobody has, if the engine may know one more adapter."""
        most = len(NAMES) if "evict" in self.can else self.settings.max_adapters
        if len(self.known) >= min(most, len(self.keys)):
            return None
        return next((x for x in NAMES if x not in self.known and x not in but), None)

    def fill(self, n: Choices) -> None:
        """Load until there are more adapters than slots."""
        while len(self.known) <= self.settings.max_adapters and "load" in self.can and (name := self.free_name()):
            self.load(name, n)

    def names(self, n: Choices, most: int) -> list[str | None]:
        """Different ones, in some order, with the base among them."""
        names: list[str | None] = list(self.known)
        chosen = [names[i] for i in n.order(len(names))][:most]
        chosen.insert(n.below(len(chosen) + 1), None)
        return chosen

    def summable(self) -> list[str]:
        """Those whose adapters can be weighted and summed: they replace nothing."""
        plain = [key for key, a in self.adapters.items() if not a.replaced and not a.biases]
        return [name for name, key in self.known.items() if key in plain]

    def prompt(self, n: Choices) -> tuple[int, ...]:
        """Two or three pieces and an end that is no whole block. Piece 0 stands at several depths."""
        pattern = [(0, 1), (0, 0), (1, 0), (0, 1, 2), (0, 0, 1), (1, 0, 0)][n.below(6)]
        return tuple(t for i in pattern for t in self.pieces[i]) + self.end(n)

    def end(self, n: Choices) -> tuple[int, ...]:
        """One to five tokens."""
        start = n.below(len(self.strangers) - 5)
        return tuple(self.strangers[start : start + 1 + n.below(5)])


# The plots. Each is told with the story so far, and ends with the request that would show the bug it is about.


def in_place(s: ScenarioBuilder, n: Choices) -> None:
    """A name gets other weights while it is in use: the same prompt again must show them."""
    name, prompt = s.name(n), s.prompt(n)
    s.run(s.ask(name, prompt))
    s.load(name, n)
    s.run(s.ask(name, prompt), s.ask(None, prompt))


def name_reused(s: ScenarioBuilder, n: Choices) -> None:
    """A name is forgotten, and is used again for other weights."""
    name, prompt = s.name(n), s.prompt(n)
    s.run(s.ask(name, prompt))
    s.unload(name)
    if n.below(2):
        s.run(s.ask(None, prompt))
    s.load(name, n)
    s.run(s.ask(name, prompt), s.ask(None, prompt))


def exchanged(s: ScenarioBuilder, n: Choices) -> None:
    """Two names exchange their weights: what goes by the name, or by the order of loading, is wrong now."""
    names = [x for x in s.names(n, 2) if x is not None]
    prompt = s.prompt(n)
    s.run(*(s.ask(name, prompt) for name in names))
    meant = {name: s.known[name] for name in names}
    if "reload" not in s.can or n.below(2):
        for name in names:
            s.unload(name)
    for name, other in zip(names, names[::-1], strict=True):
        s.load_key(name, meant[other])
    s.run(*(s.ask(name, prompt) for name in names[::-1]))


def leaves(s: ScenarioBuilder, n: Choices) -> None:
    """One adapter leaves, another comes under a new name: it gets the id, the slot, the blocks of the first."""
    name, prompt = s.name(n), s.prompt(n)
    s.run(s.ask(name, prompt))
    s.unload(name)
    new = s.free_name(name)
    if new is not None:
        s.load(new, n)
        s.run(s.ask(new, prompt))
    if new is None or s.free_name() is not None:
        s.load(name, n)
        s.run(s.ask(name, prompt), s.ask(new, prompt))


def more_than_slots(s: ScenarioBuilder, n: Choices) -> None:
    """More adapters than there is room for, asked in turn, and the first again, which was evicted by then."""
    s.fill(n)
    names = [list(s.known)[i] for i in n.order(len(s.known))]
    prompt = s.prompt(n)
    for name in names:
        s.run(s.ask(name, prompt))
    s.run(s.ask(names[0], prompt), s.ask(None, prompt))


def all_at_once(s: ScenarioBuilder, n: Choices) -> None:
    """More adapters in one batch than there is room for: some must wait, and nobody may lose the slot that it uses."""
    s.fill(n)
    prompt, names = s.prompt(n), s.names(n, len(s.known))
    s.run(*(s.ask(name, prompt, 2 + n.below(4), **_arrival(s, i)) for i, name in enumerate(names)))


def same_prompt(s: ScenarioBuilder, n: Choices) -> None:
    """The same long prompt for several adapters and the base, one after another, then for the first again."""
    prompt, names = s.prompt(n), s.names(n, 2)
    new = 1 + n.below(3)
    for name in (*names, names[0]):
        s.run(s.ask(name, prompt, new))


def weights(s: ScenarioBuilder, n: Choices) -> None:
    """The same prompt for one adapter at several weights, and for a sum in both orders."""
    names, prompt = s.summable(), s.prompt(n)
    if not names:
        return
    name, other = ([names[i] for i in n.order(len(names))] * 2)[:2]
    mixes: list[tuple[tuple[str, float], ...]] = [((name, 0.5),), ((name, -1.5),), ((name, 1.0),)]
    if name != other:
        mixes += [((name, 0.5), (other, 0.75)), ((other, 0.5), (name, 0.75))]
    for i in n.order(len(mixes))[: 3 + n.below(3)]:
        s.run(s.ask(None, prompt, 1, adapter_weights=mixes[i]))


def fork(s: ScenarioBuilder, n: Choices) -> None:
    """Prompts that part at the last token of a block, within one, or after their first tokens, and then agree again,
    or end."""
    name, prompt = s.name(n), s.prompt(n)
    s.run(s.ask(name, prompt))
    blocks = len(prompt) // s.block
    last = s.block * (1 + n.below(blocks)) - 1
    within = [s.block // 2 - 1, s.block // 2 + 1, 0, 1][n.below(4)]
    cut = s.block * (1 + n.below(blocks)) + within if n.below(4) else 3
    other = s.end(n)
    s.run(
        s.ask(name, prompt[:last] + other[:1] + prompt[last + 1 :]),
        s.ask(name, prompt[:cut] + other + prompt[cut + len(other) :], 2),
        s.ask(name, prompt[:cut]),
    )
    s.run(s.ask(name, prompt + other))


def depth(s: ScenarioBuilder, n: Choices) -> None:
    """The same tokens at another depth, or after others: their keys and values differ."""
    name, end = s.name(n), s.end(n)
    a, b, c = s.pieces
    prompts = [b + a + end, a + a + end, a + b + end, c + a + b + end]
    for i in n.order(len(prompts))[: 2 + n.below(2)]:
        s.run(s.ask(name, prompts[i], 1 + n.below(2)))


def crowd(s: ScenarioBuilder, n: Choices) -> None:
    """Several requests, in any order of arrival; neighbours ask the same, or something that begins alike."""
    names = s.names(n, s.settings.max_adapters)
    prompts = [s.prompt(n), s.prompt(n), s.pieces[0][:1]]
    asks = []
    for i in range(3 + n.below(3)):
        prompt = prompts[n.below(3)]
        asks.append(s.ask(names[(i + n.below(2)) % len(names)], prompt, 1 + n.below(5), **_arrival(s, n.below(6))))
    s.run(*asks)


def cancelled(s: ScenarioBuilder, n: Choices) -> None:
    """One is cancelled while others run; whoever comes then gets what it held, and another one asks the same again."""
    names, prompt = s.names(n, s.settings.max_adapters), s.prompt(n)
    other = s.prompt(n)
    who, neighbour = names[0], names[-1]
    # In chunks a request can be cancelled before its first token: what was begun of it must not be found again.
    after = n.below(3) * n.below(2) if s.settings.chunk else 1 + n.below(3)
    asks = [
        s.ask(who, prompt, after + 4, cancel_after=after),
        s.ask(neighbour, other, 3 + n.below(5)),
        s.ask(neighbour, other[::-1], 4 + n.below(4), **_arrival(s, after + n.below(2))),
    ]
    s.run(*(asks[i] for i in (n.order(3) if n.below(2) else range(3))))
    s.run(s.ask(who, prompt, 2))


def short_of_room(s: ScenarioBuilder, n: Choices) -> None:
    """Long answers to many long prompts: some are preempted, and computed again."""
    names = s.names(n, s.settings.max_adapters)
    asks = []
    for i in range(4 + n.below(2)):
        asks.append(s.ask(names[i % len(names)], s.prompt(n)[n.below(3) :], 8 + n.below(5), **_arrival(s, n.below(3))))
    s.run(*asks)


def _arrival(s: ScenarioBuilder, steps: int) -> dict[str, int]:
    return {"arrival_step": steps} if "arrivals" in s.can else {}


@dataclass(frozen=True)
class Scenario:
    """A situation, and what an engine must be able to do, and how many adapters there must be, for it to come about."""

    tell: Callable[[ScenarioBuilder, Choices], None]
    needs: frozenset[str] = frozenset()  # operations and features
    adapters: int = 1


def _plot(tell: Callable[[ScenarioBuilder, Choices], None], needs: str = "", adapters: int = 1) -> Scenario:
    return Scenario(tell, frozenset(needs.split()), adapters)


SCENARIOS = {
    "same prompt": _plot(same_prompt),
    "in place": _plot(in_place, "load reload", 2),
    "more than slots": _plot(more_than_slots, "evict", 2),
    "name reused": _plot(name_reused, "load unload", 2),
    "cancelled": _plot(cancelled, "cancel"),
    "fork": _plot(fork),
    "crowd": _plot(crowd),
    "exchanged": _plot(exchanged, "load unload", 2),
    "all at once": _plot(all_at_once, "evict", 2),
    "depth": _plot(depth),
    "weights": _plot(weights, "sums"),
    "leaves": _plot(leaves, "load unload", 2),
    "short of room": _plot(short_of_room, "preempt"),
}


def scenarios_for(testbed: Testbed, capabilities: Capabilities, settings: Settings) -> list[str]:
    """The plots that can come about."""
    can = (capabilities.operations | capabilities.features) - (frozenset() if settings.kv_tokens else {"preempt"})
    return [name for name, p in SCENARIOS.items() if p.needs <= can and p.adapters <= len(testbed.paths)]


def write(
    name: str,
    moves: Sequence[Move],
    testbed: Testbed,
    capabilities: Capabilities,
    settings: Settings,
    seed: int = 0,
    block: int = BLOCK,
) -> Case:
    """The sequence of these plots, told with these numbers. seed: of the prompts' tokens."""
    story = ScenarioBuilder(testbed, capabilities, settings, seed, block)
    for plot, values in moves:
        SCENARIOS[plot].tell(story, Choices(values))
    return Case(name, tuple(story.steps), stateless=False)


def _check_adapters(testbed: Testbed) -> None:
    if not testbed.paths:
        raise LoracleError("a sequence needs an adapter: give --adapter NAME=DIR")


def draw_sequence(
    testbed: Testbed,
    capabilities: Capabilities,
    seed: int,
    index: int,
    settings: Settings | None = None,
    block: int = BLOCK,
) -> Case:
    """Sequence `index` of a campaign: three to five plots. Every plot opens one sequence in each round of indices."""
    settings = settings or variants(testbed, capabilities)[0]
    _check_adapters(testbed)
    rng = np.random.default_rng([seed, index, 7])
    able = scenarios_for(testbed, capabilities, settings)
    rounds, place = divmod(index, len(able))
    opening = np.random.default_rng([seed, rounds, 8]).permutation(len(able))[place]
    plots = [able[opening], *(able[i] for i in rng.integers(0, len(able), rng.integers(2, 5)))]
    if "short of room" in able:  # what these settings are for
        plots.append("short of room")
    moves = [(plot, rng.integers(0, 2**16, LONGEST_PLOT).tolist()) for plot in plots]
    return write(f"sequence {index}", moves, testbed, capabilities, settings, int(rng.integers(2**31)), block)
