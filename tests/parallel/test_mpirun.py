"""The command line under mpirun: real processes, real MPI. Skipped where there is none (pip install 'loracle[mpi]')."""

import functools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from support.compare import assert_equal_to_rounding

from refimpl.cli import main

ROOT = Path(__file__).parents[2]


@functools.cache
def mpirun() -> str:
    """The mpirun that belongs to this Python's MPI, or the one on the path; a skip where there is none."""
    pytest.importorskip("mpi4py", reason="mpi4py is missing: pip install 'loracle[mpi]'")
    beside = Path(sys.prefix) / "bin" / "mpirun"
    path = str(beside) if beside.exists() else shutil.which("mpirun")
    if path is None:
        pytest.skip("mpirun is missing: pip install 'loracle[mpi]'")
    return path


def run(ranks: int, *arguments: str, python: str = "") -> subprocess.CompletedProcess[str]:
    """`mpirun -n RANKS loracle ARGUMENTS`, or a Python program, as a user in a container with few cores starts it."""
    program = ["-c", python] if python else ["-m", "refimpl", *arguments]
    command = [mpirun(), "--allow-run-as-root", "--oversubscribe", "-n", str(ranks), sys.executable, *program]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


PROMPTS = ("--prompt", "pirate:Ahoy", "--prompt", "base:Ahoy", "--prompt", "bard*0.5+robot*0.5:Ahoy")


def test_logits_of_four_ranks_are_those_of_one(tmp_path: Path) -> None:
    one, four = tmp_path / "one.safetensors", tmp_path / "four.safetensors"
    assert main(["logits", *PROMPTS, "--dtype", "float64", "--output", str(one)]) == 0
    result = run(4, "logits", *PROMPTS, "--dtype", "float64", "--output", str(four), "--fully-sharded-loras")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("\n") == 1  # rank 0 speaks
    expected, actual = load_file(one), load_file(four)
    assert actual.keys() == expected.keys()
    for i in range(3):
        assert_equal_to_rounding(actual[f"{i}.logits"], expected[f"{i}.logits"])
        assert (actual[f"{i}.prompt_ids"] == expected[f"{i}.prompt_ids"]).all()


def test_two_ranks_generate_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", *PROMPTS, "--max-new-tokens", "4", "--temperature", "0.8", "--json"]
    assert main(arguments) == 0
    alone = json.loads(capsys.readouterr().out)
    result = run(2, *arguments)
    assert result.returncode == 0 and json.loads(result.stdout) == alone


def test_a_check_of_ranks_passes() -> None:
    options = ("--cases", "1", "--sequences", "0", "--no-power", "--jobs", "1", "--json")
    result = run(2, "check", "--engine", "numpy", *options)
    assert (result.returncode, json.loads(result.stdout)["verdict"]) == (0, "pass")


# Rank 0 drives three engines: one on all ranks, the same fully sharded, and one with a bug between the ranks.
ENGINES = """
import numpy as np
from refimpl import tiny
from refimpl.commands import ranks
from refimpl.engines.interface import EngineError, EngineRequest, Settings
from refimpl.engines.ours import Ours
from refimpl.engines.ours_on_ranks import OursOnRanks
from refimpl.parallel.group import Group
from refimpl.parallel.launch import launch
from refimpl.parallel.mpi import Mpi

def logits(engine):
    engine.start(Settings(tiny.base_path(), "float64", max_length=64))
    engine.load("pirate", tiny.VOICES["pirate"])
    responses = engine.run([EngineRequest([5, 6, 7], "pirate", max_new_tokens=2), EngineRequest([8, 9])])
    engine.unload("pirate")
    try:
        engine.unload("pirate")
    except EngineError:
        engine.reset()
    engine.close()
    return np.concatenate([response.logits for response in responses])

if launch().rank:
    ranks.serve()
else:
    group, alone = Group(Mpi()), logits(Ours())
    for options in ({}, {"fully_sharded_loras": "true"}, {"mutant": "all_reduce_left_out"}):
        engine = OursOnRanks(group, "numpy", options)
        print(np.abs(logits(engine) - alone).max() / np.abs(alone).max(), engine.versions()["ranks"])
    group.close()
"""


