"""mlx-lm at the end of a pipe, on a CPU: PYTHON mlx_lm_worker.py.

A model of it has one adapter, in layers that take the place of its own (mlx_lm.tuner). So there is a model for each
adapter, as whoever switches between adapters there must have.
"""

import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from model_per_adapter import ModelPerAdapter, Step
from serve_pipe import Reply, Settings, serve_engine


class Server(ModelPerAdapter):
    """Its methods are the calls."""

    def start(self, settings: Settings) -> Reply:
        """Load the model; return the size of its vocabulary."""
        import mlx.core

        mlx.core.set_default_device(mlx.core.cpu)
        self.mx, self.base = mlx.core, Path(settings.model)
        self.start_models(settings)
        return int(self.models[None].args.vocab_size), {}

    def model_with(self, adapter: str | None) -> Any:
        """Load the base, and an adapter's folder, of mlx-lm's own form, into it."""
        from mlx_lm.tuner.utils import load_adapters
        from mlx_lm.utils import load_model

        model, _ = load_model(self.base)
        if adapter is not None:
            model = load_adapters(model, adapter)
        model.set_dtype(self.mx.float32)  # files may hold half types, and mlx-lm would compute in them
        return model

    def begin(self, model: Any) -> Step:
        """Return the function that computes a text."""
        from mlx_lm.models.cache import make_prompt_cache

        cache = make_prompt_cache(model)

        def step(token_ids: Sequence[int]) -> np.ndarray:
            return np.array(model(self.mx.array([list(token_ids)]), cache=cache)[0].astype(self.mx.float32))

        return step

    def versions(self) -> Reply:
        """Return the versions that its numbers depend on."""
        packages = {package: version(package) for package in ("mlx", "mlx-lm")}
        return {"python": platform.python_version(), **packages}, {}


if __name__ == "__main__":
    serve_engine(Server())
