"""One word, one meaning: retired words are in no public name, and no name is a bare participle or a single letter.

The glossary in CONTRIBUTING.md says what is used instead.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "refimpl"
FILES = [file for file in sorted(PACKAGE.rglob("*.py")) if "_kernels" not in file.parts]

# The field says: adapter slots, module, testbed, scenario, scenario, synthetic, candidate, verdict, merge or prescale.
RETIRED = {"bank", "site", "stage", "plot", "story", "told", "made", "looked", "judged", "fold", "folded"}
# Names in which one of them is somebody else's word, each with its reason.
KEPT = {"goblin_bank": "is a place where goblins keep their gold"}

PARTICIPLES = {
    *("found", "known", "told", "held", "made", "looked", "seen", "wanted", "left", "own", "there", "whole"),
    *("asked", "drawn", "judged", "brought", "taken"),
}
LETTERS = set("xyWABqkvpijtrnhT_")  # the formulas' own, counters of them, p for a Precision, T for a type variable

# Programs that run in an environment of their own, from a file of their own.
EXEMPT = {"engines/record_tensorrt_llm.py"}


def words(name: str) -> set[str]:
    """Return the words of a name, in snake_case or CamelCase."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def public_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield (line, name) of what other files can see: functions, classes, constants, fields and parameters."""
    for node in tree.body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from ((node.lineno, target.id) for target in targets if isinstance(target, ast.Name))
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.lineno, node.name
        if isinstance(node, ast.FunctionDef):
            arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
            yield from ((argument.lineno, argument.arg) for argument in arguments)
        if isinstance(node, ast.ClassDef):
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    yield field.lineno, field.target.id


def bound_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield (line, name) of every variable, argument, attribute, function and class that is bound."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id if isinstance(node, ast.Name) else node.attr
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.lineno, node.name


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_names_are_in_the_language_of_the_house(file: Path) -> None:
    tree = ast.parse(file.read_text("utf-8"))
    retired = [(line, name) for line, name in public_names(tree) if words(name) & RETIRED and name not in KEPT]
    assert retired == []
    unnamed = [
        (line, name)
        for line, name in bound_names(tree)
        if name.lstrip("_") in PARTICIPLES or (len(name) == 1 and name not in LETTERS)
    ]
    assert unnamed == [] or str(file.relative_to(PACKAGE)) in EXEMPT


def test_words_of_a_name() -> None:
    assert words("AdapterBank") == {"adapter", "bank"} and words("made_up_site") == {"made", "up", "site"}
    assert words("HTTPStage") == {"http", "stage"} and words("_told") == {"told"}
