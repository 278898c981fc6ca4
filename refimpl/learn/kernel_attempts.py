"""A learner's .cu as an attempt: compiled for the checker, launched in every scheduling order, or the sentence why not.

The checker is the CPU runner's, whatever card the machine has: a GPU would say nothing of a race.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import Array
from ..cuda.runner import Traffic, thread_schedule
from ..cuda.runner.cpu import CPUModule
from ..errors import DeviceError, KernelError
from .verdict import DOES_NOT_RUN, Verdict

SCHEDULES = ("forward", "reverse", 1, 2)  # every case runs in all of them: an answer may not depend on who is first
Shape = Callable[..., tuple[tuple[int, ...], int]]  # a launch's arguments -> its grid, and the threads of a block
APART = 65_536  # bytes in front of an argument and behind it; further away an error names no argument, or another one
COMPILER_LINES = 16  # of what the compiler says: the first errors are the learner's, the later ones follow from them


class DoesNotCompile(Exception):
    """`lines` say why a file gives no kernels."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__(lines[0])
        self.lines = list(lines)

    def verdict(self, name: str) -> Verdict:
        """Return it as the outcome of a lab."""
        return Verdict(name, DOES_NOT_RUN, self.lines)


def load_kernels(file: Path, kernels: Sequence[str] = ()) -> CPUModule:
    """Return a file's kernels, built for the checker. DoesNotCompile with the compiler's lines, or without a file, a
    compiler, or one of the `kernels`."""
    if not file.is_file():
        raise DoesNotCompile([f"{file.name} is not there: `loracle learn reset` brings it back."])
    try:
        module = CPUModule(file.absolute(), "float32", check=True, flags="")
    except (KernelError, DeviceError) as error:
        raise DoesNotCompile(str(error).splitlines()[:COMPILER_LINES]) from None
    except (UnicodeDecodeError, OSError) as error:
        raise DoesNotCompile([f"{file.name} cannot be read: {error}"]) from None
    if lacking := [name for name in kernels if name not in module.kernels]:
        raise DoesNotCompile([f"{file.name} has no kernel {lacking[0]}: the grader launches it by that name."])
    return module


@dataclass(frozen=True)
class KernelAttempt:
    """One kernel of a file, and its grid and block for a case. Called with the case's arguments, it returns what each
    of them moved; KernelError for what the checker finds."""

    load: Callable[[], CPUModule]
    kernel: str
    shape: Shape

    def __call__(self, *arguments: Any, schedule: str | int = "forward") -> dict[str, Traffic]:
        grid, threads = self.shape(*arguments)
        with thread_schedule(schedule):
            moved = self.load().launch(self.kernel, grid, (threads,), arguments)
        return moved or {}


@contextlib.contextmanager
def on_this_cpu() -> Iterator[None]:
    """Inside, launches run on the CPU runner, which counts bytes, whatever card there is."""
    before = os.environ.get("LORACLE_KERNELS")
    os.environ["LORACLE_KERNELS"] = "cpu"
    try:
        yield
    finally:
        del os.environ["LORACLE_KERNELS"]
        os.environ.update({} if before is None else {"LORACLE_KERNELS": before})


def apart(array: Array) -> Array:
    """Return a copy that lies alone: whoever runs a little past its end does not land in another argument."""
    memory = np.zeros(2 * APART + array.nbytes, np.uint8)
    copy = memory[APART : APART + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def without_comments(source: str) -> str:
    """Return a .cu without its comments; each of its lines stays where it is."""
    return re.sub(r"//[^\n]*|/\*[\s\S]*?\*/", lambda match: "\n" * match[0].count("\n"), source)


def body_of(source: str, kernel: str) -> str:
    """Return what stands between the braces of a kernel, without comments and spaces around it; "" if there is none."""
    text = without_comments(source)
    start = re.search(rf"__global__\s+void\s+{kernel}\s*\([^)]*\)\s*{{", text)
    if not start:
        return ""
    depth, end = 1, start.end()
    while depth and end < len(text):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        end += 1
    return text[start.end() : end - 1].strip()


def what_it_is(error: KernelError) -> str:
    """Return what two kernels with the same mistake have in common: the kind of the error, and the argument's side."""
    side = re.search(r"(before the start|past the end) of (\w+)", str(error))
    both = re.search(r"(shared|global) memory", str(error))
    return " ".join([error.kind, *(match[0] for match in (side, both) if match)])
