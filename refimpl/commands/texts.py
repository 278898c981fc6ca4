"""Text of a request -> token ids: by the tokenizer and the chat template of its adapter, where it brings others.

An adapter that was trained with more tokens, or with another template, has them beside its weights (tokenizer.json,
chat_template.jinja). With the base's, its prompts would be cut in other places, without an error.
"""

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import tiny
from ..errors import AdapterWarning, DataError
from ..loading.diagnostics import Diagnostics, shown
from ..loading.files_beside import ADDED
from ..loading.json_file import read_json
from ..loading.tokenizer_file import load_tokenizer
from ..tokenizer import Tokenizer
from ..training.chat import ChatTemplate, load_chat_template, template_of
from ..weights import Model


class Texts:
    """What turns the text of each request into ids. A tokenizer is loaded when a text first needs it."""

    def __init__(self, model: Model, chat: bool = False) -> None:
        """chat: the text of a prompt is what a user says, and is put into the template."""
        self.model, self.chat = model, chat
        self._others: dict[Path, Tokenizer | None] = {}
        self._said: set[str] = set()

    def tokenizer(self, folders: Mapping[str, Path]) -> Tokenizer:
        """Return the tokenizer for a request of these adapters (name -> folder): the base's, or the only other one."""
        tokenizers = {name: self._beside(name, folder) for name, folder in folders.items()}
        others = {name: tokenizer for name, tokenizer in tokenizers.items() if tokenizer}
        if len({_written(tokenizer) for tokenizer in others.values()}) > 1:
            self._warn(f"{' and '.join(others)} have tokenizers of their own that differ: texts are cut by the base's")
            return self.model.tokenizer
        return next(iter(others.values()), self.model.tokenizer)

    def ids(self, row: Mapping[str, Any], folders: Mapping[str, Path]) -> tuple[str | None, Sequence[int]]:
        """Return what one of prompt, prompt_ids and messages stands for: its text, if it has one, and its ids."""
        if "prompt_ids" in row:
            return None, row["prompt_ids"]
        tokenizer = self.tokenizer(folders)
        template, name = own_template(folders)
        if "messages" in row or self.chat:
            messages = row["messages"] if "messages" in row else [{"role": "user", "content": row["prompt"]}]
            template = template or template_of(self.model.tokenizer)
            if template is None:
                raise DataError(f"messages need a chat template, and {self.model.tokenizer.file.parent} has none")
            text = template.prompt(messages)
            return text, self._checked(tokenizer.encode_with_offsets(text)[0], tokenizer)
        text = row["prompt"]
        if template and not any(token in text for token in template.special_tokens.values()):
            self._warn(f"{name} has a chat template, and its prompt is given to it as it is: --chat puts it in")
        return text, self._checked(tokenizer.encode(prompt_text(self.model, text)), tokenizer)

    def _checked(self, ids: list[int], tokenizer: Tokenizer) -> list[int]:
        """The ids, with a warning if they begin with the beginning twice."""
        beginnings = {self.model.config.bos_token_id, *tokenizer.encode("")[:1]}
        if len(ids) > 1 and ids[0] == ids[1] and ids[0] in beginnings:
            self._warn(
                f"a prompt begins with BOS twice ({ids[0]} {ids[1]}): the text has it, and the tokenizer adds it"
            )
        return ids

    def _beside(self, name: str, folder: Path) -> Tokenizer | None:
        if folder not in self._others:
            self._others[folder] = own_tokenizer(folder, self.model.tokenizer)
            for note in about_tokenizer(folder, self._others[folder], self.model.tokenizer):
                self._warn(f"{name}: {note}")
        return self._others[folder]

    def _warn(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            warnings.warn(text, AdapterWarning, stacklevel=2)


def own_tokenizer(folder: Path, base: Tokenizer) -> Tokenizer | None:
    """Return the tokenizer of an adapter's folder, if it has one that is not the base's. ConfigError if damaged."""
    if not os.path.exists(folder / "tokenizer.json"):
        return None
    tokenizer = load_tokenizer(folder)
    return None if base.inner is not None and _written(tokenizer) == _written(base) else tokenizer


def about_tokenizer(folder: Path, other: Tokenizer | None, base: Tokenizer) -> list[str]:
    """Return what is remarkable about the tokens that an adapter brings along, in sentences for its owner."""
    base_ids = {} if base.inner is None else base.inner.get_vocab(with_added_tokens=True)
    if other is not None:
        ids = other.inner.get_vocab(with_added_tokens=True)
        moved = [
            token
            for token in sorted(ids, key=lambda token: ids[token])
            if token in base_ids and base_ids[token] != ids[token]
        ]
        news = [f"gives other ids to {len(moved)} tokens, as {shown(moved[0])}"] if moved else []
        if more := sorted((i, token) for token, i in ids.items() if token not in base_ids):
            news.append(f"adds {len(more)} tokens, as {shown(more[0][1])} ({more[0][0]})")
        what = " and ".join(news) or "has other rules"
        return [f"texts go through the adapter's own tokenizer.json, which {what}"]
    if not os.path.exists(folder / ADDED) or os.path.exists(folder / "tokenizer.json"):
        return []
    added = read_json(folder / ADDED, Diagnostics()) or {}
    unknown = [token for token in added if token not in base_ids and "pad" not in token.lower()]
    what = f"{ADDED} adds {shown(unknown[:3])}, which the base's tokenizer does not know, and has no tokenizer.json"
    return [f"{what}: a text with them is cut otherwise than in training"] if unknown else []


def own_template(folders: Mapping[str, Path]) -> tuple[ChatTemplate | None, str]:
    """Return the chat template of the only adapter that has one, and that one's name."""
    templates = {name: load_chat_template(folder) for name, folder in folders.items() if os.path.isdir(folder)}
    pairs = [(template, name) for name, template in templates.items() if template is not None]
    return pairs[0] if len(pairs) == 1 else (None, "")


def prompt_text(model: Model, text: str) -> str:
    """Return a prompt as the model knows prompts: those of the embedded one end with a new line."""
    embedded = model.tokenizer.file.parent == tiny.base_path()
    return text + "\n" if embedded and not text.endswith("\n") else text


def _written(tokenizer: Tokenizer) -> str:
    """A tokenizer as JSON, to compare it with others: the library's own, its keys in order."""
    return json.dumps(json.loads(tokenizer.inner.to_str()), sort_keys=True)
