"""What cells show: printed lines in one piece, and drawings in the page itself.

Lines come from the kernel in pieces of any length; which, depends on the machine. A drawing as a file beside the page
would not know the colour of the text."""

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
    app.connect("doctree-read", lines_in_one_piece, priority=BEFORE_IMAGES - 1)
    app.connect("doctree-read", drawings_in_the_page, priority=BEFORE_IMAGES)
    return {"parallel_read_safe": True}


def lines_in_one_piece(app: Sphinx, doctree: nodes.document) -> None:
    """Put together what stands in several blocks only because it came in several messages."""
    for block in list(doctree.findall(nodes.literal_block)):
        previous = block.previous_sibling()
        if is_stream(block) and isinstance(previous, nodes.literal_block) and is_stream(previous):
            show(block, previous.astext() + block.astext())
            previous.parent.remove(previous)


def is_stream(block: nodes.literal_block) -> bool:
    """Return whether a block is what a cell printed."""
    return {"output", "stream"} <= set(block["classes"]) and "stderr" not in block["classes"]


def show(block: nodes.literal_block, text: str) -> None:
    """Let a block have this text."""
    block.children = []
    block += nodes.Text(text)
    block.rawsource = text  # which decides whether it is highlighted


def drawings_in_the_page(app: Sphinx, doctree: nodes.document) -> None:
    """Replace each SVG that a cell has returned by its text, and leave out the same drawing in letters."""
    for node in list(doctree.findall(nodes.image)):
        file = file_of(app, node["uri"])
        if file.suffix == ".svg" and "jupyter_execute" in file.parts:
            svg = "<svg" + file.read_text("utf-8").partition("<svg")[2]
            without_letters(node, svg)
            node.replace_self(nodes.raw("", f'<div class="drawing">{svg}</div>', format="html"))


def file_of(app: Sphinx, uri: str) -> Path:
    """Return the file of an image; a leading slash is the source folder, however far away the book is built."""
    beside = Path(app.srcdir, app.env.docname).parent / uri
    return beside if beside.exists() else Path(app.srcdir, uri.lstrip("/")).resolve()


def without_letters(image: nodes.image, svg: str) -> None:
    """Cut the drawing in letters off what the cell printed: it begins with the title, which the SVG has, too."""
    label = TITLE.search(svg)
    first = next(iter(textwrap.wrap(html.unescape(label[1]), WIDTH)), "") if label else ""
    output = next(parent for parent in ancestors(image) if "cell_output" in parent.get("classes", ()))
    for block in list(output.findall(nodes.literal_block)):
        before, line, _ = f"\n{block.astext()}\n".partition(f"\n{first}\n")
        if first and line and before.strip():
            show(block, before.strip("\n"))
        elif first and line:
            block.parent.remove(block)


def ancestors(node: nodes.Node) -> Iterator[nodes.Element]:
    """Yield the node's parent, its parent, and so on."""
    while node.parent is not None:
        node = node.parent
        yield node
