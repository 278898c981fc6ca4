"""Campaigns over our own engine: clean tables pass, and say what they would have seen."""

import dataclasses
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from support.campaign import campaign
from support.testbed import small_testbed

from refimpl import NUMPY, REFERENCE, Precision, load_model
from refimpl.arrays import Array
from refimpl.engines.interface import EngineRequest
from refimpl.engines.ours import Ours
from refimpl.formats.peft import save_adapter
from refimpl.oracle.bugs import all_mutants
from refimpl.oracle.campaign import Campaign
from refimpl.oracle.cases.case import Case, Run
from refimpl.oracle.reports.result import CampaignSettings
from refimpl.oracle.second_look import with_other_tokens
from refimpl.oracle.verdicts import WITHOUT_EFFECT

pytestmark = pytest.mark.filterwarnings("ignore::refimpl.errors.AdapterWarning")


def test_a_clean_engine_passes_and_its_power_is_stated(tmp_path: Path) -> None:
    result = campaign(tmp_path, lambda: REFERENCE, cases=2, sequences=3, below=True)
    assert result.verdict == "pass" and result.explanation.findings == [] and result.explanation.smallest is None
    assert result.power["adapters_ignored"] == "detected"
    assert result.power["key_without_adapter"] == "detected"
    assert result.power["saved_biases_dropped"] == "not exercised"  # no adapter here has such biases
    assert set(result.power) >= set(all_mutants())


def test_a_lower_precision_is_a_finding_and_no_bug(tmp_path: Path) -> None:
    """An engine in float32 that keeps keys and values in float16."""
    half = dataclasses.replace(Precision("model", "float32"), kv="float16")
    result = campaign(tmp_path, precision=half, cases=8)
    assert any("KV cache in float16" in line for line in result.diagnostics)
    assert result.verdict == "pass"


def test_weights_that_were_rounded_are_named_and_fail(tmp_path: Path) -> None:
    """An engine in float32 that loads the base in bfloat16 first."""
    testbed = small_testbed()

    class Rounded(Ours):
        def start(self, settings):
            self.model = load_model(testbed.folder, "bfloat16")
            super().start(settings)

    settings = CampaignSettings(cases=3, sequences=0, below=False, name_bug=False)
    result = Campaign(lambda: Rounded(lambda: NUMPY, Precision("model", "float32")), testbed, settings, tmp_path).run()
    assert result.verdict == "fail"
    assert any("the base's weights rounded to bfloat16 explain it" in line for line in result.diagnostics)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_keys_and_values_in_a_float8_are_named_and_fail(tmp_path: Path, dtype: str) -> None:
    """An engine in float32 whose cache is a quarter as large."""

    def write_kv(k_cache: Array, v_cache: Array, k: Array, v: Array, *where: Any) -> None:
        narrow = np.dtype(getattr(ml_dtypes, dtype))
        NUMPY.write_kv(k_cache, v_cache, k.astype(narrow).astype(k.dtype), v.astype(narrow).astype(v.dtype), *where)

    ops = dataclasses.replace(NUMPY, write_kv=write_kv)
    result = campaign(tmp_path, lambda: ops, cases=3, sequences=0, below=False, name_bug=False)
    assert result.verdict == "fail"
    assert any(f"keys and values rounded to {dtype} explain it" in line for line in result.diagnostics)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_precision_is_inferred(tmp_path: Path, dtype: str) -> None:
    result = Campaign(
        lambda: Ours(lambda: NUMPY, Precision("model", dtype)),
        small_testbed("float32"),
        CampaignSettings(cases=3, sequences=0, precision="auto", below=False),
        tmp_path,
    ).run()
    assert result.dtype == dtype and result.verdict == "pass"


def test_the_same_seed_asks_the_same_and_another_does_not(tmp_path: Path) -> None:
    def cases_of(seed: int, folder: str) -> list[Case]:
        return [p.case for p in campaign(tmp_path / folder, seed=seed, sequences=3).played]

    assert cases_of(1, "a") == cases_of(1, "b") != cases_of(2, "c")


def test_a_campaign_is_resumed_without_asking_again(tmp_path: Path) -> None:
    class Mute(Ours):
        def run(self, requests, forced=None):
            raise AssertionError("it was asked again")

    first = campaign(tmp_path, cases=3, sequences=2)
    again = Campaign(Mute, small_testbed(), CampaignSettings(3, 2, below=False), tmp_path).run()
    assert [p.verdict for p in again.played] == [p.verdict for p in first.played]
    ratios = [[ratio.ratio.tolist() for ratio in p.ratios] for p in first.played]
    assert ratios == [[ratio.ratio.tolist() for ratio in p.ratios] for p in again.played]


def test_adapters_that_do_nothing_show_nothing(tmp_path: Path) -> None:
    """A case in which no adapter matters is no pass, however well the numbers agree."""
    testbed = small_testbed()
    first = next(iter(testbed.adapters))
    zero = dataclasses.replace(
        testbed.adapters[first],
        name=first,
        lora={
            module: dataclasses.replace(lora, B=np.zeros_like(lora.B), bias=None)
            for module, lora in testbed.adapters[first].lora.items()
        },
        replaced={},
    )
    zero = dataclasses.replace(zero, config=dataclasses.replace(zero.config, lora_bias=False, modules_to_save=()))
    save_adapter(zero, tmp_path / "zero")
    idle = dataclasses.replace(testbed, paths={first: tmp_path / "zero"}, adapters={first: zero})
    result = Campaign(Ours, idle, CampaignSettings(4, 0, below=False), tmp_path).run()
    assert result.verdict == "undecided"
    assert result.diagnostics == [f"4 of 4 cases are undecided: {WITHOUT_EFFECT}"]


def test_retold_keeps_what_prompts_have_in_common() -> None:
    case = Case("x", (Run((EngineRequest((1, 2, 3), "a"), EngineRequest((1, 2, 4), None))),))
    other = with_other_tokens(case, 50, 0)
    first, second = (request.prompt_ids for request in other.runs[0].requests)
    assert first[:2] == second[:2] and first[2] != second[2] and first != (1, 2, 3)
