"""--ops cuda, from the command line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from cases import needs_cpu
from safetensors.numpy import load_file

from refimpl.cli import main
from refimpl.commands import demo
from refimpl.cuda import runner

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
    which, line = capsys.readouterr().err.splitlines()
    assert "the kernels compute in float32, this precision in float64" in line
    assert which == f"loracle: kernels of {runner.kernels_folder()}, on this CPU"


def test_a_run_says_which_kernels_it_takes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever edits a copy that does not run should see it."""
    run = ["generate", "--prompt", f"base:{PROMPT}", "--max-new-tokens", "1", "--ops"]
    assert main([*run, "cuda"]) == 0
    assert capsys.readouterr().err == f"loracle: kernels of {runner.kernels_folder()}, on this CPU\n"
    assert main([*run, "numpy"]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("LORACLE_CHECK_KERNELS", "1")
    assert runner.about_kernels().endswith(", on this CPU, under the checker")


def test_an_edited_copy_of_the_kernels_runs_where_a_variable_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "kernels"
    shutil.copytree(runner.kernels_folder(), copy)
    (copy / "lora.cu").write_text("THIS IS NO C++\n" + (copy / "lora.cu").read_text("utf-8"), "utf-8")
    monkeypatch.setenv("LORACLE_KERNELS_FOLDER", str(copy))
    assert main(["generate", "--prompt", f"robot:{PROMPT}", "--max-new-tokens", "1", "--ops", "cuda"]) == 1
    which, *rest = capsys.readouterr().err.splitlines()
    assert which == f"loracle: kernels of {copy}, on this CPU"
    assert rest[0] == "loracle generate: lora.cu does not compile:" and rest[1].startswith("lora.cu:1:")
    monkeypatch.setenv("LORACLE_KERNELS_FOLDER", str(tmp_path))
    assert main(["generate", "--prompt", f"robot:{PROMPT}", "--ops", "cuda"]) == 2
    assert "no copy of kernels/" in capsys.readouterr().err


def test_the_demo_says_that_it_is_simulated(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "FEW_TOKENS", 1)
    assert main(["demo", "--ops", "cuda"]) == 0
    out = capsys.readouterr().out
    assert "kernels run on this CPU" in out and "1 tokens a voice" in out
