"""The page of `loracle check --report`: it stands alone, escapes what an engine said, and says what the JSON says."""

import argparse
import io
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from support.testbed import small_testbed

from refimpl import cli
from refimpl.commands.check import add_arguments
from refimpl.commands.check_screen import show, token_rows
from refimpl.engines.interface import EngineRequest, EngineResponse
from refimpl.engines.ours import Ours
from refimpl.oracle.bugs import mutants_for
from refimpl.oracle.campaign import Campaign
from refimpl.oracle.reports import drawing
from refimpl.oracle.reports.report import host, num, page
from refimpl.oracle.reports.result import CampaignSettings
from refimpl.oracle.reports.summary import summary
from refimpl.oracle.reports.tokens_in_words import by_request, in_words, which_request

HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)>\" onload='alert(3)' {{ 7 * 7 }} & \x00\x1b[31m"
)
VOID = {"meta", "link", "col", "br", "img", "input", "hr"}


class Elements(HTMLParser):
    """Every element with its attributes, and all text; AssertionError where tags do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute of {tag} comes twice: {attrs}"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def named(self, *tags: str) -> list[dict[str, str | None]]:
        return [attrs for tag, attrs in self.tags if tag in tags]


class Loud(Ours):
    """Our engine, but for one adapter it says what no page should trust."""

    def run(self, requests: list[EngineRequest], *forced: Any) -> list[EngineResponse]:  # type: ignore[override]
        responses = super().run(requests, *forced)
        return [
            EngineResponse(error=HOSTILE) if request.adapter == "made-1" else r
            for request, r in zip(requests, responses, strict=True)
        ]


def campaign(name: str, tmp: Path, below: bool = False, sequences: int = 0) -> dict[str, Any]:
    """The JSON of three batches: a mutant by its name, "loud", or "" for the right thing."""
    testbed = small_testbed()
    make = mutants_for()[name].make if name not in ("", "loud") else None
    kind = Loud if name == "loud" else Ours
    engine = lambda: kind(make) if make else kind()  # noqa: E731
    result = Campaign(engine, testbed, CampaignSettings(3, sequences, below=below), tmp).run()
    return json.loads(json.dumps(summary(result, f"mutant:{name}"), allow_nan=False))


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return campaign("rslora_ignored", tmp_path_factory.mktemp("failing"))


@pytest.fixture(scope="module")
def passing(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return campaign("", tmp_path_factory.mktemp("passing"), below=True)


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return campaign("loud", tmp_path_factory.mktemp("loud"))


def html_of(report: dict[str, Any]) -> str:
    return page(report, mutants_for(list(small_testbed().paths)))


# It stands alone.


def test_nothing_is_loaded_from_anywhere(
    failing: dict[str, Any], passing: dict[str, Any], loud: dict[str, Any]
) -> None:
    for report in (failing, passing, loud):
        html = html_of(report)
        elements = Elements(html)
        assert not elements.named("script", "iframe", "object", "embed", "img", "base", "form", "video", "audio", "use")
        assert [tag["href"] for tag in elements.named("link")] == ["data:,"]  # or a browser would ask for a favicon
        assert not re.search(r"url\(|@import|@font-face", html)
        assert not [attrs for _, attrs in elements.tags if any(k in ("src", "srcset", "xlink:href") for k in attrs)]
        links = [tag["href"] or "" for tag in elements.named("a")]
        assert all(link.startswith("https://") for link in links), links


def test_it_is_small_and_every_picture_and_table_says_what_it_is(failing: dict[str, Any]) -> None:
    html = html_of(failing)
    assert len(html.encode()) < 300_000
    elements = Elements(html)
    outer = [tag for tag in elements.named("svg") if "x" not in tag]  # the others are parts of these
    assert len(outer) >= 8
    assert all(tag.get("aria-label") or tag.get("aria-hidden") == "true" for tag in outer)
    assert all(tag.get("scope") in ("col", "row") for tag in elements.named("th"))
    assert elements.named("html")[0]["lang"] == "en"
    assert len(elements.named("table")) == len(elements.named("thead")) >= 3


# It says what the JSON says.


def test_the_bug_is_named_first_with_its_class_its_evidence_and_its_links(failing: dict[str, Any]) -> None:
    elements = Elements(html_of(failing))
    finding = failing["diagnosis"][0]
    assert failing["verdict"] == "fail" and finding["name"] == "rslora_ignored"
    assert re.search(r"fail mutant:rslora_ignored , computing in float32: it is rslora_ignored", elements.text)
    assert (
        finding["evidence"] in elements.text and finding["what"] in elements.text and "class A, scale" in elements.text
    )
    assert set(finding["links"]) <= {tag["href"] for tag in elements.named("a")}
    assert f"Cases {failing['passed']} of {failing['cases']} passed; {failing['failed']} failed" in elements.text
    assert f"{num(failing['worst_noise_ratio'])} × noise" in elements.text
    assert f"fails from {num(failing['noise']['fails_from'])} × noise" in elements.text
    for symptom in failing["symptoms"]:
        assert f"{symptom['what']} {symptom['count']} of {symptom['of']}" in elements.text
    place = failing["first_divergence"]
    assert f"{place['module']} , {num(place['noise_ratio'])} × noise, by {place['by']}" in elements.text
    for name, version in failing["environment"].items():
        assert f"{name} {version}" in elements.text


def test_the_engines_picture_is_the_named_bugs_picture_and_what_is_left_is_noise(failing: dict[str, Any]) -> None:
    close, fails_from = failing["picture"]["close_up"], failing["noise"]["fails_from"]
    engine, bug, residual = (np.array(close[key], float) for key in ("engine", "mutant", "left"))
    assert engine.shape == bug.shape == residual.shape == (len(close["places"]), len(close["tokens"]))
    rms = lambda x: np.sqrt(np.mean(x**2))  # noqa: E731
    assert rms(engine) > 100 * fails_from and rms(residual) < fails_from
    assert np.allclose(engine, bug, rtol=0.01, atol=6 * fails_from)
    line = failing["picture"]["lines"][close["line"]]
    assert line["adapter"] is not None and len(line["engine"]) == len(close["places"])
    html = html_of(failing)
    panels = [p.split("</figure>")[0] for p in html.split("<h3") if "Heat map of places by tokens" in p]
    paths = [re.findall(r'<path class="(\w+)" d="([^"]+)"', p) for p in panels]
    assert len(paths) == 3 and paths[0] and {"p7", "n7"} & {kind for kind, _ in paths[0]}
    assert {kind for kind, _ in paths[2]} <= {"z", "p1", "n1"}


def test_a_pass_says_what_it_would_have_shown(passing: dict[str, Any]) -> None:
    assert passing["verdict"] == "pass" and passing["picture"] is None and not passing["places"]
    power = passing["power"]
    elements = Elements(html_of(passing))
    counts = {kind: list(power.values()).count(kind) for kind in ("detected", "undetectable", "not exercised")}
    assert sum(counts.values()) == len(power) and counts["detected"] > 50 and counts["not exercised"] > 5
    assert f"{counts['detected']} would have been seen" in elements.text
    assert f"{counts['not exercised']} not exercised" in elements.text
    assert f"{counts['detected']} of {len(power)} see Power" in elements.text
    for name, outcome in power.items():
        assert re.search(rf"{re.escape(name)} [A-I] .{{5,200}}? {outcome}", elements.text), name
    assert set(passing["seen_from"]) <= set(power)
    assert all(x > 0 for x in passing["seen_from"].values())
    assert "What it is" not in elements.text and "Repeat it" not in elements.text


# What an engine said is text.


def test_what_an_engine_said_is_escaped(loud: dict[str, Any]) -> None:
    loud = {**loud, "engine": HOSTILE, "findings": [HOSTILE], "repro": "out/my repro'; rm -rf ~"}
    loud["environment"] = {HOSTILE: HOSTILE}
    loud["symptoms"] = [{"what": HOSTILE, "count": 1, "of": 1}]
    said = [r["why"] for batch in loud["batches"] for r in batch["requests"] if r["verdict"] == "fail"]
    assert said and set(said) == {HOSTILE}
    html = html_of(loud)
    elements = Elements(html)
    assert not elements.named("script", "img")
    assert not [attrs for _, attrs in elements.tags if any(name.startswith("on") for name in attrs)]
    assert "\x00" not in html and "\x1b" not in html
    readable = " ".join(HOSTILE.replace("\x00", "\\x00").replace("\x1b", "\\x1b").split())
    assert elements.text.count(readable) >= 6
    assert "loracle check --replay 'out/my repro'\"'\"'; rm -rf ~'" in elements.text


def test_a_name_that_is_markup_is_a_name_in_the_pictures_too(failing: dict[str, Any]) -> None:
    hostile = json.loads(json.dumps(failing).replace("made-", json.dumps('<b onclick="x">').strip('"')))
    elements = Elements(html_of(hostile))
    assert not [attrs for _, attrs in elements.tags if "onclick" in attrs]
    assert '<b onclick="x">' in elements.text


# Numbers that are none.


def test_an_answer_without_a_number_is_drawn_as_one_and_a_request_without_an_answer_says_so(
    loud: dict[str, Any],
) -> None:
    assert loud["verdict"] == "fail" and loud["worst_noise_ratio"] is None
    assert any(not line["engine"] for line in loud["picture"]["lines"])
    text = Elements(html_of(loud)).text
    assert "no number" in text and "an answer without a size" in text and "no answer that could be read" in text
    assert not re.search(r"\b(nan|inf|None)\b", text.replace(HOSTILE, ""))


def test_ratios_without_a_size_lie_in_a_lane_of_their_own(passing: dict[str, Any]) -> None:
    batches = json.loads(json.dumps(passing["batches"]))
    batches[0]["requests"][0]["ratios"][0] = None
    batches[0]["requests"][0]["ratios"][1] = 0.0
    cloud = drawing.cloud(batches, passing["noise"])
    assert cloud.no_number_y is not None
    lane = [dot for dot in cloud.dots if dot.y == cloud.no_number_y]
    assert [(dot.kind, dot.count) for dot in lane] == [("wrong", 1)]
    rows = sum(len(r["ratios"]) for batch in batches for r in batch["requests"])
    assert sum(dot.count for dot in cloud.dots) == rows
    assert all(np.isfinite([dot.x, dot.y, dot.radius]).all() and 0 <= dot.y <= cloud.bottom for dot in cloud.dots)
    nothing = drawing.cloud([], {"level": None, "spread": None, "fails_from": None})
    assert nothing.dots == [] and nothing.no_number_y is None


def test_a_campaign_without_any_number_is_a_page(passing: dict[str, Any]) -> None:
    noise = dict.fromkeys(passing["noise"])
    batches = [{"name": "b", "verdict": "undecided", "requests": []}]
    empty = {
        **passing,
        "noise": noise,
        "batches": batches,
        "power": {},
        "worst_noise_ratio": None,
        "verdict": "undecided",
    }
    elements = Elements(html_of(empty))
    assert "no number" in elements.text and "Not computed: --no-power" in elements.text
    assert "computed for a pass alone" in Elements(html_of({**empty, "verdict": "fail"})).text


def test_a_row_that_passes_beyond_where_rows_fail_says_where_it_fails(passing: dict[str, Any]) -> None:
    limit = passing["noise"]["fails_from"]
    for ratio, own in ((1.1 * limit, 1.5 * limit), (0.9 * limit, 1.5 * limit), (2 * limit, 1.5 * limit)):
        text = Elements(html_of({**passing, "worst_noise_ratio": ratio, "worst_fails_from": own})).text
        assert (f"this row, in which honest runs are spread wider, fails from {num(own)}" in text) == (
            ratio == 1.1 * limit
        )


# The tokens of a cause.


def of_tokens(first: int, last: int, **more: Any) -> dict[str, Any]:
    """Tokens of batch 3's request 1, as the JSON has them."""
    where = {"case": "batch 3", "run": 0, "request": 1, "adapter": "made-0", "length": 14}
    return {
        **where,
        "change": 0,
        "first": first,
        "last": last,
        "of": "",
        "steps": [],
        "is_cached": False,
        "keys_and_values": False,
        **more,
    }


