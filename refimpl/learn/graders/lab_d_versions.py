"""Lab D: from v1 to v3. Predictions first, then the bytes that the checker counts, what the dispatcher chooses, and the
registers; on a GPU the times as well. What is graded is what was measured; a prediction is only compared."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ...adapter_slots import LoraWeights
from ...cuda import launch
from ...cuda.launch import LoraLaunch, choose
from ...cuda.runner import Traffic
from ...errors import DeviceError
from ...plans import LoraMapping
from ..answers_file import read_answers
from ..exercise import Lab
from ..kernel_attempts import on_this_cpu
from ..numbers import columns
from ..verdict import DOES_NOT_RUN, NOT_ATTEMPTED, PASSED, WRONG, Verdict

NAME, FILE = "lab_d_versions", "answers.txt"
TOKENS, D_IN, RANK = 16, 256, 16

# Of a thread on sm_89 in float16, as benchmarks/results/resources.json has them; the page shows them as a table.
REGISTERS = {
    "lora_shrink_v1": 37,
    "bgmv_shrink_v2": 40,
    "sgmv_shrink_v2": 39,
    "sgmv_shrink_v3": 40,
    "bgmv_expand_v2": 40,
    "sgmv_expand_v2": 96,
}
REGISTERS_OF_MULTIPROCESSOR, MOST_WARPS = 65_536, 48
WARP, GRANULE = 32, 256  # registers are given to a warp in pieces of so many


def traffic(kernel: str, adapters: int) -> dict[str, Traffic]:
    """What each argument of a shrink kernel moves when 16 tokens have so many adapters, on the CPU runner."""
    A, B = np.ones((RANK, D_IN), np.float32), np.ones((D_IN, RANK), np.float32)
    packed = launch.pack([{slot: LoraWeights(A, B, scale=1.0) for slot in range(adapters)}], [D_IN], "float32")
    ids = np.arange(TOKENS, dtype=np.int32)[:, None] % adapters
    x, y = np.ones((TOKENS, D_IN), np.float32), np.zeros((TOKENS, D_IN), np.float32)
    with on_this_cpu(), launch.checked() as launches:
        launch.lora_delta(y, x, packed, LoraMapping.of(ids, np.ones((TOKENS, 1))), launch=LoraLaunch(shrink=kernel))
    return launches[0].moved


def asked_for(kernel: str, adapters: int) -> Callable[[], str]:
    return lambda: str(traffic(kernel, adapters)["weights"].loaded)


def first_tokens_for_sgmv() -> str:
    """Ask the dispatcher, for more and more tokens of one adapter."""
    numbers = range(1, 1000)
    return str(next(n for n in numbers if str(choose(n, 1, RANK, D_IN, 1, "float32", False).shrink).startswith("sgmv")))


def warps(registers: int) -> int:
    """How many warps of a multiprocessor the registers suffice for."""
    of_warp = -(-registers * WARP // GRANULE) * GRANULE
    return min(MOST_WARPS, REGISTERS_OF_MULTIPROCESSOR // of_warp)


QUESTIONS: dict[str, Callable[[], str]] = {
    "v1_one_adapter": asked_for("lora_shrink_v1", 1),
    "sgmv_one_adapter": asked_for("sgmv_shrink_v2", 1),
    "bgmv_16_adapters": asked_for("bgmv_shrink_v2", TOKENS),
    "sgmv_16_adapters": asked_for("sgmv_shrink_v2", TOKENS),
    "distinct_one_adapter": lambda: str(traffic("lora_shrink_v1", 1)["weights"].distinct_loaded),
    "tokens_for_sgmv": first_tokens_for_sgmv,
    "most_registers": lambda: max(REGISTERS, key=lambda kernel: REGISTERS[kernel]),
    "warps_of_sgmv_expand_v2": lambda: str(warps(REGISTERS["sgmv_expand_v2"])),
}

SAYS = {
    "numbers_not_bytes": "that is a count of numbers, and one of float32 has four bytes.",
    "different_bytes_not_all": "those are the different bytes: a byte that is read twice is asked for twice.",
    "x_as_well": "those are the bytes of A and of x together.",
    "all_registers_for_one_block": "so many registers has the multiprocessor; a warp takes 32 times a thread's.",
    "not_what_the_machine_says": "the machine has another answer: measure it again, and compare the line's own words.",
}


@dataclass(frozen=True)
class Answer:
    """One line of answers.txt."""

    prediction: str
    measured: str


def plain_number(text: str) -> str:
    return text.replace(",", "").replace("_", "") if text.replace(",", "").replace("_", "").isdigit() else text


def read_file(file: Path) -> dict[str, Answer]:
    """Return the answers by name; either of the two may be "" ."""
    answers = {}
    for name, line in read_answers(file).items():
        prediction, _, measured = (part.strip() for part in line.partition("->"))
        answers[name] = Answer(plain_number(prediction), plain_number(measured))
    return answers


@lru_cache
def right_answers() -> dict[str, str]:
    """Every question's answer, measured here."""
    return {name: measure() for name, measure in QUESTIONS.items()}


