"""Which mutants of the zoo would have been caught, and by whom: recipes of other engines' tests, and our campaign.

    python -m benchmarks.zoo [--work DIR]      half an hour on two cores; DIR keeps what is done

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

from benchmarks import recipes, standard
from refimpl.ops import NUMPY, REFERENCE
from refimpl.oracle.bugs import llama_mutants
from refimpl.oracle.cases.variety import TURNS
from refimpl.oracle.noise.verdict import Thresholds

RESULTS = Path(__file__).parent / "results" / "zoo"
DTYPES = ("float32", "float16", "bfloat16")
Table = dict[str, Any]


def main() -> None:
    """Measure what is not measured yet, and write all three files when nothing is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="keep each result here, and go on from there")
    parser.add_argument("--only", choices=["recipes", *DTYPES], help="a part of it, to be kept")
    args = parser.parse_args()
    kept = Kept(args.work or Path(tempfile.mkdtemp()))
    if args.only in (None, "recipes"):
        by_recipes(kept)
    for dtype in DTYPES:
        if args.only in (None, dtype):
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
        file = self.folder / f"{name.replace('/', ' ')}.json"
        if not file.exists():
            found = measure()
            file.write_text(json.dumps(found), "utf-8")
            print(name, json.dumps(found), flush=True)
        return self.read(name)

    def read(self, name: str) -> Any:
        """What was measured; an error, if it was not."""
        return json.loads((self.folder / f"{name.replace('/', ' ')}.json").read_text("utf-8"))


def by_recipes(kept: Kept) -> None:
    """Clean tables first: a recipe that fails those says nothing."""
    for name, recipe in recipes.RECIPES.items():
        for table, ops in (("numpy", NUMPY), ("reference", REFERENCE)):
            if kept.get(f"clean {table}, {name}", lambda r=recipe, o=ops: r(lambda: o)):
                raise SystemExit(f"{name} fails the clean table {table}")
    for mutant in llama_mutants().values():
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

    learnt = [kept.get(f"limits {dtype} {i}", lambda i=i: clean(i)) for i in range(TURNS)]
    known = [Thresholds(**x["limits"]) for x in learnt]
    for mutant in llama_mutants().values():
        kept.get(f"ours {dtype} {mutant.name}", lambda m=mutant: found_as_json(standard.search(stages, known, m.make)))
    # The limits were learnt from NUMPY: they say which cases it does not pass. REFERENCE sums in another order.
    kept.get(f"clean numpy, ours, {dtype}", lambda: [case for x in learnt for case in x["not passed"]])
    kept.get(
        f"clean reference, ours, {dtype}",
        lambda: found_as_json(standard.search(stages, known, lambda: REFERENCE, rows_only=True)),
    )


def found_as_json(found: standard.Found | None) -> Table | None:
    """None: not found out."""
    return None if found is None else dataclasses.asdict(found)


# Why a mutant is not found out in some type. What is not here and survives is a hole in the campaign.
REASONS = {
    ("intermediate_in[float16]", "float16"): "no bug in this type: the intermediate may be rounded to it",
    ("intermediate_in[bfloat16]", "bfloat16"): "no bug in this type: the intermediate may be rounded to it",
    ("intermediate_in[float16]", "bfloat16"): "no bug in this type: float16 rounds the intermediate more finely than "
    "bfloat16 may",
}


def write(kept: Kept) -> None:
    """All three files."""
    mutants = {}
    for name, m in llama_mutants().items():
        ours = {dtype: kept.read(f"ours {dtype} {name}") for dtype in DTYPES}
        caught = kept.read(f"recipes {name}")
        mutants[name] = {"class": m.family, "what": m.what, "needs": m.needs, "ours": ours, "recipes": caught}
    report = {
        "campaign": {"stages": TURNS, "batches": standard.BATCHES, "sequences": standard.SEQUENCES},
        "recipes": {name: recipe.__doc__.splitlines()[0] for name, recipe in recipes.RECIPES.items()},  # type: ignore[union-attr]
        "limits": {d: [kept.read(f"limits {d} {i}")["limits"] for i in range(TURNS)] for d in DTYPES},
        "clean": {
            table: {
                "ours": {dtype: kept.read(f"clean {table}, ours, {dtype}") for dtype in DTYPES},
                "recipes": {name: kept.read(f"clean {table}, {name}") for name in recipes.RECIPES},
            }
            for table in ("numpy", "reference")
        },
        "mutants": mutants,
    }
    RESULTS.with_suffix(".json").write_text(compact(report), "utf-8")
    RESULTS.with_suffix(".md").write_text("\n".join(page(report)) + "\n", "utf-8")
    draw(report, RESULTS.with_suffix(".svg"))


def compact(report: Table) -> str:
    """One line for each mutant."""
    rest = {key: value for key, value in report.items() if key != "mutants"}
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(m)}" for name, m in report["mutants"].items())
    return f'{json.dumps(rest, indent=1)[:-2]},\n "mutants": {{\n{lines}\n }}\n}}\n'