@pytest.mark.parametrize(
    ("some", "text"),
    [
        ([of_tokens(9, 9)], "token 9"),
        ([of_tokens(4, 6), of_tokens(9, 9)], "tokens 4 to 6, 9"),
        ([of_tokens(4, 6, of="made-2")], "tokens 4 to 6 (of made-2)"),
        ([of_tokens(0, 7, of="made-2", is_cached=True)], "tokens 0 to 7 (of made-2; found in a cache)"),
        ([of_tokens(9, 9, steps=[[7, 0, 9, 1, -1]])], "token 9 (step 7)"),
        (
            [of_tokens(8, 9, of="made-2", steps=[[7, 5, 0, 9, 1], [8, 0, 9, 1, 1]])],
            "tokens 8 to 9 (of made-2; steps 7, 8, slot 1)",
        ),
        ([of_tokens(5, 9, steps=[[n, 0, n, 1, 0] for n in (5, 6, 7)])], "tokens 5 to 9 (steps 5 to 7, slot 0)"),
        ([of_tokens(0, 7, of="made-2", keys_and_values=True)], "keys and values of tokens 0 to 7 (of made-2)"),
        ([of_tokens(t, t) for t in (1, 3, 5, 7)], "tokens 1, 3, and 2 pieces more"),
    ],
)
def test_tokens_in_words(some: list[dict[str, Any]], text: str) -> None:
    assert in_words(some, 2) == text


