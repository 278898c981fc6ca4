"""Labs B, C and D: what is given is not attempted, what is solved passes, and each known mistake has its name."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from refimpl import learn
from refimpl.cuda import runner
from refimpl.learn.exercise import Lab
from refimpl.learn.grade import grade
from refimpl.learn.grade_file import grade_file
from refimpl.learn.graders import lab_b_shrink, lab_c_race, lab_d_versions
from refimpl.learn.kernel_attempts import body_of
from refimpl.learn.mistakes.lab_b_shrink import wrong_kernels
from refimpl.learn.verdict import DOES_NOT_RUN, NOT_ATTEMPTED, PASSED, TOO_SLOW, WRONG, Verdict

ROOT = Path(__file__).parents[2]
LABS, TEACHER = Path(learn.__file__).parent / "labs", ROOT / "teacher" / "labs"
BROKEN = ROOT / "tests" / "kernels" / "broken"

pytestmark = pytest.mark.skipif(runner.device() != "cpu", reason="the CPU runner's checker grades")

every_lab = pytest.mark.parametrize(
    "lab", [lab_b_shrink.LAB, lab_c_race.LAB, lab_d_versions.LAB], ids=lambda lab: lab.name
)


def given(lab: Lab, folder: Path) -> Path:
    """A learner's folder of this lab, as it is given out."""
    for name in lab.files:
        shutil.copy(LABS / name, folder / Path(name).name)
    return folder


def solved(lab: Lab, folder: Path) -> Path:
    """The same with the teacher's files."""
    given(lab, folder)
    for file in (TEACHER / Path(lab.files[0]).parent).glob("[!_]*.*"):
        shutil.copy(file, folder / file.name)
    return folder


@every_lab
def test_what_is_given_is_not_attempted(lab: Lab, tmp_path: Path) -> None:
    assert lab.grade(given(lab, tmp_path)).outcome == NOT_ATTEMPTED


@every_lab
def test_what_is_solved_passes(lab: Lab, tmp_path: Path, repairs: Path) -> None:
    verdict = lab.grade(repairs if lab is lab_c_race.LAB else solved(lab, tmp_path))
    assert verdict.outcome == PASSED, verdict.text()


@every_lab
def test_it_has_a_page_hints_minutes_and_a_page_for_the_teacher(lab: Lab) -> None:
    assert len(lab.hints) == 3 and 45 <= lab.minutes <= 90 and learn.load(lab.name) == lab
    page = (LABS.parent / lab.page).read_text("utf-8")
    for heading in ("Goal", "Steps", "To hand in"):
        assert f"\n## {heading}\n" in page
    assert f"{lab.minutes} minutes" in page
    teacher = (TEACHER / Path(lab.page).name).read_text("utf-8")
    for heading in ("Goal", "Out of scope", "On the board", "Questions that come"):
        assert f"\n## {heading}\n" in teacher


# ---- B --------------------------------------------------------------------------------------------------------------

BY_NUMBERS_OR_CHECKER = [
    (step, mistake)
    for step in lab_b_shrink.STEPS
    for mistake in step.exercise.mistakes
    if mistake.name != "one_lane_does_it_all"
]


@pytest.mark.parametrize(
    ("step", "mistake"), BY_NUMBERS_OR_CHECKER, ids=[f"{s.kernel}-{m.name}" for s, m in BY_NUMBERS_OR_CHECKER]
)
def test_a_wrong_shrink_fails_small_and_under_its_own_name(
    step: lab_b_shrink.Step, mistake: learn.exercise.Mistake
) -> None:
    quick = replace(step.exercise, consequence=None)
    verdict = grade(quick, mistake.function)
    assert (verdict.outcome, verdict.mistake) == (WRONG, mistake.name), verdict.text()
    assert len(re.findall(r"\b\d+\b", " ".join(verdict.lines[:-1]))) <= 16, verdict.text()


def wrong_file(step: str, mistake: str, folder: Path) -> Verdict:
    """The verdict on the solution with one kernel exchanged for a wrong one."""
    solved(lab_b_shrink.LAB, folder)
    file, wrong = folder / "shrink.cu", wrong_kernels().path.read_text("utf-8")
    source = file.read_text("utf-8")
    right = re.sub(r"//[^\n]*", "", source)
    changed = right.replace(body_of(right, f"shrink_{step}"), body_of(wrong, f"{step}_{mistake}"))
    assert changed != right
    file.write_text(changed)
    return lab_b_shrink.LAB.grade(folder)


def test_one_lane_that_does_it_all_shares_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab_b_shrink, "STEPS", lab_b_shrink.STEPS[-1:])
    verdict = wrong_file("warp", "one_lane_does_it_all", tmp_path)
    assert (verdict.outcome, verdict.mistake) == (WRONG, "one_lane_does_it_all")


