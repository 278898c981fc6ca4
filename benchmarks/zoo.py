"""Which mutants of the zoo would have been caught, and by whom: recipes of other engines' tests, and our campaign.

    python benchmarks/zoo.py [--work DIR] [--only ours|recipes]      half an hour on two cores; DIR keeps what is done

writes results/zoo.json, zoo.md and zoo.svg. recipes.py has the recipes, standard.py the campaign.
"""

import argparse
import dataclasses
import json
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the matrices are small

import recipes
import standard

from refimpl.ops import NUMPY, REFERENCE
from refimpl.oracle.mutants import Mutant, all_mutants
from refimpl.oracle.verdict import Limits

RESULTS = Path(__file__).parent / "results" / "zoo"
DTYPES = ("float32", "float16", "bfloat16")
Table = dict[str, Any]


def main() -> None:
    """Measure what is not measured yet, and write all three files when nothing is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="keep each result here, and go on from there")
    parser.add_argument("--only", choices=["ours", "recipes"])
    args = parser.parse_args()
    kept = Kept(args.work or Path(tempfile.mkdtemp()))
    if args.only != "ours":
        by_recipes(kept)
    if args.only != "recipes":
        for dtype in DTYPES:
            by_us(kept, dtype)
    if args.only is None:
        write(kept)


class Kept:
    """One JSON file for each thing that was measured."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, name: str, measure: Any) -> Any:
        """What is there, or what `measure()` says, which is kept."""
        file = self.folder / f"{name}.json"
        if not file.exists():
            found = measure()
            file.write_text(json.dumps(found), "utf-8")
            print(name, json.dumps(found), flush=True)
        return json.loads(file.read_text("utf-8"))


def by_recipes(kept: Kept) -> None:
    """Clean tables first: a recipe that fails those says nothing."""
    for name, recipe in recipes.RECIPES.items():
        for table, ops in (("numpy", NUMPY), ("reference", REFERENCE)):
            if kept.get(f"clean {table}, {name.replace('/', ' ')}", lambda r=recipe, o=ops: r(lambda: o)):
                raise SystemExit(f"{name} fails the clean table {table}")
    for mutant in all_mutants().values():
        kept.get(
            f"recipes {mutant.name}",
            lambda m=mutant: {name: recipe(m.make) for name, recipe in recipes.RECIPES.items()},
        )


def by_us(kept: Kept, dtype: str) -> None:
    """The limits of the clean table, which must pass; then every mutant."""
    stages = standard.all_settings(dtype)

    def clean(number: int) -> Table:
        known, failed = standard.most_lenient(stages[number])
        return {"limits": dataclasses.asdict(known), "not passed": failed}

    learnt = [kept.get(f"limits {dtype} {i}", lambda i=i: clean(i)) for i in range(standard.STAGES)]
    known = [Limits(**x["limits"]) for x in learnt]
    for mutant in all_mutants().values():
        kept.get(f"ours {dtype} {mutant.name}", lambda m=mutant: found_as_json(standard.search(stages, known, m.make)))
    for name, ops in (("numpy", NUMPY), ("reference", REFERENCE)):
        kept.get(f"clean {name}, ours, {dtype}", lambda o=ops: found_as_json(standard.search(stages, known, lambda: o)))


def found_as_json(found: standard.Found | None) -> Table | None:
    """None: not found out."""
    return None if found is None else dataclasses.asdict(found)


def write(kept: Kept) -> None:
    raise SystemExit("later")


if __name__ == "__main__":
    main()
