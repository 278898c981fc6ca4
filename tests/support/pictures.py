"""Synthetic picture models, adapters and batches for the tests, as Hypothesis draws them. As build.py, for pictures."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

from refimpl import PictureModel, PictureRequest
from refimpl.adapter import Adapter, LoraTensors, PeftConfig
from refimpl.adapter_slots import BoundAdapter, bind_adapter
from refimpl.config import module_name
from refimpl.pictures.config import PictureConfig, module_of
from refimpl.pictures.weights import Flow
from refimpl.weights import Linear

SMALL = PictureConfig(
    in_channels=3, dim=12, n_layers=1, n_refiner_layers=1, n_heads=2, cap_feat_dim=7, axes_dims=(2, 2, 2),
    axes_lens=(66, 4, 4), patch_size=1,
)  # fmt: skip
TARGETS = ("to_q", "to_v", "to_out.0", "w1", "w2", "adaLN_modulation.0", "adaLN_modulation.1", "linear", "mlp.2")
RANKS = (1, 2, 3, 5)


class PictureCase(NamedTuple):
    """A model, its adapters, and one batch. Its repr is what a failing test prints, so it is short."""

    model: PictureModel
    pool: list[Adapter]
    requests: list[PictureRequest]

    def __repr__(self) -> str:
        adapters = [f"{adapter.name}: {adapter.config}" for adapter in self.pool]
        requests = [
            f"{len(r.caption)} words, {r.height} x {r.width}, {r.steps} steps, "
            f"{[(adapter.name, weight) for adapter, weight in r.adapters]}"
            for r in self.requests
        ]
        return "PictureCase(" + ",\n    ".join([repr(self.model.config), *adapters, *requests]) + ")"


def random_picture_model(config: PictureConfig = SMALL, seed: int = 0, flow: Flow | None = None) -> PictureModel:
    """A model in float64 whose every tensor matters: no norm is 1, no bias and no gate 0."""
    rng = np.random.default_rng([seed, 79])
    linears = {
        module: Linear(
            rng.normal(size=(d_out, d_in)) / np.sqrt(d_in), rng.normal(size=d_out) * 0.3 if has_bias else None
        )
        for module, (d_out, d_in, has_bias) in config.linears.items()
    }
    vectors = {name: 0.5 + 0.3 * rng.normal(size=shape) for name, shape in config.vectors.items()}
    return PictureModel(config, linears, vectors, flow or Flow(), "float64")


def random_picture_adapter(
    config: PictureConfig = SMALL,
    seed: int = 0,
    r: int = 3,
    alpha: float = 7.0,
    use_rslora: bool = False,
    targets: Sequence[str] = TARGETS,
    alpha_pattern: dict[str, float] | None = None,
    lora_bias: bool = False,
) -> Adapter:
    """An adapter in float64 on the modules that end in one of the targets."""
    rng, lora = np.random.default_rng([seed, 80]), {}
    for module, (d_out, d_in, _) in config.linears.items():
        if any(f".{module_name(module)}".endswith(f".{target}") for target in targets):
            bias = rng.normal(size=d_out) * 0.1 if lora_bias else None
            lora[module] = LoraTensors(
                rng.normal(size=(r, d_in)) / np.sqrt(d_in), rng.normal(size=(d_out, r)) * 0.3, bias
            )
    peft = PeftConfig(
        r, alpha, use_rslora, alpha_pattern=alpha_pattern or {}, target_modules=tuple(targets), lora_bias=lora_bias
    )
    return Adapter(f"style-{seed}", peft, lora)


def merged(model: PictureModel, adapters: Sequence[tuple[Adapter, float]]) -> PictureModel:
    """The model with W + sum(weight * scale * B A) in place of each W, and the biases of the B likewise."""
    linears = dict(model.linears)
    for adapter, weight in adapters:
        bound: BoundAdapter = bind_adapter(adapter, None)  # type: ignore[arg-type]  # asks nothing of the base
        for module, lora in bound.lora.items():
            base, factor = linears[module], lora.scale * weight
            bias = base.bias
            if lora.bias is not None:
                bias = (0 if bias is None else bias) + factor * lora.bias
            linears[module] = Linear(base.weight + factor * lora.B @ lora.A, bias)
    return replace(model, linears=linears)


@st.composite
def picture_configs(draw: st.DrawFn) -> PictureConfig:
    """Any small Z-Image transformer: one head or several, with refiner layers and without, patches of one pixel."""
    heads, patch = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2]))
    axes = draw(st.sampled_from([(2, 2, 2), (4, 2, 2), (2, 4, 6)]))
    return PictureConfig(
        in_channels=draw(st.sampled_from([3, 5, 12])),
        dim=heads * sum(axes),
        n_layers=draw(st.integers(0, 2)),
        n_refiner_layers=draw(st.integers(0, 1)),
        n_heads=heads,
        cap_feat_dim=draw(st.sampled_from([5, 9])),
        axes_dims=axes,
        axes_lens=(66, 7, 7),
        patch_size=patch,
        norm_eps=draw(st.sampled_from([1e-5, 1e-6])),
        rope_theta=draw(st.sampled_from([256.0, 10.0])),
    )


@st.composite
def picture_cases(draw: st.DrawFn) -> PictureCase:
    """A float64 model, its adapters, and a ragged batch: every adapter used, one of them none, some summed."""
    config = draw(picture_configs())
    flow = draw(st.sampled_from([Flow(), Flow("sample", 2.0)]))
    model, pool = random_picture_model(config, draw(st.integers(0, 99)), flow), []
    for i in range(draw(st.integers(1, 2))):
        r, target = draw(st.sampled_from(RANKS)), draw(st.sampled_from(("linear", "adaLN_modulation.1", "mlp.2")))
        others = draw(st.lists(st.sampled_from(TARGETS), unique=True))
        alpha, use_rslora = r * draw(st.sampled_from([0.5, 2.0, -1.5])), draw(st.booleans()) and r > 1
        pattern = {f"{config.final_layer}.linear": 2.5 * r} if draw(st.booleans()) else {}
        seed = 100 * i + draw(st.integers(0, 9))
        pool.append(
            random_picture_adapter(config, seed, r, alpha, use_rslora, [target, *others], pattern, draw(st.booleans()))
        )
    choices = draw(st.permutations([None, *pool, [(pool[0], 0.5), (pool[-1], -0.75)] if len(pool) > 1 else pool[0]]))
    return PictureCase(model, pool, [draw(picture_requests(config, adapter)) for adapter in choices])


@st.composite
def picture_requests(draw: st.DrawFn, config: PictureConfig, adapter: object = None) -> PictureRequest:
    """One picture of one to three patches a side, of a caption of one to 40 tokens, in one to three steps."""
    side = {3: 1, 12: 2}.get(config.in_channels, 1) * config.patch_size
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    caption = rng.normal(size=(draw(st.sampled_from([1, 3, 31, 32, 33])), config.cap_feat_dim))
    height, width = (side * draw(st.integers(1, 3)) for _ in range(2))
    return PictureRequest(caption, adapter, draw(st.integers(0, 99)), draw(st.integers(1, 2)), height, width)  # type: ignore[arg-type]


def parts_of(model: PictureModel) -> dict[str, np.ndarray]:
    """Every tensor by the name that the checkpoint has for it."""
    tensors = dict(model.vectors)
    for module, linear in model.linears.items():
        tensors[f"{module_name(module)}.weight"] = linear.weight
        if linear.bias is not None:
            tensors[f"{module_name(module)}.bias"] = linear.bias
    assert all(module_of(module_name(module)) == module for module in model.linears)
    return tensors
