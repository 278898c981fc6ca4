"""Our own engine under mpirun: rank 0 is driven as any engine is, and every rank does the same on its part."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..adapter import Adapter
from ..loading.adapter_folder import load_adapter
from ..loading.model_folder import load_model
from ..loading.suggestion import did_you_mean
from ..ops import Ops
from ..parallel.backend import parallel
from ..parallel.group import Group
from ..parallel.mutants import MUTANTS
from ..weights import Model
from . import registry
from .interface import EngineError, EngineRequest, EngineResponse, Settings
from .ours import CAPABILITIES, Ours

KEYS = itertools.count()
BUGS = {name: mutant.ops for name, mutant in MUTANTS.items() if mutant.ops is not None}  # the others are in weights


class OursOnRanks:
    """An Engine (interface.py) whose every method runs on all ranks, in an `Ours` of each (Group.objects).

    name: one of our backends, or a mutant. options: mutant, one of BUGS; fully_sharded_loras, true."""

    new_for_each_batch = True

    def __init__(self, group: Group, name: str, options: Mapping[str, str]) -> None:
        if unknown := options.keys() - {"mutant", "fully_sharded_loras"}:
            raise EngineError(f"{name} under mpirun has no option {min(unknown)!r}")
        if not isinstance(registry.make(name, {}), Ours):
            raise EngineError(f"{name} runs in one process: start it without mpirun")
        bug = options.get("mutant", "")
        if bug and bug not in BUGS:
            raise EngineError(f"there is no mutant {bug!r}: there is {', '.join(BUGS)}{did_you_mean(bug, BUGS)}")
        self.capabilities = CAPABILITIES
        self._group, self._key = group, next(KEYS)
        self._fully_sharded = options.get("fully_sharded_loras") == "true" or bool(bug and MUTANTS[bug].fully_sharded)
        self._engine = (name, bug, self._fully_sharded)
        self._loaded: dict[Path, Adapter] = {}

    def start(self, settings: Settings) -> None:
        """Load the model on rank 0, and give each rank its part."""
        self._model = load_model(settings.model, settings.dtype)
        self._group.call(start_here, self._model, self._key, settings, *self._engine)

    def load(self, name: str, folder: Path) -> None:
        """Load the folder on rank 0, and have each rank load its part under the name."""
        if folder not in self._loaded:
            self._loaded[folder] = load_adapter(folder, self._model.config)
        self._group.call(load_here, None, self._key, name, folder, self._loaded[folder])

    def unload(self, name: str) -> None:
        """Forget the name."""
        self._everywhere("unload", name)

    def run(
        self, requests: Sequence[EngineRequest], forced: Sequence[Sequence[int]] | None = None
    ) -> list[EngineResponse]:
        """Serve these together, as Ours.run."""
        responses: list[EngineResponse] = self._everywhere("run", requests, forced)
        return responses

    def reset(self) -> None:
        """Make a new engine with empty caches."""
        self._everywhere("reset")

    def versions(self) -> dict[str, str]:
        """Return our own version, NumPy's, and how many ranks there are."""
        return {**Ours().versions(), "ranks": str(self._group.mpi.size)}

    def close(self) -> None:
        """Forget the engine on every rank."""
        self._group.call(forget_here, None, self._key)

    def _everywhere(self, method: str, *arguments: Any) -> Any:
        return self._group.call(run_here, None, self._key, method, arguments)


# The jobs of Group.call: each runs on every rank.


def start_here(
    group: Group, model: Model | None, key: int, settings: Settings, name: str, bug: str, fully_sharded: bool
) -> None:
    """Start this rank's engine on its part of the model."""
    layout, part = group.share(model)
    communicator = group.communicator(part.device)
    inner = registry.make(name, {})
    assert isinstance(inner, Ours)

    def make_ops() -> Ops:
        ops = parallel(layout, part, communicator, inner.make_ops(), fully_sharded)
        return BUGS[bug](ops, layout, communicator) if bug else ops

    engine = Ours(make_ops, model=part)
    engine.start(settings)
    group.objects[key] = engine


def load_here(group: Group, model: None, key: int, name: str, folder: Path, adapter: Adapter) -> None:
    """Load an adapter that rank 0 has read."""
    engine: Ours = group.objects[key]
    engine.loaded.setdefault(folder, adapter)
    engine.load(name, folder)


def run_here(group: Group, model: None, key: int, method: str, arguments: Sequence[Any]) -> Any:
    """Call one method of this rank's engine."""
    return getattr(group.objects[key], method)(*arguments)


def forget_here(group: Group, model: None, key: int) -> None:
    """Let this rank's engine go."""
    group.objects.pop(key, None)
