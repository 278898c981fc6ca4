"""What diffusers makes of each form of an adapter's file, live: where it takes one in, it computes what we do."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import test_diffusers as live
from hugging_face import torch
from pictures.test_picture_adapters import FORMS, diffusers_names, stated, with_alphas, written
from pictures.test_picture_folder import config_json
from safetensors.numpy import save_file
from support.compare import assert_differ
from support.pictures import SMALL, parts_of, random_picture_model

from refimpl import load_picture_adapter
from refimpl.adapter import Adapter
from refimpl.adapter_cache import AdapterCache
from refimpl.errors import AdapterError
from refimpl.ops import NUMPY
from refimpl.pictures.batch import make_picture_batch
from refimpl.pictures.folder import WEIGHTS
from refimpl.pictures.model import forward
from refimpl.pictures.pixels import from_patches, to_patches

pytestmark = pytest.mark.filterwarnings("ignore")  # of three libraries, about each other

MODEL = random_picture_model()
rng = np.random.default_rng(0)
IMAGE, CAPTION, TIME = rng.normal(size=(3, 3, 4)), rng.normal(size=(5, 7)), np.array([0.4])

# diffusers multiplies A of a float32 file by the scale, in float32; we keep the scale apart.
TOLERANCES = {"alpha": 1e-6, "metadata or nothing": live.TOLERANCE}
# What diffusers does with the forms that it does not take in as they are.
NOT_TAKEN = {
    "diffusers, the transformer alone": "silently ignored: load_lora_weights looks for the prefix `transformer.`",
    "ComfyUI, fused": "ValueError: `state_dict` should be empty at this point",
}


def transformer(folder: Path) -> live.ZImageTransformer2DModel:
    """The synthetic model as diffusers loads it."""
    (folder / "config.json").write_text(json.dumps(config_json()))
    save_file({name: np.ascontiguousarray(x) for name, x in parts_of(MODEL).items()}, folder / WEIGHTS)
    return live.ZImageTransformer2DModel.from_pretrained(folder, torch_dtype=torch.float64)


def theirs(model: live.ZImageTransformer2DModel) -> np.ndarray:
    """What diffusers says of the picture."""
    model.rope_embedder.freqs_cis = None
    with live.in_float64(), torch.no_grad():
        output = model(
            [torch.tensor(IMAGE)[:, None]],
            torch.tensor(TIME),
            [torch.tensor(CAPTION)],
            patch_size=1,
            return_dict=False,
        )
    return output[0][0][:, 0].numpy()


def ours(adapter: Adapter | None) -> np.ndarray:
    """What we say of it."""
    cache = AdapterCache(MODEL, live.P64, NUMPY)
    slots = [[] if adapter is None else [(cache.acquire(adapter), 1.0)]]
    batch = make_picture_batch([(3, 4)], [len(CAPTION)], slots, cache.slots, NUMPY)
    y = forward(MODEL, to_patches(IMAGE, 1), TIME, CAPTION, batch, cache.slots, NUMPY, live.P64)
    return from_patches(y, 1, (3, 4))


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_the_same_adapter_to_diffusers(form: str, tmp_path: Path) -> None:
    tensors, metadata, _ = FORMS[form]
    path, model, base = written(tmp_path, tensors, metadata), transformer(tmp_path), ours(None)
    adapted = ours(load_picture_adapter(path, SMALL))
    assert_differ(adapted, base)
    if form == "ComfyUI, fused":
        with pytest.raises(ValueError, match="`state_dict` should be empty at this point"):
            live.load_into(model, path, "style")
        return
    live.load_into(model, path, "style")
    expected = theirs(model.double())
    if form in NOT_TAKEN:
        assert np.abs(expected - base).max() <= live.TOLERANCE
    else:
        tolerance = TOLERANCES["alpha" if any(name.endswith(".alpha") for name in tensors) else "metadata or nothing"]
        assert np.abs(adapted - expected).max() <= tolerance


def test_alpha_and_metadata_together_are_multiplied_by_diffusers(tmp_path: Path) -> None:
    """That is why we refuse such a file: the same adapter at the square of its scale."""
    tensors = with_alphas(diffusers_names("diffusion_model."))
    path, model = written(tmp_path, tensors, stated()), transformer(tmp_path)
    with pytest.raises(AdapterError, match="both say a scale: diffusers multiplies them"):
        load_picture_adapter(path, SMALL)
    live.load_into(model, path, "style")
    expected = theirs(model.double())
    once = load_picture_adapter(written(tmp_path, tensors), SMALL)
    squared = replace(once, config=replace(once.config, lora_alpha=once.config.lora_alpha**2 / once.config.r))
    assert_differ(ours(once), expected)
    assert np.abs(ours(squared) - expected).max() <= TOLERANCES["alpha"]
