"""A link to a file of the repository that is no page of the book leads to a page that shows the file.

On GitHub such a link opens the file; here the page source/PATH.html does. A link to a folder leads to its README.md or
__init__.py, and a folder that has neither gets a page with its files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import TextLexer, get_lexer_for_filename
from pygments.util import ClassNotFound
from sphinx import addnodes
from sphinx.application import Sphinx

BEFORE_DOWNLOADS = 400  # Sphinx's own collector of downloads has 500
MAIN_FILES = ("README.md", "__init__.py")


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("doctree-read", links_to_files, priority=BEFORE_DOWNLOADS)
    app.connect("html-collect-pages", source_pages)
    return {"parallel_read_safe": True}


def links_to_files(app: Sphinx, doctree: nodes.document) -> None:
    """Turn every link to a file or a folder that is no page into one to the page that shows it."""
    docname = app.env.docname
    for node in list(
        doctree.findall(lambda node: isinstance(node, addnodes.download_reference | addnodes.pending_xref))
    ):
        file = repository_file(app, docname, file_meant(app, node))
        if file is not None:
            link = nodes.reference("", "", *node.children, internal=True, refuri=uri(app, docname, file))
            node.replace_self(link)


def file_meant(app: Sphinx, node: nodes.Element) -> str:
    """Return the path that a link says, seen from its page or, with a "/", from the repository; "" for one to a page.

    MyST takes a file for a page where pages have such suffixes, and a folder for something to be looked up."""
    target = str(node["reftarget"])
    if isinstance(node, addnodes.download_reference) or node.get("reftype") != "myst":
        return target if isinstance(node, addnodes.download_reference) else ""
    if node.get("refdomain") != "doc":
        return target
    if target in app.env.found_docs:
        return ""
    suffixes = (suffix for suffix in app.config.source_suffix if Path(app.srcdir, target + suffix).exists())
    return f"/{target}{next(suffixes, '')}"


def repository_file(app: Sphinx, docname: str, target: str) -> str | None:
    """Return the path in the repository that a link in a page means, "refimpl/lora.py"; None if there is none."""
    root = Path(app.srcdir).resolve()
    path = root / target[1:] if target.startswith("/") else ((root / docname).parent / target).resolve()
    if not target or not path.is_relative_to(root) or not path.exists():
        return None
    if path.is_dir():
        path = next((path / name for name in MAIN_FILES if (path / name).exists()), path)
    return path.relative_to(root).as_posix()


def uri(app: Sphinx, docname: str, file: str) -> str:
    """Return the address of a file's page, seen from a page: its own if it is one, else one that shows it."""
    docname_of_file = file.rpartition(".")[0]
    page = docname_of_file if docname_of_file in app.env.found_docs else f"source/{file}"
    if page.startswith("source/"):
        shown_files(app).add(file)
    return app.builder.get_relative_uri(docname, page)


def shown_files(app: Sphinx) -> set[str]:
    """The files that get a page: kept with the environment, so that a second build knows them."""
    if not hasattr(app.env, "shown_files"):
        app.env.shown_files = set()
    files: set[str] = app.env.shown_files
    return files


def source_pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield a page for each file that something links to."""
    formatter = HtmlFormatter(linenos="inline", lineanchors="L", anchorlinenos=True)
    for file in sorted(shown_files(app)):
        path = Path(app.srcdir) / file
        if path.is_dir():
            names = sorted(inner.name for inner in path.iterdir() if not inner.name.startswith((".", "__py")))
            body = "<ul>" + "".join(f"<li><code>{name}</code></li>" for name in names) + "</ul>"
        else:
            body = f'<div class="highlight">{highlight(path.read_text("utf-8"), lexer(file), formatter)}</div>'
        yield f"source/{file}", {"title": file, "body": f"<h1>{file}</h1>{body}"}, "page.html"


def lexer(file: str) -> Any:
    """Return the lexer for a file's name; CUDA is read as C++."""
    try:
        return get_lexer_for_filename(file.replace(".cuh", ".cu"))
    except ClassNotFound:
        return TextLexer()
