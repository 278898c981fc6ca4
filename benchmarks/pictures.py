"""Seconds of one core for a picture: the embedded model, without and with styles, one at a time and in one batch.

    python benchmarks/pictures.py [--json FILE]

Reported are seconds of the CPU for a picture of 12 steps, the least of a few rounds: other programs lengthen those of
the wall. Reading the caption is included, loading the models is not.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy is imported

sys.path.insert(0, str(Path(__file__).parents[1]))

from refimpl import PictureRequest, draw, load_model, load_picture_adapter, load_picture_model, read_captions, tiny
from refimpl.bench.machine import about
from refimpl.loading.embedded import STYLES

ROUNDS = 3


def measure() -> dict[str, Any]:
    """Return the machine, and seconds a picture by what is drawn."""
    text_model, model = load_model("tiny"), load_picture_model("tiny")
    styles = [load_picture_adapter(name, model.config) for name in STYLES]

    def seconds(adapters: Sequence[Any]) -> float:
        start = time.process_time()
        (caption,) = read_captions(text_model, tiny.DEMO_PROMPTS[:1])
        draw(model, [PictureRequest(caption, adapter) for adapter in adapters])
        return (time.process_time() - start) / len(adapters)

    batches = {
        "one picture": [None],
        "one picture with a style": styles[:1],
        "one batch of the base and every style": [None, *styles],
    }
    least = {name: min(seconds(adapters) for _ in range(ROUNDS)) for name, adapters in batches.items()}
    return {"machine": about(), "steps": 12, "cpu_seconds_per_picture": {k: round(v, 3) for k, v in least.items()}}


def main() -> None:
    """Print the figures; write them to --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    result = measure()
    for name, seconds in result["cpu_seconds_per_picture"].items():
        print(f"{name:40} {seconds:.2f} s of one core a picture")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
