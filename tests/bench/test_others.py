"""The contenders compute the same thing, so that a comparison compares; on the CPU, Triton through its interpreter."""

import os
import subprocess
import sys

import numpy as np
import pytest

from refimpl.bench.case import make_case
from refimpl.bench.workloads import Point
from refimpl.cuda import runner

pytest.importorskip("torch", reason="the comparison needs torch")
pytestmark = pytest.mark.skipif(runner.device() != "cpu", reason="arrays on the host")

POINTS = (Point(1, "identical", 8, 128, 192, "float16"), Point(40, "skewed", 24, 144, 200, "float16"))
HALVES = Point(24, "uniform", 16, 128, 192, "bfloat16")


def differences(point: Point) -> dict[str, float]:
    """Name -> how far each is from ours, as a share of what the adapters add."""
    from refimpl.bench.others import agrees, contenders

    case = make_case(point, sets=2)
    before = case.y[0].copy()
    ours = case.run(0, before.copy())
    return {name: agrees(case, make(case), before, ours) for name, make in contenders().items() if "triton" not in name}


@pytest.mark.parametrize("point", (*POINTS, HALVES), ids=str)
def test_torch_agrees(point: Point) -> None:
    found = differences(point)
    assert "torch gather + bmm" in found
    assert all(off <= 0.01 for off in found.values()), found


def test_a_contender_that_is_wrong_is_seen() -> None:
    from refimpl.bench.others import agrees, gather_bmm

    case = make_case(POINTS[1])
    before = case.y[0].copy()
    ours = case.run(0, before.copy())
    assert not agrees(case, gather_bmm(case), before, np.roll(ours, 1, axis=0)) <= 0.02
    case.packed.weights[:] = np.nan
    assert not agrees(case, gather_bmm(case), before, ours) <= 0.02


INTERPRETED = """
from refimpl.bench.case import make_case
from refimpl.bench.others import agrees
from refimpl.bench.triton_lora import triton_lora
from refimpl.bench.workloads import Point
for point in (%r, %r):
    case = make_case(point, sets=2)
    before = case.y[0].copy()
    assert agrees(case, triton_lora(case), before, case.run(0, before.copy())) <= 0.01, point
"""


def test_triton_agrees() -> None:
    """In a process of its own: the interpreter is chosen when Triton is imported."""
    pytest.importorskip("triton", reason="the comparison needs Triton")
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", INTERPRETED % POINTS], check=True, env=environment)
