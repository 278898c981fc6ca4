"""A request that went wrong, with all that its causes are looked for in."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np

from ...adapter_cache import AdapterCache
from ...arrays import Array, Float
from ...config import Module
from ...kv_cache import KVCache
from ...model import whole_prompts
from ...ops import NUMPY
from ...plans import Batch
from ...request import Request
from ..cases.case import Case, Exchange, teacher_forced
from ..cases.testbed import Testbed
from ..noise.measure import Errors
from ..noise.rms import rms_shown
from .adapter_regions import adapter_regions
from .adapter_sources import registered, step_sources
from .adjoint import Adjoint, adjoint
from .bound import binding_bugs, bound_by, bound_weights, saved_layers
from .history import history
from .mix_up import EXACT, Point, Source
from .regions import Region, module_regions, regions_of_ids, sets_of_names, token_regions
from .relations import adapters_of_batch, label, relations
from .slot_sources import occupants_of
from .sources import sources_of, whichever
from .watch import Watch


def suspect_of(
    case: Case,
    exchange: Exchange,
    raw: Errors,
    testbed: Testbed,
    used: Sequence[str | None] = (),
    occupants: Mapping[int, tuple[str, ...]] | None = None,
) -> "Suspect":
    """Return a request of a case with what the others there are to it. used: the adapters of the requests before.
    occupants: of its adapter's slot before; None: whoever was there if slots are given away as usual."""
    before = case.runs[exchange.run].requests[: exchange.index]
    offset = sum(len(request.prompt_ids) for request in before)
    after = case.runs[exchange.run].requests[exchange.index + 1 :]
    beside = *(one.max_new_tokens for one in before), *(-one.max_new_tokens for one in after)
    earlier = [request for run in case.runs[: exchange.run] for request in run.requests] + list(before)
    prompt = exchange.request.prompt_ids
    shared = max((_alike(prompt, one.prompt_ids) for one in earlier), default=0)
    padding = max(len(one.prompt_ids) for one in case.runs[exchange.run].requests) - len(prompt)
    others, batch = relations(case, exchange, testbed, used), adapters_of_batch(case, exchange, testbed)
    if occupants is None:
        occupants = occupants_of(history(case, exchange, testbed, used), exchange.adapters)
    return Suspect(exchange, raw, testbed, others, offset, beside, shared, batch, padding, occupants)


