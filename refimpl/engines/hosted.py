"""An engine that lives in another environment, behind the interface: calls go to its worker, numbers come back.

What comes back is checked: rows that are too few, too narrow or not finite make a response with an error.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import Array
from .environments import missing, outer_environment, python_of
from .interface import Capabilities, EngineError, EngineRequest, EngineResponse, Entry, Settings
from .recipes import Recipe
from .worker import Refused, Worker, worker_path

TIMEOUT = 600.0  # seconds for any one call; the option `timeout` sets another

# Nothing is fetched, nothing is reported home, and no second thread fights for the processor.
VARIABLES = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
}


class Hosted:
    """An Engine (interface.py) whose work is done by a script of workers/."""

    def __init__(
        self,
        recipe: Recipe,
        script: str,
        capabilities: Capabilities,
        options: Mapping[str, str],
        variables: Callable[[Recipe], Mapping[str, str]] = lambda recipe: {},
        name: str = "",
    ) -> None:
        """Find its environment. EngineError if there is none. options: the worker's own, and `timeout`; name: unless it
        is that of the environment."""
        self.name = name or recipe.name
        if problem := missing(recipe):
            raise EngineError(f"{self.name}: {problem}")
        self.recipe, self.script, self.capabilities, self.options = recipe, script, capabilities, dict(options)
        self.variables = variables
        self.timeout = seconds(self.name, self.options.pop("timeout", str(TIMEOUT)))
        self.worker: Worker | None = None
        self.max_length = 0
        self.names: set[str] = set()
        self.notes: dict[str, Any] = {}  # what the worker reports of the last run, beside its responses

    def start(self, settings: Settings) -> None:
        """Start the worker and load the model."""
        self.close()
        if settings.dtype not in self.capabilities.dtypes:
            raise EngineError(
                f"{self.name}: computes in {', '.join(self.capabilities.dtypes)}, not in {settings.dtype}"
            )
        python = python_of(self.recipe)
        command = [str(python), str(worker_path(self.script))]
        environment = {**outer_environment(), **VARIABLES, **self.variables(self.recipe)}
        self.worker, self.names, self.max_length = Worker(self.name, command, environment), set(), settings.max_length
        try:
            self.vocab_size = self._call(
                "start",
                model=str(settings.model.resolve()),
                dtype=settings.dtype,
                max_adapters=settings.max_adapters,
                max_rank=settings.max_rank,
                max_length=settings.max_length,
                max_requests=settings.max_requests,
                prefix_caching=settings.prefix_caching,
                chunk=settings.chunk,
                kv_tokens=settings.kv_tokens,
                options={**self.options, **settings.options},
            )[0]
        except EngineError:
            self.close()
            raise

    def load(self, name: str, folder: Path) -> None:
        """Load the folder under the name, in place of what had the name before."""
        self._call("load", name=name, folder=str(folder.resolve()))
        self.names.add(name)

    def unload(self, name: str) -> None:
        """Forget the name."""
        self._check_loaded(name)
        self._call("unload", name=name)
        self.names.discard(name)

    def run(self, requests: Sequence[EngineRequest]) -> list[EngineResponse]:
        """Send all of them in one call. If the worker refuses that, each response has the reason."""
        if self.worker is None:
            raise EngineError(f"{self.name}: was not started")
        for request in requests:
            for name, _ in request.adapters:
                self._check_loaded(name)
            if (length := len(request.prompt_ids) + request.max_new_tokens) > self.max_length:
                raise EngineError(f"a request of {length} tokens, and the engine was started for {self.max_length}")
        payload = [
            {
                "prompt_ids": list(map(int, request.prompt_ids)),
                "adapters": list(request.adapters),
                "max_new_tokens": request.max_new_tokens,
                "arrival_step": request.arrival_step,
                "cancel_after": request.cancel_after,
            }
            for request in requests
        ]
        try:
            result, arrays = self._call("run", requests=payload)
        except Refused as error:
            return [EngineResponse(error=str(error)) for _ in requests]
        self.notes = result if isinstance(result, dict) else {}
        replies = self.notes.pop("responses", None)
        if not isinstance(replies, list) or len(replies) != len(requests):
            count = len(replies) if isinstance(replies, list) else "no list of"
            raise EngineError(f"{self.name}: {count} answers to {len(requests)} requests")
        return [self._response(request, replies[i], arrays.get(f"rows_{i}")) for i, request in enumerate(requests)]

    def reset(self) -> None:
        """Forget all adapters and prefixes."""
        self._call("reset")
        self.names = set()

    def versions(self) -> dict[str, str]:
        """Return the versions of what is in the worker's environment."""
        return dict(self._call("versions")[0])

    def close(self) -> None:
        """End the worker."""
        if self.worker is not None:
            self.worker.close()
            self.worker = None

    def _call(self, call: str, /, **arguments: Any) -> tuple[Any, dict[str, Array]]:
        if self.worker is None:
            raise EngineError(f"{self.name}: was not started")
        return self.worker.call(call, self.timeout, **arguments)

    def _check_loaded(self, name: str) -> None:
        if name not in self.names:
            raise EngineError(f"no adapter {name!r} is loaded")

    def _response(self, request: EngineRequest, reply: Any, rows: Array | None) -> EngineResponse:
        """One reply of the worker, checked. A wrong one keeps what was understood of it, beside the reason."""
        if not isinstance(reply, dict) or not isinstance(reply.get("token_ids"), list):
            return EngineResponse(error=f"{self.name}: an answer without token ids", raw=reply)
        response = EngineResponse(tuple(reply["token_ids"]))
        if reply.get("error"):
            return replace(response, error=f"{self.name}: {reply['error']}", raw=reply)
        if rows is None:
            return replace(response, error=f"{self.name}: an answer without rows", raw=reply)
        prompt, produced = len(request.prompt_ids), len(response.token_ids)
        if rows.ndim == 2 and rows.dtype.kind == "f" and rows.shape[1] == self.vocab_size:
            first_position = 0 if len(rows) > produced else prompt - 1
            response = replace(response, first_position=first_position)
            response = replace(response, **self._shown(rows))
        if wrong := self._what_is_wrong(request, response, rows):
            return replace(response, error=f"{self.name}: {wrong}", raw=rows)
        return response

    def _shown(self, rows: Array) -> dict[str, Any]:
        """The field of an EngineResponse that the rows are. Where an engine shows a part of a row, the rest is NaN."""
        if self.capabilities.readout != "top":
            return {self.capabilities.readout: rows}
        tokens = [np.flatnonzero(~np.isnan(row)) for row in rows]
        pairs = zip(tokens, rows, strict=True)
        return {"top": [dict(zip(shown.tolist(), row[shown].tolist(), strict=True)) for shown, row in pairs]}

    def _what_is_wrong(self, request: EngineRequest, response: EngineResponse, rows: Array) -> str:
        """ "" if there are as many tokens and rows as there must be, and all of their numbers are finite."""
        prompt, produced = len(request.prompt_ids), len(response.token_ids)
        whole_text = request.cancel_after is None
        if response.logits is None and response.logprobs is None and response.top is None:
            return f"rows of {rows.dtype} {list(rows.shape)} for a vocabulary of {self.vocab_size}"
        if whole_text and produced != request.max_new_tokens:
            return f"{produced} of {request.max_new_tokens} tokens"
        if whole_text and response.first_position + len(rows) != prompt + produced - 1:
            return f"{len(rows)} rows for a prompt of {prompt} tokens and {produced} produced ones"
        values = np.where(np.isnan(rows), 0, rows) if response.top is not None else rows
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if len(bad):
            return f"{len(bad)} of {len(rows)} rows have values that are not finite, the first is row {bad[0]}"
        return ""


def entry_of(recipe: Recipe, what: str, capabilities: Capabilities, name: str = "") -> Entry:
    """Return the line of `loracle engines` of an engine that has this environment, and this name unless the same."""
    what = f"{what}, in an environment of its own"
    return Entry(name or recipe.name, what, capabilities, missing(recipe), recipe.cost)


def seconds(name: str, text: str) -> float:
    """Return the number of seconds that the option says. EngineError if it is not a positive number."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < 1e6:
        raise EngineError(f"{name}: option timeout={text} is not a number of seconds")
    return value


def check_options(name: str, options: Mapping[str, str], allowed: Mapping[str, Sequence[str]]) -> None:
    """Refuse options that are not in `allowed`, and values that are not listed there (no values listed: any will do).

    EngineError for the first of them."""
    for key, value in options.items():
        if key not in allowed:
            raise EngineError(f"{name} has no option {key!r}; it has {', '.join(allowed)}")
        if allowed[key] and value not in allowed[key]:
            raise EngineError(f"{name}: option {key}={value}: must be one of {', '.join(allowed[key])}")
