"""NeMo's and torchtune's adapters are the same numbers as the PEFT folder, cut and ordered by loops of our own."""

import dataclasses
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loading.folders import BASE, refused, safetensors_bytes
from support.build import as_dtype, random_adapter, random_model

from refimpl import Request, cli, logits
from refimpl.adapter import Adapter
from refimpl.config import LAYER_MODULES, Norms
from refimpl.errors import AdapterError
from refimpl.formats.convert import FORMATS, convert
from refimpl.loading.adapter_folder import load_adapter
from refimpl.tools.inspect import inspect

SHAPE = dataclasses.replace(BASE, num_hidden_layers=2)  # 4 heads of 8 channels, 2 of keys
IDS = [3, 1, 4, 1, 5, 9, 2, 6]


def plain(modules: tuple[str, ...] = LAYER_MODULES) -> Adapter:
    """An adapter whose A is the same for q, k and v, and for gate and up, as one that was trained fused has it."""
    adapter = as_dtype(random_adapter(SHAPE, 2, 3, 6.0, modules=modules), "float32")
    lora = dict(adapter.lora)
    for (layer, name), tensors in adapter.lora.items():
        first = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}.get(name, name)
        if (layer, first) in lora:
            lora[layer, name] = dataclasses.replace(tensors, A=adapter.lora[layer, first].A)
    return dataclasses.replace(adapter, lora=lora)


def megatron_rows(adapter: Adapter, layer: int) -> np.ndarray:
    """B of q, k and v as linear_qkv has its rows: group by group, the queries', the key's, the value's."""
    q, k, v = (adapter.lora[layer, name].B for name in ("q_proj", "k_proj", "v_proj"))
    rows = []
    for group in range(2):
        for head in (2 * group, 2 * group + 1):
            rows += [q[8 * head + i] for i in range(8)]
        rows += [k[8 * group + i] for i in range(8)]
        rows += [v[8 * group + i] for i in range(8)]
    return np.stack(rows)


def nemo_tensors(adapter: Adapter, nemo2: bool = False) -> dict[str, np.ndarray]:
    tensors = {}
    for layer in range(2):
        B = {name: adapter.lora[layer, name].B for name in LAYER_MODULES}
        A = {name: adapter.lora[layer, name].A for name in LAYER_MODULES}
        fused = np.concatenate([B["gate_proj"], B["up_proj"]])
        pairs = {
            ("self_attention", "lora_kqv_adapter", "linear_qkv"): (A["q_proj"], megatron_rows(adapter, layer)),
            ("self_attention", "lora_dense_attention_adapter", "linear_proj"): (A["o_proj"], B["o_proj"]),
            ("mlp", "lora_hto4h_adapter", "linear_fc1"): (A["gate_proj"], fused),
            ("mlp", "lora_4htoh_adapter", "linear_fc2"): (A["down_proj"], B["down_proj"]),
        }
        for (parent, first, second), pair in pairs.items():
            name = f"{second}.adapter" if nemo2 else f"adapter_layer.{first}"
            prefix = f"{'module' if nemo2 else 'model'}.decoder.layers.{layer}.{parent}.{name}"
            tensors |= {f"{prefix}.linear_in.weight": pair[0], f"{prefix}.linear_out.weight": pair[1]}
    return tensors


CONFIG = "tensor_model_parallel_size: 1\npeft:\n  peft_scheme: lora\n  lora_tuning:\n    adapter_dim: 3\n    alpha: 6\n"


def nemo(path: Path, tensors: dict[str, np.ndarray], config: str | None = CONFIG, mode: str = "w") -> Path:
    members = {"model_weights.safetensors": safetensors_bytes(tensors)}
    if config is not None:
        members["./model_config.yaml"] = config.encode()
    with tarfile.open(path, mode) as tar:
        for name, raw in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            tar.addfile(member, io.BytesIO(raw))
    return path


def same(ours: Adapter, theirs: Adapter) -> None:
    assert ours.lora.keys() == theirs.lora.keys()
    model = random_model(SHAPE)
    one, two = (logits(model, [Request(IDS, adapter)])[0] for adapter in (ours, theirs))
    assert np.array_equal(one, two)


