"""Record what TensorRT-LLM answers. One file, for a GPU machine that has TensorRT-LLM and numpy and nothing else.

    python record_tensorrt_llm.py cases/ out/        unattended: within 10 minutes and 5 MB for the embedded model

`loracle record --engine tensorrt_llm` writes cases/. Each part of its plan is a process of its own, because what it
needs is decided when TensorRT-LLM is imported (LORA_USE_UNIFIED_GEMM) or started (CUDA graphs), and because a part that
crashes or hangs must not take the others along. Every result is on disk before the next thing is tried:

    summary.json      versions, weights' hashes, what each part did, and the exact text of what went wrong
    requests.json, adapters/    the requests, copied: a recording can be judged without cases/
    PART/part.json    which names were imported from where, which arguments were rejected, facts observed
    PART/CASE.json, PART/CASE.npz       one batch: ids in, ids and logits out

TensorRT-LLM's names and arguments move between releases (0.20 to 1.x). Each name is tried at every location that it has
had; an argument that is rejected by name makes way for its other spelling or is left out; and all of that is written
down. Only numpy arrays and JSON are written, nothing that needs pickle.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

VERSION = 1
LEAST = 5.0  # seconds: with less time than this, a part is not started
LAST_LINES = 20  # of a part's output that are kept if it fails

# Where each name has been, the location of most releases first.
LOCATIONS = {
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

# The arguments for readouts, from the most to the least: the first of these that an engine serves is kept.
READOUTS: tuple[dict[str, Any], ...] = (
    {"return_context_logits": True, "return_generation_logits": True},
    {"return_generation_logits": True},
    {"logprobs": 20},
    {},
)


def main(argv: Sequence[str] | None = None) -> int:
    """Return 0 if every part did what it should, 1 if something is missing (see summary.json), 2 for a wrong call."""
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
        print(f"{args.cases / 'requests.json'}: {error_text(error)}", file=sys.stderr)
        return 2
    model = args.model or str(args.cases / "model")
    if args.part:
        part = next(part for part in plan["parts"] if part["name"] == args.part)
        return run_part(plan, part, args.cases, args.out, model)
    if args.out.exists() and any(args.out.iterdir()):
        print(f"{args.out} is not empty: a recording gets a folder of its own", file=sys.stderr)
        return 2
    return run_all(plan, args.cases, args.out, model, args.seconds or plan["seconds"])


# The process that the user starts: it imports nothing of TensorRT-LLM.


def run_all(plan: Mapping[str, Any], cases: Path, out: Path, model: str, seconds: float) -> int:
    """Run every part, each in its process, until the time is used up, and write the summary; return the exit code."""
    deadline = time.monotonic() + seconds
    copy_cases(plan, cases, out)
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
        began = time.monotonic()
        remaining = deadline - began
        result: dict[str, Any]
        if remaining < LEAST:
            result = {"status": "not run", "error": f"the {seconds:g} s were used up"}
        else:
            result = spawn(part, cases, out, model, min(remaining, part["seconds"]))
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
    wrong = [name for name, result in summary["parts"].items() if result["status"] != "done" or result["errors"]]
    print(f"{out}: {summary['bytes']} bytes" + (f"; something is missing in {', '.join(wrong)}" if wrong else ""))
    return 1 if wrong else 0


def copy_cases(plan: Mapping[str, Any], cases: Path, out: Path) -> None:
    """Copy the requests and the adapters, so that the recording can be judged without cases/."""
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(cases / "requests.json", out / "requests.json")
    for name in plan["adapters"]:
        shutil.copytree(cases / "adapters" / name, out / "adapters" / name)
    if (cases / "kernel.npz").is_file():
        shutil.copyfile(cases / "kernel.npz", out / "kernel.npz")


def spawn(part: Mapping[str, Any], cases: Path, out: Path, model: str, seconds: float) -> dict[str, Any]:
    """Run one part in a process group of its own, and end the group; return what is known of it for the summary."""
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
    """Return what can be said of the machine without TensorRT-LLM."""
    about = {"python": platform.python_version(), "system": platform.platform(), "numpy": np.__version__}
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        output = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
        about["gpu and driver"] = output.strip()
    return about


def digest(folder: Path) -> str:
    """Return SHA-256 over every tensor in a folder's safetensors files, by name: its dtype, shape and bytes."""
    sha = hashlib.sha256()
    tensors: dict[str, tuple[Path, int, Any]] = {}
    for path in folder.glob("*.safetensors"):
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        tensors |= {name: (path, 8 + length, about) for name, about in header.items()}
    for name, (path, start, about) in sorted(tensors.items()):
        sha.update(f"{name} {about['dtype']} {about['shape']}".encode())
        first, last = about["data_offsets"]
        with open(path, "rb") as file:
            file.seek(start + first)
            for _ in range(first, last, 1 << 20):
                sha.update(file.read(min(1 << 20, start + last - file.tell())))
    return sha.hexdigest()


