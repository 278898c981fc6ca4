"""The figures of the picture model are shares of what the judge saw, and a wrong picture is named."""

import numpy as np
import pytest

from refimpl.tiny.pictures.evaluate import figures, mistakes, table
from refimpl.tiny.pictures.judge import Verdict

EXPECTED = {
    "place": "mud palace",
    "role": "bat tailor",
    "goal": "golden fork",
    "mood": "sleepy",
    "weather": "Mist hides",
    "style": "ink",
}
VERDICTS = [
    Verdict(EXPECTED, EXPECTED, 10.0),
    Verdict(EXPECTED, EXPECTED | {"goal": "iron slipper", "style": "base"}, 20.0),
    Verdict(EXPECTED, EXPECTED | {"goal": "moon pearl", "place": "troll spa", "mood": "grumpy"}, 60.0),
    Verdict(EXPECTED, EXPECTED | {"role": "unicorn vet"}, 30.0),
]


def test_figures_are_shares_of_the_pictures() -> None:
    row = figures(VERDICTS)
    assert row["pictures"] == 4 and row["rms distance"] == 30.0
    assert (row["place"], row["role"], row["goal"], row["style"]) == (0.75, 0.75, 0.5, 0.75)
    assert row["content (all three)"] == 0.25
    assert (row["mood"], row["weather"]) == (0.75, 1.0)


def test_every_wrong_picture_is_named_with_what_it_shows() -> None:
    assert list(mistakes(VERDICTS)) == [
        "picture 1: iron slipper for golden fork, base for ink",
        "picture 2: troll spa for mud palace, moon pearl for golden fork",
        "picture 3: unicorn vet for bat tailor",
    ]


def test_the_table_has_a_column_for_every_style() -> None:
    lines = table({"base": figures(VERDICTS[:1]), "ink": figures(VERDICTS)}).splitlines()
    assert lines[0] == "| | base | ink |" and lines[1] == "|---|---:|---:|"
    assert "| goal | 100.0% | 50.0% |" in lines and "| pictures | 1 | 4 |" in lines


def test_a_sheet_has_every_picture_in_its_place() -> None:
    pytest.importorskip("PIL", reason="pip install -e .[pictures]")
    from refimpl.tiny.pictures.sheets import BACKGROUND, GAP, ZOOM, sheet

    colours = np.arange(6, dtype=np.uint8).reshape(2, 3)
    pictures = [[np.full((48, 48, 3), colour) for colour in row] for row in colours]
    out = sheet(pictures)
    size = 48 * ZOOM + GAP
    assert out.shape == (2 * size + GAP, 3 * size + GAP, 3) and (out[:GAP] == BACKGROUND).all()
    assert (out[GAP + 1 :: size, GAP + 1 :: size, 0][:2, :3] == colours).all()
