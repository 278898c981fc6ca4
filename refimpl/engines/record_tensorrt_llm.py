"""Record what TensorRT-LLM answers. One file, for a GPU machine that has TensorRT-LLM and numpy and nothing else.

    python record_tensorrt_llm.py cases/ out/        unattended: within 10 minutes and 5 MB for the embedded model

`loracle record --engine tensorrt_llm` writes cases/. Each part of its plan is a process of its own, because what it
needs is decided when TensorRT-LLM is imported (LORA_USE_UNIFIED_GEMM) or started (CUDA graphs), and because a part that
crashes or hangs must not take the others along. Whatever a part has seen is on disk when the next thing is tried:

    summary.json      versions, weights' hashes, what each part did, and the exact text of what went wrong
    requests.json, adapters/    what was asked, copied: a recording can be judged without cases/
    PART/part.json    which names were found where, which arguments were rejected, facts seen
    PART/CASE.json, PART/CASE.npz       one batch: ids in, ids and logits out

TensorRT-LLM's names and arguments move between releases (0.20 to 1.x). Each is looked for where it has been; an
argument that is rejected by name makes way for its other spelling or is left out; and all of that is written down. Only
numpy arrays and JSON are written, nothing that needs pickle.
"""

import argparse
import contextlib
import hashlib
import importlib
import io
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

VERSION = 1
LEAST = 5.0  # seconds: with less left, a part is not begun
LAST_LINES = 20  # of what a part printed, if it went wrong

# Where each name has been, the place of most releases first.
PLACES = {
    "LLM": ("tensorrt_llm:LLM", "tensorrt_llm._torch:LLM"),
    "LLM before 1.0": ("tensorrt_llm._torch:LLM", "tensorrt_llm:LLM"),  # the other one is the TensorRT backend there
    "SamplingParams": ("tensorrt_llm:SamplingParams",),
    "KvCacheConfig": ("tensorrt_llm.llmapi:KvCacheConfig",),
    "CudaGraphConfig": ("tensorrt_llm.llmapi:CudaGraphConfig",),
    "LoRARequest": ("tensorrt_llm.executor:LoRARequest", "tensorrt_llm.executor.request:LoRARequest"),
    "LoraConfig": (
        "tensorrt_llm.lora_helper:LoraConfig",  # 1.1 on
        "tensorrt_llm.lora_manager:LoraConfig",  # up to 1.0
        "tensorrt_llm._torch.peft.lora.config:LoraConfig",  # 1.3 on
    ),
}

# What is asked for, from the most to the least: the first of these that an engine serves is kept.
READOUTS: tuple[dict[str, Any], ...] = (
    {"return_context_logits": True, "return_generation_logits": True},
    {"return_generation_logits": True},
    {"logprobs": 20},
    {},
)


