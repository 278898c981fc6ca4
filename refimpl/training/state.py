"""All that a run needs to go on: plain arrays and numbers. Each step makes new ones: an old state stays as it was."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..adapter import Adapter
from ..arrays import Array, to_device, to_host
from ..errors import LoracleError
from .lora_config import LoraConfig
from .parameters import Key, Parameters, to_adapter

KINDS = ("parameters", "first_moments", "second_moments")


@dataclass(frozen=True, eq=False)
class TaskState:
    """One task after `step` of its `steps`. There is no state of a random generator: each seed names its step."""

    config: LoraConfig
    step: int
    steps: int
    parameters: Parameters
    first_moments: Parameters  # AdamW's m
    second_moments: Parameters  # AdamW's v
    losses: tuple[float, ...] = ()  # of each step: the mean over its targets, before the step changed anything
    grad_norms: tuple[float, ...] = ()  # of each step, before clipping
    held_out: tuple[tuple[int, float], ...] = ()  # (steps done, mean loss on the held-out examples), once an epoch


@dataclass(frozen=True, eq=False)
class TrainingState:
    """Every task's state, by name."""

    tasks: Mapping[str, TaskState]

    def adapter(self, name: str) -> Adapter:
        """Return a task's adapter as it is now, on the host: to serve, or to save."""
        task = self.tasks[name]
        return to_adapter(name, task.config, {key: to_host(x) for key, x in task.parameters.items()})

    def arrays(self) -> dict[str, Array]:
        """Return every array, on the host, under "task/kind/module.part". With `record()`, all that `of` needs."""
        return {
            f"{name}/{kind}/{key}": to_host(x)
            for name, task in self.tasks.items()
            for kind in KINDS
            for key, x in getattr(task, kind).items()
        }

    def record(self) -> dict[str, Any]:
        """Return everything else, as JSON has it: {task: {config, step, steps, losses, ...}}."""
        names = ("step", "steps", "losses", "grad_norms", "held_out")
        return {
            name: {"config": asdict(task.config)} | {field: getattr(task, field) for field in names}
            for name, task in self.tasks.items()
        }

    @classmethod
    def of(cls, arrays: Mapping[str, Array], record: Mapping[str, Any], device: str = "cpu") -> "TrainingState":
        """Return the state with these arrays and this record: of(state.arrays(), state.record()) equals state."""
        by_kind: dict[tuple[str, str], dict[Key, Array]] = {(name, kind): {} for name in record for kind in KINDS}
        for path, x in arrays.items():
            name, kind, key = path.rsplit("/", 2)
            if (name, kind) not in by_kind:
                raise LoracleError(f"array {path} belongs to no task of the record")
            by_kind[name, kind][Key.of(key)] = to_device(x, device)
        tasks = {}
        for name, fields in record.items():
            tasks[name] = TaskState(
                LoraConfig(**fields["config"]),
                fields["step"],
                fields["steps"],
                losses=tuple(fields["losses"]),
                grad_norms=tuple(fields["grad_norms"]),
                held_out=tuple((step, loss) for step, loss in fields["held_out"]),
                **{kind: by_kind[name, kind] for kind in KINDS},
            )
        return cls(tasks)


class TrainingError(LoracleError):
    """A loss or a gradient that is NaN or infinite. `state` is the last one whose loss was a number."""

    def __init__(self, message: str, state: TrainingState) -> None:
        super().__init__(message)
        self.state = state
