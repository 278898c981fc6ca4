"""Two ranks in one process answer what one does, for batches of several adapters; and layers that one function does."""

import dataclasses

import numpy as np
import pytest

from refimpl.learn import voices
from refimpl.learn.two_ranks import Ranks, cut
from refimpl.learn.whole_modules import Patch, whole_modules
from refimpl.model import logits
from refimpl.ops import NUMPY
from refimpl.request import Request

ids = voices.prompt()


def batch() -> list[Request]:
    pirate, robot = voices.voice("pirate"), voices.voice("robot")
    return [Request(ids, adapter=pirate), Request(ids[:5]), Request(ids[2:9], adapter=[(robot, 0.5), (pirate, -1.0)])]


@pytest.mark.parametrize("size", [1, 2])
def test_ranks_answer_what_one_does(size: int) -> None:
    ranks = Ranks(voices.model(), size=size)
    rows = logits(voices.model(), batch(), dataclasses.replace(NUMPY, **ranks.steps))
    for row, expected in zip(rows, logits(voices.model(), batch()), strict=True):
        np.testing.assert_allclose(row, expected, atol=1e-3)
    assert ranks.collectives == {"all-reduce": 2 * voices.model().config.num_hidden_layers}


def test_parts_that_are_exchanged_show() -> None:
    ranks = Ranks(voices.model(), lambda *arguments: cut(*arguments)[::-1])
    rows = logits(voices.model(), batch(), dataclasses.replace(NUMPY, **ranks.steps))
    expected = logits(voices.model(), batch())
    assert np.abs(rows[0] - expected[0]).max() > 0.1 < np.abs(rows[2] - expected[2]).max()
    np.testing.assert_allclose(rows[1], expected[1], atol=1e-3)


def test_a_whole_module_gets_each_adapter_s_rows_and_scale() -> None:
    patches_of_q: list[Patch] = []

    def compute(x: np.ndarray, module: tuple[int, str], patches: list[Patch]) -> np.ndarray:
        patches_of_q.extend(patches if module == (0, "q_proj") else [])
        y = x @ voices.model().linear(module).weight.T
        for patch in patches:
            y[patch.rows] += patch.scale * (x[patch.rows] @ patch.A.T) @ patch.B.T
        return y

    rows = logits(voices.model(), batch(), dataclasses.replace(NUMPY, **whole_modules(compute)))
    for row, expected in zip(rows, logits(voices.model(), batch()), strict=True):
        np.testing.assert_allclose(row, expected, atol=1e-3)
    # Column 0: the pirate in request 0, the robot at 0.5 in request 2; column 1: the pirate at -1.
    assert sorted(patch.scale for patch in patches_of_q) == [-2.0, 1.0, 2.0]
