"""What an exercise is: one function to write, the cases that it is tried on, and the mistakes that are known."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis.strategies import SearchStrategy

from .verdict import Verdict

Attempt = Callable[..., Any]  # the learner's function, or a known wrong one
Case = Any  # what an exercise draws: a small structure that can be compared and printed


class ReturnsNothing(Exception):
    """The attempt returns None where a result is expected."""

    def __init__(self) -> None:
        super().__init__("Your function returns None: its `return` is missing, or is not reached.")


@dataclass(frozen=True)
class Mistake:
    """A known wrong answer. `says` is one sentence for the learner: what is missing, and never what to type."""

    name: str
    says: str
    function: Attempt
    links: tuple[str, ...] = ()  # the engines that had it


@dataclass(frozen=True)
class Exercise:
    """One function to write.

    `difference` says in one sentence what is wrong in a case, or "" where it is right. It calls the attempt with copies
    of its own, so that an attempt may do with its arguments what it likes. `behaviour` is what two functions with the
    same mistake have in common; on the `fixed` cases it gives a mistake its name. These hold a case for each known
    mistake and are graded after the random ones, so that no known mistake passes by chance."""

    name: str  # "ch06_prefix_key": of the stub, the grader and the solution
    title: str
    chapter: str  # "ch06_prefix_cache"
    opens: tuple[str, ...]  # the files of the package that the chapter opens
    minutes: int
    hints: tuple[str, ...]  # each says more than the one before it, and none is the code
    function: str
    cases: SearchStrategy[Case]
    difference: Callable[[Attempt, Case], str]
    describe: Callable[[Attempt, Case], list[str]]  # the case, yours and expected
    behaviour: Callable[[Attempt, Case], Hashable]
    fixed: Sequence[Case]
    mistakes: Sequence[Mistake]
    consequence: Callable[[Attempt, Case], str] | None = None  # what a tenant would see; run in the engine
    as_ops: Callable[[Attempt], dict[str, Callable[..., Any]]] | None = None  # fields of Ops, made of the attempt
    in_place: bool = False  # it changes its first argument, and returns nothing
    may_change: bool = False  # its arguments are its own: elsewhere an answer that changes one is wrong
    summary: Callable[[Attempt], list[str]] | None = (
        None  # what is said of an attempt that passes: a score, for example
    )
    examples: int = 200  # random cases: more find rarer mistakes, and take longer


@dataclass(frozen=True)
class Lab:
    """One piece of work of 45 to 90 minutes, of which the grader gets the learner's folder."""

    name: str  # "lab_b_shrink"
    title: str
    page: str  # "labs/b_shrink.md"
    files: tuple[str, ...]  # below labs/: the learner gets copies in labs/NAME/, under their last names
    minutes: int
    hints: tuple[str, ...]
    grade: Callable[[Path], Verdict]  # gets that folder: labs/NAME/ of the learner's course
    limit: float = 600.0  # seconds, after which its grading is ended: it may compile kernels, or run a campaign
    needs: tuple[str, ...] = ()  # what `loracle learn doctor` looks for: "compiler", "gpu"
