"""An engine of the user's own, as one function: `loracle check --engine my_module:my_function`.

    def my_function(model_dir, requests):
        # requests: [{"prompt_ids": [...], "adapter_dir": "..." or None, "max_new_tokens": n}, ...]
        return [{"logits": ..., "token_ids": [...]}, ...]    # or "logprobs", or "token_ids" alone

logits and logprobs have a row for each token of the prompt and each produced token but the last, or for the produced
tokens alone. Adapters are folders; what they were called, and when they were loaded, is not the function's concern.
"""

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..config import LAYER_MODULES
from .interface import FEATURES, Capabilities, EngineError, EngineRequest, EngineResponse, Entry, Settings, infer_first

CAPABILITIES = Capabilities(
    readout="logits",
    dtypes=("float32", "bfloat16", "float16"),
    modules=LAYER_MODULES,
    features=frozenset(FEATURES) - {"sums", "modules_to_save", "grown_vocabulary", "biases", "window"},
    operations=frozenset(("load", "unload", "reload")),
)
KEYS = ("token_ids", "logits", "logprobs")


def entry() -> Entry:
    """For `loracle engines`."""
    return Entry("module:function", "a Python function of your own (see refimpl/engines/function.py)", CAPABILITIES, "")


def make(options: Mapping[str, str]) -> "Function":
    """options["function"]: "module:function". EngineError if there is none of that name."""
    module, _, name = options["function"].partition(":")
    if os.getcwd() not in sys.path:  # as python -m does: the user's file lies where the command is given
        sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise EngineError(f"{options['function']}: {error}") from None
    except AttributeError:
        raise EngineError(f"{options['function']}: module {module} has no {name}") from None
    if not callable(function):
        raise EngineError(f"{options['function']} is {type(function).__name__}, not a function")
    return Function(function)


class Function:
    """An Engine (interface.py)."""

    capabilities = CAPABILITIES

    def __init__(self, function: Callable[[str, list[dict[str, Any]]], Sequence[Mapping[str, Any]]]) -> None:
        self.function = function

    def start(self, settings: Settings) -> None:
        """The function gets the model's folder with every call."""
        self.settings = settings
        self.reset()

    def reset(self) -> None:
        """No adapter is known."""
        self.folders: dict[str, Path] = {}

    def load(self, name: str, folder: Path) -> None:
        """The name means this folder from now on."""
        self.folders[name] = folder

    def unload(self, name: str) -> None:
        """The name means nothing any more."""
        self.folders.pop(name, None)

    def run(self, asks: Sequence[EngineRequest]) -> list[EngineResponse]:
        """One call. What it raises is an answer: it failed."""
        requests = [
            {
                "prompt_ids": list(a.prompt_ids),
                "adapter_dir": None if a.adapter is None else str(self.folders[a.adapter]),
                "max_new_tokens": a.max_new_tokens,
            }
            for a in asks
        ]
        try:
            found = list(self.function(str(self.settings.model), requests))
        except Exception as error:  # the user's code: whatever it does is its answer
            return [EngineResponse(error=f"{type(error).__name__}: {error}")] * len(asks)
        if len(found) != len(asks):
            return [
                EngineResponse(error=f"{len(found)} answers to {len(asks)} requests", raw=repr(found)[:1000])
            ] * len(asks)
        return [_answer(ask, one) for ask, one in zip(asks, found, strict=True)]

    def versions(self) -> dict[str, str]:
        """Where it comes from."""
        return {"function": f"{self.function.__module__}:{getattr(self.function, '__name__', '?')}"}

    def close(self) -> None:
        """Nothing is held."""


def _answer(ask: EngineRequest, one: Any) -> EngineResponse:
    """Whatever came back, read as far as it can be."""
    if not isinstance(one, Mapping) or not set(one) & set(KEYS):
        return EngineResponse(
            error=f"expected a dict with {', '.join(KEYS)}, not {type(one).__name__}", raw=repr(one)[:1000]
        )
    unknown = sorted(set(one) - set(KEYS))
    if unknown:
        return EngineResponse(error=f"unknown key {unknown[0]!r}; known are {', '.join(KEYS)}", raw=repr(one)[:1000])
    try:
        rows = {k: np.asarray(one[k], np.float64) for k in ("logits", "logprobs") if one.get(k) is not None}
        if "token_ids" in one:
            tokens = tuple(int(t) for t in one["token_ids"])
        elif rows:  # greedy: what its own rows say
            tokens = tuple(int(t) for t in next(iter(rows.values()))[-ask.max_new_tokens :].argmax(axis=1))
        else:
            tokens = ()
        shown = next(iter(rows.values()), None)
        first = 0 if shown is None else infer_first(len(shown), len(ask.prompt_ids), len(tokens))
    except (TypeError, ValueError, IndexError, EngineError) as error:
        return EngineResponse(error=f"{type(error).__name__}: {error}", raw=repr(one)[:1000])
    return EngineResponse(tokens, first, rows.get("logits"), rows.get("logprobs"))
