"""What a command does under mpirun: rank 0 runs it, and the other ranks compute their part of what it calls."""

import argparse
import atexit
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..errors import LoracleError
from ..parallel.group import Group, compute
from ..parallel.mpi import Mpi
from ..request import Request
from ..weights import Model
from .common import backend

ON_RANKS = ("check", "generate", "logits")


def add_rank_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what is said about several ranks."""
    parser.add_argument(
        "--fully-sharded-loras",
        action="store_true",
        help="under mpirun: cut both A and B among the ranks (S-LoRA), not one of them",
    )


def on_ranks(args: argparse.Namespace, function: Callable[..., Any], model: Model, requests: Sequence[Request]) -> Any:
    """Return function(model, requests, ops=...) with the backend of --ops: computed here, or by all ranks."""
    if args.group is not None:
        return args.group.call(compute, model, function, requests, backend, args.ops, args.fully_sharded_loras)
    if args.fully_sharded_loras:
        raise LoracleError("--fully-sharded-loras is for several ranks: start them with mpirun -n RANKS loracle ...")
    return function(model, requests, ops=backend(args.ops))


def lead(args: argparse.Namespace) -> int:
    """Run a command on rank 0; return its exit code. LoracleError for one that knows nothing of ranks."""
    if args.command not in ON_RANKS:
        several = ", ".join(ON_RANKS)
        raise LoracleError(f"it runs in one process: start it without mpirun (which is for {several})")
    with ended_together(Mpi()) as group:
        args.group = group
        try:
            code = int(args.run(args))
        except LoracleError:
            group.close()
            raise
        group.close()
        return code


def serve() -> int:
    """Serve rank 0's command on another rank, and say nothing."""
    with ended_together(Mpi()) as group:
        group.serve()
    return 0


@contextmanager
def ended_together(mpi: Mpi) -> Iterator[Group]:
    """Yield the group of ranks. What is no LoracleError ends all of them, when it has been said in one line: the others
    wait for a rank that does not come."""
    try:
        yield Group(mpi)
    except LoracleError:
        raise
    except BaseException:
        atexit.register(mpi.abort, 3)
        raise
