"""The recorder against a stand-in for TensorRT-LLM: every release, all that can be missing, and what survives."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from recording import RECORDER, read, record, smaller

from refimpl.engines.record_tensorrt_llm import FACTS, LAST_LINES, call

BATCHES = {"kernel": 0, "eager": 2, "graphs": 1}


def test_a_whole_recording(recording_folder: Path) -> None:
    plan, summary = read(recording_folder / "requests.json"), read(recording_folder / "summary.json")
    assert {name: part["status"] for name, part in summary["parts"].items()} == {
        part["name"]: "done" for part in plan["parts"]
    }
    assert summary["machine"]["tensorrt_llm"] == "1.2.0+stand.in"
    assert set(summary["weights"]) == {"model", *plan["adapters"]}
    for part in plan["parts"]:
        if part["kind"] != "model":
            continue
        for case in part["cases"]:
            recorded = read(recording_folder / part["name"] / f"{case['name']}.json")
            with np.load(recording_folder / part["name"] / f"{case['name']}.npz", allow_pickle=False) as arrays:
                for i, answer in enumerate(recorded["answers"]):
                    prompt = case["requests"][i]["prompt_ids"]
                    assert arrays[f"context_{i}"].shape[0] == len(prompt)
                    assert arrays[f"generation_{i}"].argmax(axis=1).tolist() == answer["token_ids"]
            assert bool(recorded["error"]) == case["name"].startswith("misaligned")


def test_the_stand_in_tells_of_what_is_not_documented(tmp_path: Path, cases: Path) -> None:
    mine = smaller(cases, tmp_path / "cases", {"eager": 1})
    script = mine / "record_tensorrt_llm.py"
    script.write_text(script.read_text().replace("output.outputs[0]", "output.secret"))
    done = record(mine, tmp_path / "out", log=str(tmp_path / "log"))
    assert done.returncode == 1
    assert "RequestOutput.secret" in (tmp_path / "log").read_text()


def test_every_fact_from_memory_is_settled(recording_folder: Path) -> None:
    facts = read(recording_folder / "summary.json")["facts"]
    assert set(facts) == {fact.__name__.removeprefix("fact_") for fact in FACTS}
    observations = {name: {v["is"] for v in fact["seen"].values()} for name, fact in facts.items()}
    unseen = {name for name, verdicts in observations.items() if verdicts == {"not observable"}}
    assert unseen == {"k_after_rope", "similar_threshold", "six_times", "japanese_alpha"}
    assert all(verdicts == {"observed"} for name, verdicts in observations.items() if name not in unseen)
    assert all(fact["claim"] and all("raw" in v for v in fact["seen"].values()) for fact in facts.values())


@pytest.mark.parametrize(
    ("release", "home", "llm", "rejected"),
    [
        ("0.20", "tensorrt_llm.lora_manager", "tensorrt_llm._torch", {"max_loras", "max_cpu_loras"}),
        ("0.21", "tensorrt_llm.lora_manager", "tensorrt_llm._torch", set()),
        ("1.0", "tensorrt_llm.lora_manager", "tensorrt_llm", set()),
        ("1.1", "tensorrt_llm.lora_helper", "tensorrt_llm", set()),
        ("1.3", "tensorrt_llm._torch.peft.lora.config", "tensorrt_llm", set()),
    ],
)
def test_every_release(tmp_path: Path, cases: Path, release: str, home: str, llm: str, rejected: set[str]) -> None:
    mine = smaller(cases, tmp_path / "cases", {"graphs": 1})
    done = record(mine, tmp_path / "out", release=release, log=str(tmp_path / "log"))
    assert done.returncode == 0, done.stdout + done.stderr
    notes = read(tmp_path / "out" / "graphs" / "part.json")
    assert notes["found"]["LoraConfig"] == f"{home}:LoraConfig"
    assert notes["found"].get("LLM", notes["found"].get("LLM before 1.0")) == f"{llm}:LLM"
    assert {item["argument"] for item in notes["left_out"]} == rejected
    with np.load(tmp_path / "out" / "graphs" / "together-0.npz", allow_pickle=False) as arrays:
        assert "context_0" in arrays and "generation_0" in arrays
    assert not (tmp_path / "log").exists()


def test_it_runs_from_where_it_is_kept(tmp_path: Path, cases: Path) -> None:
    """Beside it is refimpl/engines/tensorrt_llm.py, which must not be imported as the package."""
    done = record(smaller(cases, tmp_path / "cases", {"versions": 0}), tmp_path / "out", script=RECORDER)
    assert done.returncode == 0, done.stdout + done.stderr
    assert read(tmp_path / "out" / "summary.json")["machine"]["tensorrt_llm"].endswith("stand.in")


@pytest.mark.parametrize(
    ("fault", "part", "says"),
    [
        ("no operator", "kernel", "has no attribute 'lora_grouped_gemm'"),
        ("no LoRARequest", "eager", "LoRARequest is nowhere: tensorrt_llm.executor:LoRARequest: "),
    ],
)
def test_what_is_missing_is_said_and_the_rest_is_there(
    tmp_path: Path, cases: Path, fault: str, part: str, says: str
) -> None:
    out = tmp_path / "out"
    done = record(smaller(cases, tmp_path / "cases", {"kernel": 0, "eager": 1}), out, fault=fault)
    assert done.returncode == 1 and part in done.stdout.splitlines()[-1]
    parts = read(out / "summary.json")["parts"]
    other = next(name for name in parts if name != part)
    assert parts[part]["status"] == "failed" and says in parts[part]["errors"][0]["error"]
    assert parts[other]["status"] == "done" and parts[other]["cases"] > 0


def test_without_logits_the_best_tokens_are_kept(tmp_path: Path, cases: Path) -> None:
    done = record(smaller(cases, tmp_path / "cases", {"eager": 1}), tmp_path / "out", fault="no logits")
    assert done.returncode == 0, done.stdout + done.stderr
    recorded = read(tmp_path / "out" / "eager" / "together-0.json")
    assert [len(row) for row in recorded["answers"][0]["top"]] == [20, 20, 20]
    rejected = [item["argument"] for item in read(tmp_path / "out" / "eager" / "part.json")["left_out"]]
    assert rejected == ["return_context_logits, return_generation_logits", "return_generation_logits"]


@pytest.mark.parametrize(
    ("fault", "status", "error"), [("crash", "failed", "exit code 139"), ("hang", "timeout", "2 s")]
)
def test_a_part_that_crashes_or_hangs_takes_nothing_along(
    tmp_path: Path, cases: Path, fault: str, status: str, error: str
) -> None:
    def hurry(plan: dict) -> None:
        plan["parts"][1]["seconds"] = 2.0 if fault == "hang" else plan["parts"][1]["seconds"]

    mine = smaller(cases, tmp_path / "cases", {"kernel": 0, "eager": 1}, hurry)
    assert record(mine, tmp_path / "out", fault=fault).returncode == 1
    parts = read(tmp_path / "out" / "summary.json")["parts"]
    assert parts["eager"]["status"] == status and error in parts["eager"]["error"]
    assert parts["kernel"]["status"] == "done" and parts["kernel"]["cases"] == 9
    assert len(parts["eager"]["printed"]) <= LAST_LINES


def test_what_was_recorded_before_a_crash_stays(tmp_path: Path, cases: Path) -> None:
    mine = smaller(cases, tmp_path / "cases", {"eager": 3})
    script = mine / "record_tensorrt_llm.py"
    die = 'if case["name"] == "alone-0-0":\n        os._exit(7)\n    began'
    script.write_text(script.read_text().replace("began, error =", f"{die}, error ="))
    assert record(mine, tmp_path / "out").returncode == 1
    part = read(tmp_path / "out" / "summary.json")["parts"]["eager"]
    assert (part["status"], part["error"], part["cases"]) == ("failed", "exit code 7", 2)


def test_when_the_time_is_used_up(tmp_path: Path, cases: Path) -> None:
    assert record(cases, tmp_path / "out", "--seconds", "1").returncode == 1
    parts = read(tmp_path / "out" / "summary.json")["parts"].values()
    assert {(part["status"], part["error"]) for part in parts} == {("not run", "the 1 s were used up")}


def test_when_the_room_is_used_up(tmp_path: Path, cases: Path) -> None:
    """First the rows of the prompt go, then all rows; ids are always kept."""
    fixed = [*(cases / "adapters").rglob("*.*"), cases / "kernel.npz", cases / "requests.json"]
    room = sum(file.stat().st_size for file in fixed) + 50_000

    def less_room(plan: dict) -> None:
        plan["limit_bytes"] = room

    mine, out = smaller(cases, tmp_path / "cases", {"eager": 12}, less_room), tmp_path / "out"
    assert record(mine, out).returncode == 0
    batches = read(out / "requests.json")["parts"][0]["cases"]
    recorded = [read(out / "eager" / f"{case['name']}.json") for case in batches]
    cuts = [batch["cut"] for batch in recorded]
    assert "" in cuts and cuts[-1] == "no rows"
    assert all(answer["token_ids"] for batch in recorded for answer in batch["answers"])
    assert read(out / "summary.json")["bytes"] < room + 20_000


def test_a_wrong_call_is_one_line(tmp_path: Path, cases: Path) -> None:
    nothing = record(tmp_path, tmp_path / "out", script=RECORDER)
    assert nothing.returncode == 2 and len(nothing.stderr.splitlines()) == 1 and "requests.json" in nothing.stderr
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").write_text("")
    occupied = record(cases, full)
    assert occupied.returncode == 2 and "is not empty" in occupied.stderr
    other = shutil.copytree(cases, tmp_path / "cases")
    (other / "requests.json").write_text(json.dumps({"version": 99}))
    assert "version 99, this file reads 1" in record(other, tmp_path / "out").stderr


def test_an_option_makes_way_for_its_next_spelling() -> None:
    def function(fixed: int, old_name: int = 0, *, other: int = 0) -> tuple[int, int, int]:
        return fixed, old_name, other

    left_out: list[dict[str, str]] = []
    options = [[("new_name", 2), ("old_name", 3)], [("gone", 1)], [("other", 4)]]
    assert call(function, {"fixed": 1}, options, left_out) == (1, 3, 4)
    assert [item["argument"] for item in left_out] == ["new_name", "gone"]
    with pytest.raises(TypeError, match="gone"):
        call(function, {"fixed": 1}, [[("gone", 1)]], [], must=1)
    with pytest.raises(TypeError, match="unknown"):  # not an option: nothing is left out for it
        call(function, {"fixed": 1, "unknown": 2}, [[("other", 4)]], [])
