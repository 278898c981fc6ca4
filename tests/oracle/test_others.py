"""Conditions that seven adapters cannot tell apart: other adapters are asked about; regions and sources of those."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.causes import cause_of_bug, cause_of_engine
from support.testbed import small_testbed

from refimpl import NUMPY, Ops, Precision
from refimpl.adapter import Adapter
from refimpl.adapter_slots import LoraWeights
from refimpl.config import ModelConfig
from refimpl.engines.interface import EngineRequest, EngineResponse
from refimpl.engines.ours import CAPABILITIES, Ours
from refimpl.oracle.cases.case import Case, Run
from refimpl.oracle.causes.adapter_regions import adapter_regions
from refimpl.oracle.causes.adapter_sources import adapter_sources
from refimpl.oracle.causes.fewer import alone, in_other_shapes
from refimpl.oracle.causes.history import History
from refimpl.oracle.causes.others import other_cases, other_testbed
from refimpl.oracle.causes.regions import sets_of_names

pytestmark = pytest.mark.filterwarnings("ignore::refimpl.errors.AdapterWarning")


def without_rslora() -> Ops:
    """Adapters with rsLoRA do nothing, unless they bring whole layers along."""

    def bind_adapter(adapter: Adapter, config: ModelConfig, scale: object) -> object:
        bound = NUMPY.bind_adapter(adapter, config, scale)
        if adapter.config.use_rslora and not adapter.replaced:
            bound = dataclasses.replace(bound, lora={})
        return bound

    return dataclasses.replace(NUMPY, bind_adapter=bind_adapter)


def test_a_condition_is_held_against_adapters_that_the_campaign_had_not(tmp_path: Path) -> None:
    cause = cause_of_bug(without_rslora, tmp_path)
    assert cause is not None and cause.explained == cause.failed and cause.afterwards
    assert "its adapter has rsLoRA and it brings no whole layer along" in cause.changes[0].when
    assert cause.changes[0].what == "its own delta is missing" and cause.exceptions == 0
    assert "asked when it was found, of other adapters or in other batches" in cause.evidence


def test_other_adapters_are_of_the_same_base_and_all_different(tmp_path: Path) -> None:
    testbed = small_testbed("float32")
    others = other_testbed(testbed, CAPABILITIES, tmp_path)
    assert others.folder == testbed.folder and not set(others.adapters) & set(testbed.adapters)
    ranks = [{lora.A.shape[0] for lora in adapter.lora.values()} for adapter in others.adapters.values()]
    assert len(set(map(frozenset, ranks))) > 3
    cases = other_cases(others, CAPABILITIES)
    named = {request.adapter for case in cases for run in case.runs for request in run.requests}
    assert named - {None} <= set(others.adapters) and len(named) > len(others.adapters) // 2


def test_any_set_of_modules_by_name_is_a_region() -> None:
    config = small_testbed("float32").exact.config
    regions = sets_of_names(config)
    names = {module[1] for module in config.modules()}
    assert len(regions) == len({one.words for one in regions}) == 2 ** len(names) - len(names) - 2
    one = next(one for one in regions if one.words == "q_proj and down_proj")
    chosen = [module for module, inside in zip(config.modules(), one.members, strict=True) if inside]
    assert {name for _, name in chosen} == {"q_proj", "down_proj"} and len(chosen) == 2 * config.num_hidden_layers


def test_sets_of_modules_by_what_an_adapter_has_there() -> None:
    testbed = small_testbed("float32")
    modules = testbed.exact.config.modules()
    nothing = {one.words: one.members for one in adapter_regions([], modules)}
    assert not any(members.any() for members in nothing.values())
    for adapter in testbed.adapters.values():
        regions = {one.words: one.members for one in adapter_regions([adapter], modules)}
        assert list(regions) == list(nothing)
        for i, module in enumerate(modules):
            inside = {words for words, members in regions.items() if members[i]}
            assert bool(inside) == (module in adapter.lora)
            if inside:
                r = len(adapter.lora[module].A)
                assert ("modules of even rank" in inside) != ("modules of odd rank" in inside) == (r % 2 == 1)
                assert ("modules of a rank above 4" in inside) == (r > 4) != ("modules of rank 4 or less" in inside)
                assert ("modules that rank_pattern names" in inside) == (r != adapter.config.r)


def test_modules_that_another_adapter_leaves_alone() -> None:
    lora = LoraWeights(np.ones((1, 2)), np.ones((2, 1)), 1.0)
    weights = {"mine": {(0, "q_proj"): lora, (1, "q_proj"): lora, (0, "o_proj"): lora}, "other": {(1, "q_proj"): lora}}
    outside = next(one for one in adapter_sources("mine", "other", "other") if one.key == "outside: other")

    def at(module: tuple[int, str]) -> object:
        of = weights["mine"].get(module)
        return outside.delta(
            SimpleNamespace(module=module, weights=weights, full_delta=lambda key: None if of is None else key)
        )

    assert at((0, "o_proj")) == "mine"  # it has that nowhere
    assert at((0, "q_proj")) is None  # it has it in another layer
    assert at((1, "o_proj")) is None  # neither has it


def test_numbers_in_the_order_of_first_use() -> None:
    past = History(("b", None, "a", "b"), None, None, None, False)
    assert [past.number(key) for key in ("b", "a", "c")] == [1, 2, 3]


def test_a_batch_in_other_shapes_keeps_its_request() -> None:
    requests = tuple(EngineRequest((i, i + 1), f"made-{i}") for i in range(4))
    case = Case("four", (Run(requests),))
    shapes = list(in_other_shapes(case, 1))
    assert all(one.runs[0].requests[here] == requests[1] and len(one.runs[0].requests) > 1 for one, here in shapes)
    numbers = [tuple(int(request.adapter[-1]) for request in one.runs[0].requests) for one, _ in shapes]
    assert numbers == [(0, 1, 2), (0, 1), (1, 2, 3), (3, 2, 1, 0), (3, 0, 1, 2)]
    assert len({one.name for one, _ in shapes}) == len(shapes)
    assert alone(case, 2).runs == [Run(requests[2:3])] and list(in_other_shapes(alone(case, 2), 0)) == []


class BaseInBatchesOfFive(Ours):
    """The first request of a batch of five adapters or more is served by the base."""

    testbed_vocabulary = small_testbed("float32").exact.config.vocab_size

    def run(self, requests: Sequence[EngineRequest]) -> list[EngineResponse]:
        """Return the answers."""
        names = list(dict.fromkeys(name for request in requests for name, _ in request.adapters))
        is_base_vocabulary = max(requests[0].prompt_ids) < self.testbed_vocabulary
        if len(names) > 4 and requests[0].adapter == names[0] and is_base_vocabulary:
            requests = [dataclasses.replace(requests[0], adapter=None), *requests[1:]]
        return super().run(requests)


def test_how_many_adapters_it_takes_is_learnt_from_smaller_batches(tmp_path: Path) -> None:
    cause = cause_of_engine(lambda: BaseInBatchesOfFive(lambda: NUMPY, Precision("model", "float32")), tmp_path)
    assert cause is not None and cause.explained == cause.failed and not cause.exceptions
    assert cause.changes[0].what == "its own delta is missing"
    assert "the batch has 5 adapters or more" in cause.changes[0].when
