"""`import loracle` and `import refimpl` give the same modules: no class exists twice."""

import subprocess
import sys

import pytest

SAME = """
import loracle
assert "numpy" not in __import__("sys").modules
import loracle.oracle.check, loracle.engine
from loracle.cuda.runner import cpu
import refimpl.engine, refimpl.oracle.check, refimpl.cuda.runner.cpu
assert loracle is refimpl and cpu is refimpl.cuda.runner.cpu
assert loracle.oracle.check is refimpl.oracle.check
assert loracle.engine.Engine is refimpl.engine.Engine is loracle.Engine
assert refimpl.engine.__name__ == refimpl.engine.__spec__.name == "refimpl.engine"
"""
OTHER_WAY_ROUND = """
import refimpl.engine
from loracle.engine import Engine
from loracle import Request, tiny
assert Engine is refimpl.engine.Engine and tiny is refimpl.tiny and Request is refimpl.Request
try:
    import loracle.nonsense
except ModuleNotFoundError as error:
    assert error.name == "loracle.nonsense"
else:
    raise AssertionError
"""


@pytest.mark.parametrize("script", [SAME, OTHER_WAY_ROUND])
def test_both_names_are_the_same_modules(script: str) -> None:
    subprocess.run([sys.executable, "-c", script], check=True)


def test_it_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "loracle", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("loracle ")
