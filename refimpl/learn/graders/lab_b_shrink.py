"""Lab B: a shrink kernel in three steps. Each is graded as an exercise is: small cases, the smallest is shown, and a
wrong kernel that behaves like a known one gets its name; here under the checker, in every scheduling order."""

from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from ...adapter_slots import AdapterSlots
from ...arrays import Array, Precision, ceil_div
from ...config import Module
from ...cuda.runner import Traffic
from ...errors import KernelError
from ...plans import NO_ADAPTER, LoraMapping
from ...request import Request
from .. import voices
from ..exercise import Attempt, Exercise, Lab
from ..grade import grade
from ..kernel_attempts import SCHEDULES, DoesNotCompile, KernelAttempt, Shape, apart, body_of, load_kernels, what_it_is
from ..mistakes.lab_b_shrink import mistakes_of
from ..numbers import Primes, plain
from ..verdict import NOT_ATTEMPTED, PASSED, WRONG, Verdict

NAME, FILE = "lab_b_shrink", "shrink.cu"
UNTOUCHED = -7.0  # what Ax holds before a launch
SHOWN = 3  # numbers of a row: longer ones are not printed


@dataclass(frozen=True)
class Case:
    """The ids of the tokens, and the shape of every A."""

    adapter_ids: tuple[int, ...]
    rank: int
    d_in: int

    def __str__(self) -> str:
        return f"adapter_ids {list(self.adapter_ids)}, rank {self.rank}, d_in {self.d_in}"


# 70 is more than a block of 64 has threads, and 5 more than a block of four warps has rows.
CASES = st.builds(
    Case,
    st.lists(st.sampled_from([0, NO_ADAPTER, 1]), min_size=1, max_size=3).map(tuple),
    st.sampled_from([1, 2, 5]),
    st.sampled_from([1, 2, 70]),
)
FIXED = (
    *(Case((0,), 1, d_in) for d_in in (1, 2, 33, 70, 130)),
    *(Case((NO_ADAPTER, 0), 1, 3), Case((1, 0), 1, 2), Case((1, 0), 5, 2), Case((0, NO_ADAPTER), 33, 2)),
)


def numbers(shape: tuple[int, ...]) -> Array:
    """Distinct primes, and then the same again: a sum of a whole row stays exact in float32."""
    some = Primes()(25)
    return np.fromiter(islice(cycle(some), int(np.prod(shape))), np.float32).reshape(shape)


def arguments(case: Case) -> tuple[Array, Array, Array, Array, int, int]:
    """Ax, x, A, adapter_ids, rank and d_in, as the kernels take them; always new ones."""
    tokens, adapters = len(case.adapter_ids), max(0, *case.adapter_ids, 0) + 1
    x = numbers((tokens, case.d_in)) + 1  # of A by one, so that the two are not mistaken for each other
    A = numbers((adapters, case.rank, case.d_in))
    Ax = np.full((tokens, case.rank), UNTOUCHED, np.float32)
    ids = np.array(case.adapter_ids, np.int32)
    return apart(Ax), apart(x), apart(A), apart(ids), case.rank, case.d_in


def expected(case: Case) -> Array:
    """The definition: one product for each token that has an adapter."""
    Ax, x, A, adapter_ids, _, _ = arguments(case)
    for t, adapter in enumerate(adapter_ids):
        if adapter != NO_ADAPTER:
            Ax[t] = A[adapter] @ x[t]
    return Ax


def result(attempt: Attempt, case: Case, schedule: str | int) -> tuple[Array, dict[str, Traffic]]:
    """What the kernel wrote, and the bytes that each argument moved."""
    of_case = arguments(case)
    moved = attempt(*of_case, schedule=schedule)
    return of_case[0], moved


def difference(attempt: Attempt, case: Case, how_shared: str) -> str:
    """What is wrong in one of the schedules, in one sentence; then what is right, and shares nothing."""
    for schedule in SCHEDULES:
        try:
            Ax, moved = result(attempt, case, schedule)
        except KernelError as error:
            return str(error)
        if not np.array_equal(Ax, expected(case)):
            wrong = np.argwhere(Ax != expected(case))[0]
            order = "" if schedule == "forward" else f" (threads in {order_name(schedule)})"
            return f"Ax[{wrong[0]}][{wrong[1]}] is {plain(float(Ax[tuple(wrong)]))}{order}."
        if sentence := unshared(moved, case, how_shared):
            return sentence
    return ""


