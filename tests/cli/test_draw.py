"""loracle draw: PNG files that are the pictures, one line for every mistake, and nothing half-written."""

import argparse
import dataclasses
import io
import json
import re
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from support.picture_files import CONFIG, write_base

import refimpl
from refimpl import cli, tiny
from refimpl.commands import draw, picture_output, picture_page
from refimpl.commands.scenes import Scene
from refimpl.pictures import (
    PictureRequest,
    load_picture_adapter,
    load_picture_model,
    read_captions,
)

SCENE, OTHER_SCENE = (prompt.strip() for prompt in tiny.DEMO_PROMPTS[:2])


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random picture model that reads the embedded text model's captions, with two styles beside it."""
    return write_base(tmp_path_factory.mktemp("picture_model"))


def options(base: Path) -> list[str]:
    """What chooses that model and its styles."""
    styles = [f"--adapter={name}={base / name}" for name in ("dots", "lines")]
    return ["draw", "--base", str(base / "base"), *styles, "--steps", "2"]


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    """Return (exit code, stdout, stderr) of one command."""
    try:
        code = cli.main(argv)
    except SystemExit as error:
        code = int(error.code or 0)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def expected_pictures(base: Path) -> list[np.ndarray]:
    """Two prompts in lines, and in a sum of both styles, each alone."""
    model = load_picture_model(base / "base")
    dots, lines = (load_picture_adapter(base / name, model.config) for name in ("dots", "lines"))
    captions = read_captions(refimpl.load_model("tiny"), [f"{SCENE}\n", f"{OTHER_SCENE}\n"])
    return [
        refimpl.draw(model, [PictureRequest(caption, adapter, 7, 2)])[0]
        for caption in captions
        for adapter in (lines, [(dots, 0.7), (lines, -0.3)])
    ]


def test_files_are_the_pictures_and_texts_of_every_prompt(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, base: Path
) -> None:
    out, page = tmp_path / "drawn", tmp_path / "page.html"
    prompts = ["--prompt", SCENE, "--prompt", OTHER_SCENE]
    styles = ["--style", "lines", "--style", "dots*0.7+lines*-0.3", "--voice", "pirate", "--max-new-tokens", "8"]
    files = ["--seed", "7", "--zoom", "2", "--out", str(out), "--html", str(page)]
    code, printed, err = run(capsys, *options(base), *prompts, *styles, *files, "--json")
    assert (code, err) == (0, "")
    rows = json.loads(printed)
    assert {path.name for path in out.iterdir()} == {
        *("01_lines.png", "02_dots-0.7+lines--0.3.png", "03_lines.png", "04_dots-0.7+lines--0.3.png"),
        *("01_pirate.txt", "02_pirate.txt", "draw.json"),
    }
    assert json.loads((out / "draw.json").read_text()) == rows
    assert [row["prompt"] for row in rows["pictures"]] == [SCENE, SCENE, OTHER_SCENE, OTHER_SCENE]
    for row, pixels in zip(rows["pictures"], expected_pictures(base), strict=True):
        with Image.open(out / row["file"]) as image:
            shown = np.asarray(image)
            assert image.text == {"prompt": row["prompt"], "adapter": row["adapter"], "seed": "7", "steps": "2"}
        assert (shown == pixels.repeat(2, 0).repeat(2, 1)).all()
    model = refimpl.load_model("tiny")
    pirate = refimpl.load_adapter("pirate", model.config)
    for row, prompt in zip(rows["texts"], (SCENE, OTHER_SCENE), strict=True):
        ids = model.tokenizer.encode(f"{prompt}\n")
        (alone,) = refimpl.generate(model, [refimpl.Request(ids, pirate, 8, draw.TEMPERATURE, seed=7)])
        assert row["text"] == alone.text
        assert (out / row["file"]).read_text() == f"{prompt}\n{alone.text}"
    assert_page_holds(page, expected_pictures(base), [row["text"] for row in rows["texts"]])


