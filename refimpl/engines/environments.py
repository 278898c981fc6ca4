"""Environments of their own for the engines whose pins would quarrel with everybody else's.

Each is a recipe (recipes.py): a virtual environment and some commands. It is set up once, in the user's cache, under
the hash of its recipe and files; a recipe that changes makes another one. A setup that was interrupted goes on where it
stopped.
"""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from .interface import EngineError
from .recipes import Recipe, Step

HERE = Path(__file__).parent
STEP_TIMEOUT = 3600.0  # seconds; the longest takes some minutes


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
