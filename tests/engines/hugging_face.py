"""transformers and PEFT, held where the tests can compare with them: models, adapters, logits.

Everything crosses on disk: transformers and PEFT write a folder, both sides read it. Nothing of refimpl is in here, so
that no mistake can be made twice.
"""

import contextlib
import importlib
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import safetensors

WHY = "needs torch, transformers and peft: pip install -e '.[test,peft]'"
os.environ["HF_HUB_OFFLINE"] = "1"
torch = pytest.importorskip("torch", reason=WHY, exc_type=ImportError)
transformers = pytest.importorskip("transformers", reason=WHY, exc_type=ImportError)
peft = pytest.importorskip("peft", reason=WHY, exc_type=ImportError)

torch.set_num_threads(1)
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
logging.getLogger("peft").setLevel(logging.ERROR)

Config = transformers.PretrainedConfig
Prompts = Sequence[Sequence[int]]
Logits = list[np.ndarray]  # [tokens, vocab] of each prompt

BASE = "__base__"  # what PEFT calls a row without adapter


def write_model(config: Config, folder: Path, seed: int, dtype: str = "float32") -> None:
    """A model with signed random weights that keep activations near 1, saved by transformers."""
    model = transformers.AutoModelForCausalLM.from_config(config)
    randomise_base(model, seed)
    model.to(getattr(torch, dtype)).save_pretrained(folder)


def randomise_base(model: "torch.nn.Module", seed: int) -> None:
    """Signed random weights that keep activations near 1."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = rng.standard_normal(tuple(parameter.shape))
            if "norm" in name:
                noise = 1 + 0.2 * noise
            elif parameter.ndim == 2 and "embed_tokens" not in name:
                noise *= (3 if "lm_head" in name else 1) / np.sqrt(max(parameter.shape[1], 1))
            elif parameter.ndim == 1:
                noise *= 0.3
            parameter.copy_(torch.as_tensor(noise))
        for name, buffer in model.named_buffers():
            if name.endswith("layer_scalar"):  # of Gemma 4, which writes it into the checkpoint
                buffer.copy_(torch.as_tensor(1 + 0.2 * rng.standard_normal(buffer.shape)))


def write_adapter(
    base: Path, config: "peft.LoraConfig", folder: Path, seed: int, dtype: str = "float32", copies: bool | str = "auto"
) -> None:
    """An adapter of this config with nothing zero in it, of about the base's own size, saved by PEFT.

    copies: whether the base's embed_tokens and lm_head are saved with it; "auto" is PEFT's default: where targeted.
    They stay in the base's type, because whoever loads the folder with PEFT gets them in the place of the base's, for
    every adapter and for none."""
    with quiet():
        model = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(base), config)
        randomise(model, seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(getattr(torch, dtype))
        model.save_pretrained(folder, save_embedding_layers=copies)


def grow(base: Path, folder: Path, vocab_size: int, seed: int) -> None:
    """The base with some more tokens, whose rows are random, saved by transformers."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    old = model.config.vocab_size
    model.resize_token_embeddings(vocab_size, mean_resizing=False)
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for table in {id(table): table for table in (model.model.embed_tokens.weight, model.lm_head.weight)}.values():
            fill(table[old:], rng, 1.0)
    model.save_pretrained(folder)


def randomise(model: "peft.PeftModel", seed: int) -> None:
    """Signed random numbers in all that the adapter has; its delta is about as large as what it is added to."""
    rng = np.random.default_rng([seed, 77])
    trainable = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for module in lora_layers(model):
            for adapter, scaling in module.scaling.items():
                embedding = adapter in module.lora_embedding_A
                A = module.lora_embedding_A[adapter] if embedding else module.lora_A[adapter].weight
                B = module.lora_embedding_B[adapter] if embedding else module.lora_B[adapter].weight
                r, d_in = A.shape
                fill(A, rng, 1 / np.sqrt(1 if embedding else d_in))
                fill(B, rng, 1 / (np.sqrt(r) * max(abs(scaling), 1)))
                del trainable[id(A)], trainable[id(B)]
        for name, p in model.named_parameters():
            if id(p) in trainable:  # biases, modules_to_save
                fill(p, rng, 0.3 if p.ndim == 1 else 1.0 if "embed_tokens" in name else 3 / np.sqrt(p.shape[1]))


def fill(parameter: "torch.Tensor", rng: np.random.Generator, size: float) -> None:
    parameter.copy_(torch.as_tensor(size * rng.standard_normal(tuple(parameter.shape))))


def load(base: Path, adapters: Mapping[str, Path], dtype: str) -> "peft.PeftModel":
    """What a user of transformers and PEFT would load, with eager attention and experts."""
    with quiet():
        model = transformers.AutoModelForCausalLM.from_pretrained(
            base, dtype=getattr(torch, dtype), attn_implementation="eager", experts_implementation="eager"
        )
        for name, folder in adapters.items():
            if isinstance(model, peft.PeftModel):
                model.load_adapter(folder, name)
            else:
                model = peft.PeftModel.from_pretrained(model, folder, name)
    return model.eval()


