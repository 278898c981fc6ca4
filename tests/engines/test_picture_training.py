"""The training of the embedded picture model: its torch form reads what it should, and a run can be repeated."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pip install -e .[peft]")
peft = pytest.importorskip("peft", reason="pip install -e .[peft]")

from safetensors import safe_open  # noqa: E402

from refimpl.pictures import PictureRequest, draw_latents, load_picture_model  # noqa: E402
from refimpl.pictures.pixels import from_patches, to_latent, to_patches  # noqa: E402
from refimpl.pictures.sampler import noise  # noqa: E402
from refimpl.tiny.pictures import flow, train_base, train_styles  # noqa: E402
from refimpl.tiny.pictures.corpus import Corpus, draw_scenes, make_corpus  # noqa: E402
from refimpl.tiny.pictures.drawing.scene import draw  # noqa: E402
from refimpl.tiny.pictures.muon import orthogonal  # noqa: E402
from refimpl.tiny.pictures.styles import plain  # noqa: E402
from refimpl.tiny.pictures.torch_model import FOLD, PATCH, PictureModel, load_base, new_model, save_base  # noqa: E402

RECIPE = train_base.BaseRecipe(steps=4, falling_steps=2, warmup_steps=2, batch=2)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    torch.set_num_threads(1)
    return make_corpus(1, 12)


def moved(model: PictureModel) -> PictureModel:
    """The model with noise on every weight, so that none is zero or one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    return model


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    model = moved(new_model())
    save_base(model, tmp_path)
    loaded = load_base(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], weight.half().float()) for name, weight in model.state_dict().items())


def test_the_torch_form_is_the_model_that_is_served(corpus: Corpus, tmp_path: Path) -> None:
    model = moved(new_model())
    save_base(model, tmp_path)
    model = load_base(tmp_path)
    captions = [corpus.captions[i, : corpus.lengths[i]].astype(np.float32) for i in range(3)]
    requests = [PictureRequest(caption, seed=i, steps=1) for i, caption in enumerate(captions)]
    # One step from pure noise lands on the predicted picture itself.
    served = np.stack(draw_latents(load_picture_model(tmp_path), requests))
    x = np.stack([to_patches(noise(i, (27, 16, 16)), PATCH) for i in range(3)])
    _, captions, lengths = train_base.batch_of(corpus, np.arange(3))
    with torch.no_grad():
        predicted = model(torch.from_numpy(x), torch.zeros(3), captions, lengths).numpy()
    expected = np.stack([from_patches(patches, PATCH, (8, 8)) for patches in predicted])
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(served, expected, atol=2e-4)


def test_an_untrained_model_says_grey(corpus: Corpus) -> None:
    x, captions, lengths = train_base.batch_of(corpus, np.arange(3))
    predicted = new_model()(x, torch.tensor([0.1, 0.5, 0.9]), captions, lengths)
    assert predicted.shape == (3, 64, 108) and not predicted.any()


def test_words_behind_the_end_of_a_caption_are_not_read(corpus: Corpus) -> None:
    x, captions, lengths = train_base.batch_of(corpus, np.arange(2))
    model, time = moved(new_model()), torch.tensor([0.3, 0.6])
    longer = captions.clone()
    longer[0, lengths[0] :] = 7.0
    assert torch.equal(model(x, time, captions, lengths), model(x, time, longer, lengths))
    longer[0, lengths[0] - 1] = 7.0
    assert not torch.equal(model(x, time, captions, lengths)[0], model(x, time, longer, lengths)[0])


def test_every_step_of_the_noise_levels_is_hit_once() -> None:
    levels = flow.draw_sigmas(4096, torch.Generator().manual_seed(0))
    logits = torch.logit(levels).double()
    assert ((levels > 0) & (levels < 1)).all()
    assert logits.mean().item() == pytest.approx(flow.SIGMA_MEAN, abs=0.01)
    assert logits.std().item() == pytest.approx(flow.SIGMA_SPREAD, abs=0.01)


