"""A request that a model cannot draw is one line, before anything is computed; and captions are hidden states."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support.build import random_adapter, random_model
from support.build import random_model as random_text_model
from support.pictures import SMALL, random_picture_adapter, random_picture_model

from refimpl import LoracleError, PictureRequest, Request, draw, load_model, logits, read_captions, trace
from refimpl.config import ModelConfig, Rope
from refimpl.errors import RequestError
from refimpl.pictures.pixels import to_pixels

MODEL, STYLE = random_picture_model(), random_picture_adapter()
TEXT = ModelConfig(11, 10, 13, 2, 2, 1, 4, rope=Rope())
RIGHT = PictureRequest(np.ones((3, SMALL.cap_feat_dim)), STYLE, 0, 1, 2, 2)
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "another text model": ({"caption": np.ones((3, 8))}, r"caption has shape \[3, 8\], it must be \[words, 7\]"),
    "an empty caption": ({"caption": np.ones((0, 7))}, r"caption has shape \[0, 7\]"),
    "a prompt": ({"caption": "a dog"}, r"caption has shape \[\]"),
    "NaN": ({"caption": np.full((3, 7), np.nan)}, "NaN or inf"),
    "token ids": ({"caption": np.ones((3, 7), int)}, "caption holds int64"),
    "a long caption": ({"caption": np.ones((65, 7))}, "a caption of 65 tokens is longer than the 64"),
    "no steps": ({"steps": 0}, "steps 0 must be 1 or more"),
    "half a step": ({"steps": 1.5}, "steps 1.5 is not a whole number"),
    "a seed below 0": ({"seed": -1}, "seed -1 must be 0 or more"),
    "a size of nothing": ({"width": 0}, "width 0 must be 1 or more"),
    "a large size": ({"height": 5}, "height 5 must be a multiple of 1 up to 4"),
    "a path": ({"adapter": "ink"}, "adapter must be an Adapter"),
    "a weight that is none": ({"adapter": [(STYLE, float("nan"))]}, "weight nan is not a finite number"),
    "one adapter twice": ({"adapter": [(STYLE, 0.5), (STYLE, 0.5)]}, "names the same adapter twice"),
    "an adapter of a voice": ({"adapter": random_adapter(TEXT, 0)}, "this one has no model.layers.0.self_attn.q_proj"),
    "an adapter of a wider model": (
        {"adapter": random_picture_adapter(replace(SMALL, n_heads=1, dim=6), targets=["to_q"])},
        r"attention.to_q is \[12, 12\] here, \[6, 6\] there",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_request_is_one_line(what: str) -> None:
    changes, message = WRONG[what]
    with pytest.raises(RequestError, match=message) as raised:
        draw(MODEL, [RIGHT, replace(RIGHT, **changes)])
    assert "\n" not in str(raised.value)


def test_what_is_no_list_of_requests() -> None:
    with pytest.raises(RequestError, match="put the one in brackets"):
        draw(MODEL, RIGHT)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="expected a PictureRequest, not Request"):
        draw(MODEL, [Request([1])])  # type: ignore[list-item]


def test_a_latent_of_a_vae_is_no_picture() -> None:
    model = random_picture_model(replace(SMALL, in_channels=5))
    with pytest.raises(RequestError, match="5 channels are of a VAE"):
        draw(model, [])  # before anything is computed
    with pytest.raises(RequestError, match="5 channels are of a VAE"):
        to_pixels(np.zeros((5, 1, 1)))


def test_a_picture_of_nan_is_not_served() -> None:
    """Its pixels would be numbers like any other."""
    loud = {module: replace(lora, B=lora.B * np.float32(1e30)) for module, lora in STYLE.lora.items()}
    with np.errstate(all="ignore"), pytest.raises(LoracleError, match="picture 1 holds NaN or inf"):
        draw(MODEL, [RIGHT, replace(RIGHT, adapter=[(replace(STYLE, lora=loud), 3e38)])])


def test_captions_are_what_is_before_the_last_layer() -> None:
    """One batch; the residual stream in front of the last layer is what the trace of that layer's input adds up to."""
    model = load_model("tiny", dtype="float64")
    prompts = ["Rain drums on the haunted bakery.\n", "Snow.\n"]
    together = read_captions(model, prompts)
    for caption, prompt in zip(together, prompts, strict=True):
        ids = model.tokenizer.encode(prompt)
        [alone] = read_captions(model, [prompt])
        with trace("layers.*") as recorded:
            logits(model, [Request(ids)])
        assert caption.shape == (len(ids), model.config.hidden_size)
        np.testing.assert_allclose(caption, alone, rtol=0, atol=1e-12)
        x, weight = alone, model.layers[3].norms["input_layernorm"]
        normed = x / np.sqrt((x * x).mean(1, keepdims=True) + model.config.rms_norm_eps) * weight
        np.testing.assert_allclose(recorded["layers.3.q_proj.input"], normed, rtol=0, atol=1e-12)


def test_prompts_that_have_no_caption() -> None:
    for prompts in ([], "one"):
        with pytest.raises(RequestError, match="expected a list of one or more prompts"):
            read_captions(random_model(TEXT), prompts)
    with pytest.raises(LoracleError, match="a text model of one layer"):
        read_captions(random_text_model(replace(TEXT, num_hidden_layers=1)), ["one"])
