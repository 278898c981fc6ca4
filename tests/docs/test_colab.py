"""The notebook for a browser, and the container: valid, of this version, and every cell runs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from refimpl import __version__
from refimpl.cuda import runner

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks" / "colab.ipynb"


def cells(kind: str) -> list[dict]:
    return [cell for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"] if cell["cell_type"] == kind]


def text(cell: dict) -> str:
    return "".join(cell["source"])


def test_the_first_cell_that_runs_pins_the_version() -> None:
    first, *others = cells("code")
    assert text(first) == f"%pip install -q loracle=={__version__}" and first["metadata"]["tags"] == ["install"]
    assert not any("pip" in text(cell) or cell["metadata"].get("tags") for cell in others)
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells("code"))


def test_it_is_what_the_script_makes() -> None:
    pytest.importorskip("jupytext", reason="pip install -e .[learn] nbclient ipykernel")
    sys.path.insert(0, str(NOTEBOOK.parent))
    try:
        import make
    finally:
        sys.path.remove(str(NOTEBOOK.parent))
    assert make.notebook() == NOTEBOOK.read_text("utf-8"), "run python notebooks/make.py"


@pytest.mark.skipif(runner.device() != "cpu", reason="the CPU runner's checker grades")
def test_every_cell_runs_but_the_one_that_installs(tmp_path: Path) -> None:
    code = [text(cell) for cell in cells("code") if "install" not in cell["metadata"].get("tags", [])]
    (tmp_path / "cells.py").write_text("\n\n".join(code), "utf-8")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "cells.py"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    printed = done.stdout
    assert f"loracle {__version__}\n" in printed and "ch06_prefix_key: not attempted" in printed
    assert re.search(r"double.cu:4: twice, block \(0, 0, 0\), thread \(\d+, 0, 0\): out of bounds", printed)
    assert "['b_shrink.md', 'shrink.cu']" in printed and "lab_b_shrink: not attempted" in printed


def test_the_container_has_a_compiler_and_installs_the_checkout() -> None:
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text("utf-8"))
    dockerfile = (ROOT / ".devcontainer" / container["build"]["dockerfile"]).read_text("utf-8")
    assert " g++ " in dockerfile and dockerfile.splitlines()[1].startswith("FROM ")
    assert container["postCreateCommand"].startswith("pip install -e '.[test]'")
