"""Whether mpirun started this process, and as which rank. Read before NumPy is imported, and without MPI."""

import os
from typing import NamedTuple

# What launchers put in a process's environment: Open MPI's, then those of MPICH and Intel MPI.
VARIABLES = (("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"), ("PMI_RANK", "PMI_SIZE"))


class Launch(NamedTuple):
    """Which of how many ranks this process is."""

    rank: int
    size: int


def launch() -> Launch:
    """Return this process's place among those that mpirun started: (0, 1) without one."""
    for rank, size in VARIABLES:
        if os.environ.get(rank, "").isdigit() and os.environ.get(size, "").isdigit():
            return Launch(int(os.environ[rank]), int(os.environ[size]))
    return Launch(0, 1)
