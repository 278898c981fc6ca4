"""The stage of a campaign: one base model and the adapters that its cases use, on disk for the engine, loaded for us.

Adapters are made so that a bug cannot hide. Every rule is there because a real bug once survived a test without it:
random signed B, never zero; alpha/r never 1; ranks that are not powers of two; rsLoRA on some; one that is partial;
adapters pairwise different, each of about the base's own size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..adapter import Adapter, LoraTensors, PeftConfig, load_adapter
from ..arrays import DTYPES, Array, Precision
from ..config import LAYER_MODULES, ModelConfig, Rope, Site, module_name
from ..engines.interface import Capabilities, Settings
from ..errors import LoracleError
from ..formats.hf import save_model
from ..formats.peft import save_adapter
from ..weights import Layer, Linear, Model, base_folder, load_model

STRENGTH = 0.5  # how large an adapter's delta is beside what the base computes at the same place


@dataclass(frozen=True, eq=False)
class Stage:
    """One base and its adapters."""

    folder: Path  # the base, as the engine loads it
    model: Model  # the same in the type that the engine is asked to compute in
    exact: Model  # the very same numbers in float64
    paths: Mapping[str, Path]  # of every adapter that may be loaded, by its key
    adapters: Mapping[str, Adapter]

    @property
    def dtype(self) -> str:
        """What the engine is asked to compute in."""
        return self.model.dtype

    def in_dtype(self, dtype: str) -> "Stage":
        """The same stage for an engine that computes in another type: its weights are rounded to it first."""
        if dtype == self.dtype:
            return self
        model = load_model(self.folder, dtype)
        return replace(self, model=model, exact=in_float64(model))


def build(
    model: str,
    dtype: str,
    seed: int,
    work: Path,
    capabilities: Capabilities,
    adapters: Mapping[str, Path] | None = None,
    count: int = 4,
) -> Stage:
    """model: "tiny", "random", or a folder. adapters: the user's own; without them, `count` are made (beside two
    of the embedded model's voices). What is made is written under `work`, in `dtype`, so that no engine rounds it."""
    rng = np.random.default_rng([seed, 4])
    if model == "random":
        folder = work / "model"
        save_model(random_model(random_config(rng), rng, dtype), folder)
    else:
        folder = base_folder(model)
    ours = load_model(folder, dtype)
    paths = {name: Path(p) for name, p in (adapters or {}).items()}
    if not paths:
        if model == "tiny":
            from .. import tiny

            paths |= dict(list(tiny.VOICES.items())[:2])
        for adapter in random_adapters(ours, rng, capabilities, count):
            paths[adapter.name] = work / "adapters" / adapter.name
            save_adapter(adapter, paths[adapter.name], dtype)
    loaded = {name: load_adapter(path, ours.config, name) for name, path in paths.items()}
    return Stage(folder, ours, in_float64(ours), paths, loaded)


def settings(stage: Stage, capabilities: Capabilities, **changes: object) -> Settings:
    """What an engine is told when it is started for this stage."""
    ranks = [w.A.shape[0] for a in stage.adapters.values() for w in a.lora.values()]
    return replace(
        Settings(
            stage.folder,
            stage.dtype,
            max_adapters=len(stage.adapters) + 1,
            max_rank=max(ranks, default=8),
            max_length=min(128, stage.model.config.max_position_embeddings),
            modules=tuple(dict.fromkeys(m for a in stage.adapters.values() for _, m in a.lora)),
        ),
        **changes,
    )


def in_float64(model: Model) -> Model:
    """The same numbers, held in float64. Nothing is rounded."""

    def wide(x: Array) -> Array:
        return x.astype(np.float64)

    def linear(x: Linear) -> Linear:
        return Linear(wide(x.weight), None if x.bias is None else wide(x.bias))

    embed = wide(model.embed_tokens)
    tied = model.lm_head.weight is model.embed_tokens
    layers = tuple(
        Layer(
            wide(layer.input_layernorm),
            *(linear(getattr(layer, m)) for m in LAYER_MODULES[:4]),
            wide(layer.post_attention_layernorm),
            *(linear(getattr(layer, m)) for m in LAYER_MODULES[4:]),
        )
        for layer in model.layers
    )
    head = Linear(embed, model.lm_head.bias) if tied else linear(model.lm_head)
    return replace(model, embed_tokens=embed, layers=layers, norm=wide(model.norm), lm_head=head, dtype="float64")


def precisions(dtype: str) -> list[Precision]:
    """What is known of how engines round in this type."""
    return [Precision("model", dtype), Precision("transformers", dtype)]


# Models and adapters to try an engine on.


