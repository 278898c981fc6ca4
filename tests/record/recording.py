"""The recorder, run as a user runs it, with the stand-in in TensorRT-LLM's place."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RECORDER = HERE.parent.parent / "refimpl" / "engines" / "record_tensorrt_llm.py"
PATIENCE = 1800  # seconds for what takes one minute on an idle machine: it never decides a test


def environment(**settings: str) -> dict[str, str]:
    """Return variables that put the stand-in on the path: settings are those of stand_in/README.md, in lower case."""
    path = os.pathsep.join([str(HERE / "stand_in"), str(HERE.parent.parent)])
    switches = {f"LORACLE_STAND_IN_{name.upper()}": value for name, value in settings.items()}
    return {**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", **switches}


def record(cases: Path, out: Path, *arguments: str, script: Path | None = None, **settings: str) -> Any:
    """`python record_tensorrt_llm.py cases out`."""
    command = [sys.executable, str(script or cases / "record_tensorrt_llm.py"), str(cases), str(out), *arguments]
    return subprocess.run(command, env=environment(**settings), capture_output=True, text=True, timeout=PATIENCE)


def loracle(*arguments: str, **settings: str) -> Any:
    """The command line, in a process where TensorRT-LLM seems to be installed."""
    command = [sys.executable, "-m", "refimpl", *arguments]
    return subprocess.run(command, env=environment(**settings), capture_output=True, text=True, timeout=PATIENCE)


def smaller(cases: Path, target: Path, keep: Mapping[str, int], change: Callable[[dict], None] | None = None) -> Path:
    """The same cases, but only these parts, and only so many of each part's batches (or vectors, in all)."""
    shutil.copytree(cases, target)
    plan = read(target / "requests.json")
    plan["parts"] = [part for part in plan["parts"] if part["name"] in keep]
    for part in plan["parts"]:
        if "cases" in part:
            part["cases"] = part["cases"][: keep[part["name"]]]
    if change:
        change(plan)
    (target / "requests.json").write_text(json.dumps(plan))
    return target


def read(file: Path) -> Any:
    """JSON."""
    return json.loads(file.read_text())
