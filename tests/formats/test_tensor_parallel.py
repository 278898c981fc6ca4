"""The ranks' slices together are the whole: exactly, because the numbers are small integers."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loading.folders import BASE, refused
from support.build import as_dtype, random_adapter

from refimpl.config import LAYER_MODULES, ModelConfig
from refimpl.errors import AdapterError
from refimpl.formats.tensor_parallel import interleaved, joined, rank_slices, slices
from refimpl.formats.trtllm import to_pair
from refimpl.formats.trtllm_modules import MODULES, Module
from refimpl.formats.trtllm_pair import Matrices, Row, pack

OF_BASE = [module for module in MODULES.values() if module.widths(BASE)]


@st.composite
def shared(draw: st.DrawFn) -> tuple[ModelConfig, int]:
    """A base whose every width is a multiple of the number of ranks."""
    size = draw(st.sampled_from([1, 2, 3, 4]))
    kv_heads = size * draw(st.integers(1, 2))
    return dataclasses.replace(
        BASE,
        hidden_size=5,
        intermediate_size=size * draw(st.integers(1, 5)),
        num_attention_heads=kv_heads * draw(st.integers(1, 3)),
        num_key_value_heads=kv_heads,
        head_dim=draw(st.sampled_from([2, 4])),
    ), size


@given(shared(), st.sampled_from(OF_BASE), st.integers(1, 5), st.integers(0, 99))
def test_sum_or_concatenation_of_the_ranks_is_the_whole(
    base: tuple[ModelConfig, int], module: Module, r: int, seed: int
) -> None:
    config, size = base
    d_in, d_out = module.widths(config) or (0, 0)
    rng = np.random.default_rng(seed)
    x, A, B = (rng.integers(-9, 9, shape).astype(np.float64) for shape in ((6, d_in), (r, d_in), (d_out, r)))
    of_rank = slices(module, A, B, size, config)
    assert len(of_rank) == size
    inputs = (
        np.split(x, size, axis=1) if module.split == "in" else [x] * size
    )  # a row-parallel layer's x is cut as well
    results = [part @ a.T @ b.T for part, (a, b) in zip(inputs, of_rank, strict=True)]
    assert np.array_equal(joined(module, results, config), x @ A.T @ B.T)
    held = sum(a.size + b.size for a, b in of_rank)
    assert held == (A.size * size + B.size if module.split == "out" else A.size + B.size * size)


def test_a_fused_module_is_interleaved_and_others_are_not() -> None:
    """BASE has 32 rows of q and 16 each of k and v: rank 0 gets 0-15, 32-39 and 48-55."""
    rows = np.arange(64.0)[:, None]
    first, second = (b[:, 0].tolist() for _, b in slices(MODULES[0], np.ones((1, 12)), rows, 2, BASE))
    assert first == [*range(16), *range(32, 40), *range(48, 56)]
    assert second == [*range(16, 32), *range(40, 48), *range(56, 64)]
    up_gate = slices(MODULES[18], np.ones((1, 12)), np.arange(40.0)[:, None], 2, BASE)
    assert up_gate[0][1][:, 0].tolist() == [*range(10), *range(20, 30)]
    assert np.array_equal(interleaved(MODULES[1], rows[:32], 2, BASE), rows[:32])


def test_the_slices_of_a_whole_adapter() -> None:
    """Every module of every layer, through the arrays: what two ranks compute together is what the adapter says."""
    adapter = as_dtype(random_adapter(BASE, 5, modules=LAYER_MODULES), "float32")
    pair, _ = to_pair(adapter, order="peft")
    ranks = rank_slices(pair, 2, BASE)
    assert [len(rows) for rows in ranks] == [14, 14]
    scale = adapter.config.lora_alpha / adapter.config.r
    for rows in zip(*ranks, strict=True):
        row, w = rows[0].row, adapter.lora[(rows[0].row.layer, rows[0].row.module.parts[0])]
        x = np.random.default_rng(row.number).standard_normal((3, w.A.shape[1]))
        inputs = np.split(x, 2, axis=1) if row.module.split == "in" else [x, x]
        results = [part @ m.A.T @ m.B.T for part, m in zip(inputs, rows, strict=True)]
        whole = scale * (x @ w.A.T @ w.B.T)
        assert np.abs(joined(row.module, results, BASE) - whole).max() <= 1e-6 * np.abs(whole).max()
    dora = Matrices(Row(0, MODULES[1], 0, 1), np.ones((1, 12)), np.ones((32, 1)), np.ones(32))
    with refused(AdapterError, "row 0 (attn_q of layer 0, rank 1)", "DoRA"):
        rank_slices(pack([dora], 4), 2, BASE)


def test_a_router_is_on_every_rank_in_full() -> None:
    A, B = np.ones((2, 12)), np.ones((3, 2))
    assert all(a is A and b is B for a, b in slices(MODULES[16], A, B, 4, BASE))
    assert joined(MODULES[16], [A] * 4, BASE) is A


UNSHARED = [
    (2, 3, "attn_k: 16 outputs"),
    (4, 5, "attn_dense: 32 inputs"),
    (0, 32, "attn_qkv: 16 outputs"),
    (1, 0, "by 0"),
]


@pytest.mark.parametrize(("module", "size", "says"), UNSHARED)
def test_widths_that_cannot_be_shared(module: int, size: int, says: str) -> None:
    d_in, d_out = MODULES[module].widths(BASE) or (0, 0)
    with refused(AdapterError, says):
        slices(MODULES[module], np.ones((2, d_in)), np.ones((d_out, 2)), size, BASE)
