"""What a picture is depends on nothing but its request, and its adapters are W + sum(weight * scale * B A)."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from support.compare import assert_differ, assert_equal_to_rounding, assert_same_bits
from support.pictures import (
    SMALL,
    PictureCase,
    merged,
    picture_cases,
    random_picture_adapter,
    random_picture_model,
)
from support.tables import every_table

from refimpl import NUMPY, REFERENCE, Ops, PictureRequest, draw
from refimpl.pictures import draw_latents
from refimpl.pictures.weights import Flow

TOLERANCE = 1e-10  # relative, in float64: a few steps of a few layers


def assert_same_latents(actual: list[np.ndarray], expected: list[np.ndarray]) -> None:
    """Each of them, to rounding, against the largest number of its picture."""
    for got, latent in zip(actual, expected, strict=True):
        assert_equal_to_rounding(got.reshape(1, -1), latent.reshape(1, -1), TOLERANCE)


@settings(max_examples=5)
@given(case=picture_cases())
def test_the_fast_forms_are_the_definition(case: PictureCase) -> None:
    model, _, requests = case
    assert_same_latents(draw_latents(model, requests, NUMPY), draw_latents(model, requests, REFERENCE))


@settings(max_examples=12)
@given(case=picture_cases())
def test_a_batch_equals_each_picture_alone_with_its_adapters_merged(case: PictureCase) -> None:
    model, _, requests = case
    together = draw_latents(model, requests)
    for latent, request in zip(together, requests, strict=True):
        assert_same_latents([latent], draw_latents(model, [request]))
        dense = merged(model, request.adapters)
        assert_same_latents([latent], draw_latents(dense, [replace(request, adapter=None)]))


@settings(max_examples=10)
@given(case=picture_cases())
def test_pictures_without_an_adapter_do_not_feel_those_with_one(case: PictureCase) -> None:
    model, _, requests = case
    mixed = draw_latents(model, requests)
    plain = draw_latents(model, [replace(request, adapter=None) for request in requests])
    for request, latent, expected in zip(requests, mixed, plain, strict=True):
        if not request.adapters:
            assert_same_bits(latent, expected)


@settings(max_examples=10)
@given(case=picture_cases())
def test_every_adapter_changes_its_picture(case: PictureCase) -> None:
    """Asked besides: pictures that are all alike could not tell adapters apart."""
    model, pool, requests = case
    request = replace(max(requests, key=lambda r: r.height * r.width), adapter=None)
    base, *styled = draw_latents(model, [request, *(replace(request, adapter=adapter) for adapter in pool)])
    for latent in styled:
        assert_differ(latent, base)


@every_table
def test_a_sum_of_styles_is_linear_in_the_deltas(ops: Ops) -> None:
    """On one linear layer behind everything, the deltas themselves add up, whatever the weights."""
    model = random_picture_model()
    first, second = (random_picture_adapter(seed=i, r=2 + i, targets=["linear"]) for i in (1, 2))
    request = PictureRequest(np.random.default_rng(0).normal(size=(3, SMALL.cap_feat_dim)), None, 5, 1, 3, 2)
    base, one, other, both = draw_latents(
        model,
        [request, *(replace(request, adapter=x) for x in (first, second, [(first, 0.7), (second, -1.3)]))],
        ops,
    )
    assert_differ(one, base)
    assert_differ(other, base)
    assert_same_latents([both - base], [0.7 * (one - base) - 1.3 * (other - base)])


@every_table
def test_the_smallest_batches(ops: Ops) -> None:
    model = random_picture_model()
    assert draw(model, [], ops) == []
    adapter = random_picture_adapter(r=1)
    [picture] = draw(model, [PictureRequest(np.ones((1, SMALL.cap_feat_dim)), adapter, 0, 1, 1, 1)], ops)
    assert picture.shape == (1, 1, 3) and picture.dtype == np.uint8


def test_pictures_of_one_batch_may_take_different_numbers_of_steps() -> None:
    model, adapter = random_picture_model(flow=Flow("sample")), random_picture_adapter()
    caption = np.random.default_rng(1).normal(size=(4, SMALL.cap_feat_dim))
    requests = [PictureRequest(caption, adapter, i, steps, 2, 3) for i, steps in enumerate((3, 1, 5, 3))]
    for latent, request in zip(draw_latents(model, requests), requests, strict=True):
        assert_same_latents([latent], draw_latents(model, [request]))


@pytest.mark.parametrize("step", ["linear", "lora_delta", "rms_norm", "rope", "full_attention", "mlp_activation"])
def test_every_step_goes_through_the_table(step: str) -> None:
    """A backend whose step does half of what it should draws another picture: nothing goes past the seam."""

    def halved(*args: object) -> object:
        if step == "lora_delta":
            y, before = args[0], args[0].copy()  # type: ignore[attr-defined]
            getattr(NUMPY, step)(*args)
            y += (before - y) / 2  # type: ignore[operator]
            return None
        return getattr(NUMPY, step)(*args) / 2

    model, adapter = random_picture_model(), random_picture_adapter()
    request = PictureRequest(np.random.default_rng(2).normal(size=(4, SMALL.cap_feat_dim)), adapter, 0, 1, 3, 3)
    [right], [wrong] = draw_latents(model, [request]), draw_latents(model, [request], replace(NUMPY, **{step: halved}))
    assert_differ(wrong, right)
