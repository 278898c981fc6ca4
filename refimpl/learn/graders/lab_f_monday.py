"""Lab F: a pair of arrays is what hf_lora_convert.py would have written, to the bit.

The function is graded as an exercise is, on small adapters; then it converts the pirate, and that is compared with
what `loracle convert` makes of the same folder.
"""

from collections.abc import Hashable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ...formats.trtllm import to_pair
from .. import voices
from ..attempt import line_of
from ..exercise import Attempt, Exercise, Lab
from ..grade import grade, message_of
from ..load_file import DoesNotRun, load_function
from ..mistakes.lab_f_monday import MISTAKES, Lora, pair_by
from ..numbers import Primes, plain
from ..verdict import DOES_NOT_RUN, WRONG, Verdict

FILE, FUNCTION, PAGE = "to_pair.py", "to_pair", "page.md"
WIDTHS = {"q_proj": (1, 1), "gate_proj": (1, 2), "up_proj": (1, 2), "down_proj": (2, 1)}  # d_in, d_out
RANKS, ALPHAS = (
    (1, 2, 4),
    (1.0, 2.0, 8.0),
)  # whose scales are exact in float32, so that every order of rounding is right
EXAMPLES = 200

Row = tuple[tuple[int, ...], tuple[float, ...]]  # of the config, and of the weights


@dataclass(frozen=True)
class Case:
    """An adapter: which modules of which layers it has, all of one rank, and its scale."""

    modules: tuple[tuple[int, str], ...]
    r: int
    alpha: float
    use_rslora: bool

    def lora(self) -> Lora:
        """Return A and B of each module, filled with primes."""
        primes, lora = Primes(), {}
        for layer, name in self.modules:
            d_in, d_out = WIDTHS[name]
            lora[layer, name] = primes((self.r, d_in)).astype(np.float32), primes((d_out, self.r)).astype(np.float32)
        return lora


modules = st.tuples(st.integers(0, 1), st.sampled_from(list(WIDTHS)))
cases = st.builds(
    Case,
    st.lists(modules, min_size=1, max_size=3, unique=True).map(tuple),
    st.sampled_from(RANKS),
    st.sampled_from(ALPHAS),
    st.booleans(),
).filter(lambda case: not case.use_rslora or case.r != 2)  # the square root of 2 has no end

FIXED = [
    Case(((0, "q_proj"),), 1, 1.0, False),
    Case(((0, "q_proj"),), 1, 2.0, False),
    Case(((0, "q_proj"),), 2, 1.0, False),
    Case(((0, "q_proj"),), 4, 1.0, True),
    Case(((0, "down_proj"),), 2, 2.0, False),
    Case(((0, "gate_proj"),), 2, 2.0, False),
    Case(((0, "gate_proj"), (0, "up_proj")), 1, 1.0, False),
    Case(((1, "q_proj"), (0, "down_proj")), 1, 1.0, False),
]

expected_pair = pair_by()


def converted(attempt: Attempt, case: Case) -> Any:
    return attempt(case.lora(), case.alpha, case.use_rslora)


def difference(attempt: Attempt, case: Case) -> str:
    pair, expected = converted(attempt, case), expected_pair(case.lora(), case.alpha, case.use_rslora)
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        return f"expected a pair (lora_weights, lora_config), yours is {type(pair).__name__}"
    for name, array, right in zip(("lora_weights", "lora_config"), pair, expected, strict=True):
        if not isinstance(array, np.ndarray) or array.dtype != right.dtype:
            yours = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
            return f"{name} is {yours}, and the executor reads {right.dtype}"
        if array.shape != right.shape:
            return f"{name} has shape {list(array.shape)}, expected {list(right.shape)}"
    return "" if rows(pair) == rows(expected) else "a row differs"


def rows(pair: Any) -> list[Row]:
    """Return the rows in an order of their own: the executor minds none."""
    weights, config = pair
    numbers = [tuple(map(int, row)) for row in config[0]]
    return sorted(zip(numbers, (tuple(map(float, row)) for row in weights[0]), strict=True))