def test_a_wrong_step_says_which_and_what_a_tenant_would_see(tmp_path: Path) -> None:
    verdict = wrong_file("block", "first_64_only", tmp_path)
    assert (verdict.outcome, verdict.mistake) == (WRONG, "first_64_only")
    text = verdict.text()
    assert "step 1 of 3, shrink_map, a thread for each number: passed" in text
    assert "step 2 of 3, shrink_block, a block shares a row:" in text and "robot's logits are off by" in text
    assert "https://github.com/punica-ai/punica/issues/57" in text


def test_right_in_another_way_passes(tmp_path: Path) -> None:
    solved(lab_b_shrink.LAB, tmp_path)
    shutil.copy(TEACHER / "b_shrink" / "shrink_other_right.cu", tmp_path / "shrink.cu")
    assert lab_b_shrink.LAB.grade(tmp_path).outcome == PASSED


def test_what_does_not_compile_has_the_compilers_lines_and_no_traceback(tmp_path: Path) -> None:
    file = given(lab_b_shrink.LAB, tmp_path) / "shrink.cu"
    file.write_text(file.read_text("utf-8").replace("// your turn", "flaot sum = 0;", 1))
    verdict = lab_b_shrink.LAB.grade(tmp_path)
    assert verdict.outcome == DOES_NOT_RUN and verdict.lines[0] == "shrink.cu does not compile:"
    assert re.match(r"shrink.cu:\d+:\d+: error: .*flaot", next(line for line in verdict.lines if "error" in line))
    assert "/" not in verdict.lines[1].partition("error")[0]
    file.write_text(file.read_text("utf-8").replace("shrink_block", "shrink_blocks").replace("flaot sum = 0;", ""))
    assert lab_b_shrink.LAB.grade(tmp_path).lines == [
        "shrink.cu has no kernel shrink_block: the grader launches it by that name."
    ]
    file.unlink()
    assert "is not there" in lab_b_shrink.LAB.grade(tmp_path).lines[0]


def test_a_loop_without_an_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refimpl.learn.grade_file.START", 2.0)
    file = given(lab_b_shrink.LAB, tmp_path) / "shrink.cu"
    loop = "for (int half = 16; half >= 0; half /= 2) Ax[0] = half;"
    file.write_text(file.read_text("utf-8").replace("// your turn", loop, 1))
    assert grade_file(lab_b_shrink.LAB, tmp_path, limit=3).outcome == TOO_SLOW


# ---- C --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def repairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lab C solved, always in one place, so that each kernel is compiled once."""
    return solved(lab_c_race.LAB, tmp_path_factory.mktemp("repairs"))


ORIGINALS = {
    "k1": "missing_syncthreads_in_loop",
    "k2": "early_return",
    "k3": "shuffle_is_no_barrier",
    "k4": "missing_atomic",
    "k5": "deadlock",
    "k6": "reads_another_block",
}


@pytest.mark.parametrize("name", ORIGINALS)
def test_a_kernel_of_the_lab_is_one_of_the_checkers_without_its_marks(name: str) -> None:
    original = (BROKEN / f"{ORIGINALS[name]}.cu").read_text("utf-8")
    plain = original.replace("DTYPE *", "float *").replace("(DTYPE)", "").replace("DTYPE ", "float ")
    expected = body_of(plain.replace("(float)", ""), "broken")
    lab = (LABS / "c_race" / f"{name}.cu").read_text("utf-8")
    assert squeezed(body_of(lab, "kernel")) == squeezed(expected)
    assert "<--" not in lab and "Wrong" not in lab and "//" not in lab[lab.index("kernel(") :]


def squeezed(body: str) -> str:
    return re.sub(r"= \((.*)\);", r"= \1;", re.sub(r"[ \n]+", " ", body).replace("; ", ";\n"))


@pytest.mark.parametrize("name", ORIGINALS)
def test_the_checker_says_of_a_given_kernel_what_the_lab_expects(name: str) -> None:
    said = lab_c_race.said_of(LABS / "c_race" / f"{name}.cu")
    assert f": {lab_c_race.KERNELS[name].says}: " in said


@pytest.mark.parametrize("file", sorted((TEACHER / "c_race" / "wrong").glob("*.cu")), ids=lambda file: file.stem)
def test_a_wrong_repair_fails_under_its_own_name(file: Path, repairs: Path) -> None:
    name, mistake = file.stem.split(".")
    shutil.copy(file, repairs / f"{name}.cu")
    verdict = lab_c_race.LAB.grade(repairs)
    shutil.copy(TEACHER / "c_race" / f"{name}.cu", repairs)
    assert (verdict.outcome, verdict.mistake) == (WRONG, mistake), verdict.text()


