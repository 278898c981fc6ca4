"""The chapters as notebooks: the same percent scripts, then the exercise, graded in the notebook."""

from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import LoracleError
from . import exercises
from .exercise import Exercise
from .units import PACKAGE, stub

INSTALL = """\
# In Colab this installs Loracle; where this version is installed it does nothing, and needs no network.
try:
    import loracle
    installed = loracle.__version__
except ImportError:
    installed = None
if installed != "{version}":
    get_ipython().run_line_magic("pip", "install -q loracle=={version}")
"""


def write_notebooks(folder: Path) -> list[Path]:
    """Write one notebook for each chapter; return them. LoracleError where one is there: it may be somebody's work."""
    jupytext = import_jupytext()
    chapters = [exercise for exercise in exercises() if chapter_file(exercise).exists()]
    targets = [folder / f"{exercise.chapter}.ipynb" for exercise in chapters]
    for target in targets:
        if target.exists():
            raise LoracleError(f"{target} is there already, and may have been worked on: give another DIR")
    texts = [jupytext.writes(notebook(jupytext, exercise), fmt="ipynb") for exercise in chapters]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for target, text in zip(targets, texts, strict=True):
            target.write_text(text, "utf-8")
    except OSError as error:
        raise LoracleError(f"{folder}: cannot be written ({error.strerror or error})") from None
    return targets


def import_jupytext() -> Any:
    """Return the module; LoracleError with the command that installs it."""
    try:
        import jupytext
    except ImportError:
        raise LoracleError("notebooks are made by jupytext: pip install 'loracle[learn]'") from None
    return jupytext


def chapter_file(exercise: Exercise) -> Path:
    """Return the percent script of an exercise's chapter."""
    return PACKAGE / "chapters" / f"{exercise.chapter}.py"


def notebook(jupytext: Any, exercise: Exercise) -> Any:
    """Return a chapter as a notebook of nbformat: a cell that pins the version, the chapter, the exercise."""
    script = chapter_file(exercise).read_text("utf-8")
    cells = [f"# %%\n{INSTALL.format(version=__version__)}", script, *exercise_cells(exercise)]
    converted = jupytext.reads("\n".join(cells), fmt="py:percent")
    converted.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return converted


def exercise_cells(exercise: Exercise) -> list[str]:
    """Return the stub and its check as percent cells."""
    check = f"from loracle.learn import check\n\ncheck({exercise.function})\n"
    return ["# %% [markdown]\n# ## The exercise, here", f"# %%\n{stub(exercise).read_text('utf-8')}", f"# %%\n{check}"]