def describe(attempt: Attempt, case: Case) -> list[str]:
    scale = f"alpha {case.alpha:g}{', rsLoRA' if case.use_rslora else ''}"
    lines = [
        f"layer {layer}, {name}: A {plain(A)}, B {plain(B)}, {scale}" for (layer, name), (A, B) in case.lora().items()
    ]
    pair, expected = converted(attempt, case), expected_pair(case.lora(), case.alpha, case.use_rslora)
    for name, yours, right in zip(("weights", "config"), pair, expected, strict=True):
        if not np.array_equal(yours, right):
            lines += [f"your {name} {plain(yours)}", f"expected {plain(right)}"]
    return lines


def behaviour(attempt: Attempt, case: Case) -> Hashable:
    weights, config = converted(attempt, case)
    return str(weights.dtype), str(config.dtype), weights.shape, config.shape, tuple(rows((weights, config)))


CONVERSION = Exercise(
    name="lab_f_monday",
    title="Monday: the pair, by hand",
    chapter="",
    opens=("refimpl/formats/trtllm_pair.py",),
    minutes=60,
    hints=(
        "Print one row that you make, and write under each number which number of A or B it is.",
        "What is the scale of rank 4 with alpha 8, with rsLoRA and without? And which of the two matrices gets it?",
        "Two names mislead: look up in refimpl/formats/trtllm_modules.py what mlp_gate and mlp_h_to_4h stand for.",
    ),
    function=FUNCTION,
    cases=cases,
    difference=difference,
    describe=describe,
    behaviour=behaviour,
    fixed=FIXED,
    mistakes=MISTAKES,
    examples=EXAMPLES,
)


def grade_folder(folder: Path) -> Verdict:
    """Return the verdict on to_pair.py; the page is for a person to read, and one that is still empty is said."""
    if not (folder / FILE).exists():
        line = f"{FILE} is not there: `loracle learn reset {CONVERSION.name}` brings it back."
        return Verdict(CONVERSION.name, DOES_NOT_RUN, [line])
    try:
        function, printed = load_function(folder / FILE, FUNCTION)
    except DoesNotRun as error:
        return Verdict(CONVERSION.name, DOES_NOT_RUN, error.lines, printed=error.printed)
    verdict = grade(CONVERSION, function)
    verdict.printed = printed or verdict.printed
    if not verdict.passed:
        return verdict
    wrong = difference_of_a_voice(function)
    if wrong:
        return replace(verdict, outcome=WRONG, lines=[wrong])
    verdict.lines = ["the pirate's pair is what `loracle convert` writes, to the bit", *page_lines(folder / PAGE)]
    return verdict


def difference_of_a_voice(function: Attempt) -> str:
    """Return what is wrong in the pirate's pair, in one sentence; "" if nothing is."""
    adapter = voices.voice("pirate")
    pair, _ = to_pair(adapter, "float32", "peft")
    lora = {key: (tensors.A.astype(np.float32), tensors.B.astype(np.float32)) for key, tensors in adapter.lora.items()}
    try:
        weights, config = function(lora, adapter.config.lora_alpha, adapter.config.use_rslora)
        yours = rows((weights, config))
    except Exception as error:
        what = f"{type(error).__name__}: {message_of(error)} ({line_of(error, function)})"
        return f"the small adapters are right, and with the pirate's, which has more modules, it raises {what}"
    if yours == rows((pair.weights[None], pair.config[None])):
        return ""
    return "the small adapters are right, and the pirate's pair is not what `loracle convert` writes"


def page_lines(page: Path) -> list[str]:
    """Return what is to be said of the page: nothing of it is graded."""
    if not page.exists():
        return [f"{PAGE} is not there"]
    blanks = page.read_text("utf-8", "replace").count("...")
    return [f"{PAGE} has {blanks} blanks to fill in"] if blanks else [f"{PAGE} is for a person to read: show it"]


LAB = Lab(
    name=CONVERSION.name,
    title="Monday",
    page="labs/f_monday.md",
    files=("f_monday/to_pair.py", "f_monday/page.md"),
    minutes=CONVERSION.minutes,
    hints=CONVERSION.hints,
    grade=grade_folder,
)
