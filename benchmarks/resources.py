"""What each kernel takes from a GPU of each architecture: registers, shared memory, spills. Needs no GPU.

    pip install -e '.[nvrtc]' && python benchmarks/resources.py

compiles every kernels/*.cu for every type and architecture with NVRTC, the compiler that is also used when a program
starts, and writes results/resources.json and .md. tests/kernels/test_compiles.py compiles them again and holds what it
finds against that table.

It takes two NVRTCs: 13 knows nothing older than Turing, 12 still knows Volta. They do not share a process, so each runs
in one of its own, which is this file with --compile.
"""

import ctypes
import hashlib
import importlib.metadata
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "resources.json"
INSTALL = "pip install -e '.[nvrtc]'"

# architecture -> (the NVRTC that compiles for it, whose it is)
ARCHITECTURES = {
    "sm_70": (12, "Volta: V100"),
    "sm_75": (13, "Turing: T4, RTX 20"),
    "sm_80": (13, "Ampere: A100"),
    "sm_86": (13, "Ampere: A10, RTX 30"),
    "sm_89": (13, "Ada: L40, RTX 40"),
    "sm_90": (13, "Hopper: H100, H200"),
    "sm_100": (13, "Blackwell: B200"),
    "sm_120": (13, "Blackwell: RTX 50"),
}
# The second is the KV cache's type where it is another one.
DTYPES = ("float32", "float16", "bfloat16", "float16/float32", "bfloat16/float32")


@dataclass(frozen=True)
class Resources:
    """Of one kernel: registers of a thread; bytes of static shared memory of a block; bytes of a thread's own memory
    (arrays that the compiler could not keep in registers); bytes written and read because registers ran out."""

    registers: int = 0
    shared: int = 0
    stack: int = 0
    spill_stores: int = 0
    spill_loads: int = 0


@dataclass(frozen=True)
class Build:
    """One run of the compiler."""

    file: str
    dtype: str
    arch: str


Table = dict[tuple[str, str, str, str], Resources]  # (file, kernel, dtype, arch)


def left_out(source: str, dtype: str, arch: str) -> str:
    """Why a file is not compiled for this type and architecture; empty if it is."""
    if "bfloat16" in dtype and int(arch[3:]) < 80:
        return "bfloat16 begins with sm_80"
    if dtype == "float32" and "#include <mma.h>" in source:
        return "tensor cores multiply half types"
    if "/" in dtype and "CACHE_DTYPE" not in source:
        return "it has nothing to do with the cache"
    return ""


def builds(arch: str) -> list[Build]:
    """All that are to be made for an architecture."""
    from refimpl.cuda import runner

    files = sorted(runner.kernels_folder().glob("*.cu"))
    return [Build(f.name, dtype, arch) for f in files for dtype in DTYPES if not left_out(f.read_text(), dtype, arch)]


def keys(build: Build, folder: Path | None = None) -> Iterator[tuple[str, str, str, str]]:
    """The rows of the table that a build fills."""
    from refimpl.cuda import runner
    from refimpl.cuda.parameters import parameters

    source = ((folder or runner.kernels_folder()) / build.file).read_text()
    for kernel in parameters(source, build.dtype):
        yield build.file, kernel, build.dtype, build.arch


# ---- compiling ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Toolkit:
    """One major version of NVRTC, as pip installed it."""

    version: str
    library: Path
    headers: tuple[Path, ...]


def toolkit(major: int) -> Toolkit | None:
    """None where one of its wheels is missing."""
    from refimpl.cuda.runner.cuda_headers import include_folders, nvidia_folders

    wheel, part = {12: ("nvidia-cuda-nvrtc-cu12", "cuda_nvrtc"), 13: ("nvidia-cuda-nvrtc", "cu13")}[major]
    headers = tuple(include_folders(major))
    for folder in nvidia_folders():
        library = folder / part / "lib" / f"libnvrtc.so.{major}"
        if library.exists() and headers:
            return Toolkit(importlib.metadata.version(wheel), library, headers)
    return None