def test_our_engine_on_ranks_is_ours_unless_it_has_a_bug() -> None:
    result = run(2, python=ENGINES)
    assert (result.returncode, result.stderr) == (0, "")
    errors, sizes = zip(*(line.split() for line in result.stdout.splitlines()), strict=True)
    assert sizes == ("2", "2", "2")
    right, sharded, wrong = map(float, errors)
    assert right <= 1e-12 and sharded <= 1e-12 and wrong > 1e-2


@pytest.mark.parametrize(
    ("ranks", "arguments", "says"),
    [
        (
            3,
            ["generate", "--prompt", "base:x"],
            "num_attention_heads 4 cannot be shared by 3 ranks: this model runs on",
        ),
        (2, ["generate", "--prompt", "nobody:x"], "adapter 'nobody' is not known"),
        (2, ["demo"], "it runs in one process: start it without mpirun"),
    ],
)
def test_a_mistake_is_one_line_of_rank_0(ranks: int, arguments: list[str], says: str) -> None:
    result = run(ranks, *arguments)
    assert result.returncode == 2
    lines = [line.strip() for line in result.stderr.splitlines()]  # mpirun may put a space before it
    ours = [line for line in lines if line.startswith("loracle")]  # the others are mpirun's
    assert len(ours) == 1 and says in ours[0]
    assert "Traceback" not in result.stderr


KILLED = """
import os, signal
import numpy as np
from refimpl.parallel.mpi import Mpi
mpi = Mpi()
mpi.all_reduce(np.ones(3))
if mpi.rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
mpi.all_reduce(np.ones(3))
"""

FAILING = """
import sys
from refimpl import cli
from refimpl.parallel.group import Group
from refimpl.parallel.launch import launch
def broken(group, model):
    raise ZeroDivisionError("of rank 1")
if launch().rank == 1:
    Group.share = broken
sys.exit(cli.main(["generate", "--prompt", "base:x"]))
"""


def test_a_rank_that_is_killed_ends_the_others() -> None:
    start = time.monotonic()
    result = run(3, python=KILLED)
    assert result.returncode != 0 and time.monotonic() - start < 60
    assert "rank 1" in result.stderr and "Killed" in result.stderr  # mpirun says it


def test_a_rank_that_fails_says_so_in_one_line_and_ends_the_others() -> None:
    result = run(2, python=FAILING)
    assert result.returncode == 3
    lines = [line.strip() for line in result.stderr.splitlines()]  # mpirun may put a space before it
    ours = [line for line in lines if line.startswith("loracle")]
    assert len(ours) == 1 and ours[0].startswith("loracle, rank 1: a bug of ours (ZeroDivisionError: of rank 1)")


COLLECTIVES = """
import numpy as np
from refimpl.parallel.mpi import Mpi
mpi = Mpi()
total = mpi.all_reduce(np.full((2, 3), mpi.rank + 1.0).T)
rows = mpi.all_gather(np.full((2, mpi.rank), float(mpi.rank)))
columns = mpi.all_gather(np.full((mpi.rank, 2), float(mpi.rank)), axis=0)
assert (total == 6).all() and total.shape == (3, 2), total
assert rows.tolist() == [[1, 2, 2]] * 2, rows
assert columns.tolist() == [[1, 1], [2, 2], [2, 2]], columns
assert mpi.exchange((mpi.rank,)) == [(0,), (1,), (2,)] and mpi.broadcast(mpi.rank) == 0 and mpi.meet()
"""


def test_the_collectives() -> None:
    result = run(3, python=COLLECTIVES)
    assert (result.returncode, result.stderr) == (0, "")


def test_without_mpi4py_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    for rank, size in (("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"), ("PMI_RANK", "PMI_SIZE")):
        monkeypatch.delenv(rank, raising=False)
        monkeypatch.delenv(size, raising=False)
    monkeypatch.setenv("PMI_RANK", "0")
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    assert main(["generate", "--prompt", "base:x"]) == 2
    assert "pip install 'loracle[mpi]'" in capsys.readouterr().err


def test_fully_sharded_needs_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--prompt", "base:x", "--fully-sharded-loras"]) == 2
    assert "mpirun -n RANKS" in capsys.readouterr().err
