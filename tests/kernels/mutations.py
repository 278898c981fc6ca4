"""What can be taken out of a kernel: every barrier, atomic and test of a bound, one at a time; and what can be changed.

The mutants are made from the text of the kernels as they are, by the rules below, so that a line that is added tomorrow
has its mutants without anyone thinking of it.

    what                                          becomes
    __syncthreads(), __syncwarp()                 nothing
    atomicAdd(p, v)                               *(p) += v
    if (a && b), while, bool x = a && b           true in place of a, and of b
    if (a || b) return                            false in place of a, and of b
    a ? value : 0                                 true in place of a; false where the 0 comes first; else both
    for (...; i < n; ...)                         i <= n, unless n is a constant; where i is halved, > 1 in place of > 0
    min(a, b), max(a, b)                          a, and b
    ceil_div(a, b)                                a / b, which drops the tail
    FULL_WARP                                     half of the lanes
    const long long at = ...                      one more: an offset that is one off
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mutant:
    """One change of one file."""

    file: str
    line: int
    function: str
    what: str  # the rule
    old: str  # what is replaced
    new: str
    before: str  # the line that it stands in, without indentation and comment
    after: str
    nth: int  # of several that are equal so far
    source: str  # the whole file after it

    @property
    def key(self) -> tuple[str, str, str, str, int]:
        """What it is called, wherever the line has moved to."""
        return self.file, self.function, self.before, self.after, self.nth


@dataclass(frozen=True)
class Edit:
    """text[start:end] becomes `new`."""

    what: str
    start: int
    end: int
    new: str


def mutants(path: Path) -> list[Mutant]:
    """All of one file, in the order of their lines."""
    source = path.read_text()
    text = without_comments(source)
    functions = [
        (match.start(), match[1]) for match in re.finditer(r"^(?!struct)\w[^;{}]*?\b(\w+)\([^;{}]*\{", text, re.M)
    ]
    found: list[Mutant] = []
    for edit in sorted(set(edits(text)), key=lambda e: (e.start, e.end, e.new)):
        changed = source[: edit.start] + edit.new + source[edit.end :]
        first = source.rfind("\n", 0, edit.start) + 1
        last = source.find("\n", edit.end)
        before, after = squeezed(source[first:last]), squeezed(changed[first : last + len(changed) - len(source)])
        if edit.what == "barrier removed":  # which one it is, only the comment tells
            before, after = source[first:last].strip(), ""
        line = source.count("\n", 0, edit.start) + 1
        function = next(name for start, name in reversed(functions) if start < edit.start)
        nth = sum((m.function, m.before, m.after) == (function, before, after) for m in found)
        old = source[edit.start : edit.end]
        found.append(Mutant(path.name, line, function, edit.what, old, edit.new, before, after, nth, changed))
    return found


def squeezed(text: str) -> str:
    """On one line, without the comment."""
    return " ".join(re.sub(r"//.*", "", text).split())


def without_comments(source: str) -> str:
    """The same length, comments and lines of the preprocessor blank."""
    return re.sub(r"//.*|/\*[\s\S]*?\*/|^#.*", lambda match: re.sub(r"[^\n]", " ", match[0]), source, flags=re.M)


# ---- the rules ------------------------------------------------------------------------------------------------------


def edits(text: str) -> Iterator[Edit]:
    for match in re.finditer(r"__sync(?:threads|warp)\([^()]*\);", text):
        yield Edit("barrier removed", *match.span(), ";")
    for match in re.finditer(r"\batomicAdd\(", text):
        p, v = (text[start:end] for start, end in arguments(text, match.end() - 1))
        yield Edit("atomic removed", match.start(), closing(text, match.end() - 1) + 1, f"*({p}) += {v}")
    for match in re.finditer(r"\b(if|while) \(", text):
        yield from guard(text, match[1], match.end() - 1)
    for match in re.finditer(r"\bconst bool \w+ = ([^;]*);", text):
        for start, end in parts(text, *match.span(1)):
            yield Edit("test removed", start, end, "true")
    for match in re.finditer(r"\?", text):
        yield from ternary(text, match.start())
    for match in re.finditer(r"\bfor \(", text):
        yield from loop(text, match.end() - 1)
    for match in re.finditer(r"\b(min|max|ceil_div)\(", text):
        (a, b), (c, d) = arguments(text, match.end() - 1)
        whole = match.start(), closing(text, match.end() - 1) + 1
        if "constexpr" in text[text.rfind("\n", 0, match.start()) : match.start()]:
            continue  # its definition
        if match[1] == "ceil_div":
            yield Edit("tail dropped", *whole, f"(({text[a:b]}) / ({text[c:d]}))")
        else:
            yield Edit("limit removed", *whole, text[a:b])
            yield Edit("limit removed", *whole, text[c:d])
    for match in re.finditer(r"\bFULL_WARP\b", text):
        yield Edit("mask swapped", *match.span(), "0x0000ffffu")
    for match in re.finditer(r"\bconst long long (\w+ = [^;]*);", text):
        for start, end in split(text, *match.span(1), ","):
            yield Edit("offset shifted", start, end, text[start:end] + " + 1")


def guard(text: str, word: str, bracket: int) -> Iterator[Edit]:
    """if (...) and while (...)."""
    end = closing(text, bracket)
    leaves = word == "if" and re.match(r"\s*(\{\s*)?return\b", text[end + 1 :])
    for part in parts(text, bracket + 1, end):
        yield Edit("test removed", *part, "false" if leaves else "true")


def ternary(text: str, mark: int) -> Iterator[Edit]:
    """a ? b : c"""
    start, depth = mark, 0
    while True:
        before = text[start - 1]
        if before in ")]":
            depth += 1
        elif depth and before in "([":
            depth -= 1
        elif depth == 0 and (before in "([{;,?:" or text[:start].endswith((" = ", "return "))):
            break
        start -= 1
    colon = next(i for i in range(mark, len(text)) if text[i] == ":" and balanced(text[mark:i]))
    zero = r"\s*(\(T\))?(0\.0f|0|nullptr)\b"
    constants = ["true", "false"]
    if re.match(zero, text[colon + 1 :]):
        constants = ["true"]
    if re.match(zero, text[mark + 1 :]):
        constants = ["false"]
    for part in parts(text, start, mark):
        for constant in constants:
            yield Edit("test removed", *part, constant)


def loop(text: str, bracket: int) -> Iterator[Edit]:
    """The condition of a for."""
    _, condition, step = split(text, bracket + 1, closing(text, bracket), ";")
    for start, end in parts(text, *condition):
        test = text[start:end]
        if re.search(r"[<>] [A-Z_ /*]+$", test):
            continue
        if re.search(r"[/]=", text[slice(*step)]):
            yield Edit("one step fewer", start, end, test.replace("> 0", "> 1"))
        else:
            yield Edit("one too many", start, end, test.replace("<", "<=", 1))


# ---- brackets -------------------------------------------------------------------------------------------------------


def balanced(text: str) -> bool:
    """As many brackets open as close."""
    return all(text.count(a) == text.count(b) for a, b in ("()", "[]", "{}"))


def closing(text: str, bracket: int) -> int:
    """Where the bracket that opens here closes."""
    return next(i for i in range(bracket + 1, len(text)) if text[i] == ")" and balanced(text[bracket : i + 1]))


def split(text: str, start: int, end: int, separator: str) -> list[tuple[int, int]]:
    """The parts of text[start:end] between separators outside brackets, without the blanks around them."""
    found, at = [], start
    for i in range(start, end + 1):
        if i == end or (text.startswith(separator, i) and balanced(text[at:i])):
            part = text[at:i]
            found.append((at + len(part) - len(part.lstrip()), at + len(part.rstrip())))
            at = i + len(separator)
    return found


def parts(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """What && or || joins."""
    return split(text, start, end, "||" if "||" in text[start:end] else "&&")


def arguments(text: str, bracket: int) -> list[tuple[int, int]]:
    """Of the call whose bracket opens here."""
    return split(text, bracket + 1, closing(text, bracket), ",")
