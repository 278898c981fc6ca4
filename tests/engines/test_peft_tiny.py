"""The embedded model and its voices load unchanged in transformers and PEFT, and say the same there."""

import json

import hugging_face as hf
import pytest
from examples import worst

import refimpl
from refimpl import tiny

BASE = tiny.base_path()
pytestmark = pytest.mark.filterwarnings("ignore::refimpl.errors.AdapterWarning")

TOLERANCE = 1e-9  # times max(1, largest logit)
VOICES = tuple(tiny.VOICES)
NAMES = [hf.BASE, *VOICES, VOICES[0]]


def prompts(model: refimpl.Model) -> list[list[int]]:
    """One for each of NAMES, of different lengths."""
    ids = [model.tokenizer.encode(text) for text in tiny.DEMO_PROMPTS]
    return [ids[i % len(ids)][: len(ids[i % len(ids)]) - i] for i in range(len(NAMES))]


def test_our_tokenizer_gives_the_ids_that_transformers_gives() -> None:
    model, theirs = refimpl.load_model("tiny"), hf.transformers.AutoTokenizer.from_pretrained(BASE)
    for text in (*tiny.DEMO_PROMPTS, "", "a  b\n\nc", "\N{SNOWMAN} é"):
        assert list(model.tokenizer.encode(text)) == theirs.encode(text)
        assert model.tokenizer.decode(theirs.encode(text)) == theirs.decode(theirs.encode(text), True)


def test_base_and_voices_give_the_logits_of_peft_alone_and_mixed() -> None:
    model = refimpl.load_model("tiny", "float64")
    adapters = {name: refimpl.load_adapter(name, model.config) for name in VOICES}
    ids = prompts(model)
    ours = refimpl.logits(model, [refimpl.Request(p, adapters.get(n)) for p, n in zip(ids, NAMES, strict=True)])
    peft_model = hf.load_exact(BASE, tiny.VOICES)
    with hf.float64_throughout():
        mixed = hf.logits(peft_model, ids, NAMES)
    assert worst(ours, hf.alone(BASE, tiny.VOICES, ids, NAMES)) <= TOLERANCE
    assert worst(ours, mixed) <= TOLERANCE


def test_base_and_voices_continue_a_prompt_with_the_tokens_of_peft() -> None:
    model = refimpl.load_model("tiny", "float64")
    adapters = {name: refimpl.load_adapter(name, model.config) for name in VOICES}
    ids = prompts(model)
    requests = [refimpl.Request(p, adapters.get(n)) for p, n in zip(ids, NAMES, strict=True)]
    outputs = refimpl.generate(model, requests, max_new_tokens=24)
    peft_model = hf.load_exact(BASE, tiny.VOICES)
    with hf.float64_throughout():
        theirs = hf.generate(peft_model, ids, NAMES, 24, model.config.eos_token_ids)
    assert all(min(margins) > TOLERANCE for _, margins in theirs), "a tie: choose another prompt"
    assert [output.token_ids for output in outputs] == [tokens for tokens, _ in theirs]


def test_the_checkpoint_is_one_that_transformers_knows_by_name() -> None:
    config = json.loads((BASE / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert type(hf.load(BASE, {}, "float32")).__name__ == "LlamaForCausalLM"
