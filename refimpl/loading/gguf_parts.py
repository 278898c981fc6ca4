"""A GGUF file that was split: NAME-00001-of-00003.gguf and so on, as one. The first part is given and has the metadata.

    split.no  which part it is, from 0;  split.count  how many there are;  split.tensors.count  how many tensors in all

(llama.cpp, tools/gguf-split; src/llama-model-loader.cpp, which is as strict.)
"""

import os
import re
from dataclasses import replace
from pathlib import Path

from .diagnostics import Diagnostics, shown
from .gguf_file import GgufFile, open_part
from .json_file import is_integer

NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
NO, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"


def open_gguf(path: Path, diagnostics: Diagnostics) -> GgufFile | None:
    """Map a file and all further parts of it, or return None with the first problem noted."""
    first = open_part(path, diagnostics)
    if first is None or first.metadata.get(COUNT, 0) in (0, 1):
        return first
    if problem := _not_the_first(path, first):
        diagnostics.problem(path, problem)
        return None
    tensors = dict(first.tensors)
    count = first.metadata[COUNT]
    for number in range(1, count):
        part = _part(path, number, count, diagnostics)
        if part is None:
            return None
        if twice := tensors.keys() & part.tensors.keys():
            diagnostics.problem(part.path, f"tensor {min(twice)} is in another part, too")
            return None
        tensors |= part.tensors
    expected = first.metadata.get(TENSORS, len(tensors))
    if expected != len(tensors):
        diagnostics.problem(path, f"{TENSORS} is {shown(expected)}, and the {count} parts have {len(tensors)} tensors")
        return None
    return replace(first, tensors=tensors)


def _part(path: Path, number: int, count: int, diagnostics: Diagnostics) -> GgufFile | None:
    """One further part, of which there is such a number of the same count."""
    file = part_path(path, number, count)
    if not os.path.exists(file):
        diagnostics.problem(path, f"is the first of {count} parts, and {file.name} is not there")
        return None
    part = open_part(file, diagnostics)
    if part and (part.metadata.get(NO), part.metadata.get(COUNT)) != (number, count):
        numbers = f"{NO} {shown(part.metadata.get(NO))} and {COUNT} {shown(part.metadata.get(COUNT))}"
        diagnostics.problem(file, f"has {numbers}; the first part makes them {number} and {count}")
        return None
    return part


def _not_the_first(path: Path, file: GgufFile) -> str | None:
    """Why further parts cannot be told from this one, if they cannot."""
    number, count = file.metadata.get(NO), file.metadata[COUNT]
    if not is_integer(count) or not 1 < count <= 99999 or not is_integer(number):
        return f"{NO} is {shown(number)} and {COUNT} {shown(count)}: they must be numbers of parts"
    name = NAME.fullmatch(path.name)
    if number:
        first = f": give the first, {part_path(path, 0, count).name}" if name else ""
        return f"is part {number + 1} of {count}{first}"
    if name is None or (int(name[2]), int(name[3])) != (1, count):
        return f"is the first of {count} parts, and must be called NAME-00001-of-{count:05d}.gguf to find the others"
    return None


def part_path(path: Path, number: int, count: int) -> Path:
    """The file of one part, 0 the first, from that of any of them."""
    name = NAME.fullmatch(path.name)
    stem = name[1] if name else path.stem
    return path.with_name(f"{stem}-{number + 1:05d}-of-{count:05d}.gguf")
