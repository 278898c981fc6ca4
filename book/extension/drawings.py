"""A drawing of a chapter stands in the page itself: as a file beside it, it would not know the colour of the text."""

import html
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

from refimpl.diagrams.letters import WIDTH

TITLE = re.compile(r' aria-label="(.*?)"')
BEFORE_IMAGES = 400  # Sphinx's own collector of images has 500


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("doctree-read", drawings_in_the_page, priority=BEFORE_IMAGES)
    return {"parallel_read_safe": True}


def drawings_in_the_page(app: Sphinx, doctree: nodes.document) -> None:
    """Replace each SVG that a cell has returned by its text, and leave out the same drawing in letters."""
    for node in list(doctree.findall(nodes.image)):
        file = Path(app.srcdir, app.env.docname).parent / node["uri"]
        if file.suffix == ".svg" and "jupyter_execute" in file.parts:
            svg = "<svg" + file.read_text("utf-8").partition("<svg")[2]
            without_letters(node, svg)
            node.replace_self(nodes.raw("", f'<div class="drawing">{svg}</div>', format="html"))


def without_letters(image: nodes.image, svg: str) -> None:
    """Cut the drawing in letters off what the cell printed: it begins with the title, which the SVG has, too."""
    label = TITLE.search(svg)
    first = next(iter(textwrap.wrap(html.unescape(label[1]), WIDTH)), "") if label else ""
    output = next(parent for parent in ancestors(image) if "cell_output" in parent.get("classes", ()))
    for block in list(output.findall(nodes.literal_block)):
        before, line, _ = f"\n{block.astext()}\n".partition(f"\n{first}\n")
        if first and line and before.strip():
            block.children = [nodes.Text(before.strip("\n"))]
            block.rawsource = before.strip("\n")
        elif first and line:
            block.parent.remove(block)


def ancestors(node: nodes.Node) -> Iterator[nodes.Element]:
    """Yield the node's parent, its parent, and so on."""
    while node.parent is not None:
        node = node.parent
        yield node