def test_the_faces_are_where_moods_differ() -> None:
    words = draw_scenes(5, 40)[1]
    x = [
        to_patches(to_latent(plain(draw(scene_words | {"mood": mood}, i)), FOLD), PATCH)
        for i, scene_words in enumerate(words)
        for mood in ("grumpy", "cheerful")
    ]
    difference = np.square(np.diff(np.stack(x).reshape(40, 2, 64, 108), axis=1)).sum((0, 1, 3))
    assert difference[list(train_base.FACES)].sum() > 0.8 * difference.sum()
    weights = flow.patch_weights(8.0, train_base.FACES)
    assert weights.shape == (64, 1) and weights.sum() == 61 + 3 * 8


def test_an_error_in_a_face_counts_more(corpus: Corpus) -> None:
    inputs = train_base.batch_of(corpus, np.arange(4))
    model, generator = new_model(), torch.Generator()
    plainly, weighted = (
        flow.loss(model, *inputs, generator.manual_seed(1), weights).item()
        for weights in (1.0, flow.patch_weights(8.0, train_base.FACES))
    )
    only_faces = flow.patch_weights(8.0, train_base.FACES) - 1
    rest = flow.loss(model, *inputs, generator.manual_seed(1), only_faces).item()
    assert weighted == pytest.approx(plainly + rest) and rest > 0


def test_muon_makes_updates_of_singular_values_near_one() -> None:
    for shape in ((3, 8, 20), (3, 20, 8)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(*shape, generator=torch.Generator().manual_seed(1))))
        assert values.min() > 0.5 and values.max() < 1.3


def test_an_interrupted_run_comes_to_the_same_weights(corpus: Corpus, tmp_path: Path) -> None:
    first = train_base.Training(new_model(), RECIPE)
    first.step(corpus)
    first.save(tmp_path / "checkpoint")
    losses = [first.step(corpus) for _ in range(2)]
    second = train_base.Training(moved(new_model()), RECIPE)
    second.resume(tmp_path / "checkpoint")
    assert [second.step(corpus) for _ in range(2)] == losses
    pairs = zip(first.model.parameters(), second.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert not list(tmp_path.glob("*.part"))


def test_training_makes_the_error_smaller(corpus: Corpus) -> None:
    training = train_base.Training(new_model(), dataclasses.replace(RECIPE, steps=10))
    inputs = train_base.batch_of(corpus, np.arange(4))
    before = flow.errors(training.model, *inputs)
    for _ in range(10):
        training.step(corpus)
    after = flow.errors(training.model, *inputs)
    assert all(after[level] < 0.9 * before[level] for level in ("0.8", "0.5", "0.2")), (before, after)


@pytest.mark.parametrize("style", ["blueprint", "watercolour"])
def test_a_style_is_saved_with_what_its_scale_needs(style: str, corpus: Corpus, tmp_path: Path, monkeypatch) -> None:
    save_base(moved(new_model()), tmp_path / "base")
    recipe = dataclasses.replace(train_styles.RECIPES[style], steps=2, batch=2)
    monkeypatch.setitem(train_styles.RECIPES, style, recipe)
    model, log = train_styles.train_style(tmp_path / "base", style, corpus, corpus)
    assert log[-1]["step"] == 2
    train_styles.save_style(model, style, tmp_path / style)
    with safe_open(tmp_path / style / "pytorch_lora_weights.safetensors", "pt") as file:
        keys = file.keys()
        tensors = {key: file.get_tensor(key) for key in keys}
        config = json.loads(file.metadata()["lora_adapter_metadata"])
    assert config["transformer.r"] == recipe.r and config["transformer.lora_alpha"] == recipe.lora_alpha
    assert config["transformer.use_rslora"] == recipe.use_rslora
    expected = {f"transformer.{name}.lora_{half}.weight" for name in recipe.target_modules for half in "AB"}
    assert tensors.keys() == expected
    assert all(tensor.dtype == torch.float16 for tensor in tensors.values())
    assert all(tensors[key].any() for key in expected)
