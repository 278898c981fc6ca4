"""Every known bug in pictures: how far off is the velocity, and how many pixels are others after some steps?

    python benchmarks/picture_bugs.py                the embedded model and its styles
    python benchmarks/picture_bugs.py --synthetic    a random model and adapters that have all that a bug needs

Writes results/picture_bugs.json and .md. In float64; velocities as refimpl/oracle/pictures/verdict.py compares them,
pixels as `draw` returns them. A mutant that does not show stands at the end, with the reason.
"""
# ruff: noqa: E402  (the tests are no package: their folder comes first)

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the matrices are small
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import numpy as np
from support.picture_bugs import batch

from refimpl import (
    PictureModel,
    PictureRequest,
    Precision,
    draw,
    load_model,
    load_picture_adapter,
    load_picture_model,
    read_captions,
    tiny,
)
from refimpl.errors import LoracleError
from refimpl.loading.embedded import STYLES
from refimpl.ops import NUMPY
from refimpl.oracle.bugs import NEEDS, all_mutants, llama_mutants
from refimpl.oracle.pictures import all_picture_bugs
from refimpl.oracle.pictures.bugs import NEEDS as PICTURE_NEEDS
from refimpl.oracle.pictures.bugs import Setup
from refimpl.oracle.pictures.verdict import distance, velocities
from refimpl.oracle.pictures.zoo import cannot_show

RESULTS = ROOT / "benchmarks" / "results" / "picture_bugs"
EXACT = Precision("model", "float64")
SHOWN = 1e-9  # relative error of a velocity from which on a bug is one: float64 rounds at 1e-15
STEPS, SIDE = 4, 24  # of each picture of the embedded model; 12 steps of 48 pixels take ten times as long

Batch = tuple[PictureModel, Sequence[PictureRequest]]


def embedded() -> Batch:
    """The embedded model: a scene in each style, in none, in a sum of two, and in one style at two weights."""
    model = load_picture_model("tiny", "float64")
    first, second, *others = (load_picture_adapter(name, model.config) for name in STYLES)
    choices = (first, None, [(second, 0.6)], [(first, 0.7), (second, -0.4)], *others, [(first, 0.3)])
    prompts = [prompt + "\n" for prompt in (tiny.DEMO_PROMPTS * len(choices))[: len(choices)]]
    captions = read_captions(load_model("tiny", "float64"), prompts, precision=EXACT)
    return model, [
        PictureRequest(x, choice, i, STEPS) for i, (x, choice) in enumerate(zip(captions, choices, strict=True))
    ]


def synthetic() -> Batch:
    """The tests' batch, in which each bug shows."""
    model, _, requests = batch()
    return model, requests


def setups(
    model: PictureModel, requests: Sequence[PictureRequest], names: Sequence[str]
) -> dict[str, tuple[Setup | None, str, str]]:
    """Bug -> (what its engine draws; None: nothing of a picture can show it), what it is, what it needs."""
    pictures = {name: bug for name, bug in all_picture_bugs().items() if name in names}
    mutants = {name: mutant for name, mutant in all_mutants().items() if name in names}
    return {name: (bug.make(model, requests), bug.what, PICTURE_NEEDS[bug.needs]) for name, bug in pictures.items()} | {
        name: ((model, requests, mutant.make()) if not cannot_show(mutant) else None, mutant.what, NEEDS[mutant.needs])
        for name, mutant in mutants.items()
    }


def measure(model: PictureModel, requests: Sequence[PictureRequest], names: Sequence[str]) -> list[dict[str, Any]]:
    """One row for each bug of these names: the worst picture's velocity, the share of other pixels, and
    their largest difference."""
    right, pixels, rows = velocities(model, requests), draw(model, requests, NUMPY, EXACT), []
    for name, (setup, what, needs) in setups(model, requests, names).items():
        row: dict[str, Any] = {"bug": name, "what": what}
        if setup is None:
            rows.append(row | {"why_not": cannot_show(all_mutants()[name])})
            continue
        try:
            with np.errstate(all="ignore"):
                error = distance(velocities(*setup), right, right)
                base, batch_of_it, ops = setup
                wrong = draw(base, batch_of_it, ops, EXACT) if error > SHOWN else pixels
        except LoracleError as refused:
            rows.append(row | {"why_not": f"it cannot be overlooked: {refused}"})
            continue
        if error <= SHOWN:
            rows.append(row | {"why_not": f"this batch does not have what it needs: {needs}"})
            continue
        pairs = zip(wrong, pixels, strict=True)
        differences = [np.abs(one.astype(int) - another).max(axis=2) for one, another in pairs]
        changed = np.concatenate([difference.ravel() for difference in differences])
        row |= {"velocity": float(f"{error:.3g}"), "pixels": round(float((changed > 0).mean()), 4)}
        rows.append(row | {"largest": int(changed.max())})
    return rows


def page(about: str, rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a page: what shows, by the size of its error, then what does not."""
    shown = sorted((row for row in rows if "velocity" in row), key=lambda row: -row["velocity"])
    others = [row for row in rows if "velocity" not in row]
    table = [
        f"| `{row['bug']}` | {row['velocity']:.2g} | {100 * row['pixels']:.1f} % | {row['largest']} | {row['what']} |"
        for row in shown
    ]
    reasons = [f"| `{row['bug']}` | {row['why_not']} |" for row in others]
    return "\n".join(
        [
            "# Known bugs in pictures",
            f"Written by `python benchmarks/picture_bugs.py`; {about}.",
            "*Velocity*: rms error of the worst picture at its first step, of the rms of the right one. *Pixels*: how",
            "many of all are others when the pictures are done, rounded to bytes; *largest*: by how much, of 255.",
            "",
            f"{len(shown)} of {len(rows)} show.",
            "",
            "| bug | velocity | pixels | largest | what |",
            "|---|---:|---:|---:|---|",
            *table,
            "",
            "## What does not show, and why",
            "",
            "| bug | why |",
            "|---|---|",
            *reasons,
            "",
        ]
    )


def main() -> None:
    """Measure, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--synthetic", action="store_true", help="a random model instead of the embedded one")
    args = parser.parse_args()
    model, requests = synthetic() if args.synthetic else embedded()
    which = "synthetic" if args.synthetic else "embedded"
    rows = measure(model, requests, [*all_picture_bugs(), *llama_mutants()])
    about = f"{len(requests)} pictures of the {which} model in one batch, float64"
    RESULTS.with_suffix(".json").write_text(json.dumps({"model": which, "about": about, "rows": rows}, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text(page(about, rows))


if __name__ == "__main__":
    main()
