"""The kernels over the committed test vectors, as an Ops."""

from pathlib import Path

import pytest

from refimpl.cuda.table import CUDA
from refimpl.oracle.vectors.read import read_set
from refimpl.oracle.vectors.systems import LoadedModels, OpsUnderTest
from refimpl.oracle.vectors.verify import judge

VECTORS = {v.id: v for v in read_set(Path(__file__).parents[1] / "vectors" / "v1")}
STEPS = [name for name, v in VECTORS.items() if v.kind in ("lora", "kv_write", "attention")]
MODELS = ["logits/one_token", "logits/bias", "logits/grown", "sequence/reload_same_shape", "sequence/prefix_nearly"]
CUDA_ON = OpsUnderTest(lambda: CUDA, LoadedModels())


@pytest.mark.parametrize("name", [*STEPS, *MODELS])
def test_float32(name: str) -> None:
    outcome = judge(VECTORS[name], CUDA_ON, "float32")
    assert outcome.verdict == "pass", outcome.why


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["lora/mixed_ranks", "lora/summed", "attention/window", "attention/large_scores"])
def test_half_types(name: str, dtype: str) -> None:
    outcome = judge(VECTORS[name], CUDA_ON, dtype)
    assert outcome.verdict == "pass", outcome.why
