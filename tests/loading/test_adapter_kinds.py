"""Kinds of adapters that are more than a pair with a scale: what is honoured, and what is refused, in one line."""

from pathlib import Path
from typing import Any

import pytest
from folders import BASE, refused, write_adapter

import refimpl
from refimpl.errors import AdapterError
from refimpl.formats.peft import save_adapter
from refimpl.tools.inspect import inspect


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"alora_invocation_tokens": "Question"}, "'Question': it must be a list of token ids"),
        ({"alora_invocation_tokens": [3, -1]}, "[3, -1]: it must be a list of token ids"),
        ({"alora_invocation_tokens": [3, 13]}, "names token 13, outside of the vocabulary of 13: it would never act"),
        ({"alora_invocation_tokens": [3], "bias": "all"}, "alora_invocation_tokens and bias are both given"),
        ({"alora_invocation_tokens": [3], "use_dora": True}, "alora_invocation_tokens and use_dora are both given"),
    ],
)
def test_alora_that_means_nothing(tmp_path: Path, keys: dict[str, Any], says: str) -> None:
    folder = write_adapter(tmp_path / "adapter", **keys)
    with refused(AdapterError, says):
        refimpl.load_adapter(folder, BASE)


def test_alora_comes_back_from_its_own_folder(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter", alora_invocation_tokens=[3, 4])
    adapter = refimpl.load_adapter(folder, BASE)
    save_adapter(adapter, tmp_path / "saved")
    assert refimpl.load_adapter(tmp_path / "saved", BASE).config == adapter.config
    assert inspect(folder, BASE).config["alora_invocation_tokens"] == (3, 4)