def test_where_no_rule_is_sure_the_terminal_has_tokens_and_the_page_has_all(failing: dict[str, Any]) -> None:
    cause = failing["cause"]
    assert {one["change"] for one in cause["tokens"]} == set(range(len(cause["changes"])))
    names = {batch["name"] for batch in failing["batches"]}
    assert {one["case"] for one in cause["tokens"]} <= names
    guessed = {**cause, "changes": [{**change, "is_guess": True} for change in cause["changes"]]}
    assert not list(token_rows(cause))
    requests = by_request(cause, 0)
    assert [(text, label) for label, text, _ in token_rows(guessed)] == [
        (f"{which_request(some[0])}: {in_words(some, 4)}", "" if i else "tokens") for i, some in enumerate(requests[:3])
    ]
    text = Elements(html_of(failing)).text
    assert all(f"{which_request(some[0])} {in_words(some, len(some))}" in text for some in requests[:20])
    assert "Nothing of it explains" not in text


def test_what_no_change_explains_begins_at_a_token(failing: dict[str, Any]) -> None:
    rest = [of_tokens(7, 7, change=None, request=i) for i in range(14)]
    cause = {**failing["cause"], "tokens": [*failing["cause"]["tokens"], *rest]}
    lines = [(label, text) for label, text, _ in token_rows(cause)]
    assert lines == [
        ("" if i else "not explained", f"batch 3, request {i} (made-0): from token 7 on") for i in range(3)
    ]
    text = Elements(html_of({**failing, "cause": cause})).text
    assert "batch 3, request 11 (made-0) from token 7 on, and 2 more." in text


