"""The recorder's few calls of torch, by torch itself: the stand-in's torch is written from its documentation."""

import ctypes
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install -e '.[peft]'")

from refimpl.arrays import DTYPES  # noqa: E402
from refimpl.engines import record_tensorrt_llm as recorder  # noqa: E402
from refimpl.oracle.recordings.tensorrt_llm_cases import bits, vector  # noqa: E402


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_bits_become_a_tensor_and_back(dtype: str) -> None:
    x = np.random.default_rng(0).standard_normal((3, 5))
    t = recorder.tensor(bits(x, dtype), dtype)
    assert t.dtype is getattr(torch, dtype)
    assert np.array_equal(t.float().numpy(), bits(x, dtype).view(DTYPES[dtype]).astype(np.float32))
    assert np.array_equal(recorder.bits(t), bits(x, dtype))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_operator_gets_what_it_asks_for(dtype: str) -> None:
    """Types, shapes, and addresses under which A and B lie, row by row."""
    v = vector("v", dtype, 8, [[2, 4]], [(0, 3, 1), (0, 2, -1), (1, 1, 0)])
    rng = np.random.default_rng(1)
    arrays = {"v.x": bits(rng.standard_normal((6, 8)), dtype)}
    for i, r in enumerate([2, 4]):
        arrays[f"v.A.0.{i}"] = bits(rng.standard_normal((r, 8)), dtype)
        arrays[f"v.B.0.{i}"] = bits(rng.standard_normal((64, r)), dtype)

    def at(address: int, shape: tuple[int, ...]) -> np.ndarray:
        n = int(np.prod(shape))
        return np.ctypeslib.as_array((ctypes.c_uint16 * n).from_address(address)).reshape(shape)

    def op(x, types, ranks, pointers, lengths, d_outs, *rest):  # type: ignore[no-untyped-def]
        assert x.dtype is getattr(torch, dtype) and x.shape == (6, 8)
        assert (types.tolist(), lengths.tolist()) == ([0, 0, 1], [3, 2, 1])
        assert {t.dtype for t in (types, lengths, *ranks)} == {torch.int32} and pointers[0].dtype is torch.int64
        assert ranks[0].tolist() == [4, 0, 2] and pointers[0].shape == (3, 3)
        assert pointers[0][1].tolist() == [0, 0, 0] and pointers[0][:, 2].tolist() == [0, 0, 0]
        for i, adapter, r in ((0, 1, 4), (2, 0, 2)):
            assert np.array_equal(at(int(pointers[0][i, 0]), (r, 8)), arrays[f"v.A.0.{adapter}"])
            assert np.array_equal(at(int(pointers[0][i, 1]), (64, r)), arrays[f"v.B.0.{adapter}"])
        assert d_outs == [64] and rest == (False, True, 4, 0, True)
        return [x.new_zeros(6, 64)]

    out = recorder.kernel(op, v, arrays, device="cpu")
    assert out[0].shape == (6, 64) and out[0].dtype == np.uint16 and not out[0].any()


def test_logits_of_a_half_type_come_as_numbers() -> None:
    logits = torch.randn(4, 7, dtype=torch.bfloat16)
    completion = SimpleNamespace(token_ids=[3, 2], generation_logits=logits[2:].float(), logprobs=[])
    answer = recorder.answer_of(SimpleNamespace(outputs=[completion], context_logits=logits[:3]))
    assert answer["dtypes"] == {"context": "torch.bfloat16", "generation": "torch.float32"}
    assert np.array_equal(answer["rows"]["context"].astype(np.float32), logits[:3].float().numpy())
    assert answer["token_ids"] == [3, 2]
