"""mlx-lm in an environment of its own, on a CPU under Linux as on a Mac: one adapter per model, all logits.

It reads no PEFT folder. What it gets is what `loracle convert --to mlx` writes (formats/mlx.py); the worker is
workers/mlx_lm_worker.py.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from ..config import LAYER_MODULES
from ..errors import LoracleError
from ..formats.mlx import write_mlx_adapter
from ..loading.adapter_folder import load_adapter
from ..loading.config_file import load_config
from .hosted import Hosted, check_options, entry_of
from .interface import LORA_FEATURES, Capabilities, EngineError, Entry, Settings
from .recipes import MLX_LM

CAPABILITIES = Capabilities(
    readout="logits",
    prompt_rows=True,
    mixed=False,
    dtypes=("float32",),
    modules=LAYER_MODULES,
    features=LORA_FEATURES | {"rope_scaling"},
    operations=frozenset(("load", "unload", "reload", "chunked_prefill", "cancel")),
)

OPTIONS: Mapping[str, tuple[str, ...]] = {"timeout": ()}


def entry() -> Entry:
    """Return its line of `loracle engines`."""
    return entry_of(MLX_LM, "mlx-lm, Apple's, on a CPU", CAPABILITIES)


def make(options: Mapping[str, str]) -> Hosted:
    """Return the engine, not started. EngineError without its environment, or for an option that it does not have."""
    check_options("mlx_lm", options, OPTIONS)
    return MlxLM(MLX_LM, "mlx_lm_worker.py", CAPABILITIES, options)


class MlxLM(Hosted):
    """Hosted, with each adapter written in mlx-lm's form first."""

    def start(self, settings: Settings) -> None:
        """Start the worker and load the model. EngineError for a window, of which mlx-lm's Mistral knows nothing."""
        self.config = load_config(settings.model)
        if self.config.sliding_window is not None:
            raise EngineError(
                f"{self.name}: {settings.model}: sliding_window {self.config.sliding_window}: mlx-lm's mistral has none"
            )
        super().start(settings)

    def load(self, name: str, folder: Path) -> None:
        """Load the PEFT folder under the name. EngineError where mlx-lm has no form for what the adapter is."""
        with tempfile.TemporaryDirectory() as scratch:
            try:
                write_mlx_adapter(load_adapter(folder, self.config), Path(scratch) / "adapter", self.config)
            except LoracleError as error:
                raise EngineError(f"{self.name}: {error}") from None
            super().load(name, Path(scratch) / "adapter")
