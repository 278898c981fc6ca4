"""The worked example of refimpl/oracle/README.md is run; its numbers are right to 30 %, because most are rounding."""

import doctest
import re
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "refimpl/oracle/README.md"
NUMBER = re.compile(r"-?\d+\.\d*(?:e[+-]?\d+)?|-?\d+e[+-]?\d+")


class Numbers(doctest.OutputChecker):
    """Texts as they are; numbers with a point or an exponent within 30 % of each other."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        texts = [" ".join(NUMBER.sub("#", text).split()).replace("[ ", "[").replace(" ]", "]") for text in (want, got)]
        numbers = [[float(number) for number in NUMBER.findall(text)] for text in (want, got)]
        return texts[0] == texts[1] and numbers[1] == pytest.approx(numbers[0], rel=0.3)


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
    assert not check("array([1.26, 2.e-08])", "array([1.26, 4.e-08])", 0)
    assert not check("rslora_ignored", "adapters_ignored", 0)
