"""loracle record, as it is typed; and TensorRT-LLM as a live engine, with the stand-in in its place."""

import json
from pathlib import Path

import pytest
from recording import loracle, read

from refimpl.cli import main
from refimpl.config import LAYER_MODULES
from refimpl.engines import registry, tensorrt_llm
from refimpl.engines.interface import EngineError
from refimpl.errors import LoracleError
from refimpl.oracle.cases import archive
from refimpl.oracle.recordings.tensorrt_llm_cases import ADAPTERS, write_cases
from refimpl.tensorrt_llm.rank_alignment import misaligned

missing = pytest.mark.skipif(not tensorrt_llm.entry().missing, reason="TensorRT-LLM is here: it would be run")


@missing
def test_without_tensorrt_llm_the_command_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["record", "--engine", "tensorrt_llm", "--out", str(tmp_path / "out")]) == 0
    assert "\n    python cases/record_tensorrt_llm.py cases recording\n" in capsys.readouterr().out
    cases = tmp_path / "out" / "cases"
    assert {file.name for file in cases.iterdir()} == {
        *("requests.json", "model", "adapters", "kernel.npz", "record_tensorrt_llm.py")
    }
    assert main(["record", "--engine", "tensorrt_llm", "--out", str(tmp_path / "again"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["command"] == "python cases/record_tensorrt_llm.py cases recording"


def test_the_embedded_model_is_recorded_within_its_limits(recording_folder: Path) -> None:
    """With the stand-in: of the 10 minutes this says nothing, of the 5 MB it does."""
    assert 1_000_000 < read(recording_folder / "summary.json")["bytes"] < 5_000_000
    plan = read(recording_folder / "requests.json")
    assert plan["seconds"] <= 600
    names = [(part["name"], f"{case['name']}.json") for part in plan["parts"] for case in part.get("cases", [])]
    assert {read(recording_folder / part / file)["cut"] for part, file in names} == {""}


def test_a_live_engine_is_checked(tmp_path: Path) -> None:
    log = tmp_path / "log"
    plan = ("--engine", "tensorrt_llm", "--model", "random", "--precision", "float16", "--jobs", "1", "--no-power")
    done = loracle("check", *plan, "--cases", "2", "--sequences", "1", "--json", log=str(log))
    result = json.loads(done.stdout)
    assert (done.returncode, result["verdict"], result["passed"]) == (0, "pass", 3), done.stderr
    assert not log.exists(), log.read_text()
    assert "1.2.0+stand.in" in json.dumps(result["environment"])


@missing
def test_a_live_engine_that_is_not_here() -> None:
    entry = next(entry for entry in registry.entries() if entry.name == "tensorrt_llm")
    assert "needs an NVIDIA GPU" in entry.missing
    with pytest.raises(EngineError, match="loracle record --engine tensorrt_llm"):
        registry.make("tensorrt_llm", {})


def test_any_engines_responses_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    arguments = ["--model", "random", "--cases", "2", "--seed", "4", "--out", str(out)]
    assert main(["record", "--engine", "numpy", *arguments]) == 0
    assert "what numpy answered to 2 batches" in capsys.readouterr().out
    kept = list(archive.everything(out))
    assert len(kept) == 2
    assert all(exchange.response.logits is not None for _, exchanges in kept for exchange in exchanges)
    about = read(out / "recording.json")
    assert (about["engine"], about["model"], about["seed"]) == ("numpy", "random", 4)
    again = ["--model", "random", "--cases", "2", "--sequences", "0", "--seed", "4", "--no-power", "--jobs", "1"]
    assert main(["check", "--engine", "recorded", "--option", f"file={out}", *again]) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--engine", "numpy", "--cases", "0"], "--cases 0 must be 1 or more"),
        (["--engine", "nobody"], "there is no engine 'nobody'"),
        (["--engine", "numpy", "--dtype", "int8"], "numpy does not compute in int8"),
        (["--engine", "tensorrt_llm", "--cases", "3"], "its recorder asks a fixed set"),
        (["--engine", "tensorrt_llm", "--dtype", "float32"], "TensorRT-LLM's LoRA is float16 or bfloat16"),
        (["--engine", "tensorrt_llm", "--model", "no-such-folder"], "no-such-folder"),
    ],
)
def test_a_wrong_call_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, arguments: list[str], says: str
) -> None:
    assert main(["record", *arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and says in error
    assert not (tmp_path / "out").exists()


def test_a_folder_that_exists_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "mine").write_text("")
    assert main(["record", "--engine", "numpy", "--out", str(tmp_path)]) == 2
    assert "is there already" in capsys.readouterr().err
    with pytest.raises(LoracleError, match="is there already"):
        write_cases(tmp_path)


def test_the_main_part_keeps_the_rule_of_ranks_and_one_part_breaks_it(cases: Path) -> None:
    plan = read(cases / "requests.json")
    for part in plan["parts"]:
        for case in part.get("cases", []):
            adapters = {request["adapter"] for request in case["requests"]}
            wrong = [misaligned({rank(name, module) for name in adapters}, 64) for module in LAYER_MODULES]
            broken = len(adapters) > 1 and any(wrong)
            assert broken == case["may_fail"], case["name"]
            assert not broken or part["name"] == "misaligned"


def rank(adapter: str | None, module: str) -> int:
    """Return the rank that a request with this adapter has in a module; 0 if there is no LoRA."""
    return 0 if adapter is None or module not in ADAPTERS[adapter].target_modules else ADAPTERS[adapter].r


def test_the_same_seed_draws_the_same(cases: Path, tmp_path: Path) -> None:
    write_cases(tmp_path / "cases", "random", "float16", seed=3)
    for file in ("requests.json", "adapters/sixteen/adapter_model.safetensors", "model/model.safetensors"):
        assert (tmp_path / "cases" / file).read_bytes() == (cases / file).read_bytes()
