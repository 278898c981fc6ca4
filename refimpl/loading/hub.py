"""Names on the Hugging Face Hub, and the folders of its cache: nothing is ever downloaded here."""

import os
import re
from pathlib import Path

REPOSITORY = re.compile(
    r"(?:(?:https?:/+(?:www\.)?(?:huggingface\.co|hf\.co)|hf:/)/)?([\w-][\w.-]*/[\w.-]+)(?:/tree/.*)?/?"
)
CACHED = re.compile(r"models--(.+)")


def hub_id(path: Path) -> str | None:
    """What to do, if a path that is not there may be the name of a repository."""
    match = None if os.path.exists(path) else REPOSITORY.fullmatch(str(path))
    return f"nothing is downloaded here: hf download {match[1]} --local-dir DIR, and give DIR" if match else None


def hub_snapshots(folder: Path) -> list[str]:
    """The snapshots of a folder of the Hub's cache, models--OWNER--NAME or one below it, the one of main last."""
    root = folder.parent if folder.name in ("snapshots", "refs", "blobs") else folder
    paths = [path for path in (root / "snapshots").glob("*") if path.is_dir()]
    try:
        main = (root / "refs" / "main").read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        main = ""
    return [str(path) for path in sorted(paths, key=lambda path: (path.name == main, path.name))]


def cached_name(path: Path) -> str:
    """OWNER/NAME, for a snapshot in the Hub's cache; "" for any other folder."""
    for piece in reversed(Path(os.path.abspath(path)).parts):
        if match := CACHED.fullmatch(piece):
            return match[1].replace("--", "/")
    return ""
