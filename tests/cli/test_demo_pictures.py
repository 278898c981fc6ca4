"""loracle demo --pictures: figures of both batches, proofs that hold, proofs that fail, and no cost without it.

The pictures are those of a small random model: what the demo says is computed, whatever the weights are."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support.picture_files import write_base

from refimpl import NUMPY, Ops, cli, tiny
from refimpl.commands import demo_pictures
from refimpl.commands.common import backend
from refimpl.commands.scenes import open_studio, picture_requests
from refimpl.loading.embedded import STYLES

NAMES = ("dots", "lines")


@pytest.fixture(autouse=True)
def base(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small random model in the place of the embedded one."""
    root = write_base(tmp_path_factory.mktemp("picture_model"))
    adapters = [f"{name}={root / name}" for name in NAMES]
    monkeypatch.setattr(demo_pictures, "open_studio", lambda device: open_studio(str(root / "base"), adapters, device))
    monkeypatch.setattr(demo_pictures, "STYLES", dict.fromkeys(NAMES))
    monkeypatch.setattr(demo_pictures, "STEPS", 2)
    return root


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    """Return (exit code, stdout, stderr) of the demo."""
    code = cli.main(["demo", "--max-new-tokens", "2", *argv])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_json_has_the_figures_of_both_batches(capsys: pytest.CaptureFixture[str], tmp_path: Path, base: Path) -> None:
    page = tmp_path / "page.html"
    code, out, err = run(capsys, "--pictures", "--json", "--html", str(page))
    assert (code, err) == (0, "")
    result = json.loads(out)
    figures = result["pictures"]
    assert figures["adapters"] == ["base", *NAMES] and figures["steps"] == 2
    ratio = figures["sequential_seconds_per_picture"] / figures["seconds_per_picture"]
    assert figures["speedup"] == pytest.approx(ratio) and result["speedup"] > 0
    assert figures["merged_copies_bytes"] == 2 * figures["base_bytes"]
    assert set(figures["adapter_bytes"]) == set(NAMES) and min(figures["adapter_bytes"].values()) > 0
    assert 0 <= figures["batched_vs_alone_max_abs"] < 1e-4 and 0 < figures["merged_vs_unmerged_max_abs"] < 1e-4
    html = page.read_text()
    assert html.count("<img ") == 3 and "Pictures: batched = alone" in html and "Texts: batched = alone" in html
    assert all(f"<dt>{text['adapter']}</dt>" in html for text in result["texts"])


def test_people_read_both_speed_ups_and_both_proofs(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--pictures")
    words = " ".join(out.split())
    assert code == 0
    for expected in ("one batch of 5 ", "one batch of 3 pictures", "3 pictures of the scene: base, dots, lines"):
        assert expected in words, expected
    assert words.count("batched = alone") == words.count("unmerged = merged") == 2


def test_the_proofs_fail_where_they_should(base: Path) -> None:
    """The figures are no constants: with a picture that has its neighbour's style, and with styles that do nothing."""
    studio = open_studio(str(base / "base"), [f"{name}={base / name}" for name in NAMES])
    requests = picture_requests(studio, tiny.DEMO_PROMPTS[:1], ["base", *NAMES], NUMPY, 0, 2)

    def measured(ops: Ops) -> demo_pictures.PictureFigures:
        return demo_pictures.measure(studio.picture_model, requests, ops, 1)

    assert measured(backend("mutant:adapter_of_the_next_request")).batched_vs_alone_max_abs > 1e-2
    without_styles = measured(replace(NUMPY, lora_delta=lambda *_: None))
    assert without_styles.batched_vs_alone_max_abs < 1e-4 < 1e-2 < without_styles.merged_vs_unmerged_max_abs


def test_a_page_without_pictures_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "--html", "page.html")
    assert code == 2 and err == "loracle demo: --html is a page of stories and pictures: give --pictures as well\n"


def test_kernels_on_a_cpu_draw_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refimpl.cuda.runner.device", lambda: "cpu")
    code, _, err = run(capsys, "--pictures", "--ops", "cuda")
    assert code == 2 and "--pictures with the kernels on this CPU would take hours" in err


def test_without_pictures_nothing_of_them_is_imported() -> None:
    script = (
        "import sys; from refimpl import cli; cli.parse(['demo']); "
        "ends = ('.scenes', '.demo_pictures', '.draw_run', 'PIL'); print([n for n in sys.modules if n.endswith(ends)])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_styles_are_those_of_the_embedded_model() -> None:
    assert list(STYLES) == ["ink", "night", "blueprint", "watercolour"]
