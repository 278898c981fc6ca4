"""docs/cost.md is run: its command prints what it shows, and every figure in its text is one of the formulas'."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from refimpl import cli
from refimpl.bench import cost
from refimpl.bench.cost import Step
from refimpl.bench.decode import Shape
from refimpl.bench.devices import GPUS
from refimpl.loading.config_file import load_config

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "cost.md").read_text("utf-8")
SERVING = json.loads((ROOT / "benchmarks" / "results" / "cpu-2026-11-21-serving.json").read_text("utf-8"))
((COMMAND, SHOWN),) = re.findall(r"```\n\$ loracle (cost .*?)\n(.*?)```", PAGE, re.S)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The page's config.json, where its command looks for it."""
    (text,) = re.findall(r"```json\n(.*?)```", PAGE, re.S)
    (tmp_path / "llama-8b").mkdir()
    (tmp_path / "llama-8b" / "config.json").write_text(text)
    monkeypatch.chdir(tmp_path)
    return load_config(Path("llama-8b"))


def test_the_command_prints_what_the_page_shows(config: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(shlex.split(COMMAND)) == 0
    assert capsys.readouterr().out == SHOWN


def test_the_figures_in_the_text_are_the_formulas(config: Any) -> None:
    ranks = {module: 16 for module in config.modules()[1:-1]}
    base, adapter = cost.base_parameters(config), cost.adapter_parameters(config, ranks)
    many = cost.as_large_as_the_base(config, ranks)
    h100, cached = GPUS["h100"], 64 * 512
    fit = {way: cost.that_fit(config, ranks, way, h100, cached, 2) for way in ("batched", "merged")}
    longer = {gpu: cost.merged_from(config, ranks, GPUS[gpu], "bfloat16", 2) for gpu in ("h100", "l4")}

    def seconds(way: str, step: Step) -> float:
        return cost.seconds(config, ranks, way, step, h100, "bfloat16", 2)

    def saved(tokens: int) -> float:
        """What the slower of batched and merged loses to the other."""
        step = Step(64, tokens, 512, 50)
        return abs(seconds("batched", step) - seconds("merged", step))

    each = Step(many, 1, 1, many)  # hardly any keys and values, as in the two formulas above
    token = cost.work(config, ranks, Step(1, 1, 1, 1), 2)
    for text in (
        f"D times an adapter, {100 * adapter / base:.1f} % of the base each",
        f"{many} of these adapters are as large as the base",
        f"still {seconds('merged', each) / seconds('batched', each):.0f} times less than merged copies",
        f"the base and {fit['batched']} adapters fit, or {fit['merged']} merged copies",
        f"here {100 * token.lora_flops / token.base_flops:.1f} %",
        f"From prompts of {longer['h100']} tokens on (`h100`; {longer['l4']} on an `l4`)",
        f"the next decode step takes it back {saved(1) / saved(512):.0f} times over",
        f"beside {1e3 * seconds('batched', Step(64, 1, 512, 50)):.1f} ms",
    ):
        assert text in " ".join(PAGE.split()), text


def test_the_launches_in_the_text_are_those_of_the_table() -> None:
    rows = re.findall(r"^decode +(merged|batched) .*?([\d,]+) +([\d.]+) ms", SHOWN, re.M)
    assert [way for way, _, _ in rows] == ["merged", "batched"]
    for _, launches, _ in rows:
        milliseconds = int(launches.replace(",", "")) / 1000
        shown = f"{milliseconds:.0f}" if milliseconds >= 10 else f"{milliseconds:.1f}"
        assert re.search(rf"{launches} launches (would take )?{shown} ms", " ".join(PAGE.split()))


def test_the_measured_ratios_are_those_of_the_file_and_stay_below_the_bytes() -> None:
    model = SERVING["model"]
    config = Shape(*(model[name] for name in ("hidden", "heads", "kv_heads", "layers", "vocab"))).config()
    assert config.intermediate_size == model["intermediate"] and SERVING["machine"]["date"][:10] in PAGE
    ranks = {module: SERVING["rank"] for module in config.modules()[1:-1]}
    rows = []
    for point in SERVING["points"]:
        count = point["adapters"]
        step = Step(count, 1, SERVING["context"] + 1, count)
        alone, batched = (cost.total(config, ranks, way, step, 4).bytes for way in ("one after another", "batched"))
        rows.append(f"| {count} | {point['ratio']:.1f}x | {alone / batched:.1f}x |")
        assert count == 1 or point["ratio"] < alone / batched
    assert len(rows) >= 5 and "\n".join(rows) in PAGE


def test_every_link_is_a_file() -> None:
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", PAGE)]
    assert len(links) >= 3 and all((ROOT / "docs" / link).exists() for link in links)
