"""A recording read back and its verdicts: a stand-in's, and what they become when the stand-in has a bug."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from recording import read, record, smaller
from support import replays

from refimpl.engines.tensorrt_llm import response_of
from refimpl.errors import LoracleError
from refimpl.oracle.recordings.tensorrt_llm_kernel import kernel_results
from refimpl.oracle.recordings.tensorrt_llm_recording import RELATIONS, Replay, read_recording


@pytest.fixture(scope="module")
def replay(recording_folder: Path) -> Replay:
    return Replay(read_recording(recording_folder))


def test_every_batch_is_right(replay: Replay) -> None:
    replays.every_batch_is_right(replay)


def test_the_batch_does_not_matter(replay: Replay) -> None:
    replays.the_batch_does_not_matter(replay)


def test_the_kernel_is_right(replay: Replay) -> None:
    replays.the_kernel_is_right(replay.recording)


def test_nothing_is_missing(replay: Replay) -> None:
    assert replays.what_is_missing(replay.recording) == []
    assert all(replay.related(what) for what in RELATIONS)
    assert {batch.name for batch in replay.recording.batches if batch.error} == {
        "misaligned/misaligned-0",
        "misaligned/misaligned-1",
    }


@pytest.fixture(scope="module")
def faulty(cases: Path, tmp_path_factory: pytest.TempPathFactory):
    """Recordings of the stand-in with a bug, of a few batches."""

    def make(bug: str) -> Replay:
        folder = tmp_path_factory.mktemp(bug)
        mine = smaller(cases, folder / "cases", {"eager": 3})
        assert record(mine, folder / "out", bug=bug).returncode == 0
        return Replay(read_recording(folder / "out", mine / "model"))

    return make


def test_a_wrong_scale_fails(faulty) -> None:
    replay = faulty("scale")
    with pytest.raises(AssertionError, match="x noise at place"):
        replays.every_batch_is_right(replay)
    replays.the_batch_does_not_matter(replay)  # it is wrong everywhere in the same way


def test_another_tenants_adapter_fails(faulty) -> None:
    replay = faulty("tenant")
    with pytest.raises(AssertionError, match="x noise at place"):
        replays.every_batch_is_right(replay)


def test_responses_that_depend_on_the_batch_fail(replay: Replay, recording_folder: Path, tmp_path: Path) -> None:
    """One request's rows in one batch, moved by twenty units of its noise."""
    folder = shutil.copytree(recording_folder, tmp_path / "moved")
    plan = read(folder / "requests.json")
    plan["parts"] = [part for part in plan["parts"] if part["name"] == "eager"]
    plan["parts"][0]["cases"] = [
        case for case in plan["parts"][0]["cases"] if case["name"] in ("together-0", "permuted-0")
    ]
    (folder / "requests.json").write_text(json.dumps(plan))
    path = folder / "eager" / "permuted-0.npz"
    batch = next(batch for batch in replay.served if batch.name == "eager/permuted-0")
    unit = float(replay.ratios(batch)[0].unit.mean())
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: x.astype(np.float32) for name, x in file.items()}
    rng = np.random.default_rng(0)
    arrays["context_0"] += (20 * unit * rng.standard_normal(arrays["context_0"].shape)).astype(np.float32)
    np.savez(path, **arrays)
    moved = Replay(read_recording(folder))
    with pytest.raises(AssertionError, match=r"permuted: .*permuted-0"):
        replays.the_batch_does_not_matter(moved)


@pytest.mark.parametrize("change", ["one bit", "nan", "base row"])
def test_a_wrong_product_fails(recording_folder: Path, tmp_path: Path, change: str) -> None:
    folder = shutil.copytree(recording_folder, tmp_path / "recording")
    path = folder / "kernel" / "mixed-float16.npz"
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    row = 3 if change == "base row" else 0  # requests of 3, 1, 2 and 2 tokens; the second is the base
    arrays["out_0"][row, 0] = 0x7E00 if change == "nan" else arrays["out_0"][row, 0] ^ 0x0040
    np.savez(path, **arrays)
    recording = read_recording(folder)
    assert next(r for r in kernel_results(recording) if r.name == "mixed-float16").worst > 1
    with pytest.raises(AssertionError, match="kernel/mixed-float16"):
        replays.the_kernel_is_right(recording)


def rows(n: int, first: int) -> np.ndarray:
    return np.arange(first, first + n, dtype=np.float32)[:, None].repeat(2, axis=1)


def test_the_two_kinds_of_logits_become_one_run_of_rows() -> None:
    answer = {"token_ids": [7, 8, 9]}
    both = response_of(4, answer, rows(4, 0), rows(3, 3))  # the first generated row is the prompt's last
    assert both.first_position == 0 and both.logits is not None and both.logits[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    left_out = response_of(4, answer, rows(4, 0), rows(2, 4))  # a release that leaves it out
    assert left_out.logits is not None and left_out.logits[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    last = response_of(4, answer, rows(1, 3), rows(3, 3))  # the room was used up
    assert last.first_position == 3 and last.logits is not None and last.logits[:, 0].tolist() == [3, 4, 5]
    no_context = response_of(4, answer, None, rows(3, 3))
    assert no_context.first_position == 3 and no_context.logits is not None and len(no_context.logits) == 3
    assert response_of(4, answer, rows(4, 0), None).first_position == 0
    assert response_of(4, {**answer, "top": [{"7": -0.5}]}, None, None).top == [{7: -0.5}]
    assert "1 rows of generation logits for 3 tokens" in response_of(4, answer, rows(4, 0), rows(1, 3)).error


def test_bad_recordings_are_refused(recording_folder: Path, tmp_path: Path) -> None:
    def copy(name: str) -> Path:
        return shutil.copytree(recording_folder, tmp_path / name)

    with pytest.raises(LoracleError, match=r"requests.json: cannot be read"):
        read_recording(tmp_path)
    folder = copy("version")
    (folder / "summary.json").write_text(json.dumps({**read(folder / "summary.json"), "version": 2}))
    with pytest.raises(LoracleError, match="version 2, this is 1"):
        read_recording(folder)
    folder = copy("keys")
    (folder / "summary.json").write_text(json.dumps({"version": 1}))
    with pytest.raises(LoracleError, match="not a recording"):
        read_recording(folder)
    folder = copy("weights")
    file = folder / "adapters" / "eight" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(LoracleError, match=r"was made with other weights than those in .*eight"):
        read_recording(folder)
    folder = copy("npz")
    (folder / "eager" / "together-0.npz").write_bytes(b"no zip")
    with pytest.raises(LoracleError, match=r"together-0.npz: cannot be read"):
        read_recording(folder)
    folder = copy("model")
    (folder / "requests.json").write_text(json.dumps({**read(folder / "requests.json"), "model": "llama"}))
    with pytest.raises(LoracleError, match="made with the model 'llama', which is not there"):
        read_recording(folder)
