"""An engine that lives in another environment, behind the interface: calls go to its worker, numbers come back.

What comes back is not believed: rows that are too few, too narrow or no numbers make an answer with an error.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import Array
from .environments import Recipe, missing, outer_environment, python_of
from .interface import Capabilities, EngineError, EngineRequest, EngineResponse, Settings
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
    ) -> None:
        """EngineError if there is no environment for it. options: the worker's own, and `timeout`."""
        if lacking := missing(recipe):
            raise EngineError(f"{recipe.name}: {lacking}")
        self.recipe, self.script, self.capabilities, self.options = recipe, script, capabilities, dict(options)
        self.variables = variables
        self.timeout = seconds(recipe.name, self.options.pop("timeout", str(TIMEOUT)))
        self.shows_logits = capabilities.readout == "logits"
        self.worker: Worker | None = None
        self.max_length = 0
        self.names: set[str] = set()
        self.seen: dict[str, Any] = {}  # what the worker tells of the last run, beside its answers

    def start(self, settings: Settings) -> None:
        """Start the worker and load the model."""
        self.close()
        name = self.recipe.name
        if settings.dtype not in self.capabilities.dtypes:
            raise EngineError(f"{name}: computes in {', '.join(self.capabilities.dtypes)}, not in {settings.dtype}")
        python = python_of(self.recipe)
        command = [str(python), str(worker_path(self.script))]
        environment = {**outer_environment(), **VARIABLES, **self.variables(self.recipe)}
        self.worker, self.names, self.max_length = Worker(name, command, environment), set(), settings.max_length
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
        """Under a name that is known: in the place of what had it."""
        self._call("load", name=name, folder=str(folder.resolve()))
        self.names.add(name)

    def unload(self, name: str) -> None:
        """Forget the name."""
        self._known(name)
        self._call("unload", name=name)
        self.names.discard(name)

    def run(self, asks: Sequence[EngineRequest]) -> list[EngineResponse]:
        """All of them go over in one call. If the worker refuses that, each answer has the reason."""
        if self.worker is None:
            raise EngineError(f"{self.recipe.name}: was not started")
        for ask in asks:
            for name, _ in wanted(ask):
                self._known(name)
            if (length := len(ask.prompt_ids) + ask.max_new_tokens) > self.max_length:
                raise EngineError(f"a request of {length} tokens, and the engine was started for {self.max_length}")
        rows = [
            {
                "prompt_ids": list(map(int, ask.prompt_ids)),
                "adapters": wanted(ask),
                "max_new_tokens": ask.max_new_tokens,
                "arrival_step": ask.arrival_step,
                "cancel_after": ask.cancel_after,
            }
            for ask in asks
        ]
        try:
            whole, arrays = self._call("run", asks=rows)
        except Refused as error:
            return [EngineResponse(error=str(error)) for _ in asks]
        self.seen = whole if isinstance(whole, dict) else {}
        found = self.seen.pop("answers", None)
        if not isinstance(found, list) or len(found) != len(asks):
            many = len(found) if isinstance(found, list) else "no list of"
            raise EngineError(f"{self.recipe.name}: {many} answers to {len(asks)} requests")
        return [self._answer(ask, found[i], arrays.get(f"rows_{i}")) for i, ask in enumerate(asks)]

    def reset(self) -> None:
        """No adapter, no prefix."""
        self._call("reset")
        self.names = set()

    def versions(self) -> dict[str, str]:
        """Of what is in the worker's environment."""
        return dict(self._call("versions")[0])

    def close(self) -> None:
        """End the worker."""
        if self.worker is not None:
            self.worker.close()
            self.worker = None

    def _call(self, call: str, /, **arguments: Any) -> tuple[Any, dict[str, Array]]:
        if self.worker is None:
            raise EngineError(f"{self.recipe.name}: was not started")
        return self.worker.call(call, self.timeout, **arguments)

    def _known(self, name: str) -> None:
        if name not in self.names:
            raise EngineError(f"no adapter {name!r} is loaded")

    def _answer(self, ask: EngineRequest, found: Any, rows: Array | None) -> EngineResponse:
        """Checked. A wrong one keeps what was understood of it, beside the reason."""
        if not isinstance(found, dict) or not isinstance(found.get("token_ids"), list):
            return EngineResponse(error=f"{self.recipe.name}: an answer without token ids", raw=found)
        if found.get("error"):
            return EngineResponse(tuple(found["token_ids"]), error=f"{self.recipe.name}: {found['error']}", raw=found)
        answer = EngineResponse(tuple(found["token_ids"]))
        if rows is None:
            return replace(answer, error=f"{self.recipe.name}: an answer without rows", raw=found)
        if rows.ndim != 2 or rows.shape[1] != self.vocab_size or rows.dtype.kind != "f":
            what = f"rows of {rows.dtype} {list(rows.shape)} for a vocabulary of {self.vocab_size}"
            return replace(answer, error=f"{self.recipe.name}: {what}", raw=rows)
        answer = replace(answer, logits=rows) if self.shows_logits else replace(answer, logprobs=rows)
        if ask.cancel_after is None and len(answer.token_ids) != ask.max_new_tokens:
            wrong = f"{len(answer.token_ids)} of {ask.max_new_tokens} tokens"
            return replace(answer, error=f"{self.recipe.name}: {wrong}", raw=rows)
        prompt, produced = len(ask.prompt_ids), len(answer.token_ids)
        answer = replace(answer, first=0 if len(rows) > produced else prompt - 1)
        if ask.cancel_after is None and answer.first + len(rows) != prompt + produced - 1:
            wrong = f"{len(rows)} rows for a prompt of {prompt} tokens and {produced} produced ones"
            return replace(answer, error=f"{self.recipe.name}: {wrong}", raw=rows)
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if len(bad):
            what = f"{len(bad)} of {len(rows)} rows have values that are not finite, the first is row {bad[0]}"
            return replace(answer, error=f"{self.recipe.name}: {what}", raw=rows)
        return answer


def wanted(ask: EngineRequest) -> list[tuple[str, float]]:
    """The names of its adapters, each with its weight."""
    if ask.adapter_weights:
        return list(ask.adapter_weights)
    return [] if ask.adapter is None else [(ask.adapter, 1.0)]


def seconds(name: str, text: str) -> float:
    """EngineError if it is not a positive number."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < 1e6:
        raise EngineError(f"{name}: option timeout={text} is not a number of seconds")
    return value


def check_options(name: str, options: Mapping[str, str], allowed: Mapping[str, Sequence[str]]) -> None:
    """EngineError for an option that there is not, or a value that it cannot have. No values listed: any."""
    for key, value in options.items():
        if key not in allowed:
            raise EngineError(f"{name} has no option {key!r}; it has {', '.join(allowed)}")
        if allowed[key] and value not in allowed[key]:
            raise EngineError(f"{name}: option {key}={value}: must be one of {', '.join(allowed[key])}")
