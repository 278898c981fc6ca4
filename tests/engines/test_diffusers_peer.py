"""diffusers as a live peer that draws: as it is it passes, and with a bug put into it by hand the bug is named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hugging_face import torch

diffusers = pytest.importorskip("diffusers", "0.42", reason="needs diffusers 0.42", exc_type=ImportError)

from diffusers import ZImagePipeline, ZImageTransformer2DModel  # noqa: E402
from peft import LoraConfig  # noqa: E402
from peft.tuners.lora import LoraLayer  # noqa: E402
from peft.utils import get_peft_model_state_dict  # noqa: E402

from refimpl import PictureModel, PictureRequest, load_picture_adapter, load_picture_model  # noqa: E402
from refimpl.oracle.pictures import judge_pictures, known_bugs  # noqa: E402
from refimpl.oracle.pictures.diffusers_peer import velocities_of_diffusers  # noqa: E402
from refimpl.oracle.pictures.verdict import Velocities  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # of three libraries, about each other

SHAPE = dict(
    all_patch_size=(2,), all_f_patch_size=(1,), in_channels=3, dim=48, n_layers=2, n_refiner_layers=1, n_heads=4,
    n_kv_heads=4, cap_feat_dim=20, axes_dims=[4, 4, 4], axes_lens=[128, 16, 16],
)  # fmt: skip
TIME = r"(layers|noise_refiner)\.\d+\.adaLN_modulation\.0"
# Modules by name; no two adapters have the same scale.
CONFIGS = {
    "ink": dict(r=6, lora_alpha=4, target_modules=rf".*(to_q|to_k|to_v|to_out\.0|w1|w3|{TIME})"),
    "night": dict(r=3, lora_alpha=5, target_modules=["to_v", "to_out.0", "w2", "w1"], use_rslora=True),
}


class Peer(NamedTuple):
    """diffusers' model with both adapters, and ours, of the same files."""

    transformer: ZImageTransformer2DModel
    model: PictureModel
    requests: list[PictureRequest]
    bugs: dict[str, Velocities]

    def verdict(self) -> Any:
        """What is said of diffusers as it is now."""
        observed = velocities_of_diffusers(self.transformer, self.model, self.requests, list(CONFIGS))
        return judge_pictures(self.model, self.requests, observed, self.bugs)


def random_transformer() -> ZImageTransformer2DModel:
    """A transformer in float32 whose every parameter matters."""
    generator = torch.Generator().manual_seed(3)
    model = ZImageTransformer2DModel(**SHAPE).eval()
    with torch.no_grad():
        for weight in model.parameters():
            numbers = torch.randn(weight.shape, generator=generator) * 0.3
            weight.copy_(numbers / max(weight.shape) ** 0.5 if weight.ndim > 1 else numbers + 0.5)
    return model