# One part: a process that imports TensorRT-LLM.


class Part:
    """The notes and results of one part, on disk after every one of them."""

    def __init__(self, folder: Path, limit: int, out: Path) -> None:
        """limit: bytes of the whole recording, which is in `out`."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.out, self.limit = folder, out, limit
        self.notes: dict[str, Any] = {"found": {}, "left_out": [], "errors": [], "facts": {}, "machine": {}}

    def note(self, key: str, value: Any) -> None:
        """Add an entry to a list, or more keys to an object, and write part.json."""
        if isinstance(self.notes[key], list):
            self.notes[key].append(value)
        else:
            self.notes[key] |= value
        write_json(self.folder / "part.json", self.notes)

    @contextlib.contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Write down whatever goes wrong inside, and go on."""
        try:
            yield
        except Exception as error:
            self.note("errors", {"at": what, "error": error_text(error)})

    def save(self, name: str, about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Write one case, as much of it as still fits. The JSON comes last: a case that has one is whole."""
        room = self.limit - size(self.out) - 20_000  # the rest is for part.json and summary.json
        for cut in ("", "last rows", "no rows"):
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **shortened(arrays, cut))  # type: ignore[arg-type]
            if buffer.tell() <= room:
                break
        (self.folder / f"{name}.npz").write_bytes(buffer.getvalue())
        write_json(self.folder / f"{name}.json", {**about, "cut": cut})


def shortened(arrays: Mapping[str, np.ndarray], cut: str) -> dict[str, np.ndarray]:
    """Return the arrays without all rows of the prompt but the last ("last rows"), or none of them ("no rows")."""
    if cut == "no rows":
        return {}
    return {key: x[-1:] if cut and key.startswith("context") else x for key, x in arrays.items()}


def run_part(plan: Mapping[str, Any], part: Mapping[str, Any], cases: Path, out: Path, model: str) -> int:
    """Run one part; return 1 if something went wrong, which is in part.json then."""
    notes = Part(out / part["name"], plan["limit_bytes"], out)
    notes.note("machine", {})
    kinds: dict[str, Callable[..., None]] = {"facts": part_facts, "kernel": part_kernel, "model": part_model}
    with notes.attempt(part["kind"]):
        kinds[part["kind"]](plan, part, cases, notes, model)
    return 1 if notes.notes["errors"] else 0


def part_facts(plan: Mapping[str, Any], part: Mapping[str, Any], cases: Path, notes: Part, model: str) -> None:
    """Note versions, and the facts that need no running engine."""
    notes.note("machine", versions())
    observe(notes, None)


def versions() -> dict[str, str]:
    """Return the versions of all that may matter to the numbers, and the GPU."""
    import torch

    about = {"torch": str(torch.__version__), "cuda": str(torch.version.cuda)}
    with contextlib.suppress(Exception):
        about["gpu"] = torch.cuda.get_device_name(0)
        about["compute capability"] = ".".join(map(str, torch.cuda.get_device_capability(0)))
    import tensorrt_llm

    return about | {"tensorrt_llm": str(tensorrt_llm.__version__)}


def before_1() -> bool:
    """Return whether this is a 0.x, where LLM is the TensorRT backend and several arguments have other names."""
    import tensorrt_llm

    return int(str(tensorrt_llm.__version__).partition(".")[0]) < 1


def find(name: str, locations: dict[str, str]) -> Any:
    """Return the object of this name, wherever this release has it, and note where in `locations`.

    ImportError with every location that was tried."""
    tried = []
    for location in LOCATIONS[name]:
        module, _, attribute = location.partition(":")
        try:
            value = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            tried.append(f"{location}: {error_text(error)}")
            continue
        locations[name] = location
        return value
    raise ImportError(f"{name} is nowhere: {'; '.join(tried)}")


Spellings = Sequence[tuple[str, Any]]  # of one option: (argument, value), the preferred spelling first


def call(
    function: Callable,
    fixed: Mapping[str, Any],
    options: Sequence[Spellings],
    left_out: list[dict[str, str]],
    must: int = 0,
) -> Any:
    """Call the function with every option that it takes, and return what it returns.

    An option that an error names is passed in its next spelling, then left out, which is noted in `left_out`. The first
    `must` options may be spelled otherwise, but not left out: without them the call means something else."""
    chosen = [0] * len(options)
    while True:
        arguments = dict(spellings[i] for spellings, i in zip(options, chosen, strict=True) if i < len(spellings))
        try:
            return function(**fixed, **arguments)
        except Exception as error:
            rejected = [names(error, spellings, i) for spellings, i in zip(options, chosen, strict=True)]
            if not any(rejected):
                raise
            option = rejected.index(True)
            left_out.append({"argument": options[option][chosen[option]][0], "error": error_text(error)})
            chosen[option] += 1
            if option < must and chosen[option] == len(options[option]):
                raise


def names(error: Exception, spellings: Spellings, i: int) -> bool:
    """Return whether the error names the argument in the spelling that was passed."""
    return i < len(spellings) and re.search(rf"\b{re.escape(spellings[i][0])}\b", str(error)) is not None


def part_model(plan: Mapping[str, Any], part: Mapping[str, Any], cases: Path, notes: Part, model: str) -> None:
    """Start the engine once, and send it every batch of this part."""
    settings = EngineSettings(
        model=model,
        dtype=plan["dtype"],
        modules=tuple(plan["modules"]),
        max_rank=plan["max_rank"],
        max_adapters=len(plan["adapters"]),
        max_requests=plan["max_requests"],
        max_length=plan["max_length"],
        cuda_graphs=part["cuda_graphs"],
    )
    session = Session(settings, notes.note)
    adapters = {name: (name, i + 1, cases / "adapters" / name) for i, name in enumerate(plan["adapters"])}
    answers: dict[str, list[dict[str, Any]]] = {}
    try:
        for case in part["cases"]:
            answers[case["name"]] = run_case(session, case, adapters, notes)
        observe(notes, Evidence(plan, part, session, answers))
    finally:
        with notes.attempt("shutdown"):
            session.close()


Adapter = tuple[str, int, Path]  # a name, an id that stands for these weights for ever, and a folder


def run_case(
    session: "Session", case: Mapping[str, Any], adapters: Mapping[str, Adapter], notes: Part
) -> list[dict[str, Any]]:
    """Send one batch and save its answers; return them: none if it failed."""
    began, error = time.monotonic(), ""
    requests, answers = case["requests"], []
    try:
        chosen = [None if request["adapter"] is None else adapters[request["adapter"]] for request in requests]
        prompts = [request["prompt_ids"] for request in requests]
        answers = session.generate(prompts, chosen, requests[0]["max_new_tokens"])
    except Exception as problem:
        error = error_text(problem)
        if not case["may_fail"]:
            notes.note("errors", {"at": case["name"], "error": error})
    arrays = {f"{key}_{i}": x for i, answer in enumerate(answers) for key, x in answer["rows"].items()}
    rest = [{key: value for key, value in answer.items() if key != "rows"} for answer in answers]
    about = {**case, "answers": rest, "error": error, "seconds": round(time.monotonic() - began, 3)}
    notes.save(case["name"], about, arrays)
    return answers


@dataclass(frozen=True)
class EngineSettings:
    """How TensorRT-LLM is started. Block reuse is always off: it changes last bits."""

    model: str
    dtype: str
    modules: Sequence[str]  # TensorRT-LLM's names of all that some adapter is on
    max_rank: int
    max_adapters: int
    max_requests: int
    max_length: int
    cuda_graphs: bool = False


class Session:
    """A running engine: the arguments of this release, and its answers as numpy arrays."""

    def __init__(self, settings: EngineSettings, note: Callable[[str, Any], None] = lambda key, value: None) -> None:
        """Start it. note: gets "found" with the locations of names, and "left_out" with each rejected argument."""
        locations: dict[str, str] = {}
        left_out: list[dict[str, str]] = []
        old = before_1()
        fixed = {
            "model": settings.model,
            "dtype": settings.dtype,
            "lora_config": lora_config(settings, locations, left_out),
            "kv_cache_config": cache_config(settings, locations, left_out),
        }
        options = [graph_spellings(settings, old, locations), *engine_options(settings, old)]
        llm = find("LLM before 1.0" if old else "LLM", locations)
        try:
            self.llm = call(llm, fixed, options, left_out, must=int(settings.cuda_graphs))
            self.sampling = find("SamplingParams", locations)
            self.lora_request = find("LoRARequest", locations)
        finally:
            note("found", locations)
            for item in left_out:
                note("left_out", item)
        self.note, self.readout, self.served = note, 0, False

    def generate(
        self, prompts: Sequence[Sequence[int]], adapters: Sequence[Adapter | None], new: int
    ) -> list[dict[str, Any]]:
        """Return greedy answers of `new` tokens to one batch. adapters: of each request; None is the base.

        TensorRT-LLM's caches go by an adapter's id. A readout that it refuses is never requested again."""
        loras = [None if adapter is None else self.lora_request(*adapter[:2], str(adapter[2])) for adapter in adapters]
        while True:
            try:
                return self._generate([list(map(int, prompt)) for prompt in prompts], loras, new)
            except Exception as error:
                if self.served or self.readout == len(READOUTS) - 1:
                    raise
                self.note("left_out", {"argument": ", ".join(READOUTS[self.readout]), "error": error_text(error)})
                self.readout += 1

    def _generate(self, prompts: list[list[int]], loras: list[Any], new: int) -> list[dict[str, Any]]:
        left_out: list[dict[str, str]] = []
        options: list[Spellings] = [[item] for item in READOUTS[self.readout].items()]
        options += [[("temperature", 0.0)], [("end_id", -1)], [("pad_id", 0)], [("ignore_eos", True)]]
        options += [[("detokenize", False)], [("add_special_tokens", False)]]
        params = call(self.sampling, {"max_tokens": new}, options, left_out)
        batch = {"inputs": prompts, "sampling_params": params, "lora_request": loras}
        outputs = call(self.llm.generate, batch, [[("use_tqdm", False)]], left_out)
        if len(outputs) != len(prompts):
            raise ValueError(f"{len(outputs)} outputs for {len(prompts)} prompts")
        answers = [answer_of(output) for output in outputs]
        if not self.served:
            for item in left_out:
                self.note("left_out", item)
        self.served = True
        return answers

    def close(self) -> None:
        """Free the GPU."""
        self.llm.shutdown()


def lora_config(settings: EngineSettings, locations: dict[str, str], left_out: list[dict[str, str]]) -> Any:
    """Return TensorRT-LLM's LoraConfig with a slot for every adapter."""
    fixed = {"lora_target_modules": list(settings.modules), "max_lora_rank": settings.max_rank}
    slots: list[Spellings] = [[("max_loras", settings.max_adapters)], [("max_cpu_loras", settings.max_adapters)]]
    return call(find("LoraConfig", locations), fixed, slots, left_out)


def cache_config(settings: EngineSettings, locations: dict[str, str], left_out: list[dict[str, str]]) -> Any:
    """Return TensorRT-LLM's KvCacheConfig without block reuse."""
    max_tokens = 2 * settings.max_requests * settings.max_length
    sizes: list[Spellings] = [[("free_gpu_memory_fraction", 0.3)], [("max_tokens", max_tokens)]]
    return call(find("KvCacheConfig", locations), {"enable_block_reuse": False}, sizes, left_out)


def graph_spellings(settings: EngineSettings, old: bool, locations: dict[str, str]) -> Spellings:
    """Return the spellings of "with CUDA graphs" or "without" for a release before 1.0 (old) or after."""
    if not settings.cuda_graphs:
        return [("cuda_graph_config", None), ("use_cuda_graph", False)][:: -1 if old else 1]
    spellings: list[tuple[str, Any]] = [("use_cuda_graph", True)]
    with contextlib.suppress(ImportError):
        config = find("CudaGraphConfig", locations)(max_batch_size=settings.max_requests)
        spellings.insert(len(spellings) if old else 0, ("cuda_graph_config", config))
    return spellings


def engine_options(settings: EngineSettings, old: bool) -> list[Spellings]:
    """Return the options of LLM beside CUDA graphs, for a release before 1.0 (old) or after."""
    options: list[Spellings] = [
        [("disable_overlap_scheduler", True)],
        [("enable_chunked_prefill", False)],
        [("max_batch_size", settings.max_requests)],
        [("max_num_tokens", max(512, settings.max_requests * settings.max_length))],  # so that all prompts share a step
        [("max_seq_len", settings.max_length)],
        [("gather_generation_logits", True)],  # needed up to 1.0
        [("skip_tokenizer_init", True)],
    ]
    if old:  # the sampler of PyTorch gives no context logits there
        options += [[("enable_trtllm_sampler", True)], [("backend", "pytorch")]]
    return options


def answer_of(output: Any) -> dict[str, Any]:
    """Return one RequestOutput as token ids, and under "rows" its logits [tokens, vocab] as the engine gave them."""
    first = output.outputs[0]
    answer: dict[str, Any] = {"token_ids": [int(t) for t in first.token_ids], "dtypes": {}, "rows": {}}
    tensors = {
        "context": getattr(output, "context_logits", None),
        "generation": getattr(first, "generation_logits", None),
    }
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        answer["dtypes"][name] = str(tensor.dtype)
        rows = np.asarray(tensor.float().cpu().numpy())
        answer["rows"][name] = narrowest(rows.reshape(-1, rows.shape[-1]))
    if getattr(first, "logprobs", None):
        answer["top"] = [
            {str(t): float(getattr(entry, "logprob", entry)) for t, entry in row.items()} for row in first.logprobs
        ]
    return answer


def narrowest(x: np.ndarray) -> np.ndarray:
    """Return x in float16 where that loses nothing, else in float32."""
    with np.errstate(over="ignore"):
        half = x.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), x, equal_nan=True) else x.astype(np.float32)