def main(argv: Sequence[str] | None = None) -> int:
    """0 if every part did what it should, 1 if something is missing (summary.json says what), 2 for a wrong call."""
    parser = argparse.ArgumentParser(description="record what TensorRT-LLM answers to cases/")
    parser.add_argument("cases", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", help="the base, if it is not in cases/model")
    parser.add_argument("--seconds", type=float, help="in all (default: the plan's)")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # this process is one part
    args = parser.parse_args(argv)
    try:
        plan = json.loads((args.cases / "requests.json").read_text("utf-8"))
        if plan["version"] != VERSION:
            raise ValueError(f"version {plan['version']}, this file reads {VERSION}")
    except (OSError, ValueError, KeyError) as error:
        print(f"{args.cases / 'requests.json'}: {said(error)}", file=sys.stderr)
        return 2
    model = args.model or str(args.cases / "model")
    if args.part:
        part = next(p for p in plan["parts"] if p["name"] == args.part)
        return run_part(plan, part, args.cases, args.out, model)
    if args.out.exists() and any(args.out.iterdir()):
        print(f"{args.out} is not empty: a recording gets a folder of its own", file=sys.stderr)
        return 2
    return run_all(plan, args.cases, args.out, model, args.seconds or plan["seconds"])


# The process that was started: it imports nothing of TensorRT-LLM.


def run_all(plan: Mapping[str, Any], cases: Path, out: Path, model: str, seconds: float) -> int:
    """Every part, each in its process, until the time is used up; then the summary."""
    deadline = time.monotonic() + seconds
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(cases / "requests.json", out / "requests.json")
    for name in plan["adapters"]:
        shutil.copytree(cases / "adapters" / name, out / "adapters" / name)
    if (cases / "kernel.npz").is_file():
        shutil.copyfile(cases / "kernel.npz", out / "kernel.npz")
    summary: dict[str, Any] = {
        "version": VERSION,
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "weights": {"model": digest(Path(model))}
        | {name: digest(out / "adapters" / name) for name in plan["adapters"]},
        "machine": machine(),
        "parts": {},
        "facts": {},
    }
    for part in plan["parts"]:
        left = deadline - time.monotonic()
        began = time.monotonic()
        result: dict[str, Any]
        if left < LEAST:
            result = {"status": "not run", "error": f"the {seconds:g} s were used up"}
        else:
            result = spawn(part, cases, out, model, min(left, part["seconds"]))
        written = read_json(out / part["name"] / "part.json")
        add_facts(summary["facts"], written.get("facts", {}), part["name"])
        summary["machine"] |= written.get("machine", {})
        result |= {"seconds": round(time.monotonic() - began, 1), "errors": written.get("errors", [])}
        result["cases"] = len(list((out / part["name"]).glob("*.npz")))
        summary["parts"][part["name"]] = result
        write_json(out / "summary.json", summary)
        print(f"{part['name']}: {result['status']}, {result['cases']} written, {result['seconds']} s", flush=True)
    summary["bytes"] = size(out)
    write_json(out / "summary.json", summary)
    wrong = [name for name, r in summary["parts"].items() if r["status"] != "done" or r["errors"]]
    print(f"{out}: {summary['bytes']} bytes" + (f"; something is missing in {', '.join(wrong)}" if wrong else ""))
    return 1 if wrong else 0


def spawn(part: Mapping[str, Any], cases: Path, out: Path, model: str, seconds: float) -> dict[str, Any]:
    """One part in a process group of its own, which is ended with it."""
    command = [sys.executable, os.path.abspath(__file__), str(cases), str(out), "--part", part["name"]]
    # One process for TensorRT-LLM too: its workers would be MPI's, with an environment and a life of their own.
    env = {**os.environ, "TLLM_WORKER_USE_SINGLE_PROCESS": "1", **part["env"]}
    with tempfile.TemporaryFile() as printed:
        process = subprocess.Popen(
            [*command, "--model", model], stdout=printed, stderr=subprocess.STDOUT, env=env, start_new_session=True
        )
        try:
            code = process.wait(seconds)
            status, error = ("done", "") if code == 0 else ("failed", f"exit code {code}")
        except subprocess.TimeoutExpired:
            status, error = "timeout", f"not done within {seconds:.0f} s"
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        printed.seek(0)
        lines = printed.read().decode("utf-8", "replace").splitlines()
    return {"status": status, "error": error, "printed": [] if status == "done" else lines[-LAST_LINES:]}


def machine() -> dict[str, str]:
    """What can be said without TensorRT-LLM."""
    found = {"python": platform.python_version(), "system": platform.platform(), "numpy": np.__version__}
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        told = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
        found["gpu and driver"] = told
    return found


def digest(folder: Path) -> str:
    """SHA-256 over every tensor in a folder's safetensors files, by name: its dtype, shape and bytes."""
    whole = hashlib.sha256()
    tensors: dict[str, tuple[Path, int, Any]] = {}
    for file in folder.glob("*.safetensors"):
        with open(file, "rb") as f:
            length = int.from_bytes(f.read(8), "little")
            header = json.loads(f.read(length))
        header.pop("__metadata__", None)
        tensors |= {name: (file, 8 + length, about) for name, about in header.items()}
    for name, (file, start, about) in sorted(tensors.items()):
        whole.update(f"{name} {about['dtype']} {about['shape']}".encode())
        first, last = about["data_offsets"]
        with open(file, "rb") as f:
            f.seek(start + first)
            for _ in range(first, last, 1 << 20):
                whole.update(f.read(min(1 << 20, start + last - f.tell())))
    return whole.hexdigest()


# One part: a process that imports TensorRT-LLM.


class Part:
    """What a part has to say about itself, on disk after every word."""

    def __init__(self, folder: Path, limit: int, out: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.out, self.limit = folder, out, limit
        self.told: dict[str, Any] = {"found": {}, "left_out": [], "errors": [], "facts": {}, "machine": {}}

    def note(self, key: str, value: Any) -> None:
        """Another entry in a list, or more keys of an object."""
        if isinstance(self.told[key], list):
            self.told[key].append(value)
        else:
            self.told[key] |= value
        write_json(self.folder / "part.json", self.told)

    @contextlib.contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Whatever goes wrong inside is written down, and the part goes on."""
        try:
            yield
        except Exception as error:
            self.note("errors", {"at": what, "error": said(error)})

    def save(self, name: str, about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """One case: as much of it as still fits. The JSON comes last: what has one is whole."""
        room = self.limit - size(self.out) - 20_000  # the rest is for what is told
        kept = ""
        for cut in ("", "last rows", "no rows"):
            some = shortened(arrays, cut)
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **some)  # type: ignore[arg-type]
            kept = cut
            if buffer.tell() <= room:
                break
        (self.folder / f"{name}.npz").write_bytes(buffer.getvalue())
        write_json(self.folder / f"{name}.json", {**about, "cut": kept})


def shortened(arrays: Mapping[str, np.ndarray], cut: str) -> dict[str, np.ndarray]:
    """Without all rows of the prompt but the last, or without any."""
    if cut == "no rows":
        return {}
    return {k: x[-1:] if cut and k.startswith("context") else x for k, x in arrays.items()}


def run_part(plan: Mapping[str, Any], part: Mapping[str, Any], cases: Path, out: Path, model: str) -> int:
    """1 if something went wrong; it is in part.json then."""
    notes = Part(out / part["name"], plan["limit_bytes"], out)
    notes.note("machine", {})
    kinds: dict[str, Callable[..., None]] = {"facts": part_facts, "kernel": part_kernel, "model": part_model}
    with notes.attempt(part["kind"]):
        kinds[part["kind"]](plan, part, cases, notes, model)
    return 1 if notes.told["errors"] else 0


def part_facts(plan: Mapping[str, Any], part: Mapping[str, Any], cases: Path, notes: Part, model: str) -> None:
    """Versions, and the facts that need no running engine."""
    notes.note("machine", versions())
    observe(notes, None)


def versions() -> dict[str, str]:
    """Of all that may matter to the numbers."""
    found = {}
    import torch

    found["torch"] = str(torch.__version__)
    found["cuda"] = str(torch.version.cuda)
    with contextlib.suppress(Exception):
        found["gpu"] = torch.cuda.get_device_name(0)
        found["compute capability"] = ".".join(map(str, torch.cuda.get_device_capability(0)))
    import tensorrt_llm

    return found | {"tensorrt_llm": str(tensorrt_llm.__version__)}


def before_1() -> bool:
    """Is this a 0.x? There LLM is the TensorRT backend, and several arguments have other names."""
    import tensorrt_llm

    return int(str(tensorrt_llm.__version__).partition(".")[0]) < 1


def find(name: str, found: dict[str, str]) -> Any:
    """The object of this name, wherever this release has it. ImportError with every place that was tried."""
    tried = []
    for place in PLACES[name]:
        module, _, attribute = place.partition(":")
        try:
            thing = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            tried.append(f"{place}: {said(error)}")
            continue
        found[name] = place
        return thing
    raise ImportError(f"{name} is nowhere: {'; '.join(tried)}")


Spellings = Sequence[tuple[str, Any]]


def call(
    f: Callable, fixed: Mapping[str, Any], options: Sequence[Spellings], left_out: list[dict[str, str]], must: int = 0
) -> Any:
    """f with every option that it takes. One that an error names is given in its next spelling, then left out.

    The first `must` options may be spelled otherwise, but not left out: without them the call means something else."""
    chosen = [0] * len(options)
    while True:
        given = dict(s[i] for s, i in zip(options, chosen, strict=True) if i < len(s))
        try:
            return f(**fixed, **given)
        except Exception as error:
            at = next((k for k, (s, i) in enumerate(zip(options, chosen, strict=True)) if named(s, i, error)), None)
            if at is None:
                raise
            left_out.append({"argument": options[at][chosen[at]][0], "error": said(error)})
            chosen[at] += 1
            if at < must and chosen[at] == len(options[at]):
                raise


def named(spellings: Spellings, i: int, error: Exception) -> bool:
    """Does the error name the argument in the spelling that was given?"""
    return i < len(spellings) and re.search(rf"\b{re.escape(spellings[i][0])}\b", str(error)) is not None


def part_model(plan: Mapping[str, Any], part: Mapping[str, Any], cases: Path, notes: Part, model: str) -> None:
    """Start the engine once, and ask it every batch of this part."""
    session = Session(
        model,
        plan["dtype"],
        plan["modules"],
        max_rank=plan["max_rank"],
        max_adapters=len(plan["adapters"]),
        max_requests=plan["max_requests"],
        max_length=plan["max_length"],
        cuda_graphs=part["cuda_graphs"],
        noted=lambda key, value: notes.note(key, value),
    )
    folders = {name: (i + 1, cases / "adapters" / name) for i, name in enumerate(plan["adapters"])}
    answers: dict[str, list[dict[str, Any]]] = {}
    try:
        for case in part["cases"]:
            began, error = time.monotonic(), ""
            requests, found = case["requests"], []
            try:
                known = [None if r["adapter"] is None else (r["adapter"], *folders[r["adapter"]]) for r in requests]
                found = session.ask([r["prompt_ids"] for r in requests], known, requests[0]["max_new_tokens"])
            except Exception as problem:
                error = said(problem)
                if not case["may_fail"]:
                    notes.note("errors", {"at": case["name"], "error": error})
            arrays = {f"{k}_{i}": x for i, a in enumerate(found) for k, x in a["rows"].items()}
            told = [{k: v for k, v in a.items() if k != "rows"} for a in found]
            about = {**case, "answers": told, "error": error, "seconds": round(time.monotonic() - began, 3)}
            notes.save(case["name"], about, arrays)
            answers[case["name"]] = found
        observe(notes, Seen(plan, part, session, answers))
    finally:
        with notes.attempt("shutdown"):
            session.close()


class Session:
    """A running engine: the arguments of this release, and its answers as numpy arrays."""

    def __init__(
        self,
        model: str,
        dtype: str,
        modules: Sequence[str],
        *,
        max_rank: int,
        max_adapters: int,
        max_requests: int,
        max_length: int,
        cuda_graphs: bool = False,
        noted: Callable[[str, Any], None] = lambda key, value: None,
    ) -> None:
        """modules: TensorRT-LLM's names of all that some adapter is on. Block reuse is off: it changes last bits."""
        found: dict[str, str] = {}
        left_out: list[dict[str, str]] = []
        old = before_1()
        lora = call(
            find("LoraConfig", found),
            {"lora_target_modules": list(modules), "max_lora_rank": max_rank},
            [[("max_loras", max_adapters)], [("max_cpu_loras", max_adapters)]],
            left_out,
        )
        cache = call(
            find("KvCacheConfig", found),
            {"enable_block_reuse": False},
            [[("free_gpu_memory_fraction", 0.3)], [("max_tokens", 2 * max_requests * max_length)]],
            left_out,
        )
        graphs: list[tuple[str, Any]] = [("use_cuda_graph", True)]
        if cuda_graphs:
            with contextlib.suppress(ImportError):
                make = find("CudaGraphConfig", found)
                graphs.insert(len(graphs) if old else 0, ("cuda_graph_config", make(max_batch_size=max_requests)))
        else:
            graphs = [("cuda_graph_config", None), ("use_cuda_graph", False)][:: -1 if old else 1]
        llm = find("LLM before 1.0" if old else "LLM", found)
        options: list[Spellings] = [
            graphs,
            [("disable_overlap_scheduler", True)],
            [("enable_chunked_prefill", False)],
            [("max_batch_size", max_requests)],
            [("max_num_tokens", max(512, max_requests * max_length))],  # so that all prompts share one step
            [("max_seq_len", max_length)],
            [("gather_generation_logits", True)],  # needed up to 1.0
            [("skip_tokenizer_init", True)],
        ]
        if old:  # the sampler of PyTorch gives no context logits there
            options += [[("enable_trtllm_sampler", True)], [("backend", "pytorch")]]
        fixed = {"model": model, "dtype": dtype, "lora_config": lora, "kv_cache_config": cache}
        try:
            self.llm = call(llm, fixed, options, left_out, must=int(cuda_graphs))
            self.sampling = find("SamplingParams", found)
            self.lora_request = find("LoRARequest", found)
        finally:
            noted("found", found)
            for item in left_out:
                noted("left_out", item)
        self.noted, self.readout, self.served = noted, 0, False

    def ask(
        self, prompts: Sequence[Sequence[int]], adapters: Sequence[tuple[str, int, Path] | None], new: int
    ) -> list[dict[str, Any]]:
        """Greedy answers to one batch. adapters: for each request a name, an id that stands for these weights for ever
        (TensorRT-LLM's caches are keyed by it), and a folder. What cannot be read out is asked for no more."""
        wanted = [None if a is None else self.lora_request(a[0], a[1], str(a[2])) for a in adapters]
        while True:
            try:
                return self._ask([list(map(int, p)) for p in prompts], wanted, new)
            except Exception as error:
                if self.served or self.readout == len(READOUTS) - 1:
                    raise
                self.noted("left_out", {"argument": ", ".join(READOUTS[self.readout]), "error": said(error)})
                self.readout += 1

    def _ask(self, prompts: list[list[int]], wanted: list[Any], new: int) -> list[dict[str, Any]]:
        left_out: list[dict[str, str]] = []
        options: list[Spellings] = [[item] for item in READOUTS[self.readout].items()]
        options += [[("temperature", 0.0)], [("end_id", -1)], [("pad_id", 0)], [("ignore_eos", True)]]
        options += [[("detokenize", False)], [("add_special_tokens", False)]]
        params = call(self.sampling, {"max_tokens": new}, options, left_out)
        batch = {"inputs": prompts, "sampling_params": params, "lora_request": wanted}
        outputs = call(self.llm.generate, batch, [[("use_tqdm", False)]], left_out)
        if len(outputs) != len(prompts):
            raise ValueError(f"{len(outputs)} outputs for {len(prompts)} prompts")
        found = [answer(o) for o in outputs]
        if not self.served:
            for item in left_out:
                self.noted("left_out", item)
        self.served = True
        return found

    def close(self) -> None:
        """Give the GPU back."""
        self.llm.shutdown()


def answer(output: Any) -> dict[str, Any]:
    """One RequestOutput: token ids, and rows [tokens, vocab] of logits under "rows" as the engine gave them."""
    first = output.outputs[0]
    found: dict[str, Any] = {"token_ids": [int(t) for t in first.token_ids], "dtypes": {}, "rows": {}}
    tensors = {
        "context": getattr(output, "context_logits", None),
        "generation": getattr(first, "generation_logits", None),
    }
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        found["dtypes"][name] = str(tensor.dtype)
        rows = np.asarray(tensor.float().cpu().numpy())
        found["rows"][name] = narrowest(rows.reshape(-1, rows.shape[-1]))
    if getattr(first, "logprobs", None):
        found["top"] = [{str(t): float(getattr(p, "logprob", p)) for t, p in row.items()} for row in first.logprobs]
    return found


def narrowest(x: np.ndarray) -> np.ndarray:
    """float16 where that loses nothing, else float32."""
    with np.errstate(over="ignore"):
        half = x.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), x, equal_nan=True) else x.astype(np.float32)


