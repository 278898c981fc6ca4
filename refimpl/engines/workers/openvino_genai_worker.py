"""OpenVINO GenAI at the end of a pipe: PYTHON openvino_genai_worker.py.

The base is exported as its users export it, by Optimum. Greedy search shows the log-probabilities of the tokens that it
produces, and beams of one token, after the same text, those of the others.
LLMPipeline with the attention of its name SDPA serves one request after another. With the option pipeline=batching it
is ContinuousBatchingPipeline, whose attention has pages: the requests of one set of adapters are in it together.
Where a module has no pair, its product of rank 0 seems to be whatever the memory held, now and then NaN. So an adapter
of zeros is in every request, and each adapter gets zeros for the modules that it is not on.
"""

import itertools
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from openvino_genai_files import adapter_of_zeros, export, read_tensors, scales, with_factors
from serve_pipe import Reply, Settings, serve_engine

BLOCK_SIZE = 32  # tokens of a KV block, on a CPU
WIDTH = 64  # tokens of a row that are asked for
PROPERTIES = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "INFERENCE_NUM_THREADS": 1}


class Server:
    """One model with its adapters. Its methods are the calls."""

    def start(self, settings: Settings) -> Reply:
        """Load the model, exported first unless the folder `exported` has it; return the size of its vocabulary."""
        import openvino
        import openvino_genai

        self.tensor, self.api = openvino.Tensor, openvino_genai
        base, exported = Path(settings.model), Path(settings.options["exported"])
        if not (exported / "openvino_model.xml").exists():
            export(base, exported)
        self.vocab_size = int(json.loads((base / "config.json").read_text("utf-8"))["vocab_size"])
        self.counter = itertools.count()
        self.driving = settings.options.get("adapters", "padded")
        self.paged = settings.options.get("pipeline") == "batching"
        self.zeros = adapter_of_zeros(base)
        self.nothing = self.read(self.zeros)
        # Tensors of modules on which no adapter was at the start are left out later, with a line on stdout.
        modules = openvino_genai.AdapterConfig(self.nothing, 1.0)

        def opened() -> Any:
            if self.paged:
                more = {**PROPERTIES, "adapters": modules}
                return openvino_genai.ContinuousBatchingPipeline(str(exported), self.scheduler(settings), "CPU", more)
            return openvino_genai.LLMPipeline(
                str(exported), "CPU", adapters=modules, ATTENTION_BACKEND="SDPA", **PROPERTIES
            )

        self.open = opened
        self.pipeline = opened()
        self.adapters: dict[str, tuple[Any, float]] = {}
        return self.vocab_size, {}

    def scheduler(self, settings: Settings) -> Any:
        """Return how much it does at once, with room for all beams: so no prompt is cut."""
        config = self.api.SchedulerConfig()
        blocks = -(-(settings.max_length + 1) // BLOCK_SIZE) + 1
        config.num_kv_blocks = (blocks + WIDTH) * settings.max_requests  # each beam writes into a block of its own
        config.max_num_seqs = settings.max_requests * WIDTH
        config.max_num_batched_tokens = max(settings.max_length, WIDTH) * settings.max_requests
        config.enable_prefix_caching = settings.prefix_caching
        return config

    def read(self, tensors: Mapping[str, np.ndarray]) -> Any:
        """Return the adapter of these tensors, by their names in PEFT's file."""
        from safetensors.numpy import save

        return self.api.Adapter(self.tensor(np.frombuffer(save(dict(tensors)), np.uint8).copy()))

    def load(self, name: str, folder: str) -> Reply:
        """Load the folder under the name, in place of what had the name before. Its config is read here: OpenVINO
        GenAI takes the scale by hand."""
        file = Path(folder) / "adapter_model.safetensors"
        scale, factors = scales(Path(folder))
        if self.driving == "padded":
            adapter = self.read({**self.zeros, **with_factors(read_tensors(file), factors)})
        elif set(factors.values()) == {1.0}:
            adapter = self.api.Adapter(str(file))
        else:  # it has one scale for all modules
            adapter = self.read(with_factors(read_tensors(file), factors))
        self.adapters[name] = adapter, scale
        return None, {}

    def unload(self, name: str) -> Reply:
        """Forget the name."""
        del self.adapters[name]
        return None, {}

    def reset(self) -> Reply:
        """Forget all adapters."""
        self.adapters = {}
        return None, {}

    def run(self, requests: Sequence[Mapping[str, Any]]) -> Reply:
        """Serve the requests of one set of adapters together, one set after another; return the token ids of each, and
        as rows_i its log-probabilities [produced, vocab], NaN where they are not shown."""
        groups: dict[tuple[tuple[str, float], ...], list[int]] = {}
        for i, request in enumerate(requests):
            key = tuple((name, weight) for name, weight in request["adapters"])
            groups.setdefault(() if self.driving == "request" else key, []).append(i)
        rows: dict[int, np.ndarray] = {}
        produced: dict[int, list[int]] = {}
        try:
            for indices in groups.values():
                group = {i: requests[i] for i in indices}
                if self.paged and self.driving != "request":
                    self.switch_to(group[indices[0]])
                served = self.serve(group) if self.paged else {i: self.alone(group[i]) for i in group}
                for i, (ids, logprobs) in served.items():
                    produced[i], rows[i] = ids, self.rows(group[i], ids, logprobs)
        except Exception:
            self.pipeline = self.open()  # the old one would go on with the requests of this call
            raise
        responses = [{"token_ids": produced[i]} for i in range(len(requests))]
        return {"responses": responses}, {f"rows_{i}": rows[i] for i in rows}

    def switch_to(self, request: Mapping[str, Any]) -> None:
        """Make its adapters those of all requests to come: `generate` does that, `add_request` does not."""
        config = self.generation(request)
        config.max_new_tokens = 1
        self.generate(request["prompt_ids"], config)

    def generate(self, prompt_ids: Sequence[int], config: Any) -> list[tuple[list[int], float]]:
        """Return the tokens of each beam, and their log-probability."""
        if self.paged:
            (result,) = self.pipeline.generate([self.prompt(prompt_ids)], [config])
            return list(zip(result.m_generation_ids, result.m_scores, strict=True))
        result = self.pipeline.generate(self.prompt(prompt_ids), config)
        return list(zip(result.tokens, result.scores, strict=True))

    def alone(self, request: Mapping[str, Any]) -> tuple[list[int], list[float]]:
        """Serve it; return its tokens and their log-probabilities: what each is more than the text before it."""
        limit = request["max_new_tokens"] if request["cancel_after"] is None else request["cancel_after"]
        ids: list[int] = []
        sums = [0.0]
        for length in range(1, limit + 1):
            config = self.generation(request)
            config.max_new_tokens = length
            ((ids, logprob),) = self.generate(request["prompt_ids"], config)
            sums.append(logprob)
        return list(ids), np.diff(sums).tolist()

    def serve(self, requests: Mapping[int, Mapping[str, Any]]) -> dict[int, tuple[list[int], list[float]]]:
        """Run its steps until all are finished or cancelled; return the tokens of each, and their log-probabilities."""
        waiting = sorted(requests, key=lambda i: requests[i]["arrival_step"])
        running: dict[int, Any] = {}
        served: dict[int, tuple[list[int], list[float]]] = {i: ([], []) for i in requests}
        step = 0
        while waiting or running:
            while waiting and (requests[waiting[0]]["arrival_step"] <= step or not running):
                i = waiting.pop(0)
                running[i] = self.add(requests[i]["prompt_ids"], self.generation(requests[i]))
            self.pipeline.step()
            for i, handle in list(running.items()):
                self.collect(handle, *served[i])
                limit = requests[i]["cancel_after"]
                if limit is not None and len(served[i][0]) >= limit:
                    handle.cancel()
                    del running[i]
                elif handle.get_status() != self.api.GenerationStatus.RUNNING:
                    self.collect(handle, *served[i])
                    del running[i]
            step += 1
        self.finish()  # the cancelled ones leave with the next step
        return served

    def rows(self, request: Mapping[str, Any], ids: Sequence[int], logprobs: Sequence[float]) -> np.ndarray:
        """Return [produced, vocab]. Of a produced token there is its log-probability; those of the likeliest others
        come of as many beams, one token long, after the same text: a request of its own for each."""
        rows = np.full((len(ids), self.vocab_size), np.nan)
        width = min(WIDTH, self.vocab_size)
        beams = self.generation(request)
        beams.max_new_tokens, beams.num_beams, beams.num_return_sequences = 1, width, width
        texts = [[*request["prompt_ids"], *ids[:i]] for i in range(len(ids))]
        if self.paged:
            handles = [self.add(text, beams) for text in texts]
            self.finish()
            beams_of_texts = [[(one.generated_ids, one.score) for one in handle.read_all()] for handle in handles]
        else:
            beams_of_texts = [self.generate(text, beams) for text in texts]
        for row, shown, token, logprob in zip(rows, beams_of_texts, ids, logprobs, strict=True):
            for tokens, score in shown:
                row[tokens[0]] = score
            row[token] = logprob
        return rows

    def add(self, prompt_ids: Sequence[int], config: Any) -> Any:
        """Add a request; return its handle."""
        return self.pipeline.add_request(next(self.counter), self.prompt(prompt_ids), config)

    def finish(self) -> None:
        """Run its steps until nothing is left to do."""
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()

    def collect(self, handle: Any, ids: list[int], logprobs: list[float]) -> None:
        """Append what is new."""
        while handle.can_read():
            for output in handle.read().values():
                ids += output.generated_ids
                logprobs += output.generated_log_probs

    def prompt(self, prompt_ids: Sequence[int]) -> Any:
        """Return the token ids [1, length]."""
        return self.tensor(np.array([prompt_ids], np.int64))

    def generation(self, request: Mapping[str, Any]) -> Any:
        """Return what is asked of it: greedy tokens, none of which ends it."""
        config = self.api.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = request["max_new_tokens"], True, False
        config.logprobs = 1
        config.set_eos_token_id(0)  # which does not end it; a model without any is refused
        config.adapters = self.api.AdapterConfig()
        if self.driving == "padded":
            config.adapters.add(self.nothing, 1.0)
        for name, weight in request["adapters"]:
            adapter, scale = self.adapters[name]
            config.adapters.add(adapter, scale * weight)
        return config

    def versions(self) -> Reply:
        """Return the versions that its numbers depend on."""
        packages = {package: version(package) for package in ("openvino", "openvino-genai", "optimum-intel")}
        return {"python": platform.python_version(), **packages}, {}


if __name__ == "__main__":
    serve_engine(Server())