def order_name(schedule: str | int) -> str:
    return f"the order shuffled by {schedule}" if isinstance(schedule, int) else f"{schedule} order"


def unshared(moved: dict[str, Traffic], case: Case, how_shared: str) -> str:
    """What the bytes say of a kernel that is right: it reads A once for each row, and shares in the way of its step."""
    rows = sum(adapter != NO_ADAPTER for adapter in case.adapter_ids) * case.rank
    needed, loaded = 4 * rows * case.d_in, moved["A"].loaded
    if loaded > needed:
        times = loaded // needed
        return f"It reads {loaded:,} bytes of A, and {needed:,} are needed: every number of A is read {times} times."
    through = moved["shared"].stored
    if how_shared == "block" and rows and not through:
        return "Nothing goes through shared memory: how does one thread know what the 63 others have summed?"
    if how_shared == "warp" and through:
        return f"{through:,} bytes go through shared memory: lanes of one warp need none."
    return ""


def describe(attempt: Attempt, case: Case) -> list[str]:
    """The case, and where the rows are short: its numbers, yours and expected."""
    Ax, x, A, _, _, _ = arguments(case)
    lines = [str(case)]
    if case.d_in > SHOWN:
        return lines
    lines += [f"x {plain(x)}", f"A {plain(A)}"]
    try:
        Ax, _ = result(attempt, case, "forward")
        lines.append(f"yours    {plain(Ax)}")
    except KernelError:
        pass
    return [*lines, f"expected {plain(expected(case))}   ({UNTOUCHED:g}: what was there before)"]


def behaviour(attempt: Attempt, case: Case, how_shared: str) -> Hashable:
    """For each schedule what the checker says, or the numbers; and how it shares. Of a known mistake it stays."""
    remember = isinstance(attempt, KernelAttempt)  # a learner's is watched
    return (known_behaviour if remember else observed_behaviour)(attempt, case, how_shared)


def observed_behaviour(attempt: Attempt, case: Case, how_shared: str) -> Hashable:
    outcomes: list[Hashable] = []
    for schedule in SCHEDULES:
        try:
            Ax, moved = result(attempt, case, schedule)
            outcomes.append((Ax.tobytes(), unshared(moved, case, how_shared)))
        except KernelError as error:
            outcomes.append(what_it_is(error))
    return tuple(outcomes)


known_behaviour = lru_cache(maxsize=None)(observed_behaviour)


def consequence(attempt: Attempt, case: Case) -> str:
    """A voice of the embedded model, through the kernel in every module."""

    def lora_delta(
        y: Array, x: Array, module: Module, adapters: AdapterSlots, mapping: LoraMapping, p: Precision
    ) -> None:
        column = mapping.columns[0]
        for slot, lora in adapters.at(module).items():
            ids = np.where(column.adapter_ids == slot, 0, NO_ADAPTER).astype(np.int32)
            Ax = np.zeros((len(x), len(lora.A)), np.float32)
            weights = np.ascontiguousarray(lora.A, np.float32)[None]
            attempt(Ax, np.ascontiguousarray(x, np.float32), weights, ids, len(lora.A), x.shape[1])
            rows = column.adapter_ids == slot
            y[rows] += lora.scale * (Ax @ lora.B.T)[rows]

    ids = voices.prompt()[:2]
    requests = [Request(ids, adapter=voices.voice("robot")), Request(ids)]
    try:
        off = voices.largest_difference(requests, {"lora_delta": lora_delta})
    except KernelError:
        return ""
    return f"with two tokens, robot's logits are off by {off:.3g}." if off > 1e-3 else ""


@dataclass(frozen=True)
class Step:
    """One kernel to write, and how it is launched."""

    kernel: str
    title: str
    exercise: Exercise


