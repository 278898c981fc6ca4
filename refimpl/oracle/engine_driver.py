"""The engine's life cycle in a campaign: started as each case needs it, restarted when that changes, asked, closed."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from ..engines.interface import Engine, EngineLost, Settings
from .cases import archive
from .cases.case import Case, Exchange, play, prepare
from .cases.testbed import Testbed
from .noise.ensemble import Member
from .noise.measure import Sample, measure
from .watchdog import Watchdog

FIRST = "first answers"  # the folder of those that others stand for


class EngineDriver:
    """Runs cases on one engine. `make` gives an engine that is not started; `work` keeps what it answered.

    watch: what ends a check whose engine does not answer."""

    def __init__(self, make: Callable[[], Engine], testbed: Testbed, work: Path, watch: Watchdog | None = None) -> None:
        self.make, self.testbed, self.work, self.watch = make, testbed, work, watch or Watchdog()
        self.engine = make()
        self.capabilities = self.engine.capabilities
        self.lost = False  # is there no machine left for its engine?
        self._state: tuple[Settings, bool] | None = None  # how it was started, and whether adapters are loaded

    def exchanges(self, case: Case, settings: Settings, kept_in: str = "answers") -> list[Exchange]:
        """Return the case's requests and responses: those of an earlier run of this campaign, if they were saved.

        What is kept in another folder is another answer to the same case."""
        folder = self.work / kept_in
        exchanges = archive.saved(folder, case)
        if exchanges is None:
            exchanges = self.run(case, settings)
            archive.save(folder, case, exchanges)
        return exchanges

    def first_answers(self, case: Case, settings: Settings) -> list[Exchange]:
        """Return the case's requests and the responses that came first."""
        first = archive.saved(self.work / FIRST, case)
        return self.exchanges(case, settings) if first is None else first

    def keep(self, case: Case, exchanges: Sequence[Exchange]) -> None:
        """Take these for the answers to the case from now on."""
        if (before := archive.saved(self.work / "answers", case)) is not None:
            archive.save(self.work / FIRST, case, before)
        archive.save(self.work / "answers", case, exchanges)

    def run(self, case: Case, settings: Settings) -> list[Exchange]:
        """Run the case now. A batch finds every adapter of the testbed loaded, a sequence none."""
        with self.watch.asking(f"asked {case.name}"):
            try:
                return self._run(case, settings)
            except EngineLost:
                self.engine, self._state = self.make(), None
                return self._run(case, settings)

    def _run(self, case: Case, settings: Settings) -> list[Exchange]:
        if self._state is None or self._state[0] != settings:
            self._restart(settings)
        fresh = case.stateless and getattr(self.engine, "new_for_each_batch", False)
        if self._state != (settings, case.stateless) or fresh:
            if case.stateless:
                with self.watch.asking("given its adapters"):
                    self.engine.reset()
                    prepare(self.engine, self.testbed)
            self._state = (settings, case.stateless)
        return play(self.engine, case, self.testbed)

    def run_on(self, testbed: Testbed, cases: Iterable[Case], settings: Settings) -> list[list[Exchange]]:
        """Run cases now with the same base and other adapters, from an engine without any."""
        usual, self.testbed = self.testbed, testbed
        self._state = None if self._state is None else (self._state[0], False)
        try:
            return [self.run(case, settings) for case in cases]
        finally:
            self.testbed = usual
            self._state = None if self._state is None else (self._state[0], False)

    def run_anew(self, case: Case, settings: Settings) -> list[Exchange]:
        """Run the case now on an engine that is made and started for it."""
        if self._state is not None:
            self.close()
            self.engine, self._state = self.make(), None
        return self.run(case, settings)

    def _restart(self, settings: Settings) -> None:
        with self.watch.asking("started"):
            if self._state is not None:
                self.engine.close()
                self.engine = self.make()
            self.engine.start(settings)

    def sample(self, case: Case, settings: Settings, members: tuple[Member, ...]) -> Sample:
        """Return the case with the engine's errors in it."""
        exchanges = self.exchanges(case, settings)
        return Sample(case, exchanges, measure(case, exchanges, self.testbed, members)[1], settings)

    def close(self) -> None:
        """Stop the engine."""
        with self.watch.asking("closed", last=True):
            self.engine.close()


def ask_all(
    drivers: Sequence[EngineDriver], cases: Iterable[tuple[Case, Settings]]
) -> Iterator[tuple[Case, Settings, list[Exchange]]]:
    """Yield each case with its requests and responses, in order. Several drivers work side by side, each on a case.

    A driver whose engine is lost for good leaves its case to another, and is not asked again."""
    if len(drivers) == 1:
        yield from ((case, settings, drivers[0].exchanges(case, settings)) for case, settings in cases)
        return
    idle: SimpleQueue[EngineDriver | None] = SimpleQueue()
    for driver in drivers:
        idle.put(driver)

    def ask(case: Case, settings: Settings) -> list[Exchange]:
        while (driver := idle.get()) is not None:
            try:
                exchanges = driver.exchanges(case, settings)
            except EngineLost:
                driver.lost = True
                if all(one.lost for one in drivers):  # let those that wait for one go on, and say the same
                    idle.put(None)
            except BaseException:
                idle.put(driver)
                raise
            else:
                idle.put(driver)
                return exchanges
        idle.put(None)
        raise EngineLost("every engine is lost, and no machine has place for another")

    begun: deque[tuple[Case, Settings, Future[list[Exchange]]]] = deque()
    with ThreadPoolExecutor(len(drivers)) as threads:
        for case, settings in cases:
            begun.append((case, settings, threads.submit(ask, case, settings)))
            if len(begun) > len(drivers):  # one case ahead of those that are being asked
                case, settings, exchanges = begun.popleft()
                yield case, settings, exchanges.result()
        for case, settings, exchanges in begun:
            yield case, settings, exchanges.result()