# The LoRA product by itself: torch.ops.trtllm.lora_grouped_gemm.


def part_kernel(plan: Mapping[str, Any], part: Mapping[str, Any], cases: Path, notes: Part, model: str) -> None:
    """Every vector of the plan. Numbers of 16 bits are in the files as those bits."""
    import tensorrt_llm  # noqa: F401 - registers the operator
    import torch

    op = torch.ops.trtllm.lora_grouped_gemm
    with np.load(cases / "kernel.npz", allow_pickle=False) as file:
        arrays = dict(file)
    for vector in plan["kernel"]:
        error, outputs = "", []
        try:
            outputs = kernel(op, vector, arrays)
        except Exception as problem:
            error = said(problem)
            if not vector["may_fail"]:
                notes.note("errors", {"at": vector["name"], "error": error})
        notes.save(vector["name"], {**vector, "error": error}, {f"out_{i}": x for i, x in enumerate(outputs)})


def kernel(op: Any, vector: Mapping[str, Any], arrays: Mapping[str, np.ndarray], device: str = "cuda") -> list[Any]:
    """One call: for each module the bits of its [tokens, d_out]."""
    import torch

    name, dtype = vector["name"], vector["dtype"]

    def there(key: str) -> Any:
        return tensor(arrays[f"{name}.{key}"], dtype).to(device)

    x, ranks, pointers, kept = there("x"), [], [], []
    for m, of_module in enumerate(vector["ranks"]):
        pairs = [(there(f"A.{m}.{a}"), there(f"B.{m}.{a}")) for a in range(len(of_module))]
        kept.append(pairs)
        addresses = [[A.data_ptr(), B.data_ptr(), 0] for A, B in pairs]
        asked = [r["adapter"] for r in vector["requests"]]
        ranks.append(torch.tensor([0 if a < 0 else of_module[a] for a in asked], dtype=torch.int32))
        pointers.append(torch.tensor([[0, 0, 0] if a < 0 else addresses[a] for a in asked], dtype=torch.int64))
    types = torch.tensor([r["type"] for r in vector["requests"]], dtype=torch.int32)
    lengths = torch.tensor([r["length"] for r in vector["requests"]], dtype=torch.int32)
    most = max(max(of_module) for of_module in vector["ranks"])
    # transA, transB, the largest rank, weight_index, remove_input_padding
    result = op(x, types, ranks, pointers, lengths, vector["d_outs"], False, True, most, 0, True)
    return [bits(y) for y in result]


