"""Environments are made step by step, go on where they stopped, and are found again until their recipe changes."""

import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from refimpl.engines import environments
from refimpl.engines.environments import folder, missing, python_of, set_up
from refimpl.engines.interface import EngineError
from refimpl.engines.recipes import RECIPES, Recipe, Step

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="engines in environments of their own need POSIX")

PYTHON = shlex.quote(sys.executable)


def note(letter: str) -> str:
    """A command that adds a letter to the file `notes` of the environment."""
    code = "import sys; open(sys.argv[1] + '/notes', 'a').write(sys.argv[2])"
    return f'{PYTHON} -S -c "{code}" {{env}} {letter}'


NEEDS_A_FILE = f"{PYTHON} -S -c \"import sys; open(sys.argv[1] + '/wanted')\" {{env}}"
RECIPE = Recipe(
    "some",
    "LORACLE_SOME_PYTHON",
    "nothing",
    (Step("first", note("1")), Step("second", NEEDS_A_FILE), Step("third", note("3"))),
    (),
)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty one. The virtual environment, which takes seconds, is noted down as done."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for recipe in (*RECIPES.values(), RECIPE):
        monkeypatch.delenv(recipe.variable, raising=False)
    folder(RECIPE).mkdir(parents=True)
    (folder(RECIPE) / "done").write_text("a virtual environment\n")
    return tmp_path


def test_a_step_that_fails_is_named_and_what_was_done_is_not_done_again() -> None:
    said: list[str] = []
    with pytest.raises(
        EngineError, match=r"^some: second: exit 1: FileNotFoundError.*wanted.*; all of it is in .*setup.log$"
    ):
        set_up(RECIPE, said.append)
    assert any(re.fullmatch(r"some 2/4: first: \d+ s", line) for line in said) and said[-1] == "some 3/4: second ..."
    env = folder(RECIPE)
    assert not (env / "complete").exists() and missing(RECIPE).startswith(
        "no environment: `loracle engines setup some`"
    )
    (env / "wanted").touch()
    said.clear()
    assert set_up(RECIPE, said.append) == env
    assert (env / "notes").read_text() == "13"
    assert "some 2/4: first: was done before" in said
    said.clear()
    assert set_up(RECIPE, said.append) == env
    assert said == [f"{env}: complete"] and (env / "notes").read_text() == "13"
    assert python_of(RECIPE) is None  # somebody has deleted it
    (env / "bin").mkdir()
    (env / "bin" / "python").touch()
    assert python_of(RECIPE) == env / "bin" / "python" and missing(RECIPE) == ""


def test_another_recipe_is_another_environment(cache: Path) -> None:
    other = replace(RECIPE, steps=RECIPE.steps[1:])
    assert folder(other) != folder(RECIPE) == folder(replace(RECIPE, cost="more"))
    assert folder(RECIPE).parent == cache / "loracle" / "engines"


def test_an_environment_of_the_users_own_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(RECIPE.variable, sys.executable)
    assert python_of(RECIPE) == Path(sys.executable) and missing(RECIPE) == ""
    monkeypatch.setenv(RECIPE.variable, str(tmp_path / "nowhere"))
    assert missing(RECIPE) == f"LORACLE_SOME_PYTHON is {tmp_path / 'nowhere'}, which is no program"


def test_what_this_machine_cannot_do_is_said_before_anything_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    young = replace(RECIPE, name="young", python=(9, 0))
    with pytest.raises(EngineError, match=r"^young: needs Python 9\.0, this is 3"):
        set_up(young, print)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(EngineError, match=r"^some: is built from source: install a C\+\+ compiler"):
        set_up(replace(RECIPE, compiles=True), print)
    with pytest.raises(EngineError, match=r"^some: needs npm, which is not on the PATH"):
        set_up(replace(RECIPE, needs=("npm",)), print)
    assert not folder(young).exists()


def test_a_step_that_never_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "STEP_TIMEOUT", 0.2)
    slow = replace(RECIPE, steps=(Step("sleep", f"{PYTHON} -S -c 'import time; time.sleep(3600)'"),))
    folder(slow).mkdir()
    (folder(slow) / "done").write_text("a virtual environment\n")
    with pytest.raises(EngineError, match=r"^some: sleep: not done after 0.2 s; the log is .*setup.log$"):
        set_up(slow, lambda line: None)


@pytest.mark.parametrize("name", RECIPES)
def test_every_file_that_a_recipe_reads_is_in_the_package_and_every_name_is_one_of_ours(name: str) -> None:
    recipe = RECIPES[name]
    for step in recipe.steps:
        for word in shlex.split(step.command):
            given = word.format(env="ENV", python="PYTHON", here=environments.HERE)
            if str(environments.HERE) in given:
                assert Path(given).is_file() and str(Path(given).relative_to(environments.HERE)) in recipe.files
    assert len({step.what for step in recipe.steps}) == len(recipe.steps)  # they are noted down by these
