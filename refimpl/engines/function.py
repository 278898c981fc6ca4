"""An engine of the user's own, as one function: `loracle check --engine my_module:my_function`.

    def my_function(model_dir, requests):
        # requests: [{"prompt_ids": [...], "adapter_dir": "..." or None, "max_new_tokens": n}, ...]
        return [{"logits": ..., "token_ids": [...]}, ...]    # or "logprobs", or "token_ids" alone

logits and logprobs have a row for each token of the prompt and each produced token but the last, or for the produced
tokens alone. Adapters are folders: the names under which they were loaded, and when, do not reach the function.

What it can and cannot do may stand beside it, in the words of Capabilities (interface.py). A request of several
adapters ("sums") then has "adapters": [(folder, weight), ...] as well, and reset() is called where a sequence ends:

    my_function.capabilities = {"features": ["rslora", "partial", "sums"], "operations": ["load", "prefix_cache"]}
    my_function.reset = lambda: my_cache.clear()

Where several steps compute a request an answer may say which: then a mistake is held against the rows and slots that
the engine had, and not against those that are worked out from its mistakes (Computed, interface.py):

    {"logits": ..., "steps": [(step, row, first, tokens, slot), ...]}    # slot may be left away, None or -1: none
"""

import contextlib
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..config import LAYER_MODULES
from ..loading.suggestion import did_you_mean
from .computed import clash, read_steps
from .declared import declared
from .interface import (
    FEATURES,
    Capabilities,
    EngineError,
    EngineRequest,
    EngineResponse,
    Entry,
    Settings,
    infer_first_position,
)

CAPABILITIES = Capabilities(
    readout="logits",
    dtypes=("float32", "bfloat16", "float16"),
    modules=LAYER_MODULES,
    features=frozenset(FEATURES) - {"sums", "modules_to_save", "grown_vocabulary", "biases", "window", "rope_scaling"},
    operations=frozenset(("load", "unload", "reload")),
)
SHOWN = ("token_ids", "logits", "logprobs")  # of which an answer has one at least
KEYS = (*SHOWN, "steps")


def entry() -> Entry:
    """Return its line of `loracle engines`."""
    return Entry("module:function", "a Python function of your own (see refimpl/engines/function.py)", CAPABILITIES, "")


def make(options: Mapping[str, str]) -> "Function":
    """Return the engine of options["function"], "module:function". EngineError if there is no such function."""
    module, _, name = options["function"].partition(":")
    unknown = [key for key in options if key != "function"]
    if unknown:
        raise EngineError(f"{options['function']} has no option {unknown[0]!r}: a function gets none")
    if not module or not name:
        raise EngineError(f"--engine {options['function']}: a function is named MODULE:FUNCTION")
    if module.endswith(".py"):
        path = Path(module)
        where = "" if path.parent == Path() else f", in the folder {path.parent}"
        raise EngineError(f"{options['function']}: a module is named without .py: {path.stem}:{name}{where}")
    if os.getcwd() not in sys.path:  # as python -m does: the user's file lies where the command is given
        sys.path.insert(0, os.getcwd())
    try:
        with contextlib.redirect_stdout(sys.stderr):
            namespace = importlib.import_module(module)
    except ImportError as error:
        raise EngineError(f"{options['function']}: {error}") from None
    except SystemExit as error:
        raise EngineError(f"{options['function']}: module {module} exits with {error} when it is imported") from None
    except Exception as error:  # the user's code may raise anything
        what = f"{type(error).__name__}: {error}{_raised_at(error)}"
        raise EngineError(f"{options['function']}: importing {module} raises {what}") from None
    try:
        function = getattr(namespace, name)
    except AttributeError:
        meant = did_you_mean(name, vars(namespace))
        raise EngineError(f"{options['function']}: module {module} has no {name}{meant}") from None
    if not callable(function):
        raise EngineError(f"{options['function']} is {type(function).__name__}, not a function")
    return Function(function)


