"""layer_replication as PEFT computes it, in float64: a deeper model that reads the base's layers again, and an adapter
whose numbers are those of the deeper one."""

from pathlib import Path
from typing import Any

import hugging_face as hf
import pytest
from examples import worst
from hypothesis import given, settings
from hypothesis import strategies as st

import refimpl
from refimpl.formats.peft import save_adapter
from refimpl.tools.merge import merged

pytestmark = pytest.mark.filterwarnings("ignore::refimpl.errors.AdapterWarning")

TOLERANCE = 1e-9
PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3]]
LAYERS = 3


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("replication") / "base"
    config = hf.transformers.LlamaConfig(
        vocab_size=23, hidden_size=16, intermediate_size=20, num_hidden_layers=LAYERS, num_attention_heads=4
    )
    hf.write_model(config, folder, seed=1)
    return folder


@st.composite
def runs(draw: st.DrawFn) -> list[list[int]]:
    """Draw one to three runs: overlapping, in any order, leaving layers out, or the base itself."""
    starts = draw(st.lists(st.integers(0, LAYERS - 1), min_size=1, max_size=3))
    return [[start, draw(st.integers(start + 1, LAYERS))] for start in starts]


@settings(max_examples=8)
@given(runs(), st.sampled_from([{"target_modules": "all-linear"}, {"target_modules": ["v_proj"], "use_dora": True}]))
def test_peft_computes_the_same(base: Path, runs: list[list[int]], how: dict[str, Any]) -> None:
    last = max(sum(stop - start for start, stop in runs) - 1, 0)
    lora = hf.peft.LoraConfig(r=2, lora_alpha=3, layer_replication=runs, alpha_pattern={f"layers.{last}.self_attn.v_proj": 5}, task_type="CAUSAL_LM", **how)  # fmt: skip  # noqa: E501
    folder = base.parent / f"adapter-{runs}-{len(how)}"
    hf.write_adapter(base, lora, folder, seed=2)
    model = refimpl.replicated(refimpl.load_model(base, "float64"), runs)
    adapter = refimpl.load_adapter(folder, model)
    assert {layer for layer, _ in adapter.lora} >= set(range(last + 1))
    ours = refimpl.logits(model, [refimpl.Request(prompt, adapter) for prompt in PROMPTS])
    names = ["a"] * len(PROMPTS)
    theirs = hf.alone(base, {"a": folder}, PROMPTS, names)
    assert worst(ours, theirs) <= TOLERANCE
    engine = refimpl.generate(model, [refimpl.Request(prompt, adapter) for prompt in PROMPTS], 3)
    one_by_one = [refimpl.generate(model, [refimpl.Request(prompt, adapter)], 3)[0] for prompt in PROMPTS]
    assert [output.token_ids for output in engine] == [output.token_ids for output in one_by_one]
    deeper = refimpl.logits(merged(model, adapter), [refimpl.Request(prompt) for prompt in PROMPTS])
    assert worst(deeper, theirs) <= TOLERANCE
    saved = folder.parent / f"{folder.name}-saved"
    if not saved.exists():
        save_adapter(adapter, saved)
        assert worst(hf.alone(base, {"a": saved}, PROMPTS, names), theirs) <= TOLERANCE
