"""The whole model with the kernels in it, against the definition.

Two right implementations in float32 differ by rounding, and by how much depends on the model. So the noise is measured,
not guessed: REFERENCE in float64 says what the logits are, REFERENCE in float32 by how much a right float32 run is off
from that, and CUDA may be off by a few times as much.
"""

from dataclasses import replace

import numpy as np
import pytest
from cases import needs_cpu, orders, scheduled
from hypothesis import given, settings
from hypothesis import strategies as st
from support import build

from refimpl import Engine, Request, generate, load_adapter, load_model, logits, tiny
from refimpl.adapter import Adapter
from refimpl.adapter_slots import AdapterSlots, bind_adapter
from refimpl.arrays import Precision, rounded
from refimpl.backends import BACKENDS
from refimpl.config import EMBED, LM_HEAD
from refimpl.cuda.lora import packed_at
from refimpl.cuda.table import CUDA
from refimpl.errors import LoracleError
from refimpl.ops import NUMPY, REFERENCE, Ops
from refimpl.oracle.noise.ensemble import ensemble, honest_runs
from refimpl.weights import Layer, Linear, Model

pytestmark = needs_cpu

TIMES_THE_NOISE = 8  # of the largest logit's error: sums are taken in another order, over a handful of layers


def as_dtype(model: Model, dtype: str, keep: str = "") -> Model:
    """The same model with its weights rounded to a type and held in it (or in `keep`)."""

    def convert(x: np.ndarray | None) -> np.ndarray | None:
        if x is None:
            return None
        return rounded(x.astype(np.float32), dtype).astype(keep) if keep else x.astype(dtype)

    def linear(layer: Linear) -> Linear:
        return Linear(convert(layer.weight), convert(layer.bias))  # type: ignore[arg-type]

    layers = tuple(
        Layer(
            {name: convert(weight) for name, weight in layer.norms.items()},  # type: ignore[misc]
            {name: linear(value) for name, value in layer.linears.items()},
        )
        for layer in model.layers
    )
    embed = convert(model.embed_tokens)
    tied = model.lm_head.weight is model.embed_tokens
    head = Linear(embed, None) if tied else linear(model.lm_head)  # type: ignore[arg-type]
    return replace(
        model,
        embed_tokens=embed,
        layers=layers,
        norm=convert(model.norm),
        lm_head=head,
        dtype=keep or dtype,
    )


def same_adapters(requests: list[Request], dtype: str) -> list[Request]:
    """The requests with their adapters rounded to a type, each adapter converted once."""
    known: dict[int, Adapter] = {}

    def convert(adapter: Adapter) -> Adapter:
        return known.setdefault(id(adapter), build.as_dtype(adapter, dtype))

    return [
        replace(r, adapter=[(convert(a), weight) for a, weight in r.adapters] if r.adapters else None) for r in requests
    ]


@given(case=build.cases(), order=orders)
@settings(max_examples=20)
def test_float32_is_as_near_to_the_truth_as_the_definition(case: tuple, order: str | int) -> None:
    model, _, requests = case
    model, requests = as_dtype(model, "float32"), same_adapters(requests, "float32")
    truth = np.concatenate(logits(as_dtype(model, "float64"), requests, REFERENCE, Precision("model", "float64")))
    p = Precision("model", "float32")
    right = np.concatenate(logits(model, requests, REFERENCE, p))
    with scheduled(order):
        found = np.concatenate(logits(model, requests, CUDA, p))
    assert found.dtype == np.float32
    noise = max(np.abs(right - truth).max(), 4 * 2.0**-24 * np.abs(truth).max())
    assert np.abs(found - truth).max() <= TIMES_THE_NOISE * noise


@pytest.mark.parametrize("order", ["forward", "reverse", 1])
def test_the_embedded_model(order: str | int) -> None:
    """All voices in one batch, long enough for a second block of the cache."""
    model = load_model("tiny")
    ids = model.tokenizer.encode(tiny.DEMO_PROMPTS[0])[:19]
    adapters = [load_adapter(path, model.config) for path in tiny.VOICES.values()]
    requests = [Request(ids, adapter) for adapter in [None, *adapters, [(adapters[0], 0.5), (adapters[-1], -1.5)]]]
    p = Precision()
    truth = np.concatenate(logits(load_model("tiny", "float64"), requests, NUMPY, Precision("model", "float64")))
    right = np.concatenate(logits(model, requests, NUMPY, p))
    with scheduled(order):
        found = np.concatenate(logits(model, requests, CUDA, p))
    assert np.abs(found - truth).max() <= TIMES_THE_NOISE * np.abs(right - truth).max()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("preset", ["model", "flash", "transformers"])
