"""The text part of models of images and text, as transformers runs it on a prompt without an image."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refimpl import Request, logits
from refimpl.loading.model_folder import load_model

torch = pytest.importorskip("torch", reason="transformers needs torch")
transformers = pytest.importorskip("transformers", reason="these models are made by transformers")

SMALL = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "pad_token_id": 0}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
EYES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8}
EYES |= {"patch_size": 4}
KINDS = {
    "Llava": ("Llama", "CLIPVision", {"image_token_index": 31}),
    "LlavaNext": ("Mistral", "CLIPVision", {"image_token_index": 31, "image_grid_pinpoints": [[8, 8]]}),
    "Mistral3": ("Mistral", "PixtralVision", {"image_token_index": 31}),
    "Idefics3": ("Llama", "Idefics3Vision", {"image_token_id": 31}),
    "SmolVLM": ("Llama", "SmolVLMVision", {"image_token_id": 31}),
    "LlavaOnevision": ("Qwen2", "SiglipVision", {"image_token_index": 31, "video_token_index": 30}),
}
IDS = [3, 1, 4, 1, 5, 9, 2, 6]


def wrapped(name: str, tied: bool) -> Any:
    """A random model of this class, in float64."""
    text, eyes, more = KINDS[name]
    config = getattr(transformers, f"{name}Config")(
        text_config=getattr(transformers, f"{text}Config")(**SMALL, tie_word_embeddings=tied),
        vision_config=getattr(transformers, f"{eyes}Config")(**EYES).to_dict(),
        tie_word_embeddings=tied,
        **more,
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    model.tie_weights()
    return model


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_the_text_part_is_theirs(tmp_path: Path, name: str, tied: bool) -> None:
    model = wrapped(name, tied)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([IDS])).logits[0].numpy()
    ours = logits(load_model(tmp_path, "float64"), [Request(IDS)])[0]
    assert np.allclose(ours, expected, rtol=0, atol=2e-6 * abs(expected).max())  # their norms compute in float32
