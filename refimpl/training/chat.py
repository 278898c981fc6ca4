"""A model's chat template: messages -> the text that it was trained on, and where in it the assistant speaks.

Templates are Jinja, written for transformers (utils/chat_template_utils.py): the same variables, in a sandbox, because
they come with other people's models. transformers finds the assistant's words by {% generation %} marks, which few
templates have. Here they are what a message adds to the text before it: right for every template that only appends.
"""

import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from ..errors import ConfigError, DataError
from ..loading.diagnostics import Diagnostics, one_line, shown
from ..loading.gguf_config import vocabulary
from ..loading.gguf_file import is_gguf
from ..loading.gguf_parts import open_gguf
from ..loading.json_file import read_json
from ..tokenizer import Tokenizer

GGUF_NAMES = {"unknown": "unk", "padding": "pad"}  # where transformers calls the token otherwise

Span = tuple[int, int]  # of characters: [start, stop)


class _Refused(Exception):
    """What a template itself says against the messages, by raise_exception."""


@dataclass(frozen=True)
class ChatTemplate:
    """A template, and the special tokens that it may name (bos_token, eos_token, ...)."""

    source: str
    special_tokens: Mapping[str, str] = field(default_factory=dict)

    def render(self, messages: list[Any]) -> tuple[str, list[Span]]:
        """Return the text, and the span of each of the assistant's messages in it.

        A span begins after the header that serving ends a prompt with (add_generation_prompt). DataError for messages
        that are none, that the template refuses, or whose text changes when another message follows."""
        check_messages(messages)
        text = self._text(messages)
        spans = []
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._text(messages[:i], add_generation_prompt=True)
            after = self._text(messages[: i + 1])
            if not (after.startswith(before) and text.startswith(after)):
                raise DataError(
                    f"message {i + 1} is rendered otherwise when other messages follow it, or when it is being "
                    "answered: the chat template does not only append; give each answer a row of its own"
                )
            spans.append((len(before), len(after)))
        if not spans:
            raise DataError("no message has the role assistant: there is nothing to learn in it")
        return text, spans

    def prompt(self, messages: list[Any]) -> str:
        """Return the text that the assistant's next message follows, as it is served. DataError as for render.

        It holds its special tokens itself: `tokenizer.encode_with_offsets` adds none."""
        check_messages(messages)
        return self._text(messages, add_generation_prompt=True)

    def _text(self, messages: list[Any], add_generation_prompt: bool = False) -> str:
        variables = {**self.special_tokens, "messages": messages, "add_generation_prompt": add_generation_prompt}
        try:
            return str(self._template.render(variables))
        except DataError:
            raise
        except Exception as error:  # a template is a program of somebody else's, and raises what it likes
            raise DataError(one_line(f"the chat template cannot render it ({error})")) from None

    @cached_property
    def _template(self) -> Any:
        import jinja2
        from jinja2 import nodes
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        class Generation(Extension):
            """{% generation %} ... {% endgeneration %}: what stands in it, unchanged."""

            tags = {"generation"}  # noqa: RUF012

            def parse(self, parser: Any) -> Any:
                line = next(parser.stream).lineno
                body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
                return nodes.Scope(body, lineno=line)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
        )
        environment.filters["tojson"] = to_json
        environment.globals["raise_exception"] = refuse
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        try:
            return environment.from_string(self.source)
        except jinja2.TemplateError as error:
            raise DataError(one_line(f"the chat template is no Jinja ({error})")) from None


def to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    """Return JSON as transformers' tojson writes it: letters as they are, and nothing escaped for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)


def refuse(reason: str) -> NoReturn:
    """Say, from inside a template, why it does not take these messages."""
    raise _Refused(reason)


def check_messages(messages: list[Any]) -> None:
    """DataError unless each message is an object with a role and a content, both of them text."""
    for i, message in enumerate(messages, 1):
        if not isinstance(message, dict):
            raise DataError(f"message {i} is {shown(message)}, not an object with role and content")
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                what = f"is {shown(message[key])}" if key in message else "is missing"
                raise DataError(f"message {i}: {key} {what}: it must be a string")


def load_chat_template(base: Path) -> ChatTemplate | None:
    """Return the template of a base, a folder or a GGUF file, or None if it has none.

    In a folder it is chat_template.jinja, or else chat_template in tokenizer_config.json: of several, the one named
    default. In a GGUF file it is tokenizer.chat_template. ConfigError for files that are damaged."""
    if is_gguf(base):
        return _of_gguf(base)
    file = base / "tokenizer_config.json"
    settings: dict[str, Any] = {}
    if file.exists():
        diagnostics = Diagnostics()
        settings = read_json(file, diagnostics) or {}
        diagnostics.raise_first(ConfigError, base)
    source = settings.get("chat_template")
    if isinstance(source, list):
        named = [item for item in source if isinstance(item, dict) and item.get("name") == "default"]
        source = named[0].get("template") if named else None
    if (jinja := base / "chat_template.jinja").exists():
        try:
            source = jinja.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(one_line(f"{jinja}: cannot be read ({error})")) from None
    return _checked(file, source, special_tokens_of(settings))


def template_of(tokenizer: Tokenizer) -> ChatTemplate | None:
    """Return the template of the base that a tokenizer came with, or None if it has none."""
    file = tokenizer.file
    return load_chat_template(file if is_gguf(file) else file.parent)


def _of_gguf(path: Path) -> ChatTemplate | None:
    """Its special tokens are ids there: tokenizer.ggml.bos_token_id and its kind."""
    diagnostics = Diagnostics()
    file = open_gguf(path, diagnostics)
    diagnostics.raise_first(ConfigError, path)
    assert file is not None  # None comes with a problem
    tokens, special = vocabulary(file), {}
    for name in ("bos", "eos", "unknown", "padding"):
        i = file.metadata.get(f"tokenizer.ggml.{name}_token_id")
        if isinstance(i, int) and 0 <= i < len(tokens) and isinstance(tokens[i], str):
            special[f"{GGUF_NAMES.get(name, name)}_token"] = tokens[i]
    return _checked(path, file.metadata.get("tokenizer.chat_template"), special)


def _checked(file: Path, source: object, special_tokens: Mapping[str, str]) -> ChatTemplate | None:
    if source is None:
        return None
    if not isinstance(source, str):
        raise ConfigError(f"{file}: chat_template is {shown(source)}: it must be a string")
    return ChatTemplate(source, special_tokens)


def special_tokens_of(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return bos_token and its kind: each a string, or an object whose content it is."""
    tokens = {}
    for key, value in settings.items():
        text = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(text, str):
            tokens[key] = text
    return tokens
