"""The one grader: search for a case on which an attempt is wrong, shrink it, and give the mistake its name.

A case is drawn as a structure of a few small choices and then filled with numbers that can be told apart (numbers.py).
So what Hypothesis shrinks is choices, not matrices: what is left of a case is what the mistake needs.
"""

import time
import warnings
from collections.abc import Hashable

from hypothesis import HealthCheck, Phase, Verbosity, find, settings
from hypothesis.errors import Flaky, NoSuchExample
from numpy.exceptions import ComplexWarning

from .attempt import NotAttempted, TooSlow, WatchedAttempt, line_of, time_limit
from .exercise import Attempt, Case, Exercise, Mistake, ReturnsNothing
from .transposed import transposed_part
from .verdict import NOT_ATTEMPTED, PASSED, RAISES, TOO_SLOW, WRONG, Verdict

UNSTEADY = "Called twice with the same arguments it gives two results: something is kept between calls, or drawn."
COMPLEX = "Its numbers are complex, and real ones are expected."
AGAIN = 20  # cases that were right are asked once more when one is wrong: more find what is kept for longer
MESSAGE = 1000  # characters that are kept of what an exception says
LIMIT = 60.0  # seconds: larger is more patience with a slow machine, and with an endless loop


def grade(exercise: Exercise, function: Attempt, limit: float = LIMIT) -> Verdict:
    """Return the verdict on a function; limit is in seconds. The function may raise, print, or never end: each is an
    outcome. It runs in this process: whoever does not trust it starts another one (grade_file.py)."""
    began = time.perf_counter()
    attempt = WatchedAttempt(function, exercise.in_place, limit)
    try:
        with time_limit(attempt.patience, attempt.is_over), warnings.catch_warnings():
            warnings.simplefilter("error", ComplexWarning)
            verdict = search(exercise, attempt)
    except NotAttempted:
        verdict = Verdict(exercise.name, NOT_ATTEMPTED)
    except (TooSlow, Flaky):  # where TooSlow met Hypothesis itself, that takes it for a case that changes
        verdict = Verdict(exercise.name, WRONG, [UNSTEADY])
        if time.perf_counter() >= attempt.deadline:
            lines = [f"Not done after {time.perf_counter() - began:.0f} s: is there a loop without an end?"]
            verdict = Verdict(exercise.name, TOO_SLOW, lines)
    verdict.seconds = time.perf_counter() - began
    verdict.printed = attempt.printed
    return verdict


def search(exercise: Exercise, attempt: WatchedAttempt) -> Verdict:
    """Try random cases, then the fixed ones; describe the smallest on which the attempt is wrong."""
    tried = 0
    right: list[Case] = []  # the first ones

    def wrong(case: Case) -> bool:
        nonlocal tried
        tried += 1
        sentence = difference(exercise, attempt, case)
        if not sentence and len(right) < AGAIN:
            right.append(case)
        return bool(sentence)

    options = settings(
        max_examples=exercise.examples,
        derandomize=True,  # everybody in the room sees the same case
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
    )
    try:
        case = find(exercise.cases, wrong, settings=options)
    except NoSuchExample:
        # What chance did not meet: of eleven wrong prefix keys, 200 random pairs let four pass.
        case = next((case for case in exercise.fixed if wrong(case)), None)
        if case is None:
            if exercise.summary:  # a score: no definition that cases were held against
                return Verdict(exercise.name, PASSED, exercise.summary(attempt), cases=tried, headline=PASSED)
            return Verdict(exercise.name, PASSED, cases=tried)
    if any(difference(exercise, attempt, earlier) for earlier in right):
        return Verdict(exercise.name, WRONG, [UNSTEADY], cases=tried)
    return explain(exercise, attempt, case, tried)


def difference(exercise: Exercise, attempt: WatchedAttempt, case: Case) -> str:
    """What is wrong in this case, in one sentence; an exception of the attempt is one, too, and so is an argument that
    it changed."""
    attempt.changed = ""
    try:
        sentence = exercise.difference(attempt, case)
    except ReturnsNothing as error:
        return str(error)
    except ComplexWarning:  # made an error while grading: NumPy would drop the imaginary part
        return COMPLEX
    except Exception as error:
        return f"raises {type(error).__name__}: {message_of(error)} ({line_of(error, attempt)})"
    if sentence or not attempt.changed or exercise.may_change:
        return sentence
    return f"What it computes is right, but {attempt.changed} is not what it was before: whoever comes next meets that."


def message_of(error: Exception) -> str:
    """What an exception says, cut; "" where its own __str__ fails."""
    try:
        return str(error)[:MESSAGE]
    except Exception:
        return ""


def explain(exercise: Exercise, attempt: WatchedAttempt, case: Case, tried: int) -> Verdict:
    """Say all that is known of the smallest case."""
    attempt.returned_instead = False
    sentence = difference(exercise, attempt, case) or UNSTEADY
    raises = sentence.startswith("raises ")
    if attempt.returned_instead:
        sentence = "It returns something and leaves its first argument as it was: this exercise changes that in place."
    try:
        lines = exercise.describe(attempt, case)
    except Exception:  # no "yours" to show
        lines = [f"case: {case}"]
    also = "" if raises else transposed_part(exercise, attempt, case)
    says = " ".join(filter(None, (sentence, also)))
    verdict = Verdict(exercise.name, RAISES if raises else WRONG, [*lines, says], cases=tried)
    mistake = None if attempt.returned_instead else known_mistake(exercise, attempt)
    if mistake:
        verdict.mistake, verdict.says, verdict.links = mistake.name, mistake.says, mistake.links
    no_numbers = sentence in (str(ReturnsNothing()), COMPLEX)
    if exercise.consequence and not (raises or no_numbers or attempt.returned_instead):
        verdict.consequence = consequence(exercise, attempt, case)
    return verdict


def known_mistake(exercise: Exercise, attempt: Attempt) -> Mistake | None:
    """Return the one known mistake that behaves as the attempt does in every fixed case, or None."""

    def behaviour(function: Attempt) -> list[Hashable]:
        return [behaviour_in(exercise, function, case) for case in exercise.fixed]

    of_attempt = behaviour(attempt)
    alike = [mistake for mistake in exercise.mistakes if behaviour(mistake.function) == of_attempt]
    return alike[0] if len(alike) == 1 else None


def behaviour_in(exercise: Exercise, function: Attempt, case: Case) -> Hashable:
    """What the function does in the case; that it raises is a behaviour, too."""
    try:
        return exercise.behaviour(function, case)
    except Exception as error:
        return type(error).__name__


def consequence(exercise: Exercise, attempt: Attempt, case: Case) -> str:
    """What a tenant would see; an engine that stops is something to see."""
    assert exercise.consequence is not None
    try:
        return exercise.consequence(attempt, case)
    except Exception as error:
        return f"it stops: {type(error).__name__}: {error}"
