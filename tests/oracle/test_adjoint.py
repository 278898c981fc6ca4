"""The adjoint is the derivative: also through an adapter's own head, with more tokens than the base's."""

from dataclasses import replace

import numpy as np
import pytest
from support.testbed import small_testbed

from refimpl import Request, logits
from refimpl.config import LM_HEAD
from refimpl.oracle.causes.adjoint import _back
from refimpl.weights import Layer, Linear, Model


def with_bias(model: Model, module: str, bias: np.ndarray) -> Model:
    """The model with this bias added by a module of its first layer."""
    first = model.layers[0]
    linears = {**first.linears, module: Linear(first.linears[module].weight, bias)}
    return replace(model, layers=(Layer(first.norms, linears, first.vectors), *model.layers[1:]))


@pytest.mark.parametrize("kind", ["plain", "own head", "grown vocabulary"])
def test_what_comes_back_is_the_derivative(kind: str) -> None:
    testbed = small_testbed(adapters=8)
    own = {key: len(adapter.replaced.get(LM_HEAD, ())) for key, adapter in testbed.wide.items()}
    rows = testbed.exact.config.vocab_size
    of_kind = {"plain": lambda n: n == 0, "own head": lambda n: n == rows, "grown vocabulary": lambda n: n > rows}[kind]
    adapter = next(testbed.wide[key] for key, n in own.items() if of_kind(n))
    request, rng = Request([5, 3, 8, 1], adapter), np.random.default_rng(0)
    plain = logits(testbed.exact, [request])[0]
    weights = rng.standard_normal(plain.shape)
    _, gradients = _back(testbed.exact, request, weights[None])
    step = rng.standard_normal(testbed.exact.config.shape("o_proj")[0])
    moved = [logits(with_bias(testbed.exact, "o_proj", h * step), [request])[0] for h in (1e-5, -1e-5)]
    slope = np.sum(weights * (moved[0] - moved[1])) / 2e-5
    np.testing.assert_allclose(np.sum(gradients[0, "o_proj"][:, 0] @ step), slope, rtol=1e-6)
