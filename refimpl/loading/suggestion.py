"""The name that somebody may have meant, for the end of an error."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """Return '; did you mean NAME?' with the nearest of the names, or "" if none is near.

    cutoff: how near, from 0 to 1, which is the name itself."""
    nearest = difflib.get_close_matches(name, list(names), n=1, cutoff=cutoff)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""
