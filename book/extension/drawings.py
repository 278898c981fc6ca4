"""A drawing of a chapter stands in the page itself: as a file beside it, it would not know the colour of the text."""

from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

BEFORE_IMAGES = 400  # Sphinx's own collector of images has 500


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("doctree-read", drawings_in_the_page, priority=BEFORE_IMAGES)
    return {"parallel_read_safe": True}


def drawings_in_the_page(app: Sphinx, doctree: nodes.document) -> None:
    """Replace each SVG that a cell has returned by its text."""
    for node in list(doctree.findall(nodes.image)):
        file = Path(app.srcdir, app.env.docname).parent / node["uri"]
        if file.suffix == ".svg" and "jupyter_execute" in file.parts:
            svg = file.read_text("utf-8").partition("<svg")[2]
            node.replace_self(nodes.raw("", f'<div class="drawing"><svg{svg}</div>', format="html"))
