"""What kernels/README.md shows is run: one launch of ours, and one of a kernel of the reader's own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cases import needs_cpu

pytestmark = needs_cpu

README = (Path(__file__).parents[2] / "kernels" / "README.md").read_text("utf-8")
ONE, DOUBLE = (text for text in re.findall(r"```python\n(.*?)```", README, re.S) if "import numpy" in text)
TWICE, MY_SHRINK = re.findall(r"```cuda\n(.*?)```", README, re.S)
(MINE,) = (text for text in re.findall(r"```python\n(.*?)```", README, re.S) if "launch.Kernel(" in text)
UNCHECKED = DOUBLE.replace(", check=True", "")
OVERRUN = TWICE.replace("if (i < n) ", "")


def python(script: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a folder, with the kernels on the CPU."""
    (folder / "script.py").write_text(script)
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    variables = {**os.environ, "PYTHONPATH": path, "LORACLE_KERNELS": "cpu", **environment}
    command = [sys.executable, "script.py"]
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)


def test_the_launch_of_ours_prints_what_it_says(tmp_path: Path) -> None:
    done = python(ONE, tmp_path)
    assert " ".join(done.stdout.split()) == "[[42. 42. 42. 42. 42.] [ 0. 0. 0. 0. 0.]]", done.stderr


def test_a_kernel_of_ones_own_runs(tmp_path: Path) -> None:
    (tmp_path / "double.cu").write_text(TWICE)
    done = python(DOUBLE, tmp_path)
    assert done.stdout == "[0. 2. 4. 6. 8.]\n", done.stderr


def test_a_kernel_of_ones_own_takes_the_place_of_one_of_ours(tmp_path: Path) -> None:
    script = ONE.replace("launch.lora_delta(y, x, packed, mapping)\n", MINE)
    assert script != ONE
    (tmp_path / "my_shrink.cu").write_text(MY_SHRINK)
    done = python(script, tmp_path)
    assert " ".join(done.stdout.split()) == "[[42. 42. 42. 42. 42.] [ 0. 0. 0. 0. 0.]]", done.stderr
    (tmp_path / "my_shrink.cu").write_text(MY_SHRINK.replace("] = sum;", "] = 2 * sum;"))
    assert "84." in python(script, tmp_path).stdout  # it is this one that runs
    (tmp_path / "my_shrink.cu").write_text(MY_SHRINK.replace("    if (a < 0) return;\n", ""))
    checked = python(script, tmp_path, LORACLE_CHECK_KERNELS="1")
    # What lies before the start of a table is nothing, or another array, which the blocks before have written.
    said = r"(my_shrink.cu:6|lora.cuh?:\d+): my_shrink, block \(1, 0, 0\).*(before the start of|race: global memory)"
    assert re.search(said, checked.stderr), checked.stderr


def test_what_a_kernel_of_ones_own_may_not_be(tmp_path: Path) -> None:
    script = ONE.replace("launch.lora_delta(y, x, packed, mapping)\n", MINE)
    assert "my_shrink.cu: no such file" in python(script, tmp_path).stderr
    (tmp_path / "my_shrink.cu").write_text(MY_SHRINK.replace("my_shrink(", "yours("))
    assert "my_shrink.cu has no kernel 'my_shrink' for float32; it has yours" in python(script, tmp_path).stderr
    (tmp_path / "my_shrink.cu").write_text(MY_SHRINK.replace("int d_in", "int width").replace("d_in", "width"))
    assert "my_shrink has a parameter width; a launch has Ax, Ax_stride," in python(script, tmp_path).stderr
    wrong = script.replace("shrink=mine", "shrink='bgmv_shrink_v3'")
    assert "there is no kernel 'bgmv_shrink_v3'; there are lora_lookup, " in python(wrong, tmp_path).stderr


def test_without_its_bounds_test_the_checker_names_the_line(tmp_path: Path) -> None:
    assert OVERRUN != TWICE
    (tmp_path / "double.cu").write_text(OVERRUN)
    done = python(DOUBLE, tmp_path)
    assert done.returncode == 1
    assert re.search(r"double.cu:3: twice, block \(0, 0, 0\), thread \(\d+, 0, 0\): out of bounds", done.stderr), (
        done.stderr
    )


def test_a_kernel_that_does_not_compile_says_so_without_the_frames_of_the_build(tmp_path: Path) -> None:
    (tmp_path / "double.cu").write_text(TWICE.replace("2 *", "THIS IS NO C++"))
    done = python(UNCHECKED, tmp_path)
    assert done.returncode == 1 and "double.cu:3" in done.stderr
    assert "subprocess" not in done.stderr and "cpu.py" not in done.stderr


PACKED = """
import numpy as np
from loracle.cuda.launch import checked, start
with (checked() if __import__("sys").argv[1:] else __import__("contextlib").nullcontext()) as launches:
    x, y = np.arange(4, dtype=np.float32), np.zeros(4, np.float32)
    start.launch_kernel("FILE", "float32", "twice", (1, 1, 1), 32, {"x": x, "y": y, "n": np.int32(4)})
print(launches)
"""


@pytest.mark.parametrize("value", ["1", "yes"])
def test_a_variable_puts_every_launch_under_the_checker(value: str, tmp_path: Path) -> None:
    (tmp_path / "double.cu").write_text(OVERRUN)
    done = python(PACKED.replace("FILE", str(tmp_path / "double.cu")), tmp_path, LORACLE_CHECK_KERNELS=value)
    assert done.returncode == 1 and "double.cu:3: twice" in done.stderr and "out of bounds" in done.stderr


def test_a_launch_is_printed_in_a_few_words(tmp_path: Path) -> None:
    (tmp_path / "double.cu").write_text(TWICE)
    script = PACKED.replace("FILE", str(tmp_path / "double.cu")).replace("argv[1:]", "argv[:1]")
    assert python(script, tmp_path).stdout == "[twice: 16 bytes read, 16 written]\n"