# The LoRA product by itself: torch.ops.trtllm.lora_grouped_gemm.


def part_kernel(plan: Mapping[str, Any], part: Mapping[str, Any], cases: Path, notes: Part, model: str) -> None:
    """Run every vector of the plan. Numbers of 16 bits are in the files as those bits."""
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
            error = error_text(problem)
            if not vector["may_fail"]:
                notes.note("errors", {"at": vector["name"], "error": error})
        notes.save(vector["name"], {**vector, "error": error}, {f"out_{i}": x for i, x in enumerate(outputs)})


def kernel(op: Any, vector: Mapping[str, Any], arrays: Mapping[str, np.ndarray], device: str = "cuda") -> list[Any]:
    """Call the operator once; return for each module the bits of its [tokens, d_out]."""
    import torch

    name, dtype = vector["name"], vector["dtype"]

    def on_device(key: str) -> Any:
        return tensor(arrays[f"{name}.{key}"], dtype).to(device)

    x, ranks, pointers, alive = on_device("x"), [], [], []
    adapters = [request["adapter"] for request in vector["requests"]]
    for module, of_module in enumerate(vector["ranks"]):
        pairs = [(on_device(f"A.{module}.{i}"), on_device(f"B.{module}.{i}")) for i in range(len(of_module))]
        alive.append(pairs)  # the operator gets addresses alone
        addresses = [[A.data_ptr(), B.data_ptr(), 0] for A, B in pairs]
        ranks.append(torch.tensor([0 if i < 0 else of_module[i] for i in adapters], dtype=torch.int32))
        pointers.append(torch.tensor([[0, 0, 0] if i < 0 else addresses[i] for i in adapters], dtype=torch.int64))
    types = torch.tensor([request["type"] for request in vector["requests"]], dtype=torch.int32)
    lengths = torch.tensor([request["length"] for request in vector["requests"]], dtype=torch.int32)
    largest = max(max(of_module) for of_module in vector["ranks"])
    # transA, transB, the largest rank, weight_index, remove_input_padding
    result = op(x, types, ranks, pointers, lengths, vector["d_outs"], False, True, largest, 0, True)
    return [bits(y) for y in result]


