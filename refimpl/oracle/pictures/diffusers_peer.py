"""diffusers as an engine that draws: the velocities of its transformer, for judge_pictures.

One call of diffusers gives all of its pictures the same adapters, so that each picture is a call of its own here.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...pictures import PictureModel, PictureRequest
from ...pictures.draw import start_of
from ...pictures.request import grid_of
from .verdict import Velocities


def velocities_of_diffusers(
    transformer: Any, model: PictureModel, requests: Sequence[PictureRequest], names: Sequence[str]
) -> Velocities:
    """What a ZImageTransformer2DModel says of each picture at its noise, in the transformer's own type.

    model: the same weights, for the shape of the noise and the kind of prediction. names: of the adapters that were
    loaded into the transformer, as load_lora_weights(adapter_name=...) named them; a request's adapters are set by
    their `name`. ValueError for one that is not among them."""
    return [_velocity(transformer, model, request, names) for request in requests]


def _velocity(transformer: Any, model: PictureModel, request: PictureRequest, names: Sequence[str]) -> np.ndarray:
    import torch

    dtype = next(transformer.parameters()).dtype
    if missing := [adapter.name for adapter, _ in request.adapters if adapter.name not in names]:
        raise ValueError(f"adapter {missing[0]} is not loaded into the transformer; there are {', '.join(names)}")
    if request.adapters:
        transformer.enable_lora()
        chosen = {adapter.name: weight for adapter, weight in request.adapters}
        transformer.set_adapters(list(chosen), list(chosen.values()))
    elif names:
        transformer.disable_lora()
    start = start_of(request, grid_of(request, model.config), model)
    with torch.no_grad():
        said = transformer(
            [torch.tensor(start, dtype=dtype)[:, None]],
            torch.zeros(1, dtype=dtype),  # the time: all is noise
            [torch.tensor(np.asarray(request.caption), dtype=dtype)],
            patch_size=model.config.patch_size,
            return_dict=False,
        )[0][0][:, 0]
    clean = model.flow.prediction == "sample"  # then the velocity leads from the noise to what was said
    return said.numpy() - start.astype(said.numpy().dtype) if clean else said.numpy()
