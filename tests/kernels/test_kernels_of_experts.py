"""All experts of a layer in one launch (refimpl/cuda/experts.py), against one after another (experts_in_turn)."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from cases import needs_cpu, orders, scheduled
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support import build
from support.experts import expert_configs

from refimpl.adapter_slots import AdapterSlots
from refimpl.arrays import DTYPES, Array, Precision, rounded
from refimpl.config import ModelConfig, Moe
from refimpl.cuda import launch
from refimpl.cuda.table import CUDA
from refimpl.errors import LoracleError
from refimpl.forward_context import ForwardContext
from refimpl.ops import NUMPY, REFERENCE, Ops
from refimpl.plans import LoraMapping
from refimpl.tracing import trace

pytestmark = needs_cpu

TIMES_THE_NOISE = 8  # as in test_model.py


class Case:
    """One layer of experts, and a batch: which experts each token goes through, with which adapters, at which weights.

    Its numbers are exact in the type. Adapters are on a few modules of a few experts. The first may be DoRA, and is
    alone on its rows then, as requests have it; the last brings a bias of its own along, where experts have biases."""

    def __init__(self, config: ModelConfig, seed: int, tokens: int, dora: bool, dtype: str = "float32") -> None:
        self.rng, self.config, moe = np.random.default_rng(seed), config, config.moe
        self.layer, self.dtype = config.num_hidden_layers - 1, dtype
        names = [name for expert in range(moe.experts) for name in moe.mlp(expert).modules]
        self.model = build.random_model(config, seed)
        self.adapters = []
        for i, rank in enumerate(self.rng.choice([1, 3, 8, 17], 3)):
            some = self.rng.choice(names, max(1, len(names) * 2 // 3), replace=False).tolist()
            self.adapters.append(build.random_adapter(config, i, int(rank), modules=some))
        if dora:
            self.adapters[0] = build.as_dora(self.adapters[0], self.model, seed)
        if moe.bias:
            module = (self.layer, moe.mlp(0).down)
            self.adapters[2] = replace(self.adapters[2], biases={module: self.rng.standard_normal(config.hidden_size)})
        self.ids = self.rng.integers(-1, 3, (tokens, 2)).astype(np.int32)
        self.ids[self.ids[:, 1] == self.ids[:, 0], 1] = -1  # nobody sums an adapter with itself
        self.ids[:, 1][(self.ids[:, 1] == 2) | (self.ids[:, 0] == 2)] = -1
        self.weights = np.where(self.rng.random(self.ids.shape) < 0.5, 1.0, self.rng.uniform(-2, 2, self.ids.shape))
        if dora:
            self.ids[:, 1][(self.ids == 0).any(axis=1)] = -1
            self.weights[(self.ids == 0).any(axis=1)] = 1.0
        self.h = self.rounded(self.rng.standard_normal((tokens, config.hidden_size)))
        self.chosen = np.stack([self.rng.permutation(moe.experts)[: moe.top_k] for _ in range(tokens)]).astype(np.int32)
        self.shares = self.rounded(self.rng.uniform(0, 1, self.chosen.shape))

    def rounded(self, x: np.ndarray) -> np.ndarray:
        return rounded(x.astype(np.float32), self.dtype)

    def run(self, ops: Ops, dtype: str = "") -> np.ndarray:
        """What the layer's experts add up to; dtype: of all numbers, the case's own if none is named."""
        dtype = dtype or self.dtype
        p, compute = Precision("model", dtype), "float64" if dtype == "float64" else "float32"
        layers = [
            replace(
                layer,
                linears={
                    name: replace(
                        x,
                        weight=self.rounded(x.weight).astype(DTYPES[dtype]),
                        bias=None if x.bias is None else self.rounded(x.bias).astype(DTYPES[dtype]),
                    )
                    for name, x in layer.linears.items()
                },
            )
            for layer in self.model.layers
        ]
        norm = self.model.norm.astype(compute)
        model = replace(self.model, layers=tuple(layers), norm=norm, dtype=dtype)
        slots = AdapterSlots(model, p)
        for slot, adapter in enumerate(self.adapters):
            held = build.as_dtype(build.as_dtype(adapter, self.dtype), dtype)
            held = replace(held, biases={m: self.rounded(x).astype(DTYPES[dtype]) for m, x in held.biases.items()})
            slots.put(slot, ops.bind_adapter(held, self.config, ops.adapter_scale))
        batch = SimpleNamespace(lora=LoraMapping.of(self.ids, self.weights))
        context = ForwardContext(model, batch, slots, ops, p)
        h, shares = self.h.astype(compute), self.shares.astype(compute)
        return ops.routed_experts(context, h, self.layer, self.chosen, shares)


@st.composite
def cases(draw: st.DrawFn, dtype: str = "float32") -> Case:
    """Any mixture: biases, one module for gate and up, an MLP without a gate; experts that no token chooses."""
    config = draw(expert_configs())
    gate_up = draw(st.sampled_from([("gate_proj", "up_proj"), ("gate_up_proj",), ("up_proj",)]))
    config = replace(config, moe=replace(config.moe, gate_up=gate_up))
    if gate_up == ("up_proj",):
        config = replace(config, activation="relu2")
    return Case(config, draw(st.integers(0, 2**20)), draw(st.integers(1, 40)), draw(st.booleans()), dtype)


def assert_near(found: Array, right: Array, truth: Array) -> None:
    """No further from the truth than a few times what the definition is off in the same type."""
    noise = max(np.abs(right - truth).max(), 4 * 2.0**-24 * np.abs(truth).max())
    assert np.abs(found - truth).max() <= TIMES_THE_NOISE * noise


@pytest.mark.parametrize("check", [False, True], ids=["plain", "checked"])
@given(data=st.data())
@settings(max_examples=20)
def test_equals_the_definition(check: bool, data: st.DataObject) -> None:
    case = data.draw(cases())
    with scheduled(data.draw(orders), check):
        found = case.run(CUDA)
    assert_near(found, case.run(REFERENCE), case.run(NUMPY, "float64"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@given(data=st.data())
@settings(max_examples=10)
def test_half_types_round_where_the_definition_rounds(dtype: str, data: st.DataObject) -> None:
    """Most numbers have the same bits, none is further off than the type's own noise; sums are in the same order."""
    case = data.draw(cases(dtype))
    with scheduled(data.draw(orders)):
        found = case.run(CUDA)
    right, truth = case.run(REFERENCE), case.run(NUMPY, "float64")
    assert np.abs(found - right).max() <= 2 * np.abs(right - truth).max()
    assert (found == right).mean() >= 0.5


