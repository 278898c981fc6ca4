"""Sequences for hypothesis: a strategy of whole ones, and a rule-based machine that drives an engine and checks it.

For people who test an engine under pytest. A campaign needs neither; hypothesis is imported when one is asked for.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ...engines.interface import Capabilities, Engine, Settings
from ...errors import LoracleError
from .case import Case, Exchange, Player
from .scenario_builder import BLOCK, Choices, ScenarioBuilder
from .scenarios import SCENARIOS, scenarios_for, variants, write
from .testbed import Testbed

if TYPE_CHECKING:
    from hypothesis.stateful import RuleBasedStateMachine
    from hypothesis.strategies import SearchStrategy

MOST_SCENARIOS = 6
Check = Callable[[Sequence[Exchange], Testbed], str]  # "" or what is wrong


def scripts(
    testbed: Testbed, capabilities: Capabilities, settings: Settings | None = None, block: int = BLOCK
) -> "SearchStrategy[Case]":
    """Sequences for an engine that was started with `settings` (of scenarios.variants; the first without).

    A scenario that is deleted leaves a legal sequence, and smaller numbers make simpler ones: so it shrinks."""
    st = hypothesis_module().strategies
    chosen = settings or variants(testbed, capabilities)[0]
    moves = st.lists(_moves(testbed, capabilities, chosen), min_size=1, max_size=MOST_SCENARIOS)
    return st.builds(
        lambda moves, seed: write("sequence", moves, testbed, capabilities, chosen, seed, block),
        moves,
        st.integers(0, 9),
    )


def machine_for(
    make_engine: Callable[[], Engine],
    testbed: Testbed,
    check: Check,
    settings: Settings | None = None,
    block: int = BLOCK,
) -> "type[RuleBasedStateMachine]":
    """A machine with one rule for each scenario that the engine is able to. Its steps are done as they come, and each
    response goes to `check`; an AssertionError says what that found.

    The engine is started once: starting takes longer than all else. Run it with
    hypothesis.stateful.run_state_machine_as_test(machine), or as the TestCase of a pytest file."""
    stateful, st = hypothesis_module().stateful, hypothesis_module().strategies
    engine = make_engine()
    capabilities = engine.capabilities
    chosen = settings or variants(testbed, capabilities)[0]
    engine.start(chosen)

    class EngineMachine(stateful.RuleBasedStateMachine):  # type: ignore[name-defined]
        """One engine that serves for a while."""

        @stateful.initialize(seed=st.integers(0, 9))
        def begin(self, seed: int) -> None:
            self.builder = ScenarioBuilder(testbed, capabilities, chosen, seed, block)
            self.player = Player(engine, testbed)
            self.done = 0
            engine.reset()

        def run(self, scenario: str, numbers: Sequence[int]) -> None:
            SCENARIOS[scenario].run(self.builder, Choices(numbers))
            ran = tuple(self.builder.steps)
            exchanges = [exchange for step in ran[self.done :] for exchange in self.player.do(step)]
            self.done = len(ran)
            wrong = check(exchanges, testbed)
            assert not wrong, f"{wrong}; all that was done: {ran}"

    for scenario in scenarios_for(testbed, capabilities, chosen):
        rule = stateful.rule(numbers=_numbers())(_rule(scenario))
        setattr(EngineMachine, scenario.replace(" ", "_"), rule)
    return EngineMachine


def _rule(scenario: str) -> Callable[..., None]:
    def run(self: Any, numbers: list[int]) -> None:
        self.run(scenario, numbers)

    run.__name__ = scenario.replace(" ", "_")
    return run


def _moves(testbed: Testbed, capabilities: Capabilities, settings: Settings) -> "SearchStrategy[tuple[str, list[int]]]":
    st = hypothesis_module().strategies
    return st.tuples(st.sampled_from(scenarios_for(testbed, capabilities, settings)), _numbers())


def _numbers() -> "SearchStrategy[list[int]]":
    st = hypothesis_module().strategies
    return st.lists(st.integers(0, 99), max_size=16)


def hypothesis_module() -> Any:
    """Return the package; LoracleError where it is not installed."""
    try:
        import hypothesis
        import hypothesis.stateful
    except ImportError:
        raise LoracleError("this needs hypothesis: pip install hypothesis") from None
    return hypothesis
