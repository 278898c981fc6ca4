"""Adapters that are confined to a few modules; and mistakes of the same tokens, told apart by them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.causes import cause_of_bug
from support.testbed import CONFIG, small_testbed

from refimpl import NUMPY, Ops, Precision
from refimpl.adapter_slots import AdapterSlots
from refimpl.arrays import Array
from refimpl.config import Module
from refimpl.engines.ours import CAPABILITIES, Ours
from refimpl.oracle.cases.batches import draw_batch
from refimpl.oracle.cases.testbed import settings
from refimpl.oracle.causes.confined import confined, confined_testbed, groups
from refimpl.oracle.engine_driver import EngineDriver
from refimpl.oracle.noise.ensemble import ensemble
from refimpl.oracle.noise.measure import measure
from refimpl.oracle.reports.result import PlayedCase
from refimpl.oracle.verdicts import judge_all
from refimpl.plans import LoraMapping


def test_every_module_is_in_one_group() -> None:
    modules = [module for group in groups(CONFIG).values() for module in group]
    assert sorted(modules) == sorted(CONFIG.modules())


def test_what_is_written_is_confined(tmp_path: Path) -> None:
    """The folders that an engine loads have B where they are confined to, 0 elsewhere, and the config that they had."""
    testbed = small_testbed()
    for name, group in groups(CONFIG).items():
        part = confined_testbed(testbed, name, group, tmp_path)
        assert list(part.adapters) == list(testbed.adapters)
        for key, adapter in part.adapters.items():
            whole = testbed.adapters[key]
            assert adapter.config == whole.config and set(adapter.lora) == set(whole.lora)
            for module, lora in adapter.lora.items():
                assert np.array_equal(lora.B, whole.lora[module].B if module in group else 0 * lora.B)
                assert np.array_equal(lora.A, whole.lora[module].A)


def test_a_bias_is_confined_as_well() -> None:
    adapter = next(one for one in small_testbed().adapters.values() if one.config.lora_bias)
    kept, *others = [module for module, lora in adapter.lora.items() if lora.bias is not None]
    lora = confined(adapter, [kept]).lora
    assert lora[kept] is adapter.lora[kept]
    assert others and not any(np.any(lora[module].bias) for module in others)


@pytest.mark.filterwarnings("ignore::refimpl.errors.AdapterWarning")
def test_a_right_engine_does_not_fail(tmp_path: Path) -> None:
    """Where an adapter has nothing left, nothing shows whether it was there: that may be undecided."""
    testbed, members = small_testbed(), ensemble("float32")
    driver = EngineDriver(lambda: Ours(lambda: NUMPY, Precision("model", "float32")), testbed, tmp_path)
    played = []
    for i, (name, group) in enumerate(groups(CONFIG).items()):
        part = confined_testbed(testbed, name, group, tmp_path / "confined")
        case = draw_batch(testbed, CAPABILITIES, np.random.default_rng([7, i]), name)
        (exchanges,) = driver.run_on(part, [case], settings(testbed))
        played.append(PlayedCase(case, settings(testbed), measure(case, exchanges, part, members)[0]))
    judge_all(played)
    verdicts = [one.verdict for one in played]
    assert "fail" not in verdicts and "pass" in verdicts


def changed(change: Callable[[Array, Module], None]) -> Callable[[], Ops]:
    """Return a backend that changes the delta of every module."""

    def lora_delta(
        y: Array, x: Array, module: Module, adapters: AdapterSlots, mapping: LoraMapping, p: Precision
    ) -> None:
        delta = np.zeros_like(y)
        NUMPY.lora_delta(delta, x, module, adapters, mapping, p)
        change(delta, module)
        y += delta

    return lambda: dataclasses.replace(NUMPY, lora_delta=lora_delta)


def three_at_once(delta: Array, module: Module) -> None:
    """Heads of v_proj are rolled, o_proj has no delta, and gate_proj half of it."""
    if module[1] == "v_proj":
        delta[:] = np.roll(delta, 8, axis=1)  # head_dim
    if module[1] == "o_proj":
        delta[:] = 0
    if module[1] == "gate_proj":
        delta *= 0.5


def test_three_mistakes_in_every_token(tmp_path: Path) -> None:
    cause = cause_of_bug(changed(three_at_once), tmp_path)
    assert cause is not None and cause.explained >= 0.8 * cause.failed
    found = {(one.modules, one.coefficient) for one in cause.changes}
    assert found == {("v_proj", 1.0), ("o_proj", -1.0), ("gate_proj", -0.5)}


def halved_and_reversed(delta: Array, module: Module) -> None:
    """Half of every delta but those of o_proj and down_proj is lost; o_proj's outputs are in reverse."""
    if module[1] in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"):
        delta *= 0.5
    if module[1] == "o_proj":
        delta[:] = delta[:, ::-1].copy()


def test_one_mistake_in_two_groups_of_modules_is_one(tmp_path: Path) -> None:
    cause = cause_of_bug(changed(halved_and_reversed), tmp_path)
    assert cause is not None and cause.explained >= 0.9 * cause.failed
    found = {(one.modules, one.coefficient) for one in cause.changes}
    assert found == {("the column-parallel modules", -0.5), ("o_proj", 1.0)}
