"""What the differential tests draw: any tiny Llama or Mistral, any PEFT LoRA adapters, any ragged batch of both."""

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hugging_face as hf
import numpy as np
from hypothesis import strategies as st
from support.build import RANKS, configs

import refimpl
from refimpl.config import LAYER_MODULES, ModelConfig

TOP = ("embed_tokens", "lm_head")


@dataclass(frozen=True)
class Spec:
    """An adapter for PEFT to create: the arguments of its LoraConfig, and those of hugging_face.write_adapter."""

    lora: dict[str, Any]
    seed: int
    dtype: str
    copies: bool | str


@dataclass(frozen=True)
class Example:
    """A base, its adapters by name, and one batch: a prompt and the name of an adapter for each request."""

    config: ModelConfig
    seed: int
    specs: dict[str, Spec]
    prompts: list[list[int]]
    names: list[str]


@dataclass(frozen=True)
class SavedExample:
    """A example on disk and loaded by refimpl."""

    example: Example
    base: Path
    adapters: dict[str, Path]
    ours: dict[str, refimpl.Adapter]

    def model(self, dtype: str) -> refimpl.Model:
        """The base; its config must have come through both config.json and us unchanged."""
        model = refimpl.load_model(self.base, dtype)
        assert model.config == self.example.config
        return model

    @property
    def requests(self) -> list[refimpl.Request]:
        """The batch of the example."""
        return [
            refimpl.Request(p, self.ours.get(n)) for p, n in zip(self.example.prompts, self.example.names, strict=True)
        ]


@contextmanager
def on_disk(example: Example, dtype: str = "float32") -> Iterator[SavedExample]:
    """Write the example, by transformers and PEFT into a folder of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        hf.write_model(hf_config(example.config), folder / "base", example.seed, dtype)
        for adapter, spec in example.specs.items():
            lora = hf.peft.LoraConfig(**spec.lora)
            hf.write_adapter(folder / "base", lora, folder / adapter, spec.seed, spec.dtype, spec.copies)
        paths = {adapter: folder / adapter for adapter in example.specs}
        model = refimpl.load_model(folder / "base", "float64")
        ours = {adapter: refimpl.load_adapter(path, model) for adapter, path in paths.items()}
        yield SavedExample(example, folder / "base", paths, ours)


def hf_config(config: ModelConfig) -> hf.Config:
    """Return the config in transformers' words. A Llama has no window, a Mistral no biases."""
    rope = {"rope_type": config.rope.type, "rope_theta": config.rope.theta}
    if config.rope.type != "default":
        rope["factor"] = config.rope.factor
    if config.rope.type == "llama3":
        llama3 = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        rope |= {name: getattr(config.rope, name) for name in llama3}
    fields = [field.name for field in dataclasses.fields(config)]
    names = fields[: fields.index("eos_token_ids")]  # those after it are of other families
    values = {name: getattr(config, name) for name in names if name != "rope"}
    values |= {"rope_parameters": rope, "eos_token_id": list(config.eos_token_ids)}
    kind = hf.transformers.LlamaConfig if config.sliding_window is None else hf.transformers.MistralConfig
    for name in ("sliding_window",) if config.sliding_window is None else ("attention_bias", "mlp_bias"):
        del values[name]
    return kind(**values)


