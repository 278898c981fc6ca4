"""How the oracle does on engines that are right: false alarms, and how long a verdict takes.

    python benchmarks/oracle.py alarms [--only peft] [--cases-scale 0.1]   clean campaigns; resumable
    python benchmarks/oracle.py time                                       against PEFT on the embedded model

PEFT needs the environment of `.[peft]`; vLLM and llama.cpp are found as `loracle engines` finds them. Results are
merged into benchmarks/oracle.json. A case that is undecided is no alarm, but it is counted and told.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from refimpl.engines import registry
from refimpl.oracle.campaign import Campaign
from refimpl.oracle.cases.testbed import build
from refimpl.oracle.check import check
from refimpl.oracle.reports.result import CampaignSettings

OUT = Path(__file__).parent / "oracle.json"

# engine, type, model, seed, batches, sequences
CLEAN = [
    *[("peft", dtype, "tiny", seed, 100, 0) for dtype in ("float32", "float16", "bfloat16") for seed in (1, 2)],
    *[("peft", dtype, "random", seed, 85, 15) for dtype in ("float32", "float16", "bfloat16") for seed in (3, 4)],
    ("llama_cpp", "float32", "tiny", 1, 170, 30),
    *[("llama_cpp", "float32", "random", seed, 130, 20) for seed in (0, 2)],
    ("vllm", "float32", "tiny", 1, 130, 20),
    ("vllm", "float32", "tiny", 2, 130, 20),
]


def measured_before() -> dict:
    """What was measured before."""
    return json.loads(OUT.read_text("utf-8")) if OUT.exists() else {"alarms": {}, "time": {}}


def keep(data: dict) -> None:
    """Written whole."""
    data["machine"] = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, shared"
    OUT.write_text(json.dumps(data, indent=1) + "\n", "utf-8")


def alarms(only: str, scale: float) -> None:
    """One campaign after another; those that are in the file are not done again."""
    for engine, dtype, model, seed, cases, sequences in CLEAN:
        name = f"{engine} {dtype} {model} seed {seed}"
        if (only and engine != only) or name in measured_before()["alarms"]:
            continue
        cases, sequences = round(cases * scale), round(sequences * scale)
        began = time.time()
        with tempfile.TemporaryDirectory() as work:
            capabilities = registry.make(engine, {}).capabilities
            testbed = build(model, dtype, seed, Path(work), capabilities, count=5)
            plan = CampaignSettings(cases, sequences, seed, precision=dtype, jobs=2, below=False)
            result = Campaign(lambda name=engine: registry.make(name, {}), testbed, plan, Path(work)).run()
        verdicts_of_requests = [verdict for p in result.played for verdict in p.verdicts]
        verdicts = [p.verdict for p in result.played]
        data = measured_before()
        data["alarms"][name] = {
            "cases": len(verdicts),
            "requests": len(verdicts_of_requests),
            "rows": result.thresholds.tested - len(verdicts_of_requests),
            "failed": verdicts.count("fail"),
            "undecided": verdicts.count("undecided"),
            "worst_noise_ratio": round(max(verdict.ratio for verdict in verdicts_of_requests), 3),
            "fails_from": round(result.thresholds.ratio, 3),
            "worst_score": round(max(verdict.score for verdict in verdicts_of_requests), 3),
            "fail_score": round(result.thresholds.fail_score, 3),
            "findings": result.diagnostics,
            "versions": result.versions,
        }
        keep(data)
        print(f"{name}: {data['alarms'][name]} in {time.time() - began:.0f} s", flush=True)


def timed() -> None:
    """Verdicts alone, then with the look below the noise; each in a fresh folder, two processes."""
    data = measured_before()
    for what, plan in (
        ("200 batches, verdicts", CampaignSettings(200, 0, 0, jobs=2, below=False)),
        ("16 batches, matched filter", CampaignSettings(16, 0, 0, jobs=2, below=True)),
    ):
        with tempfile.TemporaryDirectory() as work:
            began = time.perf_counter()
            result = check(lambda: registry.make("peft", {}), "tiny", {}, plan, Path(work))
            seconds = time.perf_counter() - began
        data["time"][what] = {
            "seconds": round(seconds, 1),
            "verdict": result.verdict,
            "load_average": round(os.getloadavg()[0], 1),
            "parts": {k: round(v, 1) for k, v in result.seconds.items()},
        }
        print(what, data["time"][what], flush=True)
        keep(data)


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["alarms", "time"])
    parser.add_argument("--only", default="", help="one engine")
    parser.add_argument("--cases-scale", type=float, default=1.0, help="fewer cases, to try it out")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.what == "alarms":
        alarms(args.only, args.cases_scale)
    else:
        timed()


if __name__ == "__main__":
    sys.exit(main())
