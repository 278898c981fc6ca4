"""--ops cuda, from the command line."""

import json

import numpy as np
import pytest
from cases import needs_cpu
from safetensors.numpy import load_file

from refimpl.cli import main
from refimpl.commands import demo

pytestmark = needs_cpu

PROMPT = "Rain drums on the haunted bakery."


def test_generate_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    asked = [f"{who}:{PROMPT}" for who in ("pirate", "pirate*0.5+bard*0.5", "base")]
    prompts = [word for text in asked for word in ("--prompt", text)]
    for ops in ("numpy", "cuda"):
        assert main(["generate", *prompts, "--max-new-tokens", "3", "--ops", ops, "--json"]) == 0
        said.append(json.loads(capsys.readouterr().out)["texts"])
    assert said[0] == said[1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_are_near(capsys: pytest.CaptureFixture[str], tmp_path: object, dtype: str) -> None:
    rows = []
    for ops in ("reference", "cuda"):
        out = f"{tmp_path}/{ops}.safetensors"
        assert main(["logits", "--prompt", f"robot:{PROMPT}", "--dtype", dtype, "--ops", ops, "--output", out]) == 0
        rows.append(load_file(out)["0.logits"])
    tolerance = 1e-4 if dtype == "float32" else 0.05 * np.abs(rows[0]).max()
    assert np.abs(rows[0] - rows[1]).max() <= tolerance


def test_float64_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--prompt", f"base:{PROMPT}", "--dtype", "float64", "--ops", "cuda"]) == 2
    err = capsys.readouterr().err
    assert "the kernels compute in float32, this precision in float64" in err and err.count("\n") == 1


def test_the_demo_says_that_it_is_simulated(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "FEW_TOKENS", 1)
    assert main(["demo", "--ops", "cuda"]) == 0
    out = capsys.readouterr().out
    assert "kernels run on this CPU" in out and "1 tokens a voice" in out