def save_adapter(name: str, folder: Path) -> None:
    """An adapter with random A and B, made by PEFT, in a file of diffusers."""
    transformer, generator = random_transformer(), torch.Generator().manual_seed(len(name))
    transformer.add_adapter(LoraConfig(**CONFIGS[name]))
    for key, weight in transformer.named_parameters():
        if "lora_" in key:
            weight.data = torch.randn(weight.shape, generator=generator) * 0.3
    ZImagePipeline.save_lora_weights(
        folder,
        get_peft_model_state_dict(transformer),
        transformer_lora_adapter_metadata=transformer.peft_config["default"].to_dict(),
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base and both adapters, as diffusers writes them."""
    folder = tmp_path_factory.mktemp("peer")
    random_transformer().save_pretrained(folder / "base")
    for name in CONFIGS:
        save_adapter(name, folder / name)
    return folder


@pytest.fixture(scope="module")
def known(files: Path) -> tuple[PictureModel, list[PictureRequest], dict[str, Velocities]]:
    """Our model, a batch, and every known bug of it, computed once."""
    model = load_picture_model(files / "base", "float64")
    ink, night = (load_picture_adapter(files / name, model.config, name) for name in CONFIGS)
    rng = np.random.default_rng(0)
    requests = [
        PictureRequest(rng.normal(size=(5 + i, 20)), adapter, i, 1, 8 + 4 * (i % 2), 12)
        for i, adapter in enumerate((ink, None, [(night, 0.6)], [(ink, 0.5), (night, 1.2)], [(ink, 1.5)]))
    ]
    return model, requests, known_bugs(model, requests)


@pytest.fixture
def peer(files: Path, known: tuple[PictureModel, list[PictureRequest], dict[str, Velocities]]) -> Peer:
    """diffusers with both adapters loaded, anew for each test."""
    transformer = ZImageTransformer2DModel.from_pretrained(files / "base")
    for name in CONFIGS:
        tensors, metadata = ZImagePipeline.lora_state_dict(
            files / name, weight_name="pytorch_lora_weights.safetensors", return_lora_metadata=True
        )
        ZImagePipeline.load_lora_into_transformer(tensors, transformer, name, metadata=metadata)
    return Peer(transformer, *known)


def lora_layers(transformer: Any, ending: str = "") -> list[Any]:
    """PEFT's layers whose name ends so."""
    return [x for name, x in transformer.named_modules() if isinstance(x, LoraLayer) and name.endswith(ending)]


def no_scale(transformer: Any) -> None:
    """Every set_scale is followed by none."""
    for layer in lora_layers(transformer):
        layer.set_scale = lambda adapter, scale, layer=layer: layer.scaling.update({adapter: scale})


def weights_lost(transformer: Any) -> None:
    set_adapters = transformer.set_adapters
    transformer.set_adapters = lambda names, weights: set_adapters(names, [1.0] * len(names))


def no_rslora(transformer: Any) -> None:
    """As PEFT's set_scale was (peft #2733): alpha / r, rsLoRA or not."""
    for layer in lora_layers(transformer):

        def set_scale(adapter: str, scale: float, layer: Any = layer) -> None:
            if adapter in layer.scaling:
                layer.scaling[adapter] = scale * layer.lora_alpha[adapter] / layer.r[adapter]

        layer.set_scale = set_scale


def dropped(ending: str) -> Callable[[Any], None]:
    def drop(transformer: Any) -> None:
        for layer in lora_layers(transformer, ending):
            for B in layer.lora_B.values():
                B.weight.data.zero_()

    return drop


def never_disabled(transformer: Any) -> None:
    transformer.disable_lora = lambda: None


def exchanged(transformer: Any) -> None:
    """The adapters of w1 and w3, where they have them, the other way round."""
    blocks = [block for name, block in transformer.named_modules() if name.endswith("feed_forward")]
    for block in blocks:
        one, other = block.w1, block.w3
        if isinstance(other, LoraLayer) and "ink" in one.lora_A and "ink" in other.lora_A:
            for half in ("lora_A", "lora_B"):
                pair = getattr(one, half), getattr(other, half)
                pair[0]["ink"], pair[1]["ink"] = pair[1]["ink"], pair[0]["ink"]


def test_diffusers_as_it_is_passes(peer: Peer) -> None:
    verdict = peer.verdict()
    assert verdict.passed, str(verdict)


BUGS: list[tuple[Callable[[Any], None], str]] = [
    (no_scale, "scale_is_one"),
    (no_rslora, "rslora_ignored"),
    (weights_lost, "weights_ignored"),
    (dropped("to_out.0"), "out_not_loaded"),
    (dropped("adaLN_modulation.0"), "time_not_loaded"),
    (never_disabled, "never_unmerged"),
]


@pytest.mark.parametrize(("break_it", "name"), BUGS, ids=[name for _, name in BUGS])
def test_a_bug_inside_diffusers_is_named(peer: Peer, break_it: Callable[[Any], None], name: str) -> None:
    break_it(peer.transformer)
    verdict = peer.verdict()
    assert not verdict.passed and name in (verdict.bug, *verdict.same_here), str(verdict)


def test_a_bug_that_is_not_known_is_not_named(peer: Peer) -> None:
    """Only one of two adapters is converted wrongly: no bug of ours is that."""
    exchanged(peer.transformer)
    verdict = peer.verdict()
    assert not verdict.passed and verdict.bug is None, str(verdict)


def test_an_adapter_that_was_not_loaded_is_named(peer: Peer) -> None:
    with pytest.raises(ValueError, match="adapter night is not loaded into the transformer; there are ink"):
        velocities_of_diffusers(peer.transformer, peer.model, peer.requests, ["ink"])