def tensor(x: np.ndarray, dtype: str) -> Any:
    """uint16 bits -> a tensor of that dtype."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(x).view(np.int16)).view(getattr(torch, dtype))


def bits(y: Any) -> np.ndarray:
    """A tensor of a 16-bit type -> its bits."""
    import torch

    return np.asarray(y.contiguous().view(torch.int16).cpu().numpy()).view(np.uint16)


# Facts that are believed of TensorRT-LLM and were not seen in its sources. One function each; what it returns is
# (observed | contradicted | not observable, the raw value).

Verdict = tuple[str, Any]
SEEN, CONTRADICTED, UNSEEN = "observed", "contradicted", "not observable"


class Seen:
    """A part with its answers, for the facts that need them."""

    def __init__(
        self, plan: Mapping[str, Any], part: Mapping[str, Any], session: Session, answers: Mapping[str, list]
    ) -> None:
        self.plan, self.part, self.session, self.answers = plan, part, session, answers
        self.all = [a for found in answers.values() for a in found]


def fact_bfloat16_npy(seen: Seen | None) -> Verdict:
    """A bfloat16 .npy is written as dtype V2 with the metadata {"dtype": "bfloat16"}."""
    if seen is not None:
        return UNSEEN, "told once"
    import torch

    x = importlib.import_module("tensorrt_llm._utils").torch_to_numpy(torch.zeros(2, dtype=torch.bfloat16))
    raw = {"dtype": x.dtype.str, "metadata": dict(x.dtype.metadata or {})}
    return (SEEN if raw == {"dtype": "|V2", "metadata": {"dtype": "bfloat16"}} else CONTRADICTED), raw


def fact_llm_is_pytorch(seen: Seen | None) -> Verdict:
    """From 1.0 on tensorrt_llm.LLM is the PyTorch backend, and the other one is under tensorrt_llm._tensorrt_engine."""
    if seen is not None:
        return UNSEEN, "told once"
    import tensorrt_llm

    classes = [c.__name__ for c in tensorrt_llm.LLM.__mro__]
    try:
        other: Any = importlib.import_module("tensorrt_llm._tensorrt_engine").LLM.__name__
    except (ImportError, AttributeError) as error:
        other = said(error)
    raw = {"version": str(tensorrt_llm.__version__), "classes": classes, "_tensorrt_engine.LLM": other}
    if before_1():
        return UNSEEN, raw
    return (SEEN if any("Torch" in name for name in classes) else CONTRADICTED), raw


def fact_logits_are_widened(seen: Seen | None) -> Verdict:
    """Logits come as float32, but each is a number of the model's dtype: lm_head is computed in that."""
    if seen is None or not seen.all:
        return UNSEEN, "needs a running engine"
    dtypes = sorted({d for a in seen.all for d in a["dtypes"].values()})
    rows = [x for a in seen.all for x in a["rows"].values()]
    if not rows:
        return UNSEEN, "no logits came back"
    wide = [x.astype(np.float32) for x in rows]
    coarse = all(np.array_equal(x, as_dtype(x, seen.plan["dtype"]), equal_nan=True) for x in wide)
    raw = {"dtypes": dtypes, f"all of them are {seen.plan['dtype']}": bool(coarse)}
    return (SEEN if coarse and dtypes == ["torch.float32"] else CONTRADICTED), raw


