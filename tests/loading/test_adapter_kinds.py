"""Kinds of adapters that are more than a pair with a scale: what is honoured, and what is refused, in one line."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import BASE, lora_name, lora_tensors, random, refused, write_adapter, write_model
from hypothesis import given
from hypothesis import strategies as st
from support.build import random_model

import refimpl
from refimpl import Request, logits
from refimpl.cli import main
from refimpl.config import LayerKind
from refimpl.errors import AdapterError, AdapterWarning, ConfigError
from refimpl.formats.peft import save_adapter
from refimpl.loading.changed_base import olora, padded, pissa
from refimpl.loading.vera_projection import kaiming_uniform
from refimpl.replication import replicated_config
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


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (
            {"init_lora_weights": "pissa"},
            "its weights are needed to tell which: --model DIR, in Python load_adapter(path, model)",
        ),
        ({"init_lora_weights": "pissa_niter_16"}, "that random numbers led to, which nobody can repeat"),
        ({"init_lora_weights": "corda"}, "init_lora_weights is 'corda', which may change the base's weights"),
        ({"init_lora_weights": "lora_ga"}, "init_lora_weights is 'lora_ga', which may change the base's weights"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights is 'loftq', which may change the base's weights"),
        ({"kasa_config": {"beta": 1}}, "kasa_config is {'beta': 1}, which is not supported"),
        ({"init_lora_weights": "olora", "lora_bias": True}, "init_lora_weights 'olora' and lora_bias are both given"),
        ({"init_lora_weights": "pissa", "alora_invocation_tokens": [1]}, "and alora_invocation_tokens are both given"),
    ],
)
def test_what_was_taken_out_of_the_base(tmp_path: Path, keys: dict[str, Any], says: str) -> None:
    with refused(AdapterError, says):
        refimpl.load_adapter(write_adapter(tmp_path / "adapter", **keys), BASE)


def test_inspect_shows_what_was_taken_out_of_the_base(tmp_path: Path) -> None:
    report = inspect(write_adapter(tmp_path / "adapter", init_lora_weights="olora"), BASE)
    assert report.ok and report.config["init_lora_weights"] == "olora"


def test_pissa_on_a_tied_head_has_changed_the_embedding_too(tmp_path: Path) -> None:
    tied = random_model(replace(BASE, tie_word_embeddings=True))
    tensors = lora_tensors(modules=("lm_head", "q_proj"))
    folder = write_adapter(tmp_path, tensors, init_lora_weights="pissa", target_modules=["lm_head", "q_proj"])
    with refused(AdapterError, "lm_head: init_lora_weights is 'pissa', and the base ties it to the embedding"):
        refimpl.load_adapter(folder, tied)


@pytest.mark.filterwarnings("ignore:.*switched off")
def test_pissa_of_a_scale_of_zero(tmp_path: Path) -> None:
    with refused(AdapterError, "init_lora_weights is 'pissa', and its scale 0: PEFT divides by it"):
        refimpl.load_adapter(write_adapter(tmp_path, init_lora_weights="pissa", lora_alpha=0), random_model(BASE))


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 8), st.sampled_from([0.5, 2.0, -3.0]))
def test_what_is_taken_out_is_the_best_of_that_rank_and_no_more_than_there_is(
    d_out: int, d_in: int, r: int, scale: float
) -> None:
    W = random((d_out, d_in), dtype="float64")
    for taken_out in (pissa, olora):
        A, B = padded(taken_out(W, r, scale), r)
        assert (A.shape, B.shape) == ((r, d_in), (d_out, r))
        rest = np.linalg.norm(W - scale * (B @ A))
        if taken_out is pissa:
            assert rest == pytest.approx(np.linalg.norm(np.linalg.svd(W)[1][r:]), abs=1e-12)
        elif r >= min(d_out, d_in):
            assert pytest.approx(W, abs=1e-12) == B @ A


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"use_bdlora": {"nblocks": 0}}, "it must be an object with nblocks, a number of 1 or more"),
        ({"use_bdlora": {"nblocks": 2, "target_modules_bd_a": "q"}}, "target_modules_bd_a and _b must be lists of"),
        (
            {"use_bdlora": {"nblocks": 2, "target_modules_bd_a": ["q_proj"]}},
            "nblocks 2, which does not divide its rows",
        ),
        ({"use_bdlora": {"nblocks": 3, "target_modules_bd_a": ["q_proj"]}}, "has shape [3, 36]"),
    ],
)
def test_bd_lora_that_is_not_whole(tmp_path: Path, keys: dict[str, Any], says: str) -> None:
    with refused(AdapterError, says):
        refimpl.load_adapter(write_adapter(tmp_path, **keys), BASE)


def test_qa_lora_is_written_out_for_its_base(tmp_path: Path) -> None:
    tensors = lora_tensors(modules=("q_proj",))
    for name in [name for name in tensors if "lora_A" in name]:
        tensors[name] = tensors[name][:, :3]
    folder = write_adapter(tmp_path, tensors, use_qalora=True, qalora_group_size=4, target_modules=["q_proj"])
    with pytest.warns(AdapterWarning, match="use_qalora: A is stored for groups of inputs, and written out"):
        adapter = refimpl.load_adapter(folder, BASE)
    stored = tensors[lora_name((0, "q_proj"), "lora_A.weight")]
    assert np.array_equal(adapter.lora[0, "q_proj"].A, stored.astype("float64").repeat(4, axis=1) * (3 / 4))
    assert inspect(folder, BASE).ok


VERA = {"peft_type": "VERA", "lora_alpha": ..., "r": 2, "target_modules": ["q_proj"], "save_projection": True}


def vera_tensors() -> dict[str, np.ndarray]:
    """VeRA of rank 2 on the q_proj of BASE."""
    shared = {"base_model.vera_A": random((2, 12)), "base_model.vera_B": random((32, 2))}
    vectors = {lora_name((i, "q_proj"), "vera_lambda_b"): random((32,), i) for i in range(2)}
    return shared | vectors | {lora_name((i, "q_proj"), "vera_lambda_d"): random((2,), i) for i in range(2)}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"base_model.vera_B": ...}, "vera_A and vera_B are not both there: save it with save_projection=True"),
        (
            {"base_model.vera_A": ..., "base_model.vera_B": ...},
            "vera_A and vera_B are not there, and save_projection is True and projection_prng_key None: save it with",
        ),
        ({"base_model.vera_A": random((2, 11))}, "are too narrow for model.layers.0.self_attn.q_proj [32, 12]"),
        ({"base_model.vera_A": random((2,))}, "has shape [2]; it must have 2 axes"),
        ({lora_name((0, "q_proj"), "vera_lambda_b"): random((31,))}, "and the base make it [32]"),
        ({lora_name((0, "q_proj"), "vera_lambda_d"): ...}, "q_proj: vera_lambda_d is missing"),
        ({lora_name((2, "q_proj"), "vera_lambda_d"): random((2,))}, "is of no module of the base"),
        ({lora_name((0, "q_proj"), "vera_lambda_d"): np.full(2, np.nan, np.float32)}, "holds NaN or inf"),
        (dict.fromkeys([lora_name((1, "q_proj"), f"vera_lambda_{half}") for half in "bd"], ...), "no tensors for it"),
    ],
)
def test_vera_that_is_not_whole(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    tensors = {name: x for name, x in (vera_tensors() | change).items() if x is not ...}
    with refused(AdapterError, says):
        refimpl.load_adapter(write_adapter(tmp_path, tensors, **VERA), BASE)


# From torch 2.13 (AVX-512): _kaiming_init of peft 0.21.2, generator of this seed, shape (2, 3) and then (3, 2).
DRAWN = {
    0: (
        [[-0.010587962344288826, 0.75864577293396, -1.1639615297317505],
         [-1.040774941444397, -0.5446904897689819, 0.3792317807674408]],
        [[-0.03431743383407593, 1.3733248710632324], [-0.15370918810367584, 0.4583223760128021],
         [-0.5234484076499939, -0.34046122431755066]],
    ),
    2**32 - 1: (
        [[1.3966755867004395, 0.20168480277061462, 0.19801263511180878],
         [-1.2741957902908325, 1.3945205211639404, 0.6738855838775635]],
        [[0.6267285943031311, -0.7711994051933289], [0.3206285536289215, 0.3179474472999573],
         [-1.061679482460022, -1.3065185546875]],
    ),
}  # fmt: skip


def test_vera_without_its_matrices_gets_those_that_peft_draws(tmp_path: Path) -> None:
    """As if they were in the file, the widest of its modules' widths; tests/engines compares more of them with PEFT."""
    for seed, (A, B) in DRAWN.items():
        generator = np.random.RandomState(seed)
        assert np.array_equal(kaiming_uniform((2, 3), generator), np.array(A, np.float32))
        assert np.array_equal(kaiming_uniform((3, 2), generator), np.array(B, np.float32))
    generator = np.random.RandomState(7)
    matrices = {
        "base_model.vera_A": kaiming_uniform((2, 12), generator),
        "base_model.vera_B": kaiming_uniform((32, 2), generator),
    }
    saved = refimpl.load_adapter(write_adapter(tmp_path / "saved", vera_tensors() | matrices, **VERA), BASE)
    vectors = {name: x for name, x in vera_tensors().items() if "lambda" in name}
    keys = VERA | {"save_projection": False, "projection_prng_key": 7}
    drawn_again = refimpl.load_adapter(write_adapter(tmp_path / "drawn", vectors, **keys), BASE)
    for module, lora in saved.lora.items():
        assert np.array_equal(lora.A, drawn_again.lora[module].A) and np.array_equal(lora.B, drawn_again.lora[module].B)
    assert "only the base knows: give --model DIR" in "".join(inspect(tmp_path / "drawn").problems)
    with refused(AdapterError, "projection_prng_key 'seven'"):
        refimpl.load_adapter(write_adapter(tmp_path / "no", vectors, **keys | {"projection_prng_key": "seven"}), BASE)
    with refused(AdapterError, "depends on the version of transformers: save it with save_projection=True"):
        refimpl.load_adapter(tmp_path / "drawn", replace(BASE, wrapped=True))


