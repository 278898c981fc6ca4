"""The README's picture of a batch is what docs/make_picture.py draws of the batch that the code makes."""

import importlib.util
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

DOCS = Path(__file__).parents[2] / "docs"


def make_picture() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_picture", DOCS / "make_picture.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_of_a_batch_is_up_to_date() -> None:
    diagram = make_picture().flat_batch()
    assert diagram.document() == (DOCS / "flat_batch.svg").read_text("utf-8"), "run python docs/make_picture.py"
    adapter_ids = next(line for line in diagram.text.splitlines() if line.startswith("adapter_ids")).split()[1:]
    assert adapter_ids == ["0"] * 4 + ["-1"] + ["1"] * 3 + ["0"] and "!" not in diagram.text


def test_every_picture_of_the_docs_is_xml() -> None:
    files = sorted(DOCS.glob("*.svg"))
    assert len(files) >= 2
    for file in files:
        ElementTree.fromstring(file.read_text("utf-8"))