def as_dtype(x: np.ndarray, dtype: str) -> np.ndarray:
    """Rounded to float16 or bfloat16."""
    if dtype == "float16":
        return x.astype(np.float16).astype(np.float32)
    b = np.ascontiguousarray(x).view(np.uint32)
    return ((b + ((b >> 16) & 1) + np.uint32(0x7FFF)) & np.uint32(0xFFFF0000)).view(np.float32)


def fact_first_generation_row(seen: Seen | None) -> Verdict:
    """generation_logits[0] belongs to the first produced token: it is the last row of context_logits."""
    pairs = [] if seen is None else [a for a in seen.all if len(a["rows"]) == 2]
    if not pairs:
        return UNSEEN, "needs context and generation logits"
    same = sum(np.array_equal(a["rows"]["context"][-1], a["rows"]["generation"][0]) for a in pairs)
    counts = sorted({len(a["rows"]["generation"]) - len(a["token_ids"]) for a in pairs})
    raw = {"equal": int(same), "of": len(pairs), "rows less tokens": counts}
    return (SEEN if same == len(pairs) and counts == [0] else CONTRADICTED), raw


def fact_repeatable(seen: Seen | None) -> Verdict:
    """Without block reuse, the same batch twice gives the same bits."""
    if seen is None or not {"together-0", "again-0"} <= set(seen.answers):
        return UNSEEN, "needs a batch that was asked twice"
    first, second = seen.answers["together-0"], seen.answers["again-0"]
    if not first or len(first) != len(second):
        return UNSEEN, "needs a batch that was answered twice"
    worst = 0.0
    for a, b in zip(first, second, strict=True):
        for key, x in a["rows"].items():
            y = b["rows"].get(key)
            if y is None or y.shape != x.shape:
                return CONTRADICTED, f"{key} has another shape the second time"
            worst = max(worst, float(np.abs(x.astype(np.float64) - y).max()))
    return (SEEN if worst == 0 else CONTRADICTED), {"largest difference": worst}


