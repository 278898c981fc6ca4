"""The picture model against diffusers and PEFT, live, in float64: base, adapters of every module, and each file format.

diffusers computes in float32 here and there whatever the model's type is (rotations, times); `in_float64` widens those.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hugging_face import torch
from support.compare import assert_differ

WHY = "needs diffusers: pip install 'diffusers==0.42.*'"
diffusers = pytest.importorskip("diffusers", "0.42", reason=WHY, exc_type=ImportError)

from diffusers import ZImagePipeline, ZImageTransformer2DModel  # noqa: E402
from peft import LoraConfig  # noqa: E402
from peft.utils import get_peft_model_state_dict  # noqa: E402

from refimpl import (  # noqa: E402
    PictureModel,
    Precision,
    load_picture_adapter,
    load_picture_model,
    save_picture_adapter,
)
from refimpl.adapter import Adapter  # noqa: E402
from refimpl.adapter_cache import AdapterCache  # noqa: E402
from refimpl.ops import NUMPY  # noqa: E402
from refimpl.pictures.batch import make_picture_batch  # noqa: E402
from refimpl.pictures.model import forward  # noqa: E402
from refimpl.pictures.pixels import from_patches, to_patches  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # of three libraries, about each other
TOLERANCE = 1e-9
P64 = Precision("model", "float64")

SMALL = dict(
    all_patch_size=(2,), all_f_patch_size=(1,), in_channels=5, dim=48, n_layers=2, n_refiner_layers=1, n_heads=4,
    n_kv_heads=4, cap_feat_dim=20, axes_dims=[4, 4, 4], axes_lens=[128, 16, 16],
)  # fmt: skip
rng = np.random.default_rng(0)
IMAGES = [rng.normal(size=shape) for shape in ((5, 16, 16), (5, 8, 12), (5, 2, 2), (5, 16, 16))]
CAPTIONS = [rng.normal(size=(length, 20)) * 3 for length in (24, 27, 33, 32)]
TIMES = np.array([0.0, 0.3, 0.71, 0.98])


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    """Where diffusers names float32 it gets float64."""
    names = {"float32": torch.float64, "complex64": torch.complex128}
    before = {name: getattr(torch, name) for name in names}
    to_float = torch.Tensor.float
    for name, wide in names.items():
        setattr(torch, name, wide)
    torch.Tensor.float = torch.Tensor.double
    try:
        yield
    finally:
        torch.Tensor.float = to_float
        for name, narrow in before.items():
            setattr(torch, name, narrow)


def random_transformer(seed: int = 0, **changes: object) -> ZImageTransformer2DModel:
    """A transformer in float64 whose every parameter matters."""
    generator = torch.Generator().manual_seed(seed)
    model = ZImageTransformer2DModel(**SMALL | changes).double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            drawn_numbers = torch.randn(weight.shape, generator=generator, dtype=torch.float64) * 0.3
            weight.copy_(drawn_numbers / max(weight.shape) ** 0.5 if weight.ndim > 1 else drawn_numbers + 0.5)
    return model


def theirs(model: ZImageTransformer2DModel, rows: Sequence[int]) -> list[np.ndarray]:
    """What diffusers says of these pictures, in one call."""
    model.rope_embedder.freqs_cis = None  # computed once, and then kept in the type of that time
    with in_float64(), torch.no_grad():
        outputs = model(
            [torch.tensor(IMAGES[i])[:, None] for i in rows],
            torch.tensor(TIMES[list(rows)]),
            [torch.tensor(CAPTIONS[i]) for i in rows],
            return_dict=False,
        )[0]
    return [output[:, 0].numpy() for output in outputs]


def ours(model: PictureModel, adapters: Sequence[Adapter | None]) -> list[np.ndarray]:
    """What we say of all of them, each with its adapter, in one batch."""
    cache = AdapterCache(model, P64, NUMPY)
    slots = [[] if adapter is None else [(cache.acquire(adapter), 1.0)] for adapter in adapters]
    grids = [(image.shape[1] // 2, image.shape[2] // 2) for image in IMAGES]
    batch = make_picture_batch(grids, [len(caption) for caption in CAPTIONS], slots, cache.slots, NUMPY)
    x, captions = np.concatenate([to_patches(image, 2) for image in IMAGES]), np.concatenate(CAPTIONS)
    y = forward(model, x, TIMES, captions, batch, cache.slots, NUMPY, P64)
    pieces = np.split(y, batch.patches.starts[1:-1])
    return [from_patches(piece, 2, grid) for piece, grid in zip(pieces, grids, strict=True)]


def assert_equal(actual: np.ndarray, expected: np.ndarray) -> None:
    """Within TOLERANCE of numbers that are about 1 in size."""
    assert actual.shape == expected.shape and np.abs(expected).max() > 0.1
    assert np.abs(actual - expected).max() <= TOLERANCE, np.abs(actual - expected).max()


@pytest.mark.parametrize("refiners", [0, 1, 2])
def test_the_base_is_that_of_diffusers_in_shards_too(refiners: int, tmp_path: Path) -> None:
    transformer = random_transformer(n_refiner_layers=refiners)
    transformer.save_pretrained(tmp_path, max_shard_size="100KB" if refiners == 1 else "10GB")
    assert (tmp_path / "diffusion_pytorch_model.safetensors.index.json").exists() == (refiners == 1)
    together = ours(load_picture_model(tmp_path, "float64"), [None] * len(IMAGES))
    for picture, expected in zip(together, theirs(transformer, range(len(IMAGES))), strict=True):
        assert_equal(picture, expected)


EVERYTHING = (
    r".*(to_q|to_k|to_v|to_out\.0|w1|w2|w3|(layers|noise_refiner)\.\d+\.adaLN_modulation\.0|cap_embedder\.1"
    r"|all_x_embedder\.2-1|t_embedder\.mlp\.[02]|2-1\.adaLN_modulation\.1|linear)"
)
CONFIGS = {
    "some": dict(r=3, target_modules=["to_q", "to_v", "w1", "w2"], rank_pattern={"layers.1.attention.to_v": 2}),
    "every": dict(r=4, target_modules=EVERYTHING, use_rslora=True, alpha_pattern={"to_out.0": 9}),
    "biased": dict(r=1, target_modules=["to_out.0", "w3"], lora_bias=True),
}


def save_with_diffusers(name: str, folder: Path) -> None:
    """An adapter with random A and B, made by PEFT, in a file of diffusers."""
    transformer = random_transformer()
    transformer.add_adapter(LoraConfig(lora_alpha=5, **CONFIGS[name]))
    generator = torch.Generator().manual_seed(len(name))
    for key, weight in transformer.named_parameters():
        if "lora_" in key:
            weight.data = torch.randn(weight.shape, generator=generator, dtype=torch.float64) * 0.3
    ZImagePipeline.save_lora_weights(
        folder,
        get_peft_model_state_dict(transformer),
        transformer_lora_adapter_metadata=transformer.peft_config["default"].to_dict(),
    )


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[ZImageTransformer2DModel, PictureModel, Path]:
    """One transformer with all three adapters loaded by diffusers, the same base for us, and the folder of both."""
    folder, transformer = tmp_path_factory.mktemp("diffusers"), random_transformer()
    transformer.save_pretrained(folder / "base")
    for name in CONFIGS:
        save_with_diffusers(name, folder / name)
        load_into(transformer, folder / name, name)
    return transformer, load_picture_model(folder / "base", "float64"), folder


def load_into(transformer: ZImageTransformer2DModel, path: Path, name: str) -> None:
    """As load_lora_weights of the pipeline does."""
    tensors, metadata = ZImagePipeline.lora_state_dict(
        path, weight_name=None if path.is_file() else "pytorch_lora_weights.safetensors", return_lora_metadata=True
    )
    ZImagePipeline.load_lora_into_transformer(tensors, transformer, name, metadata=metadata)


def test_each_picture_of_a_batch_has_its_adapter(
    loaded: tuple[ZImageTransformer2DModel, PictureModel, Path],
) -> None:
    transformer, base, folder = loaded
    names = ["every", "some", None, "biased"]
    adapters = [None if name is None else load_picture_adapter(folder / name, base.config) for name in names]
    plain, mixed = ours(base, [None] * 4), ours(base, adapters)
    for i, name in enumerate(names):
        if name is None:
            transformer.disable_lora()
            assert (mixed[i] == plain[i]).all()
        else:
            transformer.enable_lora()
            transformer.set_adapters(name)
            assert_differ(mixed[i], plain[i])
        assert_equal(mixed[i], theirs(transformer, [i])[0])


@pytest.mark.parametrize("name", ["some", "every"])
@pytest.mark.parametrize("to", ["diffusers", "kohya"])
def test_diffusers_reads_what_we_write(
    to: str, name: str, loaded: tuple[ZImageTransformer2DModel, PictureModel, Path], tmp_path: Path
) -> None:
    _, base, folder = loaded
    adapter = load_picture_adapter(folder / name, base.config)
    path = tmp_path / ("style.safetensors" if to == "kohya" else "style")
    save_picture_adapter(adapter, path, base.config, to)
    transformer = random_transformer()
    load_into(transformer, path, "style")
    written, read = ours(base, [adapter] * 4), theirs(transformer, range(4))
    for picture, expected in zip(written, read, strict=True):
        tolerance = TOLERANCE if to == "diffusers" or name == "some" else 1e-6  # kohya's alpha is a float32
        assert np.abs(picture - expected).max() <= tolerance