def assert_page_holds(page: Path, pictures: list[np.ndarray], texts: list[str]) -> None:
    html = page.read_text()
    assert "prefers-color-scheme: dark" in html and "width=device-width" in html
    assert not re.search(r"<script|(?:src|href)=\"(?!data:)", html)  # stands alone
    images = [b64decode(data) for data in re.findall(r'src="data:image/png;base64,([^"]+)"', html)]
    assert len(images) == len(pictures)
    for data, pixels in zip(images, pictures, strict=True):
        with Image.open(io.BytesIO(data)) as image:
            assert (np.asarray(image) == pixels).all()
    for text in texts:
        assert text.strip().splitlines()[0] in html


MISTAKES = {
    "a bug of texts": (
        ["--prompt", SCENE, "--out", "new", "--ops", "mutant:qkv_interleaved"],
        "no picture shows it: it acts",
    ),
    "no prompt": (["--out", "new"], "nothing to draw: give --prompt TEXT"),
    "an empty prompt": (["--prompt", " ", "--out", "new"], "--prompt is empty"),
    "a prompt that is too long": (["--prompt", "a toad " * 40, "--out", "new"], "is longer than the 64"),
    "nowhere to draw": (["--prompt", SCENE], "give --out DIR or --html FILE"),
    "a file as the folder": (["--prompt", SCENE, "--out", "file"], "file: is there already"),
    "a folder as the page": (["--prompt", SCENE, "--html", "."], "--html .: is a folder"),
    "a page in no folder": (["--prompt", SCENE, "--html", "no/page.html"], "there is no folder no"),
    "an unknown style": (["--prompt", SCENE, "--style", "lins", "--out", "new"], "did you mean 'lines'?"),
    "an unknown voice": (["--prompt", SCENE, "--voice", "pirat", "--out", "new"], "did you mean 'pirate'?"),
    "a weight that is no number": (["--prompt", SCENE, "--style", "dots*big", "--out", "new"], "'big' is not a number"),
    "a weight that is none": (["--prompt", SCENE, "--style", "dots*", "--out", "new"], "'' is not a number"),
    "a weight that is not finite": (["--prompt", SCENE, "--style", "dots*nan", "--out", "new"], "not a finite number"),
    "a style twice": (["--prompt", SCENE, "--style", "dots+dots", "--out", "new"], "names the same adapter twice"),
    "a style without its path": (["--prompt", SCENE, "--adapter", "dots", "--out", "new"], "expected NAME=DIR"),
    "a style that is not there": (["--prompt", SCENE, "--adapter", "new=no", "--out", "new"], "no: is not there"),
    "no steps": (["--prompt", SCENE, "--steps", "0", "--out", "new"], "steps 0 must be 1 or more"),
    "a negative seed": (["--prompt", SCENE, "--seed", "-1", "--out", "new"], "seed -1 must be 0 or more"),
    "too many steps": (["--prompt", SCENE, "--steps", "1001", "--out", "new"], "--steps 1001: at most 1000"),
    "a typo, and nowhere to draw": (["--prompt", SCENE, "--style", "lins"], "did you mean 'lines'?"),
    "no pixels": (["--prompt", SCENE, "--zoom", "0", "--out", "new"], "--zoom 0 must be 1 or more"),
    "a base that is not there": (["--prompt", SCENE, "--base", "no", "--out", "new"], "config.json"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(
    mistake: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    argv, words = MISTAKES[mistake]
    code, out, err = run(capsys, *options(base), *argv)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1 and err.startswith("loracle draw: ") and words in err, err
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and Path("file").read_text() == "mine"


def test_a_base_of_other_captions_or_with_a_vae_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    changes = {
        "it reads captions 7 wide, and those of the embedded text model are 256 wide": {"cap_feat_dim": 7},
        "its 16 channels are of a VAE": {"in_channels": 16},
    }
    for i, (words, change) in enumerate(changes.items()):
        folder = tmp_path / str(i)
        folder.mkdir()
        write_base(folder, dataclasses.replace(CONFIG, **change))
        argv = ["draw", "--prompt", SCENE, "--base", str(folder / "base"), "--out", str(tmp_path / "new")]
        code, _, err = run(capsys, *argv)
        assert code == 2 and words in err
    assert not (tmp_path / "new").exists()


def test_a_prompt_of_another_form_is_drawn_and_warned_of(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, base: Path
) -> None:
    out = tmp_path / "drawn"
    code, printed, err = run(capsys, *options(base), "--prompt", "a cat on a bicycle", "--out", str(out))
    assert code == 0 and "1 picture, 2 steps" in printed and (out / "01_base.png").exists()
    assert err.count("\n") == 1 and "warning: --prompt 'a cat on a bicycle' is not of the one form" in err


def test_without_pillow_one_line_says_what_to_install(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    code, _, err = run(capsys, *options(base), "--prompt", SCENE, "--out", str(tmp_path / "drawn"))
    assert (code, err) == (2, "loracle draw: PNG files are written by Pillow: pip install 'loracle[pictures]'\n")
    assert [*tmp_path.iterdir()] == []


def test_half_blocks_are_the_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3))
    console = Console(force_terminal=True, color_system="truecolor", width=60, file=io.StringIO(), legacy_windows=False)
    assert picture_output.can_show(console, 5)
    picture_output.show_pictures(console, [("one", pixels), ("two", 255 - pixels)])
    lines = [line for line in console.file.getvalue().splitlines() if picture_output.UPPER_HALF in line]
    colours = [re.findall(r"38;2;(\d+);(\d+);(\d+);48;2;(\d+);(\d+);(\d+)m", line) for line in lines]
    numbers = np.array(colours, int).reshape(2, 10, 2, 3).transpose(0, 2, 1, 3).reshape(4, 10, 3)
    assert (numbers == np.concatenate([pixels, 255 - pixels], 1)).all()


def test_pictures_stand_beside_each_other_where_there_is_room() -> None:
    pictures = [(str(i), np.zeros((2, 10, 3), int)) for i in range(5)]
    for width, rows in ((9, [1] * 5), (21, [1] * 5), (22, [2, 2, 1]), (58, [5])):
        assert [len(row) for row in picture_output.rows_of(pictures, width)] == rows


def test_no_picture_goes_into_a_pipe_or_a_terminal_without_colours() -> None:
    piped = Console(file=io.StringIO(), width=100)
    plain = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    narrow = Console(file=io.StringIO(), width=47, force_terminal=True, color_system="256")
    wide = Console(file=io.StringIO(), width=48, force_terminal=True, color_system="256")
    assert [picture_output.can_show(console) for console in (piped, plain, narrow, wide)] == [False, False, False, True]


def test_a_page_escapes_what_a_user_wrote(tmp_path: Path) -> None:
    pixels = np.zeros((2, 2, 3), np.uint8)
    scene = Scene("<script>alert(1)</script>", [("<b>", "<i>")], [('"><u>', pixels)])
    html = picture_page.page("<title>", [scene], [("<s>", "<q>")])
    assert not re.search(r"<(script|b|i|u|s|q)>|<title><", html)
    file = tmp_path / "page.html"
    file.write_text("older")
    picture_page.write(file, html)
    assert file.read_text() == html and [*tmp_path.iterdir()] == [file]


def test_the_defaults_stand_in_the_help() -> None:
    parser = argparse.ArgumentParser()
    draw.add_arguments(parser)
    args, text = parser.parse_args([]), parser.format_help()
    assert (args.steps, args.zoom, args.base, args.style, args.voice) == (12, 8, "tiny", [], [])
    assert f"(default {args.steps})" in text and f"(default {args.zoom})" in text