def compile_all(wanted: Sequence[Build], folder: Path | None = None) -> Table:
    """The rows of these builds, all for one architecture. RuntimeError if one does not compile.

    What the compiler says is kept under the hash of what it was given."""
    from refimpl.cuda import runner
    from refimpl.cuda.parameters import types_of
    from refimpl.cuda.runner.cpu import cache_folder

    tools = toolkit(ARCHITECTURES[wanted[0].arch][0])
    if tools is None:
        raise RuntimeError(f"NVRTC {ARCHITECTURES[wanted[0].arch][0]} is not installed: {INSTALL}")
    folder = folder or runner.kernels_folder()
    jobs, kept = [], []
    for build in wanted:
        source = (folder / build.file).read_text()
        defines = [f"-D{name}={ctype}" for name, ctype in types_of(build.dtype).items()]
        headers = "".join(path.read_text() for path in runner.headers(folder / build.file))
        options = ["-std=c++17", "-lineinfo", f"--gpu-architecture={build.arch}", "--ptxas-options=-v", *defines]
        given = "\0".join([tools.version, *options, source, headers])
        kept.append(cache_folder() / f"{hashlib.sha256(given.encode()).hexdigest()[:24]}.ptxas")
        jobs.append((str(folder / build.file), [*options, *(f"-I{path}" for path in (folder, *tools.headers))]))
    missing = [i for i, path in enumerate(kept) if not path.exists()]
    if missing:
        command = [sys.executable, __file__, "--compile", str(tools.library)]
        given = json.dumps([jobs[i] for i in missing])
        done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr)
        for i, log in zip(missing, json.loads(done.stdout), strict=True):
            kept[i].write_text(log)
    table: Table = {}
    for build, path in zip(wanted, kept, strict=True):
        found = read_log(path.read_text())
        for key in keys(build, folder):
            table[key] = found[key[1]]
    return table


def read_log(log: str) -> dict[str, Resources]:
    """Kernel -> what ptxas says of it."""
    words = {
        "registers": r"Used (\d+) registers",
        "shared": r"(\d+) bytes smem",
        "stack": r"(\d+) bytes stack frame",
        "spill_stores": r"(\d+) bytes spill stores",
        "spill_loads": r"(\d+) bytes spill loads",
    }
    found = {}
    for part in log.split("Compiling entry function '")[1:]:
        # A function that was not inlined has a line of its own: what it spills counts, too.
        numbers = {name: [int(n) for n in re.findall(pattern, part)] for name, pattern in words.items()}
        found[part.partition("'")[0]] = Resources(**{name: max(n, default=0) for name, n in numbers.items()})
    return found


