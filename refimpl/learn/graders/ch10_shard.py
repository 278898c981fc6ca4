"""Chapter 10: the ranks' results, joined as the layer joins them, are what one GPU computes."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from ...arrays import Array
from ...request import Request
from .. import voices
from ..exercise import Attempt, Exercise
from ..mistakes.ch10_shard import MISTAKES
from ..numbers import Primes, listed, plain
from ..two_ranks import Ranks


@dataclass(frozen=True)
class Case:
    """How a layer is cut, and its sizes; the numbers are primes."""

    split: str = "out"
    ranks: int = 2
    width: int = 1  # of one rank's part of what is split
    other: int = 1  # the width that is not
    r: int = 1
    tokens: int = 1

    @property
    def widths(self) -> tuple[int, int]:
        """(d_out, d_in)"""
        of_all = self.ranks * self.width
        return (of_all, self.other) if self.split == "out" else (self.other, of_all)


def matrices(case: Case) -> tuple[Array, Array, Array]:
    """Fresh x, A and B."""
    primes, (d_out, d_in) = Primes(), case.widths
    return primes((case.tokens, d_in)), primes((case.r, d_in)), primes((d_out, case.r))


def expected(case: Case) -> Array:
    """y [tokens, d_out] of one GPU: x A^T B^T."""
    x, A, B = matrices(case)
    return x @ A.T @ B.T


def yours(attempt: Attempt, case: Case) -> Array:
    """What the ranks compute with the attempt's parts, joined as the layer joins them. ValueError where they do not
    fit what a rank has."""
    x, A, B = matrices(case)
    parts = listed(attempt(A, B, case.split, case.ranks))
    pairs = isinstance(parts, list | tuple) and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in parts)
    if not pairs or len(parts) != case.ranks:
        raise ValueError(f"a list of {case.ranks} pairs (A, B) is expected, one for each rank")
    inputs = np.split(x, case.ranks, axis=1) if case.split == "in" else [x] * case.ranks
    results = []
    for rank, (x_rank, (A_rank, B_rank)) in enumerate(zip(inputs, parts, strict=True)):
        A_rank, B_rank = np.asarray(A_rank, float), np.asarray(B_rank, float)
        if A_rank.ndim != 2 or A_rank.shape[1] != x_rank.shape[1]:
            raise ValueError(f"rank {rank} gets {x_rank.shape[1]} inputs, and its A is {list(A_rank.shape)}")
        if B_rank.ndim != 2 or B_rank.shape[1] != A_rank.shape[0]:
            raise ValueError(f"rank {rank}: A is {list(A_rank.shape)} and B {list(B_rank.shape)}")
        results.append(x_rank @ A_rank.T @ B_rank.T)
    if len({y.shape for y in results}) > 1:
        raise ValueError(f"the ranks' results have shapes {[list(y.shape) for y in results]}")
    return np.concatenate(results, axis=1) if case.split == "out" else np.sum(results, axis=0)


def difference(attempt: Attempt, case: Case) -> str:
    """Return what is wrong with the joined output [tokens, d_out] of all ranks, in a sentence; "" if nothing is."""
    try:
        joined = yours(attempt, case)
    except ValueError as error:
        return f"It cannot be computed: {error}."
    right, how = expected(case), "put side by side" if case.split == "out" else "added"
    if joined.shape != right.shape:
        return f"The ranks' results, {how}, are {list(joined.shape)}, and the layer's are {list(right.shape)}."
    if not np.array_equal(joined, right):
        return f"The ranks' results, {how}, are not what one GPU computes."
    return ""


def describe(attempt: Attempt, case: Case) -> list[str]:
    """Return the lines that show a case: its split, x, A and B, and what each rank makes of them."""
    x, A, B = matrices(case)
    lines = [f'split "{case.split}", {case.ranks} ranks', f"x {plain(x)}  A {plain(A)}  B {plain(B)}"]
    try:
        return [*lines, f"yours {plain(yours(attempt, case))}  expected {plain(expected(case))}"]
    except Exception:  # it raises, or what it returns does not fit: then that is what there is to see
        return [*lines, *filter(None, [parts_in_words(attempt, case)])]


def parts_in_words(attempt: Attempt, case: Case) -> str:
    """The attempt's parts as they are; "" where it returns none."""
    _, A, B = matrices(case)
    try:
        parts = attempt(A, B, case.split, case.ranks)
        return "your parts, rank by rank: " + ", ".join(f"A {plain(one)} and B {plain(other)}" for one, other in parts)
    except Exception:
        return ""


def behaviour(attempt: Attempt, case: Case) -> str:
    """What the ranks make of it; where that cannot be computed, the parts themselves, for there are many such."""
    try:
        return plain(yours(attempt, case))
    except ValueError:
        return parts_in_words(attempt, case)


def consequence(attempt: Attempt, case: Case) -> str:
    """A voice on two ranks that hold the attempt's parts, and on one."""
    requests = [Request(voices.prompt(), adapter=voices.voice("robot"))]
    right = voices.says(requests)[0].splitlines()
    try:
        text = voices.says(requests, Ranks(voices.model(), attempt).steps)[0].splitlines()
    except (ValueError, IndexError, TypeError):
        return "on two GPUs nobody gets an answer: the parts of A and B do not fit the parts of W."
    if text == right:
        return ""
    line = next(i for i, pair in enumerate(itertools.zip_longest(right, text, fillvalue="")) if pair[0] != pair[1])
    said, expected_line = "".join(text[line : line + 1]), "".join(right[line : line + 1])
    return f"on two GPUs the robot says {said!r}, and on one {expected_line!r}."


FIXED: Sequence[Case] = [
    Case(),
    Case("in"),
    Case("out", width=2),
    Case("in", width=2, other=2, tokens=2),
    Case("out", ranks=3, width=2, other=3, r=2),
    Case("in", ranks=4, width=1, other=4, r=3),
    Case("out", ranks=1, width=2),
    Case("in", ranks=1, width=3, other=2, r=2),
]

few = st.integers(1, 3)
EXERCISE = Exercise(
    name="ch10_shard",
    title="Two GPUs",
    chapter="ch10_two_gpus",
    opens=("refimpl/learn/two_ranks.py", "refimpl/formats/tensor_parallel.py"),
    minutes=40,
    hints=(
        "Which of the two matrices has d_out in its shape, and which d_in?",
        "Only the matrix that has the split width in its shape is cut. The other one goes to every rank as it is.",
        "B is [d_out, r] and A is [r, d_in]: the one is cut along its first axis, the other along its second.",
    ),
    function="shard",
    cases=st.builds(Case, st.sampled_from(["out", "in"]), st.sampled_from([2, 1, 3, 4]), few, few, few, few),
    difference=difference,
    describe=describe,
    behaviour=behaviour,
    fixed=FIXED,
    mistakes=MISTAKES,
    consequence=consequence,
    examples=80,
)
