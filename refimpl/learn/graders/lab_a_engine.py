"""Lab A: everything that a learner passed, in one engine, before the judge that vLLM and PEFT stand before.

The exercises asked each function alone, on small cases. Here they work together and over time: what only looked right
comes out, and is led back to its chapter.
"""

import tempfile
from pathlib import Path

from ...engines.ours import Ours
from ...oracle import check as oracle
from ...oracle.keep import keep
from ...oracle.reports.result import CampaignSettings, Result
from ..exercise import Lab
from ..verdict import NOT_ATTEMPTED, PASSED, WRONG, Verdict
from ..your_engine import NAME, Step, fillable, led_back, ops_of, passed_steps

CASES, SEQUENCES = 6, 6  # more of them find rarer mistakes, and take longer: these are ten seconds of one core


def grade(folder: Path) -> Verdict:
    """Return the oracle's verdict on the engine of the course that this lab's folder, labs/lab_a_engine, lies in."""
    course = folder.absolute().parents[1]
    steps = passed_steps(course)
    if not steps:
        return Verdict(LAB.name, NOT_ATTEMPTED, ["No step of the engine is passed yet: the chapters come first."])
    with tempfile.TemporaryDirectory() as scratch:
        result = campaign(steps, Path(scratch))
        if result.verdict != "pass":
            return Verdict(LAB.name, WRONG, failure(result, course, Path(scratch)), cases=len(result.played))
    if missing := missing_exercises(steps):
        # Not WRONG: in a report on a class, who has only done chapter 1 has made no mistake here.
        lines = [
            f"Yours, and right together: {len(steps)} of {len(fillable())} steps. Still ours: {', '.join(missing)}."
        ]
        return Verdict(LAB.name, NOT_ATTEMPTED, lines, cases=len(result.played), headline="not yet.")
    return Verdict(LAB.name, PASSED, cases=len(result.played))


def campaign(steps: list[Step], work: Path) -> Result:
    """Ask the learner's engine a few batches and a few sequences of requests, on random models."""
    settings = CampaignSettings(CASES, SEQUENCES, jobs=1, below=False, name_bug=False)
    return oracle.check(lambda: Ours(lambda: ops_of(steps)), "random", {}, settings, work)


def failure(result: Result, course: Path, work: Path) -> list[str]:
    """Return what went wrong, and the chapter that it leads back to."""
    failed = sum(played.verdict != "pass" for played in result.played)
    lines = [f"{failed} of {len(result.played)} cases fail that the reference, rounded elsewhere, passes."]
    lines += [f"{symptom.what} ({symptom.count} of {symptom.of} failed)" for symptom in result.explanation.symptoms[:3]]
    if result.explanation.smallest is None:
        return lines
    lines.append(f"The smallest failure: {result.explanation.smallest_in_words}")
    repro = keep(result, work / "repro", NAME, {"folder": str(course)}, seed=0)
    return [*lines, f"It leads back to {led_back(repro)}."]


def missing_exercises(steps: list[Step]) -> list[str]:
    """Return the exercises that would fill a step and are not passed."""
    passed = {step.exercise.name for step in steps}
    return [exercise.name for exercise in fillable() if exercise.name not in passed]


LAB = Lab(
    name="lab_a_engine",
    title="Your engine, judged",
    page="labs/a_your_engine.md",
    files=(),
    minutes=60,
    hints=(
        "`loracle learn engine` says which steps are yours and which exercises would make more of them yours.",
        "A failure names a chapter. Its exercise passed on small cases: what is different in an engine? Longer "
        "blocks, more requests, the same function called again later.",
        "`loracle check --engine learn --model random --cases 6 --sequences 6 --report out` keeps the smallest failure "
        "as a folder: out/repro/README.md tells its story, and `loracle check --replay out/repro` asks it again.",
    ),
    grade=grade,
)
