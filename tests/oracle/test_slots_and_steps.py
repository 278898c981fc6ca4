"""What an engine does not say, worked out: who was in a slot before; and sources beside their definitions."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.testbed import CONFIG

from refimpl.adapter_slots import LoraWeights
from refimpl.arrays import Array
from refimpl.config import Module
from refimpl.oracle.causes.attention_sources import attention_sources
from refimpl.oracle.causes.elsewhere_sources import late_sources
from refimpl.oracle.causes.families import as_one_adapter
from refimpl.oracle.causes.fused_sources import fused_sources, rows_cut_as_a_whole
from refimpl.oracle.causes.mix_up import EXACT, GATE_BEFORE, UP, Point, Source, full_delta
from refimpl.oracle.causes.module_sources import module_sources
from refimpl.oracle.causes.own_sources import but_for_its_bias, scale_sources
from refimpl.oracle.causes.row_sources import order_sources
from refimpl.oracle.causes.slot_sources import ENDS, occupants, slot_sources
from refimpl.rope import apply_rope, rope_table

pytestmark = pytest.mark.filterwarnings("ignore::refimpl.errors.AdapterWarning")


class Slots:
    """The definition: slots with a clock, all that was ever in each of them kept."""

    def __init__(self, count: int) -> None:
        self.filled: list[list[str]] = [[] for _ in range(count)]
        self.used_at: dict[str, int] = {}  # of those that are in a slot
        self.now = 0

    def use(self, key: str) -> int:
        self.now += 1
        slot = next((i for i, some in enumerate(self.filled) if key in self.used_at and some[-1:] == [key]), None)
        if slot is None:
            free = [i for i, some in enumerate(self.filled) if not some or some[-1] not in self.used_at]
            slot = free[0] if free else min(range(len(self.filled)), key=lambda i: self.used_at[self.filled[i][-1]])
            if self.filled[slot]:
                self.used_at.pop(self.filled[slot][-1], None)
            self.filled[slot].append(key)
        self.used_at[key] = self.now
        return slot


@given(st.lists(st.sampled_from([None, *"abcde"]), max_size=20), st.sampled_from("abcde"), st.integers(1, 6))
def test_occupants_of_a_slot(used: list[str | None], own_key: str, count: int) -> None:
    slots = Slots(count)
    for key in used:
        if key is not None:
            slots.use(key)
    filled = slots.filled[slots.use(own_key)]
    assert occupants([*used, own_key], count) == tuple(filled)


def weights(rng: np.random.Generator, r: int, bias: bool) -> LoraWeights:
    A, B = rng.standard_normal((r, 20)), rng.standard_normal((16, r))
    return LoraWeights(A, B, 0.5 * r, rng.standard_normal(16) if bias else None)


MODULE = (0, "k_proj")


def point(of: dict[str, dict[Module, LoraWeights]]) -> Point:
    x = np.random.default_rng(1).standard_normal((3, 20))
    return Point(MODULE, x, CONFIG, of, {key: {} for key in of}, {}, np.zeros((16, 20)), {})


def test_a_slot_that_is_only_written_over() -> None:
    """The definition: buffers of the largest rank, into which each occupant writes what it has, oldest first."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        some = {key: {MODULE: weights(rng, int(rng.integers(1, 6)), rng.random() < 0.5)} for key in "abcd"}
        here = point(some)
        A, B, bias = np.zeros((6, 20)), np.zeros((16, 6)), np.zeros(16)
        for key in "dcba":  # a is in it now
            lora = some[key][MODULE]
            r = len(lora.A)
            A[:r], B[:, :r] = lora.A, lora.B
            if lora.bias is not None:
                bias = lora.bias * lora.scale
        own_lora = some["a"][MODULE]
        sources = {source.key: source for source in slot_sources("a", {2: "dcba"})}
        right = here.x @ own_lora.A.T @ own_lora.B.T * own_lora.scale
        ranks = sources["ranks in its slot (2 in all)"].delta(here)
        np.testing.assert_allclose(right + (0 if ranks is None else ranks), here.x @ A.T @ B.T * own_lora.scale)
        for upto, end in ENDS.items():
            e = min(end(len(own_lora.A)), len(A))
            some_ranks = sources[f"ranks in its slot (2 in all), up to {upto}"].delta(here)
            expected = here.x @ A[:e].T @ B[:, :e].T * own_lora.scale
            np.testing.assert_allclose(right + (0 if some_ranks is None else some_ranks), expected)
        for which, other in (("last", "b"), ("first", "d"), ("first since", "d")):
            scaled = sources[f"scale in its slot, {which} (2 in all)"].delta(here)
            change = np.zeros_like(right) if scaled is None else scaled
            own_whole = full_delta(here.x, own_lora)
            np.testing.assert_allclose(own_whole + change, own_whole / own_lora.scale * some[other][MODULE].scale)
        own_bias = 0 if own_lora.bias is None else own_lora.bias * own_lora.scale
        biases = sources["bias in its slot (2 in all)"].delta(here)
        np.testing.assert_allclose(
            (0 if biases is None else biases) + own_bias + np.zeros((3, 16)), bias + np.zeros((3, 16))
        )


