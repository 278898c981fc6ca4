"""Classification heads as transformers and PEFT compute them, in float64: the base's own, one that PEFT puts on, and
adapters with heads of different numbers of labels in one batch."""

from pathlib import Path

import hugging_face as hf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refimpl
from refimpl.config import SCORE
from refimpl.formats.peft import save_adapter

pytestmark = pytest.mark.filterwarnings("ignore::refimpl.errors.AdapterWarning")
torch, peft, transformers = hf.torch, hf.peft, hf.transformers

TOLERANCE = 1e-9
SIZES = {
    "vocab_size": 23,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
}
PAD = 2


def write_classifier(folder: Path, labels: int, config: "transformers.PretrainedConfig") -> None:
    """A base with a head of so many labels, all of it random."""
    config.num_labels = labels
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    rng = np.random.default_rng(labels)
    with torch.no_grad():
        for parameter in model.parameters():
            hf.fill(parameter, rng, 0.4)
    model.to(torch.float32).save_pretrained(folder)


def write_head(base: Path, folder: Path, seed: int, labels: int, **lora: object) -> None:
    """An adapter with a head of its own on a base of text, as PEFT saves it."""
    rng = np.random.default_rng(seed)
    with hf.quiet():
        model = classifier(base, labels)
        model = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", **{"r": 3, "lora_alpha": 5} | lora))
        with torch.no_grad():
            for parameter in filter(lambda x: x.requires_grad, model.parameters()):
                hf.fill(parameter, rng, 0.6)
        model.save_pretrained(folder)


def classifier(base: Path, labels: int | None = None) -> "torch.nn.Module":
    """The base as a classifier; with `labels` its head is new, and an adapter replaces it."""
    more = {} if labels is None else {"num_labels": labels}
    with hf.quiet():
        return transformers.AutoModelForSequenceClassification.from_pretrained(
            base, dtype=torch.float64, attn_implementation="eager", **more
        )


def theirs(base: Path, prompt: list[int], labels: int | None = None, adapter: Path | None = None) -> np.ndarray:
    """What PEFT, or transformers alone, scores one prompt with."""
    model = classifier(base, labels)
    with hf.quiet():
        model = (peft.PeftModel.from_pretrained(model, adapter) if adapter else model).double().eval()
    inner = model.get_base_model() if adapter else model
    with hf.float64_throughout(), torch.no_grad():
        inner.model.rotary_emb = type(inner.model.rotary_emb)(inner.config)
        return hf.to_numpy(model(input_ids=torch.tensor([prompt])).logits[0])


def close(ours: np.ndarray, expected: np.ndarray) -> bool:
    return ours.shape == expected.shape and bool(
        np.abs(ours - expected).max() <= TOLERANCE * max(1, abs(expected).max())
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of text, two adapters with heads, and one that is plain LoRA."""
    folder = tmp_path_factory.mktemp("scores")
    hf.write_model(transformers.LlamaConfig(**SIZES, pad_token_id=PAD), folder / "base", 1)
    write_head(folder / "base", folder / "three", 1, 3, target_modules=["q_proj", "down_proj"], use_rslora=True)
    write_head(folder / "base", folder / "five", 2, 5, target_modules="all-linear", use_dora=True)
    return folder


REQUESTS = st.tuples(st.sampled_from(["three", "five"]), st.lists(st.integers(0, 4), min_size=1, max_size=6))


@settings(max_examples=15)
@given(st.lists(REQUESTS, min_size=1, max_size=3))
def test_heads_of_several_adapters_in_one_batch(folder: Path, batch: list[tuple[str, list[int]]]) -> None:
    """Ids of few tokens, so that the padding token stands anywhere: at the end, alone, everywhere."""
    model = refimpl.load_model(folder / "base", "float64")
    assert model.config.pad_token_id == PAD
    adapters = {name: refimpl.load_adapter(folder / name, model) for name in ("three", "five")}
    ours = refimpl.scores(model, [refimpl.Request(prompt, adapters[name]) for name, prompt in batch])
    for (name, prompt), row in zip(batch, ours, strict=True):
        labels = len(adapters[name].replaced[SCORE])
        assert close(row, theirs(folder / "base", prompt, labels, folder / name))


CLASSES = [
    transformers.LlamaConfig(**SIZES, pad_token_id=PAD),
    transformers.LlamaConfig(**SIZES, pad_token_id=None, tie_word_embeddings=True),
    transformers.MistralConfig(**SIZES, sliding_window=3, pad_token_id=PAD),
    transformers.Qwen3Config(**SIZES, pad_token_id=PAD, tie_word_embeddings=True),
    transformers.Gemma2Config(**SIZES, pad_token_id=PAD, query_pre_attn_scalar=4),
]


@pytest.mark.parametrize("labels", [1, 2, 4])
@pytest.mark.parametrize("config", CLASSES, ids=lambda config: f"{config.model_type}-{config.pad_token_id}")
def test_a_base_with_a_head(tmp_path: Path, config: "transformers.PretrainedConfig", labels: int) -> None:
    write_classifier(tmp_path / "base", labels, config)
    write_head(tmp_path / "base", tmp_path / "own", 3, labels, target_modules=["v_proj"])
    model = refimpl.load_model(tmp_path / "base", "float64")
    assert model.config.labels == labels
    own = refimpl.load_adapter(tmp_path / "own", model)
    prompts = [[3, 1, 4, 1], [5], [9, 2, 6, PAD], [PAD, PAD]]
    requests = [refimpl.Request(prompt) for prompt in prompts] + [refimpl.Request(prompts[0], own)]
    ours = refimpl.scores(model, requests)
    for prompt, row in zip(prompts, ours, strict=False):
        assert close(row, theirs(tmp_path / "base", prompt))
    assert close(ours[-1], theirs(tmp_path / "base", prompts[0], adapter=tmp_path / "own"))


def test_peft_takes_our_folder_for_its_own(folder: Path, tmp_path: Path) -> None:
    model = refimpl.load_model(folder / "base", "float64")
    save_adapter(refimpl.load_adapter(folder / "five", model), tmp_path / "saved")
    prompt = [3, 1, 4]
    expected = theirs(folder / "base", prompt, 5, folder / "five")
    assert close(theirs(folder / "base", prompt, 5, tmp_path / "saved"), expected)
