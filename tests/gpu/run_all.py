"""Everything that needs a GPU, in one command, in less than nine minutes:

    python tests/gpu/run_all.py OUT            from a checkout; nothing has to be installed but the packages below

The tests of tests/gpu, then `loracle bench kernels` and `loracle bench serving`, then some of the tests again under
compute-sanitizer's memcheck and racecheck, where the CUDA toolkit is there. It writes OUT/<gpu>-<date>.json after every
part, so that whoever is interrupted keeps what there is; beside it the benchmarks' pictures, and all output as .log.

needed:           numpy cupy-cuda13x (or -cuda12x) ml_dtypes safetensors tokenizers rich pytest hypothesis
used if there:    torch triton (the comparison), matplotlib (pictures), pytest-xdist (speed), compute-sanitizer
not needed:       jaxtyping beartype transformers peft
--rehearse        no GPU: all of it on the CPU runner, in a small size. Its figures mean nothing.

Exit codes: 0 all passed; 1 a part failed or ran out of time; 2 something needed is missing.
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
NEEDED = {
    "numpy": "numpy",
    "ml_dtypes": "ml_dtypes",
    "safetensors": "safetensors",
    "tokenizers": "tokenizers",
    "rich": "rich",
    "pytest": "pytest",
    "hypothesis": "hypothesis",
    "cupy": "cupy-cuda13x",
}
SECONDS = 520  # for everything
LEAST = 15  # seconds: with less left, a part is not begun
ABOUT = "import json; from refimpl.bench.machine import about; print(json.dumps(about()))"
SANITIZED = "definition or embed or rms_norm or rope or mlp_activation"


@dataclass(frozen=True)
class Part:
    """One command, and for how many seconds it may run."""

    name: str
    command: Sequence[str]
    limit: float
    environment: Mapping[str, str]
    clean: str = ""  # what its output must say; without it the tool did not run


def parts(folder: Path, rehearse: bool) -> list[Part]:
    """In the order of what would be missed most."""
    python = [sys.executable, "-m"]
    profile = "rehearsal" if rehearse else "gpu"
    # Without tests/conftest.py, which needs beartype; a warning of another package is no failure here.
    pytest = [*python, "pytest", "--confcutdir=tests/gpu", "-o", "filterwarnings=default", "-p", "no:cacheprovider"]
    several = ["-n", str(min(8, os.cpu_count() or 1))] if importlib.util.find_spec("xdist") else []
    junit = f"--junitxml={folder / 'tests.xml'}"
    bench = [*python, "refimpl", "bench"]
    output = [*(["--quick"] if rehearse else []), "--output", str(folder)]
    found = [
        Part("tests", [*pytest, *several, f"--hypothesis-profile={profile}", "-rs", junit, "tests/gpu"], 200, {}),
        Part("kernels", [*bench, "kernels", *output, "--seconds", "150"], 190, {}),
        Part("serving", [*bench, "serving", *output, "--seconds", "50"], 80, {}),
    ]
    test = [*pytest, "--hypothesis-profile=sanitizer", "-x", "-k", SANITIZED, "tests/gpu/test_kernels_on_gpu.py"]
    for tool, clean in (("memcheck", "ERROR SUMMARY: 0 errors"), ("racecheck", "RACECHECK SUMMARY: 0 hazards")):
        # CuPy asks the driver for things that it may not have: an answer of "no" is no error of a kernel.
        quiet = ["--report-api-errors", "no"] if tool == "memcheck" else []
        command = ["compute-sanitizer", "--tool", tool, *quiet, "--error-exitcode", "9", *test]
        found.append(Part(tool, command, 110, {"LORACLE_SANITIZER": "1"}, clean))
    return found


def run(part: Part, environment: Mapping[str, str], limit: float, log: Path) -> dict[str, Any]:
    """How it went: passed, failed, out of time, or skipped, with the end of what it printed."""
    if shutil.which(part.command[0]) is None:
        return {"status": "skipped", "why": f"{part.command[0]} is not installed"}
    if limit < LEAST:
        return {"status": "out of time", "why": "the parts before it took too long"}
    begun, status = time.monotonic(), ""
    with log.open("a+", encoding="utf-8", errors="replace") as file:
        file.write(f"\n==== {part.name}: {' '.join(part.command)}\n")
        file.flush()
        start = file.tell()
        process = subprocess.Popen(
            part.command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env={**environment, **part.environment},
            start_new_session=True,
        )  # fmt: skip
        try:
            status = "passed" if process.wait(limit) == 0 else "failed"
        except subprocess.TimeoutExpired:
            status = "out of time"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # a session of its own: it and its children
                process.wait()
    with log.open(encoding="utf-8", errors="replace") as file:
        file.seek(start)
        printed = file.read()
    result = {"status": status, "seconds": round(time.monotonic() - begun, 1), "output_end": printed[-1500:]}
    if part.clean and "SUMMARY" not in printed and status == "failed":
        result |= {"status": "skipped", "why": "compute-sanitizer could not run here; see output_end"}
    elif part.clean and status == "passed" and part.clean not in printed:
        result |= {"status": "failed", "why": f"it did not say {part.clean!r}"}
    return result


def tests_of(file: Path) -> dict[str, Any]:
    """The counts of a JUnit file, and the names of what failed."""
    if not file.exists():
        return {}
    suites = list(ET.parse(file).getroot().iter("testsuite"))
    counts = {key: sum(int(s.get(key, "0")) for s in suites) for key in ("tests", "failures", "errors", "skipped")}
    wrong = [
        f"{case.get('classname')}.{case.get('name')}"
        for case in ET.parse(file).getroot().iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    return {**counts, "failed": wrong}


def machine(environment: Mapping[str, str]) -> dict[str, Any]:
    """GPU, driver, CUDA, packages; exits 2 with one line where there is none."""
    done = subprocess.run(
        [sys.executable, "-c", ABOUT], cwd=ROOT, env=dict(environment), capture_output=True, text=True, timeout=120
    )
    if done.returncode:
        why = done.stderr.strip().rpartition("\n")[2]
        print(f"run_all.py: {why}", file=sys.stderr)
        sys.exit(2)
    return dict(json.loads(done.stdout))


def main() -> int:
    """All parts; their results in one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "output", type=Path, metavar="OUT", help="the folder for results, for instance benchmarks/results"
    )
    parser.add_argument(
        "--rehearse", action="store_true", help="without a GPU, on the CPU runner; figures mean nothing"
    )
    parser.add_argument(
        "--seconds", type=float, metavar="S", help=f"for everything (default {SECONDS}; rehearsal three times that)"
    )
    args = parser.parse_args()
    needed = {name: pip for name, pip in NEEDED.items() if not (args.rehearse and name == "cupy")}
    lacking = [pip for name, pip in needed.items() if importlib.util.find_spec(name) is None]
    if lacking:
        print(f"run_all.py: missing: pip install {' '.join(lacking)}", file=sys.stderr)
        return 2
    begun, patience = time.monotonic(), 3 if args.rehearse else 1  # a CPU is slower
    seconds = args.seconds or SECONDS * patience
    args.output.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHONUNBUFFERED": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "LORACLE_KERNELS": "cpu" if args.rehearse else "gpu",
        "LORACLE_REHEARSAL": "1" if args.rehearse else "0",
    }
    about = machine(environment)
    name = "rehearsal" if args.rehearse else re.sub(r"[^a-z0-9]+", "-", about["gpu"].lower()).strip("-")
    target = args.output / f"{name}-{about['date'][:10]}.json"
    result: dict[str, Any] = {"rehearsal": args.rehearse, "machine": about, "parts": {}}
    log = target.with_suffix(".log")
    log.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for part in parts(folder, args.rehearse):
            left = seconds - (time.monotonic() - begun)
            outcome = run(part, environment, min(part.limit * patience, left), log)
            if part.name == "tests" and outcome["status"] in ("passed", "failed"):
                outcome |= tests_of(folder / "tests.xml")
            if (folder / f"{part.name}.json").exists():
                result[part.name] = json.loads((folder / f"{part.name}.json").read_text())
            for picture in folder.glob(f"{part.name}.[ps][nv]g"):
                shutil.copy(picture, args.output / f"{target.stem}-{picture.name}")
            result["parts"][part.name] = outcome
            target.write_text(json.dumps(result, indent=1) + "\n")
            print(
                f"{part.name:10} {outcome['status']:12} {outcome.get('seconds', 0):6} s  {outcome.get('why', '')}",
                flush=True,
            )
    print(f"{target} ({time.monotonic() - begun:.0f} s)")
    return 0 if all(p["status"] in ("passed", "skipped") for p in result["parts"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
