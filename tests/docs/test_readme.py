"""What README.md says is run: the example as a doctest, the commands as CI's, the links as files."""

import doctest
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def test_the_example_prints_what_the_readme_says() -> None:
    example = doctest.DocTestParser().get_doctest(README, {}, "README.md", "README.md", 0)
    assert len(example.examples) >= 8
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    said: list[str] = []
    runner.run(example, out=said.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(said)


def test_ci_runs_the_command_of_the_readme() -> None:
    command = ".venv/bin/pip install -e '.[test]' && .venv/bin/pytest -n auto --dist loadfile"
    assert f"```\n{command}\n```" in README
    assert command.replace("install -e", "install -q -e") in (ROOT / ".ci" / "run").read_text("utf-8")


def test_every_link_of_the_readme_is_a_file() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert len(links) > 15
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_reading_table_names_the_modules_in_the_order_in_which_they_build_on_each_other() -> None:
    table = re.findall(r"^\| \[(\w+)\.py\]", README, re.M)
    assert table.index("ops") < table.index("model") < table.index("engine")
    for name in table:
        lines = (ROOT / "refimpl" / f"{name}.py").read_text("utf-8").count("\n")
        assert lines <= 260, f"{name}.py has {lines} lines: is it still one room?"
