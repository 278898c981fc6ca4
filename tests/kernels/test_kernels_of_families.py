"""Each family's forward pass through the kernels, against float64: what a base has beside a Llama's steps.

As in test_model.py the noise is measured: how far NumPy is off from the truth in the same type."""

from pathlib import Path

import numpy as np
import pytest
from cases import needs_cpu, scheduled
from support import build
from support.family_testbed import family_testbed

from refimpl import Request, logits
from refimpl.adapter import Adapter
from refimpl.arrays import Precision
from refimpl.cuda.table import CUDA
from refimpl.errors import LoracleError
from refimpl.families.small import RULES
from refimpl.ops import NUMPY
from refimpl.oracle.cases.family_base import family_base

pytestmark = needs_cpu

TIMES_THE_NOISE = 8  # as in test_model.py


def batch(model_type: str, dtype: str) -> list[Request]:
    """The base, two adapters on all modules, and the first of them again; prompts longer than any small window."""
    adapters = {name: build.as_dtype(x, dtype) for name, x in family_testbed(model_type).adapters.items()}
    rng, vocab = np.random.default_rng(5), family_testbed(model_type).model.config.vocab_size
    names: list[Adapter | None] = [None, adapters["made-0"], adapters["made-1"], adapters["made-0"]]
    return [Request(rng.integers(10, vocab, n).tolist(), name) for n, name in zip((9, 12, 5, 1), names, strict=True)]


@pytest.mark.parametrize("model_type", RULES)
def test_float32_is_as_near_to_the_truth_as_numpy(model_type: str) -> None:
    bed = family_testbed(model_type)
    truth = np.concatenate(logits(bed.exact, batch(model_type, "float64"), NUMPY, Precision("model", "float64")))
    requests, p = batch(model_type, "float32"), Precision("model", "float32")
    right = np.concatenate(logits(bed.model, requests, NUMPY, p))
    with scheduled("reverse"):
        found = np.concatenate(logits(bed.model, requests, CUDA, p))
    noise = max(np.abs(right - truth).max(), 4 * 2.0**-24 * np.abs(truth).max())
    assert np.abs(found - truth).max() <= TIMES_THE_NOISE * noise


@pytest.mark.parametrize("model_type", RULES)
def test_bfloat16_rounds_where_the_family_rounds(model_type: str, tmp_path: Path) -> None:
    """All but a few logits have the bits that NumPy gives: those lay on the edge between two neighbours."""
    model, requests = family_base(model_type, 3, "bfloat16", tmp_path / "base"), batch(model_type, "bfloat16")
    p = model.precision(Precision("transformers", "bfloat16"))
    right, found = (np.concatenate(logits(model, requests, ops, p)) for ops in (NUMPY, CUDA))
    assert (found == right).mean() >= 0.9
    np.testing.assert_allclose(found.astype(np.float64), right.astype(np.float64), rtol=0, atol=0.125)


def test_heads_that_are_too_wide_are_refused_by_name() -> None:
    model = build.random_model(build.ModelConfig(23, 10, 13, 1, 2, 1, 264, max_position_embeddings=64), 0, "float32")
    with pytest.raises(LoracleError, match="ops cuda: head_dim 264; the kernels take up to 256"):
        logits(model, [Request([1, 2, 3], None)], CUDA)
