"""The page of cost: its formulas against the counted work of a real forward pass, and against a pencil.

tests/loading/test_families.py counts every family; here are the adapters' shapes, the three ways, and the devices."""

import dataclasses
import itertools

import numpy as np
import pytest
from support.build import random_model
from support.counting import counted

from refimpl.adapter import Adapter, PeftConfig
from refimpl.adapter_slots import AdapterSlots, bind_adapter
from refimpl.arrays import Precision
from refimpl.bench import cost, devices
from refimpl.bench.cost import WAYS, Step, Work
from refimpl.bench.devices import GPUS
from refimpl.config import LAYER_MODULES, LayerKind, ModelConfig
from refimpl.kv_cache import KVCache
from refimpl.synthetic.adapters import random_adapter
from refimpl.synthetic.models import unchanged

SMALL = ModelConfig(
    11, 12, 20, 3, 4, 2, 6, attention_bias=True, layers=(LayerKind(window=3), LayerKind(), LayerKind(window=3))
)
LLAMA_8B = ModelConfig(128256, 4096, 14336, 32, 32, 8, 128)
RANK_16 = {module: 16 for module in LLAMA_8B.modules() if module[1] in LAYER_MODULES}
MODEL = random_model(SMALL)


def adapters_of(count: int, r: int = 3, modules: tuple[str, ...] = LAYER_MODULES, **ranks: int) -> list[Adapter]:
    """Adapters of one shape; ranks: modules whose rank is another."""
    peft = PeftConfig(r, 7.0, target_modules=modules, rank_pattern=ranks)
    return [random_adapter(SMALL, peft, f"adapter-{i}", np.random.default_rng(i), snap=unchanged) for i in range(count)]


def ranks_of(adapter: Adapter) -> dict[tuple[int, str], int]:
    """The ranks that its tensors have."""
    return {module: len(tensors.A) for module, tensors in adapter.lora.items()}


