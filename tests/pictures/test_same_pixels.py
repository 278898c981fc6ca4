"""The same seed is the same picture: in float32 and float64, with the definition, and on another machine.

NumPy's PCG64 gives the same noise everywhere. What differs is rounding: in which order a product is summed. A number
that lies at the edge between two of a colour's 256 steps may then fall on the other side, and that is all: no colour is
off by more than ONE_STEP, and no more than SHARE of them are.
"""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from support.pictures import SMALL, random_picture_adapter, random_picture_model

from refimpl import (
    NUMPY,
    REFERENCE,
    PictureRequest,
    Precision,
    draw,
    load_model,
    load_picture_adapter,
    load_picture_model,
    read_captions,
)
from refimpl.pictures.pixels import from_patches, to_latent, to_patches, to_pixels
from refimpl.pictures.sampler import LEAST_SIGMA, noise, sigmas, velocity
from refimpl.pictures.weights import Flow

ONE_STEP, SHARE = 1, 0.005

# What the machine on which this was written draws: `python tests/pictures/test_same_pixels.py` writes it again, which
# is right only after the embedded models have been trained again.
EXPECTED = Path(__file__).with_name("expected_pictures.npz")
PROMPT = (
    "Rain drums on the haunted bakery. Here the traveller meets Dumpling, a nervous tax sorcerer, "
    "and seeks a royal moustache.\n"
)
STYLES = {"base": {}, "ink": {"ink": 1.0}, "sum": {"blueprint": 0.6, "night": 0.4}}


def embedded_pictures() -> dict[str, np.ndarray]:
    """One scene in several styles by the embedded models, in one batch."""
    model, [caption] = load_picture_model("tiny"), read_captions(load_model("tiny"), [PROMPT])
    requests = [
        PictureRequest(caption, [(load_picture_adapter(name, model.config), x) for name, x in sums.items()], seed)
        for seed, sums in enumerate(STYLES.values())
    ]
    return dict(zip(STYLES, draw(model, requests), strict=True))


def test_the_embedded_models_draw_the_pictures_of_another_machine() -> None:
    expected, pictures = np.load(EXPECTED), embedded_pictures()
    assert set(expected) == pictures.keys()
    for name, picture in pictures.items():
        off = np.abs(picture.astype(int) - expected[name])
        assert off.max() <= ONE_STEP and (off > 0).mean() <= SHARE, name
        assert picture.std() > 30  # it is no grey square


def test_noise_is_a_function_of_the_seed_and_the_shape() -> None:
    """Numbers of the machine on which this was written: another that disagrees draws other pictures."""
    first = noise(7, (27, 16, 16))
    assert first.dtype == np.float32
    np.testing.assert_allclose(
        first.ravel()[[0, 1, 2, 3456, 6911]], EXPECTED_NOISE, rtol=1e-6, err_msg="NumPy's stream has changed"
    )
    assert not (noise(8, (27, 16, 16)) == first).any()
    assert abs(first.mean()) < 0.05 and abs(first.std() - 1) < 0.05


EXPECTED_NOISE = [0.00123015337, 0.298745543, -0.274137855, -0.455907762, -0.497729629]


def test_sigmas_fall_from_noise_to_picture() -> None:
    np.testing.assert_allclose(sigmas(4), [1, 0.75, 0.5, 0.25, 0])
    np.testing.assert_allclose(sigmas(2, shift=3.0), [1, 0.75, 0])  # 3 * 0.5 / (1 + 2 * 0.5)
    assert sigmas(12).dtype == np.float32


def test_the_velocity_of_a_predicted_picture_leads_to_it() -> None:
    """One step from sigma to 0 along it is the picture; near 0 it is no longer divided."""
    rng = np.random.default_rng(0)
    picture, x = rng.normal(size=(2, 5, 3))
    sigma = np.array([1.0, 0.5, 0.25, LEAST_SIGMA, LEAST_SIGMA / 2])[:, None]
    landed = x + sigma * velocity(picture, x, sigma, Flow("sample"))
    np.testing.assert_allclose(landed[:4], picture[:4])
    np.testing.assert_allclose(landed[4], (picture[4] + x[4]) / 2)
    assert velocity(picture, x, sigma, Flow("velocity")) is picture


def test_a_known_flow_is_followed_to_its_end() -> None:
    """Where the model says the truth, picture - noise, any number of steps ends at the picture."""
    rng = np.random.default_rng(1)
    picture, start = rng.normal(size=(2, 4, 3))
    for steps in (1, 3, 12):
        x, levels = start, sigmas(steps, 2.0).astype(np.float64)
        for sigma, following in pairwise(levels):
            x = x + (sigma - following) * velocity(picture - start, x, np.full((4, 1), sigma), Flow())
        np.testing.assert_allclose(x, picture, atol=1e-12)


def test_pixels_and_latents_are_the_same_numbers() -> None:
    pixels = np.arange(6 * 12 * 3, dtype=np.uint8).reshape(6, 12, 3)
    latent = to_latent(pixels, 3)
    assert latent.shape == (27, 2, 4)
    assert latent[(1 * 3 + 2) * 3 + 1, 1, 3] == np.float32(pixels[3 + 1, 9 + 2, 1]) / np.float32(127.5) - 1
    np.testing.assert_array_equal(to_pixels(latent), pixels)
    patches = to_patches(latent, 2)
    assert patches.shape == (2, 108) and patches[1, (0 * 2 + 1) * 27 + 5] == latent[5, 0, 3]
    np.testing.assert_array_equal(from_patches(patches, 2, (1, 2)), latent)
    np.testing.assert_array_equal(to_pixels(np.full((3, 1, 1), 9.0)), [[[255] * 3]])  # clipped


@pytest.mark.parametrize("flow", [Flow(), Flow("sample")], ids=["velocity", "sample"])
def test_rounding_moves_few_pixels_by_one_step(flow: Flow) -> None:
    model, style = random_picture_model(flow=flow), random_picture_adapter()
    rng = np.random.default_rng(4)
    requests = [
        PictureRequest(rng.normal(size=(n, SMALL.cap_feat_dim)), adapter, n, 2, 3, 4)
        for n, adapter in ((3, style), (40, None), (32, [(style, 0.5)]))
    ]
    exact = draw(model, requests)
    for ops, precision in ((NUMPY, Precision("model", "float32")), (REFERENCE, Precision("model", "float64"))):
        pictures = draw(model, requests, ops, precision)
        off = np.abs(np.stack(pictures).astype(int) - np.stack(exact))
        assert off.max() <= ONE_STEP and (off > 0).mean() <= SHARE
    assert (np.stack(exact) % 255 != 0).mean() > 0.3  # not all of it is clipped


if __name__ == "__main__":
    np.savez_compressed(EXPECTED, **embedded_pictures())