def load_exact(base: Path, adapters: Mapping[str, Path]) -> "peft.PeftModel":
    """The same in float64, to be run inside `float64_throughout`. Routers of some classes are
    float32 whatever is asked for: they get their numbers once more."""
    model = load(base, adapters, "float64").double()
    routers = {name: tensor for name, tensor in model.named_parameters() if name.endswith(".mlp.gate.weight")}
    for shard in base.glob("*.safetensors") if routers else ():
        with safetensors.safe_open(shard, "pt") as file, torch.no_grad():
            for name in routers.keys() & set(file.keys()):
                routers[name].copy_(file.get_tensor(name))
    inner = model.get_base_model() if adapters else model
    text = getattr(inner.model, "language_model", inner.model)  # of a model of images and text
    if getattr(text, "rotary_emb", None) is not None:  # a model without positions has none
        with float64_throughout():
            text.rotary_emb = type(text.rotary_emb)(text.config)
    return model


@contextlib.contextmanager
def float64_throughout() -> Iterator[None]:
    """transformers is not float64 under .double(): RMSNorm, the RoPE table and softmax ask for torch.float32 by name.
    In here that name, and x.float(), mean float64. It is still their code that runs, not a copy of ours."""
    names = {name: mock.patch.object(torch, name, torch.float64) for name in ("float32", "float")}
    method = mock.patch.object(torch.Tensor, "float", torch.Tensor.double)  # x.float() of Gemma's norm
    default = torch.get_default_dtype()  # what an integer divided by an integer becomes
    try:
        torch.set_default_dtype(torch.float64)
        with names["float32"], names["float"], method:
            yield
    finally:
        torch.set_default_dtype(default)


@contextlib.contextmanager
def dense_layers() -> Iterator[None]:
    """PEFT moves LoRA from gate_proj, up_proj and down_proj to the experts in every model of a class that may have
    some: what is meant for dense layers and shared experts is lost there (peft #3711). In here it stays."""
    conversion = importlib.import_module("peft.utils.transformers_weight_conversion")
    with mock.patch.object(conversion, "_MOE_TARGET_MODULE_MAPPING", {}):
        yield


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """PEFT warns of tied and of unusual targets, which is what is tested here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def logits(model: "torch.nn.Module", prompts: Prompts, names: Sequence[str] | None = None) -> Logits:
    """Of every prompt token. names: an adapter for each prompt, in one left-padded batch (PEFT's mixed batch)."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    mixed = {"adapter_names": list(names)} if names is not None else {}
    with torch.no_grad():
        out = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, **mixed).logits
    return [to_numpy(row[longest - len(p) :]) for row, p in zip(out, prompts, strict=True)]


def alone(base: Path, adapters: Mapping[str, Path], prompts: Prompts, names: Sequence[str], dtype: str = "") -> Logits:
    """Each prompt by itself, unpadded, in a model that has only its adapter loaded. Exact, or in `dtype`."""
    models = {}
    for name in set(names):
        one = {} if name == BASE else {name: adapters[name]}
        models[name] = load(base, one, dtype) if dtype else load_exact(base, one)
    with contextlib.nullcontext() if dtype else float64_throughout():
        return [logits(models[name], [prompt])[0] for prompt, name in zip(prompts, names, strict=True)]


def generate(
    model: "peft.PeftModel", prompts: Prompts, names: Sequence[str], count: int, stops: Sequence[int]
) -> list[tuple[list[int], list[float]]]:
    """Greedy decoding of one left-padded mixed batch: of each prompt its new tokens, up to and with a stop, and the
    margin by which each was chosen."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    with torch.no_grad(), quiet():
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            adapter_names=list(names),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=list(stops),
            # Of a window of one token its cache keeps all (keys[-window + 1:] of cache_utils.py, in 5.23), so that it
            # decodes something else than without a cache.
            use_cache=getattr(model.config, "sliding_window", None) != 1,
            pad_token_id=0,
            output_scores=True,
            return_dict_in_generate=True,
        )
    results = []
    for row in range(len(prompts)):
        new = out.sequences[row, longest:].tolist()
        end = next((i + 1 for i, token in enumerate(new) if token in stops), len(new))
        best = [scores[row].topk(2).values for scores in out.scores[:end]]
        results.append((new[:end], [float(first - second) for first, second in best]))
    return results


def lora_layers(model: "torch.nn.Module") -> Iterator["peft.tuners.lora.LoraLayer"]:
    """Every layer that some adapter is on."""
    return (module for module in model.modules() if isinstance(module, peft.tuners.lora.LoraLayer))


def to_numpy(x: "torch.Tensor") -> np.ndarray:
    return x.to(torch.float64).numpy()
