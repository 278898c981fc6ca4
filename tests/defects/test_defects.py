"""docs/defects.md is what its data give, every entry has a script, and every script still shows its defect.

Those of PEFT and transformers run where these are installed, those of vLLM and llama.cpp with LORACLE_LIVE=1, those of
OpenVINO GenAI, ONNX Runtime GenAI, SGLang and mlx-lm's server with LORACLE_LIVE=nightly."""

import importlib.util
import os
from pathlib import Path

import pytest
from catalogue import find, listed
from showing import SAME, WRONG, Shown

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore")  # of the engines, which are not ours to mend

spec = importlib.util.spec_from_file_location("make_defects", ROOT / "docs" / "make_defects.py")
assert spec is not None and spec.loader is not None
make_defects = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_defects)


def test_the_page_is_what_the_data_give() -> None:
    assert (ROOT / "docs" / "defects.md").read_text("utf-8") == make_defects.page(), "python docs/make_defects.py"


def test_every_entry_has_a_script_that_was_run_and_every_script_an_entry() -> None:
    names = [entry["name"] for content in make_defects.read() for entry in content["defect"]]
    assert sorted(names) == sorted(listed())
    assert len(set(names)) == len(names) >= 20
    assert (ROOT / make_defects.SHOW).is_file()


def test_what_is_right_or_has_another_cause_is_not_shown() -> None:
    assert Shown("x", WRONG * 2).there and Shown("x", WRONG * 2, SAME / 2).there and Shown("x", error="it died").there
    assert not Shown("x", WRONG / 2, SAME / 2).there  # right
    assert not Shown("x", WRONG * 2, SAME * 2).there  # wrong in another way
    assert not Shown("x").there and not Shown("x", float("nan"), float("nan")).there  # no answer, and no error


@pytest.mark.parametrize("name", listed())
def test_it_shows(name: str, tmp_path: Path) -> None:
    when = "nightly" if name.startswith(("openvino_genai_", "onnxruntime_genai_", "mlx_lm_server_", "sglang_")) else "1"
    if not name.startswith(("peft_", "transformers_")) and os.environ.get("LORACLE_LIVE") != when:
        pytest.skip(f"LORACLE_LIVE={when} runs it, after `loracle engines setup NAME`")
    shown = find(name)(tmp_path)
    print(f"{name}: {shown}")
    assert shown.there, f"{name} is gone, or has another cause: {shown}"
