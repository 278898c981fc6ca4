"""An adapter that brings its own vocabulary: TensorRT-LLM gives its tables to every request, we to its own alone.

So what it calls uid -1 is not the base: it is the base between the adapter's embed_tokens and lm_head. Here that is
the adapter without its LoRA, and the base alone refuses the ids of a vocabulary that it does not have.
"""

import dataclasses

import numpy as np
import pytest
from loading.folders import BASE
from published_tables import loaded, table
from support.build import random_adapter, random_model

from refimpl import Adapter, Request, generate, logits
from refimpl.config import EMBED, LM_HEAD
from refimpl.errors import RequestError
from refimpl.tensorrt_llm.backend import backend
from refimpl.weights import Linear


def uid_minus_one(adapter: Adapter) -> Adapter:
    """The tables of this adapter, and none of its LoRA."""
    return dataclasses.replace(adapter, lora={})


def test_llama_13b_gives_the_published_ids() -> None:
    t = table("llama_13b")
    model, adapters = loaded(t)
    chosen = {0: adapters["chinese"], -1: uid_minus_one(adapters["chinese"])}
    requests = [Request(row["prompt_ids"], chosen[row["lora_task_uid"]], stop_ids=()) for row in t.rows]
    said = generate(model, requests, t.max_new_tokens, ops=backend(t.dtype))
    assert [output.token_ids for output in said] == [row["output_ids"] for row in t.rows]
    with pytest.raises(RequestError, match="outside of the vocabulary of 32000 ids"):
        generate(model, [Request(t.rows[1]["prompt_ids"])], 1)


def test_the_tables_without_the_lora_are_the_base_between_these_tables() -> None:
    model, grown = random_model(BASE), BASE.vocab_size + 4
    rng = np.random.default_rng(5)
    tables = {module: rng.standard_normal((grown, BASE.hidden_size)) for module in (EMBED, LM_HEAD)}
    adapter = dataclasses.replace(random_adapter(BASE, seed=1), replaced=tables)
    new = [BASE.vocab_size, grown - 1, 3]  # two ids that only the adapter knows
    with_lora, without, base = logits(
        model, [Request(new, adapter), Request(new, uid_minus_one(adapter)), Request([1, 2, 3])]
    )
    between = dataclasses.replace(
        model,
        config=dataclasses.replace(BASE, vocab_size=grown),
        embed_tokens=tables[EMBED],
        lm_head=Linear(tables[LM_HEAD]),
    )
    assert np.allclose(without, logits(between, [Request(new)])[0], rtol=0, atol=1e-12)
    assert not np.allclose(with_lora, without, atol=1e-3)
    alone = logits(model, [Request([1, 2, 3])])[0]
    assert np.allclose(base, alone, rtol=0, atol=1e-12)  # nobody else got the tables
    with pytest.raises(RequestError, match="holds 13, outside of the vocabulary of 13 ids"):
        logits(model, [Request(new)])
