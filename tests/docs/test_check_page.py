"""docs/check.md: its Python is run, in pytest as a reader would, and its seconds are the code's."""

import ast
import re
import time
from pathlib import Path

import pytest

from refimpl.engines.computed import read_steps
from refimpl.engines.interface import Computed
from refimpl.oracle import cause, watchdog
from refimpl.oracle.campaign import Campaign

pytest_plugins = ("pytester",)
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "check.md").read_text("utf-8")
FUNCTION, STEPS, FIXTURE, STRATEGIES = re.findall(r"```python\n(.*?)```", PAGE, re.S)

MY_MODULE = """
import functools
import refimpl

load_model = functools.cache(refimpl.load_model)
load_adapter = functools.cache(lambda folder, model_dir: refimpl.load_adapter(folder, load_model(model_dir)))

def my_function(model_dir, requests):
    model = load_model(model_dir)
    answers = []
    for r in requests:
        adapter = load_adapter(r["adapter_dir"], model_dir) if r["adapter_dir"] else None
        ids = list(r["prompt_ids"])
        for _ in range(r["max_new_tokens"]):
            rows = refimpl.logits(model, [refimpl.Request(ids, adapter)])[0]
            ids.append(int(rows[-1].argmax()))
        answers.append({"logits": rows, "token_ids": ids[len(r["prompt_ids"]) :]})
    return answers
"""


def fewer(text: str, said: str, number: int) -> str:
    """The page's example with a smaller number in it, for it takes seconds to ask so much."""
    assert len(re.findall(said, text)) == 1
    return re.sub(said, lambda match: match[0].replace(match[1], str(number)), text)


def test_both_ways_to_ask_in_pytest_pass_a_right_function(pytester: pytest.Pytester) -> None:
    """That they fail for a wrong one is held by test_check_developer.py and test_questions.py."""
    fixture = fewer(FIXTURE, r"cases=(\d+)", 2)
    strategies = fewer(STRATEGIES, r"max_examples=(\d+)", 4)
    imported = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom my_module import "
    pytester.makepyfile(
        my_module=MY_MODULE,
        test_right_fixture=f"{imported}my_function\n\n{fixture}",
        test_right_strategies=f"{imported}my_function\n\n{strategies}",
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=2)


def test_the_numbers_of_a_step_are_those_that_are_read() -> None:
    assert f"({', '.join(Computed._fields)})" in STEPS
    (example,) = re.findall(r"`(\[\(\d.*?\)\])`", PAGE)
    assert len(read_steps(ast.literal_eval(example), tokens=4)) == 2


def test_the_function_of_the_page_is_one() -> None:
    namespace: dict[str, object] = {}
    exec(FUNCTION, namespace)
    assert callable(namespace["my_function"])


def test_the_seconds_that_the_page_says_are_the_codes() -> None:
    said = (("cause.py", "SECONDS", r"A cause is looked for during (\d+) s of the processor"),)
    said += (("cause.py", "SCHEDULES", r"the engine's steps behind it during (\d+) s more"),)
    said += (("explain.py", "SEARCHING", r"names of known bugs during (\d+) s more"),)
    for file, name, sentence in said:  # as they are written: conftest.py gives the tests more
        text = (ROOT / "refimpl" / "oracle" / file).read_text("utf-8")
        assert re.findall(rf"^{name} = (\d+)\.0 ", text, re.M) == re.findall(sentence, PAGE) != []
    left = re.findall(r"or (\d+) times that where failures are (\d+),(\d+) times beyond it", PAGE)
    assert [(float(times), float(thousand + rest)) for times, thousand, rest in left] == [(cause.COARSE, cause.LARGE)]
    assert "the report is printed a second later" in PAGE and watchdog.GRACE == 1
    assert "may take a tenth more" in PAGE and watchdog.MORE == 0.1
    assert "ask no more after two thirds of this" in PAGE
    campaign, now = Campaign.__new__(Campaign), time.monotonic()
    for spent, is_late in ((30.0, True), (20.0, False)):
        campaign._began, campaign._end = now - spent, now - spent + 36.0
        assert campaign._is_late() == is_late
