"""ONNX Runtime GenAI at the end of a pipe: PYTHON onnxruntime_genai_worker.py.

Its model builder writes the base and an adapter into one model, A and B as products of their own. So there is a model
for each adapter, as whoever switches between adapters that it has built must have.
"""

import hashlib
import json
import platform
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from model_per_adapter import ModelPerAdapter, Step
from serve_pipe import Reply, Settings, serve_engine


class Server(ModelPerAdapter):
    """Its methods are the calls."""

    def start(self, settings: Settings) -> Reply:
        """Build the model of the base; return the size of its vocabulary."""
        import onnxruntime_genai

        self.api = onnxruntime_genai
        self.max_length = settings.max_length + 1
        self.scratch = tempfile.TemporaryDirectory()
        self.base = with_tokenizer(Path(settings.model), Path(self.scratch.name) / "base")
        self.start_models(settings)
        return int(self.begin(self.models[None])([0]).shape[1]), {}

    def model_with(self, adapter: str | None) -> Any:
        """Return the base with the PEFT folder built in: of the same files once alone, as that takes seconds."""
        from onnxruntime_genai.models.builder import create_model, parse_extra_options

        files = ("adapter_config.json", "adapter_model.safetensors") if adapter is not None else ()
        key = hashlib.sha256(b"".join((Path(str(adapter)) / file).read_bytes() for file in files)).hexdigest()
        out, cache = Path(self.scratch.name) / key, str(Path(self.scratch.name) / "cache")
        if not (out / "genai_config.json").exists():
            where = (self.base, str(out), "fp32", "cpu", cache)
            more = [] if adapter is None else [f"adapter_path={adapter}"]
            create_model("", *where, **parse_extra_options("", *where, more))
        config = self.api.Config(str(out))
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": 1}}}}))
        return self.api.Model(config)

    def begin(self, model: Any) -> Step:
        """Return the function that computes a text."""
        params = self.api.GeneratorParams(model)
        params.set_search_options(max_length=self.max_length, do_sample=False)
        generator = self.api.Generator(model, params)

        def step(token_ids: Sequence[int]) -> np.ndarray:
            generator.append_tokens(np.array(token_ids, np.int32))
            return np.array(generator.get_output("logits")[0], np.float32)

        return step

    def versions(self) -> Reply:
        """Return the versions that its numbers depend on."""
        packages = ("onnxruntime-genai", "onnxruntime", "onnx-ir", "peft", "transformers")
        return {"python": platform.python_version()} | {package: version(package) for package in packages}, {}


def with_tokenizer(base: Path, out: Path) -> str:
    """Return the base's folder, or one of links to it and a tokenizer of one word: the builder wants one to copy."""
    if (base / "tokenizer.json").exists():
        return str(base)
    out.mkdir()
    for file in base.iterdir():
        (out / file.name).symlink_to(file.resolve())
    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    (out / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}), "utf-8")
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "a"}  # and a token that ends a text
    (out / "tokenizer_config.json").write_text(json.dumps(about), "utf-8")
    return str(out)


if __name__ == "__main__":
    serve_engine(Server())
