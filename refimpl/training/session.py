"""One run and its checkpoints: whenever it stops before its end, its last good state is on disk."""

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ..errors import DataError, LoracleError
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
        """Return the last state. Whatever stops `train_from` before its end leaves the last good one in the folder."""
        begin = time.perf_counter() - self.seconds
        last_save = time.perf_counter()

        def on_step(state: TrainingState) -> None:
            nonlocal last_save
            self.state, self.seconds = state, time.perf_counter() - begin
            show(state)
            if time.perf_counter() - last_save > CHECKPOINT_SECONDS:
                self.save_if_possible()
                last_save = time.perf_counter()

        if self.state is not None:
            show(self.state)
        try:
            return train_from(on_step, self.state)
        except TrainingError as error:
            raise self.without_a_loss(error) from None
        except LoracleError as error:
            raise LoracleError(f"{error}{self.stopped()}") from None
        except KeyboardInterrupt:
            print(f"stopped{self.stopped()}", file=sys.stderr)
            raise

    def stopped(self) -> str:
        """Write the last state, if there is one; return how to go on from it, after a semicolon."""
        if self.state is None:
            return ""
        self.save()
        return f"; the same command with --resume goes on from {self.folder}"

    def without_a_loss(self, error: TrainingError) -> LoracleError:
        """Write the last good state, and the adapters that it has; return the error that says so."""
        self.state = error.state
        self.save()
        adapters = self.folder / ADAPTERS
        shutil.rmtree(adapters, ignore_errors=True)
        write_adapters(adapters, error.state, self.base)
        return LoracleError(
            f"{error}; {adapters} has what was good before it. "
            f"Try a lower --lr: in another --out, or in this one when {self.folder} is removed"
        )

    def save_if_possible(self) -> None:
        """Write the state, or print a line why not: a disk that is full now need not be full at the end."""
        try:
            self.save()
        except DataError as error:
            print(f"warning: no checkpoint: {error}; the run goes on, and tries again", file=sys.stderr)

    def save(self) -> None:
        """Write the state."""
        assert self.state is not None
        save_checkpoint(self.folder, self.state, self.description, self.seconds)
