"""Lab C: six kernels of the checker's own tests, their marks taken off. Predict, run, put right, with no barrier more
than needed: each one is taken out of the learner's kernel, and must be missed."""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...arrays import Array
from ...cuda.runner import thread_schedule
from ...cuda.runner.cpu import cache_folder
from ...errors import KernelError
from ..answers_file import read_answers
from ..exercise import Lab
from ..kernel_attempts import SCHEDULES, DoesNotCompile, load_kernels, without_comments
from ..verdict import NOT_ATTEMPTED, PASSED, WRONG, Verdict

NAME, PREDICTIONS = "lab_c_race", "predictions.txt"
GIVEN = Path(__file__).parents[1] / "labs" / "c_race"
THREADS, BLOCKS = 64, 2
UNTOUCHED = 7.0  # what out holds before a launch
BARRIER = re.compile(r"__sync(?:threads|warp)\s*\([^;]*\)\s*;")
RACE, DIVERGENT, DEADLOCK = "race", "divergent barrier", "deadlock"


@dataclass(frozen=True)
class Given:
    """One kernel of the lab: what it is to make of x, and what the checker says of it as it is given."""

    says: str
    expected: Callable[[Array], Array]
    n: int = THREADS * BLOCKS
    total: bool = False  # the result is one number, `total`, which begins at 0


def reversed_in(x: Array, width: int) -> Array:
    return x.reshape(-1, width)[:, ::-1].reshape(-1)


def warp_sums(x: Array) -> Array:
    sums = np.repeat(x.reshape(-1, 32).sum(1), 32)
    return np.where(np.arange(len(x)) % 32 < 16, sums, 0)


KERNELS = {
    "k1": Given(RACE, lambda x: reversed_in(x, 64)),
    "k2": Given(DIVERGENT, lambda x: reversed_in(np.pad(x, (0, 28)), 64)[:100], n=100),
    "k3": Given(RACE, lambda x: reversed_in(x, 32) + reversed_in(x, 2)),
    "k4": Given(RACE, lambda x: x.sum(keepdims=True), total=True),
    "k5": Given(DEADLOCK, warp_sums),
    "k6": Given(RACE, lambda x: x + np.pad(x, (1, 0))[:-1]),
}

SAYS = {
    "still_there": "it is the same kind of error as before: what was added orders something else.",
    "barrier_not_for_all": "a barrier waits for all threads of its block, and a warp's for all lanes of its mask: here "
    "not all of them come.",
    "another_one": "the first error is gone, and this is another one.",
    "silent_and_wrong": "the checker knows who waits for whom, and not what the kernel is for.",
    "barrier_too_many": "every barrier makes all threads wait: one that nobody needs costs time and explains nothing.",
}


def said_of(file: Path) -> str:
    """Return what the checker says of a kernel of this lab, or that it is right in every order: for run.py."""
    given = KERNELS.get(file.stem)
    if given is None:
        return f"the lab has {', '.join(KERNELS)}"
    try:
        return trial(file, given) or f"right, in {len(SCHEDULES)} orders"
    except KernelError as error:
        return str(error)
    except DoesNotCompile as error:
        return "\n".join(error.lines)


def trial(file: Path, given: Given) -> str:
    """Return where the numbers are wrong, or "". KernelError for what the checker finds; DoesNotCompile."""
    module = load_kernels(file, ["kernel"])
    for schedule in SCHEDULES:
        x = np.random.default_rng(0).integers(1, 10, given.n).astype(np.float32)
        out, total = np.full(given.n, UNTOUCHED, np.float32), np.zeros(1, np.float32)
        with thread_schedule(schedule):
            module.launch("kernel", (BLOCKS,), (THREADS,), [out, x, *[total] * given.total, given.n])
        result, expected = total if given.total else out, given.expected(x)
        if not np.array_equal(result, expected):
            i = int(np.flatnonzero(result != expected)[0])
            name = "total" if given.total else f"out[{i}]"
            return f"{name} is {result[i]:g}, expected {expected[i]:g}"
    return ""


