"""Campaigns over our own engine: clean tables pass and say what they would have seen, bugs fail and get their names."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.testbed import small_testbed

from refimpl import NUMPY, REFERENCE, Ops, Precision
from refimpl.engines.interface import EngineError, EngineRequest, EngineResponse
from refimpl.engines.ours import Ours
from refimpl.lora import adapter_scale, lora_delta
from refimpl.oracle.bugs import all_mutants
from refimpl.oracle.campaign import Campaign
from refimpl.oracle.cases.case import Case, Run
from refimpl.oracle.reports.result import CampaignSettings, Result
from refimpl.oracle.reports.summary import summary
from refimpl.oracle.second_look import with_other_tokens

pytestmark = pytest.mark.filterwarnings("ignore::refimpl.errors.AdapterWarning")


def campaign(
    tmp_path: Path,
    make: Callable[[], Ops] = lambda: NUMPY,
    dtype: str = "float32",
    precision: Precision | None = None,
    **plan,
) -> Result:
    options = {"cases": 5, "sequences": 0, "below": False} | plan
    return Campaign(lambda: Ours(make, precision), small_testbed(dtype), CampaignSettings(**options), tmp_path).run()


def named(result: Result) -> list[str]:
    return [finding.name for finding in result.explanation.findings if finding.explains]


def test_a_clean_engine_passes_and_its_power_is_stated(tmp_path: Path) -> None:
    result = campaign(tmp_path, lambda: REFERENCE, cases=2, sequences=3, below=True)
    assert result.verdict == "pass" and result.explanation.findings == [] and result.explanation.smallest is None
    assert result.power["adapters_ignored"] == "detected"
    assert result.power["key_without_adapter"] == "detected"
    assert result.power["saved_biases_dropped"] == "not exercised"  # no adapter here has such biases
    assert set(result.power) >= set(all_mutants())


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("rslora_ignored", "float32"),
        ("none_is_slot_zero", "bfloat16"),
        ("not_applied_to[v_proj]", "float16"),
        ("decode_at_zero", "float32"),
    ],
)
def test_a_bug_is_named(tmp_path: Path, name: str, dtype: str) -> None:
    result = campaign(tmp_path, all_mutants()[name].make, dtype)
    assert result.verdict == "fail"
    (finding,) = [one for one in result.explanation.findings if one.explains]
    assert name in (finding.name, *finding.also)
    assert abs(finding.projection.coefficient - 1) < 0.05 and finding.residual < 3
    assert finding.next_best[1] > 3 * finding.residual


def test_a_bug_of_sequences_is_named_and_made_small(tmp_path: Path) -> None:
    result = campaign(tmp_path, all_mutants()["key_without_adapter"].make, cases=1, sequences=6)
    assert result.verdict == "fail" and "key_without_adapter" in named(result)
    assert result.explanation.smallest is not None and not result.explanation.smallest.stateless
    assert len(result.explanation.smallest.steps) <= 4
    assert any("were asked before, of" in symptom.what for symptom in result.explanation.symptoms)


def test_a_factor_that_nobody_has_foreseen_is_fitted(tmp_path: Path) -> None:
    def scaled() -> Ops:
        return dataclasses.replace(NUMPY, adapter_scale=lambda alpha, r, rs: 1.37 * adapter_scale(alpha, r, rs))

    result = campaign(tmp_path, scaled)
    assert named(result) == ["scale_times[1.37]"]
    assert any("1.37 times" in symptom.what for symptom in result.explanation.symptoms)


def test_half_a_percent_of_scale_is_seen_below_the_noise_of_bfloat16(tmp_path: Path) -> None:
    def scaled() -> Ops:
        return dataclasses.replace(NUMPY, adapter_scale=lambda alpha, r, rs: 1.005 * adapter_scale(alpha, r, rs))

    result = campaign(tmp_path, scaled, "bfloat16", cases=6, sequences=1, below=True)
    assert [p.verdict for p in result.played].count("fail") == 0  # no row is out of the noise
    assert result.verdict == "fail" and any("below the noise: scale_times" in line for line in result.diagnostics)
    assert named(result)[0].startswith("scale_times[1.00")


def test_a_bug_that_no_mutant_has_gets_its_symptoms(tmp_path: Path) -> None:
    """The delta of every adapter has its outputs reversed: nothing in the zoo does that."""

    def reversed_delta() -> Ops:
        def step(y, x, *rest) -> None:
            delta = np.zeros_like(y)
            lora_delta(delta, x, *rest)
            y += delta[:, ::-1]

        return dataclasses.replace(NUMPY, lora_delta=step)

    result = campaign(tmp_path, reversed_delta)
    assert result.verdict == "fail" and named(result) == []
    assert not any("base rows are wrong" in symptom.what for symptom in result.explanation.symptoms)


def test_a_lower_precision_is_a_finding_and_no_bug(tmp_path: Path) -> None:
    """An engine in float32 that keeps keys and values in float16."""
    half = dataclasses.replace(Precision("model", "float32"), kv="float16")
    result = campaign(tmp_path, precision=half, cases=8)
    assert any("KV cache in float16" in line for line in result.diagnostics)
    assert result.verdict == "pass"


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


def test_an_engine_that_breaks_off_is_no_verdict(tmp_path: Path) -> None:
    class Gone(Ours):
        def run(self, requests, forced=None):
            raise EngineError("the server is gone")

    with pytest.raises(EngineError, match="gone"):
        Campaign(Gone, small_testbed(), CampaignSettings(2, 0), tmp_path).run()


def test_an_engine_that_answers_errors_fails(tmp_path: Path) -> None:
    class Refusing(Ours):
        def run(self, requests, forced=None):
            return [EngineResponse(error="500 Internal Server Error") for _ in requests]

    result = Campaign(Refusing, small_testbed(), CampaignSettings(2, 0), tmp_path).run()
    assert result.verdict == "fail"
    assert result.explanation.symptoms[0].what == "no answer: 500 Internal Server Error"
    assert result.diagnostics == ["no answer could be read; the engine said: 500 Internal Server Error"]
    assert summary(result, "refusing")["worst_noise_ratio"] is None  # JSON has no infinity


def test_an_engine_most_of_whose_answers_are_errors_is_explained(tmp_path: Path) -> None:
    """Four of its ten batches have numbers, which are wrong, and none of them is among the six that are spread over all
    of the failed ones; afterwards it answers nothing but errors."""

    class Failing(Ours):
        batches = 0

        def run(self, requests, forced=None):
            type(self).batches += 1
            if type(self).batches in (3, 5, 7, 9):
                return super().run(requests, forced)
            return [EngineResponse(error="503 Service Unavailable") for _ in requests]

    make = all_mutants()["adapters_ignored"].make
    result = Campaign(lambda: Failing(make), small_testbed(), CampaignSettings(10, 0, below=False), tmp_path).run()
    assert result.verdict == "fail"
    (line,) = [line for line in result.diagnostics if "could be read" in line]
    assert "adapters_ignored" in named(result)
    assert line.startswith("only ") and line.endswith("the engine said: 503 Service Unavailable")


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
    from refimpl.formats.peft import save_adapter

    zero = dataclasses.replace(zero, config=dataclasses.replace(zero.config, lora_bias=False, modules_to_save=()))
    save_adapter(zero, tmp_path / "zero")
    idle = dataclasses.replace(testbed, paths={first: tmp_path / "zero"}, adapters={first: zero})
    result = Campaign(Ours, idle, CampaignSettings(4, 0, below=False), tmp_path).run()
    assert result.verdict == "undecided"


def test_retold_keeps_what_prompts_have_in_common() -> None:
    case = Case("x", (Run((EngineRequest((1, 2, 3), "a"), EngineRequest((1, 2, 4), None))),))
    other = with_other_tokens(case, 50, 0)
    first, second = (request.prompt_ids for request in other.runs[0].requests)
    assert first[:2] == second[:2] and first[2] != second[2] and first != (1, 2, 3)
