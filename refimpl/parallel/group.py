"""Rank 0 runs a command, as if it were alone; the others serve it: they compute their part of what it calls.

    rank 0    parses the arguments, reads the files, cuts the model, calls on all ranks, prints the result
    others    wait for a call, get their part of the model, compute, and wait for the next one

So there is one who speaks, and one who reads: stdin, prompts and checkpoints are rank 0's.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ..errors import LoracleError
from ..ops import Ops
from ..request import Request
from ..tracing import active_trace
from ..weights import Model
from .backend import parallel
from .communicator import Communicator
from .layout import Layout
from .mpi import Mpi
from .shards import shard_model

PATIENCE = 10.0  # seconds that a rank which has failed waits for the others to say the same


class Group:
    """All ranks, seen from one of them."""

    def __init__(self, mpi: Mpi) -> None:
        self.mpi = mpi
        self.objects: dict[int, Any] = {}  # what stays on each rank from one call to the next

    def call(self, function: Callable[..., Any], model: Model | None, *arguments: Any) -> Any:
        """Run function(group, model, *arguments) on every rank; return what it does on rank 0, where this is called.

        The others get None for the model: the function shares it (`share`). A LoracleError is raised on all ranks, as
        all find out the same; one that is not ends all of them."""
        if active_trace() is not None:
            raise LoracleError("a rank has only its part of what is traced: trace it without mpirun")
        if model is not None:
            Layout(model.config, 0, self.mpi.size)  # refused before the others hear of it
        self._send_all((function, arguments))
        return self._finish(function, model, arguments)

    def serve(self) -> None:
        """Compute what rank 0 calls until it closes."""
        while (job := self.mpi.receive()) is not None:
            function, arguments = job
            with suppress(LoracleError):  # rank 0 says it
                self._finish(function, None, arguments)

    def close(self) -> None:
        """Let the others go. Rank 0's last call."""
        self._send_all(None)

    def share(self, model: Model | None) -> tuple[Layout, Model]:
        """Return this rank's layout and part of the model that rank 0 has."""
        if model is None:
            self._choose_gpu(self.mpi.broadcast(None))
            return self.mpi.receive()
        layout = Layout(model.config, self.mpi.rank, self.mpi.size)
        self._choose_gpu(self.mpi.broadcast(model.device))
        for rank in range(1, self.mpi.size):
            other = Layout(model.config, rank, self.mpi.size)
            self.mpi.send((other, _without_tokenizer(shard_model(model, other))), rank)
        return layout, shard_model(model, layout)

    def communicator(self, device: str) -> Communicator:
        """Return how the ranks' numbers meet: by NCCL on GPUs, else by MPI."""
        if device != "cuda":
            return self.mpi
        from .nccl import Nccl

        return Nccl(self.mpi)

    def _send_all(self, job: object) -> None:
        for rank in range(1, self.mpi.size):
            self.mpi.send(job, rank)

    def _choose_gpu(self, device: str) -> None:
        if device == "cuda":
            from .nccl import choose_gpu

            choose_gpu(self.mpi.rank)

    def _finish(self, function: Callable[..., Any], model: Model | None, arguments: Sequence[Any]) -> Any:
        """Run one job, and see that all ranks have come to its end."""
        try:
            value = function(self, model, *arguments)
        except LoracleError:
            if not self.mpi.meet(PATIENCE):
                raise RuntimeError("one rank has failed, and the others have not") from None
            raise
        self.mpi.meet()
        return value


def compute(
    group: Group,
    model: Model | None,
    function: Callable[..., Any],
    requests: Sequence[Request],
    make_ops: Callable[[str], Ops],
    ops: str,
    fully_sharded: bool,
) -> Any:
    """Return function(model, requests, ops=...), computed by all ranks: `logits` or `generate`. A job of Group.call.

    make_ops(ops): the backend that each rank computes its part with."""
    layout, part = group.share(model)
    step = parallel(layout, part, group.communicator(part.device), make_ops(ops), fully_sharded)
    return function(part, requests, ops=step)


def _without_tokenizer(model: Model) -> Model:
    return replace(model, tokenizer=None)
