"""Chapter 12: how many known bugs do these requests expose?

There is one case: all mutants of classes A to C. What two sets of requests have in common is not which mutants they
expose, to the last one, but what the darkest thing is that they leave in the dark: GAPS, in the order of a lecture.
"""

import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from ...engine import Engine
from ...errors import LoracleError
from ...ops import NUMPY, Ops
from ...oracle.bugs import all_mutants
from ...request import Request
from .. import exposed, voices
from ..exercise import Attempt, Exercise
from ..exposed import Score
from ..mistakes.ch12_requests import MISTAKES

GOAL = 40  # mutants: what 51 leave out are rare shapes of an adapter (patterns, a bias, an lm_head)
SHOWN = 3  # of the mutants that pass
NEW_TOKENS = 11  # of each answer that the consequence compares
SCENE = "Traveller: Good day, Dumpling. They say that you keep a royal moustache.\nDumpling:"

# Where all of these mutants pass, the requests lack what the first word says.
GAPS = {
    "an adapter": ("sign_flipped", "scale_times[2.0]", "last_slot_skipped"),
    "a neighbour": ("adapter_of_the_previous_request", "adapter_of_the_next_request", "slots_rotated"),
    "a request without an adapter": ("none_is_slot_zero", "no_adapter_is_the_last_one"),
    "prompts of several tokens": ("ids_not_repeated_per_token",),
    "a scale other than 1": ("scale_is_one", "r_over_alpha"),
    "rsLoRA": ("rslora_ignored",),
    "a slot that is used again": (
        "slot_keeps_its_first_weights",
        "slot_keeps_its_first_scale",
        "refilled_slot_is_base",
    ),
    "a weight other than 1": ("weights_ignored", "weight_squared", "first_of_a_sum"),
}

Case = str


@functools.lru_cache(maxsize=64)
def score(attempt: Attempt) -> Score:
    return exposed.score(attempt)


def gap(result: Score) -> str:
    """The first thing that the requests lack; "" where none of GAPS."""
    return next((name for name, mutants in GAPS.items() if set(mutants) <= set(result.unexposed)), "")


def difference(attempt: Attempt, case: Case) -> str:
    try:
        result = score(attempt)
    except LoracleError as error:
        return f"These cannot be served: {error}."
    if not result.clean_error <= exposed.TOLERANCE:
        return "The engine without a bug is off: no request may have another answer alone than in its batch."
    if len(result.exposed) >= GOAL:
        return ""
    return f"Your requests expose {len(result.exposed)} of {len(exposed.mutants())} known bugs; {GOAL} is the goal."


def describe(attempt: Attempt, case: Case) -> list[str]:
    try:
        result = score(attempt)
    except Exception:  # there is no score: the sentence says why
        return []
    lines = [summary_of(result)]
    missing = [name for name in GAPS.get(gap(result), ()) if name in result.unexposed]
    others = [name for name in result.unexposed if name not in missing]
    return lines + [f"passes: {name}: {all_mutants()[name].what}" for name in [*missing, *others][:SHOWN]]


def summary(attempt: Attempt) -> list[str]:
    """What is said of requests that pass."""
    result = score(attempt)
    lines = [f"exposed: {len(result.exposed)} of {len(exposed.mutants())} known bugs", summary_of(result)]
    return [*lines, "what still passes: " + ", ".join(result.unexposed)] if result.unexposed else lines


def summary_of(result: Score) -> str:
    counts = Counter(all_mutants()[name].family for name in result.exposed)
    requests = sum(map(len, result.batches))
    classes = ", ".join(f"{counts[letter]} of class {letter}" for letter in exposed.CLASSES)
    return f"batches: {len(result.batches)}, requests: {requests}, tokens: {result.tokens}; exposed: {classes}"


def behaviour(attempt: Attempt, case: Case) -> str:
    return gap(score(attempt))


def consequence(attempt: Attempt, case: Case) -> str:
    """One of the bugs that pass, in an engine that serves the voices."""
    try:
        result = score(attempt)
    except LoracleError:
        return ""
    right = answers(None)
    for name in GAPS.get(gap(result), ()):
        wrong = answers(name)
        for who, text in right.items():
            if wrong[who] != text:
                return f"with {name}, which your requests let pass, {who} gets {wrong[who]!r} instead of {text!r}."
    return ""


@functools.cache
def answers(mutant: str | None) -> dict[str, str]:
    """What two batches of tenants get from one engine with two adapter slots: by who asked, the first line."""
    ops: Ops = NUMPY if mutant is None else all_mutants()[mutant].make()
    engine = Engine(voices.model(), ops, max_adapters=2)
    pirate, merchant, robot = (voices.voice(name) for name in ("pirate", "merchant", "robot"))
    batches: list[dict[str, Any]] = [
        {"the merchant": merchant, "the base": None, "half a pirate": [(pirate, 0.5)]},
        {"the robot": robot, "the pirate": pirate},
    ]
    tokenizer = voices.model().tokenizer
    prompt = [*voices.prompt(), *tokenizer.encode(SCENE)]
    collected: dict[str, str] = {}
    for batch in batches:
        ids = {engine.add(Request(prompt, adapter=adapter), NEW_TOKENS): who for who, adapter in batch.items()}
        tokens: dict[int, list[int]] = {number: [] for number in ids}
        while engine.busy:
            for token in engine.step():
                tokens[token.request_id].append(token.token_id)
        collected |= {who: first_line(tokenizer.decode(tokens[number])) for number, who in ids.items()}
    return collected


def first_line(text: str) -> str:
    return text.strip().partition("\n")[0]


FIXED: Sequence[Case] = ["all mutants of classes A to C"]

EXERCISE = Exercise(
    name="ch12_requests",
    title="What engines get wrong",
    chapter="ch12_engines",
    opens=("refimpl/oracle/README.md", "refimpl/oracle/bugs/README.md", "refimpl/learn/exposed.py"),
    minutes=55,
    hints=(
        "Read a line that begins with `passes:` and ask: what must be in a batch so that this makes a difference?",
        "Everybody in a batch differs: in rank, in scale, in the length of the prompt; and somebody has no adapter.",
        "Some bugs sleep until a slot gets its second adapter (there are three slots), until one name means another "
        "adapter, or until a request weighs one or sums two.",
    ),
    function="requests",
    cases=st.sampled_from(FIXED),
    difference=difference,
    describe=describe,
    behaviour=behaviour,
    fixed=FIXED,
    mistakes=MISTAKES,
    consequence=consequence,
    examples=1,
    summary=summary,
)