def tensor(x: np.ndarray, dtype: str) -> Any:
    """Return uint16 bits as a tensor of that dtype."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(x).view(np.int16)).view(getattr(torch, dtype))


def bits(y: Any) -> np.ndarray:
    """Return the bits of a tensor of a 16-bit type."""
    import torch

    return np.asarray(y.contiguous().view(torch.int16).cpu().numpy()).view(np.uint16)


# Facts that are believed of TensorRT-LLM and do not stand in its sources. One function each: its docstring is the
# claim, which goes into summary.json, and it returns (observed | contradicted | not observable, the raw value).
# Without evidence, only facts that need no running engine can be observed.

Observation = tuple[str, Any]
OBSERVED, CONTRADICTED, NOT_OBSERVABLE = "observed", "contradicted", "not observable"


class Evidence:
    """A part with its answers, for the facts that need them."""

    def __init__(
        self, plan: Mapping[str, Any], part: Mapping[str, Any], session: Session, answers: Mapping[str, list]
    ) -> None:
        self.plan, self.part, self.session, self.answers = plan, part, session, answers
        self.all = [answer for batch in answers.values() for answer in batch]


def fact_bfloat16_npy(evidence: Evidence | None) -> Observation:
    """A bfloat16 .npy is written as dtype V2 with the metadata {"dtype": "bfloat16"}."""
    if evidence is not None:
        return NOT_OBSERVABLE, "needs no evidence: another part reports it"
    import torch

    x = importlib.import_module("tensorrt_llm._utils").torch_to_numpy(torch.zeros(2, dtype=torch.bfloat16))
    raw = {"dtype": x.dtype.str, "metadata": dict(x.dtype.metadata or {})}
    return (OBSERVED if raw == {"dtype": "|V2", "metadata": {"dtype": "bfloat16"}} else CONTRADICTED), raw


def fact_llm_is_pytorch(evidence: Evidence | None) -> Observation:
    """From 1.0 on tensorrt_llm.LLM is the PyTorch backend, and the other one is under tensorrt_llm._tensorrt_engine."""
    if evidence is not None:
        return NOT_OBSERVABLE, "needs no evidence: another part reports it"
    import tensorrt_llm

    classes = [base.__name__ for base in tensorrt_llm.LLM.__mro__]
    try:
        other: Any = importlib.import_module("tensorrt_llm._tensorrt_engine").LLM.__name__
    except (ImportError, AttributeError) as error:
        other = error_text(error)
    raw = {"version": str(tensorrt_llm.__version__), "classes": classes, "_tensorrt_engine.LLM": other}
    if before_1():
        return NOT_OBSERVABLE, raw
    return (OBSERVED if any("Torch" in name for name in classes) else CONTRADICTED), raw


def fact_logits_are_widened(evidence: Evidence | None) -> Observation:
    """Logits come as float32, but each is a number of the model's dtype: lm_head is computed in that."""
    if evidence is None or not evidence.all:
        return NOT_OBSERVABLE, "needs a running engine"
    dtypes = sorted({dtype for answer in evidence.all for dtype in answer["dtypes"].values()})
    rows = [x for answer in evidence.all for x in answer["rows"].values()]
    if not rows:
        return NOT_OBSERVABLE, "no logits came back"
    wide = [x.astype(np.float32) for x in rows]
    coarse = all(np.array_equal(x, as_dtype(x, evidence.plan["dtype"]), equal_nan=True) for x in wide)
    raw = {"dtypes": dtypes, f"all of them are {evidence.plan['dtype']}": bool(coarse)}
    return (OBSERVED if coarse and dtypes == ["torch.float32"] else CONTRADICTED), raw


