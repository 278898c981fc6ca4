"""Draws docs/demo.svg: what `loracle demo` prints, as a picture. Run it after the embedded model has changed."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import io
from pathlib import Path

from rich.console import Console

from refimpl.commands import demo

parser = argparse.ArgumentParser()
demo.add_arguments(parser)
args = parser.parse_args()
console = Console(record=True, width=118, file=io.StringIO())
demo.present(console, args)
console.save_svg(str(Path(__file__).parent / "demo.svg"), title="loracle demo")