def test_where_the_checker_is_silent_the_numbers_speak(tmp_path: Path) -> None:
    """An atomic, but of the first warp alone."""
    source = (LABS / "c_race" / "k4.cu").read_text("utf-8")
    (tmp_path / "k4.cu").write_text(source.replace("*total += sum;", "atomicAdd(total, sum);"))
    assert lab_c_race.said_of(tmp_path / "k4.cu") == "total is 337, expected 655"


def test_every_known_mistake_of_lab_c_has_a_wrong_answer() -> None:
    names = {file.stem.split(".")[1] for file in (TEACHER / "c_race" / "wrong").glob("*.cu")}
    assert names == set(lab_c_race.SAYS)


def test_without_predictions_nothing_is_graded(tmp_path: Path) -> None:
    solved(lab_c_race.LAB, tmp_path)
    (tmp_path / "predictions.txt").write_text("k1 = race\nk2 =  # later\n")
    verdict = lab_c_race.LAB.grade(tmp_path)
    assert verdict.outcome == NOT_ATTEMPTED and "nothing of k2, k3, k4, k5, k6" in verdict.lines[0]


def test_run_py_says_what_the_checker_says(tmp_path: Path) -> None:
    solved(lab_c_race.LAB, tmp_path)
    shutil.copy(LABS / "c_race" / "k5.cu", tmp_path)
    said = run(tmp_path, "run.py", "k5", "k1", "k7").splitlines()
    assert said[0].startswith("k5: k5.cu:8: kernel, ") and "deadlock" in said[0]
    assert said[1:] == ["k1: right, in 4 orders", "k7: the lab has k1, k2, k3, k4, k5, k6"]


def run(folder: Path, *words: str) -> str:
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(Path.home())}
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout


# ---- D --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "measured", "mistake"),
    [
        ("v1_one_adapter", "65,536", "numbers_not_bytes"),
        ("v1_one_adapter", "16384", "different_bytes_not_all"),
        ("sgmv_one_adapter", "32768", "x_as_well"),
        ("warps_of_sgmv_expand_v2", "682", "all_registers_for_one_block"),
        ("most_registers", "lora_shrink_v1", "not_what_the_machine_says"),
    ],
)
def test_a_wrong_measurement_has_the_name_of_its_mistake(
    question: str, measured: str, mistake: str, tmp_path: Path
) -> None:
    file = solved(lab_d_versions.LAB, tmp_path) / "answers.txt"
    file.write_text(re.sub(rf"^({question} = .*->).*", rf"\1 {measured}", file.read_text("utf-8"), flags=re.M))
    verdict = lab_d_versions.LAB.grade(tmp_path)
    assert (verdict.outcome, verdict.mistake) == (WRONG, mistake), verdict.text()


def test_a_wrong_prediction_passes_and_is_compared(tmp_path: Path) -> None:
    file = solved(lab_d_versions.LAB, tmp_path) / "answers.txt"
    file.write_text(re.sub(r"^(v1_one_adapter =) \S+", r"\1 16,384", file.read_text("utf-8"), flags=re.M))
    verdict = lab_d_versions.LAB.grade(tmp_path)
    assert verdict.passed and any("off by a factor of 16" in line for line in verdict.lines)


def test_predictions_come_first_and_are_not_enough(tmp_path: Path) -> None:
    file = given(lab_d_versions.LAB, tmp_path) / "answers.txt"
    file.write_text("".join(f"{name} = 1\n" for name in lab_d_versions.QUESTIONS))
    assert lab_d_versions.LAB.grade(tmp_path).lines[0].startswith("no measured yet: v1_one_adapter, ")


def test_the_registers_are_those_that_were_compiled() -> None:
    table = json.loads((ROOT / "benchmarks" / "results" / "resources.json").read_text())["kernels"]
    counted = {row["kernel"]: row["on"]["sm_89"][0] for row in table if row["dtype"] == "float16"}
    assert {name: counted[name] for name in lab_d_versions.REGISTERS} == lab_d_versions.REGISTERS
    page = (LABS.parent / lab_d_versions.LAB.page).read_text("utf-8")
    assert all(f"| {name} | {count} |" in page for name, count in lab_d_versions.REGISTERS.items())


def test_measure_py_prints_the_bytes(tmp_path: Path) -> None:
    given(lab_d_versions.LAB, tmp_path)
    assert "weights    262,144 bytes asked for,   16,384 different ones" in run(
        tmp_path, "measure.py", "lora_shrink_v1", "1"
    )
    for words in ((), ("lora_shrink_v1",), ("lora_shrink_v1", "0"), ("foo", "1")):
        command = [sys.executable, "measure.py", *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
