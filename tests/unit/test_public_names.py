"""`import refimpl` is quick and offers every public name, whatever was imported before."""

import subprocess
import sys


def test_import_loads_nothing_and_every_name_is_there_afterwards() -> None:
    script = """
import sys, refimpl
assert "numpy" not in sys.modules
import refimpl.cli, refimpl.commands.demo, refimpl.commands.logits  # whatever else is loaded
for name in refimpl.__all__:
    value = getattr(refimpl, name)
    assert type(value).__name__ != "module", name
assert callable(refimpl.training.train) and callable(refimpl.training.read_dataset)
assert callable(refimpl.trace) and callable(refimpl.logits)
try:
    refimpl.nonsense
except AttributeError as error:
    assert "nonsense" in str(error)
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", script], check=True)
