"""One run and its checkpoints: whenever it stops before its end, its last good state is on disk."""

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ..errors import LoracleError
from .checkpoint import Description, load_checkpoint, save_checkpoint
from .output import write_adapters
from .state import TrainingError, TrainingState

CHECKPOINT_SECONDS = 60.0  # a run that is killed loses no more than this; one that is interrupted loses nothing
ADAPTERS = "adapter"  # in the checkpoint's folder: what was good when a loss was no number


class Session:
    """One run and its checkpoints: the last state is on disk whenever it stops before its end."""

    def __init__(self, folder: Path, description: Description, base: str | None = None) -> None:
        self.folder, self.description, self.base = folder, description, base
        self.state: TrainingState | None = None
        self.seconds = 0.0

    def resume(self, device: str) -> None:
        """Take up the state of the folder."""
        self.state, self.seconds = load_checkpoint(self.folder, self.description, device)

    def run(
        self,
        train_from: Callable[[Callable[[TrainingState], None], TrainingState | None], TrainingState],
        show: Callable[[TrainingState], None],
    ) -> TrainingState:
        """Return the last state. An interrupt, and a loss that is no number, leave the last good one in the folder."""
        begin = time.perf_counter() - self.seconds
        last_save = time.perf_counter()

        def on_step(state: TrainingState) -> None:
            nonlocal last_save
            self.state, self.seconds = state, time.perf_counter() - begin
            show(state)
            if time.perf_counter() - last_save > CHECKPOINT_SECONDS:
                self.save()
                last_save = time.perf_counter()

        if self.state is not None:
            show(self.state)
        try:
            self.state = train_from(on_step, self.state)
            return self.state
        except KeyboardInterrupt:
            if self.state is not None:
                self.save()
                print(f"stopped; the same command with --resume goes on from {self.folder}", file=sys.stderr)
            raise
        except TrainingError as error:
            self.state = error.state
            self.save()
            adapters = self.folder / ADAPTERS
            shutil.rmtree(adapters, ignore_errors=True)
            write_adapters(adapters, error.state, self.base)
            raise LoracleError(f"{error}; {adapters} has what was good before it: try a lower --lr") from None

    def save(self) -> None:
        """Write the state."""
        assert self.state is not None
        save_checkpoint(self.folder, self.state, self.description, self.seconds)
