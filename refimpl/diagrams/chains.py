"""The hash chains of a prefix cache: which block is found under which key."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from ..errors import LoracleError
from .canvas import FAINT, MARGIN, SIZE, Box, Canvas, Diagram, at_most, colour, text_width
from .inputs import parts
from .letters import NAME, WIDTH, aligned, cell_len, shorten, titled, wrapped

WORDS = 22  # letters of a block's text
GAP = 24  # pixels between two blocks

Chain = tuple[str, Sequence[str], Sequence[Hashable]]  # who, words of each block, key of each block


@dataclass(frozen=True)
class Block:
    """One full block of a request: its words, the number of its key, and whether an earlier request left it cached."""

    words: str
    key: int
    hit: bool
    wrong: bool

    @property
    def letter(self) -> str:
        """The key's name: A, B, ... Z, AA, AB, ..."""
        return letter(self.key)


def chains(rows: Sequence[Chain], title: str = "", adapters: Sequence[str] | None = None) -> Diagram:
    """Return the hash chain of each request's full blocks: one colour and letter per key, dashed where an earlier
    request has left the block in the cache.

    rows: (who, words of each block, key of each block) in the order in which the requests came. adapters: of each
    request, where `who` is not its adapter already.
    Marked with "!" and hatching: a key that was met before with other contents, which are the adapter and all words up
    to the end of the block. LoracleError where there are not as many keys as words, or a key cannot be hashed.
    """
    rows = [parts(f"request {i}", row, 3) for i, row in enumerate(rows)]
    names = [str(who) for who, _, _ in rows] if adapters is None else [str(name) for name in adapters]
    if len(names) != len(rows):
        raise LoracleError(f"there are {len(names)} adapters, and {len(rows)} requests")
    requests, notes = _read(rows, names)
    return Diagram(_svg(requests, notes, title), titled(title, _lines(requests, notes)))


def _read(rows: Sequence[Chain], names: Sequence[str]) -> tuple[list[tuple[str, list[Block]]], list[str]]:
    """Return each request's blocks, and what is wrong with their keys."""
    numbers: dict[Hashable, int] = {}
    contents: dict[Hashable, tuple[str, tuple[str, ...]]] = {}
    notes, requests = [], []
    for (who, words, keys), name in zip(rows, names, strict=True):
        if len(words) != len(keys):
            raise LoracleError(f"{who} has words of {len(words)} blocks, and {len(keys)} keys")
        earlier, blocks = set(numbers), []
        for i, key in enumerate(keys):
            if not isinstance(key, Hashable):
                raise LoracleError(f"the key of block {i} of {who} is a {type(key).__name__}, which cannot be hashed")
            number = numbers.setdefault(key, len(numbers))
            content = name, tuple(words[: i + 1])
            first = contents.setdefault(key, content)
            if first != content:
                notes.append(_one_key_for_two(letter(number), first[0], name))
            blocks.append(Block(shorten(words[i], WORDS), number, key in earlier, first != content))
        requests.append((shorten(who, NAME), blocks))
    return requests, notes


def _one_key_for_two(key: str, first: str, second: str) -> str:
    """Return in what the contents differ."""
    if first != second:
        return f"key {key} is the key of a block of {first}, and of a block of {second}"
    return f"key {key} is the key of two blocks of {first} with other words in them or before them"


def letter(key: int) -> str:
    """Return the name of a key: A, B, ... Z, AA, AB, ..."""
    return (letter(key // 26 - 1) if key >= 26 else "") + chr(ord("A") + key % 26)


def _lines(requests: Sequence[tuple[str, Sequence[Block]]], notes: Sequence[str]) -> list[str]:
    beside = max([0, *(cell_len(who) for who, _ in requests)])
    lines = []
    for who, blocks in requests:
        line = aligned(who, beside) + "  "
        for i, block in enumerate(blocks):
            words = f"[{'!' if block.wrong else ''}{block.letter}{'=' if block.hit else ':'} {block.words}]"
            piece = (" -> " if i else "") + words
            if i and cell_len(line + piece) > WIDTH:
                lines.append(line)
                line = " " * beside + " "
            line += piece
        lines.append(line.rstrip())
    if requests:
        lines.append(": computed   = found in the cache")
    for note in at_most(notes):
        lines += wrapped(f"! {note}")
    return lines


def _svg(requests: Sequence[tuple[str, Sequence[Block]]], notes: Sequence[str], title: str) -> str:
    canvas = Canvas(title)
    begin = MARGIN + max([0.0, *(text_width(who, SIZE, True) for who, _ in requests)]) + 12
    captions = [words for _, blocks in requests for block in blocks for words in (block.words, _caption(block))]
    wide, high = 16 + max([0.0, *(text_width(words, SIZE) for words in captions)]), 44
    y = canvas.height + 4
    for who, blocks in requests:
        canvas.text((MARGIN, y + high / 2 + 4), who, bold=True)
        for i, block in enumerate(blocks):
            box = Box(begin + i * (wide + GAP), y, wide, high)
            canvas.box(box, colour(block.key), 0.12 if block.hit else FAINT, dashed=block.hit, wrong=block.wrong)
            canvas.text((box.x + 8, y + 18), block.words)
            canvas.text((box.x + 8, y + 35), _caption(block))
            if i:
                canvas.arrow([(box.x - GAP + 2, y + high / 2), (box.x - 3, y + high / 2)])
        y += high + 16
    canvas.notes(notes)
    return canvas.svg()


def _caption(block: Block) -> str:
    return f"{'! ' if block.wrong else ''}key {block.letter}, {'found' if block.hit else 'computed'}"
