"""Bugs put inside PEFT by hand: does the oracle fail them, and what does it call them?

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
from peft_campaign import CASES, DTYPES, SEED, SEQUENCES, Outcome, campaign, examine, make_stage, pairs

from refimpl.engines.peft import Peft

RESULTS = ROOT / "benchmarks" / "results" / "peft_bugs"


def main() -> None:
    """Measure, and write both files."""
    with ProcessPoolExecutor(len(DTYPES), multiprocessing.get_context("spawn")) as workers:
        by_type = dict(zip(DTYPES, workers.map(of_type, DTYPES), strict=True))
    write(
        [o for _, outcomes in by_type.values() for o in outcomes],
        {dtype: clean for dtype, (clean, _) in by_type.items()},
    )


def of_type(dtype: str) -> tuple[str, list[Outcome]]:
    """The verdict of PEFT as it is, and every bug."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of torch and PEFT
    outcomes = []
    with tempfile.TemporaryDirectory() as root:
        testbed = make_stage(dtype, Path(root))
        clean = campaign(Peft, testbed, SEQUENCES).verdict
        print(f"{dtype}: PEFT as it is: {clean}", flush=True)
        for bug in [bug for bug, of in pairs() if of == dtype]:
            outcomes.append(examine(bug, testbed))
            print(f"{dtype}: {bug.name}: {outcomes[-1]}", flush=True)
    return clean, outcomes


def write(outcomes: Sequence[Outcome], clean: dict[str, str]) -> None:
    """Both files."""
    counts = {
        "bugs": len(BUGS),
        "pairs": len(outcomes),
        "failed": sum(o.verdict == "fail" for o in outcomes),
        "named_right_by_class": sum(o.right for o in outcomes),
        "a_symptom_only": sum(not o.right and bool(o.symptoms) for o in outcomes),
    }
    setting = {"cases": CASES, "sequences": SEQUENCES, "seed": SEED, "versions": Peft().versions()}
    data = {"clean": clean, **counts, **setting, "outcomes": [o.row() for o in outcomes]}
    RESULTS.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text(table(outcomes, clean, counts))


def table(outcomes: Sequence[Outcome], clean: dict[str, str], counts: dict[str, int]) -> str:
    """For people."""
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
    for o in outcomes:
        named = f"`{o.named}`" if o.explains else f"nothing; nearest `{o.named}`" if o.named else "nothing"
        named = named if o.explains or not o.symptoms else f"{named}; {o.symptoms[0]}"
        after = f"`{o.next_best}` | {o.next_residual:.3g}" if o.next_best else " | "
        numbers = f"{o.coefficient:.4g} | {o.residual:.3g}" if o.named else " | "
        cells = [o.bug, o.family, o.dtype, o.verdict, named, o.named_family, numbers, after]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
