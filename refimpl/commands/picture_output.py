"""Pixels -> what a person sees: a PNG file by Pillow, or half blocks of letters in a terminal."""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.segment import Segment
from rich.segment import Segments as SegmentLines
from rich.style import Style

from ..errors import LoracleError
from .scenes import Pixels

GAP = 2  # columns between two pictures
UPPER_HALF = "▀"  # its letter is the upper of two pixels, its background the lower one


def import_pillow() -> Any:
    """Return PIL; LoracleError with the command that installs it."""
    try:
        import PIL.Image
        import PIL.PngImagePlugin
    except ImportError:
        raise LoracleError("PNG files are written by Pillow: pip install 'loracle[pictures]'") from None
    return PIL


def png(pixels: Pixels, zoom: int = 1, about: Mapping[str, str] | None = None) -> bytes:
    """Return a PNG file in which every pixel is a square of zoom * zoom; `about` are its texts, by key."""
    pillow, stream = import_pillow(), io.BytesIO()
    texts = pillow.PngImagePlugin.PngInfo()
    for key, text in (about or {}).items():
        texts.add_itxt(key, text)
    image = pillow.Image.fromarray(pixels.repeat(zoom, 0).repeat(zoom, 1))
    image.save(stream, "PNG", optimize=True, pnginfo=texts)
    return stream.getvalue()


def data_uri(pixels: Pixels) -> str:
    """Return a picture as an address that a page can hold."""
    return f"data:image/png;base64,{base64.b64encode(png(pixels)).decode()}"


def can_show(console: Console, width: int = 48) -> bool:
    """Return whether the console is a terminal of colours in which a picture of this width finds room."""
    return console.is_terminal and console.color_system is not None and console.width >= width


def show_pictures(console: Console, pictures: Sequence[tuple[str, Pixels]]) -> None:
    """Print pictures under their names, as many beside each other as there is room for."""
    for row in rows_of(pictures, console.width):
        names = (name[: pixels.shape[1]].ljust(pixels.shape[1]) for name, pixels in row)
        console.print((" " * GAP).join(names).rstrip(), style="bold", highlight=False, markup=False)
        console.print(SegmentLines(half_blocks([pixels for _, pixels in row])), end="")
        console.print()


def rows_of(pictures: Sequence[tuple[str, Pixels]], width: int) -> Iterator[Sequence[tuple[str, Pixels]]]:
    """Yield as many pictures at a time as stand beside each other in so many columns; one at least."""
    start = 0
    while start < len(pictures):
        stop, used = start + 1, pictures[start][1].shape[1]
        while stop < len(pictures) and used + GAP + pictures[stop][1].shape[1] <= width:
            used += GAP + pictures[stop][1].shape[1]
            stop += 1
        yield pictures[start:stop]
        start = stop


def half_blocks(pictures: Sequence[Pixels]) -> Iterator[Segment]:
    """Yield pictures of an even height beside each other: a letter is two pixels, one above the other."""
    for y in range(0, max(pixels.shape[0] for pixels in pictures), 2):
        for i, pixels in enumerate(pictures):
            if i:
                yield Segment(" " * GAP)
            for upper, lower in zip(*pixels[y : y + 2].tolist(), strict=True):
                yield Segment(UPPER_HALF, Style(color=hexadecimal(upper), bgcolor=hexadecimal(lower)))
        yield Segment.line()


def hexadecimal(colour: Sequence[int]) -> str:
    """Return red, green and blue as #rrggbb."""
    return "#{:02x}{:02x}{:02x}".format(*colour)
