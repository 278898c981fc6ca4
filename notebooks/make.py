"""Write colab.ipynb from colab.py, with the version of the package in its first cell.

    pip install jupytext && python notebooks/make.py

The notebook is committed, because that is what a browser opens; tests/docs/test_colab.py holds it to the script.
"""

import sys
from pathlib import Path

import jupytext
import nbformat

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))


def notebook() -> str:
    """Return the notebook as JSON; the same for the same script and version."""
    from refimpl import __version__

    source = (HERE / "colab.py").read_text("utf-8").replace("VERSION", __version__)
    book = jupytext.reads(source, fmt="py:percent")
    book.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for number, cell in enumerate(book.cells):
        cell["id"] = f"cell-{number}"
    nbformat.validate(book)
    return str(nbformat.writes(book)) + "\n"


if __name__ == "__main__":
    (HERE / "colab.ipynb").write_text(notebook(), "utf-8")