def fact_rank_alignment(seen: Seen | None) -> Verdict:
    """Ranks 5 and 8 in one batch fail, 12 beside the base fails, and 5 alone does not."""
    if seen is None or "misaligned-0" not in seen.answers:
        return UNSEEN, "needs the part that breaks the rule"
    raw = {name: "answered" if found else "failed" for name, found in seen.answers.items()}
    wrong = [name for name, found in seen.answers.items() if bool(found) == name.startswith("misaligned")]
    return (CONTRADICTED if wrong else SEEN), raw


def fact_k_after_rope(seen: Seen | None) -> Verdict:
    """K is stored after RoPE."""
    return UNSEEN, "no documented call shows the KV cache"


def fact_similar_threshold(seen: Seen | None) -> Verdict:
    """The texts of TensorRT-LLM's own tests are compared by similar() with a threshold of 0.8."""
    return UNSEEN, "its tests are not in the installed package"


def fact_six_times(seen: Seen | None) -> Verdict:
    """The chart that says 6 times faster: RTX 4090, Llama 3B int4, 100 tokens, rank 64, against one after another."""
    return UNSEEN, "the conditions of a published chart"


def fact_japanese_alpha(seen: Seen | None) -> Verdict:
    """Japanese-Alpaca-LoRA-7b-v0, an adapter of the guide, has lora_alpha 16."""
    if seen is not None:
        return UNSEEN, "told once"
    folder = os.environ.get("LORACLE_MODELS")
    for file in sorted(Path(folder).glob("*apanese*lpaca*/adapter_config.json")) if folder else []:
        raw = json.loads(file.read_text("utf-8"))
        return (SEEN if raw.get("lora_alpha") == 16 else CONTRADICTED), {k: raw.get(k) for k in ("r", "lora_alpha")}
    return UNSEEN, "the adapter is not under $LORACLE_MODELS"


