"""`loracle convert --to diffusers`, `--to kohya`: there and back, and one line for what cannot be."""

import json
from pathlib import Path

import numpy as np
import pytest
from pictures.test_picture_folder import config_json
from support.pictures import SMALL, random_picture_adapter

from refimpl import cli, load_picture_adapter, save_picture_adapter
from refimpl.adapter_slots import scale_of


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The config of a base: no weight is read."""
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps(config_json()))
    return tmp_path / "base"


def test_there_and_back(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = random_picture_adapter(use_rslora=True)
    save_picture_adapter(adapter, tmp_path / "style", SMALL)
    kohya, back = tmp_path / "style.safetensors", tmp_path / "back"
    assert cli.main(["convert", str(tmp_path / "style"), str(kohya), "--to", "kohya", "--model", str(base)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{kohya}: style.safetensors, from the diffusers file ")
    assert lines[1].startswith("note: rsLoRA is not in this format")
    arguments = ["convert", str(kohya), str(back), "--to", "diffusers", "--model", str(base), "--json"]
    assert cli.main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["was"] == "kohya"
    loaded = load_picture_adapter(back, SMALL)
    for module, lora in adapter.lora.items():
        np.testing.assert_array_equal(loaded.lora[module].B, lora.B)
        scales = [scale_of(x.config, module, len(lora.A)) for x in (loaded, adapter)]
        assert scales[0] == pytest.approx(scales[1], rel=1e-7)


def test_what_cannot_be_converted(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_picture_adapter(random_picture_adapter(lora_bias=True), tmp_path / "style", SMALL)
    target = tmp_path / "new.safetensors"
    for source, options, message in (
        ("style", [], "which modules the base has, only the base knows: give --model DIR"),
        ("style", ["--model", str(base)], "has a lora_bias, which kohya has not"),
        ("nothing", ["--model", str(base)], "is not there"),
        ("style", ["--model", str(tmp_path)], "cannot be read"),
    ):
        assert cli.main(["convert", str(tmp_path / source), str(target), "--to", "kohya", *options]) == 2
        printed = capsys.readouterr()
        assert message in printed.err and printed.err.count("\n") == 1 and not printed.out
    assert not target.exists()