def test_a_scale_that_is_written_where_there_was_none() -> None:
    """The definition: a table of scales that is cleared at modules that an occupant has not, and filled where it is
    empty. What comes back may have its own."""
    rng = np.random.default_rng(4)
    some = {key: {MODULE: weights(rng, 1 + n, False)} for n, key in enumerate("abcd")}
    here = point(some | {"e": {}})
    for history in ("ba", "bcda", "aba", "beca", "becaba", "ebcea"):
        table: LoraWeights | None = None
        for key in history:
            lora = here.of(key)
            table = None if lora is None else table or lora
        assert table is not None
        (source,) = [
            one for one in slot_sources("a", {2: history}) if one.key == "scale in its slot, first since (2 in all)"
        ]
        own_whole, change = full_delta(here.x, some["a"][MODULE]), source.delta(here)
        wanted = own_whole * (table.scale / some["a"][MODULE].scale)
        np.testing.assert_allclose(own_whole + (0 if change is None else change), wanted)


@pytest.mark.parametrize("history", ["dcba", "dceba", "dcbea", "edca", "cdeca"])
def test_ranks_that_are_left_unless_one_had_no_such_module(history: str) -> None:
    """The definition: buffers into which each occupant writes, and that one without the module clears."""
    rng = np.random.default_rng(6)
    some = {key: {MODULE: weights(rng, 1 + n, False)} for n, key in enumerate("abcd")}
    here, own_lora = point(some | {"e": {}}), some["a"][MODULE]
    A, B = np.zeros((4, 20)), np.zeros((16, 4))
    for key in history:
        lora = here.of(key)
        if lora is None:
            A, B = np.zeros((4, 20)), np.zeros((16, 4))
        else:
            A[: len(lora.A)], B[:, : len(lora.A)] = lora.A, lora.B
    (source,) = [one for one in slot_sources("a", {2: history}) if one.key == "ranks in its slot (2 in all), since"]
    change = source.delta(here)
    wanted = here.x @ A.T @ B.T * own_lora.scale
    np.testing.assert_allclose(full_delta(here.x, own_lora) + (0 if change is None else change), wanted)


def test_sources_by_ends_are_tried_where_the_slots_are_known() -> None:
    known, guessed = ({one.key for one in slot_sources("a", of)} for of in ({2: "ba"}, {2: "ba", 3: "ba"}))
    assert {one for one in known if "up to" in one} and not {one for one in guessed if "up to" in one}


def test_the_bias_of_the_first_layer_that_has_one() -> None:
    rng = np.random.default_rng(5)
    first, own_lora = weights(rng, 2, True), weights(rng, 3, True)
    layers = {(0, "k_proj"): weights(rng, 2, False), (1, "k_proj"): first, (2, "k_proj"): own_lora}
    at = replace(point({"a": layers}), module=(2, "k_proj"))
    (source,) = [one for one in module_sources("a", ("k_proj",)) if one.key == "bias of the first layer"]
    expected = full_delta(at.x, replace(own_lora, bias=first.bias))
    np.testing.assert_allclose(full_delta(at.x, own_lora) + source.delta(at), expected)
    np.testing.assert_allclose(source.delta(replace(at, module=(1, "k_proj"))), 0)


def test_modules_that_an_adapter_leaves_alone_keep_what_the_last_one_had_there() -> None:
    rng = np.random.default_rng(2)
    some: dict[str, dict[Module, LoraWeights]] = {"a": {}, "b": {}, "c": {MODULE: weights(rng, 3, True)}}
    here = point(some)
    (source,) = [one for one in slot_sources("a", {1: "cba"}) if one.key == "in its slot (1 in all)"]
    np.testing.assert_allclose(source.delta(here), here.full_delta("c"))
    assert list(slot_sources("a", {4: "a"})) == []


