"""A short campaign against PEFT with a bug in it, on a testbed so small that it takes seconds, and its outcome."""

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from peft_bugs import BUGS, Bug

from refimpl.config import ModelConfig
from refimpl.engines.peft import CAPABILITIES, Peft
from refimpl.oracle.campaign import Campaign
from refimpl.oracle.cases.testbed import Testbed
from refimpl.oracle.cases.variety import random_adapters
from refimpl.oracle.reports.result import CampaignSettings, Result
from refimpl.synthetic.models import random_model

# Three layers, two query heads to a key head, a window that is shorter than the prompts; the MLP is not square.
CONFIG = ModelConfig(96, 48, 80, 3, 4, 2, 12, max_position_embeddings=160, sliding_window=9)
CASES, SEQUENCES, SEED = 8, 8, 1
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Outcome:
    """One bug in one type."""

    bug: str
    family: str  # the class that its author says it has
    dtype: str
    verdict: str
    named: str  # the best explanation, whether or not it explains everything
    named_family: str
    explains: bool
    coefficient: float
    residual: float  # in units of noise
    next_best: str
    next_residual: float
    symptoms: tuple[str, ...]
    cause: str  # what a fit found, without any list of bugs; "" if nothing
    explained: int  # failed requests, of so many
    failed: int

    @property
    def right(self) -> bool:
        """Named, and of the right class; or a cause that leaves nothing unexplained, in words for a reader to judge."""
        whole = bool(self.cause) and self.explained == self.failed
        return whole or (self.explains and self.family == self.named_family)

    def row(self) -> dict:
        """For JSON, which has no infinity."""
        plain = asdict(self) | {"right": self.right}
        return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in plain.items()}


def make_testbed(dtype: str, root: Path) -> Testbed:
    """A random Mistral and four adapters, all that the campaigns of one type share."""
    rng = np.random.default_rng(5)
    model = random_model(CONFIG, rng, dtype)
    return Testbed.of(root, model, random_adapters(model, rng, CAPABILITIES, 4))


def campaign(make: Callable[[], Peft], testbed: Testbed, sequences: int) -> Result:
    """As `loracle check` runs it, but for the look below the noise: these bugs are above it."""
    plan = CampaignSettings(cases=CASES, sequences=sequences, seed=SEED, precision=testbed.dtype, below=False)
    with tempfile.TemporaryDirectory() as work:
        return Campaign(make, testbed, plan, Path(work)).run()


def examine(bug: Bug, testbed: Testbed) -> Outcome:
    """Return the oracle's verdict and diagnosis of PEFT with this bug."""
    result = campaign(bug.make, testbed, SEQUENCES if bug.sequences else 0)
    about = bug.name, bug.family, testbed.dtype, result.verdict
    symptoms = tuple(symptom.what for symptom in result.explanation.symptoms)
    cause = result.explanation.cause
    fitted = (cause.sentence, cause.explained, cause.failed) if cause else ("", 0, 0)
    if not result.explanation.findings:
        return Outcome(*about, "", "", False, float("nan"), float("nan"), "", float("nan"), symptoms, *fitted)
    diagnosis = result.explanation.findings[0]
    return Outcome(
        *about,
        diagnosis.name + (f" ({diagnosis.only})" if diagnosis.only else ""),
        diagnosis.family,
        diagnosis.explains,
        diagnosis.projection.coefficient,
        diagnosis.residual,
        *diagnosis.next_best,
        symptoms,
        *fitted,
    )


def pairs() -> list[tuple[Bug, str]]:
    """Every bug in every type in which it is one."""
    return [(bug, dtype) for bug in BUGS.values() for dtype in bug.dtypes]


def half() -> list[tuple[Bug, str]]:
    """Every bug once, the types in turn."""
    return [(bug, bug.dtypes[i % len(bug.dtypes)]) for i, bug in enumerate(BUGS.values())]