FACTS: tuple[Callable[[Seen | None], Verdict], ...] = (
    fact_bfloat16_npy,
    fact_llm_is_pytorch,
    fact_logits_are_widened,
    fact_first_generation_row,
    fact_repeatable,
    fact_rank_alignment,
    fact_k_after_rope,
    fact_similar_threshold,
    fact_six_times,
    fact_japanese_alpha,
)


def observe(notes: Part, seen: Seen | None) -> None:
    """Every fact that this part can tell. Without answers: also why the others cannot be told."""
    for fact in FACTS:
        try:
            verdict, raw = fact(seen)
        except Exception as error:
            verdict, raw = UNSEEN, said(error)
        if verdict != UNSEEN or seen is None:
            notes.note("facts", {fact.__name__.removeprefix("fact_"): {"is": verdict, "raw": raw}})


def add_facts(facts: dict[str, Any], told: Mapping[str, Any], part: str) -> None:
    """What one part tells, beside what others do: fact -> its claim, and what each part saw. Those parts that could
    not see it are named only while no other one has."""
    for fact in FACTS:
        name = fact.__name__.removeprefix("fact_")
        known = facts.setdefault(name, {"claim": " ".join((fact.__doc__ or "").split()), "seen": {}})
        if name in told:
            known["seen"][part] = told[name]
        clear = {k: v for k, v in known["seen"].items() if v["is"] != UNSEEN}
        known["seen"] = clear or known["seen"]


def said(error: BaseException) -> str:
    """The exception's type and its text as it is."""
    return f"{type(error).__name__}: {error}"[:4000]


def size(folder: Path) -> int:
    """Bytes of all files."""
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def read_json(file: Path) -> dict[str, Any]:
    """{} where a part did not get so far."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_json(file: Path, value: Any) -> None:
    """Whole or not at all."""
    part = file.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1) + "\n", "utf-8")
    os.replace(part, file)


if __name__ == "__main__":
    # Its own folder is no place to import from: beside it may lie a file that is called tensorrt_llm.py.
    sys.path[:] = [p for p in sys.path if os.path.realpath(p) != os.path.dirname(os.path.realpath(__file__))]
    sys.exit(main())