@given(case=build.cases(), order=orders)
@settings(max_examples=12)
def test_half_types_round_where_the_definition_rounds(preset: str, dtype: str, case: tuple, order: str | int) -> None:
    """The same rounding points, so that the only difference is a number that lay on the edge between two neighbours:
    most logits have the same bits, and none is further off than the type's own noise."""
    model, _, requests = case
    model, requests = as_dtype(model, dtype), same_adapters(requests, dtype)
    p = Precision(preset, dtype)
    right = np.concatenate(logits(model, requests, REFERENCE, p))
    with scheduled(order):
        found = np.concatenate(logits(model, requests, CUDA, p))
    wide = as_dtype(model, "float64")
    truth = np.concatenate(logits(wide, same_adapters(requests, "float64"), REFERENCE, Precision("model", "float64")))
    noise = np.abs(right - truth).max()
    assert np.abs(found - right).max() <= 2 * noise
    assert (found == right).mean() >= 0.5


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("ops", [NUMPY, REFERENCE, CUDA], ids=["numpy", "reference", "cuda"])
@given(case=build.cases())
@settings(max_examples=8)
def test_flash_is_one_of_the_honest_ways_to_round(ops: Ops, dtype: str, case: tuple) -> None:
    """Fewer roundings than Precision("model"): no further from the truth than the honest runs of the oracle are."""
    model, _, requests = case
    model, requests = as_dtype(model, dtype), same_adapters(requests, dtype)
    wide = same_adapters(requests, "float64")
    truth = np.concatenate(logits(as_dtype(model, "float64"), wide, NUMPY, Precision("model", "float64")))

    def error(rows: list[np.ndarray]) -> float:
        return float(np.sqrt(np.mean((np.concatenate(rows) - truth) ** 2)))

    noise = max(error(rows) for rows in honest_runs(model, requests, ensemble(dtype)))
    assert 0 < error(logits(model, requests, ops, Precision("flash", dtype))) <= 1.5 * noise


def test_the_kernels_use_flash_where_no_precision_is_named() -> None:
    model = as_dtype(build.random_model(small_config(), 0, "float32"), "bfloat16")
    request = Request(list(range(20)), None)
    by_default = logits(model, [request], CUDA)[0]
    assert (by_default == logits(model, [request], CUDA, Precision("flash", "bfloat16"))[0]).all()
    assert not (by_default == logits(model, [request], CUDA, Precision("model", "bfloat16"))[0]).all()
    assert Engine(model, CUDA).precision == Precision("flash", "bfloat16")
    assert Engine(model, NUMPY).precision == Precision("model", "bfloat16")


def extended(model: Model, seed: int, words: int) -> Adapter:
    """An adapter that adds words to the vocabulary, with LoRA on the longer embedding and lm_head, as PEFT saves it."""
    rng = np.random.default_rng([seed, words])
    adapter = build.random_adapter(model.config, seed, r=2 + words, modules=("v_proj", "embed_tokens", "lm_head"))
    lora, replaced = dict(adapter.lora), {}
    embed, head = lora[EMBED], lora[LM_HEAD]
    more = rng.standard_normal((len(embed.A), words))
    lora[EMBED] = replace(embed, A=np.hstack([embed.A, more]))
    lora[LM_HEAD] = replace(head, B=np.vstack([head.B, rng.standard_normal((words, head.B.shape[1]))]))
    for module in (EMBED, LM_HEAD):
        weight = model.linear(module).weight
        replaced[module] = np.vstack([weight, rng.standard_normal((words, weight.shape[1])).astype(weight.dtype)])
    return build.as_dtype(replace(adapter, lora=lora, replaced=replaced), "float32")


@pytest.mark.parametrize("order", ["forward", "reverse", 1])
def test_adapters_of_different_vocabularies(order: str | int) -> None:
    """Each is as wide as it is, whoever else is resident; the narrow ones alone, too, after the wide one was there."""
    model = build.random_model(small_config(), 3, "float32")
    vocab = model.config.vocab_size
    plain, other = (
        build.as_dtype(build.random_adapter(model.config, seed, modules=("embed_tokens", "lm_head")), "float32")
        for seed in (8, 9)
    )
    few, many = extended(model, 1, 2), extended(model, 2, 5)
    requests = [
        Request([0, 5, vocab + 4], many),
        Request([1, vocab + 1], few),
        Request([2, 3], plain),
        Request([4], [(plain, 0.5), (other, 2.0)]),
        Request([4], None),
    ]
    expected = logits(model, requests, REFERENCE)
    assert [rows.shape[1] - vocab for rows in expected] == [5, 2, 0, 0, 0]
    with scheduled(order):
        for actual, right in zip(logits(model, requests, CUDA), expected, strict=True):
            np.testing.assert_allclose(actual, right, rtol=1e-4, atol=1e-4)
        engine = Engine(model, CUDA)
        tokens = [generate(model, [request], 3, engine=engine)[0].token_ids for request in requests]
    assert tokens == [generate(model, [request], 3)[0].token_ids for request in requests]