# Layers.


def test_layers_and_modules_are_a_table_with_the_first_divergence_marked(failing: dict[str, Any]) -> None:
    ratios = {(layer, module): 1.25 for layer in (0, 1) for module in ("q_proj", "v_proj")} | {
        (1, "v_proj"): None,
        (1, "q_proj"): 5e4,
    }
    places = [
        {"layer": n, "module": module, "noise_ratio": x, "by": "intermediates"} for (n, module), x in ratios.items()
    ]
    html = html_of({**failing, "places": places, "first_divergence": places[2]})
    assert Elements(html).text.count("layer 1, q_proj , 50,000 × noise, by intermediates") == 1
    cells = re.findall(r'<td class="([^"]+)">([^<]+)</td>', html)
    assert [text for _, text in cells if text in ("1.25", "50,000", "no number")] == [
        "1.25",
        "1.25",
        "50,000",
        "no number",
    ]
    assert [(kind.split()[0], text) for kind, text in cells if "first" in kind.split()] == [("p7", "50,000")]
    assert {kind.split()[0] for kind, text in cells if text == "1.25"} == {"z"}


# Shapes and numbers.


def test_colours_are_logarithmic_and_noise_is_pale() -> None:
    assert [drawing.step(x, 1e6) for x in (0, 0.5, -0.5, 1e6, -1e6, 1e9)] == [0, 0, 0, 7, -7, 7]
    assert drawing.step(1e3, 1e6) == 4 and drawing.step(-1e3, 1e6) == -4
    assert drawing.step(1.0, drawing.reach([0.1, None])) == 1 and drawing.step(0.5, drawing.reach([1e6])) == 0
    assert [drawing.shade(x, 1e6) for x in (None, 0.0, 1e6, -1e6)] == ["none", "z", "p7", "n7"]


