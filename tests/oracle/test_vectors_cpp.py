"""The C++ program that reads the vectors of the LoRA product: it compiles, passes them, and fails when it is broken."""

import shutil
import subprocess
from pathlib import Path

import pytest

VECTORS = Path(__file__).parents[1] / "vectors"
SOURCE = VECTORS / "cpp" / "verify_lora.cpp"
FOLDERS = sorted((VECTORS / "v1" / "lora").iterdir())

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="no g++")


def built(source: str, tmp_path: Path) -> Path:
    file = tmp_path / "verify_lora.cpp"
    file.write_text(source)
    command = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", file, "-o", tmp_path / "verify_lora"]
    subprocess.run(command, check=True, timeout=300)
    return tmp_path / "verify_lora"


def verdicts(program: Path, folders: list[Path]) -> tuple[int, dict[str, str]]:
    done = subprocess.run([program, *folders], capture_output=True, text=True, timeout=60)
    lines = [line.split(" ", 1) for line in done.stdout.splitlines()]
    return done.returncode, {Path(folder).name: word for word, folder in lines}


def test_it_is_short_enough_to_be_read() -> None:
    lines = SOURCE.read_text().splitlines()
    assert len(lines) < 80 and max(map(len, lines)) <= 120


def test_it_passes_every_vector_of_the_lora_product_and_no_folder_without_one(tmp_path: Path) -> None:
    program = built(SOURCE.read_text(), tmp_path)
    assert verdicts(program, FOLDERS) == (0, dict.fromkeys((folder.name for folder in FOLDERS), "pass"))
    assert verdicts(program, [tmp_path / "nowhere"]) == (1, {"nowhere": "FAIL"})


BUGS = {
    "one scale for all": ("scales.at[size_t(ids.at[j])]", "scales.at[0]"),
    "the last input lost": ("i < A.at.size(); ++i", "i < A.at.size() - 1; ++i"),
    "nothing is refused": ("|| B.columns != A.rows) return false;", ") continue;"),
    "NaN": ("+= float(weights", "+= 0.0f / 0.0f * float(weights"),
}


@pytest.mark.parametrize("bug", BUGS)
def test_it_fails_with_a_bug(bug: str, tmp_path: Path) -> None:
    right, wrong = BUGS[bug]
    assert SOURCE.read_text().count(right) == 1
    code, found = verdicts(built(SOURCE.read_text().replace(right, wrong), tmp_path), FOLDERS)
    assert code == 1 and len(found) == len(FOLDERS)
    failed = {name for name, word in found.items() if word == "FAIL"}
    wanted = {"id_too_large", "rank_mismatch"} if bug == "nothing is refused" else {"mixed_ranks", "decode"}
    assert wanted <= failed and "all_base" not in failed