def random_config(rng: np.random.Generator) -> ModelConfig:
    """A small Llama: no layer square, fewer key heads than query heads, head_dim not hidden/heads."""
    heads, kv_heads = [(4, 2), (6, 2), (6, 3), (8, 2)][rng.integers(4)]
    return ModelConfig(
        vocab_size=int(rng.choice([256, 320, 512])),
        hidden_size=int(rng.choice([96, 160, 192])) // heads * heads,
        intermediate_size=int(rng.choice([224, 256, 352])),
        num_hidden_layers=int(rng.integers(2, 5)),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=int(rng.choice([16, 32])),
        rms_norm_eps=1e-5,
        rope=Rope(float(rng.choice([10000.0, 500000.0]))),
        max_position_embeddings=256,
        eos_token_ids=(1,),
    )


def random_model(config: ModelConfig, rng: np.random.Generator, dtype: str) -> Model:
    """Signed weights of a size at which activations stay near 1."""

    def weight(shape: tuple[int, ...]) -> Array:
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(DTYPES[dtype])

    def norm() -> Array:
        return (1 + 0.2 * rng.standard_normal(config.hidden_size)).astype(DTYPES[dtype])

    def linear(module: str) -> Linear:
        return Linear(weight(config.shape(module)))

    layers = tuple(
        Layer(norm(), *(linear(m) for m in LAYER_MODULES[:4]), norm(), *(linear(m) for m in LAYER_MODULES[4:]))
        for _ in range(config.num_hidden_layers)
    )
    embed = rng.standard_normal(config.shape("embed_tokens")).astype(DTYPES[dtype])
    head = Linear((3 * weight(config.shape("lm_head")).astype(np.float32)).astype(DTYPES[dtype]))
    return Model(config, embed, layers, norm(), head, dtype=dtype)


def random_adapters(
    base: Model, rng: np.random.Generator, capabilities: Capabilities, count: int, prefix: str = "made"
) -> list[Adapter]:
    """`count` pairwise different adapters that use whatever the engine can take."""
    modules = [m for m in LAYER_MODULES if m in capabilities.modules]
    can = capabilities.features
    most = capabilities.max_rank or 64
    found = []
    for i in range(count):
        kind = i % 4
        r = min(most, int([6, 3, 12, 5][kind] if "mixed_ranks" in can else 8))
        config = PeftConfig(
            r,
            lora_alpha=float(r * rng.choice([0.5, 1.7, 2.0, 3.0])),
            use_rslora="rslora" in can and kind == 1,
            rank_pattern={"v_proj": r + 3} if "rank_pattern" in can and kind == 2 else {},
            alpha_pattern={"down_proj": 2.5 * r} if "alpha_pattern" in can and kind == 2 else {},
            target_modules=tuple(modules if kind != 3 or "partial" not in can else _some(modules, rng)),
            lora_bias="lora_bias" in can and kind == 0,
        )
        found.append(random_adapter(base, config, f"{prefix}-{i}", rng))
    return found


def _some(modules: Sequence[str], rng: np.random.Generator) -> list[str]:
    """v_proj, which shows in any prompt, and some others."""
    others = [m for m in modules if m != "v_proj"]
    chosen = set(rng.choice(others, size=2, replace=False)) | {"v_proj"}
    return [m for m in modules if m in chosen]


def random_adapter(base: Model, config: PeftConfig, name: str, rng: np.random.Generator) -> Adapter:
    """Signed random A and B; scale * B A is STRENGTH times as large as the weight that it is added to."""
    from ..adapter import pattern_value
    from ..lora import adapter_scale

    lora: dict[Site, LoraTensors] = {}
    for site in base.config.sites():
        if site[1] not in config.target_modules:
            continue
        weight = base.linear(site).weight.astype(np.float32)
        d_out, d_in = weight.shape
        path = module_name(site)
        r = pattern_value(config.rank_pattern, path, config.r)
        alpha = pattern_value(config.alpha_pattern, path, config.lora_alpha)
        scale = adapter_scale(alpha, r, config.use_rslora)
        gain = float(np.linalg.norm(weight)) / np.sqrt(d_out)  # of the base, on an input of unit size
        a = rng.standard_normal((r, d_in)) / np.sqrt(d_in)
        b = rng.standard_normal((d_out, r)) * STRENGTH * gain / (np.sqrt(r) * abs(scale))
        bias = 0.1 * gain * rng.standard_normal(d_out) / abs(scale) if config.lora_bias else None
        lora[site] = LoraTensors(
            a.astype(np.float32), b.astype(np.float32), None if bias is None else bias.astype(np.float32)
        )
    if not lora:
        raise LoracleError(f"no module of the model is among {', '.join(config.target_modules)}")
    return Adapter(name, config, lora)