SHAPES = {
    "all linear layers": {},
    "rank 1 on q and v": {"r": 1, "modules": ("q_proj", "v_proj")},
    "a rank larger than the layer": {"r": 40, "modules": ("k_proj", "down_proj")},
    "ranks that differ": {"r": 2, "q_proj": 5, "down_proj": 1},
    "the embedding and the head": {"r": 4, "modules": ("embed_tokens", "lm_head", "o_proj")},
}
STEPS = {
    "decode": Step(5, 1, 9, 2),
    "prefill": Step(4, 6, 6, 2),
    "a chunk": Step(3, 4, 9, 2),
    "one token": Step(1, 1, 1, 1),
    "all different": Step(4, 1, 2, 4),
    "the base": Step(3, 2, 5, 0),
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_formulas_are_what_a_forward_pass_does(shape: dict, step: Step) -> None:
    adapters = adapters_of(max(1, step.adapters), **shape)
    ranks = ranks_of(adapters[0])
    assert cost.work(SMALL, ranks, step, 8) == counted(MODEL, adapters[: step.adapters], step)


def test_the_ways_are_the_sums_of_the_passes_that_they_name() -> None:
    """Seven requests of three adapters: three, two and two."""
    step, adapters = Step(7, 1, 6, 3), adapters_of(3)
    ranks = ranks_of(adapters[0])
    shares = (3, 2, 2)
    one_by_one = (counted(MODEL, [a], Step(n, 1, 6, 1)) for a, n in zip(adapters, shares, strict=True))
    merged = (counted(MODEL, [], Step(n, 1, 6, 0)) for n in shares)
    assert cost.total(SMALL, ranks, "one after another", step, 8) == sum(one_by_one, Work())
    assert cost.total(SMALL, ranks, "merged", step, 8) == sum(merged, Work())
    assert cost.total(SMALL, ranks, "batched", step, 8) == counted(MODEL, adapters, step)


def test_more_adapters_than_requests_make_no_empty_pass() -> None:
    assert cost.passes("merged", Step(2, 1, 4, 3)) == [(2, Step(1, 1, 4, 0))]


@pytest.mark.parametrize("tied", [False, True])
def test_the_memory_is_that_of_the_arrays(tied: bool) -> None:
    config = dataclasses.replace(SMALL, tie_word_embeddings=tied)
    model, p = random_model(config), Precision("model", "float64")
    adapters, cache, slots = adapters_of(3, r=5, q_proj=2), KVCache(config, 4, 8, p), AdapterSlots(model, p)
    for slot, adapter in enumerate(adapters):
        slots.put(slot, bind_adapter(adapter, config))
    ranks, keys_and_values = ranks_of(adapters[0]), cache.k.nbytes + cache.v.nbytes
    together = model.nbytes + sum(slots.nbytes(slot) for slot in range(3)) + keys_and_values
    for way in ("batched", "one after another"):
        assert cost.memory(config, ranks, way, 3, 32, 8) == together
    assert cost.memory(config, ranks, "merged", 3, 32, 8) == 3 * model.nbytes + keys_and_values


def test_llama_3_8b_has_the_numbers_that_everybody_knows() -> None:
    """8,030,261,248 parameters (its model card: 8.03B); 128 KiB of keys and values a token in a half type."""
    assert cost.base_parameters(LLAMA_8B) == 8_030_261_248
    assert cost.adapter_parameters(LLAMA_8B, RANK_16) == 41_943_040
    assert 2 * cost.kv_parameters(LLAMA_8B) == 128 * 1024


def test_pairs_are_those_that_a_loop_finds() -> None:
    for context, window in itertools.product(range(1, 8), range(1, 9)):
        for tokens in range(1, context + 1):
            pairs = sum(min(position + 1, window) for position in range(context - tokens, context))
            assert cost.visible(tokens, context, window) == pairs


# ---- time -----------------------------------------------------------------------------------------------------------


def test_a_pass_takes_as_long_as_its_bytes_or_its_flops() -> None:
    device = cost.Device("pencil", 10**9, 100.0, {"float16": 1000.0}, "made up")
    assert device.seconds(Work(base_bytes=150, kv_bytes=50, base_flops=10), "float16") == 2
    assert device.seconds(Work(base_bytes=100, base_flops=2500, lora_flops=500), "float16") == 3


@pytest.mark.parametrize("gpu", GPUS)
def test_in_decode_a_batch_reads_the_base_once(gpu: str) -> None:
    """With one adapter nothing is won; with two a pass of the base is saved."""
    device = GPUS[gpu]
    for other in WAYS[:2]:
        assert cost.batched_from(LLAMA_8B, RANK_16, Step(16, 1, 512, 16), device, "float16", 2, other) == 2
    assert cost.batched_from(LLAMA_8B, RANK_16, Step(1, 1, 512, 1), device, "float16", 2, "merged") is None


@pytest.mark.parametrize(("rank", "expected"), [(16, 2), (2000, 4), (3000, None)])
def test_adapters_as_large_as_the_base_are_better_merged(rank: int, expected: int | None) -> None:
    """With one token a request, bytes decide: D merged copies W are more than W + D A from D = W / (W - A) on."""
    ranks = dict.fromkeys(RANK_16, rank)
    W = cost.base_work(LLAMA_8B, Step(1, 1, 1, 0), 2).base_bytes
    A = 2 * cost.adapter_parameters(LLAMA_8B, ranks)
    assert next((d for d in range(1, 65) if d * (W - A) > W), None) == expected
    step = Step(64, 1, 1, 64)
    assert cost.batched_from(LLAMA_8B, ranks, step, GPUS["h200"], "float16", 2, "merged") == expected


@pytest.mark.parametrize("gpu", GPUS)
def test_of_a_long_prompt_a_merged_copy_is_no_slower(gpu: str) -> None:
    device = GPUS[gpu]
    n = cost.merged_from(LLAMA_8B, RANK_16, device, "bfloat16", 2)
    assert 80 < n < 600

    def seconds(way: str, tokens: int) -> float:
        step = Step(32, tokens, tokens, 32)
        return cost.seconds(LLAMA_8B, RANK_16, way, step, device, "bfloat16", 2)

    assert seconds("merged", n) <= seconds("batched", n)
    assert seconds("batched", n - 1) < seconds("merged", n - 1)


def test_what_fits_fits_and_one_more_does_not() -> None:
    for way in ("merged", "batched"):
        count = cost.that_fit(LLAMA_8B, RANK_16, way, GPUS["h100"], 32_768, 2)
        assert cost.memory(LLAMA_8B, RANK_16, way, count, 32_768, 2) <= GPUS["h100"].memory
        assert cost.memory(LLAMA_8B, RANK_16, way, count + 1, 32_768, 2) > GPUS["h100"].memory
    assert cost.that_fit(LLAMA_8B, RANK_16, "batched", GPUS["l4"], 131_072, 2) == 0
    n = cost.as_large_as_the_base(LLAMA_8B, RANK_16)
    assert (n - 1) * 41_943_040 < 8_030_261_248 <= n * 41_943_040


# ---- devices --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_a_data_sheet_is_named_and_plausible(gpu: cost.Device) -> None:
    assert gpu.source.startswith("NVIDIA ") and gpu.peaks["float16"] == gpu.peaks["bfloat16"] > gpu.peaks["float32"]
    assert 2e11 < gpu.bandwidth < 1e13 and 1e10 < gpu.memory < 1e12


def test_rates_are_bytes_and_flops_over_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock on which each run takes two seconds, the first, which warms up, less."""
    ticks = iter([0, 1] + [2 * i for i in range(2 * devices.REPEATS)])
    monkeypatch.setattr(devices.time, "perf_counter", lambda: next(ticks))
    assert devices.copy_rate(np, 4000) == 2 * 4000 / 2
    ticks = iter([0, 1] + [2 * i for i in range(2 * devices.REPEATS)])
    assert devices.gemm_rate(np, "float32", 10) == 2 * 10**3 / 2


def test_this_machine_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "GEMM_SIZE", 128)
    device = devices.measured_cpu("bfloat16")
    assert device.name == "this" and set(device.peaks) == {"bfloat16"} and "measured" in device.source
    assert device.bandwidth > 1e7 and device.peaks["bfloat16"] > 1e6 and device.memory > 1e8
