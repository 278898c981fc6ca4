"""Who imports whom in the package: every import counts, inside functions and under TYPE_CHECKING as well."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "refimpl"
MODULES = {
    ".".join((PACKAGE.name, *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): file
    for file in sorted(PACKAGE.rglob("*.py"))
    if "_kernels" not in file.parts
}
ENTRY = ("refimpl", "refimpl.__main__", "refimpl.cli")  # know everything, and are known by nobody


def imported(module: str) -> Iterator[str]:
    """Yield the full name of everything that a module imports, wherever in the file."""
    file = MODULES[module]
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            origin = ".".join(filter(None, (above, node.module)))
            for name in node.names:
                yield f"{origin}.{name.name}" if f"{origin}.{name.name}" in MODULES else origin


@functools.cache
def import_graph() -> dict[str, set[str]]:
    """Return the modules of the package that each of them imports. Not when this is imported: every worker collects."""
    return {module: {name for name in imported(module) if name in MODULES and name != module} for module in MODULES}
