"""What a campaign is asked to do, and what comes of it: pure data, which campaign.py makes and the reports read."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ...engines.interface import Settings
from ..cases.case import Case, Exchange
from ..cases.testbed import Testbed
from ..causes.statement import CauseReport
from ..diagnosis.candidate import Candidate
from ..diagnosis.diagnose import Finding
from ..diagnosis.localise import Location
from ..diagnosis.symptoms import Symptom
from ..noise.measure import ErrorRatios
from ..noise.verdict import Thresholds, Verdict, overall
from .pictures import Picture


@dataclass(frozen=True)
class CampaignSettings:
    """How much is asked, of what seed, and whether to look below the noise."""

    cases: int = 50  # batches
    sequences: int = 20  # of loads, unloads and requests
    seed: int = 0
    budget: float | None = None  # seconds; what was not asked after two thirds of them is not asked
    precision: str = "float32"  # declared, or "auto"
    jobs: int = 1  # worker processes
    engines: int = 1  # that are asked side by side
    families: tuple[str, ...] = ()  # of random bases, by model_type: these, each alike; none: those of the engine
    ray: bool = False  # the numbers are made by tasks of the Ray cluster (ray_cluster.py), not by worker processes
    below: bool = True  # look below the noise, and state the power
    cause_seconds: float | None = None  # of the processor, in which a cause is looked for; None: those of cause.py
    name_bug: bool = True  # of a failure, look for the bug that does the same; without, the symptoms are all


@dataclass
class PlayedCase:
    """One case, the engine's errors in it, and the verdicts on them."""

    case: Case
    settings: Settings  # how the engine was started for it
    ratios: list[ErrorRatios]  # of each request that counts
    verdicts: list[Verdict] = field(default_factory=list)  # of the same requests
    terms: dict[str, Any] = field(default_factory=dict, repr=False)  # of the bugs that were looked for below the noise
    asked_twice: int = 0  # as which case it was asked a second time, from 1 on; 0: it was not
    is_second: bool = False  # is it judged by its second answers?

    @property
    def verdict(self) -> str:
        """The worst verdict of its requests."""
        return overall([verdict.verdict for verdict in self.verdicts])

    @property
    def requests(self) -> list[tuple[ErrorRatios, Verdict]]:
        """Each request that counts: its ratios and its verdict."""
        return list(zip(self.ratios, self.verdicts, strict=True))

    @property
    def has_wrong_numbers(self) -> bool:
        """Did a request fail whose numbers can be read?"""
        return any(ratios.ratio.size and verdict.verdict == "fail" for ratios, verdict in self.requests)


@dataclass
class Explanation:
    """What explain() says of a failure."""

    findings: list[Finding] = field(default_factory=list)  # bugs, best first
    symptoms: list[Symptom] = field(default_factory=list)
    first_divergence: Location | None = None
    locations: list[Location] = field(default_factory=list)  # how far off each layer and module is, as far as shown
    picture: Picture | None = None  # what the engine did beside what the bug does
    smallest: Case | None = None  # the shortest case found that fails
    small_settings: Settings | None = None  # how the engine was started for it
    diagnostics: list[str] = field(default_factory=list)
    seconds: float = 0.0
    smallest_in_words: str = ""
    answers: list[Exchange] = field(default_factory=list, repr=False)  # to the smallest, of a new process if any
    repeats: bool = True  # did it fail once more, when it was kept?
    cause: CauseReport | None = None  # by a fit: which delta is wrong where; nothing that leaves more than noise


@dataclass
class Result:
    """A finished campaign."""

    testbed: Testbed
    verdict: str
    played: list[PlayedCase]
    thresholds: Thresholds
    dtype: str
    diagnostics: list[str]
    explanation: Explanation = field(default_factory=Explanation)
    power: dict[str, str] = field(default_factory=dict)
    ceiling: float = float(
        "nan"
    )  # median ratio that a row has if every step is rounded at its worst (noise/ceiling.py)
    candidates: list[Candidate] = field(default_factory=list)  # every bug that was projected on, below the noise
    versions: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)  # what the engine is said not to do, and was not asked for
    unasked: str = ""  # which bases were not asked after this failure, in words
    stopped_by: str = ""  # "signal" (Ctrl-C) or "budget" (watchdog.py): this is what was known then


def worst_row(played: Sequence[PlayedCase]) -> Verdict | None:
    """Return the verdict with the largest ratio of a row, one that is no number before all others; None without any."""
    verdicts = [verdict for one in played for verdict in one.verdicts]
    return max(verdicts, key=lambda verdict: math.inf if math.isnan(verdict.ratio) else verdict.ratio, default=None)


def unreadable(played: Sequence[PlayedCase]) -> list[str]:
    """Return one line that counts the answers without numbers and quotes the most frequent reason; [] if there are
    none, or if they are fewer than half."""
    problems = [ratios.problem for one in played for ratios in one.ratios if ratios.problem]
    total = sum(len(one.ratios) for one in played)
    if 2 * len(problems) < max(total, 1):
        return []
    most_frequent = max(dict.fromkeys(problems), key=problems.count)
    count = "no answer" if len(problems) == total else f"only {total - len(problems)} of {total} answers"
    return [f"{count} could be read; the engine said: {most_frequent}"]
