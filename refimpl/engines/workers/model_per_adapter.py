"""What workers share whose engine has one adapter in a model: a model for each, and one request after another."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from serve_pipe import Reply, Settings

Step = Callable[[Sequence[int]], np.ndarray]  # the next token ids of a text -> their logits [tokens, vocab]


class ModelPerAdapter:
    """One base with its adapters. Its methods are the calls, less `start` and `versions`."""

    def start_models(self, settings: Settings) -> None:
        """Load the base."""
        self.chunk = settings.chunk or settings.max_length
        self.models: dict[str | None, Any] = {None: self.model_with(None)}

    def model_with(self, adapter: str | None) -> Any:
        """Return the base with the adapter of this folder."""
        raise NotImplementedError

    def begin(self, model: Any) -> Step:
        """Return the function that computes a text, its keys and values in a cache of its own."""
        raise NotImplementedError

    def load(self, name: str, folder: str) -> Reply:
        """Load the folder under the name, in place of what had the name before."""
        self.models[name] = self.model_with(folder)
        return None, {}

    def unload(self, name: str) -> Reply:
        """Forget the name."""
        del self.models[name]
        return None, {}

    def reset(self) -> Reply:
        """Forget all adapters."""
        self.models = {None: self.models[None]}
        return None, {}

    def run(self, requests: Sequence[Mapping[str, Any]]) -> Reply:
        """Serve one after another; return the token ids of each, and as rows_i its logits [rows, vocab]."""
        served = [self.serve(request) for request in requests]
        arrays = {f"rows_{i}": rows for i, (_, rows) in enumerate(served)}
        return {"responses": [{"token_ids": token_ids} for token_ids, _ in served]}, arrays

    def serve(self, request: Mapping[str, Any]) -> tuple[list[int], np.ndarray]:
        """Compute the prompt, in pieces where it is longer than a chunk, and then one token after another."""
        names = [name for name, _ in request["adapters"]]
        step, prompt = self.begin(self.models[names[0] if names else None]), request["prompt_ids"]
        limit = request["max_new_tokens"] if request["cancel_after"] is None else request["cancel_after"]
        rows = [step(prompt[i : i + self.chunk]) for i in range(0, len(prompt), self.chunk)]
        produced = [int(rows[-1][-1].argmax())]
        while len(produced) < limit:
            rows.append(step(produced[-1:]))
            produced.append(int(rows[-1][-1].argmax()))
        return produced[:limit], np.concatenate(rows)