def _alike(prompt: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two prompts have in common at their beginnings."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(prompt, other, strict=False)))


@dataclass(frozen=True, eq=False)
class Suspect:
    """One request of one case, its errors, and the mix-ups that are possible in it."""

    exchange: Exchange
    raw: Errors
    testbed: Testbed
    others: Mapping[str, str | None]  # adapters by what they are to this request: "the request before", ...; None: base
    offset: int = 0  # tokens of prompts that stand before its own in its batch
    beside: tuple[int, ...] = ()  # how many tokens each other request of its batch produces, those after it negative
    shared: int = 0  # tokens at its beginning that an earlier request of its case had as well
    batch: tuple[tuple[tuple[str, float], ...], ...] = ()  # adapters and weights of each request of its batch
    padding: int = 0  # tokens that the longest prompt of its batch has more
    occupants: Mapping[int, tuple[str, ...]] = field(
        default_factory=dict
    )  # of its slot, itself last, by how many there are
    _batches: dict[int, tuple[Batch, KVCache, AdapterCache]] = field(default_factory=dict, repr=False)

    @property
    def key(self) -> str | None:
        """Its adapter; None for the base."""
        return self.exchange.adapters[0][0] if self.exchange.adapters else None

    @property
    def ratio(self) -> float:
        """How far its worst row is off, in noise units."""
        return worst_ratio(self.raw.error, self.raw)

    @cached_property
    def request(self) -> Request:
        """The whole text as a prompt."""
        return teacher_forced(self.exchange, self.testbed.wide)

    @cached_property
    def sources(self) -> dict[str, Source]:
        """What could be mixed up, by key. One that has several names here stands under each of them."""
        names = self.testbed.exact.config.layer_modules
        by_root = self.key is not None and self.testbed.wide[self.key].config.use_rslora
        others = {words: key for words, key in self.others.items() if key is None or key in self.testbed.adapters}
        sources = [
            *sources_of(self.key, others, names, by_root),
            *whichever(self.key, list(self.testbed.adapters)),
        ]
        for words, keys in self.by_step.items():
            if not set(keys) <= {None, *self.testbed.adapters}:
                continue
            sources += step_sources(self.key, keys, words)
        if self.key is not None:
            bound = partial(bound_by, self.testbed, self.key)
            sources += registered(self.key, binding_bugs(self.testbed, self.key), bound)
        return {source.key: source for source in sources}

    @property
    def by_step(self) -> dict[str, tuple[str | None, ...]]:
        """For each token, an adapter by what it is to the request in that step: others may have ended by then."""
        prompt, here = len(self.exchange.request.prompt_ids), sum(n > 0 for n in self.beside)
        ends = [*self.beside[:here], len(self.request.prompt_ids) + 1, *(-n for n in self.beside[here:])]
        by_step: dict[str, list[str | None]] = {}
        for i in range(len(self.request.prompt_ids)):
            alive = [j for j, end in enumerate(ends) if end > i - prompt + 1]
            keys, place = [label(self.batch[j]) for j in alive], alive.index(here)
            used: list[str | None] = list(dict.fromkeys(key for key in keys if key is not None)) or [None]
            of_token = {
                "the request that was at its place of the step at first": label(self.batch[place]),
                "the request before in the step": keys[place - 1],
                "the request after in the step": keys[(place + 1) % len(keys)],
                "the first adapter in the step": used[0],
                "the last adapter in the step": used[-1],
            }
            for words, key in of_token.items():
                by_step.setdefault(words, []).append(key)
        return {words: tuple(keys) for words, keys in by_step.items() if len(set(keys)) > 1}

    @cached_property
    def choices(self) -> dict[str, tuple[str, ...]]:
        """The sources that are another one in each request, with those of their members that do something here."""
        members = {
            key: tuple(one for one in source.members if one in self.effects) for key, source in self.sources.items()
        }
        return {key: some for key, some in members.items() if some}

    @cached_property
    def adjoint(self) -> Adjoint:
        """One backward pass, for all of them."""
        return adjoint(self.testbed.exact, self.request, self.raw)

    @cached_property
    def turns(self) -> dict[object, tuple[Array, Array]]:
        """cos and sin of each token's position."""
        n = len(self.request.prompt_ids)
        config, positions = self.testbed.exact.config, np.arange(n, dtype=np.int32)
        limits = np.full(n, n)
        return {rope: NUMPY.rope_table(rope, config.head_dim, positions, limits, EXACT) for rope in config.ropes}

    def copies(self, count: int) -> tuple[Batch, KVCache, AdapterCache]:
        """A batch of so many copies of it, each of them a prompt, with a cache and slots of its own."""
        if count not in self._batches:
            model = self.testbed.exact
            copies = [self.request] * count
            self._batches[count] = whole_prompts(model, copies, NUMPY, model.precision(EXACT), every_row=True)
        return self._batches[count]

    def members(self, modules: str) -> frozenset[Module]:
        """The modules of a region, by its words."""
        chosen = next(region for region in self.module_regions if region.words == modules).members
        return frozenset(itertools.compress(self.testbed.exact.config.modules(), chosen))

    def rows(self, tokens: str) -> Array:
        """Which of its tokens are in a region, by its words."""
        return next(region for region in self.token_regions if region.words == tokens).members

    def point(self, module: Module, x: Array, watch: Watch, rows: slice = slice(None)) -> Point:
        """A module with its input, in a pass that is watched. rows: those of the batch that x is."""
        saved, inputs = saved_layers(self.testbed), watch.layers[module[0]]
        if rows != slice(None):
            inputs = {name: given[rows] for name, given in inputs.items()}
        return Point(
            module,
            x,
            self.testbed.exact.config,
            bound_weights(self.testbed),
            saved,
            self.turns,
            self.testbed.exact.linear(module).weight,
            inputs,
        )

    @cached_property
    def effects(self) -> dict[str, Float[Array, "modules tokens K"]]:
        """What each source does along each direction, at each module, for each token. Sources without effect are
        left out."""
        modules = self.testbed.exact.config.modules()
        effects: dict[str, Array] = {}
        shape = (len(modules), len(self.request.prompt_ids), len(self.adjoint.directions))
        different = {one.same_as or key: one for key, one in self.sources.items() if not one.members}
        for i, module in enumerate(modules):
            point = self.point(module, self.adjoint.watch.inputs[module], self.adjoint.watch)
            deltas = {key: source.delta(point) for key, source in different.items()}
            present = {key: delta for key, delta in deltas.items() if delta is not None and delta.any()}
            if not present:
                continue
            width = max(delta.shape[1] for delta in present.values())
            stacked = np.zeros((shape[1], len(present), width))
            for j, delta in enumerate(present.values()):
                stacked[:, j, : delta.shape[1]] = delta
            along = self.adjoint.effects_of(module, stacked)  # [tokens, K, sources]
            for j, key in enumerate(present):
                effects.setdefault(key, np.zeros(shape))[i] = along[:, :, j]
        names = {key: one.same_as or key for key, one in self.sources.items()}
        return {key: effects[name] for key, name in names.items() if name in effects}

    @cached_property
    def module_regions(self) -> list[Region]:
        """Sets of modules."""
        return module_regions(self.testbed.exact.config)

    @cached_property
    def adapter_regions(self) -> list[Region]:
        """Sets of modules by what its adapters have there."""
        adapters = [self.testbed.adapters[key] for key, _ in self.exchange.adapters]
        return adapter_regions(adapters, self.testbed.exact.config.modules())

    @cached_property
    def all_regions(self) -> list[Region]:
        """Both, and after these whatever sets of names there are."""
        return [*self.module_regions, *self.adapter_regions, *sets_of_names(self.testbed.exact.config)]

    @cached_property
    def token_regions(self) -> list[Region]:
        """Sets of its tokens."""
        prompt = len(self.exchange.request.prompt_ids)
        ids = self.request.prompt_ids
        regions = token_regions(len(ids), prompt, self.offset, self.beside, self.shared, self.padding)
        return regions + regions_of_ids(ids, self.testbed.exact.config.vocab_size)


def worst_ratio(error: Float[Array, "rows vocab"], raw: Errors) -> float:
    """The row of which an error is most, in noise units of a request."""
    return float((rms_shown(error, raw.view.shown) / raw.unit).max(initial=0.0))
