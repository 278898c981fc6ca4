"""A small random picture model as files, with styles beside it: what the command line reads."""

import dataclasses
import json
from pathlib import Path

from refimpl.formats.files import write_safetensors
from refimpl.pictures import save_picture_adapter
from refimpl.pictures.config import PictureConfig
from refimpl.pictures.folder import WEIGHTS

from .pictures import parts_of, random_picture_adapter, random_picture_model

CONFIG = PictureConfig(
    in_channels=27, dim=12, n_layers=1, n_refiner_layers=0, n_heads=2, cap_feat_dim=256, axes_dims=(2, 2, 2),
    axes_lens=(66, 8, 8),
)  # fmt: skip


def write_base(root: Path, config: PictureConfig = CONFIG) -> Path:
    """Write a model as diffusers does, and its styles dots and lines."""
    (root / "base").mkdir()
    keys = {key: value for key, value in dataclasses.asdict(config).items() if key != "patch_size"}
    keys |= {"_class_name": "ZImageTransformer2DModel", "n_kv_heads": config.n_heads}
    keys |= {"all_patch_size": [config.patch_size], "all_f_patch_size": [1]}
    (root / "base" / "config.json").write_text(json.dumps(keys))
    write_safetensors(root / "base" / WEIGHTS, parts_of(random_picture_model(config)))
    for seed, name in enumerate(("dots", "lines")):
        save_picture_adapter(random_picture_adapter(config, seed), root / name, config)
    return root