def test_vera_is_a_pair_for_each_module(tmp_path: Path) -> None:
    tensors = vera_tensors()
    adapter = refimpl.load_adapter(write_adapter(tmp_path, tensors, **VERA), BASE)
    wide = {name: x.astype("float64") for name, x in tensors.items()}
    for i in range(2):
        b, d = (wide[lora_name((i, "q_proj"), f"vera_lambda_{half}")] for half in "bd")
        delta = np.diag(b) @ wide["base_model.vera_B"] @ np.diag(d) @ wide["base_model.vera_A"]
        assert pytest.approx(delta, abs=1e-12) == adapter.lora[i, "q_proj"].B @ adapter.lora[i, "q_proj"].A
    assert inspect(tmp_path).ok


def test_replicated_layers_are_the_bases_own_and_take_no_memory() -> None:
    kinds = tuple(LayerKind(window=window) for window in (None, 3))
    model = random_model(replace(BASE, layers=kinds))
    deeper = refimpl.replicated(model, [[0, 2], [1, 2], [0, 1]])
    assert [layer is model.layers[i] for layer, i in zip(deeper.layers, (0, 1, 1, 0), strict=True)] == [True] * 4
    assert [deeper.config.kind(i).window for i in range(4)] == [None, 3, 3, None]
    assert deeper.nbytes == model.nbytes and deeper.identity != model.identity
    rows = logits(refimpl.replicated(model, [[0, 2]]), [Request([3, 1, 4])])[0]
    assert np.array_equal(rows, logits(model, [Request([3, 1, 4])])[0])