def page(report: Table) -> list[str]:
    """The same for people."""
    mutants, names = report["mutants"], list(report["recipes"])
    killed = {dtype: sum(m["ours"][dtype] is not None for m in mutants.values()) for dtype in DTYPES}
    caught = {name: sum(m["recipes"][name] for m in mutants.values()) for name in names}
    per_stage = report["campaign"]["batches"] + report["campaign"]["sequences"]
    return [
        "# Who would have caught which bug",
        "",
        f"Written by `python -m benchmarks.zoo`: {len(mutants)} mutants of the zoo (all that a Llama can have), "
        "each a real",
        "bug of an engine",
        "or a synthetic one, run as the engine in other engines' tests (made again from what they published:",
        "[recipes.py](../recipes.py)) and in our standard campaign ([standard.py](../standard.py)): "
        f"{report['campaign']['stages']} random",
        f"bases, {per_stage} cases on each, {report['campaign']['stages'] * per_stage} in all.",
        "",
        "| | catches | of |",
        "|---|---:|---:|",
        *(f"| ours, {dtype} | {n} | {len(mutants)} |" for dtype, n in killed.items()),
        *(f"| {name} | {n} | {len(mutants)} |" for name, n in caught.items()),
        "",
        "No recipe fails the clean tables (`numpy`, `reference`), and no case of ours does, in any type.",
        "",
        "The recipes of whole models ask the embedded model in float16 and its four ordinary voices, one batch of a",
        "fresh engine: no sums, no adapter on the embedding, no prefix found again, nothing loaded in the place of",
        "another. So do the tests that they were made from; a bug that needs more is out of their sight.",
        "",
        "![mutants by detectors](zoo.svg)",
        "",
        "## What survives ours",
        "",
        *survivors(mutants),
        "",
        "## Mutants",
        "",
        "Ours: after how many cases, of 100, in each type; *s*: by a sequence, *n*: below the noise of every row,",
        "along the bug's own direction; *x*: the answer is none. The others: x where the recipe catches it.",
        "",
        f"| class | mutant | float32 | float16 | bfloat16 | {' | '.join(names)} |",
        f"|---|---|---:|---:|---:|{'---|' * len(names)}",
        *(row(name, m) for name, m in mutants.items()),
    ]


MARKS = {"a row": "", "a sequence": " s", "below the noise": " n", "no answer": " x"}


def row(name: str, m: Table) -> str:
    """One mutant."""
    ours = [f"{f['after']}{MARKS[f['by']]}" if (f := m["ours"][dtype]) else "-" for dtype in DTYPES]
    return f"| {m['class']} | {name} | {' | '.join([*ours, *('x' if c else '' for c in m['recipes'].values())])} |"


def survivors(mutants: Table) -> list[str]:
    """Each mutant that the campaign does not find in some type, and why."""
    found = [
        f"| {name} | {dtype} | {REASONS.get((name, dtype), 'a hole in the campaign')} |"
        for name, m in mutants.items()
        for dtype in DTYPES
        if m["ours"][dtype] is None
    ]
    return ["| mutant | in | why |", "|---|---|---|", *found] if found else ["Nothing."]


def draw(report: Table, file: Path) -> None:
    """Mutants by class, in columns of detectors: a filled square is caught, an empty one is not."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.colors import ListedColormap

    mutants, names = report["mutants"], list(report["recipes"])
    columns = [*(f"ours, {dtype}" for dtype in DTYPES), *names]
    cells = [[*(m["ours"][d] is not None for d in DTYPES), *m["recipes"].values()] for m in mutants.values()]
    families = [m["class"] for m in mutants.values()]
    colours = [[1 + (j < len(DTYPES)) if caught else 0 for j, caught in enumerate(line)] for line in cells]
    with pyplot.rc_context({"svg.hashsalt": "loracle", "font.size": 7, "svg.fonttype": "none"}):
        figure, axes = pyplot.subplots(figsize=(6.5, 0.145 * len(cells) + 2), layout="constrained")
        axes.pcolormesh(
            colours, cmap=ListedColormap(["#f3f3f3", "#d95f02", "#1f5fbf"]), edgecolors="white", linewidth=1
        )
        axes.invert_yaxis()
        axes.xaxis.tick_top()
        counts = [sum(line[j] for line in cells) for j in range(len(columns))]
        labels = [f"{name}  ({n} of {len(cells)})" for name, n in zip(columns, counts, strict=True)]
        axes.set_xticks([j + 0.5 for j in range(len(columns))], labels, rotation=40, ha="left")
        axes.set_yticks(
            [i + 0.5 for i in range(len(cells))], [f"{m}  {f}" for m, f in zip(mutants, families, strict=True)]
        )
        axes.tick_params(length=0)
        for i in range(1, len(families)):
            if families[i] != families[i - 1]:
                axes.axhline(i, color="black", linewidth=0.7)
        axes.spines[:].set_visible(False)
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else {})
        pyplot.close(figure)


if __name__ == "__main__":
    main()
