"""The kernels with their arrays on the GPU from the beginning, as a server has them: no copy between two launches."""

import numpy as np
import pytest
from on_gpu import REHEARSAL, gpu_or_skip

xp = gpu_or_skip()

from refimpl import Request, load_adapter, load_model, logits, tiny  # noqa: E402
from refimpl.backends import BACKENDS  # noqa: E402
from refimpl.bench.case import make_case  # noqa: E402
from refimpl.bench.decode import Shape, decoding, model_of, with_half_products  # noqa: E402
from refimpl.bench.verify import verify  # noqa: E402
from refimpl.bench.workloads import MIXES, Point, grid, small_grid  # noqa: E402
from refimpl.ops import NUMPY, REFERENCE  # noqa: E402

DEVICE = "cpu" if REHEARSAL else "cuda"


@pytest.mark.parametrize("point", small_grid(quick=True), ids=str)
def test_small_points_are_right(point: Point) -> None:
    assert verify(make_case(point, xp, sets=2), i=1) <= 1


@pytest.mark.skipif(REHEARSAL, reason="too large for the CPU runner")
@pytest.mark.parametrize("point", [p for p in grid() if p.tokens in (1, 64, 1024)][::3], ids=str)
def test_points_of_the_benchmark_are_right(point: Point) -> None:
    assert verify(make_case(point, xp)) <= 1


@pytest.mark.parametrize("mix", MIXES)
def test_two_runs_give_the_same_bits(mix: str) -> None:
    """No atomics: the order of every sum is fixed."""
    case = make_case(Point(24, mix, 16, 256, 256, "float16"), xp)
    first, second = (case.run(0, case.y[0].copy()) for _ in range(2))
    assert bool((first == second).all())


def test_the_embedded_model_equals_the_definition() -> None:
    host, device = load_model("tiny"), load_model("tiny", device=DEVICE)
    requests = [
        Request(host.tokenizer.encode(tiny.DEMO_PROMPTS[i])[:24], None if i == 0 else load_adapter(voice, host.config))
        for i, voice in enumerate(["", *tiny.VOICES])
    ]
    truth = logits(host, requests, ops=REFERENCE)
    for a, b in zip(truth, logits(device, requests, ops=BACKENDS["cuda"]), strict=True):
        assert np.abs(a - b).max() <= 1e-3


def test_a_decode_step_in_halves_equals_the_numpy_table() -> None:
    shape = Shape(hidden=64, heads=2, kv_heads=1, layers=2) if REHEARSAL else Shape.llama_8b(1)
    model = model_of(shape, "float16", DEVICE)
    tables = (NUMPY, BACKENDS["cuda"], with_half_products(BACKENDS["cuda"]))
    truth, *others = (decoding(model, 4, 16, 40, ops).batched() for ops in tables)
    for other in others:
        assert np.abs(truth - other).max() <= 2e-2 * np.abs(truth).max()
