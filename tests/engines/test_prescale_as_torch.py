"""TensorRT-LLM's two loaders scale B with torch; the expressions they use, run by torch, and our prescale.py."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.arrays import DTYPES
from refimpl.tensorrt_llm.prescale import prescale

torch = pytest.importorskip("torch", reason="needs torch: pip install -e '.[test,peft]'")

TYPES = ("float32", "float16", "bfloat16")


@pytest.mark.parametrize("checkpoint", TYPES)
@pytest.mark.parametrize("dtype", TYPES)
@given(
    seed=st.integers(0, 999), alpha=st.sampled_from([16, 7, 1.1, -3.5]), r=st.integers(1, 64), use_rslora=st.booleans()
)
def test_prescaling_is_what_torch_computes(
    dtype: str, checkpoint: str, seed: int, alpha: float, r: int, use_rslora: bool
) -> None:
    B = (np.random.default_rng(seed).standard_normal(999) * 10.0 ** (seed % 7 - 3)).astype(np.float32)
    B = B.astype(DTYPES[checkpoint])
    t = torch.tensor(B.astype(np.float32)).to(getattr(torch, checkpoint))
    scale = alpha / np.sqrt(r) if use_rslora else alpha / r
    to = getattr(torch, dtype)
    for order, theirs in (("convert", (t * scale).to(to)), ("manager", t.to(to) * scale)):
        ours = prescale(B, float(scale), dtype, order)
        assert ours.dtype == DTYPES[dtype]
        np.testing.assert_array_equal(ours.astype(np.float32), theirs.float().numpy())
