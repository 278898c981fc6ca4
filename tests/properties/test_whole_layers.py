"""Adapters that bring whole layers along (modules_to_save: lm_head and embed_tokens, also with a larger vocabulary),
rows of some tokens (trainable_token_indices) or biases of their own.

Their rows are those of a base with that layer swapped in, and nobody else's rows change."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from support.build import Case, adapters, configs, random_adapter, random_model
from support.compare import assert_equal_to_rounding
from support.dense import dense_logits, merged
from support.serving import assert_as_if_alone, serve
from support.tables import every_table

from refimpl import Ops, Request, logits
from refimpl.adapter import Adapter, TokenRows
from refimpl.config import EMBED, LAYER_MODULES, LM_HEAD, ModelConfig, Module


@st.composite
def replacing_adapters(draw: st.DrawFn, config: ModelConfig, seed: int) -> Adapter:
    """LoRA in the layers, and a new lm_head, a new embedding, more words in both, new biases, or several of these."""
    rng = np.random.default_rng([seed, 5])
    grown = draw(st.sampled_from([0, 0, 1, 4]))
    which = [EMBED, LM_HEAD] if grown else draw(st.lists(st.sampled_from([EMBED, LM_HEAD]), unique=True))
    width = {EMBED: 1, LM_HEAD: 3 / np.sqrt(config.hidden_size)}
    shape = (config.vocab_size + grown, config.hidden_size)
    saved = {module: rng.standard_normal(shape) * width[module] for module in which}
    biased = draw(
        st.lists(st.sampled_from(config.modules()[1:-1]), unique=True, min_size=0 if which else 1, max_size=4)
    )
    biases = {module: 0.5 * rng.standard_normal(config.shape(module)[0]) for module in biased}
    lora = random_adapter(config, seed, r=3, alpha=4.0, use_rslora=draw(st.booleans()), modules=LAYER_MODULES[::2])
    return replace(lora, replaced=saved, biases=biases, tokens=draw(token_rows(config, which, seed)))


@st.composite
def token_rows(draw: st.DrawFn, config: ModelConfig, whole: Sequence[Module], seed: int) -> dict[Module, TokenRows]:
    """Rows of some tokens, the last one among them, in the tables that are not whole ones of the adapter's own."""
    rng, tokens = np.random.default_rng([seed, 6]), {}
    for module in draw(st.lists(st.sampled_from([EMBED, LM_HEAD]), unique=True)):
        if module not in whole:
            others = rng.permutation(config.vocab_size - 1)[: draw(st.integers(0, 4))]
            ids = np.array([config.vocab_size - 1, *others], np.int32)
            tokens[module] = TokenRows(ids, rng.standard_normal((len(ids), config.hidden_size)))
    return tokens


@st.composite
def replacing_cases(draw: st.DrawFn) -> Case:
    """Two adapters that replace layers among others that do not, and requests for the base."""
    config = draw(configs(max_layers=2))
    own = [draw(replacing_adapters(config, seed)) for seed in (1, 2)]
    pool = [*own, *draw(adapters(config, 1))]
    order = draw(st.permutations([*pool, None, own[0], draw(st.sampled_from([None, *pool]))]))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    requests = []
    for adapter in order:
        known = adapter.replaced[EMBED].shape[0] if adapter and EMBED in adapter.replaced else config.vocab_size
        prompt = [known - 1, *rng.integers(0, known, draw(st.integers(0, 6))).tolist()]  # the last word too
        requests.append(Request(prompt, adapter, stop_ids=()))
    return Case(random_model(config, draw(st.integers(0, 99))), pool, requests)


def check_replaced_layers_are_swapped_in(ops: Ops, case: Case) -> None:
    model, _, requests = case
    for got, request in zip(logits(model, requests, ops), requests, strict=True):
        assert_equal_to_rounding(got, dense_logits(merged(model, request), request.prompt_ids))


def check_replaced_layers_do_not_leak(ops: Ops, case: Case) -> None:
    """Those who did not ask for such an adapter get what they get without it, at their own width."""
    model, _, requests = case
    others = [r for r in requests if r.adapter is None or r.adapter.can_be_summed]
    mixed = logits(model, requests, ops)
    for request, expected in zip(others, logits(model, others, ops), strict=True):
        got = mixed[requests.index(request)]
        assert got.shape[1] == model.config.vocab_size
        assert_equal_to_rounding(got, expected)


def check_replaced_layers_while_serving(ops: Ops, case: Case) -> None:
    """Chunks, few blocks, and a token of the larger vocabulary is read back in."""
    model, _, requests = case
    engine, ids = serve(model, requests, ops, num_blocks=6, block_size=2, max_batch_tokens=7)
    assert_as_if_alone(engine, ids, requests)


@every_table
@settings(max_examples=60)
@given(case=replacing_cases())
def test_own_rows_equal_a_base_with_the_layer_swapped_in(ops: Ops, case: Case) -> None:
    check_replaced_layers_are_swapped_in(ops, case)


@every_table
@settings(max_examples=40)
@given(case=replacing_cases())
def test_rows_of_other_requests_do_not_change(ops: Ops, case: Case) -> None:
    check_replaced_layers_do_not_leak(ops, case)


@every_table
@settings(max_examples=10)
@given(case=replacing_cases())
def test_serving_keeps_replaced_layers_apart(ops: Ops, case: Case) -> None:
    check_replaced_layers_while_serving(ops, case)
