"""Every chapter runs to its end, and prints the figures that stand in tests/learn/printed/.

Words are compared exactly, numbers to a millionth; a number below 1e-9 is rounding, and only has to be so again.
After a change that is meant: LORACLE_WRITE_PRINTED=1 pytest tests/learn/test_chapters.py, and read the difference.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from refimpl import learn

FOLDER = Path(learn.__file__).parent / "chapters"
CHAPTERS = [*sorted(FOLDER.glob("ch*.py")), *sorted(FOLDER.glob("appendix_*.py"))]
PRINTED = Path(__file__).parent / "printed"
NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?")
ROUNDING = 1e-9


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_it_runs_and_prints_its_figures(chapter: Path, tmp_path: Path) -> None:
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(Path(learn.__file__).parents[2])}
    done = subprocess.run([sys.executable, str(chapter)], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    if "not measured here: no GPU, and no C++ compiler" in done.stdout:
        pytest.skip("it has run to its end, and what it measures needs a C++ compiler")
    expected = PRINTED / f"{chapter.stem}.txt"
    if os.environ.get("LORACLE_WRITE_PRINTED"):
        expected.write_text(done.stdout, "utf-8")
    assert_same_figures(done.stdout, expected.read_text("utf-8"))


def assert_same_figures(printed: str, expected: str) -> None:
    for line, expected_line in zip(printed.splitlines(), expected.splitlines(), strict=True):
        assert NUMBER.sub("#", line).split() == NUMBER.sub("#", expected_line).split()
        for text, expected_text in zip(NUMBER.findall(line), NUMBER.findall(expected_line), strict=True):
            number, expected_number = (float(value.replace(",", "")) for value in (text, expected_text))
            if 0 < abs(expected_number) < ROUNDING:
                assert abs(number) < ROUNDING, line
            else:
                assert number == pytest.approx(expected_number, rel=1e-6), line


def test_the_comparison_sees_a_wrong_figure() -> None:
    assert_same_figures("off by 3.1e-15 of 22", "off by 8e-16 of 22")
    for wrong in ("off by 3.1e-8 of 22", "off by 8e-16 of 23", "of by 8e-16 of 22"):
        with pytest.raises(AssertionError):
            assert_same_figures(wrong, "off by 8e-16 of 22")


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_it_is_short_and_reaches_into_no_private_name(chapter: Path) -> None:
    text = chapter.read_text("utf-8")
    assert 80 <= text.count("\n") <= 170
    assert re.findall(r"\b\w+\._[a-z]\w*", text) == []
    assert f"`python chapters/{chapter.name}`" in text.partition("\n# %%\n")[0]  # its first page says how to run it
    assert "exercises/" not in text  # a learner's folder has none: its files lie beside chapters/
