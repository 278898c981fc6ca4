"""Each flag of a kernel rounds at the point of its name, and only where it is set.

A bound with room for half an ulp does not see whether a number was rounded on the way. Equality does: with the same
rounding points two right implementations in float32 agree bit for bit, but for a number now and then that lay on the
edge between two neighbours of the half type.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from cases import needs_cpu, scheduled
from support import build
from support.plans import mapping, metadata

from refimpl.adapter_slots import AdapterSlots, LoraWeights
from refimpl.arrays import Precision, rounded
from refimpl.config import View
from refimpl.cuda import launch
from refimpl.cuda.launch import LoraLaunch
from refimpl.cuda.table import CUDA
from refimpl.ops import REFERENCE, Ops
from refimpl.tensorrt_llm.backend import backend

pytestmark = needs_cpu

MODULE = (0, "q_proj")


def x_of(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Numbers near 1, exact in the type."""
    return rounded(np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32), dtype)


def norm(ops: Ops, p: Precision) -> np.ndarray:
    return ops.rms_norm(x_of((9, 70), p.dtype), x_of((70,), p.dtype), 1e-5, p)


def rope(ops: Ops, p: Precision) -> np.ndarray:
    angle = np.random.default_rng(0).uniform(0, 7, (9, 16))
    return ops.rope(
        x_of((9, 3, 32), p.dtype), np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32), False, p
    )


def mlp(ops: Ops, p: Precision) -> np.ndarray:
    return ops.mlp_activation(x_of((9, 70), p.dtype), x_of((9, 70), p.dtype)[::-1].copy(), "silu", p)


def attention(ops: Ops, p: Precision) -> np.ndarray:
    k, v = x_of((3, 16, 2, 32), p.kv), x_of((3, 16, 2, 32), p.kv)[::-1].copy()
    plan = np.array([0, 9], np.int32), np.array([40], np.int32), np.array([[2, 0, 1]], np.int32)
    return ops.attention(2 * x_of((9, 4, 32), p.dtype), k, v, metadata(*plan, k), View(), p)


def lora(ops: Ops, p: Precision) -> np.ndarray:
    config = build.ModelConfig(23, 96, 13, 1, 8, 4, 8, max_position_embeddings=64)
    slots = AdapterSlots(build.random_model(config, 0, "float32"), p)
    for slot, r in enumerate((5, 24)):
        adapter = build.as_dtype(build.random_adapter(config, slot, r, alpha=2.5 * r), p.dtype)
        slots.put(slot, ops.bind_adapter(adapter, config, ops.adapter_scale))
    y, ids = x_of((40, 64), p.linear), (np.arange(40, dtype=np.int32) // 20)[:, None]
    ops.lora_delta(y, x_of((40, 96), p.dtype), MODULE, slots, mapping(ids), p)
    return y


STEPS: dict[str, Callable[[Ops, Precision], np.ndarray]] = {
    "norm_inner": norm,
    "rope_product": rope,
    "activation_inner": mlp,
    "scores": attention,
    "probabilities": attention,
    "lora_rank": lora,
    "lora_delta": lora,
}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("point", [*STEPS, "scores online"])
def test_a_flag_rounds_where_it_says(point: str, dtype: str) -> None:
    rounds = Precision("model", dtype)
    if point == "scores online":  # where probabilities are not rounded, attention_v2 runs instead of v1
        point, rounds = "scores", replace(rounds, probabilities="float32")
    step = STEPS[point]
    leaves = replace(rounds, **{point: "float32"})
    right = step(REFERENCE, rounds), step(REFERENCE, leaves)
    with scheduled("forward"):
        found = step(CUDA, rounds), step(CUDA, leaves)
    assert (right[0] == right[1]).mean() < 0.95, "the two ways cannot be told apart"
    for i in range(2):
        assert (found[i] == right[i]).mean() > 0.98


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("round_rank", "round_delta"), [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("expand", ["lora_expand_v1", "bgmv_expand_v2", "sgmv_expand_v2", "sgmv_expand_v3"])
def test_small_integers_are_summed_without_error(expand: str, round_rank: bool, round_delta: bool, dtype: str) -> None:
    """Then every version must round to the same bits as the definition, whatever the order of its sums."""
    if expand == "sgmv_expand_v3" and not round_rank:
        return  # it always rounds
    rng = np.random.default_rng(1)
    shrink = {"l": "lora_shrink_v1", "b": "bgmv_shrink_v2", "s": "sgmv_shrink_v3"}[expand[0]]
    a, b = rng.integers(-9, 10, (20, 130)), rng.integers(-9, 10, (70, 20))
    x, y = rng.integers(-9, 10, (19, 130)), rng.integers(-99, 100, (19, 70))
    packed = launch.pack([{0: LoraWeights(a.astype(np.float32), b.astype(np.float32), 0.3125)}], [70], dtype)
    low = (x @ a.T).astype(np.float32)
    low = rounded(low, dtype) if round_rank else low
    delta = low @ b.T.astype(np.float32) * np.float32(0.3125)
    delta = rounded(delta, dtype) if round_delta else delta
    expected = rounded(y.astype(np.float32) + delta, dtype)
    found = launch.stored(y.astype(np.float32), dtype)
    with scheduled("forward"):
        launch.lora_delta(
            found,
            launch.stored(x.astype(np.float32), dtype),
            packed,
            mapping(np.zeros(19, np.int32)),
            0,
            round_rank,
            round_delta,
            LoraLaunch(shrink, expand, 3),
        )
    assert np.array_equal(launch.widened(found, dtype), expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("order", ["manager", "convert"])
def test_a_prescaled_B_needs_nothing_of_the_kernels(order: str, dtype: str) -> None:
    """The slots hold scale * B and a scale of 1. B' is a number of the type, and so is what the kernels read."""
    p = Precision("model", dtype)
    right, plain = lora(backend(dtype, order, REFERENCE), p), lora(REFERENCE, p)
    assert (right == plain).mean() < 0.95, "the two ways cannot be told apart"
    with scheduled("forward"):
        found = lora(backend(dtype, order, CUDA), p)
    assert (found == right).mean() > 0.98