@pytest.mark.parametrize("runs", [[[0, 3]], [[1, 1]], [[-1, 2]], [[0]]])
def test_runs_that_are_not_the_bases(runs: list[list[int]]) -> None:
    with refused(ConfigError, f"layer_replication: {runs[0]} is no run of layers of a base that has 2"):
        refimpl.replicated(random_model(BASE), runs)


def test_layers_that_know_their_place_are_not_read_again() -> None:
    kinds = (LayerKind(), LayerKind(kv_from=0))
    with refused(ConfigError, "layers of this base know their place"):
        replicated_config(replace(BASE, layers=kinds), [[0, 1]])
    with refused(ConfigError, "replicated already"):
        replicated_config(replicated_config(BASE, [[0, 1]]), [[0, 1]])


@pytest.mark.parametrize("value", ["0-2", [[0, 1, 2]], [[0, -1]], [0, 2], [["0", 2]]])
def test_layer_replication_that_is_no_list_of_runs(tmp_path: Path, value: object) -> None:
    with refused(AdapterError, "layer_replication is", "it must be pairs of layer numbers"):
        refimpl.load_adapter(write_adapter(tmp_path, layer_replication=value), BASE)


def test_an_adapter_and_its_base_are_equally_deep(tmp_path: Path) -> None:
    deeper = replicated_config(BASE, [[0, 2], [1, 2]])
    folder = write_adapter(tmp_path / "deep", lora_tensors(deeper), layer_replication=[[0, 2], [1, 2]])
    assert len(refimpl.load_adapter(folder, deeper).lora) == 21
    says = (
        "layer_replication is [[0, 2], [1, 2]], and the base's null: refimpl.replicated(model, [[0, 2], [1, 2]]) makes"
    )
    with refused(AdapterError, says):
        refimpl.load_adapter(folder, BASE)
    with refused(AdapterError, "layer_replication is null, and the base's [[0, 2], [1, 2]]: take the base itself"):
        refimpl.load_adapter(write_adapter(tmp_path / "plain"), deeper)


def test_the_command_line_makes_the_deeper_model_itself(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base")
    deeper = replicated_config(BASE, [[0, 2], [1, 2]])
    folder = write_adapter(tmp_path / "deep", lora_tensors(deeper), layer_replication=[[0, 2], [1, 2]])
    assert main(["inspect", str(folder), "--model", str(base)]) == 0
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"adapter": "deep", "prompt_ids": [3, 1, 4]}\n')
    arguments = ["--model", str(base), "--adapter", f"deep={folder}", "--prompts", str(prompts)]
    assert main(["generate", *arguments, "--max-new-tokens", "2"]) == 0
    assert main(["generate", *arguments, "--adapter", f"plain={write_adapter(tmp_path / 'plain')}"]) == 2


def test_generate_says_which_alora_does_not_act(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, folder = write_model(tmp_path / "base"), write_adapter(tmp_path / "judge", alora_invocation_tokens=[4, 5])
    for ids, acts in (([3, 4, 5], True), ([3, 5, 4], False)):
        prompts = tmp_path / "prompts.jsonl"
        prompts.write_text(f'{{"adapter": "judge", "prompt_ids": {ids}}}\n')
        arguments = ["--model", str(base), "--adapter", f"judge={folder}", "--prompts", str(prompts)]
        assert main(["generate", *arguments, "--max-new-tokens", "1"]) == 0
        said = "adapter judge does not act: its alora_invocation_tokens [4, 5] are not in the prompt"
        assert (said in capsys.readouterr().err) is not acts