def test_a_heat_map_has_every_cell_once() -> None:
    rows = [(2, [0.0, 1e6, 1e6, -1e6, None]), (0, []), (0, [1e6])]
    cells = {}
    for kind, path in drawing.heat(rows, 1e6).items():
        for x, y, n, back in re.findall(r"M(\d+) (\d+)h(\d+)v1h-(\d+)z", path):
            assert n == back
            for i in range(int(n)):
                assert cells.setdefault((int(x) + i, int(y)), kind) == kind
    assert cells == {(2, 0): "z", (3, 0): "p7", (4, 0): "p7", (5, 0): "n7", (6, 0): "none", (0, 2): "p7"}


@pytest.mark.parametrize(
    ("x", "text"),
    [
        *((None, "no number"), (0.0, "0"), (1.0, "1"), (3.10853, "3.11"), (-999.4, "-999"), (999.9, "1,000")),
        *(
            (1234.5, "1,230"),
            (943014.0, "943,000"),
            (999999.0, "1 million"),
            (1.99e6, "1.99 million"),
            (2.5e10, "25 billion"),
        ),
        *((3e300, "3 × 10³⁰⁰"), (8.17e-6, "8.17 × 10⁻⁶"), (1e-3, "0.001"), (5e-324, "4.94 × 10⁻³²⁴")),
    ],
)
def test_numbers_are_for_people(x: float | None, text: str) -> None:
    assert num(x) == text


def test_links_are_short() -> None:
    assert host("https://github.com/vllm-project/vllm/issues/10798") == "vllm-project/vllm #10798"
    assert host("https://example.org/a/b") == "example.org/a/b"


# The command.


