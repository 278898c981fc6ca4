"""Adapters that PEFT itself saves: every kind that is supported loads, with the tensors PEFT holds."""

import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refimpl import Request, logits
from refimpl.adapter import Adapter
from refimpl.config import ATTENTION_MODULES, EMBED, LAYER_MODULES, LM_HEAD, ModelConfig
from refimpl.errors import AdapterError, AdapterWarning
from refimpl.loading.adapter_folder import load_adapter
from refimpl.loading.model_folder import load_model

torch = pytest.importorskip("torch", reason="PEFT needs torch")
transformers = pytest.importorskip("transformers", reason="PEFT wraps a transformers model")
peft = pytest.importorskip("peft", reason="these adapters are saved by PEFT")

CONFIG = ModelConfig(13, 16, 20, 2, 4, 2, 8, 1e-6, max_position_embeddings=64, bos_token_id=1, eos_token_ids=(2,))
SIZES = {"vocab_size": 13, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}
ALL = [*LAYER_MODULES, "embed_tokens", "lm_head"]


@pytest.fixture(autouse=True)
def their_warnings() -> Iterator[None]:
    """PEFT and transformers warn of things that are meant here; ours stay errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", AdapterWarning)
        yield


def base(bias: bool = False, tied: bool = False, grow: int = 0) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, **HEADS, attention_bias=bias, mlp_bias=bias, tie_word_embeddings=tied)
    model = transformers.LlamaForCausalLM(config)
    if grow:
        model.resize_token_embeddings(13 + grow, mean_resizing=False)
    return model


def save(folder: Path, model: Any, save_embeddings: bool | str = "auto", dtype: Any = None, **changes: Any) -> Any:
    """A LoRA of random numbers on the model, saved."""
    config = peft.LoraConfig(
        **{"r": 3, "lora_alpha": 7, "task_type": "CAUSAL_LM", "init_lora_weights": False} | changes
    )
    wrapped = peft.get_peft_model(model, config, autocast_adapter_dtype=dtype is None)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name or "modules_to_save" in name or parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape))
    wrapped.save_pretrained(folder, save_embedding_layers=save_embeddings)
    return wrapped


def load(folder: Path, **changes: Any) -> Adapter:
    return load_adapter(folder, dataclasses.replace(CONFIG, **changes))


def their_tensor(wrapped: Any, name: str) -> np.ndarray:
    return wrapped.state_dict()[f"base_model.model.{name}"].float().numpy()


@pytest.mark.parametrize(
    ("changes", "modules"),
    [
        ({"target_modules": ["q_proj", "v_proj"]}, ["q_proj", "v_proj"]),
        ({"target_modules": LAYER_MODULES, "use_rslora": True}, LAYER_MODULES),
        ({"target_modules": "all-linear"}, LAYER_MODULES),
        ({"target_modules": r".*\.self_attn\..*_proj"}, ATTENTION_MODULES),
        (
            {"target_modules": "all-linear", "exclude_modules": ["mlp.up_proj", "down_proj"]},
            [*ATTENTION_MODULES, "gate_proj"],
        ),
        (
            {"target_modules": ["q_proj"], "rank_pattern": {"0.self_attn.q_proj": 5}, "alpha_pattern": {"q_proj": 2}},
            ["q_proj"],
        ),
        ({"target_modules": ["q_proj", "k_proj"], "lora_bias": True}, ["q_proj", "k_proj"]),
        (
            {"target_modules": ["q_proj"], "bias": "none", "lora_dropout": 0.5, "init_lora_weights": "gaussian"},
            ["q_proj"],
        ),
        ({"target_modules": ["q_proj"], "init_lora_weights": "orthogonal", "r": 4}, ["q_proj"]),
    ],
)
def test_what_peft_saves_loads(tmp_path: Path, changes: dict[str, Any], modules: list[str]) -> None:
    wrapped = save(tmp_path, base(), **changes)
    adapter = load(tmp_path)
    assert adapter.lora.keys() == {(i, module) for i in range(2) for module in modules}
    assert (adapter.config.r, adapter.config.lora_alpha) == (changes.get("r", 3), 7)
    for (i, module), held in adapter.lora.items():
        name = f"model.layers.{i}.{'self_attn' if module in ATTENTION_MODULES else 'mlp'}.{module}"
        assert np.array_equal(held.A, their_tensor(wrapped, f"{name}.lora_A.default.weight"))
        assert np.array_equal(held.B, their_tensor(wrapped, f"{name}.lora_B.default.weight"))
        if changes.get("lora_bias"):
            assert held.bias is not None
            assert np.array_equal(held.bias, their_tensor(wrapped, f"{name}.lora_B.default.bias"))
    if "rank_pattern" in changes:
        assert (len(adapter.lora[0, "q_proj"].A), len(adapter.lora[1, "q_proj"].A)) == (5, 3)


def test_a_choice_of_layers(tmp_path: Path) -> None:
    save(tmp_path, base(), target_modules=["q_proj"], layers_to_transform=[1], layers_pattern="layers")
    with pytest.warns(AdapterWarning, match="covers 1 of the base's 2 layers"):
        assert load(tmp_path).lora.keys() == {(1, "q_proj")}


def test_half_precision(tmp_path: Path) -> None:
    wrapped = save(tmp_path, base().to(torch.bfloat16), dtype=torch.bfloat16, target_modules=["q_proj"])
    held = load(tmp_path).lora[1, "q_proj"]
    assert held.A.dtype.name == "bfloat16"
    theirs = their_tensor(wrapped, "model.layers.1.self_attn.q_proj.lora_A.default.weight")
    assert np.array_equal(held.A.astype(np.float32), theirs)


@pytest.mark.parametrize("tied", [False, True])
def test_embeddings_and_head(tmp_path: Path, tied: bool) -> None:
    wrapped = save(tmp_path, base(tied=tied), target_modules=ALL)
    adapter = load(tmp_path, tie_word_embeddings=tied)
    assert np.array_equal(adapter.lora[EMBED].A, their_tensor(wrapped, "model.embed_tokens.lora_embedding_A.default"))
    assert np.array_equal(adapter.lora[EMBED].B, their_tensor(wrapped, "model.embed_tokens.lora_embedding_B.default"))
    assert np.array_equal(adapter.lora[LM_HEAD].B, their_tensor(wrapped, "lm_head.lora_B.default.weight"))
    assert np.array_equal(adapter.replaced[EMBED], their_tensor(wrapped, "model.embed_tokens.base_layer.weight"))
    assert np.array_equal(adapter.replaced[LM_HEAD], their_tensor(wrapped, "lm_head.base_layer.weight"))


@pytest.mark.parametrize("grow", [0, 3])
@pytest.mark.parametrize("tied", [False, True])
def test_modules_to_save(tmp_path: Path, tied: bool, grow: int) -> None:
    saved = ["embed_tokens", "lm_head"]
    wrapped = save(tmp_path, base(tied=tied, grow=grow), target_modules=["q_proj"], modules_to_save=saved)
    adapter = load(tmp_path, tie_word_embeddings=tied)
    theirs = their_tensor(wrapped, "model.embed_tokens.modules_to_save.default.weight")
    assert theirs.shape == (13 + grow, 16)
    assert np.array_equal(adapter.replaced[EMBED], theirs)
    assert np.array_equal(adapter.replaced[LM_HEAD], their_tensor(wrapped, "lm_head.modules_to_save.default.weight"))


@pytest.mark.parametrize("tied", [False, True])
def test_a_vocabulary_grown_beside_the_lora(tmp_path: Path, tied: bool) -> None:
    """save_embedding_layers, which PEFT sets by itself when it can see that the vocabulary has grown."""
    wrapped = save(tmp_path, base(tied=tied, grow=3), save_embeddings=True, target_modules=["q_proj"])
    adapter = load(tmp_path, tie_word_embeddings=tied)
    assert np.array_equal(adapter.replaced[EMBED], their_tensor(wrapped, "model.embed_tokens.weight"))
    assert np.array_equal(adapter.replaced[LM_HEAD], their_tensor(wrapped, "lm_head.weight"))


def test_half_of_a_grown_vocabulary(tmp_path: Path) -> None:
    """With embed_tokens targeted, PEFT saves its grown copy, but not that of an untied lm_head."""
    save(tmp_path, base(grow=3), target_modules=["q_proj", "embed_tokens"])
    with pytest.raises(AdapterError, match="embed_tokens has 16 rows and lm_head 13"):
        load(tmp_path)
    save(tmp_path / "tied", base(tied=True, grow=3), target_modules=["q_proj", "embed_tokens"])
    adapter = load(tmp_path / "tied", tie_word_embeddings=True)
    assert adapter.replaced[LM_HEAD] is adapter.replaced[EMBED]


@pytest.mark.parametrize("edited", ["model.embed_tokens", "lm_head"])
@pytest.mark.parametrize("kind", ["copy", "saved"])
def test_what_peft_does_with_a_table_of_a_tied_base(tmp_path: Path, kind: str, edited: str) -> None:
    """A copy of the base's table lands in the one parameter of both; modules_to_save makes a layer of its own."""
    safetensors_torch = pytest.importorskip("safetensors.torch", reason="the file is edited")
    name = edited.rpartition(".")[2]
    how = (
        {"target_modules": ["q_proj", name]}
        if kind == "copy"
        else {"target_modules": ["q_proj"], "modules_to_save": [name]}
    )
    save(tmp_path, base(tied=True), **how)
    file = tmp_path / "adapter_model.safetensors"
    tensors = safetensors_torch.load_file(file)
    key = f"base_model.model.{edited}.{'base_layer.' if kind == 'copy' else ''}weight"
    tensors[key] = torch.randn(tensors[key].shape)
    safetensors_torch.save_file(tensors, file)

    theirs = peft.PeftModel.from_pretrained(base(tied=True), tmp_path).state_dict()
    ours = load(tmp_path, tie_word_embeddings=True).replaced
    plain = base(tied=True).state_dict()["lm_head.weight"].numpy()
    for module, leaf in ((EMBED, "model.embed_tokens"), (LM_HEAD, "lm_head")):
        names = [f"base_model.model.{leaf}.{end}weight" for end in ("modules_to_save.default.", "base_layer.", "")]
        effective = next(theirs[n] for n in names if n in theirs).numpy()
        assert np.array_equal(ours.get(module, plain), effective), leaf


