"""What Python callers get wrong is a LoracleError in one line."""

import pytest
from support.build import random_adapter, random_model

import refimpl
from refimpl.adapter_cache import AdapterCache
from refimpl.arrays import Precision
from refimpl.batch import ScheduledRequest, make_batch
from refimpl.config import ModelConfig
from refimpl.kv_cache import KVCache

SMALL = ModelConfig(11, 10, 7, 1, 2, 1, 4, max_position_embeddings=32)
DEEPER = ModelConfig(11, 10, 7, 2, 2, 1, 4, max_position_embeddings=32)
WIDER = ModelConfig(11, 12, 7, 1, 2, 1, 4, max_position_embeddings=32)


@pytest.mark.parametrize(("config", "words"), [(DEEPER, "layers.1"), (WIDER, r"\[8, 10\] here, \[8, 12\] there")])
def test_an_adapter_for_another_model_is_refused(config: ModelConfig, words: str) -> None:
    stranger = random_adapter(config, 1)
    with pytest.raises(refimpl.LoracleError, match=f"another model.*{words}"):
        refimpl.logits(random_model(SMALL), [refimpl.Request([2, 3], stranger)])


def test_a_busy_engine_is_not_shared() -> None:
    model = random_model(SMALL)
    engine = refimpl.Engine(model, num_blocks=8)
    engine.add(refimpl.Request([2, 3]))
    with pytest.raises(refimpl.LoracleError, match="other requests"):
        refimpl.generate(model, [refimpl.Request([4])], engine=engine)


def test_the_trace_records_what_its_page_promises() -> None:
    model = random_model(SMALL)
    with refimpl.trace() as t:
        refimpl.logits(model, [refimpl.Request([2, 3, 4], random_adapter(SMALL, 1))])
    modules = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    promised = {f"layers.0.{m}.{part}" for m in modules for part in ("input", "base", "lora")}
    promised |= {f"layers.0.{name}" for name in ("q_rope", "k_rope", "attention", "mlp", "output")}
    promised |= {f"{m}.{part}" for m in ("embed_tokens", "lm_head") for part in ("input", "base", "lora")}
    assert set(t) == promised | {"norm", "logits"}
    assert all(len(t[name]) == 3 for name in t)


def test_an_adapter_id_that_names_no_adapter_is_refused_before_anything_is_written() -> None:
    model, p = random_model(SMALL), Precision("model", "float64")
    cache, adapters = KVCache(SMALL, 2, 4, p), AdapterCache(model, p, refimpl.NUMPY)
    adapters.acquire(random_adapter(SMALL, 1))
    for slot in (1, 7, -2):
        with pytest.raises(
            refimpl.LoracleError, match=f"adapter id {slot} of token 0 is out of range: the slots in use"
        ):
            make_batch([ScheduledRequest([2, 3], 0, [0], [(slot, 1.0)])], cache, adapters.slots, refimpl.NUMPY)
    assert not cache.k.any()


def test_what_a_hurried_caller_mixes_up_is_said_in_one_line() -> None:
    model = random_model(SMALL)
    with pytest.raises(refimpl.LoracleError, match="list of requests"):
        refimpl.logits(model, refimpl.Request([2]))  # type: ignore[arg-type]
    with pytest.raises(refimpl.LoracleError, match="max_new_tokens '5' is not a whole number"):
        refimpl.generate(model, [refimpl.Request([2])], max_new_tokens="5")  # type: ignore[arg-type]
    with pytest.raises(refimpl.LoracleError, match=r"as model\.config; not Model"):
        refimpl.load_adapter("bard", model)  # type: ignore[arg-type]
    with pytest.raises(refimpl.LoracleError, match="brad: is not there; the embedded voices are pirate, bard"):
        refimpl.load_adapter("brad", SMALL)
    assert repr(model) == "Model(1 layers, hidden 10, vocab 11, float64, cpu)"
    assert repr(random_adapter(SMALL, 1)) == "Adapter('adapter-1', r=3, 7 modules)"