@pytest.mark.parametrize("source", [*scale_sources("a"), *order_sources("a")], ids=lambda one: one.key)
def test_a_bias_that_is_as_it_should_be(source: Source) -> None:
    """What changes a product alone adds up to the change of all less that of the bias."""
    rng = np.random.default_rng(3)
    lora = weights(rng, 4, True)
    plain = LoraWeights(lora.A, lora.B, lora.scale, None)
    both, without = point({"a": {MODULE: lora}}), point({"a": {MODULE: plain}})
    apart = but_for_its_bias("a", source)
    expected, got = source.delta(without), apart.delta(both)
    assert (expected is None) == (got is None)
    if expected is not None and got is not None:
        np.testing.assert_allclose(got, expected)
        np.testing.assert_allclose(apart.delta(without), expected)  # an adapter without a bias: the very same


@pytest.mark.parametrize(("widths", "shards"), [([8, 4, 4], 2), ([6, 6], 3), ([12, 4, 4], 4)])
def test_a_fused_product_that_is_cut_as_a_whole(widths: list[int], shards: int) -> None:
    """The definition: all rows one after another, cut, and each shard cut again as if it had a part of each slice."""
    rows = rows_cut_as_a_whole(widths, shards)
    assert rows is not None
    whole = [(i, row) for i, width in enumerate(widths) for row in range(width)]
    cut = [whole[n * len(whole) // shards : (n + 1) * len(whole) // shards] for n in range(shards)]
    ends = np.cumsum([0, *widths]) // shards
    for i, (of_slice, row) in enumerate(rows):
        expected = [one for shard in cut for one in shard[ends[i] : ends[i + 1]]]
        assert list(zip(of_slice.tolist(), row.tolist(), strict=True)) == expected
    assert rows_cut_as_a_whole([8, 3], 2) is None


@pytest.mark.parametrize(
    ("key", "shards"), [("closed up by rows", 1), ("closed up by rows in 2", 2), ("closed up by places", 1)]
)
def test_slices_that_are_closed_up(key: str, shards: int) -> None:
    """An adapter of k and v alone: k's delta is in the first rows of q, v's behind it, in each shard; or in k's place,
    that of k in the first rows of q's."""
    rng = np.random.default_rng(4)
    config, layer = CONFIG, 0
    x = rng.standard_normal((3, config.hidden_size))
    loras = {
        (layer, name): LoraWeights(
            rng.standard_normal((2, config.hidden_size)), rng.standard_normal((config.shape((layer, name))[0], 2)), 0.5
        )
        for name in ("k_proj", "v_proj")
    }
    names = ("q_proj", "k_proj", "v_proj")
    widths = [config.shape((layer, name))[0] for name in names]
    parts = [np.split(x @ one.A.T @ one.B.T * one.scale, shards, axis=1) for one in loras.values()]
    wrong: list[list[Array]] = [[], [], []]  # of each module, shard by shard
    for n in range(shards):
        k, v = (part[n] for part in parts)
        width = widths[0] // shards
        whole = np.zeros((3, sum(widths) // shards))
        whole[:, : k.shape[1]] = k
        at = width if key == "closed up by places" else k.shape[1]
        whole[:, at : at + v.shape[1]] = v
        for of, some in zip(wrong, np.split(whole, [width, width + k.shape[1]], axis=1), strict=True):
            of.append(some)
    (source,) = [one for one in fused_sources("a") if one.key == key]
    for n, name in enumerate(names):
        here = Point((layer, name), x, config, {"a": loras}, {"a": {}}, {}, np.zeros((widths[n], len(x[0]))), {})
        own_delta = full_delta(x, loras[layer, name]) if n else 0.0
        change = source.delta(here)
        np.testing.assert_allclose(
            own_delta + (0.0 if change is None else change), np.concatenate(wrong[n], axis=1), atol=1e-12
        )


@given(st.integers(0, 9), st.sampled_from(["turned further on", "turned further back"]), st.booleans())
@settings(deadline=None, max_examples=20)
def test_a_query_that_is_turned_too_far_is_one_at_another_place(at: int, way: str, has_delta: bool) -> None:
    """The definition: the same vector, turned by the angles of the wrong position."""
    rng = np.random.default_rng(at)
    base, delta, bias = rng.standard_normal((16, 20)), rng.standard_normal((3, 16)), rng.standard_normal(16)
    here = replace(point({}), weight=base, base_bias=bias)
    y = here.x @ base.T + bias + (delta if has_delta else 0)
    rope = CONFIG.kind(0).rope
    assert rope is not None

    def turned(x: Array, place: int) -> Array:
        cos, sin = rope_table(rope, CONFIG.head_dim, np.full(3, place), np.full(3, 160), EXACT)
        return apply_rope(x.reshape(3, -1, CONFIG.head_dim), cos, sin, rope.interleaved, EXACT)

    for family, source in attention_sources(lambda point: delta if has_delta else None):
        if family == way:
            places = int(source.key.split()[1]) * (1 if way.endswith("on") else -1)
            changed = source.delta(here)
            assert changed is not None
            np.testing.assert_allclose(turned(y + changed, at + 20), turned(y, at + 20 + places), atol=1e-12)


def test_query_heads_that_read_another_key_head() -> None:
    """Four query heads and two key heads: heads 0 and 2 read key head 0, and what they make goes back to 0 and 2."""
    (source,) = [one for family, one in attention_sources(lambda point: None) if family == "heads by mod"]
    here = replace(point({}), module=(0, "q_proj"), x=np.arange(32.0)[None] + 1, weight=np.eye(32))
    before = source.delta(here)
    assert before is not None
    first_of_each = (here.x + before).reshape(4, 8)[:, 0]
    assert first_of_each.tolist() == [1, 17, 9, 25]  # heads 0, 2, 1, 3: the first two read key head 0
    behind = source.delta(replace(here, module=(0, "o_proj"), x=here.x + before))
    assert behind is not None
    np.testing.assert_array_equal(here.x + before + behind, here.x)


def test_the_down_projection_of_what_the_base_alone_makes() -> None:
    """The definition: silu(W_gate x) * (W_up x), where the layer computed both with their deltas."""
    rng = np.random.default_rng(5)
    gate, up = (LoraWeights(rng.standard_normal((2, 20)), rng.standard_normal((28, 2)), 0.5, None) for _ in "ab")
    down = LoraWeights(rng.standard_normal((3, 28)), rng.standard_normal((20, 3)), 2.0, None)
    of_gate, of_up = (rng.standard_normal((28, 20)) for _ in "ab")
    x = rng.standard_normal((3, 20))
    silu: Callable[[Array], Array] = lambda v: v / (1 + np.exp(-v))  # noqa: E731
    with_gate, with_up = x @ of_gate.T + full_delta(x, gate), x @ of_up.T + full_delta(x, up)
    here = replace(
        point({"a": {(0, "gate_proj"): gate, (0, "up_proj"): up, (0, "down_proj"): down}}),
        module=(0, "down_proj"),
        x=silu(with_gate) * with_up,
        inputs={GATE_BEFORE: with_gate, UP: with_up, "gate_proj": x},
    )
    (source,) = [one for one in late_sources("a") if one.key == "input of the base"]
    change = source.delta(here)
    assert change is not None
    expected = full_delta(silu(x @ of_gate.T) * (x @ of_up.T), down)
    np.testing.assert_allclose(full_delta(here.x, down) + change, expected)


def test_a_sum_as_one_adapter_has_the_terms_of_two_different_ones_besides() -> None:
    """f_i = weight_i scale_i; the term of B_i and A_j is sqrt(f_i f_j) B_i A_j, negative where f_i is."""
    rng = np.random.default_rng(0)
    parts = {"a": weights(rng, 2, bias=False), "b": weights(rng, 5, bias=False)}
    here, factors = point({key: {MODULE: lora} for key, lora in parts.items()}), {"a": 2.0, "b": -0.5}
    crossed = np.zeros((3, 16))
    for i, j in (("a", "b"), ("b", "a")):
        f_i, f_j = (factors[key] * parts[key].scale for key in (i, j))
        c, r = np.sign(f_i) * abs(f_i * f_j) ** 0.5, 2  # the ranks that both have
        crossed += c * (here.x @ parts[j].A[:r].T) @ parts[i].B[:, :r].T
    actual = as_one_adapter(list(factors.items()))(here)
    assert actual is not None
    np.testing.assert_allclose(actual, crossed, rtol=1e-12)
    assert as_one_adapter([("a", 2.0)])(here) is not None  # one alone is what it was
    np.testing.assert_allclose(as_one_adapter([("a", 2.0)])(here), 0, atol=1e-12)
