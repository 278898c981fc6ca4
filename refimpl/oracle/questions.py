"""Questions to an engine as Hypothesis draws them, and the verdict on each: for tests of one's own.

    asked = Questions(lambda: Function(my_function), testbed, work)

    @given(asked.batches())
    def test_my_engine(case):
        asked.check(case)

A failing test shrinks as any of Hypothesis does. `loracle check` needs none of this; hypothesis is imported when a
strategy is asked for.
"""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..engines.interface import Engine, EngineRequest, Settings
from .cases import scenarios
from .cases.batches import draw_batch
from .cases.case import Case, Run
from .cases.state_machine import hypothesis_module, scripts
from .cases.testbed import Testbed
from .cases.testbed import settings as testbed_settings
from .cases.words import in_words
from .engine_driver import EngineDriver
from .noise.ensemble import ensemble
from .noise.measure import measure
from .noise.verdict import Thresholds, judge, learn_thresholds
from .threads import one_thread

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn, SearchStrategy

LEARNT_FROM = 4  # batches that are asked first, to learn what honest rows of this engine look like
MOST_REQUESTS, LONGEST, MOST_NEW = 6, 20, 4  # of a drawn batch


class Questions:
    """Strategies of cases for one engine on one testbed, and whether it answers them rightly.

    make: an engine that is not started. work: a folder for what is kept meanwhile."""

    def __init__(self, make: Callable[[], Engine], testbed: Testbed, work: Path) -> None:
        self.testbed = testbed
        self.driver = EngineDriver(make, testbed, work)
        self.members = ensemble(testbed.dtype)

    @cached_property
    def thresholds(self) -> Thresholds:
        """Where a row fails: learnt from a few batches, once."""
        capabilities = self.driver.capabilities
        learnt = []
        for i in range(LEARNT_FROM):
            case = draw_batch(self.testbed, capabilities, np.random.default_rng([0, i, 1]), f"batch {i}")
            with one_thread(self.testbed):
                learnt += measure(case, self.driver.run(case, self._settings(case)), self.testbed, self.members)[0]
        return learn_thresholds(learnt)

    def batches(self) -> "SearchStrategy[Case]":
        """Batches of one to six requests of the base and of the testbed's adapters; sums where the engine has them."""
        st = hypothesis_module().strategies
        vocab, sums = self.testbed.model.config.vocab_size, "sums" in self.driver.capabilities.features
        keys = list(self.testbed.adapters)
        summable = [key for key in keys if self.testbed.adapters[key].can_be_summed]
        weights = st.dictionaries(st.sampled_from(summable or keys), st.sampled_from((0.5, -1.5, 2.0)), min_size=1)

        @st.composite
        def requests(draw: "DrawFn") -> EngineRequest:
            prompt = draw(st.lists(st.integers(0, vocab - 1), min_size=1, max_size=LONGEST))
            new = draw(st.integers(1, MOST_NEW))
            if sums and summable and draw(st.integers(0, 4)) == 4:
                return EngineRequest(tuple(prompt), None, new, tuple(draw(weights).items()))
            return EngineRequest(tuple(prompt), draw(st.sampled_from((None, *keys))), new)

        several = st.lists(requests(), min_size=1, max_size=MOST_REQUESTS)
        return several.map(lambda requests: Case("batch", (Run(tuple(requests)),)))

    def sequences(self) -> "SearchStrategy[Case]":
        """Sequences of loads, unloads and requests, as far as the engine can do them."""
        return scripts(self.testbed, self.driver.capabilities)

    def wrong(self, case: Case) -> str:
        """Ask the case; return "" if every answer is right, else what is asked, and which of it is wrong and why."""
        with one_thread(self.testbed):
            exchanges = self.driver.run(case, self._settings(case))
            ratios, _ = measure(case, exchanges, self.testbed, self.members)
        failed = [(one, verdict) for one in ratios if (verdict := judge(one, self.thresholds)).verdict == "fail"]
        if not failed:
            return ""
        return f"{in_words(case, [(one.run, one.index) for one, _ in failed])} ({failed[0][1].why})"

    def check(self, case: Case) -> None:
        """Ask the case. AssertionError that says what is wrong."""
        __tracebackhide__ = True  # of pytest: the line that counts is the caller's
        wrong = self.wrong(case)
        assert not wrong, wrong

    def _settings(self, case: Case) -> Settings:
        if case.stateless:
            return testbed_settings(self.testbed)
        return scenarios.variants(self.testbed, self.driver.capabilities)[0]