def mistake_of(name: str, measured: str) -> str:
    """Return the name of the mistake that leads to this number."""
    right = right_answers()
    if not (measured.isdigit() and right[name].isdigit()):
        return "not_what_the_machine_says"
    number, correct = int(measured), int(right[name])
    in_bytes = not name.startswith(("tokens", "warps"))
    if in_bytes and 4 * number == correct:
        return "numbers_not_bytes"
    if in_bytes and number == int(right["distinct_one_adapter"]) < correct:
        return "different_bytes_not_all"
    if in_bytes and number == 2 * correct:  # x has as many rows as A, of the same length, and both are read alike
        return "x_as_well"
    if name.startswith("warps") and number == REGISTERS_OF_MULTIPROCESSOR // REGISTERS["sgmv_expand_v2"]:
        return "all_registers_for_one_block"
    return "not_what_the_machine_says"


def grade_folder(folder: Path) -> Verdict:
    """Return the verdict on answers.txt."""
    answers = read_file(folder / FILE)
    for column, what in (("prediction", "predict all of them before you measure"), ("measured", "now measure")):
        if open_ones := [name for name in QUESTIONS if not getattr(answers.get(name, Answer("", "")), column)]:
            return Verdict(NAME, NOT_ATTEMPTED, [f"no {column} yet: {', '.join(open_ones)}; {what}."])
    try:
        right = right_answers()
    except DeviceError as error:
        return Verdict(NAME, DOES_NOT_RUN, [str(error)])
    for name, answer in answers.items():
        if name in right and answer.measured != right[name]:
            mistake = mistake_of(name, answer.measured)
            lines = [f"{name}: measured {answer.measured}, predicted {answer.prediction}."]
            return Verdict(NAME, WRONG, lines, mistake=mistake, says=SAYS[mistake])
    rows = [
        {"": name, "p": answers[name].prediction, "m": value, "o": how_far(answers[name].prediction, value)}
        for name, value in right.items()
    ]
    heading = {"": "", "p": "predicted", "m": "measured", "o": "prediction"}
    return Verdict(NAME, PASSED, columns([heading, *rows]), cases=len(rows))


def how_far(prediction: str, measured: str) -> str:
    """How far a prediction was off, as a factor."""
    if prediction == measured:
        return "right"
    if not (prediction.isdigit() and measured.isdigit()) or not int(prediction):
        return "another one"
    factor = max(int(prediction) / int(measured), int(measured) / int(prediction))
    return f"off by a factor of {factor:.3g}"


LAB = Lab(
    name=NAME,
    title="v1 to v3, on your card",
    page="labs/d_versions.md",
    files=(f"d_versions/{FILE}", "d_versions/measure.py"),
    minutes=60,
    hints=(
        "Draw the grid (kernels/README.md has it): which rows of A does one block read, and how many blocks read the "
        "same row?",
        "v1 and BGMV have a block for each token, SGMV one for up to 16 tokens that share an adapter. Where no two "
        "tokens share one, a tile holds a single token.",
        "A thread's registers times 32 are a warp's, and they are given out in pieces of 256. The multiprocessor's "
        "65,536 divided by that are the warps that can wait for memory at the same time.",
    ),
    grade=grade_folder,
    limit=60.0,
    needs=("compiler",),
)
