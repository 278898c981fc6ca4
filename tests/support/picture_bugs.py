"""A batch of pictures in which each known bug shows: it has all that oracle/pictures/bugs.py says they need."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from refimpl import PictureModel, PictureRequest
from refimpl.adapter import Adapter
from refimpl.pictures.config import PictureConfig, module_of
from support.pictures import random_picture_adapter, random_picture_model

CONFIG = PictureConfig(
    in_channels=3, dim=24, n_layers=2, n_refiner_layers=1, n_heads=2, cap_feat_dim=9, axes_dims=(4, 4, 4),
    axes_lens=(66, 6, 6), patch_size=1,
)  # fmt: skip
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
ALL = (*ATTENTION, "w1", "w2", "w3", "adaLN_modulation.0", "adaLN_modulation.1", "linear", "mlp.2", "cap_embedder.1")


def with_larger_rank(adapter: Adapter, name: str, more: int) -> Adapter:
    """The adapter with a larger rank at one module, and a rank_pattern that says so."""
    tensors = adapter.lora[module_of(name)]
    A, B = np.concatenate([tensors.A, 0.7 * tensors.A[:more]]), np.hstack([tensors.B, -tensors.B[:, :more]])
    lora = {**adapter.lora, module_of(name): replace(tensors, A=A, B=B)}
    return replace(adapter, config=replace(adapter.config, rank_pattern={name: len(A)}), lora=lora)


def batch() -> tuple[PictureModel, list[Adapter], list[PictureRequest]]:
    """A model in float64, three adapters, and six pictures: one adapter, none, a weight, a sum, another weight."""
    model = random_picture_model(CONFIG)
    first = random_picture_adapter(CONFIG, 1, 9, 4.0, targets=ALL, alpha_pattern={"attention.to_q": 30.0})
    second = random_picture_adapter(
        CONFIG, 2, 17, 5.0, use_rslora=True, targets=(*ATTENTION, "w1", "adaLN_modulation.0")
    )
    third = random_picture_adapter(CONFIG, 3, 8, 3.0, targets=("to_v", "w2", "linear"), lora_bias=True)
    third = with_larger_rank(third, "layers.1.feed_forward.w2", 3)
    choices: Sequence[object] = (first, None, [(second, 0.6)], [(first, 0.7), (second, -0.4)], third, [(first, 0.3)])
    rng = np.random.default_rng(5)
    sizes = ((3, 3), (2, 3), (3, 2), (4, 3), (2, 2), (3, 4))
    requests = [
        PictureRequest(rng.normal(size=(3 + i, CONFIG.cap_feat_dim)), choice, i, 2, *size)  # type: ignore[arg-type]
        for i, (choice, size) in enumerate(zip(choices, sizes, strict=True))
    ]
    return model, [first, second, third], requests