class Function:
    """An Engine (interface.py)."""

    may_report_steps = True
    lives_here = True  # what it keeps, its module keeps: only another process has nothing of it

    def __init__(self, function: Callable[[str, list[dict[str, Any]]], Sequence[Mapping[str, Any]]]) -> None:
        self.function, self.name = function, getattr(function, "__name__", "the function")
        self.capabilities = declared(getattr(function, "capabilities", {}), CAPABILITIES, self.name)

    def start(self, settings: Settings) -> None:
        """Keep the model's folder, which the function gets with every call."""
        self.settings = settings
        self.reset()

    def reset(self) -> None:
        """Forget all adapters, and let the function forget what it has kept, if it can."""
        self.folders: dict[str, Path] = {}
        forget = getattr(self.function, "reset", None)
        if callable(forget):
            forget()

    def load(self, name: str, folder: Path) -> None:
        """Give the function this folder for the name from now on."""
        self.folders[name] = folder

    def unload(self, name: str) -> None:
        """Forget the name."""
        self.folders.pop(name, None)

    def run(self, requests: Sequence[EngineRequest]) -> list[EngineResponse]:
        """Call the function once for all requests. An exception of its own, and an exit, fails every one of them.

        What it prints goes to stderr: stdout is the report's."""
        arguments = [self._argument(request) for request in requests]
        try:
            with contextlib.redirect_stdout(sys.stderr), _exits_raised():
                returned = self.function(str(self.settings.model), arguments)
                values = list(returned) if isinstance(returned, Iterable) else None
        except (Exception, SystemExit) as error:  # the user's code may raise anything
            message = f"{type(error).__name__}: {error}{_raised_at(error)}"
            return [EngineResponse(error=message, raw=traceback.format_exc())] * len(requests)
        if values is None or isinstance(returned, (Mapping, str)):
            wrong = f"it returned {type(returned).__name__}, not a list of {len(requests)} dicts, one for each request"
            return [EngineResponse(error=wrong, raw=repr(returned)[:1000])] * len(requests)
        if len(values) != len(requests):
            wrong = f"{len(values)} answers to {len(requests)} requests"
            return [EngineResponse(error=wrong, raw=repr(values)[:1000])] * len(requests)
        responses = [_response(request, value) for request, value in zip(requests, values, strict=True)]
        if wrong := clash([one.steps for one in responses]):
            return [EngineResponse(error=wrong)] * len(requests)
        if any(one.error for one in responses) and _fit_in_another_order(requests, values):
            hint = " (are the answers in the order of the requests?)"
            responses = [replace(one, error=one.error + hint) if one.error else one for one in responses]
        return responses

    def _argument(self, request: EngineRequest) -> dict[str, Any]:
        """What the function gets for one request."""
        argument: dict[str, Any] = {
            "prompt_ids": list(request.prompt_ids),
            "adapter_dir": None if request.adapter is None else str(self.folders[request.adapter]),
            "max_new_tokens": request.max_new_tokens,
        }
        if request.adapter_weights:
            argument["adapters"] = [(str(self.folders[name]), weight) for name, weight in request.adapter_weights]
        return argument

    def versions(self) -> dict[str, str]:
        """Return the function's module and name."""
        return {"function": f"{self.function.__module__}:{getattr(self.function, '__name__', '?')}"}

    def close(self) -> None:
        """Do nothing: no resource is held."""


@contextlib.contextmanager
def _exits_raised() -> Iterator[None]:
    """os._exit in the block raises: it would end the check without a verdict, with whatever code it has."""
    end_process, here = os._exit, os.getpid()

    def leave(code: int) -> None:
        if os.getpid() != here:  # a process that the function has forked
            end_process(code)
        raise SystemExit(f"os._exit({code})")

    setattr(os, "_exit", leave)  # noqa: B010  # an assignment has another type
    try:
        yield
    finally:
        setattr(os, "_exit", end_process)  # noqa: B010


def _fit_in_another_order(requests: Sequence[EngineRequest], values: Sequence[Any]) -> bool:
    """Are there as many rows as the texts have places, but of other requests?"""
    places = [len(request.prompt_ids) + request.max_new_tokens - 1 for request in requests]
    try:
        rows = [len(value.get("logits", value.get("logprobs"))) for value in values]
    except (AttributeError, TypeError):
        return False
    return rows != places and sorted(rows) == sorted(places)


def _raised_at(error: BaseException) -> str:
    """The innermost line of code that is neither ours nor a library's, with the function that it is in."""
    frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is ours
    of_user = [frame for frame in frames if "site-packages" not in frame.filename]
    if not of_user:
        return ""
    return f" ({of_user[-1].filename}:{of_user[-1].lineno}, in {of_user[-1].name})"


def _response(request: EngineRequest, value: Any) -> EngineResponse:
    """What the function returned for one request, read as far as it can be."""
    if not isinstance(value, Mapping) or not set(value) & set(SHOWN):
        instead = (
            f"one with {', '.join(map(repr, value)) or 'nothing'}"
            if isinstance(value, Mapping)
            else type(value).__name__
        )
        wrong = f"expected a dict with {', '.join(SHOWN)}, not {instead}"
        return EngineResponse(error=wrong, raw=repr(value)[:1000])
    unknown = sorted(set(value) - set(KEYS))
    if unknown:
        return EngineResponse(error=f"unknown key {unknown[0]!r}; known are {', '.join(KEYS)}", raw=repr(value)[:1000])
    try:
        rows = {key: np.asarray(value[key], np.float64) for key in SHOWN[1:] if value.get(key) is not None}
        for key, array in rows.items():
            if array.ndim != 2:
                rows_of = f"{len(request.prompt_ids)} + tokens produced - 1, or the tokens produced"
                wrong = f"{key} must be [rows, vocab], got shape {list(array.shape)}; rows: {rows_of}"
                return EngineResponse(error=wrong, raw=repr(value)[:1000])
        scores = next(iter(rows.values()), None)
        if "token_ids" in value:
            token_ids = tuple(int(t) for t in value["token_ids"])
        elif scores is not None:  # greedy: the tokens that its own rows choose
            token_ids = tuple(int(t) for t in scores[-request.max_new_tokens :].argmax(axis=1))
        else:
            token_ids = ()
        prompt, produced = len(request.prompt_ids), len(token_ids)
        first_position = 0 if scores is None else infer_first_position(len(scores), prompt, produced)
        steps = read_steps(value.get("steps") or (), prompt + max(produced - 1, 0))
    except (TypeError, ValueError, IndexError, EngineError) as error:
        return EngineResponse(error=f"{type(error).__name__}: {error}", raw=repr(value)[:1000])
    return EngineResponse(token_ids, first_position, rows.get("logits"), rows.get("logprobs"), steps=steps)
