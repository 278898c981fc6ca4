"""loracle draw: pictures of scenes, each in its own style, and their stories, each in its own voice."""

import argparse
from pathlib import Path

from .common import add_device_arguments

HELP = "draw pictures: prompts in any mix of styles in one batch, and on request their stories in any mix of voices"
EXAMPLE = """  loracle draw --style ink --style 'ink*0.7+night*0.3' --out drawn \\
    --prompt 'Rain drums on the haunted bakery. Here the traveller meets Dumpling, ...'
  loracle draw --style watercolour --voice pirate --html page.html --prompt '...'       the story as well"""

STEPS, ZOOM, TOKENS, TEMPERATURE = 12, 8, 128, 0.8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of draw."""
    add = parser.add_argument
    add("--prompt", action="append", default=[], metavar="TEXT", help="what to draw; again for more, in one batch")
    add(
        "--style",
        action="append",
        default=[],
        metavar="NAME",
        help="base (default), ink, night, blueprint, watercolour, or ink*0.7+night*0.3, which sums them; again for "
        "more: every prompt in every style",
    )
    add(
        "--voice",
        action="append",
        default=[],
        metavar="NAME",
        help="tell the story as well: base, pirate, bard, robot, merchant, or a sum of them; again for more",
    )
    add("--seed", type=int, default=0, metavar="S", help="of the noise that every picture begins as (default 0)")
    add("--steps", type=int, default=STEPS, metavar="N", help=f"from noise to picture (default {STEPS})")
    add("--max-new-tokens", type=int, default=TOKENS, metavar="N", help=f"of a story (default {TOKENS})")
    add("--temperature", type=float, default=TEMPERATURE, metavar="T", help=f"of a story (default {TEMPERATURE})")
    add("--base", default="tiny", metavar="DIR", help="another picture model, as diffusers saves it (default: tiny)")
    add(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="a style of yours, a .safetensors file or its folder (diffusers, kohya), and the name to call it by; "
        "again for more",
    )
    add("--out", type=Path, metavar="DIR", help="a new folder: a PNG for each picture, a text for each story")
    add("--zoom", type=int, default=ZOOM, metavar="N", help=f"a pixel is N x N of the PNG (default {ZOOM})")
    add("--html", type=Path, metavar="FILE", help="one page: stories beside pictures; a file of that name is replaced")
    add_device_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Draw everything, or nothing."""
    from . import draw_run  # the models of pictures, which no other command should wait for

    return draw_run.run(args)