MIXTURE = ModelConfig(23, 12, 13, 1, 2, 1, 6, max_position_embeddings=64, moe=Moe(8, 3, 9))


@given(seed=st.integers(0, 2**20))
@settings(max_examples=10)
def test_a_segment_that_forgets_its_expert_is_seen(seed: int) -> None:
    """The test can fail: the same adapters, taken from the first expert for all of them."""
    case = Case(MIXTURE, seed, 12, dora=False)
    assume((case.ids >= 0).any())
    right, truth = case.run(REFERENCE), case.run(NUMPY, "float64")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("refimpl.cuda.experts.slot_count", lambda adapters: 0)
        found = case.run(CUDA)
    with pytest.raises(AssertionError):
        assert_near(found, right, truth)


def test_a_layer_launches_two_kernels_for_each_module_of_an_expert() -> None:
    """However many experts are reached, and by however many adapters; the definition launches them for each expert."""
    case = Case(MIXTURE, 3, 30, dora=False)
    case.ids[:, 1] = -1
    in_turn = replace(CUDA, routed_experts=NUMPY.routed_experts)
    counts = []
    for ops in (CUDA, in_turn):
        with launch.recorded() as noted:
            case.run(ops)
        counts.append(sum("shrink" in name or "expand" in name for name, _ in noted))
    assert counts[0] == 2 * 3 and counts[1] > 2 * counts[0]


@pytest.mark.parametrize("which", ["no adapter", "adapters on other modules"])
def test_without_lora_on_experts_none_is_planned(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(MIXTURE, 3, 5, dora=False)
    if which == "no adapter":
        case.ids[:] = -1
    else:
        case.adapters = [build.random_adapter(MIXTURE, 0, modules=["o_proj"])] * 3
    right, truth = case.run(REFERENCE), case.run(NUMPY, "float64")
    monkeypatch.setattr("refimpl.cuda.experts.Pairs.mapping", property(lambda self: pytest.fail("a plan was made")))
    with launch.recorded() as noted:
        found = case.run(CUDA)
    assert [name for name, _ in noted] == ["mlp_activation"]
    assert_near(found, right, truth)


def test_a_rank_that_is_too_large_is_named_with_its_module() -> None:
    case = Case(MIXTURE, 3, 5, dora=False)
    case.ids[:] = [1, -1]
    case.adapters[1] = build.random_adapter(MIXTURE, 1, 257, modules=["mlp.experts.6.up_proj"])
    with pytest.raises(
        LoracleError, match=r"ops cuda: adapter slot 1: .*mlp\.experts\.6\.up_proj has rank 257; .* 256"
    ):
        case.run(CUDA)


def test_a_trace_has_every_expert_that_was_reached() -> None:
    """The names that the definition notes, and its numbers; the result is the same with and without."""
    case = Case(MIXTURE, 4, 9, dora=True)
    with trace("*") as expected:
        case.run(NUMPY)
    with trace("*") as noted:
        found = case.run(CUDA)
    assert sorted(noted) == sorted(expected) and len(noted) > 30
    for name, x in expected.items():
        np.testing.assert_allclose(noted[name], x, rtol=1e-4, atol=1e-4 * max(1, np.abs(x).max()))
    assert found.tobytes() == case.run(CUDA).tobytes()