@given(data=st.data())
@settings(max_examples=10)
def test_serving_step_by_step_equals_one_prefill(data: st.DataObject) -> None:
    """Chunked prefill, decode, preemption and a sliding window through the kernels: the tokens that NUMPY gives."""
    model, _, requests = data.draw(build.cases())
    model, requests = as_dtype(model, "float32"), same_adapters(requests, "float32")
    with scheduled("forward"):
        engine = Engine(model, CUDA, num_blocks=40, block_size=3, max_batch_tokens=7, max_running=4)
        found = generate(model, requests, 4, engine=engine)
    for request, output in zip(requests, found, strict=True):
        whole = replace(request, prompt_ids=[*request.prompt_ids, *output.token_ids])
        rows = logits(model, [whole], NUMPY)[0]
        for i, token in enumerate(output.token_ids):
            row = rows[len(request.prompt_ids) - 1 + i]
            assert row[token] >= row.max() - 1e-3, "not the most likely token, nor one of equals"


def test_slots_are_packed_once_per_change() -> None:
    config = small_config()
    model = build.random_model(config, 0, "float32")
    slots, module = AdapterSlots(model, Precision()), ((0, "q_proj"),)
    slots.put(0, bind_adapter(build.as_dtype(build.random_adapter(config, 0), "float32"), config))
    first = packed_at(slots, module, "float32")
    assert len(first) == 1 and packed_at(slots, module, "float32") is first
    slots.put(1, bind_adapter(build.as_dtype(build.random_adapter(config, 1), "float32"), config))
    second = packed_at(slots, module, "float32")
    assert second is not first and second[0][1].adapters == 2
    slots.put(1, bind_adapter(build.as_dtype(build.random_adapter(config, 2), "float32"), config))
    assert packed_at(slots, module, "float32") is not second


def small_config() -> build.ModelConfig:
    """A model of one layer."""
    return build.ModelConfig(23, 10, 13, 1, 2, 1, 8, max_position_embeddings=64)


@pytest.mark.parametrize(
    ("p", "message"),
    [
        (Precision("model", "float64"), "the kernels compute in float32, this precision in float64"),
        (replace(Precision(), lora_rank="bfloat16"), "lora_delta cannot round lora_rank to bfloat16"),
        (replace(Precision("model", "bfloat16"), scores="float16"), "attention cannot round scores to float16"),
        (replace(Precision("model", "float16"), norm="float32"), "rms_norm cannot round norm_inner to float16"),
    ],
)
def test_what_the_kernels_cannot_round_is_refused_by_name(p: Precision, message: str) -> None:
    config = small_config()
    model = build.random_model(config, 0, "float32")
    request = Request([1, 2, 3], build.as_dtype(build.random_adapter(config, 0), "float32"))
    with pytest.raises(LoracleError, match=message):
        logits(model, [request], CUDA, p)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dora_beside_plain_lora(dtype: str) -> None:
    """A base with biases, which DoRA does not stretch; the same adapter with and without, and the base alone."""
    config = replace(small_config(), attention_bias=True)
    model = build.random_model(config, 0, dtype)
    plain = build.as_dtype(build.random_adapter(config, 0), dtype)
    dora = build.as_dora(plain, model, 0)
    requests = [Request(list(range(i, i + 4)), adapter) for i, adapter in enumerate((dora, None, plain, dora))]
    p = Precision("model", dtype)
    right, found = (np.concatenate(logits(model, requests, ops, p)) for ops in (NUMPY, CUDA))
    np.testing.assert_allclose(found, right, rtol=0, atol=1e-4 if dtype == "float32" else 0.06)
    assert np.abs(right[:4] - logits(model, [replace(requests[0], adapter=plain)], NUMPY, p)[0]).max() > 0.2
    if dtype == "bfloat16":  # there the adapter is float32: so are the kernel's numbers, and one of them is not to be
        with pytest.raises(LoracleError, match="lora_delta cannot round linear to bfloat16"):
            logits(model, requests, CUDA, Precision("transformers", dtype))


@pytest.mark.parametrize("point", ["kv", "norm_inner", "rope_product", "activation_inner", "scores", "probabilities"])
def test_one_point_that_is_not_rounded_makes_no_difference_elsewhere(point: str) -> None:
    """Each flag of a kernel is the point of the same name, and no other."""
    config = small_config()
    model = as_dtype(build.random_model(config, 0, "float32"), "bfloat16", "float32")
    request = Request([1, 2, 3, 4, 5], build.as_dtype(build.random_adapter(config, 0), "float32"))
    p = replace(Precision("model", "bfloat16"), **{point: "float32"})
    right, found = (logits(model, [request], ops, p)[0] for ops in (REFERENCE, CUDA))
    other = logits(model, [request], REFERENCE, Precision("model", "bfloat16"))[0]
    assert (found == right).mean() >= 0.9
    assert (found == right).mean() > (other == right).mean() or np.array_equal(other, right)


def test_the_table_is_known_by_name() -> None:
    assert BACKENDS["cuda"] is CUDA and list(BACKENDS) == ["reference", "numpy", "absorbed", "cuda"]
