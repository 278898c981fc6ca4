"""Signatures as they stand in the source, with their shapes, and docstrings that are prose and not reStructuredText.

At run time `Float[Array, "tokens d_model"]` is typing.Annotated, of which autodoc shows the inside. So the annotation
is taken from the source, as its author wrote it."""

import ast
import dataclasses
import inspect
import re
import textwrap
from typing import Any

from sphinx.application import Sphinx

SPECIAL = re.compile(r"([*_|\\])")  # what reStructuredText would take for markup
CODE = re.compile(r"(`[^`]+`)")


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("autodoc-process-signature", signature_of_the_source)
    app.connect("autodoc-process-docstring", prose)
    return {"parallel_read_safe": True}


def signature_of_the_source(
    app: Sphinx, what: str, name: str, item: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None] | None:
    """Return (arguments, result) as the source has them; None, and autodoc's own stays, where there is no source."""
    if what not in ("function", "method", "class"):
        return None
    node = definition(inspect.unwrap(item))
    if isinstance(node, ast.ClassDef):
        init = next((part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"), None)
        if init is None:
            return (text(fields(node)), None) if dataclasses.is_dataclass(item) else None
        node, what = init, "method"
    if not isinstance(node, ast.FunctionDef):
        return None
    if what == "method" and node.args.args and node.args.args[0].arg in ("self", "cls"):
        node.args.args.pop(0)
    result = None if node.returns is None or node.name == "__init__" else plain_quotes(ast.unparse(node.returns))
    return text(node.args), result


def definition(item: Any) -> ast.AST | None:
    """Return the syntax tree of a function or a class; None where there is no source."""
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(item))).body[0]
    except (OSError, TypeError, SyntaxError):
        return None


def fields(node: ast.ClassDef) -> ast.arguments:
    """Return the arguments that a dataclass is made of: its annotated names, with their defaults."""
    names, defaults = [], []
    for part in node.body:
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            default = part.value
            if isinstance(default, ast.Call) and ast.unparse(default.func) == "field":
                if any(keyword.arg == "init" for keyword in default.keywords):
                    continue  # computed, and not given
                default = ast.Constant(...)  # there is one, which a function makes
            names.append(ast.arg(part.target.id, part.annotation))
            defaults += [] if default is None else [default]
    return ast.arguments([], names, None, [], [], None, defaults)


def text(arguments: ast.arguments) -> str:
    """Return arguments as they are written; an annotation in quotes is shown without them."""
    for argument in arguments.args:
        if isinstance(argument.annotation, ast.Constant) and isinstance(argument.annotation.value, str):
            argument.annotation = ast.parse(argument.annotation.value, mode="eval").body
    return f"({plain_quotes(ast.unparse(arguments))})"


def plain_quotes(source: str) -> str:
    """Return source text with the quotes that this repository uses."""
    return source.replace("'", '"')


def prose(app: Sphinx, what: str, name: str, item: Any, options: Any, lines: list[str]) -> None:
    """Rewrite a docstring in place: `code` is code, what is indented or aligned is shown as it stands."""
    blocks = "\n".join(lines).split("\n\n")
    lines[:] = [line for block in blocks for line in (*paragraph(block.splitlines()), "")]


def paragraph(block: list[str]) -> list[str]:
    """Return one block of a docstring as reStructuredText."""
    if any(line.startswith((" ", "* ", "- ", ">>>", "|")) for line in block):
        return ["::", "", *(f"   {line}" for line in block), ""]
    return [
        "".join(f"`{part}`" if CODE.match(part) else SPECIAL.sub(r"\\\1", part) for part in CODE.split(line))
        for line in block
    ]