@pytest.mark.parametrize(("nemo2", "mode"), [(False, "w"), (True, "w:gz")])
def test_a_nemo_file_is_the_same_adapter(tmp_path: Path, nemo2: bool, mode: str) -> None:
    adapter = plain()
    path = nemo(tmp_path / "a.nemo", nemo_tensors(adapter, nemo2), mode=mode)
    same(load_adapter(path, SHAPE), adapter)
    same(load_adapter(tmp_path, SHAPE), adapter)  # the folder that holds it
    report = inspect(path, SHAPE)
    assert (report.kind, report.ok, report.config["lora_alpha"]) == ("adapter", True, 6.0)
    folder = tmp_path / "unpacked"
    with tarfile.open(path) as tar:
        tar.extractall(folder, filter="data")
    same(load_adapter(folder, SHAPE), adapter)


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "gemma", "gemma2"])
def test_nemo_on_other_families(tmp_path: Path, model_type: str) -> None:
    base = dataclasses.replace(SHAPE, model_type=model_type, norms=Norms(q="q_norm", k="k_norm"))
    adapter = plain()
    for i, nemo2 in enumerate((False, True)):
        adapter_read = load_adapter(nemo(tmp_path / f"{i}.nemo", nemo_tensors(adapter, nemo2)), base)
        for module, lora in adapter.lora.items():
            read = adapter_read.lora[module]
            assert np.array_equal(read.A, lora.A) and np.array_equal(read.B, lora.B)


def test_the_canonical_form_of_nemo(tmp_path: Path) -> None:
    """q, k and v apart, and no alpha: the scale is 1."""
    adapter = plain(("q_proj", "k_proj", "v_proj"))
    tensors = {}
    for (layer, name), lora in adapter.lora.items():
        prefix = f"model.decoder.layers.{layer}.self_attention.adapter_layer.lora_unfused_kqv_adapter.{name[0]}_adapter"
        tensors |= {f"{prefix}.linear_in.weight": lora.A, f"{prefix}.linear_out.weight": lora.B}
    path = nemo(tmp_path / "a.nemo", tensors, CONFIG.replace("alpha: 6", "alpha: null"))
    same(
        load_adapter(path, SHAPE),
        dataclasses.replace(adapter, config=dataclasses.replace(adapter.config, lora_alpha=3)),
    )
    assert inspect(path).ok  # without a base, too


QKV = "model.decoder.layers.0.self_attention.adapter_layer.lora_kqv_adapter"


def damaged(**changes: Any) -> dict[str, np.ndarray]:
    return nemo_tensors(plain()) | changes


@pytest.mark.parametrize(
    ("tensors", "config", "says"),
    [
        (damaged(), None, "has no model_config.yaml: without it the scale is unknown"),
        (damaged(), "a: [", "model_config.yaml is not valid YAML"),
        (damaged(), "- 1\n", "model_config.yaml is [1], not a mapping"),
        (damaged(), "peft: none\n", "has no peft.lora_tuning: the scale is unknown"),
        (damaged(), CONFIG.replace("alpha: 6", "alpha: many"), "alpha 'many': they must be numbers"),
        (damaged(), CONFIG.replace("size: 1", "size: 2"), "tensor_model_parallel_size is 2; its parts must be joined"),
        (damaged(other=np.ones((2, 2), np.float32)), CONFIG, "tensor other [2, 2] is of no module of a Llama"),
        (
            damaged(**{f"{QKV}.linear_out.weight": np.ones((60, 3), np.float32)}),
            CONFIG,
            "q, k and v of the base have 64 rows",
        ),
    ],
)  # fmt: skip
def test_a_nemo_file_that_is_refused(tmp_path: Path, tensors: Any, config: str | None, says: str) -> None:
    path = nemo(tmp_path / "a.nemo", tensors, config)
    with refused(AdapterError, f"{path}: ", says):
        load_adapter(path, SHAPE)


def test_nemo_needs_the_base(tmp_path: Path) -> None:
    path = nemo(tmp_path / "a.nemo", nemo_tensors(plain()))
    assert "give --model DIR" in inspect(path).problems[0]
    with refused(AdapterError, "only the base knows: give --model DIR"):
        convert(path, tmp_path / "out", "peft")
    with refused(AdapterError, "known here for gemma, gemma2, llama, mistral, qwen2, qwen3; the base has norms"):
        load_adapter(path, dataclasses.replace(SHAPE, norms=Norms(q="q_norm")))


NAMES = {
    "q_proj": "attn.q_proj", "k_proj": "attn.k_proj", "v_proj": "attn.v_proj", "o_proj": "attn.output_proj",
    "gate_proj": "mlp.w1", "down_proj": "mlp.w2", "up_proj": "mlp.w3",
}  # fmt: skip


