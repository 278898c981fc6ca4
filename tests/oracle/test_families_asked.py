"""Random bases of every family: a right engine passes, and what an engine may fuse differs in scale and rank."""

import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from refimpl import NUMPY, Request, logits
from refimpl.adapter import pattern_value
from refimpl.adapter_slots import scale_of
from refimpl.cli import main
from refimpl.config import module_name
from refimpl.engines.declared import declared
from refimpl.engines.interface import EngineError, EngineRequest
from refimpl.engines.ours import CAPABILITIES, Ours
from refimpl.families import FAMILIES, MODEL_TYPES
from refimpl.families.small import RULES
from refimpl.oracle.campaign import Campaign
from refimpl.oracle.cases.family_base import family_base
from refimpl.oracle.cases.testbed import Testbed, build, settings
from refimpl.oracle.cases.variety import KINDS, random_adapters
from refimpl.oracle.reports.result import CampaignSettings
from refimpl.weights import Model

PLAN = CampaignSettings(cases=2, sequences=1, below=False)


def bed_of(family: str, folder: Path, seed: int = 0) -> Testbed:
    """A random base of the family with all kinds of adapters."""
    return build("random", "float32", seed, folder, CAPABILITIES, None, KINDS, family)


def test_every_family_has_a_small_base() -> None:
    assert set(RULES) == {family.model_type for family in FAMILIES.values()} == set(MODEL_TYPES)


# One for each way in which a forward pass differs; `loracle check --engine numpy --families all` asks them all.
@pytest.mark.parametrize("family", ["phi3", "gemma4_text", "cohere2", "qwen2_moe", "deepseek_v3", "gpt_oss", "mixtral"])
def test_a_right_engine_passes_on_a_base_of_the_family(family: str, tmp_path: Path) -> None:
    result = Campaign(Ours, bed_of(family, tmp_path), PLAN, tmp_path / "work").run()
    assert result.verdict == "pass", result.diagnostics


def test_a_long_request_turns_by_the_long_factors_from_its_first_token_on(tmp_path: Path) -> None:
    """A prompt of 6 tokens that goes on to 20 is long from the start: the engine that is checked is told how long."""
    bed = bed_of("phi3", tmp_path)
    engine = Ours(lambda: NUMPY)
    engine.start(settings(bed))
    response = engine.run([EngineRequest((2, 3, 4, 5, 6, 7), None, 14)])[0]
    exact = logits(bed.exact, [Request([2, 3, 4, 5, 6, 7, *response.token_ids[:-1]])])[0]
    np.testing.assert_allclose(response.logits, exact, atol=1e-3)


def test_modules_that_engines_fuse_differ_in_rank_scale_and_presence(tmp_path: Path) -> None:
    base = family_base("llama", 0, "float32", tmp_path / "base")
    pool = random_adapters(base, np.random.default_rng(0), CAPABILITIES, KINDS)
    for first, second in [*combinations(("q_proj", "k_proj", "v_proj"), 2), ("gate_proj", "up_proj")]:
        differing = {"scale": 0, "rank": 0, "presence": 0}
        for adapter in pool:
            pair = [adapter.lora.get((0, name)) for name in (first, second)]
            differing["presence"] += (pair[0] is None) != (pair[1] is None)
            if pair[0] is None or pair[1] is None:
                continue
            ranks = [len(lora.A) for lora in pair]
            scales = [scale_of(adapter.config, (0, name), r) for name, r in zip((first, second), ranks, strict=True)]
            differing["scale"] += scales[0] != scales[1]
            differing["rank"] += ranks[0] != ranks[1]
        assert differing["scale"], (first, second)
        assert differing["rank"], (first, second)
    assert any(adapter.config.use_rslora and adapter.config.rank_pattern for adapter in pool)
    for adapter in pool:
        for module, lora in adapter.lora.items():
            assert len(lora.A) == pattern_value(adapter.config.rank_pattern, module_name(module), adapter.config.r)


def with_scale_of(base: Model, pool: list, source: str, target: str) -> list:
    """The adapters as an engine has them that scales one module's B with another's scale."""
    wrong = []
    for adapter in pool:
        lora = dict(adapter.lora)
        for (layer, name), tensors in adapter.lora.items():
            other = adapter.lora.get((layer, source))
            if name != target or other is None:
                continue
            scales = [scale_of(adapter.config, (layer, n), len(x.A)) for n, x in ((source, other), (target, tensors))]
            lora[layer, name] = replace(tensors, B=(tensors.B * (scales[0] / scales[1])).astype(np.float32))
        wrong.append(replace(adapter, lora=lora))
    return wrong


@pytest.mark.parametrize("pair", [("q_proj", "k_proj"), ("gate_proj", "up_proj"), ("q_proj", "v_proj")])
def test_one_scale_for_what_is_fused_fails_in_a_short_campaign(pair: tuple[str, str], tmp_path: Path) -> None:
    bed = bed_of("", tmp_path)
    wrong = with_scale_of(bed.model, list(bed.adapters.values()), *pair)
    adapters = {path: adapter for path, adapter in zip(bed.paths.values(), wrong, strict=True)}
    plan = CampaignSettings(cases=8, sequences=0, below=False, name_bug=False)
    result = Campaign(lambda: Ours(model=bed.model, adapters=adapters), bed, plan, tmp_path / "work").run()
    assert result.verdict == "fail"


def test_families_are_declared_and_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    assert declared({"families": ["qwen3", "llama"]}, CAPABILITIES, "f").families == ("qwen3", "llama")
    with pytest.raises(EngineError, match="did you mean 'qwen3'"):
        declared({"families": ["quen3"]}, CAPABILITIES, "f")
    for arguments, says in (
        (["--families", "gptoss"], "--families gptoss: there is llama, .*did you mean 'gpt_oss'"),
        (["--families", "qwen3", "--model", "tiny"], "--families is for --model random"),
    ):
        assert main(["check", "--engine", "numpy", "--model", "random", *arguments]) == 2
        assert re.search(says, capsys.readouterr().err)
    code = main(["check", "--engine", "numpy", "--model", "random", "--families", "granitemoe,olmo3", "--cases", "2",
                 "--sequences", "0", "--no-power", "--json"])  # fmt: skip
    printed = capsys.readouterr().out
    assert code == 0 and "base 0, a granitemoe, batch 0" in printed and "base 1, a olmo3, batch 0" in printed


def test_a_cause_is_looked_for_on_a_base_with_experts(capsys: pytest.CaptureFixture[str]) -> None:
    """Experts get the rows that are sent to them, and have no gradients here: the check says what it knows all the
    same."""
    arguments = ["--model", "random", "--families", "qwen3_moe", "--cases", "4", "--sequences", "0", "--no-power"]
    assert main(["check", "--engine", "mutant:rslora_ignored", *arguments, "--jobs", "1"]) == 1
    assert capsys.readouterr().out.startswith("FAIL")
