"""Stories beside their pictures, as one page that stands alone: no script, and nothing is loaded from anywhere."""

import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from ..errors import LoracleError
from .picture_output import data_uri
from .scenes import Scene


def page(title: str, scenes: Sequence[Scene], figures: Sequence[tuple[str, str]] = ()) -> str:
    """Return the page as HTML; figures: what was measured, as (heading, text)."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    env = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters["data_uri"] = data_uri
    return env.get_template("picture_page.html.j2").render(title=title, scenes=scenes, figures=figures)


def write(file: Path, text: str) -> None:
    """Write the page, over an older one; LoracleError where that cannot be done, and the older one stays as it was."""
    scratch = file.absolute().parent / f".{file.name}-{secrets.token_hex(4)}"
    try:
        scratch.write_text(text, "utf-8", newline="")
        os.replace(scratch, file)
    except OSError as error:
        raise LoracleError(f"--html {file}: cannot be written ({error.strerror})") from None
    finally:
        scratch.unlink(missing_ok=True)
