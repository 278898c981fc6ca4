"""The book: the pages of this repository, and the chapters of the course, which are run while it is built.

    pip install -e '.[book]'
    sphinx-build -W --keep-going -c book . build/book          then open build/book/index.html

The source folder is the repository itself, so that a link between two of its pages is the same link on GitHub and here.
"""

import os
import sys
from pathlib import Path

BOOK = Path(__file__).parent
sys.path[:0] = [str(BOOK.parent), str(BOOK)]
os.environ["PYTHONPATH"] = str(BOOK.parent)  # for the chapters: they run this checkout, whatever is installed

import refimpl  # noqa: E402

project = "Loracle"
author = "the authors of Loracle"
copyright = "the authors of Loracle, Apache-2.0"
version = release = refimpl.__version__
language = "en"

extensions = ["myst_nb", "sphinx.ext.autodoc", "extension.links", "extension.signatures", "extension.outputs"]
root_doc = "book/index"
include_patterns = [
    "book/**.md",
    "README.md",
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    "benchmarks/results/README.md",
    "docs/*.md",
    "kernels/README.md",
    "refimpl/learn/handout.md",
    "refimpl/learn/chapters/*.py",
    "refimpl/learn/labs/*.md",
    "refimpl/oracle/README.md",
    "refimpl/oracle/bugs/README.md",
    "refimpl/oracle/pictures/README.md",
    "refimpl/oracle/vectors/FORMAT.md",
    "refimpl/tiny/README.md",
    "refimpl/tiny/pictures/README.md",
    "tests/engines/README.md",
]
highlight_language = "none"  # a block without a language is what a terminal shows

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
suppress_warnings = ["myst.header"]  # a page may begin with a heading of another level

# The chapters are percent scripts, read as notebooks.
source_suffix = {".md": "myst-nb", ".py": "myst-nb"}
nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
nb_execution_mode = "force"
nb_execution_raise_on_error = False  # but a warning with the traceback, and -W makes it an error: all chapters are run
nb_execution_timeout = 120  # seconds for one cell: a whole chapter takes ten at most
nb_execution_in_temp = True
nb_execution_show_tb = True
nb_merge_streams = False  # it breaks lines where messages end; extension/outputs.py does not

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
add_module_names = False
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = "Loracle"
html_static_path = ["static"]
html_css_files = ["book.css"]
html_extra_path = ["root"]  # index.html, which leads to book/index.html
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
