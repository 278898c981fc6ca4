"""A class's report, whose folders are a stranger's; the doctor; the notebooks."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from refimpl import __version__, cli, learn
from refimpl.errors import DeviceError, LoracleError
from refimpl.learn import doctor, report
from refimpl.learn.doctor import Finding, parse_cards
from refimpl.learn.grade_file import grade_files
from refimpl.learn.notebooks import chapter_file, notebook, write_notebooks
from refimpl.learn.report_files import SIGNS, as_csv, as_html
from refimpl.learn.units import stub, units

UNIT = learn.load("ch06_prefix_key")
ROOT = Path(__file__).parents[2]
SOLUTION = (ROOT / "teacher" / "solutions" / "ch06_prefix_key.py").read_text()
LEAKY = (
    "def prefix_key(parent, token_ids, base, p, adapters):\n"
    "    return repr((parent, list(token_ids), base, p)).encode()\n"
)
BROKEN = "def prefix_key(:\n"
HOSTILE = "<script>alert(1)<script>"


@pytest.fixture(scope="module")
def school(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("school")
    progress = json.dumps({"units": {"ch06_prefix_key": {"tries": 4, "hints": 3, "outcome": "passed"}}, "copies": {}})
    texts = {
        "ada": LEAKY,
        "grace/loracle-course": LEAKY,
        "=1+1": SOLUTION,
        HOSTILE: BROKEN,
        "stub": stub(UNIT).read_text(),
    }
    for name, text in texts.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "ch06_prefix_key.py").write_text(text)
    (folder / "ada" / "progress.json").write_text(progress)
    (folder / HOSTILE / "progress.json").write_text('{"units": {"ch06_prefix_key": {"tries": "<b>"}}, "copies": {}}')
    for name in ("empty", "link", ".git"):
        (folder / name).mkdir()
    (folder / "link" / "ch06_prefix_key.py").symlink_to("/etc/passwd")
    return folder


@pytest.fixture(scope="module")
def result(school: Path) -> report.Report:
    return report.report([school])


def test_every_learner_is_graded_again(result: report.Report) -> None:
    outcomes = {who: result.row(who, UNIT.name).outcome for who in result.learners}
    assert outcomes == {
        "ada": "wrong",
        "grace": "wrong",
        "=1+1": "passed",
        HOSTILE: "does not run",
        "stub": "not attempted",
        "empty": "no file",
        "link": "no file",  # what it points to is the teacher's
    }
    ada = result.row("ada", UNIT.name)  # whose progress.json says that she passed
    assert (ada.mistake, ada.tries, ada.hints) == ("without_adapter", 4, 3)
    assert (result.row(HOSTILE, UNIT.name).tries, result.row(HOSTILE, UNIT.name).hints) == (0, 0)


def test_what_to_talk_about_next_is_the_commonest_first(result: report.Report) -> None:
    first = result.topics[0]
    assert first.who == ["ada", "grace"] and first.what.startswith("without_adapter: ")
    assert first.line.startswith(f"2 of 7, {UNIT.title} (ch06_prefix_key): without_adapter")
    assert {topic.what for topic in result.topics[1:]} >= {"the file does not run", "took all hints and is not through"}


def test_no_cell_of_the_table_is_a_formula(result: report.Report) -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(result))))
    assert len(rows) == len(result.rows) and rows[0].keys() == {*report_columns()}
    assert {row["who"] for row in rows} == {"'=1+1"} | (set(result.learners) - {"=1+1"})
    assert not any(value.startswith(("=", "+", "-", "@")) for row in rows for value in row.values())


def report_columns() -> tuple[str, ...]:
    return ("who", "unit", "outcome", "mistake", "says", "tries", "hints")


def test_the_page_escapes_what_a_learner_named(result: report.Report) -> None:
    page = as_html(result)
    assert len(set(SIGNS.values())) == len(SIGNS)
    assert "<script" not in page and "&lt;script&gt;" in page and "2 of 7" in page
    assert "http://" not in page.replace('xmlns="http://', "") and "src=" not in page


def test_the_command_writes_both_and_prints_who_what_and_how_often(
    school: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page, table = tmp_path / "class.html", tmp_path / "class.csv"
    code = cli.main(["learn", "report", str(school / "ada"), str(school / "stub"), f"--html={page}", f"--csv={table}"])
    out = " ".join(capsys.readouterr().out.split())
    assert code == 0 and "ada ch06_prefix_key wrong: without_adapter 4 3" in out
    assert "What to talk about next 1 of 2, " in out
    assert page.read_text().startswith("<!doctype html>") and table.read_text().startswith("who,unit,")
    assert {file.name for file in (school / "ada").iterdir()} == {"ch06_prefix_key.py", "progress.json"}  # only read


WRONG = {
    "no folder": (["report"], "report needs FOLDERs"),
    "one that is not there": (["report", "nowhere"], "nowhere: there is no such folder"),
    "no place for the page": (["report", ".", "--html", "nowhere/x.html"], "there is no folder nowhere"),
    "no DIR": (["notebooks"], "notebooks needs a DIR"),
    "a doctor of something": (["doctor", "6"], "doctor takes no NAME (6)"),
    "an exercise that is none": (["report", ".", "--only", "1,lab_z"], "the course has no 'lab_z'"),
    "a folder without a course": (["report", "."], "no exercise is in there"),
    "html of something else": (["list", "--html", "x"], "--html belongs to `loracle learn report`"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_is_one_line_and_2(
    mistake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    argv, words = WRONG[mistake]
    assert cli.main(["learn", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and words in err
    assert list(tmp_path.iterdir()) == []


def test_names_that_come_twice_are_two_learners(tmp_path: Path) -> None:
    for school in ("a", "b"):
        (tmp_path / school / "ada").mkdir(parents=True)
    assert list(report.learners_in([tmp_path / "a" / "ada", tmp_path / "b" / "ada"])) == ["ada", "ada'"]


@pytest.mark.parametrize("inner", ["", "loracle-course", "ada", "ada/loracle-course", "loracle-course/loracle-course"])
def test_a_learner_is_one_however_the_archive_was_unpacked(tmp_path: Path, inner: str) -> None:
    course = tmp_path / "ada" / inner
    course.mkdir(parents=True)
    (course / f"{UNIT.name}.py").write_text(SOLUTION)
    (tmp_path / "__MACOSX").mkdir()
    learners = report.learners_in([tmp_path])
    assert list(learners) == ["ada"] and learners["ada"].samefile(course)


def test_what_the_teachers_machine_lacks_is_no_mistake_of_the_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> tuple[str, ...]:
        raise DeviceError("no GPU, and no C++ compiler")

    monkeypatch.setattr("refimpl.learn.doctor.cpu.compiler", none)
    (tmp_path / "ada" / "labs" / "lab_b_shrink").mkdir(parents=True)
    assert cli.main(["learn", "report", str(tmp_path), "--only", "1,b"]) == 0
    out = capsys.readouterr().out
    assert "does not run:" not in out and "Not graded on this machine" in out and "lab_b_shrink" in out


def test_an_archive_that_nobody_unpacked_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("ada", "empty", "mail"):
        (tmp_path / name).mkdir()
    (tmp_path / "ada" / f"{UNIT.name}.py").write_text(stub(UNIT).read_text())
    for name in ("ada.zip", "eve.zip", "._eve.zip", "empty.tar.gz", "mail/mail.zip", "ada/old.zip"):
        (tmp_path / name).touch()  # of ada.zip there is a course: it was unpacked
    assert cli.main(["learn", "report", str(tmp_path), "--only", "6", "--html", str(tmp_path / "page.html")]) == 0
    line = "Not graded, for they are not unpacked: empty.tar.gz, eve.zip, mail.zip"
    assert line in capsys.readouterr().out and line in (tmp_path / "page.html").read_text()


def test_only_some_units_are_graded(school: Path) -> None:
    result = report.report([school / "ada", school / "stub"], only=[UNIT, learn.load("ch01_linear")])
    assert result.units == ["ch01_linear", UNIT.name] and len(result.rows) == 4
    assert result.row("ada", UNIT.name).mistake == "without_adapter"


def test_names_that_are_no_text_are_printable(tmp_path: Path) -> None:
    folder = tmp_path / "esc\x1b[31m\udcff"
    folder.mkdir()
    assert list(report.learners_in([folder])) == ["esc\\x1b[31m\\udcff"]


def test_a_bug_of_the_grader_costs_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.py").write_text(LEAKY)

    def fails(*_: Any) -> None:
        raise RuntimeError("the grader of x failed: oops")

    monkeypatch.setattr("refimpl.learn.grade_file.grade_file", fails)
    verdicts = grade_files([(UNIT, tmp_path / "x.py")])
    assert verdicts[0].outcome == "does not run" and verdicts[0].lines == [
        "A bug of ours: the grader of x failed: oops"
    ]


def test_the_doctor_says_what_is_missing_and_what_mends_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> tuple[str, ...]:
        raise DeviceError("no GPU, and no C++ compiler")

    monkeypatch.setattr("refimpl.learn.doctor.cpu.compiler", none)
    code = cli.main(["learn", "doctor", "--json"])
    rows = {row["what"]: row for row in json.loads(capsys.readouterr().out)}
    assert not rows["compiler"]["ok"] and "cpu-kernels" in rows["compiler"]["mend"]
    assert rows["Python"]["ok"] and rows["chapters"]["ok"]
    for unit in doctor.labs():
        assert rows[unit.name]["ok"] == (
            "compiler" not in unit.needs and ("gpu" not in unit.needs or rows["GPU"]["ok"])
        )
    assert code == (0 if all(row["ok"] for row in rows.values() if row["need"]) else 1)
    assert cli.main(["learn", "doctor"]) == code
    assert "pip install 'loracle[cpu-kernels]'" in " ".join(capsys.readouterr().out.split())


def test_the_doctor_builds_a_kernel_to_see_if_the_compiler_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\necho 'cannot execute cc1plus' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(doctor.cpu, "compiler", lambda: (str(broken),))
    finding = doctor.compiler()
    assert not finding.ok and "\n" not in finding.detail and finding.mend


def test_the_wheel_of_cupy_is_that_for_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_cards("NVIDIA GeForce RTX 4090, 8.9\nTesla V100-SXM2-16GB, 7.0\n[N/A]\nx, y\n") == [
        ("NVIDIA GeForce RTX 4090", 89),
        ("Tesla V100-SXM2-16GB", 70),
    ]

    def none(_: str) -> None:
        raise DeviceError("device cuda needs CuPy")

    monkeypatch.setattr(doctor, "device_namespace", none)
    for capability, extra in ((89, "cuda13"), (70, "cuda12")):
        monkeypatch.setattr(doctor, "cards_of_nvidia_smi", lambda capability=capability: [("card", capability)])
        finding = doctor.gpu()
        assert finding == Finding("GPU", False, "card: device cuda needs CuPy", f"pip install 'loracle[{extra}]'")


def test_notebooks_without_jupytext_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jupytext", None)
    with pytest.raises(LoracleError, match=r"pip install 'loracle\[learn\]'"):
        write_notebooks(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def has_chapter(exercise: Any) -> bool:  # test_exercises.py says that all have
    return chapter_file(exercise).exists()


@pytest.mark.parametrize("exercise", [*filter(has_chapter, learn.exercises())], ids=lambda exercise: exercise.name)
def test_a_notebook_is_the_chapter_with_a_pin_before_and_the_exercise_after_it(exercise: Any) -> None:
    jupytext = pytest.importorskip("jupytext", reason="pip install -e .[learn] nbclient ipykernel")
    cells = notebook(jupytext, exercise).cells
    assert f"loracle=={__version__}" in cells[0].source and cells[0].cell_type == "code"
    assert cells[-1].source.endswith(f"check({exercise.function})") and "NotImplementedError" in cells[-2].source
    assert sum(cell.cell_type == "code" for cell in cells) >= 6
    assert all("# %%" not in cell.source for cell in cells)


def test_notebooks_are_never_written_over(tmp_path: Path) -> None:
    pytest.importorskip("jupytext", reason="pip install -e .[learn] nbclient ipykernel")
    files = write_notebooks(tmp_path / "new")
    files[0].write_text("worked on")
    with pytest.raises(LoracleError, match="is there already, and may have been worked on"):
        write_notebooks(tmp_path / "new")
    assert files[0].read_text() == "worked on"
    assert all(json.loads(file.read_text())["nbformat"] == 4 for file in files[1:])


def test_a_notebook_executes_and_its_check_says_not_attempted(tmp_path: Path) -> None:
    jupytext = pytest.importorskip("jupytext", reason="pip install -e .[learn] nbclient ipykernel")
    nbclient = pytest.importorskip("nbclient", reason="pip install -e .[learn] nbclient ipykernel")
    pytest.importorskip("ipykernel", reason="pip install -e .[learn] nbclient ipykernel")
    converted = notebook(jupytext, learn.load("ch02_lora_delta"))
    nbclient.NotebookClient(converted, timeout=120, kernel_name="python3").execute(cwd=str(tmp_path))
    assert "not attempted" in converted.cells[-1].outputs[0].text


def test_check_in_a_script_is_the_same_grader() -> None:
    script = f"{LEAKY}\nfrom loracle.learn import check\ncheck(prefix_key)\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert "known mistake, without_adapter" in done.stdout, done.stderr


def test_units_have_a_column_each(result: report.Report) -> None:
    assert result.units == [unit.name for unit in units()]


def test_check_in_a_script_says_what_it_cannot_call(capsys: pytest.CaptureFixture[str]) -> None:
    def linear(x: object) -> object:
        return x

    learn.check(linear)
    expected = "ch01_linear: not yet. linear is called with (x, W, A, B, alpha, use_rslora): yours takes "
    assert capsys.readouterr().out.startswith(expected)
    with pytest.raises(LoracleError, match=r"the function itself: check\(linear\), without quotes"):
        learn.check("linear")  # type: ignore[arg-type]
