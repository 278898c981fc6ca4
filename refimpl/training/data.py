"""JSONL -> Examples: token ids, and which of them the loss is taken on.

    {"prompt": "...", "completion": "..."}    the completion, and the end of sequence after it
    {"messages": [{"role": ..., "content": ...}, ...]}    what the assistant says, by the model's chat template
    {"text": "..."}    all of it, and the end of sequence

A line that cannot be learned from is an error that names it: nothing is left out, and nothing is cut, unseen.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..config import ModelConfig
from ..errors import DataError
from ..loading.diagnostics import one_line, shown
from ..loading.json_file import read_json_lines
from ..tokenizer import Tokenizer
from .chat import ChatTemplate, template_of
from .examples import Example

FORMS = (("prompt", "completion"), ("messages",), ("text",))
ACCEPTED = "{prompt, completion}, {messages} or {text}"


@dataclass(frozen=True)
class Encoder:
    """How a text of this model becomes an Example.

    max_length is the most tokens of one; a longer one is an error, or, with cut, loses its end. end_prompt completes a
    prompt as the model knows prompts, the same as when it is served. template renders messages; None: there is none."""

    tokenizer: Tokenizer
    eos_ids: tuple[int, ...]
    max_length: int
    cut: bool = False
    end_prompt: Callable[[str], str] = str
    template: ChatTemplate | None = None

    @classmethod
    def of(cls, tokenizer: Tokenizer, config: ModelConfig, max_length: int | None = None, **options: Any) -> "Encoder":
        """Return the encoder of a model, with its own chat template unless another is given.

        DataError for a max_length below 2, or above the model's positions."""
        longest = config.max_position_embeddings
        length = longest if max_length is None else max_length
        if not 2 <= length <= longest:
            raise DataError(f"max_length {length}: must be at least 2, and at most the model's {longest} positions")
        if "template" not in options:
            options["template"] = template_of(tokenizer)
        return cls(tokenizer, config.eos_token_ids, length, **options)

    @cached_property
    def tokenizer_ends(self) -> bool:
        """Return whether the tokenizer itself puts the end of sequence after every text, as few do."""
        return self.tokenizer.encode("a")[-1] in self.eos_ids


@dataclass(frozen=True)
class Dataset:
    """The Examples of one file, in its order, and what its owner should know of them."""

    examples: Sequence[Example]
    cut_lines: Sequence[str] = ()  # FILE:LINE of those that were too long
    unread_keys: frozenset[str] = field(default_factory=frozenset)  # of other programs, such as an id

    @property
    def notes(self) -> list[str]:
        """Return one sentence for each thing that was not taken as it was."""
        notes = []
        if self.cut_lines:
            lines = ", ".join(self.cut_lines[:3]) + (", ..." if len(self.cut_lines) > 3 else "")
            notes.append(
                f"{len(self.cut_lines)} of {len(self.examples)} rows were too long and lost their end: {lines}"
            )
        if self.unread_keys:
            notes.append(f"keys that are not read: {', '.join(sorted(self.unread_keys))}")
        return notes


def read_dataset(file: str | Path, encoder: Encoder) -> Dataset:
    """Return the Examples of a JSONL file. DataError, one line with FILE:LINE, for the first row that makes none."""
    rows = read_json_lines(Path(file), DataError)
    if not rows:
        raise DataError(one_line(f"{file}: holds no row; expected one JSON object a line, {ACCEPTED}"))
    examples, cut_lines, unread = [], [], set[str]()
    for where, row in rows:
        try:
            example = encode(row, encoder)
            unread |= row.keys() - form_of(row)
            shortened = within(example, encoder)
        except DataError as error:
            raise DataError(one_line(f"{where}: {error}")) from None
        if shortened is not example:
            cut_lines.append(where)
        examples.append(shortened)
    return Dataset(examples, cut_lines, frozenset(unread))


def form_of(row: dict[str, Any]) -> tuple[str, ...]:
    """Return the keys of the one form that a row has. DataError if it has none, or two."""
    forms = [form for form in FORMS if any(key in row for key in form)]
    if len(forms) != 1:
        raise DataError(f"has the keys {', '.join(map(shown, row)) or 'of none'}; expected {ACCEPTED}")
    for key in forms[0]:
        expected = list if key == "messages" else str
        if not isinstance(row.get(key), expected):
            what = f"is {shown(row[key])}" if key in row else "is missing"
            raise DataError(f"{key} {what}: it must be a {'list of messages' if expected is list else 'string'}")
    return forms[0]


