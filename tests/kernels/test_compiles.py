"""Every kernel compiles for every GPU, without one, and none spills that did not before (resources.json)."""

import shutil
from pathlib import Path

import pytest

from benchmarks import resources
from benchmarks.resources import ARCHITECTURES, INSTALL, Build, Resources, builds, compile_all, keys, read_log, toolkit
from refimpl.cuda import runner

NEW = "run python benchmarks/resources.py and commit what it writes"


def needs_nvrtc(arch: str) -> object:
    """The mark of a test that compiles for this architecture."""
    major = ARCHITECTURES[arch][0]
    missing = toolkit(major) is None
    return pytest.param(arch, marks=pytest.mark.skipif(missing, reason=f"no NVRTC {major} and headers: {INSTALL}"))


@pytest.mark.parametrize("arch", [needs_nvrtc(arch) for arch in ARCHITECTURES])
def test_it_compiles_and_takes_what_the_table_says(arch: str) -> None:
    """Registers may differ where the compiler is not the one that wrote the table; a spill may be new nowhere."""
    (table, versions), found = resources.read_table(), compile_all(builds(arch))
    tools = toolkit(ARCHITECTURES[arch][0])
    assert found and tools
    for key, now in found.items():
        then = table.get(key)
        assert then is not None, f"{key} is not in the table: {NEW}"
        for what in ("stack", "spill_stores", "spill_loads"):
            assert getattr(now, what) <= getattr(then, what), f"{key}: {what} {then} -> {now}"
        if tools.version == versions[arch]:
            assert now == then, f"{key}: {then} -> {now}: {NEW}"


def test_the_table_holds_each_kernel_and_no_other() -> None:
    """Needs no compiler."""
    table, versions = resources.read_table()
    assert set(table) == {key for arch in ARCHITECTURES for build in builds(arch) for key in keys(build)}, NEW
    assert list(versions) == list(ARCHITECTURES) and all(r.registers > 0 for r in table.values())


def test_what_is_left_out_is_left_out_by_name() -> None:
    everything = {file.name for file in runner.kernels_folder().glob("*.cu")}
    for arch in ARCHITECTURES:
        made = {(build.file, build.dtype) for build in builds(arch)}
        assert {file for file, dtype in made if dtype == "float16"} == everything
        assert {file for file, dtype in made if dtype == "float32"} == everything - {"lora_tensor_cores.cu"}
        assert {file for file, dtype in made if dtype == "bfloat16"} == (everything if int(arch[3:]) >= 80 else set())
        assert {file for file, dtype in made if dtype == "float16/float32"} == {
            "kv_write.cu",
            "lora_paged.cu",
            "paged_attention.cu",
        }


SPILLING = """
extern "C" __global__ void __launch_bounds__(1024) spilling(float* out, const float* x, int n) {
    float v[128];
#pragma unroll
    for (int i = 0; i < 128; i++) v[i] = x[i * n + threadIdx.x];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 128; i++) out[i * n + threadIdx.x] = v[i] * v[127 - i] + v[(i * 5) % 128];
}
"""


@pytest.mark.parametrize("arch", [needs_nvrtc("sm_70"), needs_nvrtc("sm_90")])
def test_a_spill_is_seen(arch: str, tmp_path: Path) -> None:
    (tmp_path / "spilling.cu").write_text(SPILLING)
    (found,) = compile_all([Build("spilling.cu", "float32", arch)], tmp_path).values()
    assert found.registers == 64 and resources.spills(found) and found.stack > 0


@pytest.mark.parametrize("arch", [needs_nvrtc("sm_90")])
def test_what_does_not_compile_is_an_error_with_its_line(arch: str, tmp_path: Path) -> None:
    for header in runner.kernels_folder().glob("*.cuh"):
        shutil.copy(header, tmp_path)
    (tmp_path / "wrong.cu").write_text('#include "common.cuh"\nextern "C" __global__ void k(T* x) {\n    y = 1;\n}\n')
    with pytest.raises(RuntimeError, match=r'wrong\.cu\(3\): error: identifier "y" is undefined'):
        compile_all([Build("wrong.cu", "float16", arch)], tmp_path)


def test_the_log_is_read_as_ptxas_writes_it() -> None:
    log = """ptxas info    : 4 bytes gmem
ptxas info    : Compiling entry function 'b' for 'sm_90'
ptxas info    : Function properties for b
ptxas         .     1016 bytes stack frame, 208 bytes spill stores, 216 bytes spill loads
ptxas info    : Used 96 registers, used 1 barriers, 1016 bytes cumulative stack size, 16384 bytes smem
ptxas info    : Compiling entry function 'a' for 'sm_90'
ptxas info    : Function properties for a
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 14 registers, used 0 barriers, 380 bytes cmem[0]
"""
    assert read_log(log) == {"b": Resources(96, 16384, 1016, 208, 216), "a": Resources(14)}
