"""Which test vectors kill which mutants: the zoo of refimpl/oracle/bugs over the set in tests/vectors/v1.

    python benchmarks/vectors.py           a few minutes; writes results/vectors.json and .md

A mutant is killed by a vector if its answer is judged wrong, or if it refuses what is valid. tests/oracle/ holds the
table to the zoo and to the set.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the matrices are small

from refimpl.ops import NUMPY, REFERENCE
from refimpl.oracle.bugs import llama_mutants
from refimpl.oracle.vectors.bugs import BUGS
from refimpl.oracle.vectors.read import read_set
from refimpl.oracle.vectors.systems import LoadedModels, OpsUnderTest
from refimpl.oracle.vectors.vector import KINDS, VECTOR_DTYPES, Vector
from refimpl.oracle.vectors.verify import verify

ROOT = Path(__file__).parent.parent
SET = "tests/vectors/v1"
RESULTS = ROOT / "benchmarks" / "results" / "vectors"

# Why a mutant is not killed in some type. What is not here and survives is a hole in the set.
REASONS = {
    ("intermediate_in[bfloat16]", "bfloat16"): "no bug in this type: the intermediate may be rounded to it",
    ("intermediate_in[float16]", "float16"): "no bug in this type: the intermediate may be rounded to it",
    ("intermediate_in[float16]", "bfloat16"): "no bug in this type: float16 rounds the intermediate more finely than "
    "bfloat16 may",
}


def main() -> None:
    """Measure, and write both files."""
    vectors = read_set(ROOT / SET)
    loaded = LoadedModels()
    clean = {
        name: {dtype: killed_by(OpsUnderTest(lambda ops=ops: ops, loaded), vectors, dtype) for dtype in VECTOR_DTYPES}
        for name, ops in (("reference", REFERENCE), ("numpy", NUMPY))
    }
    mutants = {}
    for name, m in llama_mutants().items():
        found = {dtype: killed_by(OpsUnderTest(m.make, loaded), vectors, dtype) for dtype in VECTOR_DTYPES}
        mutants[name] = {
            "class": m.family,
            "what": m.what,
            "needs": m.needs,
            "links": list(m.links),
            "killed_by": found,
        }
        print(f"{name}: {', '.join(str(len(by)) for by in found.values())}")
    report = {"set": SET, "vectors": [v.id for v in vectors], "clean": clean, "mutants": mutants}
    RESULTS.with_suffix(".json").write_text(compact(report), "utf-8")
    RESULTS.with_suffix(".md").write_text("\n".join(page(report, vectors)) + "\n", "utf-8")


def killed_by(tested: OpsUnderTest, vectors: Sequence[Vector], dtype: str) -> list[int]:
    """The places in the list of vectors of those that it fails."""
    return [i for i, judged in enumerate(verify(vectors, tested, dtype)) if judged.verdict == "fail"]


def compact(report: dict[str, Any]) -> str:
    """One line for each mutant."""
    rest = {key: value for key, value in report.items() if key != "mutants"}
    head = json.dumps(rest, indent=1)[:-2]
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(m)}" for name, m in report["mutants"].items())
    return f'{head},\n "mutants": {{\n{lines}\n }}\n}}\n'


def page(report: dict[str, Any], vectors: Sequence[Vector]) -> list[str]:
    """The same for people."""
    mutants = report["mutants"]
    killed = {t: sum(bool(m["killed_by"][t]) for m in mutants.values()) for t in VECTOR_DTYPES}
    false = sum(len(by) for table in report["clean"].values() for by in table.values())
    counts = ", ".join(f"{n} in {t}" for t, n in killed.items())
    return [
        "# Which test vectors kill which mutants",
        "",
        f"Written by `python benchmarks/vectors.py`: {len(mutants)} mutants, {len(vectors)} vectors (`{SET}`).",
        f"Killed: {counts}. The clean tables (`reference`, `numpy`, in three types): {false} vectors failed.",
        "`vectors.json` names every vector that kills a mutant.",
        "",
        "## What survives",
        "",
        *survivors(mutants),
        "",
        "## Mutants",
        "",
        "How many vectors of each kind kill it in float32, and of all kinds in the half types; and which, if only one.",
        "",
        f"| class | mutant | {' | '.join(KINDS)} | float16 | bfloat16 | only |",
        f"|---|---|{'---:|' * (len(KINDS) + 2)}---|",
        *(row(name, m, vectors) for name, m in mutants.items()),
        "",
        "## Vectors",
        "",
        "How many mutants each kills in float32, and of which classes; invalid ones are for engines that do not check.",
        "",
        "| vector | result | made against | mutants | classes |",
        "|---|---|---|---:|---|",
        *(vector_row(i, v, mutants) for i, v in enumerate(vectors)),
    ]


def survivors(mutants: dict[str, Any]) -> list[str]:
    """Each mutant that no vector kills in some type, and why."""
    found = [
        f"| {name} | {dtype} | {REASONS.get((name, dtype), 'a hole in the set')} |"
        for name, m in mutants.items()
        for dtype in VECTOR_DTYPES
        if not m["killed_by"][dtype]
    ]
    return ["| mutant | in | why |", "|---|---|---|", *found] if found else ["Nothing."]


def row(name: str, m: dict[str, Any], vectors: Sequence[Vector]) -> str:
    """One mutant."""
    by = m["killed_by"]
    kinds = [vectors[i].kind for i in by["float32"]]
    counts = [*(kinds.count(kind) or "" for kind in KINDS), len(by["float16"]), len(by["bfloat16"])]
    only = vectors[by["float32"][0]].id if len(kinds) == 1 else ""
    return f"| {m['class']} | {name} | {' | '.join(map(str, counts))} | {only} |"


def vector_row(i: int, v: Vector, mutants: dict[str, Any]) -> str:
    """One vector."""
    killed = [m["class"] for m in mutants.values() if i in m["killed_by"]["float32"]]
    against = ", ".join(f"{bug} ({BUGS[bug].family})" for bug in v.bugs)
    return f"| {v.id} | {v.result} | {against} | {len(killed) or ''} | {' '.join(sorted(set(killed)))} |"


if __name__ == "__main__":
    main()
