"""What bench/launches.py counts without launching anything is what a run on the CPU runner launches."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
from cases import needs_cpu
from support.build import random_adapter, random_model
from support.counting import scheduled_step

from refimpl.arrays import Array, Precision
from refimpl.bench.cost import Step
from refimpl.bench.launches import PRODUCT, launches
from refimpl.config import LayerKind, ModelConfig
from refimpl.cuda.launch import recorded
from refimpl.cuda.table import CUDA
from refimpl.errors import LoracleError
from refimpl.model import forward

LLAMA = ModelConfig(11, 12, 20, 2, 4, 2, 6, max_position_embeddings=4096)
WINDOWS = dataclasses.replace(LLAMA, num_hidden_layers=3, layers=(LayerKind(9), LayerKind(), LayerKind(9, None)))
FUSED = dataclasses.replace(LLAMA, qkv=("qkv_proj",), gate_up=("gate_up_proj",))

CASES = [
    (LLAMA, Step(2, 1, 9, 2), "each request its own adapter: BGMV"),
    (LLAMA, Step(8, 1, 9, 2), "four requests an adapter: SGMV"),
    (LLAMA, Step(3, 1, 9, 0), "the base"),
    (LLAMA, Step(1, 1, 300, 1), "a long context: attention in parts"),
    (WINDOWS, Step(1, 1, 300, 1), "of which two layers of three see little, and one does not turn"),
    (FUSED, Step(2, 1, 5, 1), "fused modules"),
]


@needs_cpu
@pytest.mark.parametrize(("config", "step", "why"), CASES, ids=[case[2] for case in CASES])
def test_the_count_is_that_of_a_run(config: ModelConfig, step: Step, why: str) -> None:
    model = random_model(config, dtype="float32")
    targets = ("o_proj", *config.gate_up, config.down, "lm_head")
    adapters = [random_adapter(config, i, modules=targets) for i in range(step.adapters)]
    products = 0

    def linear(x: Array, weight: Array, bias: Array | None, p: Precision) -> Array:
        nonlocal products
        products += 1
        return CUDA.linear(x, weight, bias, p)

    ops = dataclasses.replace(CUDA, linear=linear)
    batch, cache, slots = scheduled_step(model, adapters, step, ops, block_size=16)
    with recorded() as noted:
        forward(model, batch, cache, slots, ops, model.precision(Precision(ops.precision, "float32")))
    run = Counter(name for name, _ in noted) + Counter({PRODUCT: products})
    ranks = {module: 3 for module in config.modules() if module[1] in targets}
    assert launches(config, ranks, step, "float32") == run


def test_a_batch_launches_two_kernels_for_each_module_with_lora() -> None:
    """However many adapters there are; the base alone launches none of them."""
    ranks = {module: 16 for module in LLAMA.modules()[1:-1]}
    base, few, many = (launches(LLAMA, ranks, Step(8, 1, 9, n), "bfloat16") for n in (0, 1, 8))
    assert many.total() == few.total() == base.total() + 2 * len(ranks)
    assert base[PRODUCT] == 2 * 7 + 1 and not any("shrink" in name for name in base)


def test_what_the_kernels_do_not_compute_is_named() -> None:
    with pytest.raises(LoracleError, match="ops cuda: rank 300; the kernels take ranks from 1 to 256"):
        launches(LLAMA, {(0, "q_proj"): 300}, Step(1, 1, 9, 1), "float32")
    with pytest.raises(LoracleError, match="ops cuda: head_dim 264; the kernels take up to 256"):
        launches(dataclasses.replace(LLAMA, head_dim=264), {}, Step(1, 1, 9, 0), "float32")


def test_nothing_is_launched_while_it_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even compiled."""
    monkeypatch.setattr("refimpl.cuda.launch.start.runner.load", lambda *_, **__: pytest.fail("a kernel was compiled"))
    assert np.all([number > 0 for number in launches(LLAMA, {}, Step(1, 1, 9, 0), "float32").values()])
