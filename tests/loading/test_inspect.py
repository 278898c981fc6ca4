"""`loracle inspect` looks through a folder to its end, and says the same as the loaders."""

import dataclasses
import json
from pathlib import Path

import numpy as np
from folders import BASE, lora_name, lora_tensors, model_tensors, random, write_adapter, write_model

from refimpl.tools.inspect import inspect


def test_a_model(tmp_path: Path) -> None:
    seen = inspect(write_model(tmp_path))
    assert (seen.kind, seen.ok, seen.path) == ("model", True, str(tmp_path))
    assert seen.warnings == [f"{tmp_path}: has no tokenizer.json: it can be given token ids, not text"]
    assert seen.config["hidden_size"] == 12
    assert seen.config["rope"]["theta"] == 10000.0
    parameters = sum(x.size for x in model_tensors().values())
    assert (seen.parameters, seen.bytes, seen.dtypes) == (parameters, 4 * parameters, {"float32": parameters})
    q = next(module for module in seen.modules if module.module == "model.layers.1.self_attn.q_proj.weight")
    assert (q.kind, q.shapes, q.parameters) == ("base", {"weight": [32, 12]}, 384)
    json.dumps(dataclasses.asdict(seen), allow_nan=False)


def test_an_adapter(tmp_path: Path) -> None:
    saved = {lora_name((-1, "lm_head"), "weight"): random((13, 12))}
    changes = {"modules_to_save": ["lm_head"], "alpha_pattern": {"v_proj": 4}, "use_rslora": True}
    for base in (None, BASE):
        seen = inspect(write_adapter(tmp_path, lora_tensors(dtype="bfloat16") | saved, **changes), base)
        assert (seen.kind, seen.problems, seen.warnings) == ("adapter", [], [])
        assert len(seen.modules) == 15
        modules = {module.module: module for module in seen.modules}
        v, q = modules["model.layers.0.self_attn.v_proj"], modules["model.layers.0.self_attn.q_proj"]
        assert (v.rank, v.alpha, v.scale, q.scale) == (3, 4, 4 / np.sqrt(3), 7 / np.sqrt(3))
        assert q.shapes == {"A": [3, 12], "B": [32, 3]}
        assert (modules["lm_head"].kind, modules["lm_head"].rank) == ("replaced", None)
        assert seen.dtypes == {"bfloat16": seen.parameters - 156, "float32": 156}
        assert seen.bytes == 2 * seen.parameters + 2 * 156
        json.dumps(dataclasses.asdict(seen), allow_nan=False)


def test_every_problem_and_every_module_that_can_be_read(tmp_path: Path) -> None:
    tensors = lora_tensors()
    del tensors[lora_name((0, "q_proj"), "lora_A.weight")]
    tensors[lora_name((1, "q_proj"), "lora_B.weight")][0, 0] = np.nan
    tensors["extra"] = random((2,))
    folder = write_adapter(
        tmp_path, tensors, rank_pattern={"up_proj": 4}, inference_mode=False, target_modules=["x_proj"]
    )
    seen = inspect(folder, BASE)
    assert seen.kind == "adapter"
    for piece in ("lora_A is missing", "holds NaN", "tensor extra [2]", "(rank 4)", "does not select it"):
        assert any(piece in problem for problem in seen.problems), piece
    assert len(seen.warnings) == 2
    assert len(seen.modules) == 14
    damaged = inspect(write_adapter(tmp_path, r=0, kasa_config={"beta": 1}), BASE)
    assert len(damaged.problems) == 2
    assert len(damaged.modules) == 14
    assert damaged.modules[0].scale is None


def test_tensors_that_are_refused_are_not_said_to_be_missing(tmp_path: Path) -> None:
    integers = {name: np.ones(x.shape, np.int32) for name, x in lora_tensors().items()}
    foreign = {name.replace("lora_", "lore_"): x for name, x in lora_tensors().items()}
    for tensors, says in ((integers, "has dtype I32"), (foreign, " is not supported")):
        for base in (None, BASE):
            problems = inspect(write_adapter(tmp_path, tensors), base).problems
            assert any(says in problem for problem in problems)
            assert not any("no tensors" in problem for problem in problems), problems


def test_a_damaged_model(tmp_path: Path) -> None:
    write_model(tmp_path, rms_norm_eps=-1, hidden_act="relu")
    (tmp_path / "tokenizer.json").write_text("{}")
    seen = inspect(tmp_path)
    assert len(seen.problems) == 3
    assert len(seen.modules) == len(model_tensors())


def test_what_is_neither(tmp_path: Path) -> None:
    assert "neither config.json" in inspect(tmp_path).problems[0]
    assert inspect(tmp_path / "nowhere").problems[0].startswith(f"{tmp_path / 'nowhere'}: is not there")
    assert inspect(tmp_path).kind == "unknown"