def nvrtc(library: str) -> None:
    """Compile what stdin lists, [[file, options], ...]; the logs go to stdout. Runs in a process of its own."""
    so = ctypes.CDLL(library)
    so.nvrtcGetErrorString.restype = ctypes.c_char_p
    logs = []
    for file, options in json.load(sys.stdin):
        program, size = ctypes.c_void_p(), ctypes.c_size_t()

        def call(name: str, *args: Any) -> str:
            """Empty if it went well."""
            code = getattr(so, f"nvrtc{name}")(*args)
            return so.nvrtcGetErrorString(code).decode() if code else ""

        source = Path(file).read_bytes()
        failed = call("CreateProgram", ctypes.byref(program), source, file.encode(), 0, None, None)
        assert not failed, failed
        failed = call(
            "CompileProgram", program, len(options), (ctypes.c_char_p * len(options))(*map(str.encode, options))
        )
        call("GetProgramLogSize", program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        call("GetProgramLog", program, log)
        call("DestroyProgram", ctypes.byref(program))
        if failed:
            sys.exit(f"{file} {' '.join(options)}: {failed}\n{log.value.decode()}")
        logs.append(log.value.decode())
    json.dump(logs, sys.stdout)


# ---- the table ------------------------------------------------------------------------------------------------------


def read_table() -> tuple[Table, dict[str, str]]:
    """results/resources.json, and for each architecture the version of the NVRTC that compiled for it."""
    content = json.loads(RESULTS.read_text())
    table = {
        (row["file"], row["kernel"], row["dtype"], arch): Resources(*numbers)
        for row in content["kernels"]
        for arch, numbers in row["on"].items()
    }
    return table, content["nvrtc"]


def write_table(table: Table) -> None:
    """results/resources.json, a line per kernel and type, and the same to be read as .md."""
    rows: dict[tuple[str, str, str], dict[str, Resources]] = {}
    for (*row, arch), resources in table.items():
        rows.setdefault(tuple(row), {})[arch] = resources  # type: ignore[arg-type]
    versions = {arch: tools.version for arch, (major, _) in ARCHITECTURES.items() if (tools := toolkit(major))}
    lines = [
        json.dumps({"file": f, "kernel": k, "dtype": d, "on": {arch: astuple(r) for arch, r in on.items()}})
        for (f, k, d), on in rows.items()
    ]
    names = [field.name for field in fields(Resources)]
    RESULTS.write_text(
        f'{{"numbers": {json.dumps(names)},\n "nvrtc": {json.dumps(versions)},\n "kernels": [\n'
        + ",\n".join(lines)
        + "\n]}\n"
    )
    RESULTS.with_suffix(".md").write_text(as_markdown(rows, versions))


def as_markdown(rows: dict[tuple[str, str, str], dict[str, Resources]], versions: dict[str, str]) -> str:
    """The table for people."""

    def cell(r: Resources | None) -> str:
        if r is None:
            return ""
        more = [f"stack {r.stack}"] * (r.stack > 0) + [f"**spills {r.spill_stores} + {r.spill_loads}**"] * spills(r)
        return " ".join([str(r.registers), *more])

    def shared(on: dict[str, Resources]) -> str:
        sizes = sorted({r.shared for r in on.values()})
        return " to ".join(str(size) for size in (sizes[:1] + sizes[-1:])[: len(sizes)])

    spilling = sum(spills(r) for on in rows.values() for r in on.values())
    made = ", ".join(
        f"{version} for {' '.join(a for a in versions if versions[a] == version)}"
        for version in dict.fromkeys(versions.values())
    )
    out = [
        "# What each kernel takes: registers of a thread, on each architecture",
        "",
        f"Written by `python benchmarks/resources.py` with NVRTC {made}.",
        "tests/kernels/test_compiles.py compiles all of it again and compares.",
        f"{sum(map(len, rows.values()))} kernels were compiled, {spilling} of them spill.",
        "",
        "- *shared* is static shared memory, bytes of a block; what a launch adds (`smem` in refimpl/cuda/launch/) is"
        " on",
        "  top. *stack* is bytes of a thread's own arrays that could not be kept in registers.",
        "- A type such as `float16/float32` has a KV cache of the second.",
        "- Not compiled: bfloat16 below sm_80 (it begins there), and lora_tensor_cores.cu in float32 (tensor cores",
        "  multiply half types).",
        *(f"- {arch} is {whose}" for arch, (_, whose) in ARCHITECTURES.items()),
        "",
    ]
    for file in dict.fromkeys(file for file, _, _ in rows):
        out += [
            f"## {file}",
            "",
            f"| kernel | type | shared | {' | '.join(ARCHITECTURES)} |",
            "|---" * 3 + "|---:" * len(ARCHITECTURES) + "|",
        ]
        for (f, kernel, dtype), on in rows.items():
            if f == file:
                out.append(
                    f"| {kernel} | {dtype} | {shared(on)} | {' | '.join(cell(on.get(a)) for a in ARCHITECTURES)} |"
                )
        out.append("")
    return "\n".join(out)


def spills(r: Resources) -> bool:
    """Did the compiler run out of registers?"""
    return r.spill_stores > 0 or r.spill_loads > 0


def main() -> None:
    if sys.argv[1:2] == ["--compile"]:
        return nvrtc(sys.argv[2])
    table: Table = {}
    for arch in ARCHITECTURES:
        table |= compile_all(builds(arch))
    kernels = list(dict.fromkeys(key[:2] for key in table))
    write_table(dict(sorted(table.items(), key=lambda item: (kernels.index(item[0][:2]), DTYPES.index(item[0][2])))))
    print(f"{len(table)} builds of kernels, {sum(map(spills, table.values()))} of them spill; wrote {RESULTS}")
    return None


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    main()
