"""loracle vectors: make, verify, the user's own function, and every way to ask for it wrongly."""

import json
import sys
from pathlib import Path

import pytest

from refimpl import cli

SET = Path(__file__).parents[1] / "vectors" / "v1"


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)."""
    try:
        code = cli.main(["vectors", *map(str, argv)])
    except SystemExit as error:
        code = int(error.code or 0)
    said = capsys.readouterr()
    return code, said.out, said.err


def test_make_then_verify(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = run(capsys, "make", "--out", tmp_path / "set", "--seed", 7, "--kind", "kv_write", "--json")
    made = json.loads(out)
    assert (code, err, made["seed"]) == (0, "", 7)
    assert made["vectors"] == {"lora": 0, "kv_write": 10, "attention": 0, "logits": 0, "sequence": 0}
    assert made["bytes"] == sum(f.stat().st_size for f in (tmp_path / "set").rglob("*") if f.is_file())
    code, out, err = run(capsys, "verify", tmp_path / "set", "--ops", "reference", "--dtype", "float16", "--json")
    found = json.loads(out)
    assert (code, err, found["tested"], found["dtype"]) == (0, "", "reference", "float16")
    assert (found["pass"], found["fail"], found["skipped"]) == (10, 0, 0)
    assert [v["vector"] for v in found["vectors"]][:2] == ["kv_write/prefill", "kv_write/decode"]
    code, out, err = run(capsys, "make", "--out", tmp_path / "set", "--kind", "kv_write")
    assert code == 2 and "is there already" in err


def test_verify_draws_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "verify", SET, "--kind", "lora", "--kind", "sequence")
    assert (code, err) == (0, "")
    assert "lora/mixed_ranks" in out and "sequence/evict" in out and "kv_write/" not in out
    assert "refused" in out and "numpy in float32: 39 pass" in out


MINE = """
import numpy as np

def vector(kind, inputs, about):
    if kind == "logits" and about["name"] == "wrong_base":
        raise ValueError("not for this model: " + about["adapters"]["wrong_base"])
    if kind != "lora":
        return None
    y = inputs["y"].astype(np.float32)
    x, ids = inputs["x"].astype(np.float32), inputs["adapter_ids"]
    if ids.min() < -1:
        raise ValueError("an id below -1")
    for t, j in np.argwhere(ids >= 0):
        s = ids[t, j]
        if f"A.{s}" not in inputs:
            raise ValueError(f"no adapter in slot {s}")
        A, B = inputs[f"A.{s}"].astype(np.float32), inputs[f"B.{s}"].astype(np.float32)
        bias = inputs.get(f"bias.{s}", np.zeros(len(B))).astype(np.float32)
        y[t] += np.float32(inputs["scales"][s] SCALE * inputs["adapter_weights"][t, j]) * (B @ (A @ x[t]) + bias)
    return {"y": y}

def nan(kind, inputs, about):
    return {"y": np.full_like(inputs["y"], np.nan)} if kind == "lora" else None

def nothing(kind, inputs, about):
    return None

def rows(kind, inputs, about):
    return [1, 2]

number = 3
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of the user's, in the folder that the command is started from."""
    (tmp_path / "my_kernels.py").write_text(MINE.replace("SCALE", ""))
    (tmp_path / "my_broken_kernels.py").write_text(MINE.replace("SCALE", "** 2"))
    (tmp_path / "my_typo.py").write_text("import nonsense_that_is_not_there")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("my_kernels", "my_broken_kernels", "my_typo"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def test_the_users_function(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "verify", SET, "--function", "my_kernels:vector", "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert (found["pass"], found["fail"], found["skipped"]) == (24, 0, 64)
    code, out, err = run(capsys, "verify", SET, "--function", "my_broken_kernels:vector", "--json")
    found = json.loads(out)
    assert (code, err) == (1, "")
    failed = {v["vector"]: v for v in found["vectors"] if v["verdict"] == "fail"}
    assert found["fail"] == len(failed) > 10 and "lora/all_base" not in failed and "lora/folded" not in failed
    assert "off by" in failed["lora/rslora"]["why"] and failed["lora/rslora"]["share"] > 100
    code, out, err = run(capsys, "verify", SET / "lora" / "rslora", "--function", "my_broken_kernels:vector")
    assert code == 1 and "lora/rslora: y at" in out and "1 fail" in out


def test_an_engine(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "verify", SET, "--engine", "mutant:key_without_adapter", "--kind", "sequence", "--json")
    found = json.loads(out)
    assert (code, found["skipped"]) == (1, 0)
    assert "sequence/prefix_across_adapters" in {v["vector"] for v in found["vectors"] if v["verdict"] == "fail"}
    code, out, _ = run(capsys, "verify", SET / "lora" / "rslora", SET / "logits", "--engine", "numpy")
    assert code == 2  # one folder
    code, _, err = run(capsys, "verify", SET / "lora" / "rslora", "--engine", "numpy")
    assert code == 2 and "numpy computed none of the 1 vectors" in err
    code, _, err = run(capsys, "verify", SET, "--engine", "nonsense")
    assert code == 2 and "nonsense" in err and err.count("\n") == 1


def test_nan_never_passes(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "verify", SET, "--function", "my_kernels:nan", "--kind", "lora", "--json")
    found = json.loads(out)
    assert (code, found["pass"]) == (1, 0)
    assert all(v["share"] is None for v in found["vectors"])  # infinitely far off, which JSON cannot say


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["verify", SET, "--function", "my_kernels:nothing"], "computed none of the 88 vectors"),
        (["verify", SET, "--function", "my_kernels:rows"], "gave list for lora/mixed_ranks"),
        (["verify", SET, "--function", "my_kernels:number"], "number is int, not a function"),
        (["verify", SET, "--function", "my_kernels:other"], "AttributeError"),
        (["verify", SET, "--function", "my_typo:vector"], "No module named 'nonsense_that_is_not_there'"),
        (["verify", SET, "--function", "my_kernels"], "expected module:function"),
        (["verify", SET, "--ops", "numpy", "--function", "a:b"], "not allowed with"),
        (["verify", SET, "--dtype", "float64"], "invalid choice: 'float64'"),
        (["verify", SET, "--seed", "1"], "verify takes no --seed"),
        (["verify", SET / "lora" / "rslora", "--kind", "kv_write"], "no vector of kind kv_write"),
        (["verify"], "verify needs DIR"),
        (["verify", "nowhere"], "nowhere: is not a folder"),
        (["verify", "."], "set.json: cannot be read"),
        (["make"], "make needs --out DIR"),
        (["make", "somewhere", "--out", "x"], "make takes no DIR"),
        (["make", "--out", "x", "--ops", "numpy"], "make takes no --ops"),
        (["make", "--out", "x", "--seed", "-1"], "--seed -1 must be 0 or more"),
        (["make", "--out", "my_typo.py/x"], "cannot be made"),
    ],
)
def test_mistakes_are_one_line(argv: list[object], word: str, mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, *argv)
    assert code == 2 and err.count("\n") == 1 and word in err
    assert not (mine / "x").exists()