def test_the_command_writes_the_page_beside_the_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["check", "--engine", "numpy", "--model", "random", "--cases", "1", "--sequences", "0", "--no-power"]
    assert cli.main([*argv, "--jobs", "1", "--report", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "".join(f"the page   {tmp_path / 'out' / 'index.html'}".split()) in "".join(out.split())
    report = json.loads((tmp_path / "out" / "check.json").read_text("utf-8"))
    html = (tmp_path / "out" / "index.html").read_text("utf-8")
    assert html == page(report, {}) and "1 of 1 passed" in Elements(html).text


@pytest.mark.parametrize("width", [80, 100])
def test_the_terminal_has_the_verdict_the_bug_and_the_way_to_repeat_it(failing: dict[str, Any], width: int) -> None:
    wide = "out/" + "x" * 120
    report = {**failing, "repro": wide, "unasked": "7 more were not", "findings": ["a\x1b[31mb\nc " + "long " * 40]}
    file = io.StringIO()
    show(Console(file=file, width=width), report, None)
    lines = file.getvalue().splitlines()
    assert lines[0] == "FAIL  mutant:rslora_ignored, in float32"
    assert "undecided; 7 more were not" in lines[1]
    assert f"repeat it  loracle check --replay {wide}" in lines, "a command is not broken"
    assert all(len(line) <= width for line in lines if wide not in line)
    finding = failing["diagnosis"][0]
    assert lines[2].startswith("smallest   one request of ")
    assert lines[3].startswith("cause      alpha / r, although the adapter says rsLoRA")
    assert any(line.startswith("it is      rslora_ignored (class A, scale)") for line in lines)
    outer = " ".join(" ".join(lines).split())
    assert finding["evidence"] in outer and all(f"seen in {link}" in outer for link in finding["links"])
    assert "findings a\\x1b[31mb\\nc long" in outer and "\x1b" not in file.getvalue()


# The page of documentation.


def test_docs_check_has_every_flag_and_every_key_and_no_other(failing: dict[str, Any]) -> None:
    text = (Path(__file__).parents[2] / "docs" / "check.md").read_text("utf-8")
    parser = argparse.ArgumentParser(prog="loracle check", add_help=False)
    add_arguments(parser)
    flags = {flag for action in parser._actions for flag in action.option_strings}
    of_check = re.sub(r"`loracle (?!check)\w+ [^`]*`", "", text)  # another command's flags are not these
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", of_check)) == flags | {"--json"}
    table = text.partition("## The JSON")[2]
    keys = {key for row in re.findall(r"^\| (`.*?) \|", table, re.M) for key in re.findall(r"`(\w+)`", row)}
    assert keys == set(failing)
    for key in failing["diagnosis"][0]:
        assert f"`{key}`" in table, key


# A browser.


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """load(html, *flags) -> what Chromium wrote to its standard output, and the lines of the page's console."""
    name = next((n for n in ("chromium", "chromium-browser", "google-chrome", "chrome") if shutil.which(n)), None)
    if name is None:
        pytest.skip("no Chromium is installed: the page is not looked at in a browser")
    folder = tmp_path_factory.mktemp("browser")

    def load(html: str, *flags: str) -> tuple[str, list[str]]:
        (folder / "page.html").write_text(html, "utf-8")
        command = [name, "--headless", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage"]
        command += [
            "--enable-logging=stderr",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={folder}/profile",
        ]
        command += ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's sandbox is not for root
        command += [*flags, (folder / "page.html").as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    yield load


def test_a_browser_draws_it_without_a_word_and_without_a_scroll_bar(
    browser: Any, failing: dict[str, Any], tmp_path: Path
) -> None:
    html = html_of(failing)
    picture = tmp_path / "page.png"
    _, console = browser(html, "--window-size=1000,2000", f"--screenshot={picture}")
    assert console == []
    assert distinct_rows(picture) > 300
    measuring = (
        "<script>console.error('heard'); document.title = [document.documentElement.scrollWidth, innerWidth]</script>"
    )
    opened = html.replace("<details>", "<details open>").replace("</body>", f"{measuring}</body>")
    dom, console = browser(opened, "--window-size=1000,2000", "--dump-dom")
    assert len(console) == 1 and "heard" in console[0], "the console of this Chromium is not heard"
    width, room = map(int, re.search(r"<title>(\d+),(\d+)</title>", dom).groups())  # type: ignore[union-attr]
    assert 900 < room <= 1000 and width <= room
    blank = tmp_path / "blank.png"
    browser("<!doctype html><title>blank</title>", "--window-size=1000,2000", f"--screenshot={blank}")
    assert distinct_rows(blank) < 5


def distinct_rows(png: Path) -> int:
    """How many different lines of pixels a PNG has, as they are filtered; a blank one has hardly any."""
    import struct
    import zlib

    data, at, packed, height = png.read_bytes(), 8, b"", 0
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        if kind == b"IHDR":
            height = struct.unpack(">I", data[at + 12 : at + 16])[0]
        packed += data[at + 8 : at + 8 + size] if kind == b"IDAT" else b""
        at += size + 12
    pixels = zlib.decompress(packed)
    line = len(pixels) // height
    return len({pixels[i * line : (i + 1) * line] for i in range(height)})
