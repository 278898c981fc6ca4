"""Bugs put inside PEFT by hand: does the oracle fail them, and which bugs does it name?

    python benchmarks/peft_bugs.py         about ten minutes; writes results/peft_bugs.json and .md

The bugs are in tests/engines/peft_bugs.py, in torch, with the class that each is meant to have. Right is what is named
by that class, with a coefficient of 1 and nothing but noise left; a symptom alone is not.
"""
# ruff: noqa: E402  (the tests are no package: their folder comes first)

import json
import multiprocessing
import os
import sys
import tempfile
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the matrices are small
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "engines"))

import torch
from peft_bugs import BUGS
from peft_campaign import CASES, DTYPES, SEED, SEQUENCES, Outcome, campaign, examine, make_testbed, pairs

from refimpl.engines.peft import Peft

RESULTS = ROOT / "benchmarks" / "results" / "peft_bugs"


def main() -> None:
    """Measure, and write both files."""
    with ProcessPoolExecutor(len(DTYPES), multiprocessing.get_context("spawn")) as workers:
        by_type = dict(zip(DTYPES, workers.map(of_type, DTYPES), strict=True))
    write(
        [outcome for _, outcomes in by_type.values() for outcome in outcomes],
        {dtype: clean for dtype, (clean, _) in by_type.items()},
    )


def of_type(dtype: str) -> tuple[str, list[Outcome]]:
    """Return the verdict on PEFT as it is, and the outcome of every bug."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of torch and PEFT
    outcomes = []
    with tempfile.TemporaryDirectory() as root:
        testbed = make_testbed(dtype, Path(root))
        clean = campaign(Peft, testbed, SEQUENCES).verdict
        print(f"{dtype}: PEFT as it is: {clean}", flush=True)
        for bug in [bug for bug, its_dtype in pairs() if its_dtype == dtype]:
            outcomes.append(examine(bug, testbed))
            print(f"{dtype}: {bug.name}: {outcomes[-1]}", flush=True)
    return clean, outcomes


def write(outcomes: Sequence[Outcome], clean: dict[str, str]) -> None:
    """Write the JSON file and the page."""
    counts = {
        "bugs": len(BUGS),
        "pairs": len(outcomes),
        "failed": sum(outcome.verdict == "fail" for outcome in outcomes),
        "named_right_by_class": sum(outcome.right for outcome in outcomes),
        "a_symptom_only": sum(not outcome.right and bool(outcome.symptoms) for outcome in outcomes),
    }
    setting = {"cases": CASES, "sequences": SEQUENCES, "seed": SEED, "versions": Peft().versions()}
    data = {"clean": clean, **counts, **setting, "outcomes": [outcome.row() for outcome in outcomes]}
    RESULTS.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text(table(outcomes, clean, counts))


def table(outcomes: Sequence[Outcome], clean: dict[str, str], counts: dict[str, int]) -> str:
    """Return the page."""
    lines = [
        "# Bugs inside PEFT, and what the oracle called them",
        "",
        f"`python benchmarks/peft_bugs.py`: {counts['bugs']} bugs in float32 and bfloat16, {counts['pairs']} pairs. "
        f"{counts['failed']} failed; {counts['named_right_by_class']} named right by class; of the others "
        f"{counts['a_symptom_only']} have a symptom. PEFT as it is: "
        + ", ".join(f"{verdict} in {dtype}" for dtype, verdict in clean.items())
        + f". {CASES} cases each, {SEQUENCES} sequences where a history is needed. A residual is in units of noise.",
        "",
        "| bug | class | type | verdict | named | class | c | residual | next best | its residual |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for outcome in outcomes:
        lines.append("| " + " | ".join(cells(outcome)) + " |")
    return "\n".join(lines) + "\n"


def cells(outcome: Outcome) -> list[str]:
    """Return the row of one bug."""
    nearest = f"nothing; nearest `{outcome.named}`" if outcome.named else "nothing"
    named = f"`{outcome.named}`" if outcome.explains else nearest
    if outcome.symptoms and not outcome.explains:
        named += f"; {outcome.symptoms[0]}"
    numbers = f"{outcome.coefficient:.4g} | {outcome.residual:.3g}" if outcome.named else " | "
    after = f"`{outcome.next_best}` | {outcome.next_residual:.3g}" if outcome.next_best else " | "
    about = [outcome.bug, outcome.family, outcome.dtype, outcome.verdict]
    return [*about, named, outcome.named_family, numbers, after]


if __name__ == "__main__":
    main()
