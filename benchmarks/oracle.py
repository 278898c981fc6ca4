"""How long `loracle check` takes: a right engine, a wrong one, and a known bug looked for below the noise.

    python benchmarks/oracle.py [--only PART]    each check in a process of its own; merged into benchmarks/oracle.json

PEFT needs the environment of `.[peft]`, and is left out without it. False alarms are counted by clean.py.
"""

import argparse
import importlib.util
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
OUT = Path(__file__).parent / "oracle.json"
FUNCTION = "benchmarks.numpy_function:serve"
WRONG = ["--engine", "mutant:rslora_ignored", "--model", "random"]
CHECKS = {
    "a right NumPy function, as it is asked by default": ["--engine", FUNCTION, "--model", "random"],
    "the same without power": ["--engine", FUNCTION, "--model", "random", "--no-power"],
    "README's wrong engine": [*WRONG, "--cases", "10", "--sequences", "0"],
    "the same, --quick": [*WRONG, "--quick"],
    "PEFT, 200 batches, verdicts": ["--engine", "peft", "--cases", "200", "--sequences", "0", "--no-power"],
    "PEFT, 16 batches, with power": ["--engine", "peft", "--cases", "16", "--sequences", "0"],
}
FIRST, JUDGED = " off; the others are asked", "; worst row "  # in the lines of stderr: commands/check_screen.py


def measured(arguments: list[str]) -> dict:
    """One check: its verdict, when its lines came, and the processor seconds of all of its processes."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "refimpl", "check", *arguments]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines = []
    for line in process.stderr or ():
        lines.append((time.perf_counter() - began, line.strip()))
    printed = process.communicate()[0]
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode not in (0, 1):
        sys.exit(f"{' '.join(arguments)}: exit {process.returncode}: {lines[-1:]}")
    first = next((when for when, line in lines if FIRST in line or JUDGED in line), seconds)
    judged = [when for when, line in lines if JUDGED in line]  # of each base
    return {
        "verdict": printed.split()[0].lower(),
        "first_line_seconds": round(first, 1),
        "verdict_seconds": round(judged[-1] if judged else seconds, 1),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "load_average": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="checks whose name has this in it")
    arguments = parser.parse_args()
    kept = json.loads(OUT.read_text("utf-8")) if OUT.exists() else {"checks": {}}
    for name, check in CHECKS.items():
        if arguments.only not in name or ("peft" in check and importlib.util.find_spec("peft") is None):
            continue
        kept["checks"][name] = {"command": f"loracle check {' '.join(check)}", **measured(check)}
        kept["machine"] = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, shared"
        OUT.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
        print(name, kept["checks"][name], flush=True)


if __name__ == "__main__":
    main()
