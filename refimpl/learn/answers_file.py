"""A lab's file of answers: lines of `name = answer`, and comments from # on."""

from pathlib import Path


def read_answers(file: Path) -> dict[str, str]:
    """Return name -> answer of every line that has both; none where there is no such file."""
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    pairs = (line.partition("#")[0].partition("=") for line in lines)
    return {name.strip(): " ".join(answer.split()) for name, _, answer in pairs if name.strip() and answer.strip()}