@st.composite
def hf_configs(draw: st.DrawFn) -> ModelConfig:
    """Draw a config that transformers takes: it requires that heads divide hidden_size, even where head_dim is
    given, and its Mistral has no biases."""
    config = draw(configs())
    heads, none = config.num_attention_heads, config.sliding_window is None
    return dataclasses.replace(
        config,
        hidden_size=heads * draw(st.integers(-(-5 // heads), -(-20 // heads))),
        attention_bias=config.attention_bias and none,
        mlp_bias=config.mlp_bias and none,
    )


@st.composite
def targets(draw: st.DrawFn, config: ModelConfig) -> dict[str, Any]:
    """Draw which modules get a LoRA, in each of the ways in which PEFT's config can say it."""
    last = config.num_hidden_layers - 1
    inner = draw(st.lists(st.sampled_from(LAYER_MODULES), min_size=1, unique=True))
    kind = draw(st.sampled_from(["names", "names", "layers", "paths", "expression", "all-linear", "exclude"]))
    if kind == "names":
        return {"target_modules": inner + draw(st.lists(st.sampled_from(TOP), unique=True))}
    if kind == "layers":
        layers = draw(st.lists(st.integers(0, last), min_size=1, unique=True))
        return {"target_modules": inner, "layers_to_transform": draw(st.sampled_from([layers, layers[0]]))}
    if kind == "paths":
        return {"target_modules": [f"model.layers.{last}.self_attn.v_proj", "self_attn.q_proj", "mlp.down_proj"]}
    if kind == "expression":
        tails = "|".join(inner)
        return {"target_modules": draw(st.sampled_from([rf".*\.({tails})", rf".*\.{last}\..*_proj|lm_head", ".*head"]))}
    if kind == "all-linear":
        return {"target_modules": "all-linear"}
    out = draw(st.sampled_from([["q_proj", "mlp.up_proj"], r".*\.0\..*gate_proj|.*\.down_proj"]))
    return {"target_modules": "all-linear", "exclude_modules": out}


@st.composite
def specs(draw: st.DrawFn, config: ModelConfig, count: int, saves_modules: bool) -> dict[str, Spec]:
    """Draw `count` pairwise different adapters. saves_modules: some have modules_to_save, whole layers of their own."""
    drawn_specs = {}
    for i in range(count):
        r = draw(st.sampled_from(RANKS))
        lora: dict[str, Any] = {
            "r": r,
            "lora_alpha": r * draw(st.sampled_from([0.5, 2.0, 3.0, -1.5])),
            "use_rslora": draw(st.booleans()) and r > 1,
            "task_type": "CAUSAL_LM",
        }
        lora |= draw(targets(config))
        lora["rank_pattern"] = draw(patterns(st.sampled_from(RANKS), config))
        lora["alpha_pattern"] = draw(patterns(st.sampled_from([0.5, 4, 9]), config))
        # PEFT: "lora_bias=True is not supported for Embedding."
        lora["lora_bias"] = draw(st.booleans()) and "embed_tokens" not in lora["target_modules"]
        if saves_modules and draw(st.integers(0, 2)) == 2:
            # A module that is targeted as well gets no LoRA, and PEFT insists on one somewhere.
            free = [
                name for name in TOP if name not in lora["target_modules"] and name[-4:] not in lora["target_modules"]
            ]
            lora["modules_to_save"] = draw(st.lists(st.sampled_from(free), unique=True)) if free else None
        dtype = draw(st.sampled_from(["float32", "float32", "bfloat16", "float16"]))
        drawn_specs["abc"[i]] = Spec(
            lora, 1000 * draw(st.integers(0, 50)) + i, dtype, "auto" if saves_modules else False
        )
    return drawn_specs


@st.composite
def patterns(draw: st.DrawFn, values: st.SearchStrategy, config: ModelConfig) -> dict[str, Any]:
    """Draw a rank_pattern or alpha_pattern: modules by the end of their names, or by an expression."""
    last = config.num_hidden_layers - 1
    keys = [f"layers.{last}.self_attn.q_proj", "v_proj", r"model\.layers\.\d+\.mlp\.(up|down)_proj", "lm_head", "o.*"]
    return draw(st.dictionaries(st.sampled_from(keys), values, max_size=3))


@st.composite
def examples(draw: st.DrawFn, adapters: tuple[int, int] = (1, 3), saves_modules: bool = True) -> Example:
    """Draw a base, some adapters, each of them used, and rows of the base between them."""
    config = draw(hf_configs())
    pool = draw(specs(config, draw(st.integers(*adapters)), saves_modules))
    names = draw(st.permutations([*pool, hf.BASE, *draw(st.lists(st.sampled_from([*pool, hf.BASE]), max_size=2))]))
    lengths = [draw(st.integers(1, 12)) for _ in names]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    prompts = [rng.integers(0, config.vocab_size, n).tolist() for n in lengths]
    return Example(config, draw(st.integers(0, 1000)), pool, prompts, list(names))


def worst(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> float:
    """Return the largest difference, in units of max(1, largest logit). NaN if there is one."""
    scale = max(1.0, *(float(np.abs(t).max()) for t in theirs))
    return float(np.max([np.abs(x - y).max() for x, y in zip(ours, theirs, strict=True)])) / scale