@pytest.mark.parametrize(("bias", "count"), [("all", 14), ("lora_only", 2)])
def test_biases(tmp_path: Path, bias: str, count: int) -> None:
    wrapped = save(tmp_path, base(bias=True), target_modules=["q_proj"], bias=bias)
    adapter = load(tmp_path, attention_bias=True, mlp_bias=True)
    assert len(adapter.biases) == count
    theirs = their_tensor(wrapped, "model.layers.1.self_attn.q_proj.base_layer.bias")
    assert np.array_equal(adapter.biases[1, "q_proj"], theirs)
    if bias == "all":
        assert np.array_equal(adapter.biases[1, "up_proj"], their_tensor(wrapped, "model.layers.1.mlp.up_proj.bias"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"layer_replication": [[0, 2], [1, 2]]},
            r"refimpl.replicated\(model, \[\[0, 2\], \[1, 2\]\]\) makes that model",
        ),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"init_lora_weights": "olora"}, "init_lora_weights is 'olora'"),
        ({"init_lora_weights": "pissa_niter_2"}, "nobody can repeat"),
    ],
)
def test_what_is_not_supported(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    save(tmp_path, base(), target_modules=["q_proj"], **changes)
    with pytest.raises(AdapterError, match=says):
        load(tmp_path)


def test_other_kinds_of_adapter(tmp_path: Path) -> None:
    for config in (
        peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM"),
        peft.LoHaConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"),
        peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
    ):
        peft.get_peft_model(base(), config).save_pretrained(tmp_path)
        with pytest.raises(AdapterError, match="only LORA and VERA are supported"):
            load(tmp_path)


def test_a_base_that_transformers_saves(tmp_path: Path) -> None:
    for tied in (False, True):
        theirs = base(bias=True, tied=tied)
        theirs.save_pretrained(tmp_path / str(tied), max_shard_size="4KB" if tied else "5GB")
        ours = load_model(tmp_path / str(tied))
        assert ours.config == dataclasses.replace(CONFIG, attention_bias=True, mlp_bias=True, tie_word_embeddings=tied)
        weights = theirs.state_dict()
        for i, layer in enumerate(ours.layers):
            name = f"model.layers.{i}.self_attn.k_proj"
            assert np.array_equal(layer.linears["k_proj"].weight, weights[f"{name}.weight"].numpy())
            assert layer.linears["k_proj"].bias is not None
            assert np.array_equal(layer.linears["k_proj"].bias, weights[f"{name}.bias"].numpy())
        assert np.array_equal(ours.lm_head.weight, weights["lm_head.weight"].numpy())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
        {"trainable_token_indices": [13, 15]},
        {"trainable_token_indices": {"embed_tokens": [13], "lm_head": [14]}},
        {},
    ],
)
def test_a_vocabulary_that_peft_sees_has_grown(tmp_path: Path, tied: bool, changes: dict[str, Any]) -> None:
    """Of a base in a folder, plain save_pretrained() writes both tables, some of them under three names."""
    base(tied=tied).save_pretrained(tmp_path / "base")
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
    theirs.resize_token_embeddings(16)
    wrapped = save(tmp_path / "adapter", theirs, target_modules=["q_proj"], save_embeddings="auto", **changes)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "modules_to_save" in name or "trainable_tokens" in name:
                parameter.normal_()
    wrapped.save_pretrained(tmp_path / "adapter")
    wrapped.eval()
    adapter = load(tmp_path / "adapter", tie_word_embeddings=tied)
    assert adapter.replaced.keys() == {EMBED, LM_HEAD} and len(adapter.replaced[EMBED]) == 16
    ours = logits(load_model(tmp_path / "base", "float64"), [Request([1, 13, 14, 15], adapter)])[0]
    with torch.no_grad():
        expected = wrapped.double()(torch.tensor([[1, 13, 14, 15]])).logits[0].numpy()
    assert np.allclose(ours, expected, rtol=0, atol=2e-6 * abs(expected).max())  # their norms compute in float32
