"""`loracle check --engine peft` on random bases of families that are no Llama: PEFT passes where it is right."""

from pathlib import Path

import pytest

pytest.importorskip("peft")

from refimpl.engines import registry
from refimpl.oracle.campaign import Campaign
from refimpl.oracle.cases.testbed import build
from refimpl.oracle.reports.result import CampaignSettings


@pytest.mark.parametrize("family", ["gemma2", "gemma4_text", "cohere2", "ministral3", "nemotron"])
def test_peft_passes_on_a_base_of_the_family(family: str, tmp_path: Path) -> None:
    capabilities = registry.make("peft", {}).capabilities
    assert family in capabilities.families
    testbed = build("random", "float32", 1, tmp_path, capabilities, None, 5, family)
    plan = CampaignSettings(cases=2, sequences=0, below=False, name_bug=False)
    result = Campaign(lambda: registry.make("peft", {}), testbed, plan, tmp_path / "work").run()
    assert result.verdict == "pass", result.diagnostics