def torchtune(folder: Path, adapter: Adapter, interleaved: bool = True, **changes: Any) -> Path:
    """The folder with torchtune's names, and the rows of q and k as its rope has the channels: 0, 4, 1, 5, ..."""
    tensors = {}
    for (layer, name), lora in adapter.lora.items():
        B, magnitude = lora.B, lora.magnitude
        if interleaved and name in ("q_proj", "k_proj"):
            order = [8 * (row // 8) + row % 8 // 2 + 4 * (row % 2) for row in range(len(B))]
            B, magnitude = B[order], None if magnitude is None else magnitude[order]
        prefix = f"layers.{layer}.{NAMES[name]}"
        tensors |= {f"{prefix}.lora_a.weight": lora.A, f"{prefix}.lora_b.weight": B}
        if magnitude is not None:
            tensors[f"{prefix}.magnitude"] = magnitude
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(safetensors_bytes(tensors))
    targets = ["q_proj", "k_proj", "v_proj", "output_proj", "w1", "w2", "w3"]
    keys = {"r": 3, "lora_alpha": 6, "peft_type": "LORA", "target_modules": targets, "base_model_name_or_path": "a/b"}
    (folder / "adapter_config.json").write_text(json.dumps(keys | changes))
    return folder


@pytest.mark.parametrize("dora", [False, True])
def test_torchtunes_own_names_are_the_same_adapter(tmp_path: Path, dora: bool) -> None:
    adapter = plain()
    if dora:
        lora = {
            module: dataclasses.replace(tensors, magnitude=np.random.default_rng(i).random(len(tensors.B), np.float32))
            for i, (module, tensors) in enumerate(adapter.lora.items())
        }
        config = dataclasses.replace(adapter.config, use_dora=True)
        adapter = dataclasses.replace(adapter, lora=lora, config=config)
    folder = torchtune(tmp_path / "tune", adapter, use_dora=dora)
    same(load_adapter(folder, SHAPE), adapter)
    assert inspect(folder, SHAPE).ok
    with refused(AdapterError, "order of rows is known here for gemma, gemma2, llama, mistral", "the base has norms"):
        load_adapter(folder, dataclasses.replace(SHAPE, norms=Norms(q="q_norm")))
    with refused(AdapterError, "qwen2, qwen3; the base is phi3"):
        load_adapter(folder, dataclasses.replace(SHAPE, model_type="phi3"))


@pytest.mark.parametrize(
    ("model_type", "interleaved"), [("gemma", True), ("gemma2", True), ("qwen2", False), ("qwen3", False)]
)
def test_torchtunes_rows_of_other_families(tmp_path: Path, model_type: str, interleaved: bool) -> None:
    """Of Qwen torchtune turns halves, as transformers does: nothing is put in another order."""
    adapter, base = plain(), dataclasses.replace(SHAPE, model_type=model_type, norms=Norms(q="q_norm", k="k_norm"))
    adapter_read = load_adapter(torchtune(tmp_path / "tune", adapter, interleaved), base)
    for module, lora in adapter.lora.items():
        assert np.array_equal(adapter_read.lora[module].A, lora.A) and np.array_equal(
            adapter_read.lora[module].B, lora.B
        )


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("was", ["nemo", "torchtune"])
def test_every_pair_from_the_formats_that_are_only_read(tmp_path: Path, was: str, to: str) -> None:
    adapter = plain()
    source = nemo(tmp_path / "a.nemo", nemo_tensors(adapter)) if was == "nemo" else torchtune(tmp_path / "a", adapter)
    target = tmp_path / ("out.gguf" if to == "gguf" else "out")
    done = convert(source, target, to, base=SHAPE)
    assert (done.was, done.to) == (was, to)
    if to == "trtllm":
        convert(target, tmp_path / "again", "peft", base=SHAPE)
        target = tmp_path / "again"
    model = random_model(SHAPE)
    ours, theirs = (logits(model, [Request(IDS, one)])[0] for one in (load_adapter(target, SHAPE), adapter))
    assert np.allclose(ours, theirs, rtol=0, atol=1e-5 * abs(theirs).max())


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from loading.folders import write_model

    path = nemo(tmp_path / "a.nemo", nemo_tensors(plain()))
    model = str(write_model(tmp_path / "model"))
    assert cli.main(["convert", str(path), str(tmp_path / "out"), "--to", "mlx", "--model", model]) == 0
    assert "from the nemo file" in capsys.readouterr().out
    assert cli.main(["inspect", str(path), "--model", model]) == 0
    requests = tmp_path / "requests.jsonl"
    requests.write_text(json.dumps({"adapter": "a", "prompt_ids": IDS}))
    argv = ["generate", "--model", model, "--adapter", f"a={path}", "--prompts", str(requests), "--max-new-tokens", "1"]
    assert cli.main(argv) == 0
