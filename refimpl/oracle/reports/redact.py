"""What is written to files that people send to each other: without keys, tokens and passwords."""

import os
import re
from typing import Any

HIDDEN = "(not stored)"
# "token" alone is a word of every answer, and token_ids are what this is all about.
_SECRET_NAME = re.compile(
    r"(?i)((^|[-_])(api[-_]?)?key|[-_]token|secret|password|passwd|authorization|credentials?)([-_](env|file))?$"
)
# Every part is bounded, or a long text of nothing but beginnings would take time in the square of its length.
_USER_IN_URL = re.compile(r"(?i)([a-z][a-z0-9+.-]{0,15}://)[^/\s@]{0,500}@")
_QUERY = re.compile(r"(?i)([a-z][a-z0-9+.-]{0,15}://[^\s?#'\"]{0,500})\?[^\s#'\"]*")
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[a-z0-9._~+/=-]{6,}")
_SHORTEST = 8  # of a value of the environment that is looked for elsewhere: "1" is in every text


def is_secret(name: str) -> bool:
    """Is what has this name a secret: a key, a token, a password?"""
    return bool(_SECRET_NAME.search(name))


def without_secrets(data: Any) -> Any:
    """Return the same JSON value: what secret names have is gone, in texts URLs lose users and queries, and what the
    environment holds under a secret name is gone wherever it stands."""
    if isinstance(data, dict):
        return {k: HIDDEN if isinstance(k, str) and is_secret(k) and v else without_secrets(v) for k, v in data.items()}
    if isinstance(data, list | tuple):
        return [without_secrets(x) for x in data]
    return clean(data) if isinstance(data, str) else data


def clean(text: str) -> str:
    """Return the text without users and queries of URLs, bearer tokens, and secrets of the environment."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and is_secret(name):
            text = text.replace(value, HIDDEN)
    text = _USER_IN_URL.sub(r"\1", text)
    text = _QUERY.sub(r"\1", text)
    return _BEARER.sub(rf"\1 {HIDDEN}", text)
