"""The picture model that lies in the package: its files, and what it draws."""

import json
import re

import numpy as np
import pytest
from safetensors import safe_open

from refimpl import load_model, tiny
from refimpl.pictures import PictureRequest, draw, load_picture_adapter, load_picture_model, read_captions
from refimpl.tiny.pictures import BASE, HERE, STYLES
from refimpl.tiny.pictures.corpus import draw_scenes, held_out
from refimpl.tiny.pictures.judge import CONTENT, judge

TRANSFORMER = BASE / "transformer"
LORA = "pytorch_lora_weights.safetensors"
# r, alpha, rsLoRA and how many modules of every layer, as train_styles.py has them.
SHAPES = {
    "ink": (8, 16, False, 7),
    "night": (4, 8, False, 5),
    "blueprint": (12, 6, True, 7),
    "watercolour": (6, 12, False, 5),
}


def test_the_files_are_those_of_diffusers_and_are_small() -> None:
    files = {str(path.relative_to(BASE)) for path in BASE.rglob("*") if path.is_file()}
    expected = {"config.json", "diffusion_pytorch_model.safetensors"}
    assert files == {f"transformer/{name}" for name in expected} | {"scheduler/scheduler_config.json"}
    assert sum(path.stat().st_size for path in BASE.rglob("*")) <= 4_000_000
    for folder in STYLES.values():
        assert [path.name for path in folder.iterdir()] == [LORA]
        assert (folder / LORA).stat().st_size <= 300_000


def test_the_base_is_a_z_image_in_float16_that_says_pictures() -> None:
    config = json.loads((TRANSFORMER / "config.json").read_text())
    assert config["_class_name"] == "ZImageTransformer2DModel"
    assert config["in_channels"] == 27 and config["cap_feat_dim"] == 256
    scheduler = json.loads((BASE / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["prediction_type"] == "sample"
    with safe_open(TRANSFORMER / "diffusion_pytorch_model.safetensors", "numpy") as file:
        names = file.keys()
        tensors = {name: file.get_tensor(name) for name in names}
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float16)}
    assert all(np.isfinite(tensor).all() for tensor in tensors.values())
    assert sum(tensor.size for tensor in tensors.values()) == 1_832_556


@pytest.mark.parametrize("style", STYLES)
def test_a_style_says_in_its_metadata_what_its_scale_needs(style: str) -> None:
    with safe_open(STYLES[style] / LORA, "numpy") as file:
        config = json.loads(file.metadata()["lora_adapter_metadata"])
        names = file.keys()
        ranks = {file.get_slice(name).get_shape()[0] for name in names if name.endswith("lora_A.weight")}
        modules = {name.rpartition(".lora_")[0] for name in names}
    r, alpha, use_rslora, of_a_layer = SHAPES[style]
    assert (config["transformer.r"], config["transformer.lora_alpha"]) == (r, alpha) and ranks == {r}
    assert config["transformer.use_rslora"] == use_rslora
    assert len(modules) == 4 * of_a_layer + 1 and "transformer.all_final_layer.2-1.linear" in modules
    assert any("adaLN" in module for module in modules) == (style == "watercolour")


def test_it_draws_what_no_training_picture_shows_each_picture_in_its_style() -> None:
    prompts, words = draw_scenes(303, 5, from_held_out=True)
    assert all(held_out(scene_words) for scene_words in words)
    model = load_picture_model(BASE)
    captions = read_captions(load_model(tiny.base_path()), prompts)
    styles = [None, *STYLES]
    adapters = [style and load_picture_adapter(STYLES[style], model.config) for style in styles]
    requests = [
        PictureRequest(caption, adapter, seed=i)
        for i, (caption, adapter) in enumerate(zip(captions, adapters, strict=True))
    ]
    for rgb, scene_words, style in zip(draw(model, requests), words, styles, strict=True):
        verdict = judge(rgb, scene_words, style or "base")
        assert verdict.right(*CONTENT, "style"), verdict


@pytest.mark.parametrize("which", ["tuned", "fresh"])
@pytest.mark.parametrize("style", ["base", *STYLES])
def test_the_committed_figures_meet_the_bar(which: str, style: str) -> None:
    row = json.loads((HERE / "quality.json").read_text())[which][style]
    assert row["pictures"] >= 100
    for word in CONTENT:
        assert row[word] >= (0.95 if style == "base" else 0.9)
    assert row["content (all three)"] >= (0.95 if style == "base" else 0.9)
    assert row["style"] >= 0.95


def test_the_readme_says_the_committed_figures_and_sizes() -> None:
    text = (HERE / "README.md").read_text("utf-8")
    quality = json.loads((HERE / "quality.json").read_text())
    for rows in quality.values():
        for name in ("place", "role", "goal", "content (all three)", "style", "mood", "weather"):
            cells = " | ".join(f"{row[name]:.1%}" for row in rows.values())
            assert f"| {name} | {cells} |" in text
    for style, folder in STYLES.items():
        size = f"{(folder / LORA).stat().st_size:,}"
        assert re.search(rf"\| {style} \|.*\| {size} \|", text), (style, size)
    training = json.loads((HERE / "training.json").read_text())
    for name, log in training.items():
        assert re.search(rf"\| {name} \| {log[-1]['step']:,} x .*\| {log[-1]['cpu']:,} \|", text), name
