"""Lab E: eight engines under code names. What the learners found out is in answers.toml; points are what it is worth.

The right answers stand nowhere: the class and the cause are asked of the mutant behind the code name, and which modules
are wrong is computed, with adapters that are cut down to one module each.
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...adapter import Adapter, PeftConfig
from ...config import LAYER_MODULES, ModelConfig
from ...model import logits
from ...ops import NUMPY
from ...oracle.bugs import CLASSES, Mutant, all_mutants
from ...oracle.bugs.blind import HUNT, revealed
from ...request import Request
from ...synthetic.adapters import random_adapter
from ...synthetic.models import random_model
from ..exercise import Lab
from ..verdict import DOES_NOT_RUN, NOT_ATTEMPTED, PASSED, WRONG, Verdict

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NAME, FILE = "lab_e_bug_hunt", "answers.toml"
POINTS = {"class": 1, "module": 1, "cause": 2}
ENOUGH = 20  # of the 32 points that there are: the lab is passed
ALL, NONE = "all", "none"  # modules: every one is wrong; none is, what they are given is

CONFIG = ModelConfig(48, 16, 24, 2, 4, 2, 4, max_position_embeddings=64)  # small, and no two widths alike but q and o
LENGTHS = {"a": 12, "": 9, "b": 5}  # tokens of the prompt of each adapter, "" is the base
NOISE = 1e-9  # of logits in float64: above it is no rounding


def grade_folder(folder: Path) -> Verdict:
    """Return the points of the answers in the folder, engine by engine; passed from ENOUGH points on."""
    try:
        answers = tomllib.loads((folder / FILE).read_text("utf-8-sig"))
    except (OSError, ValueError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        return Verdict(NAME, DOES_NOT_RUN, [f"{FILE} cannot be read: {error}"])
    mistakes = [line for code, answer in answers.items() for line in mistakes_of(code, answer)]
    if mistakes:
        return Verdict(NAME, DOES_NOT_RUN, mistakes)
    given = {code: {key: value for key, value in answer.items() if value} for code, answer in answers.items()}
    if not any(given.values()):
        return Verdict(NAME, NOT_ATTEMPTED)
    lines, total = [], 0
    for code in HUNT:
        points = points_of(revealed(code), given.get(code, {}))
        total += sum(points.values())
        words = ", ".join(f"{key} {'right' if points[key] else 'not yet'}" for key in points)
        lines.append(f"{code}  {sum(points.values())} of {sum(POINTS.values())}   {words or 'no answer yet'}")
    outcome, word = (PASSED, "passed") if total >= ENOUGH else (WRONG, "not yet")
    headline = f"{word}: {total} of {len(HUNT) * sum(POINTS.values())} points; {ENOUGH} are enough"
    return Verdict(NAME, outcome, lines, cases=len(HUNT), headline=headline)


def mistakes_of(code: str, answer: Any) -> list[str]:
    """Return what cannot be an answer: a code name that is none, a class, a module or a cause that there is not."""
    if code not in HUNT or not isinstance(answer, dict):
        return [f"[{code}] is none of the eight engines: {', '.join(HUNT)}"]
    lines = [f"[{code}] has {key!r}: an answer has {', '.join(POINTS)}" for key in answer if key not in POINTS]
    if answer.get("class") and answer["class"] not in list(CLASSES):
        lines.append(f"[{code}] class {answer['class']!r}: one of {', '.join(CLASSES)}")
    modules = (*LAYER_MODULES, ALL, NONE)
    lines += [f"[{code}] module {name!r}: {', '.join(modules)}" for name in listed(answer) if name not in modules]
    if answer.get("cause") and answer["cause"] not in list(all_mutants()):
        lines.append(f"[{code}] cause {answer['cause']!r}: a name that `loracle engines --mutants` lists")
    return lines


def listed(answer: Mapping[str, Any]) -> list[str]:
    """Return the modules of an answer: one as a text, or several as a list."""
    modules = answer.get("module") or []
    return list(map(str, modules)) if isinstance(modules, list) else [str(modules)]


def points_of(mutant: Mutant, answer: Mapping[str, Any]) -> dict[str, int]:
    """Return the points for what was answered."""
    right: dict[str, Callable[[], bool]] = {
        "class": lambda: answer["class"] == mutant.family,
        "module": lambda: sorted(listed(answer)) == wrong_modules(mutant),
        "cause": lambda: answer["cause"] == mutant.name,
    }
    return {key: POINTS[key] * right[key]() for key in POINTS if key in answer}


def wrong_modules(mutant: Mutant) -> list[str]:
    """Return the modules whose delta comes out wrong in one batch of whole prompts, sorted; ["all"] or ["none"]."""
    model = random_model(CONFIG, np.random.default_rng(0), "float64")
    wrong = []
    for name in LAYER_MODULES:
        rng = np.random.default_rng(1)
        peft = PeftConfig(r=2, lora_alpha=3.0, target_modules=(name,))
        adapters = {key: random_adapter(CONFIG, peft, key, rng) for key in LENGTHS if key}
        requests = [request(adapters.get(key), length, rng) for key, length in LENGTHS.items()]
        rows, right = (logits(model, requests, ops) for ops in (mutant.make(), NUMPY))
        if not all(np.abs(x - y).max() <= NOISE for x, y in zip(rows, right, strict=True)):
            wrong.append(name)
    if len(wrong) == len(LAYER_MODULES):
        return [ALL]
    return sorted(wrong) or [NONE]


def request(adapter: Adapter | None, length: int, rng: np.random.Generator) -> Request:
    return Request([int(token) for token in rng.integers(0, CONFIG.vocab_size, length)], adapter)


LAB = Lab(
    name=NAME,
    title="Bug hunt",
    page="labs/e_bug_hunt.md",
    files=("e_bug_hunt/answers.toml",),
    minutes=90,
    hints=(
        "Which requests are wrong: those of one adapter, of all, the base's as well? Alone, or only beside others?",
        "Wrong from the first token on, or from some token on, or only in an engine that has served before?",
        "Read the classes in refimpl/oracle/bugs/README.md: what would the smallest failure of each look like?",
    ),
    grade=grade_folder,
)
