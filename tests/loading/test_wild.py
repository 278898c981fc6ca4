"""Adapters as people have them: each case is served or stopped, by `generate` as by `inspect`, in words that help."""

import json
from pathlib import Path

import pytest
from loading.folders import BASE, model_tensors, write_model
from loading.wild_cases import CASES

from refimpl import cli
from refimpl.errors import AdapterError, WeightsError
from refimpl.loading.adapter_folder import load_adapter
from refimpl.loading.base_names import plain_name, quantisation_in
from refimpl.loading.model_folder import load_model

REQUESTS = '{"adapter": "a", "prompt_ids": [5, 6]}\n{"adapter": "base", "prompt_ids": [5, 6]}\n'


def said(argv: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code of a command, and all that it prints, in one line."""
    code = cli.main(argv)
    out, errors = capsys.readouterr()
    return code, " ".join((out + errors).split())


@pytest.mark.parametrize("name", CASES)
def test_what_people_have_on_disk(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    case.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    code, text = said(["inspect", case.inspected, "--model", "model", "--json"], capsys)
    assert code == (0 if case.served else 2), text
    for words in case.words:
        assert words in text
    code, text = said(["inspect", case.inspected, "--json"], capsys)
    sound = case.served if case.sound_alone is None else case.sound_alone
    assert code == (0 if sound else 2), text
    for words in case.words if case.alone is None else case.alone:
        assert words in text
    (tmp_path / "requests.jsonl").write_text(REQUESTS)
    argv = ["generate", "--model", "model", "--adapter", f"a={case.inspected}", "--json", "--max-new-tokens", "2"]
    code, text = said([*argv, "--prompts", "requests.jsonl"], capsys)
    answers = case.served if case.generates is None else case.generates
    assert code == (0 if answers else 2), text
    if answers:
        assert len(json.loads(text[: text.rindex("}") + 1])["texts"]) == 2
    else:
        for words in case.words[:1]:
            assert words in text


def test_what_is_remarkable_is_not_called_sound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("added_tokens_without_rows", "null_alpha", "axolotl_nulls"):
        CASES[name].write(tmp_path / name)
        _, text = said(["inspect", str(tmp_path / name / "adapter")], capsys)
        assert ("sound in itself" in text) == (name == "axolotl_nulls")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a/Meta-Llama-3-8B.Q4_0", "Q4_0"),
        ("a/Llama-3-8B-W8A8", "W8A8"),
        ("a/llama-3-8b_4bit", "4bit"),
        ("a/Llama-q4f16_1-MLC", "q4f16_1"),
        ("a/Llama-3-8B-SpinQuant_INT4_EO8", "SpinQuant_INT4_EO8"),
        ("Qwen/Qwen2.5-7B", None),
        ("meta-llama/Llama-3.2-1B-fp16", None),
        ("google/gemma-3-4b-it-qat-q4_0-unquantized", None),
        ("a/model-4b-32k", None),
        ("mistralai/Mixtral-8x7B-v0.1", None),
        ("/tmp/tmppw_rm_i2/base", None),
        ("/models/Llama-3-8B-GPTQ/", "GPTQ"),
        ("/hub/models--TheBloke--Llama-2-7B-AWQ/snapshots/0a1b2c", "AWQ"),
        ("C:\\models\\4bit\\Llama-3", None),
    ],
)
def test_which_names_are_of_quantised_bases(name: str, kind: str | None) -> None:
    assert quantisation_in(name) == kind


def test_two_names_of_one_base() -> None:
    names = ["unsloth/Llama-3.2-1B-unsloth-bnb-4bit", "meta-llama/Llama-3.2-1B", "/models/Llama-3.2-1B/"]
    assert {plain_name(name) for name in names} == {"llama-3.2-1b"}
    assert plain_name("meta-llama/Llama-3.2-1B-Instruct") != "llama-3.2-1b"


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("someone/sql-lora", "hf download someone/sql-lora --local-dir"),
        ("https://huggingface.co/someone/sql-lora", "hf download someone/sql-lora --local-dir"),
        ("https://huggingface.co/someone/sql-lora/tree/main", "hf download someone/sql-lora --local-dir"),
        ("adapter/adapter_model.safetensors", "is a file; give the folder, adapter,"),
        ("nowhere", "is not there"),
    ],
)
def test_what_is_no_folder(
    path: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    CASES["axolotl_nulls"].write(tmp_path)
    monkeypatch.chdir(tmp_path)
    generate = ["generate", "--model", "model", "--adapter", f"a={path}", "--prompt", "a:x"]
    for argv in (["inspect", path], generate):
        code, text = said(argv, capsys)
        assert code == 2 and says in text


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("someone/llama", "hf download someone/llama --local-dir"),
        ("adapter", "it is an adapter, not a base model"),
        ("model/model.safetensors", "is a file; give the folder, model"),
        ("models--someone--sql-lora", "give the snapshot in it, models--someone--sql-lora/snapshots/0123456789"),
        (".", "these folders in it have one: model"),
    ],
)
def test_what_is_no_base(
    path: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    CASES["hub_cache_layout"].write(tmp_path)
    CASES["axolotl_nulls"].write(tmp_path)
    monkeypatch.chdir(tmp_path)
    code, text = said(["generate", "--model", path, "--prompt", "base:x"], capsys)
    assert code == 2 and says in text


def test_a_whole_model_is_no_adapter(tmp_path: Path) -> None:
    CASES["axolotl_nulls"].write(tmp_path)
    with pytest.raises(AdapterError, match=r"has no adapter_config\.json: it has a config\.json, and is a whole model"):
        load_adapter(tmp_path / "model", BASE)


@pytest.mark.parametrize(
    ("prefix", "says"),
    [("_orig_mod.", "torch.compile"), ("_fsdp_wrapped_module.", "FSDP"), ("module.", "DataParallel, DDP or DeepSpeed")],
)
def test_a_base_that_was_saved_in_its_wrapping(tmp_path: Path, prefix: str, says: str) -> None:
    write_model(tmp_path, {prefix + name: x for name, x in model_tensors().items()})
    with pytest.raises(WeightsError, match=f"{prefix}.* is not one of the model's; .*{says}"):
        load_model(tmp_path)