def step(kernel: str, title: str, shape: Shape) -> Step:
    """Return the exercise of one step; shape: (Ax, x, A, adapter_ids, rank, d_in) -> grid and block."""
    how_shared = kernel.removeprefix("shrink_")
    exercise = Exercise(
        name=NAME,
        title=title,
        chapter="",
        opens=(),
        minutes=25,
        hints=(),
        function=kernel,
        cases=CASES,
        difference=partial(difference, how_shared=how_shared),
        describe=describe,
        behaviour=partial(behaviour, how_shared=how_shared),
        fixed=FIXED,
        mistakes=mistakes_of(how_shared, shape),
        consequence=consequence,
        may_change=True,  # Ax is what it writes; the others are const
        examples=20,  # each runs in four schedules
    )
    return Step(kernel, title, exercise)


def map_shape(Ax: Array, x: Array, A: Array, adapter_ids: Array, rank: int, d_in: int) -> tuple[tuple[int, int], int]:
    return (len(x), ceil_div(rank, 32)), 32


def block_shape(Ax: Array, x: Array, A: Array, adapter_ids: Array, rank: int, d_in: int) -> tuple[tuple[int, int], int]:
    return (len(x), rank), 64


def warp_shape(Ax: Array, x: Array, A: Array, adapter_ids: Array, rank: int, d_in: int) -> tuple[tuple[int, int], int]:
    return (len(x), ceil_div(rank, 4)), 128


SHAPES = {"shrink_map": map_shape, "shrink_block": block_shape, "shrink_warp": warp_shape}
STEPS = (
    step("shrink_map", "a thread for each number", map_shape),
    step("shrink_block", "a block shares a row", block_shape),
    step("shrink_warp", "a warp shares a row", warp_shape),
)


def grade_folder(folder: Path) -> Verdict:
    """Return the verdict on shrink.cu: that of the first step that is not passed."""
    file = folder / FILE
    try:
        module = load_kernels(file, [each.kernel for each in STEPS])
    except DoesNotCompile as error:
        return error.verdict(NAME)
    source, cases = file.read_text("utf-8"), 0
    lines: list[str] = []
    for number, each in enumerate(STEPS, 1):
        headline = f"step {number} of {len(STEPS)}, {each.kernel}, {each.title}"
        if not body_of(source, each.kernel):
            return Verdict(NAME, NOT_ATTEMPTED, [*lines, f"{headline}: not attempted"], cases=cases)
        attempt = KernelAttempt(lambda: module, each.kernel, SHAPES[each.kernel])
        verdict = grade(each.exercise, attempt)
        if not verdict.passed:
            verdict.lines = [*lines, f"{headline}:", *verdict.lines]
            return verdict
        if each.kernel == "shrink_warp" and "_sync(" not in body_of(source, each.kernel):
            return no_lane_hands_over([*lines, f"{headline}:"], verdict)
        lines.append(f"{headline}: passed, {verdict.cases} cases in {len(SCHEDULES)} orders")
        cases += verdict.cases
    return Verdict(NAME, PASSED, lines, cases=cases)


def no_lane_hands_over(lines: list[str], verdict: Verdict) -> Verdict:
    """The bytes do not show that one lane does all of it: that there is no shuffle does."""
    mistake = next(each for each in STEPS[-1].exercise.mistakes if each.name == "one_lane_does_it_all")
    lines = [*lines, "No lane hands anything to another: there is no shuffle."]
    return Verdict(NAME, WRONG, lines, mistake=mistake.name, says=mistake.says, cases=verdict.cases)


LAB = Lab(
    name=NAME,
    title="A shrink kernel, by hand",
    page="labs/b_shrink.md",
    files=("b_shrink/shrink.cu",),
    minutes=75,
    hints=(
        "Write for one thread first, on paper: which t, which j, and where does its row of A begin? Then ask which of "
        "the threads of the grid have no work at all.",
        "In step 2 each thread sums every 64th number of the row. Then half of the threads add the other half's sums "
        "to their own, again and again. Whoever reads what another thread wrote has to wait for it, in every round; "
        "and whoever waits needs all the others to come.",
        "In step 3 a shuffle hands over a lane's own sum to another lane, and no memory is needed. All 32 lanes that "
        "the mask names must call it, those without a number of the row as well: they bring a zero.",
    ),
    grade=grade_folder,
    limit=120.0,
    needs=("compiler",),
)
