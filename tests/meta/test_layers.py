"""No module imports from a layer above its own, and the picture in CONTRIBUTING.md has these layers in this order."""

import sys

from support.imports import ENTRY, MODULES, PACKAGE, import_graph, imported

# The picture in CONTRIBUTING.md, from the bottom to the top. What stands in one row may import what is below it, and
# nothing else beside it.
ROWS = (
    ("core",),
    ("synthetic", "families", "diagrams"),
    ("parallel",),
    ("loading", "cuda"),
    ("backends",),
    ("tensorrt_llm",),
    ("formats",),
    ("pictures",),
    ("tools", "training"),
    ("tiny", "published"),
    ("engines",),
    ("oracle",),
    ("bench",),
    ("learn",),
    ("commands",),
    ("entry",),
)
ROOMS = {room: height for height, row in enumerate(ROWS) for room in row}

# What the core may import besides the standard library and itself.
CORE_NEEDS = {"numpy", "cupy", "ml_dtypes"}


def room(module: str) -> str:
    """Return the layer of a module: its folder, or core."""
    if module in ENTRY:
        return "entry"
    if module == "refimpl.backends":  # the names of the backends, that of the kernels among them
        return "backends"
    name = module.split(".")[1]
    return name if name in ROOMS else "core"


def test_no_module_imports_from_above() -> None:
    upwards = {
        (module, name)
        for module, names in import_graph().items()
        for name in names
        if room(module) != room(name) and ROOMS[room(name)] >= ROOMS[room(module)]
    }
    upwards -= {(module, "refimpl") for module in MODULES}  # __version__ alone, which is a constant
    assert upwards == set()


def test_the_core_needs_numpy_and_little_else() -> None:
    needs = {name.partition(".")[0] for module in MODULES if room(module) == "core" for name in imported(module)}
    assert needs - {*sys.stdlib_module_names, "refimpl"} <= CORE_NEEDS


def test_the_picture_in_contributing_has_these_layers_in_this_order() -> None:
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text("utf-8")
    picture = text.partition("<!-- layers -->")[2].partition("<!-- end -->")[0].splitlines()
    rows = [{name.strip() for name in line.partition("  ")[0].split(",")} & ROOMS.keys() for line in picture]
    assert [row for row in rows if row] == [set(row) for row in reversed(ROWS)]
