"""An adapter that was written for TensorRT-LLM and one that is prescaled as it is loaded are the same numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.build import RANKS, as_dtype, configs, random_adapter, random_model
from support.compare import assert_same_bits

from refimpl import Model, Precision
from refimpl.adapter import Adapter
from refimpl.adapter_slots import AdapterSlots
from refimpl.config import LAYER_MODULES, ModelConfig
from refimpl.formats.trtllm import from_pair, to_pair
from refimpl.tensorrt_llm.backend import backend

LOADER = {"manager": "manager", "convert": "convert", "peft": "convert"}


def slots_of(model: Model, adapter: Adapter, dtype: str, order: str) -> AdapterSlots:
    slots, ops = AdapterSlots(model, Precision("model", dtype)), backend(dtype, order)
    slots.put(0, ops.bind_adapter(adapter, model.config, ops.adapter_scale))
    return slots


@pytest.mark.parametrize("order", sorted(LOADER))
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@given(
    config=configs(max_layers=2),
    modules=st.lists(st.sampled_from(LAYER_MODULES), min_size=1, unique=True),
    r=st.sampled_from(RANKS),
    use_rslora=st.booleans(),
    checkpoint=st.sampled_from(["float32", "float16", "bfloat16"]),
)
def test_the_adapter_slots_hold_what_the_arrays_hold(
    dtype: str, order: str, config: ModelConfig, modules: list[str], r: int, use_rslora: bool, checkpoint: str
) -> None:
    """Where the loaders' scale is PEFT's, that is without patterns; and q, k and v together, or manager adds rows."""
    modules = [*modules, "q_proj", "k_proj", "v_proj"]
    model = random_model(config, 0, "float32")
    adapter = as_dtype(random_adapter(config, r, r, 7.0, use_rslora, modules), checkpoint)
    back, _ = from_pair(to_pair(adapter, dtype, order)[0], config, "back")
    direct, written = (slots_of(model, a, dtype, LOADER[order]) for a in (adapter, back))
    assert adapter.lora.keys() == back.lora.keys()
    for module in back.lora:
        found, expected = written.at(module)[0], direct.at(module)[0]
        assert (found.scale, expected.scale) == (1.0, 1.0)
        assert_same_bits(found.A, expected.A)
        assert_same_bits(found.B, expected.B)
