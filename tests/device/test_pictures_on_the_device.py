"""What is drawn on a device is what is drawn on the host: nothing of one is used as if it lay on the other."""

import numpy as np
import pytest
from support.device_testbed import map_arrays
from support.pictures import SMALL, random_picture_adapter, random_picture_model

from refimpl import PictureModel, PictureRequest
from refimpl.arrays import DTYPES, to_device
from refimpl.backends import BACKENDS
from refimpl.pictures import draw_latents
from refimpl.pictures.weights import Flow

pytestmark = pytest.mark.usefixtures("cupy")
TOLERANCE = {"float64": 1e-12, "float32": 1e-4, "float16": 5e-2}


def model_of(dtype: str, device: str = "cpu") -> PictureModel:
    """The synthetic model in a type, on the host or on the device."""
    model = random_picture_model(flow=Flow("sample"))
    linears, vectors = (
        map_arrays(part, lambda x: to_device(x.astype(DTYPES[dtype]), device))
        for part in (dict(model.linears), dict(model.vectors))
    )
    return PictureModel(model.config, linears, vectors, model.flow, dtype, device)


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [("numpy", dtype) for dtype in TOLERANCE] + [("reference", "float64")],
)
def test_latents(backend: str, dtype: str) -> None:
    rng, style, other = np.random.default_rng(6), random_picture_adapter(), random_picture_adapter(seed=1, r=1)
    requests = [
        PictureRequest(rng.normal(size=(n, SMALL.cap_feat_dim)), adapter, n, steps, 2, 1)
        for n, adapter, steps in ((3, style, 2), (33, None, 1), (32, [(style, 0.5), (other, -1.0)], 2))
    ]
    expected = draw_latents(model_of(dtype), requests, BACKENDS[backend])
    actual = draw_latents(model_of(dtype, "cuda"), requests, BACKENDS[backend])
    for latent, on_host in zip(actual, expected, strict=True):
        assert isinstance(latent, np.ndarray) and latent.dtype == on_host.dtype
        np.testing.assert_allclose(latent, on_host, rtol=0, atol=TOLERANCE[dtype] * np.abs(on_host).max())
