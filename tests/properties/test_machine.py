"""An engine in use: requests come and are cancelled, adapters are loaded again under old names, and room is short.

Hypothesis writes the scenario, one rule after another, and looks for the shortest one that goes wrong. The watch around
the engine (tests/serving.py) asserts at every step that no slot or block has two owners, that nothing is read that
belongs to another history, and that users are counted right; at the end every request must have got exactly what it
gets alone. Separate pools and the unified one go through the same scenarios.
"""

from dataclasses import dataclass
from functools import partial

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support.build import RANKS, random_adapter, random_model, samplings
from support.serving import Watch, WatchedEngine, assert_as_if_alone, finish
from support.tables import every_table

from refimpl import NUMPY, Ops, Request
from refimpl.adapter import Adapter
from refimpl.config import LAYER_MODULES, ModelConfig
from refimpl.errors import CacheFull
from refimpl.paged_slots import ALIGN
from refimpl.unified_pool import UnifiedPool

NAMES = ("first", "second", "third")
NEW = 5
LONGEST = 11 + NEW
MODULES = {"few": ("q_proj", "v_proj"), "many": (*LAYER_MODULES, "embed_tokens", "lm_head")}
PIECES = ((3, 4, 5), (6, 2, 8), (3, 4))


@dataclass(frozen=True)
class Recipe:
    """All that an adapter's weights depend on. Two adapters of one recipe may share blocks; no others may."""

    seed: int
    r: int
    use_rslora: bool
    modules: str

    def adapter(self, config: ModelConfig, name: str) -> Adapter:
        alpha, modules = 2.5 * self.r, MODULES[self.modules]
        return random_adapter(config, self.seed, self.r, alpha, self.use_rslora, modules, name=name)


recipes = st.builds(Recipe, st.integers(0, 2), st.sampled_from(RANKS), st.booleans(), st.sampled_from(sorted(MODULES)))


