"""A folder that diffusers writes -> a PictureModel, in full or refused by name.

    transformer/config.json                                 PictureConfig, in ZImageTransformer2DModel's names
    transformer/diffusion_pytorch_model.safetensors         its tensors; or shards, and their .index.json
    scheduler/scheduler_config.json                         Flow: FlowMatchEulerDiscreteScheduler

ZImagePipeline.save_pretrained writes all of it, ZImageTransformer2DModel.save_pretrained the first two.
"""

import os
from pathlib import Path
from typing import Any

from ..arrays import device_namespace, dtype_of
from ..config import module_name
from ..errors import ConfigError, WeightsError
from ..loading.checkpoint import checkpoint_files
from ..loading.conversion import all_finite
from ..loading.diagnostics import Diagnostics, shown
from ..loading.embedded import PICTURE_BASE
from ..loading.json_file import Keys, is_integer, read_json
from ..loading.model_folder import check_fit, load_tensor
from ..loading.safetensors_file import open_safetensors
from ..loading.tensor import Tensor, stored_tensor
from ..weights import Linear
from .config import PictureConfig, Shape
from .weights import Flow, PictureModel

WEIGHTS = "diffusion_pytorch_model.safetensors"

# Keys of config.json that this code takes at one value only: what they could say otherwise is another model.
FIXED: dict[str, Any] = {"all_f_patch_size": [1], "qk_norm": True, "siglip_feat_dim": None}
# Likewise of scheduler_config.json: other ways to place or take the steps.
FIXED_FLOW: dict[str, Any] = {
    **dict.fromkeys(("use_dynamic_shifting", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"), False),
    **dict.fromkeys(("invert_sigmas", "stochastic_sampling"), False),
    "shift_terminal": None,
}


def load_picture_model(path: str | Path, dtype: str = "float32", device: str = "cpu") -> PictureModel:
    """A Z-Image transformer from a pipeline's folder, or from the transformer's own; "tiny" is the embedded one.

    dtype is what the weights are held in, as in load_model. Without a scheduler beside it the model is taken to say
    velocities in equal steps, as Z-Image's own does. ConfigError, WeightsError or DeviceError, one line that names the
    file; nothing is loaded then."""
    dtype_of(dtype)
    device_namespace(device)
    folder, config, diagnostics = transformer_folder(path), load_picture_config(path), Diagnostics()
    beside = folder.parent / "scheduler" / "scheduler_config.json"
    flow = read_flow(beside, diagnostics) if folder.name == "transformer" and beside.exists() else Flow()
    diagnostics.raise_first(ConfigError)
    assert flow is not None  # None comes with a problem
    tensors = picture_tensors(folder, config, diagnostics)
    diagnostics.raise_first(WeightsError)
    check_fit(tensors, dtype, device)
    arrays = {name: load_tensor(tensor, dtype, device) for name, tensor in tensors.items()}
    linears = {}
    for module in config.linears:
        name = module_name(module)
        linears[module] = Linear(arrays[f"{name}.weight"], arrays.get(f"{name}.bias"))
    return PictureModel(config, linears, {name: arrays[name] for name in config.vectors}, flow, dtype, device)


def transformer_folder(path: str | Path) -> Path:
    """The folder of the transformer that a model's path means."""
    root = PICTURE_BASE if str(path) == "tiny" and not os.path.isdir(path) else Path(path)
    return root / "transformer" if (root / "transformer").is_dir() else root


def load_picture_config(path: str | Path) -> PictureConfig:
    """The PictureConfig of a model's folder, without its weights. ConfigError, one line."""
    diagnostics = Diagnostics()
    config = read_picture_config(transformer_folder(path) / "config.json", diagnostics)
    diagnostics.raise_first(ConfigError)
    assert config is not None  # None comes with a problem
    return config


def read_picture_config(file: Path, diagnostics: Diagnostics) -> PictureConfig | None:
    """The PictureConfig of a config.json, or None with every problem noted."""
    data = read_json(file, diagnostics)
    if data is None:
        return None
    keys, before = Keys(file, data, diagnostics), len(diagnostics.problems)
    if (kind := data.get("_class_name")) != "ZImageTransformer2DModel":
        keys.problem(f"_class_name is {shown(kind)}; only ZImageTransformer2DModel is supported")
        return None
    _check_fixed(keys, FIXED)
    heads = keys.integer("n_heads", 30)
    config = PictureConfig(
        in_channels=keys.integer("in_channels", 16),
        dim=keys.integer("dim", 3840),
        n_layers=keys.integer("n_layers", 30),
        n_refiner_layers=keys.integer("n_refiner_layers", 2, least=0),
        n_heads=heads,
        cap_feat_dim=keys.integer("cap_feat_dim", 2560),
        axes_dims=_three(keys, "axes_dims", (32, 48, 48)),
        axes_lens=_three(keys, "axes_lens", (1024, 512, 512)),
        patch_size=_patch_size(keys),
        norm_eps=keys.positive("norm_eps", 1e-5),
        rope_theta=keys.positive("rope_theta", 256.0),
        t_scale=keys.positive("t_scale", 1000.0),
    )
    if keys.integer("n_kv_heads", 30) != heads:
        keys.problem(f"n_kv_heads is {data.get('n_kv_heads', 30)} and n_heads {heads}: diffusers takes them as equal")
    if config.dim != heads * sum(config.axes_dims) or any(channels % 2 for channels in config.axes_dims):
        keys.problem(
            f"axes_dims {list(config.axes_dims)} must be even, and add up to the width of a head: dim {config.dim} / "
            f"n_heads {heads}"
        )
    return config if len(diagnostics.problems) == before else None


def read_flow(file: Path, diagnostics: Diagnostics) -> Flow | None:
    """The Flow of a scheduler_config.json, or None with every problem noted."""
    data = read_json(file, diagnostics)
    if data is None:
        return None
    keys, before = Keys(file, data, diagnostics), len(diagnostics.problems)
    if (kind := data.get("_class_name")) != "FlowMatchEulerDiscreteScheduler":
        keys.problem(f"_class_name is {shown(kind)}; only FlowMatchEulerDiscreteScheduler is supported")
    _check_fixed(keys, FIXED_FLOW)
    prediction = data.get("prediction_type", "velocity")
    if prediction not in ("velocity", "sample"):
        keys.problem(f"prediction_type is {shown(prediction)}: it must be velocity or sample")
    flow = Flow(str(prediction), keys.positive("shift", 1.0))
    return flow if len(diagnostics.problems) == before else None


def _check_fixed(keys: Keys, fixed: dict[str, Any]) -> None:
    for key, value in fixed.items():
        if keys.data.get(key, value) != value:
            keys.problem(f"{key} is {shown(keys.data[key])}; only {shown(value)} is supported")


def _three(keys: Keys, key: str, default: tuple[int, int, int]) -> tuple[int, int, int]:
    value = keys.data.get(key, list(default))
    if isinstance(value, list) and len(value) == 3 and all(is_integer(n) and n > 0 for n in value):
        return value[0], value[1], value[2]
    keys.problem(f"{key} is {shown(value)}: it must be three positive integers")
    return default


def _patch_size(keys: Keys) -> int:
    value = keys.data.get("all_patch_size", [2])
    if isinstance(value, list) and len(value) == 1 and is_integer(value[0]) and value[0] > 0:
        return int(value[0])
    keys.problem(f"all_patch_size is {shown(value)}: it must be a list of one positive integer")
    return 2


def expected_tensors(config: PictureConfig) -> dict[str, Shape]:
    """Name and shape of every tensor that a checkpoint of this config has."""
    shapes: dict[str, Shape] = dict(config.vectors)
    for module, (d_out, d_in, has_bias) in config.linears.items():
        shapes[f"{module_name(module)}.weight"] = (d_out, d_in)
        if has_bias:
            shapes[f"{module_name(module)}.bias"] = (d_out,)
    return shapes


def picture_tensors(folder: Path, config: PictureConfig, diagnostics: Diagnostics) -> dict[str, Tensor]:
    """Every expected tensor by name, still in the memory map, with all problems noted."""
    expected, tensors = expected_tensors(config), dict[str, Tensor]()
    before = len(diagnostics.problems)
    files = [open_safetensors(path, diagnostics) for path in checkpoint_files(folder, diagnostics, WEIGHTS)]
    complete = len(diagnostics.problems) == before
    for tensor in (stored_tensor(file, name) for file in files if file for name in file.stored):
        if problem := _tensor_problem(tensor, expected, tensors):
            diagnostics.problem(tensor.file, f"tensor {tensor.name} {problem}")
        tensors.setdefault(tensor.name, tensor)
    for name in [name for name in expected if name not in tensors] if complete else ():
        diagnostics.problem(folder, f"tensor {name} {list(expected[name])} is in no file of the checkpoint")
    return tensors


def _tensor_problem(tensor: Tensor, expected: dict[str, Shape], others: dict[str, Tensor]) -> str | None:
    """What is wrong with one tensor, if something is."""
    if tensor.name not in expected:
        return f"{list(tensor.shape)} is not one of the model's; is it of another architecture?"
    if tensor.shape != expected[tensor.name]:
        return f"has shape {list(tensor.shape)}, config.json makes it {list(expected[tensor.name])}"
    if tensor.name in others:
        return f"is also in {others[tensor.name].file.name}"
    if tensor.problem:
        return tensor.problem
    return None if all_finite(tensor.read()) else "holds NaN or inf"