def as_dtype(x: np.ndarray, dtype: str) -> np.ndarray:
    """Return x rounded to float16 or bfloat16, in float32."""
    if dtype == "float16":
        return x.astype(np.float16).astype(np.float32)
    pattern = np.ascontiguousarray(x).view(np.uint32)
    rounded = pattern + ((pattern >> 16) & 1) + np.uint32(0x7FFF)
    return (rounded & np.uint32(0xFFFF0000)).view(np.float32)


def fact_first_generation_row(evidence: Evidence | None) -> Observation:
    """generation_logits[0] belongs to the first produced token: it is the last row of context_logits."""
    answers = [] if evidence is None else [answer for answer in evidence.all if len(answer["rows"]) == 2]
    if not answers:
        return NOT_OBSERVABLE, "needs context and generation logits"
    same = sum(np.array_equal(answer["rows"]["context"][-1], answer["rows"]["generation"][0]) for answer in answers)
    counts = sorted({len(answer["rows"]["generation"]) - len(answer["token_ids"]) for answer in answers})
    raw = {"equal": int(same), "of": len(answers), "rows less tokens": counts}
    return (OBSERVED if same == len(answers) and counts == [0] else CONTRADICTED), raw


def fact_repeatable(evidence: Evidence | None) -> Observation:
    """Without block reuse, the same batch twice gives the same bits."""
    if evidence is None or not {"together-0", "again-0"} <= set(evidence.answers):
        return NOT_OBSERVABLE, "needs a batch that was sent twice"
    first, second = evidence.answers["together-0"], evidence.answers["again-0"]
    if not first or len(first) != len(second):
        return NOT_OBSERVABLE, "needs a batch that was answered twice"
    worst = 0.0
    for one, again in zip(first, second, strict=True):
        for key, x in one["rows"].items():
            y = again["rows"].get(key)
            if y is None or y.shape != x.shape:
                return CONTRADICTED, f"{key} has another shape the second time"
            worst = max(worst, float(np.abs(x.astype(np.float64) - y).max()))
    return (OBSERVED if worst == 0 else CONTRADICTED), {"largest difference": worst}


