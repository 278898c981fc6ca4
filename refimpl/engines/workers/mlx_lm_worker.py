"""mlx-lm at the end of a pipe, on a CPU: PYTHON mlx_lm_worker.py.

A model of it has one adapter, in layers that take the place of its own (mlx_lm.tuner). So there is a model for each
adapter, as whoever switches between adapters there must have, and one request after another.
"""

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from serve_pipe import Reply, Settings, serve_engine


class Server:
    """One base with its adapters. Its methods are the calls."""

    def start(self, settings: Settings) -> Reply:
        """Load the model; return the size of its vocabulary."""
        import mlx.core

        mlx.core.set_default_device(mlx.core.cpu)
        self.mx, self.base = mlx.core, Path(settings.model)
        self.chunk = settings.chunk or settings.max_length
        self.models: dict[str | None, Any] = {None: self.model_with(None)}
        self.vocab_size = int(self.models[None].args.vocab_size)
        return self.vocab_size, {}

    def model_with(self, adapter: str | None) -> Any:
        """Load the base, and the adapter's folder into it."""
        from mlx_lm.tuner.utils import load_adapters
        from mlx_lm.utils import load_model

        model, _ = load_model(self.base)
        if adapter is not None:
            model = load_adapters(model, adapter)
        model.set_dtype(self.mx.float32)  # files may hold half types, and mlx-lm would compute in them
        return model

    def load(self, name: str, folder: str) -> Reply:
        """Load the folder, of mlx-lm's own form, under the name, in place of what had the name before."""
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
        from mlx_lm.models.cache import make_prompt_cache

        names = [name for name, _ in request["adapters"]]
        model = self.models[names[0] if names else None]
        cache, prompt = make_prompt_cache(model), request["prompt_ids"]
        limit = request["max_new_tokens"] if request["cancel_after"] is None else request["cancel_after"]
        pieces = [prompt[i : i + self.chunk] for i in range(0, len(prompt), self.chunk)]
        rows = [self.logits(model, piece, cache) for piece in pieces]
        produced = [int(rows[-1][-1].argmax())]
        while len(produced) < limit:
            rows.append(self.logits(model, produced[-1:], cache))
            produced.append(int(rows[-1][-1].argmax()))
        return produced[:limit], np.concatenate(rows)

    def logits(self, model: Any, token_ids: Sequence[int], cache: Any) -> np.ndarray:
        """Return [tokens, vocab]; keys and values go into the cache."""
        return np.array(model(self.mx.array([list(token_ids)]), cache=cache)[0].astype(self.mx.float32))

    def versions(self) -> Reply:
        """Return the versions that its numbers depend on."""
        packages = {package: version(package) for package in ("mlx", "mlx-lm")}
        return {"python": platform.python_version(), **packages}, {}


if __name__ == "__main__":
    serve_engine(Server())
