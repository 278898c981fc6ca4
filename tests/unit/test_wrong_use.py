"""What Python callers get wrong is a LoracleError in one line."""

import dataclasses
import gc

import numpy as np
import pytest
from support.build import random_adapter, random_model

import refimpl
from refimpl.adapter_cache import AdapterCache
from refimpl.arrays import Precision
from refimpl.batch import ScheduledRequest, make_batch
from refimpl.config import EMBED, LM_HEAD, ModelConfig
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


def replaced(**rows: int) -> dict:
    """Whole tables with so many rows, as modules_to_save brings them."""
    return {(-1, name): np.zeros((n, 10)) for name, n in rows.items()}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"replaced": {LM_HEAD: np.zeros((7, 10))}}, r"lm_head is \[11, 10\] here, \[7, 10\] there"),
        ({"replaced": {LM_HEAD: np.zeros((11, 12))}}, r"lm_head is \[11, 10\] here, \[11, 12\] there"),
        ({"replaced": {EMBED: np.zeros((11, 12))}}, r"embed_tokens is \[11, 10\] here, \[11, 12\] there"),
        ({"replaced": replaced(embed_tokens=13, lm_head=12)}, r"lm_head is \[13, 10\] here, \[12, 10\] there"),
        ({"replaced": {(0, "q_proj"): np.zeros((8, 12))}}, r"q_proj is \[8, 10\] here, \[8, 12\] there"),
        ({"biases": {(0, "q_proj"): np.zeros(1)}}, r"q_proj is \[8\] here, \[1\] there"),
        ({"biases": {(0, "up_proj"): np.zeros(8)}}, r"up_proj is \[7\] here, \[8\] there"),
        ({"biases": {(1, "up_proj"): np.zeros(7)}}, "this one has no model.layers.1.mlp.up_proj"),
    ],
)
def test_whole_layers_for_another_model_are_refused(parts: dict, message: str) -> None:
    """On a GPU a row too short would be read past its end, and a bias of one number would be added everywhere."""
    stranger = dataclasses.replace(random_adapter(SMALL, 1), lora={}, **parts)
    with pytest.raises(refimpl.LoracleError, match=f"another model: .*{message}|another model: {message}"):
        refimpl.logits(random_model(SMALL), [refimpl.Request([2, 3], stranger)])


def test_a_bad_request_leaves_the_engine_as_it_was() -> None:
    model = random_model(SMALL)
    engine = refimpl.Engine(model, num_blocks=8)
    for bad in (refimpl.Request([99]), refimpl.Request([]), refimpl.Request([1] * 30, max_new_tokens=200)):
        engine.cache.num_blocks = 1 if bad.max_new_tokens else 8
        with pytest.raises(refimpl.LoracleError):
            refimpl.generate(model, [refimpl.Request([4]), bad], engine=engine)
        assert not engine.busy
    engine.cache.num_blocks = 8
    assert len(refimpl.generate(model, [refimpl.Request([4])], 2, engine=engine)) == 1


def test_an_engine_is_free_again_after_a_break() -> None:
    model = random_model(SMALL)
    engine = refimpl.Engine(model, num_blocks=8)
    for _ in refimpl.stream(
        model, [refimpl.Request([4], stop_ids=()), refimpl.Request([5], stop_ids=())], 9, engine=engine
    ):
        break
    gc.collect()
    assert not engine.busy and engine.cache.in_use == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ops": refimpl.REFERENCE}, "ops was given, and an engine that has another"),
        ({"precision": Precision("model", "float16")}, "precision was given, and an engine that has another"),
        ({"precision": "nonsense"}, "precision was given, and an engine that has another"),
    ],
)
def test_arguments_that_contradict_the_engine_are_refused(given: dict, message: str) -> None:
    model = random_model(SMALL)
    engine = refimpl.Engine(model, num_blocks=8)
    with pytest.raises(refimpl.LoracleError, match=message):
        refimpl.generate(model, [refimpl.Request([4])], engine=engine, **given)
    own = {"ops": refimpl.NUMPY, "precision": engine.precision}
    assert refimpl.generate(model, [refimpl.Request([4])], 1, engine=engine, **own)
    with pytest.raises(refimpl.LoracleError, match="the engine serves Model"):
        refimpl.generate(random_model(SMALL), [refimpl.Request([4])], engine=engine)
    with pytest.raises(refimpl.LoracleError, match="precision must be a Precision, not str"):
        refimpl.generate(model, [refimpl.Request([4])], precision="nonsense")  # type: ignore[arg-type]


def test_more_tokens_than_the_model_has_positions_take_no_more_memory() -> None:
    model = random_model(SMALL)
    [output] = refimpl.generate(model, [refimpl.Request([4], stop_ids=())], 999_999_999)
    assert len(output.token_ids) == SMALL.max_position_embeddings


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"top_k": 2.5}, "top_k 2.5 is not a whole number"),
        ({"seed": 1.5}, "seed 1.5 is not a whole number"),
        ({"max_new_tokens": 2.5}, "max_new_tokens 2.5 is not a whole number"),
        ({"top_k": True}, "top_k True is not a whole number"),
    ],
)
def test_what_must_be_whole_is_checked(wrong: dict, message: str) -> None:
    with pytest.raises(refimpl.LoracleError, match=message):
        refimpl.generate(random_model(SMALL), [refimpl.Request([4], **wrong)])
    numbers = {name: np.int64(2) for name in wrong}
    assert refimpl.generate(random_model(SMALL), [refimpl.Request([4], **numbers)], 1)


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
    with pytest.raises(refimpl.LoracleError, match="list of requests: put the one in brackets"):
        refimpl.generate(model, refimpl.Request([2]))  # type: ignore[arg-type]
    with pytest.raises(refimpl.LoracleError, match="max_new_tokens '5' is not a whole number"):
        refimpl.generate(model, [refimpl.Request([2])], max_new_tokens="5")  # type: ignore[arg-type]
    with pytest.raises(refimpl.LoracleError, match="needs the base: a model, or its config; not str"):
        refimpl.load_adapter("bard", "tiny")  # type: ignore[arg-type]
    with pytest.raises(refimpl.LoracleError, match="brad: is not there; the embedded voices are pirate, bard"):
        refimpl.load_adapter("brad", SMALL)
    assert repr(model) == "Model(1 layers, hidden 10, vocab 11, float64, cpu)"
    assert repr(random_adapter(SMALL, 1)) == "Adapter('adapter-1', r=3, 7 modules)"
