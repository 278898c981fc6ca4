"""tests/gpu/run_all.py: whatever becomes of a part, it is said, and the others are kept."""

import importlib.util
import subprocess
import sys
import time
from pathlib import Path

import pytest

FILE = Path(__file__).parents[1] / "gpu" / "run_all.py"
spec = importlib.util.spec_from_file_location("run_all", FILE)
assert spec and spec.loader
run_all = importlib.util.module_from_spec(spec)
sys.modules["run_all"] = run_all  # dataclasses look their module up
spec.loader.exec_module(run_all)
Part = run_all.Part


def python(code: str, clean: str = "") -> object:
    return Part("part", [sys.executable, "-c", code], 60, {"SAID": "this"}, clean)


@pytest.mark.parametrize(
    ("part", "status"),
    [
        (python("import os; print(os.environ['SAID'])"), "passed"),
        (python("raise SystemExit(1)"), "failed"),
        (python("print('ERROR SUMMARY: 0 errors')", "ERROR SUMMARY: 0 errors"), "passed"),
        (python("print('ERROR SUMMARY: 3 errors'); raise SystemExit(9)", "ERROR SUMMARY: 0 errors"), "failed"),
        (python("print('nothing')", "ERROR SUMMARY: 0 errors"), "failed"),
        (python("print('Device not supported'); raise SystemExit(1)", "ERROR SUMMARY: 0 errors"), "skipped"),
        (Part("part", ["no-such-tool"], 60, {}), "skipped"),
    ],
)
def test_how_a_part_ends(part: object, status: str, tmp_path: Path) -> None:
    outcome = run_all.run(part, {}, 60, tmp_path / "log.txt")
    assert outcome["status"] == status
    assert (status == "skipped") <= ("why" in outcome)


def test_a_part_that_hangs_is_stopped_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    assert run_all.run(python("pass"), {}, 2, tmp_path / "log.txt")["why"] == "the parts before it took too long"
    monkeypatch.setattr(run_all, "LEAST", 0)
    begun = time.monotonic()
    outcome = run_all.run(python(code), {}, 2, tmp_path / "log.txt")
    assert outcome["status"] == "out of time" and time.monotonic() - begun < 30


def test_the_names_of_what_failed(tmp_path: Path) -> None:
    cases = '<testcase classname="a" name="right"/><testcase classname="a" name="wrong"><failure/></testcase>'
    (tmp_path / "tests.xml").write_text(
        f'<testsuites><testsuite tests="2" failures="1" errors="0" skipped="0">{cases}</testsuite></testsuites>'
    )
    found = run_all.tests_of(tmp_path / "tests.xml")
    assert found == {"tests": 2, "failures": 1, "errors": 0, "skipped": 0, "failed": ["a.wrong"]}
    assert run_all.tests_of(tmp_path / "none.xml") == {}


def test_what_is_missing_is_one_line(tmp_path: Path) -> None:
    """Without site-packages there is nothing."""
    done = subprocess.run([sys.executable, "-S", str(FILE), str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("run_all.py: missing: pip install numpy ml_dtypes")
    assert "cupy-cuda13x" in done.stderr and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_all_parts_fit_into_nine_minutes() -> None:
    parts = run_all.parts(Path("x"), rehearse=False)
    assert [part.name for part in parts] == ["tests", "kernels", "serving", "memcheck", "racecheck"]
    assert run_all.SECONDS < 9 * 60
