"""The name that somebody may have meant, for the end of an error."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return '; did you mean NAME?' with the nearest of the names, or "" if none is near."""
    nearest = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""
