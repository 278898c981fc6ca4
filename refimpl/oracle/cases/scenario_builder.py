"""What scenarios are written with: choices that are read one after another, and the steps and names so far."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...engines.interface import Capabilities, EngineRequest, Settings
from ...errors import LoracleError
from ...model import logits
from ...request import Request
from .case import Load, Run, Step, Unload, names_after
from .testbed import Testbed

BLOCK = 16  # tokens of a piece; prompts are put together from pieces, so that whole blocks of 8 or 16 are found again
NAMES = ("one", "two", "three", "four", "five", "six")


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
        self.keys, self.adapters, self.exact = list(testbed.paths), testbed.adapters, testbed.exact
        check_adapters(testbed)
        self.shapes = {
            key: {module: (lora.A.shape, lora.B.shape) for module, lora in adapter.lora.items()}
            for key, adapter in testbed.adapters.items()
        }
        self.steps: list[Step] = []
        self.loaded: dict[str, str] = {}  # name -> the testbed's key of its weights
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

    def load(self, name: str, choices: Choices) -> None:
        """Weights under a name that it never had, and that no other name has, as long as there are some."""
        had = self.had.get(name, [])
        never = [k for k in self.keys if k not in had]
        keys = never or [k for k in self.keys if k != self.loaded.get(name)] or self.keys
        keys = [k for k in keys if k not in self.loaded.values()] or keys
        # Where the shapes agree, something of the old weights can stay behind unseen.
        alike = [k for k in keys if had and self.shapes[k] == self.shapes[had[-1]]]
        keys = alike if alike and choices.below(2) else keys
        self.load_key(name, keys[choices.below(len(keys))])

    def load_key(self, name: str, key: str) -> None:
        """These weights under the name."""
        self._do(Load(name, key))
        self.had.setdefault(name, []).append(key)

    def unload(self, name: str) -> None:
        """Forget the name."""
        self._do(Unload(name))

    def run(self, *requests: EngineRequest) -> None:
        """Together, in this order."""
        self._do(Run(requests[: self.settings.max_requests]))

    def _do(self, step: Step) -> None:
        self.steps.append(step)
        self.loaded = names_after(step, self.loaded)

    def request(self, name: str | None, prompt: Sequence[int], new: int = 1, **more: Any) -> EngineRequest:
        """One request; a prompt that would not fit is cut."""
        return EngineRequest(tuple(prompt[: self.settings.max_length - new]), name, new, **more)

    def continued(self, request: EngineRequest) -> tuple[int, ...]:
        """Its prompt and the tokens that are right for it, if nobody rounds."""
        key = self.loaded.get(request.adapter or "")
        ids, adapters = list(request.prompt_ids), [] if key is None else [(self.adapters[key], 1.0)]
        for _ in range(request.max_new_tokens):
            ids.append(int(logits(self.exact, [Request(ids, adapters)])[0][-1].argmax()))
        return tuple(ids)

    def name(self, choices: Choices) -> str:
        """Some name that is known; there is always one."""
        return list(self.loaded)[choices.below(len(self.loaded))]

    def free_name(self, *but: str) -> str | None:
        """A name that nobody has, if the engine may know one more adapter."""
        most = len(NAMES) if "evict" in self.can else self.settings.max_adapters
        if len(self.loaded) >= min(most, len(self.keys)):
            return None
        return next((x for x in NAMES if x not in self.loaded and x not in but), None)

    def fill(self, choices: Choices) -> None:
        """Load until there are more adapters than slots."""
        while len(self.loaded) <= self.settings.max_adapters and "load" in self.can and (name := self.free_name()):
            self.load(name, choices)

    def names(self, choices: Choices, most: int) -> list[str | None]:
        """Different ones, in some order, with the base among them."""
        names: list[str | None] = list(self.loaded)
        chosen = [names[i] for i in choices.order(len(names))][:most]
        chosen.insert(choices.below(len(chosen) + 1), None)
        return chosen

    def summable(self) -> list[str]:
        """Those whose adapters can be weighted and summed: they only add to the base."""
        plain = [key for key, adapter in self.adapters.items() if adapter.can_be_summed]
        return [name for name, key in self.loaded.items() if key in plain]

    def prompt(self, choices: Choices) -> tuple[int, ...]:
        """Two or three pieces and an end that is no whole block. Piece 0 stands at several depths."""
        pattern = [(0, 1), (0, 0), (1, 0), (0, 1, 2), (0, 0, 1), (1, 0, 0)][choices.below(6)]
        return tuple(t for i in pattern for t in self.pieces[i]) + self.end(choices)

    def end(self, choices: Choices) -> tuple[int, ...]:
        """One to five tokens."""
        start = choices.below(len(self.strangers) - 5)
        return tuple(self.strangers[start : start + 1 + choices.below(5)])


def check_adapters(testbed: Testbed) -> None:
    """LoracleError unless the testbed has an adapter: a sequence loads some."""
    if not testbed.paths:
        raise LoracleError("a sequence needs an adapter: give --adapter NAME=DIR")