def encode(row: dict[str, Any], encoder: Encoder) -> Example:
    """Return one row as an Example of any length. DataError for one that nothing can be learned from."""
    form = form_of(row)
    if form == ("messages",):
        example = from_messages(row["messages"], encoder)
    elif form == ("text",):
        example = from_text(row["text"], encoder)
    else:
        example = from_completion(encoder.end_prompt(row["prompt"]), row["completion"], encoder)
    if example.targets == 0:
        raise DataError("there is nothing to learn in it: no token after the first has a loss")
    return example


def from_text(text: str, encoder: Encoder) -> Example:
    """Return the tokens of a plain text and its end; the first has none before it to be predicted from."""
    if not text:
        raise DataError("text is empty: there is nothing to learn in it")
    ids = ended(open_ids(text, encoder), encoder)
    return Example(ids, [True] * len(ids))


def from_completion(prompt: str, completion: str, encoder: Encoder) -> Example:
    """Return the tokens of both and the end, the loss on what follows the prompt.

    DataError if a token reaches from one into the other ("A: " + "yes" is "A:", " yes" to most tokenizers): when it is
    served, the prompt comes alone, and its tokens are others than those that were learned."""
    prompt_ids = open_ids(prompt, encoder)
    ids = open_ids(prompt + completion, encoder)
    if not completion:
        raise DataError("completion is empty: there is nothing to learn in it")
    if ids[: len(prompt_ids)] != prompt_ids:
        raise DataError(
            f"one token reaches from the prompt {shown(prompt[-20:])} into the completion {shown(completion[:20])}; "
            "let the prompt end, and the completion begin, where a token does (a space belongs to the word after it)"
        )
    ids = ended(ids, encoder)
    return Example(ids, [i >= len(prompt_ids) for i in range(len(ids))])


def from_messages(messages: list[Any], encoder: Encoder) -> Example:
    """Return the tokens of a chat as its template renders it, the loss on what the assistant says."""
    if encoder.template is None:
        raise DataError(f"messages need a chat template, and {encoder.tokenizer.file.parent} has none")
    text, spans = encoder.template.render(messages)
    ids, offsets = encoder.tokenizer.encode_with_offsets(text)
    return Example(ids, [any(start <= begin < stop for start, stop in spans) for begin, _ in offsets])


def ended(ids: list[int], encoder: Encoder) -> list[int]:
    """Return the ids and the end of sequence, which a model must learn to say; without one in its config, the ids."""
    return ids if ids[-1:] and ids[-1] in encoder.eos_ids else [*ids, *encoder.eos_ids[:1]]


def open_ids(text: str, encoder: Encoder) -> list[int]:
    """Return the ids of a text that may go on: its beginning of sequence, and no end."""
    ids = encoder.tokenizer.encode(text)
    return ids[:-1] if encoder.tokenizer_ends else ids


def within(example: Example, encoder: Encoder) -> Example:
    """Return the example, less its end if it is too long and the encoder cuts; else that is a DataError."""
    length = len(example.token_ids)
    if length <= encoder.max_length:
        return example
    if not encoder.cut:
        raise DataError(
            f"has {length} tokens, {encoder.max_length} are the most: cut it (--cut), or allow more (--max-length)"
        )
    shortened = Example(example.token_ids[: encoder.max_length], example.loss_mask[: encoder.max_length])
    if shortened.targets == 0:
        raise DataError(f"of its {length} tokens the first {encoder.max_length} have no loss: cut, it teaches nothing")
    return shortened


def split(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Return (train, held_out), each in the file's order; this share of the rows, drawn by the seed, is the second.

    Equal examples stay on one side, so that nothing held out has been learned: those that are too many for what is left
    of the share are trained on. With a share above 0 there is at least one on either side. DataError if
    that cannot be, or for a share outside of [0, 1)."""
    if not 0 <= share < 1:
        raise DataError(f"the held-out share {share} must be at least 0 and below 1")
    keys = [(tuple(example.token_ids), tuple(example.loss_mask)) for example in examples]
    rows_of = Counter(keys)  # of equal examples
    if share == 0:
        return list(examples), []
    if len(rows_of) < 2:
        rows = "1 row" if len(examples) == 1 else f"{len(examples)} rows, all of them equal"
        raise DataError(f"{rows}: too few to hold any out; give the share 0 (--held-out 0)")
    distinct = list(rows_of)
    order = [distinct[i] for i in np.random.default_rng([seed, len(distinct)]).permutation(len(distinct))]
    room = round(share * len(examples))
    chosen = set[tuple[tuple[int, ...], tuple[bool, ...]]]()
    for key in order:
        if rows_of[key] <= room and len(chosen) < len(order) - 1:
            chosen.add(key)
            room -= rows_of[key]
    chosen = chosen or {min(order, key=rows_of.__getitem__)}
    train = [example for example, key in zip(examples, keys, strict=True) if key not in chosen]
    return train, [example for example, key in zip(examples, keys, strict=True) if key in chosen]
