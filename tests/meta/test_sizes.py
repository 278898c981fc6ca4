"""A file is one idea: none of the package is longer than 300 lines."""

from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "refimpl"
LIMIT = 300
LONGER = {
    "engines/record_tensorrt_llm.py": "is copied to another machine, alone",
    "tiny/voices.py": "is the data of a grammar",
}


def test_no_file_is_too_long() -> None:
    lengths = {
        str(file.relative_to(PACKAGE)): file.read_text("utf-8").count("\n")
        for file in PACKAGE.rglob("*.py")
        if "_kernels" not in file.parts
    }
    assert {name: length for name, length in lengths.items() if length > LIMIT and name not in LONGER} == {}
    assert {name for name in LONGER if lengths[name] <= LIMIT} == set(), "these are no exceptions any more"
