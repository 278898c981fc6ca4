"""What this machine has for the course, and for each thing that is missing the command that mends it."""

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..arrays import device_namespace
from ..cuda.runner import cpu, kernels_folder
from ..cuda.runner.cpu import CPUModule
from ..cuda.runner.gpu import GPUModule
from ..errors import KernelError, LoracleError
from ..tools.units import human_bytes
from .exercise import Lab
from .units import units

MEMORY = 2 * 10**9  # bytes: the embedded model with a grader beside it takes under one
DISK = 10**9
PROBE = "layers.cu"  # of kernels/: what is built to see if a compiler does
VOLTA = 70  # compute capability: the last card that CUDA 13 has dropped


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `need` names what depends on it; "" where it is for comfort."""

    what: str
    ok: bool
    detail: str
    mend: str = ""  # a command, or what to do
    need: str = ""


def examine() -> list[Finding]:
    """Return everything that matters to the course, in the order in which one would mend it."""
    probes: list[Callable[[], Finding]] = [python, system, memory, disk, compiler, gpu, notebooks, pytest]
    return [probe() for probe in probes] + [readiness_of_chapters(), *map(readiness, labs())]


def labs() -> list[Lab]:
    """Return all labs."""
    return [unit for unit in units() if isinstance(unit, Lab)]


def python() -> Finding:
    """Python itself, which pip has already held against pyproject.toml."""
    return Finding("Python", sys.version_info >= (3, 10), platform.python_version(), "install Python 3.10 or later")


def system() -> Finding:
    """The system; Windows has no runner for the kernels."""
    name = f"{platform.system()} {platform.machine()}"
    return Finding(
        "system", sys.platform != "win32", name, "labs with kernels: use WSL (`wsl --install`), or the devcontainer"
    )


def memory() -> Finding:
    """Physical memory, where the system says how much."""
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return Finding("memory", True, "not known on this system")
    return Finding("memory", size >= MEMORY, human_bytes(size), f"{human_bytes(MEMORY)} are wanted: close something")


def disk() -> Finding:
    """Free space where the learner works."""
    free = shutil.disk_usage(Path.cwd()).free
    return Finding("free disk", free >= DISK, human_bytes(free), f"{human_bytes(DISK)} are wanted here: free some")


def compiler() -> Finding:
    """A C++ compiler that builds a kernel for this CPU: it is not enough that one is there."""
    try:
        command = cpu.compiler()
        CPUModule(kernels_folder() / PROBE, "float32", False, "")
    except (LoracleError, KernelError) as error:
        return Finding("compiler", False, one_sentence(error), "pip install 'loracle[cpu-kernels]'")
    return Finding("compiler", True, f"{' '.join(command)} builds the kernels for this CPU")


def gpu() -> Finding:
    """A GPU that CuPy reaches; else the wheel for the card that nvidia-smi names."""
    try:
        namespace = device_namespace("cuda")
        properties = namespace.cuda.runtime.getDeviceProperties(0)
        name = properties["name"].decode("utf-8", "replace")
        GPUModule(kernels_folder() / PROBE, "float32", False)
        return Finding("GPU", True, f"{name}, CuPy {namespace.__version__} builds the kernels for it")
    except (LoracleError, KernelError) as error:
        cards = cards_of_nvidia_smi()
        if not cards:
            return Finding("GPU", False, "none; the kernels run on this CPU", "none is needed but where a lab says so")
        name, capability = cards[0]
        extra = "cuda12" if capability <= VOLTA else "cuda13"
        return Finding("GPU", False, f"{name}: {one_sentence(error)}", f"pip install 'loracle[{extra}]'")


def cards_of_nvidia_smi() -> list[tuple[str, int]]:
    """Return (name, compute capability times ten) of each card that NVIDIA's driver lists."""
    try:
        query = ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"]
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return parse_cards(done.stdout)


def parse_cards(text: str) -> list[tuple[str, int]]:
    """Read nvidia-smi's lines, "NVIDIA GeForce RTX 4090, 8.9"; what has another form is left out."""
    cards = []
    for line in text.splitlines():
        name, _, capability = line.rpartition(", ")
        if name and capability.replace(".", "", 1).isdigit():
            cards.append((name, round(float(capability) * 10)))
    return cards


def notebooks() -> Finding:
    """jupytext, for `loracle learn notebooks`."""
    return package("jupytext", "notebooks", "pip install 'loracle[learn]'")


def pytest() -> Finding:
    """pytest, for `pytest loracle-course`: one of three doors to the same grader."""
    return package("pytest", "pytest", "pip install pytest")


def package(module: str, what: str, mend: str) -> Finding:
    """Whether a module that only some need can be imported."""
    present = importlib.util.find_spec(module) is not None
    return Finding(what, present, f"{module} is {'' if present else 'not '}installed", mend)


def readiness_of_chapters() -> Finding:
    """The chapters need what the installation brought, and no more."""
    missing = [name for name in ("numpy", "hypothesis", "rich", "jinja2") if importlib.util.find_spec(name) is None]
    count = len(units()) - len(labs())
    detail = f"all {count} can be done" if not missing else f"{', '.join(missing)} missing"
    return Finding("chapters", not missing, detail, "pip install -e .", "chapters")


PROBES = {"compiler": compiler, "gpu": gpu}  # what Lab.needs names


def readiness(lab: Lab) -> Finding:
    """Whether a lab can be done here."""
    missing = [PROBES[need]() for need in lab.needs if need in PROBES]
    missing = [finding for finding in missing if not finding.ok]
    if not missing:
        return Finding(lab.name, True, f"can be done: {lab.title}", need=lab.name)
    return Finding(lab.name, False, f"needs a {missing[0].what}: {lab.title}", missing[0].mend, lab.name)


def one_sentence(error: Exception) -> str:
    """Return the first line of an error, cut to what a table can hold."""
    line = " ".join((str(error).strip().splitlines() or [type(error).__name__])[0].split())
    return line if len(line) <= 160 else line[:157] + "..."