class EngineMachine(RuleBasedStateMachine):
    """One engine with little room, and the adapters that are loaded under each name."""

    ops: Ops
    unified = False

    @initialize(
        window=st.sampled_from([None, None, 2, 5]),
        block_size=st.sampled_from([1, 2, 3]),
        spare=st.sampled_from([0, 0, 1, 4]),
        chunk=st.sampled_from([1, 3, 6, 64]),
        max_adapters=st.sampled_from([2, 2, 3, None]),
        loaded=st.tuples(recipes, recipes, recipes),
        pool=st.builds(
            partial,
            st.just(UnifiedPool),
            host_capacity=st.sampled_from([None, 1]),
            patience=st.sampled_from([0, 1, 64, None]),
        ),
        data=st.data(),
    )
    def start(self, window, block_size, spare, chunk, max_adapters, loaded, pool, data) -> None:
        config = ModelConfig(11, 5, 7, 2, 4, 2, 2, sliding_window=window, max_position_embeddings=64)
        self.recipes: dict[Adapter, Recipe] = {}
        num_blocks = -(-min(LONGEST, (window or LONGEST) + chunk + block_size) // block_size) + spare
        if self.unified:  # room for one adapter besides: whoever asks for more than there is is refused at once
            numbers = [
                sum(lora.A.size + lora.B.size + 2 * ALIGN for lora in recipe.adapter(config, "").lora.values())
                for recipe in loaded
            ]
            num_blocks += -(-sorted(numbers)[1] // (8 * config.num_hidden_layers * block_size))
        self.engine = WatchedEngine(
            random_model(config, 3),
            self.ops,
            num_blocks=num_blocks,
            pool=pool if self.unified else None,
            block_size=block_size,
            max_batch_tokens=chunk,
            max_adapters=max_adapters,
            max_running=4,
            watch=Watch(same=self.recipes.get),
        )
        self.names: dict[str, Adapter] = {}
        self.requests: dict[int, Request] = {}
        for name, recipe in zip(NAMES, loaded, strict=True):
            self.load(name, recipe)
        self.add(data, 3)

    @precondition(lambda self: len(self.recipes) <= len(self.requests))
    @rule(name=st.sampled_from(NAMES), recipe=recipes)
    def load_under_the_same_name(self, name: str, recipe: Recipe) -> None:
        self.load(name, recipe)

    def load(self, name: str, recipe: Recipe) -> None:
        self.names[name] = recipe.adapter(self.engine.model.config, name)
        self.recipes[self.names[name]] = recipe

    @rule(data=st.data(), count=st.integers(1, 3))
    def add_some(self, data: st.DataObject, count: int) -> None:
        self.add(data, count)

    def add(self, data: st.DataObject, count: int) -> None:
        for _ in range(count):
            request = data.draw(self.some_request())
            try:
                self.requests[self.engine.add(request)] = request
            except CacheFull:
                assert self.unified and request.adapters

    def some_request(self) -> st.SearchStrategy[Request]:
        """A prompt of pieces that others use too, for any adapters loaded now, at any weight."""
        prompts = st.tuples(
            st.lists(st.sampled_from(PIECES), max_size=3), st.lists(st.integers(0, 10), min_size=1, max_size=2)
        )
        return st.builds(
            lambda prompt, names, weight, new, sampling: Request(
                [i for piece in prompt[0] for i in piece] + prompt[1],
                [(self.names[name], weight) for name in names],
                max_new_tokens=new,
                stop_ids=(1,),
                **sampling,
            ),
            prompts,
            st.lists(st.sampled_from(NAMES), max_size=2, unique=True),
            st.sampled_from([1.0, 1.0, -0.5]),
            st.integers(1, NEW),
            samplings(),
        )

    @precondition(lambda self: self.engine.busy)
    @rule(steps=st.integers(1, 4))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.engine.step()

    @precondition(lambda self: len(self.engine.running) + len(self.engine.waiting) > 2)
    @rule(which=st.integers(0, 99))
    def cancel(self, which: int) -> None:
        busy = sorted(g.id for g in (*self.engine.running, *self.engine.waiting))
        cancelled = busy[which % len(busy)]
        self.engine.cancel(cancelled)
        del self.requests[cancelled]

    @invariant()
    def the_counts_are_right(self) -> None:
        if hasattr(self, "engine"):
            self.engine.check_counts()
            self.engine.check_adapters()

    @invariant()
    def every_block_has_one_life(self) -> None:
        """Free, cached, in use, or an adapter's: one of these."""
        if hasattr(self, "engine") and self.unified:
            cache, adapters = self.engine.cache, self.engine.adapters
            paged = [block for adapter in adapters.slots.adapters.values() for block in adapter.blocks]
            blocks = [*cache._free, *cache._cached, *cache.ref_counts, *paged]
            assert sorted(blocks) == list(range(cache.num_blocks))
            assert set(adapters.slot_of.values()) == adapters.slots.adapters.keys() == adapters.slots.slots
            idle = [slot for slot in adapters.slots.slots if slot not in adapters.ref_counts]
            assert adapters.idle_blocks == sum(len(adapters.slots.adapters[slot].blocks) for slot in idle)

    @invariant()
    def equal_keys_mean_equal_histories(self) -> None:
        """What is kept under a key is complete: every slot of the block has been written, by one history."""
        if hasattr(self, "engine"):
            size, holds = self.engine.cache.block_size, self.engine.watch.holds
            for block in self.engine.cache._key_of:
                histories = [holds[block * size + i] for i in range(size)]
                for i, history in enumerate(histories):
                    assert len(history) == len(histories[0]) + i
                    assert history[-1] == histories[-1][-1]
                    assert history[:-1] == histories[-1][: len(history) - 1]

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            finish(self.engine)
            self.engine.check_counts()
            assert self.engine.cache.in_use == 0 and not self.engine.adapters.ref_counts
            assert_as_if_alone(self.engine, list(self.requests), list(self.requests.values()))


def check_an_engine_in_use(ops: Ops, unified: bool = False, **options: object) -> None:
    machine = type("EngineMachine", (EngineMachine,), {"ops": ops, "unified": unified})
    run_state_machine_as_test(machine, settings=settings(stateful_step_count=12, **options))


@every_table
def test_an_engine_in_use(ops: Ops) -> None:
    check_an_engine_in_use(ops, max_examples=30)


def test_an_engine_with_a_unified_pool_in_use() -> None:
    check_an_engine_in_use(NUMPY, unified=True, max_examples=30)