def needless_barrier(file: Path, given: Given) -> str:
    """Return the first barrier without which nothing changes, as `__syncthreads in line 7`; "" if each is needed."""
    source = without_comments(file.read_text("utf-8"))
    for barrier in BARRIER.finditer(source):
        try:
            missed = bool(trial(kept(source[: barrier.start()] + ";" + source[barrier.end() :]), given))
        except (KernelError, DoesNotCompile):
            missed = True
        if not missed:
            word = barrier[0].partition("(")[0].strip()
            return f"{word} in line {source.count(chr(10), 0, barrier.start()) + 1}"
    return ""


def kept(source: str) -> Path:
    """Return a file of this content beside the builds: the same one each time, so that it is compiled once."""
    content = source.encode()
    file = cache_folder() / "barriers" / f"{hashlib.sha256(content).hexdigest()[:24]}.cu"
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}")
        partial.write_bytes(content)
        partial.replace(file)
    return file


def mistake_of(error: KernelError, given: Given) -> str:
    """Return the name of the known mistake that leaves this error."""
    if error.kind in (DIVERGENT, DEADLOCK, "divergent warp") and given.says == RACE:
        return "barrier_not_for_all"
    return "still_there" if error.kind == given.says else "another_one"


def wrong(lines: list[str], mistake: str) -> Verdict:
    return Verdict(NAME, WRONG, lines, mistake=mistake, says=SAYS[mistake])


def grade_folder(folder: Path) -> Verdict:
    """Return the verdict on the six kernels: that of the first which is not right."""
    predictions = read_answers(folder / PREDICTIONS)
    if open_ones := [name for name in KERNELS if name not in predictions]:
        line = f"{PREDICTIONS} says nothing of {', '.join(open_ones)}: predict first, then run, then put right."
        return Verdict(NAME, NOT_ATTEMPTED, [line])
    lines = [
        f"predicted right: {sum(predictions[name].lower() == k.says for name, k in KERNELS.items())} of {len(KERNELS)}"
    ]
    for name, given in KERNELS.items():
        file = folder / f"{name}.cu"
        if file.is_file() and file.read_bytes() == (GIVEN / file.name).read_bytes():
            return Verdict(NAME, NOT_ATTEMPTED, [*lines, f"{name} is as it was given"], cases=len(lines) - 1)
        try:
            if sentence := trial(file, given):
                return wrong([*lines, f"{name}: the checker is silent, and {sentence}"], "silent_and_wrong")
        except KernelError as error:
            return wrong([*lines, str(error)], mistake_of(error, given))
        except DoesNotCompile as error:
            verdict = error.verdict(NAME)
            verdict.lines = [*lines, *verdict.lines]
            return verdict
        if barrier := needless_barrier(file, given):
            return wrong([*lines, f"{name} is right, and as right without the {barrier}"], "barrier_too_many")
        lines.append(f"{name} is right, in {len(SCHEDULES)} orders, and needs each of its barriers")
    return Verdict(NAME, PASSED, lines, cases=len(KERNELS))


def file_names() -> Iterator[str]:
    """The files that the learner gets."""
    yield from (f"c_race/{name}.cu" for name in KERNELS)
    yield from (f"c_race/{PREDICTIONS}", "c_race/run.py")


LAB = Lab(
    name=NAME,
    title="Find the race",
    page="labs/c_race.md",
    files=tuple(file_names()),
    minutes=45,
    hints=(
        "Follow one number of shared or global memory: who writes it, who reads it, and what makes the reader wait?",
        "A block waits with __syncthreads, a warp with __syncwarp, and nothing makes one block wait for another. A "
        "shuffle hands over its own value and orders no memory.",
        "A loop that comes round again has a second pair: who read in this round, and who writes in the next. And "
        "whoever waits must be sure that all the others come.",
    ),
    grade=grade_folder,
    limit=180.0,
    needs=("compiler",),
)
