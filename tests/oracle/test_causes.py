"""The fit finds bugs that stand in no list, says where and when, and says nothing where it does not know."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.causes import cause_of_bug
from support.testbed import small_testbed

from refimpl import NUMPY, Ops
from refimpl.adapter_slots import AdapterSlots, LoraWeights
from refimpl.arrays import Array, Precision
from refimpl.config import Module
from refimpl.model import logits
from refimpl.oracle.bugs.steps import but, reading
from refimpl.oracle.causes.adjoint import adjoint
from refimpl.oracle.causes.condition import Fact, condition
from refimpl.oracle.causes.quiet import quiet_adapter
from refimpl.oracle.causes.regions import token_regions
from refimpl.oracle.causes.statement import in_words
from refimpl.oracle.noise.measure import Errors
from refimpl.oracle.noise.readout import View
from refimpl.plans import LoraMapping
from refimpl.request import Request

pytestmark = pytest.mark.filterwarnings("ignore::refimpl.errors.AdapterWarning")

Change = Callable[[Array, Array, Module, AdapterSlots, LoraMapping], None]  # delta, x, module, adapters, mapping


def changed(change: Change) -> Callable[[], Ops]:
    """Return an engine whose delta is changed, in place, before it is added."""

    def lora_delta(y: Array, x: Array, module: Module, adapters: AdapterSlots, mapping: LoraMapping, p: Any) -> None:
        delta = np.zeros_like(y)
        NUMPY.lora_delta(delta, x, module, adapters, mapping, p)
        change(delta, x, module, adapters, mapping)
        y += delta

    return lambda: dataclasses.replace(NUMPY, lora_delta=lora_delta)


def heads_rolled(delta: Array, x: Array, module: Module, *rest: Any) -> None:
    if module[1] == "v_proj":
        delta[:] = np.roll(delta, 8, axis=1)  # head_dim


def of_the_layer_before(delta: Array, x: Array, module: Module, adapters: AdapterSlots, mapping: LoraMapping) -> None:
    layer, name = module
    if name == "o_proj" and layer > 0:
        delta[:] = 0
        NUMPY.lora_delta(delta, x, (layer - 1, name), adapters, mapping, Precision("model", "float32"))


def two_at_once(delta: Array, x: Array, module: Module, *rest: Any) -> None:
    """down_proj has no delta, and gate_proj half of it."""
    if module[1] == "down_proj":
        delta[:] = 0
    if module[1] == "gate_proj":
        delta *= 0.5


def half_of_rolled_heads(delta: Array, x: Array, module: Module, *rest: Any) -> None:
    """Heads are rolled, and then half of every delta is lost."""
    heads_rolled(delta, x, module)
    delta *= 0.5


def test_outputs_in_another_order(tmp_path: Path) -> None:
    cause = cause_of_bug(changed(heads_rolled), tmp_path)
    assert cause is not None and cause.explained >= 0.9 * cause.failed
    (change,) = cause.changes
    assert (change.modules, change.tokens, change.coefficient) == ("v_proj", "", 1)
    assert "its outputs" in change.what and any(way in change.what for way in ("one head", "halves swapped"))


def test_weights_of_another_layer(tmp_path: Path) -> None:
    cause = cause_of_bug(changed(of_the_layer_before), tmp_path)
    assert cause is not None and cause.explained == cause.failed
    (change,) = cause.changes
    assert "layer" in change.what and change.coefficient == 1
    assert change.modules in ("o_proj", "o_proj from layer 1 on", "layers.1.o_proj")


def test_two_bugs_at_once(tmp_path: Path) -> None:
    cause = cause_of_bug(changed(two_at_once), tmp_path)
    assert cause is not None and cause.explained > cause.failed / 2
    assert {(one.modules, one.coefficient) for one in cause.changes} == {("down_proj", -1.0), ("gate_proj", -0.5)}
    assert "its own delta is missing, at down_proj" in cause.sentence
    assert "its own delta is 0.5 times as large as it should be, at gate_proj" in cause.sentence


def test_one_change_follows_the_other(tmp_path: Path) -> None:
    """What stands instead of a delta is scaled with it: each of two changes has the coefficient that it has alone."""
    cause = cause_of_bug(changed(half_of_rolled_heads), tmp_path)
    assert cause is not None and cause.explained > cause.failed / 2
    found = {(one.modules or "every module of the layers", one.coefficient) for one in cause.changes}
    assert found == {("every module of the layers", -0.5), ("v_proj", 1.0)}


def test_another_adapter_by_a_rule_that_nobody_knows(tmp_path: Path) -> None:
    """At o_proj each slot has the weights of the slot two further on: in words, whose it was in each request."""

    def two_further(adapters: AdapterSlots, module: Module) -> dict[int, LoraWeights]:
        at = adapters.at(module)
        order = sorted(at)  # one that is not on o_proj is nobody's
        if module[1] != "o_proj":
            return at
        others = {slot: order[(i + 2) % len(order)] for i, slot in enumerate(order)}
        return {slot: at[other] for slot, other in others.items() if other in at}

    cause = cause_of_bug(lambda: but(lora_delta=reading(two_further)), tmp_path, cases=6)
    assert cause is not None and cause.explained >= 0.9 * cause.failed
    (change,) = cause.changes
    assert change.modules == "o_proj" and change.what.startswith("the delta of another adapter (of ")


def test_half_types(tmp_path: Path) -> None:
    cause = cause_of_bug(changed(heads_rolled), tmp_path, dtype="bfloat16")
    assert cause is not None and [one.modules for one in cause.changes] == ["v_proj"]


def test_what_is_outside_of_every_source_gets_no_cause(tmp_path: Path) -> None:
    """Chance is no cause, and neither is a delta that is bent: nothing is said, rather than something wrong."""

    def bent(delta: Array, x: Array, module: Module, *rest: Any) -> None:
        delta *= 1 + 0.5 * np.sign(np.sin(40 * np.cumsum(np.ones_like(delta), axis=1) ** 2))

    assert cause_of_bug(changed(bent), tmp_path) is None


# The parts.


def test_the_adjoint_is_the_derivative() -> None:
    """What it says that a delta does is what the forward pass does, for every module, to first order."""
    testbed = small_testbed()
    model, key = testbed.exact, next(iter(testbed.adapters))
    request = Request([3, 9, 4, 1, 30], testbed.wide[key])
    exact = logits(model, [request])[0]
    rows = slice(1, 5)
    shown = np.ones_like(exact[rows], bool)
    zero = np.zeros_like(exact[rows])
    for logprobs in (False, True):
        view = View(zero, shown, logprobs)
        raw = Errors(view, rows, view.of(exact[rows]), exact[rows], zero, zero[None], np.ones(4))
        back = adjoint(model, request, raw, count=5)
        rng = np.random.default_rng(0)
        for module in model.config.modules():
            delta = 1e-6 * rng.standard_normal((5, model.config.shape(module)[0] if module[0] >= 0 else 20))
            if module[1] == "lm_head":
                delta = 1e-6 * rng.standard_normal((5, model.config.vocab_size))

            def shifted(y: Array, x: Array, where: Module, *rest: Any, at: Module = module, by: Array = delta) -> None:
                NUMPY.lora_delta(y, x, where, *rest)
                if where == at:
                    y += by

            moved = logits(model, [request], dataclasses.replace(NUMPY, lora_delta=shifted))[0]
            expected = back.along(view.of(moved[rows]) - view.of(exact[rows]))
            seen = back.effects_of(module, delta[:, None])[:, :, 0].sum(axis=0)
            np.testing.assert_allclose(seen, expected, rtol=1e-3, atol=1e-9)


def test_a_quiet_adapter_is_the_same_to_the_bit() -> None:
    adapter = next(iter(small_testbed("bfloat16").adapters.values()))
    quiet = quiet_adapter(adapter, 1 / 64)
    for module, lora in adapter.lora.items():
        assert (quiet.lora[module].B * quiet.lora[module].B.dtype.type(64) == lora.B).all()
        assert quiet.lora[module].A is lora.A


def test_a_condition_is_the_shortest_rule_that_holds() -> None:
    late, loud, odd = Fact("it is late"), Fact("it is loud"), Fact("it is odd")
    positive = [{late: True, loud: True, odd: i % 2 == 0} for i in range(6)]
    negative = [{late: i < 3, loud: i >= 3, odd: i % 2 == 0} for i in range(6)]
    rule = condition(positive, negative)
    assert rule.words == "where it is late and it is loud" and (rule.wrong, rule.of) == (0, 12)
    assert condition(positive, []).words == ""
    assert condition(positive, [{late: False, loud: True, odd: True}] * 4).words == "where it is late"


def test_the_tokens_that_padding_takes() -> None:
    """Of a prompt of six whose batch has one of eight: padded on the wrong side, two are lost."""
    regions = {region.words: region.members.tolist() for region in token_regions(8, 6, padding=2)}
    words = "tokens of the prompt, as many as the longest of the batch has more"
    assert regions[f"the first {words}"] == [True] * 2 + [False] * 6
    assert regions[f"the last {words}"] == [False] * 4 + [True] * 2 + [False] * 2


def test_a_cause_in_words() -> None:
    assert in_words("its own delta", "own", -1.0, ()) == "its own delta is missing"
    assert in_words("its own delta", "own", 1.0, ()) == "its own delta is counted twice"
    assert in_words("its own delta", "own", 0.37, ()) == "its own delta is 1.37 times as large as it should be"
    assert in_words("its own delta", "own", None, (("a", -0.5), ("b", 1.0))).endswith("scaled wrongly (a 0.5, b 2)")
    assert in_words("its own ranks from 8 on", "part", -1.0, ()) == "its own ranks from 8 on are missing"
    assert in_words("the second half of its ranks", "part", -1.0, ()) == "the second half of its ranks is missing"
    assert in_words("the delta of x", "added", 1.0, ()) == "the delta of x is added"
