"""False alarms: whole campaigns of `loracle check` over engines that are right.

    nice -n 19 python benchmarks/clean.py [--cases 3000] [--below]

Our own engine and a function in plain NumPy (benchmarks/numpy_function.py), on random bases and on the embedded one, in
campaigns of 60 batches and 20 sequences, each of another seed; after each one the counts are in
benchmarks/results/clean.json, and the next call goes on from there. `undecided` is no alarm, but it is counted.
--below: with the look below the noise, which is slower; these campaigns are counted apart.
"""

import argparse
import json
import os
import platform
import tempfile
import time
import warnings
from itertools import count
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from refimpl.engines import registry
from refimpl.oracle.check import check
from refimpl.oracle.reports.result import CampaignSettings

OUT = Path(__file__).parent / "results" / "clean.json"
ENGINES = ("numpy", "benchmarks.numpy_function:serve")
BASES = ("random", "tiny")
BATCHES, SEQUENCES = 60, 20
FIRST_SEED = 1000  # far from those that the tests and the documentation use


def measured_before() -> dict:
    """Return the campaigns that were run before, by name."""
    return json.loads(OUT.read_text("utf-8")) if OUT.exists() else {"campaigns": {}}


def keep(campaigns: dict) -> None:
    """Write all campaigns, and what they come to."""
    totals: dict = {}
    for name, one in campaigns.items():
        total = totals.setdefault(" ".join(name.split()[:2]), dict.fromkeys(("cases", "requests", *COUNTED), 0))
        for key in total:
            total[key] += one[key]
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, shared"
    together = {key: sum(total[key] for total in totals.values()) for key in ("cases", "requests", *COUNTED)}
    data = {"machine": machine, "together": together, "by engine and base": totals, "campaigns": campaigns}
    OUT.write_text(json.dumps(data, indent=1) + "\n", "utf-8")


COUNTED = ("failed", "undecided", "named")


def campaign(engine: str, model: str, seed: int, below: bool) -> dict:
    """Run one campaign; return its counts."""
    began = time.process_time()
    plan = CampaignSettings(BATCHES, SEQUENCES, seed, below=below)
    with tempfile.TemporaryDirectory() as work:
        result = check(lambda: registry.make(engine, {}), model, {}, plan, Path(work))
    requests = [verdict for one in result.played for verdict in one.verdicts]
    verdicts = [one.verdict for one in result.played]
    return {
        "verdict": result.verdict,
        "cases": len(verdicts),
        "requests": len(requests),
        "failed": verdicts.count("fail") + (result.verdict == "fail" and "fail" not in verdicts),
        "undecided": verdicts.count("undecided"),
        "named": int(result.explanation.cause is not None) + len(result.explanation.findings),
        "worst_noise_ratio": round(max(verdict.ratio for verdict in requests), 3),
        "fails_from": round(result.thresholds.ratio, 3),
        "findings": result.diagnostics,
        "cpu_seconds": round(time.process_time() - began, 1),
    }


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=3000, help="run campaigns until there are so many cases")
    parser.add_argument("--below", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    for i in count():
        campaigns = measured_before()["campaigns"]
        if sum(one["cases"] for one in campaigns.values()) >= args.cases:
            break
        engine, model = ENGINES[i % 2], BASES[i // 2 % 2]
        seed = FIRST_SEED + 4 * (i // 4)  # a campaign on random bases uses four seeds
        name = f"{engine} {model} seed {seed}" + (", below the noise" if args.below else "")
        if name in campaigns:
            continue
        campaigns[name] = campaign(engine, model, seed, args.below)
        keep(campaigns)
        print(f"{name}: {campaigns[name]}", flush=True)


if __name__ == "__main__":
    main()
