"""ZImagePipeline from the same noise and the same caption, live: its schedule, its steps, its LoRA, and the sizes."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_diffusers as live
from hugging_face import torch, transformers
from support.compare import assert_differ

import refimpl
from refimpl import PictureRequest, load_picture_adapter, load_picture_model, read_captions
from refimpl.loading.embedded import BASE, PICTURE_BASE, STYLES
from refimpl.pictures import draw_latents
from refimpl.pictures.pixels import to_pixels
from refimpl.pictures.sampler import LEAST_SIGMA, noise, sigmas

pytestmark = pytest.mark.filterwarnings("ignore")  # of three libraries, about each other

WITHIN = {"float64": 1e-6, "float32": 1e-3}  # of a latent, -1 to 1: the scheduler's sigmas are float32 in each of them


class SaysThePicture(live.ZImageTransformer2DModel):
    """Z-Image's transformer says a velocity, and the pipeline expects one; this one says the clean picture."""

    def forward(self, x: Any, t: Any, cap_feats: Any, return_dict: bool = True, **others: Any) -> tuple[list[Any]]:
        pictures = super().forward(x, t, cap_feats, return_dict=False, **others)[0]
        velocities = [
            (picture - noisy) / max(1 - float(time), LEAST_SIGMA)
            for picture, noisy, time in zip(pictures, x, t, strict=True)
        ]
        return (velocities,)


def pipeline(kind: type, folder: Path, shift: float, dtype: str) -> Any:
    """A pipeline without text encoder and VAE: it is given hidden states, and gives latents."""
    model = kind.from_pretrained(folder, torch_dtype=torch.float32).to(getattr(torch, dtype)).eval()
    scheduler = live.diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    pipe = live.ZImagePipeline(scheduler, None, None, None, model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe: Any, caption: np.ndarray, start: np.ndarray, steps: int, dtype: str) -> np.ndarray:
    """One picture's latent [channels, rows, columns]."""
    kind = getattr(torch, dtype)
    with live.in_float64() if dtype == "float64" else contextlib.nullcontext():
        pipe.transformer.rope_embedder.freqs_cis = None
        images = pipe(
            prompt_embeds=[torch.tensor(caption).to(kind)],
            latents=torch.tensor(start[None]).to(kind),
            guidance_scale=0.0,
            height=8 * start.shape[1],
            width=8 * start.shape[2],
            num_inference_steps=steps,
            output_type="latent",
        ).images
    return images[0].numpy()


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_velocity_model_takes_the_pipelines_steps(shift: float, tmp_path: Path) -> None:
    """Z-Image's own convention, which no scheduler_config.json has to say."""
    transformer = live.random_transformer()
    transformer.save_pretrained(tmp_path / "transformer")
    live.diffusers.FlowMatchEulerDiscreteScheduler(shift=shift).save_pretrained(tmp_path / "scheduler")
    pipe = pipeline(live.ZImageTransformer2DModel, tmp_path / "transformer", shift, "float64")
    caption, start = live.CAPTIONS[0], noise(3, (5, 8, 12))
    expected = run(pipe, caption, start, 4, "float64")
    np.testing.assert_array_equal(pipe.scheduler.sigmas.numpy(), sigmas(4, shift))
    request = PictureRequest(caption, None, 3, 4, 8, 12)
    [latent] = draw_latents(load_picture_model(tmp_path, "float64"), [request])
    assert np.abs(latent - expected).max() <= WITHIN["float64"]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_embedded_model_and_its_styles(dtype: str) -> None:
    """One mixed batch of ours against one call of the pipeline for each of its pictures."""
    steps, prompts = 4, refimpl.tiny.DEMO_PROMPTS[:3]
    text = refimpl.load_model("tiny", dtype=dtype)
    captions = read_captions(text, prompts)
    model = load_picture_model("tiny", dtype)
    names = ["watercolour", None, "blueprint"]
    styles = [None if name is None else load_picture_adapter(name, model.config) for name in names]
    requests = [PictureRequest(captions[i], style, i, steps) for i, style in enumerate(styles)]
    mixed = draw_latents(model, requests)
    pipe = pipeline(SaysThePicture, PICTURE_BASE / "transformer", model.flow.shift, dtype)
    for name in filter(None, names):
        pipe.load_lora_weights(STYLES[name], weight_name="pytorch_lora_weights.safetensors", adapter_name=name)
    pipe.transformer.to(getattr(torch, dtype))
    for i, name in enumerate(names):
        if name is None:
            pipe.transformer.disable_lora()
        else:
            pipe.transformer.enable_lora()
            pipe.set_adapters([name])
        expected = run(pipe, captions[i], noise(i, (27, 16, 16)), steps, dtype)
        assert np.abs(mixed[i] - expected).max() <= WITHIN[dtype]
        assert (to_pixels(mixed[i]) == to_pixels(expected)).mean() > 0.995
    assert_differ(mixed[0], draw_latents(model, [PictureRequest(captions[0], None, 0, steps)])[0])


def test_captions_are_transformers_hidden_states() -> None:
    prompts = refimpl.tiny.DEMO_PROMPTS[:2]
    text = refimpl.load_model("tiny", dtype="float64")
    llama = transformers.LlamaForCausalLM.from_pretrained(BASE, dtype=torch.float64)
    for prompt, caption in zip(prompts, read_captions(text, prompts), strict=True):
        with torch.no_grad():
            states = llama(torch.tensor([text.tokenizer.encode(prompt)]), output_hidden_states=True).hidden_states
        off = np.abs(caption - states[-2][0].numpy()).max()
        assert off <= 1e-6 * np.abs(caption).max()  # transformers turns queries and keys in float32