def fact_rank_alignment(evidence: Evidence | None) -> Observation:
    """Ranks 5 and 8 in one batch fail, 12 beside the base fails, and 5 alone does not."""
    if evidence is None or "misaligned-0" not in evidence.answers:
        return NOT_OBSERVABLE, "needs the part that breaks the rule"
    raw = {name: "answered" if batch else "failed" for name, batch in evidence.answers.items()}
    wrong = [name for name, batch in evidence.answers.items() if bool(batch) == name.startswith("misaligned")]
    return (CONTRADICTED if wrong else OBSERVED), raw


def fact_k_after_rope(evidence: Evidence | None) -> Observation:
    """K is stored after RoPE."""
    return NOT_OBSERVABLE, "no documented call shows the KV cache"


def fact_similar_threshold(evidence: Evidence | None) -> Observation:
    """The texts of TensorRT-LLM's own tests are compared by similar() with a threshold of 0.8."""
    return NOT_OBSERVABLE, "its tests are not in the installed package"


def fact_six_times(evidence: Evidence | None) -> Observation:
    """The chart that says 6 times faster: RTX 4090, Llama 3B int4, 100 tokens, rank 64, against one after another."""
    return NOT_OBSERVABLE, "the conditions of a published chart"


def fact_japanese_alpha(evidence: Evidence | None) -> Observation:
    """Japanese-Alpaca-LoRA-7b-v0, an adapter of the guide, has lora_alpha 16."""
    if evidence is not None:
        return NOT_OBSERVABLE, "needs no evidence: another part reports it"
    folder = os.environ.get("LORACLE_MODELS")
    for file in sorted(Path(folder).glob("*apanese*lpaca*/adapter_config.json")) if folder else []:
        raw = json.loads(file.read_text("utf-8"))
        return (OBSERVED if raw.get("lora_alpha") == 16 else CONTRADICTED), {
            key: raw.get(key) for key in ("r", "lora_alpha")
        }
    return NOT_OBSERVABLE, "the adapter is not under $LORACLE_MODELS"


