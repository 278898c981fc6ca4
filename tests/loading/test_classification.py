"""refimpl.scores: a head is one more product behind the same forward pass, the base's or an adapter's own."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import BASE, lora_tensors, model_tensors, random, refused, write_adapter, write_model
from support.build import random_adapter, random_model
from support.compare import assert_equal_to_rounding
from support.tables import every_table

import refimpl
from refimpl import Adapter, Engine, Ops, Request, logits, scores, trace
from refimpl.classification import scored_prompt
from refimpl.config import SCORE
from refimpl.errors import AdapterError, LoracleError, RequestError, WeightsError
from refimpl.tools.inspect import inspect
from refimpl.tools.merge import merged
from refimpl.training import TrainingArguments, train

HEAD = "base_model.model.score.weight"
PROMPT = [3, 1, 4, 1, 5]


def with_head(seed: int, labels: int) -> Adapter:
    """A synthetic adapter with a head of so many labels."""
    head = np.random.default_rng(seed).standard_normal((labels, BASE.hidden_size))
    return replace(random_adapter(BASE, seed), replaced={SCORE: head})


@every_table
def test_a_head_is_a_product_with_the_last_hidden_state(ops: Ops) -> None:
    """Heads of 1, 3 and 20 labels, more than the vocabulary, in one ragged batch."""
    model = random_model(BASE)
    adapters = [with_head(seed, labels) for seed, labels in ((1, 3), (2, 1), (3, 20))]
    requests = [Request(PROMPT[: 2 + i], adapter) for i, adapter in enumerate(adapters)] + [Request([7], adapters[0])]
    ours = scores(model, requests, ops)
    assert [len(row) for row in ours] == [3, 1, 20, 3]
    for request, row in zip(requests, ours, strict=True):
        plain = replace(request.adapter, replaced={})
        with trace("norm") as arrays:
            logits(model, [replace(request, adapter=plain)])
        assert_equal_to_rounding(row, request.adapter.replaced[SCORE] @ arrays["norm"][-1])


def test_the_last_token_that_is_no_padding_is_scored() -> None:
    config = replace(BASE, pad_token_id=2)
    assert [len(scored_prompt(ids, config)) for ids in ([3, 2, 4], [3, 4, 2, 2], [2], [2, 2, 2])] == [3, 2, 1, 1]
    assert len(scored_prompt([3, 2, 2], BASE)) == 3  # no padding token


def test_a_base_with_a_head_from_its_folder(tmp_path: Path) -> None:
    tensors = model_tensors(replace(BASE, labels=3))
    assert "lm_head.weight" not in tensors
    classes = {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "a", "1": "b", "2": "c"}}
    model = refimpl.load_model(write_model(tmp_path, tensors, pad_token_id=-1, **classes), "float64")
    assert (model.config.labels, model.config.pad_token_id) == (3, None)
    with trace("norm") as arrays:
        row = scores(model, [Request(PROMPT)])[0]
    assert_equal_to_rounding(row, tensors["score.weight"] @ arrays["norm"][-1])
    report = inspect(tmp_path)
    assert report.ok and "score.weight" in [module.module for module in report.modules]
    with refused(RequestError, "the base has a classification head (score): ask refimpl.scores"):
        logits(model, [Request(PROMPT)])
    with refused(RequestError, "the base has a classification head"):
        Engine(model).add(Request(PROMPT))
    with refused(WeightsError, "score.weight has shape [3, 12], config.json makes it [2, 12]"):
        refimpl.load_model(write_model(tmp_path, tensors, architectures=["LlamaForSequenceClassification"]))


def test_who_has_no_head_is_refused_and_who_has_one_writes_no_text(tmp_path: Path) -> None:
    model, adapter = random_model(BASE), with_head(1, 2)
    with refused(RequestError, "neither the base nor an adapter of the request has a classification head"):
        scores(model, [Request(PROMPT, adapter), Request(PROMPT)])
    with refused(RequestError, "adapter adapter-1 has a classification head (score): ask refimpl.scores"):
        logits(model, [Request(PROMPT, adapter)])
    with refused(RequestError, "it can be neither summed nor weighted"):
        scores(model, [Request(PROMPT, [(adapter, 0.5)])])
    with refused(AdapterError, "brings a classification head (score) along: it is not merged"):
        merged(model, adapter)
    assert scores(model, []) == []


def test_the_head_of_a_folder(tmp_path: Path) -> None:
    """task_type SEQ_CLS is enough: PEFT adds its heads to modules_to_save, and old versions did not write that down."""
    for name, keys in (("new", {"modules_to_save": ["classifier", "score"]}), ("old", {"task_type": "SEQ_CLS"})):
        folder = write_adapter(tmp_path / name, lora_tensors() | {HEAD: random((4, 12))}, **keys)
        adapter = refimpl.load_adapter(folder, BASE)
        assert np.array_equal(adapter.replaced[SCORE], random((4, 12)))
        assert ("score", "replaced") in [(module.module, module.kind) for module in inspect(folder, BASE).modules]
        assert inspect(folder).ok


@pytest.mark.parametrize(
    ("tensors", "keys", "base", "says"),
    [
        ({HEAD: random((4, 11))}, {"task_type": "SEQ_CLS"}, BASE, "has shape [4, 11], the base makes it [labels, 12]"),
        ({HEAD: random((4,))}, {"task_type": "SEQ_CLS"}, BASE, "has shape [4], the base makes it [labels, 12]"),
        ({HEAD: random((4, 12))}, {}, BASE, "is not for use: modules_to_save does not name it"),
        ({HEAD: random((4, 12))}, {"task_type": "SEQ_CLS"}, replace(BASE, labels=3), "the base makes it [3, 12]"),
        ({}, {"task_type": "SEQ_CLS"}, replace(BASE, labels=3), "'score': there is no tensor for score"),
        ({HEAD.replace("weight", "bias"): random((4,))}, {"task_type": "TOKEN_CLS"}, BASE, "a classification head"),
        ({HEAD.replace("score", "classifier"): random((4, 12))}, {}, BASE, "a classification head"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*task_type")
def test_a_head_that_does_not_fit(
    tmp_path: Path, tensors: dict[str, np.ndarray], keys: dict[str, Any], base: Any, says: str
) -> None:
    with refused(AdapterError, says):
        refimpl.load_adapter(write_adapter(tmp_path, lora_tensors() | tensors, **keys), base)


def test_a_base_with_a_head_is_not_trained() -> None:
    model = replace(random_model(BASE), config=replace(BASE, labels=2))
    with refused(LoracleError, "the base has a classification head (score): training is of models that write text"):
        train(model, [], TrainingArguments())
