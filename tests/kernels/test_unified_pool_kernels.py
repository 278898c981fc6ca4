"""The kernels as a backend, over adapters that lie in the pages of a unified pool."""

from functools import partial

import pytest
from cases import needs_cpu
from support.build import as_dtype, random_adapter, random_model

from refimpl import Engine, Request
from refimpl.config import ModelConfig, Moe
from refimpl.cuda.table import CUDA
from refimpl.unified_pool import UnifiedPool

pytestmark = needs_cpu


@pytest.mark.parametrize(
    ("dtype", "moe"),
    [("float32", None), ("float16", None), ("float32", Moe(3, 2, 8))],
    ids=["float32", "float16", "experts"],
)
def test_the_backend_reads_the_pool(dtype: str, moe: Moe | None) -> None:
    """One engine with a unified pool and one with separate ones, both on the kernels: every logit has the same bits,
    while adapters come and go, in one slot and in another."""
    config = ModelConfig(11, 20, 24, 2, 4, 2, 8, max_position_embeddings=64, moe=moe)
    model = random_model(config, 3, dtype)
    modules = (*config.layer_modules, "embed_tokens", "lm_head")
    adapters = [
        as_dtype(random_adapter(config, seed, r, modules=modules, lora_bias=seed == 1), dtype)
        for seed, r in enumerate((1, 3, 8, 17))
    ]
    requests = [Request([1, 2, 3, seed], adapters[seed % 4], stop_ids=()) for seed in range(6)]
    requests.append(Request([5, 6], [(adapters[0], 0.5), (adapters[2], -2.0)], stop_ids=()))
    rows = []
    for pool in (None, partial(UnifiedPool, patience=0)):  # in the order of arrival, both
        engine = Engine(
            model, CUDA, num_blocks=200, block_size=2, max_running=2, max_adapters=2, prefix_caching=False, pool=pool
        )
        for request in requests:
            engine.add(request, 2)
        rows.append([])
        while engine.busy:
            engine.step()
            rows[-1] += [(step.request_id, step.logits.tobytes()) for step in engine.last_step]
    assert sorted(rows[0]) == sorted(rows[1])