FACTS: tuple[Callable[[Evidence | None], Observation], ...] = (
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


def observe(notes: Part, evidence: Evidence | None) -> None:
    """Note every fact that this part can observe. Without evidence: also why the others cannot be observed."""
    for fact in FACTS:
        try:
            verdict, raw = fact(evidence)
        except Exception as error:
            verdict, raw = NOT_OBSERVABLE, error_text(error)
        if verdict != NOT_OBSERVABLE or evidence is None:
            notes.note("facts", {fact.__name__.removeprefix("fact_"): {"is": verdict, "raw": raw}})


def add_facts(facts: dict[str, Any], observations: Mapping[str, Any], part: str) -> None:
    """Add one part's observations to those of the others, in `facts`: fact -> its claim, and what each part saw.

    Parts that could not observe a fact are named only while no other one has."""
    for fact in FACTS:
        name = fact.__name__.removeprefix("fact_")
        entry = facts.setdefault(name, {"claim": " ".join((fact.__doc__ or "").split()), "seen": {}})
        if name in observations:
            entry["seen"][part] = observations[name]
        clear = {key: value for key, value in entry["seen"].items() if value["is"] != NOT_OBSERVABLE}
        entry["seen"] = clear or entry["seen"]


def error_text(error: BaseException) -> str:
    """Return the exception's type and its text as it is."""
    return f"{type(error).__name__}: {error}"[:4000]


def size(folder: Path) -> int:
    """Return the bytes of all files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def read_json(file: Path) -> dict[str, Any]:
    """Return the object in the file; {} where a part did not get so far."""
    try:
        value = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_json(file: Path, value: Any) -> None:
    """Write the file whole or not at all."""
    part = file.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1) + "\n", "utf-8")
    os.replace(part, file)


if __name__ == "__main__":
    # Nothing is imported from its own folder: a file there may be called tensorrt_llm.py.
    sys.path[:] = [path for path in sys.path if os.path.realpath(path) != os.path.dirname(os.path.realpath(__file__))]
    sys.exit(main())
