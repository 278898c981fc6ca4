"""The oracle's rooms: each imports the rooms before it in its README's table, and no module takes part in a circle."""

import re
from graphlib import TopologicalSorter
from pathlib import Path

from support.imports import PACKAGE, import_graph

ORDER = ("cases", "bugs", "noise", "diagnosis", "causes", "reports")
ORACLE = "refimpl.oracle."


def room_of(module: str) -> str:
    return module.removeprefix(ORACLE).partition(".")[0]


def test_no_room_imports_from_a_later_one() -> None:
    backwards = {
        (module, name)
        for module, names in import_graph().items()
        for name in names
        if module.startswith(ORACLE) and room_of(module) in ORDER and name.startswith(ORACLE)
        if room_of(name) not in ORDER or ORDER.index(room_of(name)) > ORDER.index(room_of(module))
    }
    assert backwards == set()


def test_there_is_no_circle() -> None:
    oracle = {
        module: [name for name in names if name.startswith(ORACLE) and name != module]
        for module, names in import_graph().items()
        if module.startswith(ORACLE)
    }
    TopologicalSorter(oracle).prepare()  # CycleError names one


def test_the_readme_has_the_rooms_in_this_order() -> None:
    text = Path(PACKAGE, "oracle", "README.md").read_text("utf-8")
    rows = re.findall(r"^\| \[(\w+)/\]", text, re.M)
    assert rows == [*ORDER, "vectors"]
