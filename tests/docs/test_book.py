"""The book without Sphinx: the reading path is README's, what it shows is there, and every page has its place.

The build itself, in which each chapter is run, is a step of .ci/run."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BOOK = ROOT / "book"
READING = sorted((BOOK / "reading").glob("*.md"))
PAGES = [*BOOK.rglob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "refimpl" / "learn" / "labs").glob("*.md")]
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")


def test_the_reading_path_is_that_of_readme_in_its_order() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    table = re.findall(r"^\| \[(\w+\.py)\]\(refimpl/", readme, re.M)
    pages = [name for page in READING for name in re.findall(r"^## \[(\w+\.py)\]", page.read_text("utf-8"), re.M)]
    assert pages == table and len(pages) > 20


def test_the_reference_has_every_file_of_the_reading_path() -> None:
    pages = [name for page in READING for name in re.findall(r"^## \[(\w+)\.py\]", page.read_text("utf-8"), re.M)]
    reference = (BOOK / "api" / "core.md").read_text("utf-8")
    assert re.findall(r"automodule:: refimpl\.(\w+)", reference) == pages


@pytest.mark.parametrize("page", READING, ids=lambda page: page.stem)
def test_what_a_page_shows_is_in_the_file_of_its_heading(page: Path) -> None:
    sections = re.split(r"^## ", page.read_text("utf-8"), flags=re.M)[1:]
    for section in sections:
        heading = re.match(r"\[(\w+\.py)\]", section)
        shown = re.findall(r"\{literalinclude\} (\S+)\n:language: python\n:pyobject: (\S+)", section)
        assert heading and shown, section[:40]
        for file, name in shown:
            path = (page.parent / file).resolve()
            assert path.name == heading[1]
            assert name in definitions(path), f"{path.name} has no {name}"


def definitions(file: Path) -> set[str]:
    """Every function and class of a file, methods as "Class.method"."""
    names = set()
    for node in ast.parse(file.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
            names |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_link_leads_to_a_file_of_the_repository(page: Path) -> None:
    targets = [target for target in LINK.findall(page.read_text("utf-8")) if "://" not in target]
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_every_page_of_the_book_has_its_place_in_the_index() -> None:
    index = (BOOK / "index.md").read_text("utf-8")
    places = re.findall(r"^(?:.*<)?((?:\.\./|reading/|api/)[\w/*.]+?)>?$", index, re.M)
    patterns = [place if place.endswith("*") else f"{place}.md" for place in places]
    listed = {path.resolve() for pattern in patterns for path in BOOK.glob(pattern) if path.is_file()}
    listed |= {(BOOK / pattern).resolve() for pattern in patterns if "*" not in pattern}
    assert all(path.exists() for path in listed)
    assert {page.resolve() for page in PAGES if page != BOOK / "index.md"} <= listed
