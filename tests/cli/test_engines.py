"""loracle engines: what is listed, and one line for what cannot be set up."""

import json
from pathlib import Path

import pytest

from refimpl import cli
from refimpl.engines import registry
from refimpl.engines.interface import FEATURES, OPERATIONS, READOUTS, EngineError
from refimpl.engines.recipes import RECIPES


@pytest.fixture(autouse=True)
def nothing_set_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for recipe in RECIPES.values():
        monkeypatch.delenv(recipe.variable, raising=False)


def test_json_lists_every_engine_and_every_mutant_with_what_it_can_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["engines", "--json"]) == 0
    found = {e["name"]: e for e in json.loads(capsys.readouterr().out)}
    assert {"peft", "vllm", "llama_cpp", "numpy", "reference", "cuda", "mutant:rslora_ignored"} <= set(found)
    assert sum(name.startswith("mutant:") for name in found) >= 60
    for name, e in found.items():
        c = e["capabilities"]
        assert e["what"] and e["installed"] == (not e["missing"]), name
        assert c["readout"] in READOUTS and set(c["features"]) <= set(FEATURES), name
        assert set(c["operations"]) <= set(OPERATIONS), name
    for name in RECIPES:
        assert not found[name]["installed"]
        assert (
            found[name]["setup"] == f"loracle engines setup {name}" and found[name]["setup"] in found[name]["missing"]
        )


def test_the_table_says_what_is_missing_and_how_to_get_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["engines"]) == 0
    out = capsys.readouterr().out
    for words in ("llama_cpp", "logprobs", "loracle engines setup vllm", "mutants of our own engine"):
        assert words in " ".join(out.split())
    assert "rslora_ignored" not in out
    assert cli.main(["engines", "--mutants"]) == 0
    assert "mutant:rslora_ignored" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["setup"],
            "setup needs a NAME; these have one: "
            "vllm, llama_cpp, llama_cpp_prebuilt, mistralrs, mlx_lm, openvino_genai, onnxruntime_genai, sglang",
        ),
        (
            ["setup", "peft"],
            "'peft' has no environment to set up; "
            "these have one: "
            "vllm, llama_cpp, llama_cpp_prebuilt, mistralrs, mlx_lm, openvino_genai, onnxruntime_genai, sglang",
        ),
    ],
)
def test_what_cannot_be_set_up_is_one_line(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["engines", *argv]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"loracle engines: {message}\n")


ENGINES = (
    "there is no engine 'vlm'; there is peft, vllm, llama_cpp, llama_cpp_prebuilt, mistralrs, mlx_lm, "
    "mlx_lm_server, openvino_genai, onnxruntime_genai, sglang, openai_http, "
    "tensorrt_llm, recorded, learn, module:function, numpy, reference, cuda, mutant:NAME, blind:KEY"
)
MUTANTS = "there is no mutant 'rslora_ignore': `loracle engines --mutants` has them"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vlm", {}, "there is no engine 'vlm'; there is peft, vllm, llama_cpp"),
        ("mutant:nobody", {}, "there is no mutant 'nobody'"),
        ("vlm", {}, ENGINES + "; did you mean 'vllm'?"),
        ("nobody", {}, ENGINES.replace("vlm", "nobody")),
        ("mutant:rslora_ignore", {}, MUTANTS + "; did you mean 'rslora_ignored'?"),
        ("mutant:mutant:x", {}, MUTANTS.replace("rslora_ignore", "mutant:x")),
        ("my_module.py:good", {}, "my_module.py:good: a module is named without .py: my_module:good"),
        (
            "src/my_module.py:good",
            {},
            "src/my_module.py:good: a module is named without .py: my_module:good, in the fol",
        ),
        ("my_module.py", {}, "my_module.py is a file: --engine names a function in it, my_module:FUNCTION"),
        ("json:load_", {}, "json:load_: module json has no load_; did you mean 'load'?"),
        ("numpy", {"kv": "f16"}, "numpy has no option 'kv'"),
        ("vllm", {"kv": "f16"}, "vllm has no option 'kv'; it has last-slot, readout, timeout"),
        ("llama_cpp", {"kv": "f8"}, "llama_cpp: option kv=f8: must be one of f32, f16"),
        ("llama_cpp", {}, "llama_cpp: no environment: `loracle engines setup llama_cpp` makes one"),
    ],
)
def test_an_engine_that_cannot_be_made_is_one_line(name: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(EngineError) as raised:
        registry.make(name, options)
    assert str(raised.value).startswith(message) and "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["numpy", "reference", "mutant:rslora_ignored"])
def test_our_own_engine_and_its_mutants_are_made_by_name(name: str) -> None:
    assert registry.make(name, {}).capabilities.readout == "logits"


def test_a_module_that_is_not_there_yet_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.MODULES, "later", "no_such_module")
    assert "later" not in {e.name for e in registry.entries()}
    with pytest.raises(EngineError, match="there is no engine 'later'"):
        registry.make("later", {})
