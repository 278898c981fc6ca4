"""The published tables hold together, and the code that runs them can succeed, skip and fail. No weights needed."""

import dataclasses
from pathlib import Path

import pytest
from published_tables import FILES, Table, agrees, loaded, outputs, table

import refimpl
from refimpl import tiny
from refimpl.published import weights
from refimpl.tensorrt_llm.backend import backend


@pytest.mark.parametrize("stem", FILES)
def test_a_table_says_where_it_is_from_and_what_it_demands(stem: str) -> None:
    t = table(stem)
    assert t.source.startswith("NVIDIA/TensorRT-LLM, ")
    assert {row["adapter"] for row in t.rows} - {None} == set(t.adapters)
    assert all(("prompt" in row) != ("prompt_ids" in row) and row["output"] for row in t.rows)
    assert all(name in weights.REPOSITORIES for name in t.folders)
    if t.asserts == "exact":
        assert t.sampling == "greedy"  # what was sampled cannot be demanded to the letter


def test_the_guide_and_the_unit_test_ask_the_same_and_are_not_the_same() -> None:
    guide, unit = table("guide"), table("llama_7b")
    assert (guide.sampling, unit.sampling) == ({"temperature": 1.0, "top_p": 0.5, "top_k": 0}, "greedy")
    assert guide.folders == unit.folders
    for theirs, ours in zip(guide.rows, unit.rows, strict=True):
        assert theirs["adapter"] == ours["adapter"]
        assert "\n" not in theirs["prompt"] and theirs["prompt"].replace("\\n", "\n") == ours["prompt"]
        assert theirs["output"] != ours["output"]


def test_without_the_folder_the_skip_says_what_to_fetch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(weights.MODELS, raising=False)
    command = "hf download kunishou/Japanese-Alpaca-LoRA-7b-v0 --local-dir $LORACLE_MODELS/"
    assert "$LORACLE_MODELS, which is not set" in weights.missing(table("llama_7b").folders)
    monkeypatch.setenv(weights.MODELS, str(tmp_path))
    (tmp_path / "llama-7b-hf").mkdir()
    with pytest.raises(pytest.skip.Exception) as skipped:
        loaded(table("llama_7b"))
    reason = str(skipped.value)
    assert reason.startswith("luotuo-lora-7b-0.1, Japanese-Alpaca-LoRA-7b-v0 not found in ")
    assert command in reason and "huggyllama" not in reason


def small() -> Table:
    """A table of the same form for the embedded model, which is where the weights would be."""
    prompt = tiny.DEMO_PROMPTS[0]
    rows = [{"adapter": None, "prompt": prompt}, {"adapter": "bard", "prompt": prompt}]
    return Table("", "", "", "base", {"bard": "bard"}, "bfloat16", "greedy", 8, "exact", rows)


def test_a_table_is_run_as_one_batch_of_the_folders_that_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(weights.MODELS, str(tiny.base_path().parent))
    model, adapters = loaded(small())
    said = outputs(small(), model, adapters)
    assert model.dtype == "bfloat16" and said[0] != said[1]
    for row, text in zip(small().rows, said, strict=True):
        request = refimpl.Request(model.tokenizer.encode(row["prompt"]), adapters.get(row["adapter"]))
        assert refimpl.generate(model, [request], 8, ops=backend("bfloat16"))[0].text == text
    sampled = dataclasses.replace(small(), sampling={"temperature": 1.0, "top_p": 0.5, "top_k": 0, "seed": 3})
    assert outputs(sampled, model, adapters) != said


def test_a_pickle_is_a_skip_that_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(weights.MODELS, str(tmp_path))
    (tmp_path / "base").symlink_to(tiny.base_path())
    (tmp_path / "bard").mkdir()
    (tmp_path / "bard" / "adapter_config.json").write_text("{}")
    (tmp_path / "bard" / "adapter_model.bin").write_bytes(b"\x80")
    with pytest.raises(pytest.skip.Exception, match=r"bard cannot be loaded as it is: .* it is a pickle"):
        loaded(small())


def test_the_three_measures_can_fail() -> None:
    row = {"output": "the capital is Paris", "keyword": "Paris"}
    assert agrees("exact", row, row["output"]) and not agrees("exact", row, row["output"] + ".")
    assert agrees("similar or keyword", row, "the capital is Pari?")
    assert agrees("similar or keyword", row, "Paris") and not agrees("similar or keyword", row, "Washington")
    assert agrees("keyword", row, "Paris") and not agrees("keyword", row, "the capital is Pari")


def test_the_readme_names_every_table() -> None:
    readme = (Path(__file__).parent / "README.md").read_text("utf-8")
    files = [*FILES.values(), *Path(__file__).parent.glob("*.json")]
    assert [file.name for file in files if f"[{file.name}](" not in readme] == []
