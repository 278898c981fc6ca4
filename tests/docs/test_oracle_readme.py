"""The worked example of refimpl/oracle/README.md is run; its numbers are right to 30 %, those of rounding to a factor
of 3: another processor adds in another order."""

import doctest
import re
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "refimpl/oracle/README.md"
NUMBER = re.compile(r"-?\d+\.\d*(?:e[+-]?\d+)?|-?\d+e[+-]?\d+")


class Numbers(doctest.OutputChecker):
    """Texts as they are; numbers with a point or an exponent within 30 % of each other; those below 0.001, which are
    noise, and those above 1000, which are something in units of it, within a factor of 3."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        texts = [" ".join(NUMBER.sub("#", text).split()).replace("[ ", "[").replace(" ]", "]") for text in (want, got)]
        numbers = [[float(number) for number in NUMBER.findall(text)] for text in (want, got)]
        return texts[0] == texts[1] and all(map(alike, *numbers))


def alike(want: float, got: float) -> bool:
    """Are two numbers, of which one was printed by another processor, the same?"""
    bound = 1.3 if 1e-3 < abs(want) < 1e3 else 3.0
    return want == got or (want * got > 0 and 1 / bound < got / want < bound)


@pytest.mark.filterwarnings("ignore::refimpl.errors.AdapterWarning")
def test_the_worked_example_runs_and_has_these_numbers() -> None:
    text = README.read_text("utf-8").replace("```", "")
    example = doctest.DocTestParser().get_doctest(text, {}, README.name, str(README), 0)
    assert len(example.examples) > 30
    lines: list[str] = []
    runner = doctest.DocTestRunner(Numbers())
    assert runner.run(example, out=lines.append).failed == 0, "".join(lines)


def test_another_number_would_fail() -> None:
    check = Numbers().check_output
    assert check("array([1.26, 2.e-08])", "array([1.31,  2.1e-08])", 0)
    assert not check("array([1.26, 2.e-08])", "array([1.66, 2.e-08])", 0)
    assert check("[504867.0 2.e-08]", "[904867.0 4.e-08]", 0) and not check("2.e-08", "7.e-08", 0)
    assert not check("array([1.26, 2.e-08])", "array([-1.26, 2.e-08])", 0)
    assert not check("rslora_ignored", "adapters_ignored", 0)
