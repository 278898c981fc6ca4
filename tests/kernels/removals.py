"""Takes each barrier, atomic and test of a bound out of the shipped kernels, one at a time, and looks who notices.

    python tests/kernels/removals.py          the mutants that are not in the table yet; --all: every one, half an hour
    python tests/kernels/removals.py --list   what they are

What can be removed is read from the sources (mutations.py). Each mutant is built with the checker in it and run through
the tests of this folder, a fixed set of examples each. It must be caught: the checker names it, or a result is wrong,
or it crashes or does not end. What nobody can notice stands in HARMLESS, with the reason. The result is
benchmarks/results/removals.json and .md.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import FunctionType
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [path for path in (str(HERE.parent.parent), str(HERE.parent), str(HERE)) if path not in sys.path]

import numpy as np  # noqa: E402
import test_kv_write  # noqa: E402
import test_lora  # noqa: E402
import test_lora_paged  # noqa: E402
import test_model  # noqa: E402
import test_paged_attention  # noqa: E402
import test_small  # noqa: E402
from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from mutations import Mutant, mutants  # noqa: E402

from refimpl.cuda import runner  # noqa: E402
from refimpl.cuda.runner import cpu as runner_cpu  # noqa: E402
from refimpl.errors import KernelError  # noqa: E402

TABLE = HERE.parent.parent / "benchmarks" / "results" / "removals.json"
SECONDS = 60  # of computing: a mutant that needs more does not end
EXAMPLES = (10, 60)  # of each test; the second where the first finds nothing

# (file, function, the line, what it becomes) -> why nobody can notice
HARMLESS: dict[tuple[str, str, str, str], str] = {
    (
        "lora.cu",
        "bgmv_expand_v2",
        "if (a < 0 || blockIdx.y * 128 >= d_out) return;",
        "if (a < 0 || false) return;",
    ): "the loop over columns does not run either; the block reads Ax for nothing",
    (
        "lora.cu",
        "bgmv_expand_v2",
        "while (lanes < 32 && lanes * VEC < rank) lanes *= 2;",
        "while (lanes < 32 && true) lanes *= 2;",
    ): "more lanes share a row of B than have something to read of it; they add 0. Slower, no more",
    (
        "lora.cu",
        "bgmv_expand_v2",
        "for (int first = blockIdx.y * 128; first < d_out; first += gridDim.y * 128) {",
        "for (int first = blockIdx.y * 128; first <= d_out; first += gridDim.y * 128) {",
    ): "one more tile, and none of its columns is one: c < d_out is asked before each access",
    (
        "lora.cu",
        "stage",
        "if (row < count && k + at < to)",
        "if (row < count && true)",
    ): "load is asked for to - k - at numbers, and gives zeros without reading where that is not positive",
    (
        "lora.cu",
        "sgmv_shrink_v2",
        "if (first >= lora.rank) return;",
        "if (false) return;",
    ): "a block beyond the rank: it stages zeros in place of rows of A, and stores nothing. Slower, no more",
    (
        "lora.cu",
        "sgmv_shrink_v2",
        "for (int k = from; k < to; k += STEP) {",
        "for (int k = from; k <= to; k += STEP) {",
    ): "one more step, of zeros",
    (
        "lora.cu",
        "sgmv_expand_v2",
        "if (blockIdx.y * 128 >= d_out) return;",
        "if (false) return;",
    ): "the loop over columns does not run either; the block reads Ax for nothing",
    (
        "lora_paged.cu",
        "bgmv_expand_paged",
        "while (lanes < 32 && lanes * VEC < rank) lanes *= 2;",
        "while (lanes < 32 && true) lanes *= 2;",
    ): "as in bgmv_expand_v2: more lanes share a row of B than have something to read of it; they add 0",
    (
        "lora_paged.cu",
        "bgmv_expand_paged",
        "for (int first = blockIdx.y * 128; first < d_out; first += gridDim.y * 128) {",
        "for (int first = blockIdx.y * 128; first <= d_out; first += gridDim.y * 128) {",
    ): "one more tile, and none of its columns is one: c < d_out is asked before each access",
    (
        "lora_paged.cu",
        "sgmv_shrink_paged",
        "if (first >= lora.rank) return;",
        "if (false) return;",
    ): "a block beyond the rank: it stages zeros in place of rows of A, and stores nothing. Slower, no more",
    (
        "lora_paged.cu",
        "sgmv_shrink_paged",
        "for (int k = from; k < to; k += STEP) {",
        "for (int k = from; k <= to; k += STEP) {",
    ): "one more step, of zeros",
    (
        "lora_tensor_cores.cu",
        "sgmv_shrink_v3",
        "if (first >= lora.rank) return;",
        "if (false) return;",
    ): "a block beyond the rank: it stages zeros in place of rows of A, and stores nothing. Slower, no more",
    (
        "lora_tensor_cores.cu",
        "sgmv_shrink_v3",
        "for (int k = from; k < to; k += STEP) {",
        "for (int k = from; k <= to; k += STEP) {",
    ): "one more step, of zeros",
    (
        "lora_tensor_cores.cu",
        "sgmv_expand_v3",
        "if (blockIdx.y * COLUMNS >= d_out) return;",
        "if (false) return;",
    ): "the loop over columns does not run either; the block reads Ax for nothing",
    (
        "lora_tensor_cores.cu",
        "sgmv_expand_v3",
        "for (int i = threadIdx.x; i < TILE * width; i += 128) {",
        "for (int i = threadIdx.x; i <= TILE * width; i += 128) {",
    ): "row 17 begins where B does, and the thread that writes a zero there is the one that then writes B there",
    (
        "lora_tensor_cores.cu",
        "sgmv_expand_v3",
        "for (int first = blockIdx.y * COLUMNS; first < d_out; first += gridDim.y * COLUMNS) {",
        "for (int first = blockIdx.y * COLUMNS; first <= d_out; first += gridDim.y * COLUMNS) {",
    ): "one more tile, and none of its columns is one: all that is read and written is counted from d_out",
    (
        "paged_attention.cu",
        "attend_range",
        "if (lane + 32 * i < value_dim) warp_acc[warp][lane + 32 * i] = acc[i];",
        "if (true) warp_acc[warp][lane + 32 * i] = acc[i];",
    ): "the row has room for MAX_HEAD_DIM numbers, and nobody reads those beyond value_dim",
    (
        "paged_attention.cu",
        "attention_v3",
        "const int from = min(seen.past, seen.first + split * share), to = min(seen.past, from + share);",
        "const int from = seen.first + split * share, to = min(seen.past, from + share);",
    ): "where from is beyond the last key, to is the last key, and the loop from one to the other does not run",
}

# Which .cu files include a header.
INCLUDED_BY = {
    "common.cuh": ("lora.cu", "layers.cu", "paged_attention.cu", "lora_tensor_cores.cu", "lora_paged.cu"),
    "lora.cuh": ("lora.cu", "lora_tensor_cores.cu", "lora_paged.cu"),
}


# ---- who may notice -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Property:
    """One test with its parameters."""

    file: str
    dtype: str  # as runner.load takes it
    name: str
    run: Callable[[int], object]  # with so many examples


def properties(file: str) -> Iterator[Property]:
    """All tests that run the kernels of one .cu."""

    def test(dtype: str, function: Callable[..., None], *parameters: object) -> Property:
        module = function.__module__.removeprefix("tests.kernels.")
        name = f"{module}.{function.__name__}[{'-'.join(map(str, parameters))}]".replace("[]", "")
        return Property(file, dtype, name, lambda examples: call(function, parameters, examples))

    for dtype in ("float32", "float16"):
        if file == "lora.cu":
            for shrink, expand in (*test_lora.PAIRS, SPLIT_FOR_V1):
                if "v3" not in shrink + expand:
                    yield test(dtype, test_lora.test_equals_the_definition, dtype, shrink, expand)
                    yield test(dtype, largest_rank, dtype, shrink, expand)
                    yield test(dtype, many_steps, dtype, shrink, expand)
            yield test(dtype, test_lora.test_a_token_id_is_a_one_hot_row, dtype)
            yield test(dtype, test_lora.test_sgmv_reads_the_weights_once_per_adapter_and_launch, dtype, 2)
        if file == "lora_paged.cu":
            both = f"{dtype}/float32"
            for form in test_lora_paged.FORMS:
                yield test(both, test_lora_paged.test_nothing_is_looked_up_beyond_the_last_number, dtype, form)
                yield test(both, test_lora_paged.test_all_ranks_in_one_launch, dtype, form, 7)
                yield test(both, test_lora_paged.test_all_ranks_in_one_launch, dtype, form, 64)
                yield test(both, test_lora_paged.test_pages_change_no_bit, dtype, form)
            yield test(both, test_lora_paged.test_a_token_id_is_a_one_hot_row, dtype)
        if file == "layers.cu":
            for function in (
                test_small.test_embed_copies_rows,
                test_small.test_rms_norm,
                test_small.test_layer_norm,
                test_small.test_rope,
                test_small.test_mlp_activation,
                test_small.test_clamped_gate,
            ):
                yield test(dtype, function, dtype, True)
            if dtype == "float16":
                for point in ("norm_inner", "rope_product", "activation_inner"):
                    yield test(
                        "bfloat16", test_model.test_one_point_that_is_not_rounded_makes_no_difference_elsewhere, point
                    )
    if file == "lora_tensor_cores.cu":
        for dtype in ("float16", "bfloat16"):
            for shrink, expand in test_lora.PAIRS:
                if "v3" in shrink + expand:
                    yield test(dtype, test_lora.test_equals_the_definition, dtype, shrink, expand)
                    yield test(dtype, largest_rank, dtype, shrink, expand)
                    yield test(dtype, many_steps, dtype, shrink, expand)
            yield test(dtype, test_lora.test_sgmv_reads_the_weights_once_per_adapter_and_launch, dtype, 3)
    for dtype, cache in (("float16", "float16"), ("float16", "float32"), ("float32", "float32")):
        if file == "kv_write.cu":
            for version in (1, 2):
                yield test(f"{dtype}/{cache}", test_kv_write.test_equals_the_definition, dtype, cache, version)
    for dtype, cache in (("float32", "float32"), ("float16", "float32"), ("float16", "float16")):
        if file == "paged_attention.cu":
            for version in (1, 2, 3):
                if version != 1 or dtype == cache:
                    yield test(
                        f"{dtype}/{cache}", test_paged_attention.test_equals_the_definition, dtype, cache, version
                    )
            if dtype == "float32":
                for version in (1, 2, 3):
                    for context in (1, 129):
                        function = test_paged_attention.test_contexts_around_the_widths_of_warps_and_blocks
                        yield test("float32/float32", function, context, version)
                yield test("float32/float32", test_paged_attention.test_large_scores_do_not_overflow)
                yield test("float32/float32", test_paged_attention.test_each_visible_key_is_read_once_per_head_and_pass)


SPLIT_FOR_V1 = ("bgmv_shrink_v2", "lora_expand_v1")  # v1 never splits K, but its expand can add up what was split


def largest_rank(dtype: str, shrink: str, expand: str) -> None:
    """Rank 256 fills to the last number what a block holds in shared memory."""
    flags = dict(round_rank=True, round_delta=True)
    case = test_lora.make_case(np.random.default_rng(0), dtype, 17, (5,), (256, 255), 18, "runs", **flags)
    y, _ = test_lora.run(case, dtype, shrink, expand, check=True)
    test_lora.assert_right(case, dtype, y)


def many_steps(dtype: str, shrink: str, expand: str) -> None:
    """K takes more than two steps of every kernel (256 columns), and the last of them is not a whole one."""
    case = test_lora.make_case(np.random.default_rng(0), dtype, 600, (5,), (3, 20), 6, "runs", round_rank=True)
    for splits in (1, 2):
        case = replace(case, splits=splits)
        y, _ = test_lora.run(case, dtype, shrink, expand, check=True)
        test_lora.assert_right(case, dtype, y)


def call(function: Any, parameters: Sequence[object], examples: int) -> None:
    """A test as pytest would run it; one of hypothesis with so many examples, always the same, none of them shrunk."""
    if not hasattr(function, "hypothesis"):
        return function(*parameters)
    chosen = settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    inner = function.hypothesis.inner_test
    plain = FunctionType(inner.__code__, inner.__globals__, inner.__name__)  # without the settings that it has
    return chosen(given(data=st.data())(plain))(*parameters)


# ---- one mutant -----------------------------------------------------------------------------------------------------


class Workshop:
    """Builds the kernels as they are now with one file that is another, and runs their tests."""

    def __init__(self) -> None:
        self.sources = {file.name: file.read_text() for file in sorted(runner.kernels_folder().glob("*.cu*"))}

    def folder(self, file: str, source: str) -> Path:
        """A copy of all kernels in which this file is that source.

        Its name is the digest of what is in it, and nobody writes into it again: processes that try mutants at the same
        time (pytest-xdist) do not change each other's files, and what was built from a copy is found again."""
        sources = self.sources | {file: source}
        digest = hashlib.sha256("\0".join(part for item in sources.items() for part in item).encode()).hexdigest()
        folder = runner_cpu.cache_folder() / "removals" / digest[:24]
        folder.parent.mkdir(exist_ok=True)
        if not folder.exists():
            partial = Path(tempfile.mkdtemp(dir=folder.parent))
            for name, text in sources.items():
                (partial / name).write_text(text)
            try:
                partial.rename(folder)
            except OSError:  # another process was faster
                shutil.rmtree(partial)
        return folder

    def caught(self, file: str, source: str, names: str = "", examples: Sequence[int] = EXAMPLES) -> str:
        """Who notices that a file is this: 'checker: ...', 'test: ...', 'crash: ...' or ''."""
        folder, users = self.folder(file, source), INCLUDED_BY.get(file, (file,))
        # First the tests whose parameters name the kernel, and those of the first type.
        tests = sorted((p for user in users for p in properties(user)), key=lambda p: names not in p.name)
        for count in examples:
            for user, dtype in dict.fromkeys((p.file, p.dtype) for p in tests):
                self.build(folder / user, dtype)
                verdict = self.run(folder, [p for p in tests if (p.file, p.dtype) == (user, dtype)], count)
                if verdict:
                    return verdict
        return ""

    def build(self, path: Path, dtype: str) -> None:
        """Here, so that the child's time is its own."""
        module = runner.Module(path, dtype)
        runner_cpu.build(path, list(module.kernels), module.defines, True, [])

    def run(self, folder: Path, tests: Sequence[Property], examples: int) -> str:
        """In a process of its own, which a mutant may take with it."""
        receiver, sender = multiprocessing.Pipe(duplex=False)
        child = multiprocessing.get_context("fork").Process(target=self.child, args=(folder, tests, examples, sender))
        child.start()
        sender.close()
        try:
            verdict: str = receiver.recv()
        except EOFError:
            verdict = ""
        child.join()
        if child.exitcode:
            number = -child.exitcode
            if number in (signal.SIGXCPU, signal.SIGKILL):
                return f"time: not done after {SECONDS} s"
            return f"crash: {signal.Signals(number).name if number > 0 else f'exit {child.exitcode}'}"
        return verdict

    def child(self, folder: Path, tests: Sequence[Property], examples: int, sender: Connection) -> None:
        """Everything is loaded from the folder, with the checker."""
        import resource  # there is none on Windows, where this file can be imported all the same

        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.environ["LORACLE_KERNELS"] = "cpu"
        load = runner.load
        runner.load = lambda file, dtype, check=False: load(folder / file, dtype, check=True)
        for p in tests:
            try:
                p.run(examples)
            except KernelError as error:
                sender.send(f"checker: {error}" if error.kind != "does not compile" else f"error: {error}")
                return
            except AssertionError as error:
                sender.send(f"test: {p.name}: {error}")
                return
            except BaseException as error:
                sender.send(f"error: {p.name}: {type(error).__name__}: {error}")
                return
        sender.send("")


# ---- all of them ----------------------------------------------------------------------------------------------------


def all_mutants() -> list[Mutant]:
    """Of every file."""
    return [m for file in sorted(runner.kernels_folder().glob("*.cu*")) for m in mutants(file)]


def reason(mutant: Mutant) -> str:
    """Why it may stay unnoticed."""
    return HARMLESS.get((mutant.file, mutant.function, mutant.before, mutant.after), "")


def read_table() -> dict[tuple, str]:
    """What is known: key -> who caught it."""
    if not TABLE.exists():
        return {}
    rows = json.loads(TABLE.read_text())["mutants"]
    return {(r["file"], r["function"], r["before"], r["after"], r["nth"]): r["caught"] for r in rows}


def main() -> int:
    parser = argparse.ArgumentParser(description="Removes every barrier and test of a bound from the kernels.")
    parser.add_argument("--all", action="store_true", help="also those that are in the table")
    parser.add_argument("--list", action="store_true", help="only list them")
    parser.add_argument("--only", default="", help="those whose file, function or line contains this")
    arguments = parser.parse_args()
    every = all_mutants()
    if arguments.list:
        for m in every:
            print(f"{m.file}:{m.line}: {m.function}: {m.what}: {m.after or m.before}")
        return 0
    known, workshop = read_table(), Workshop()
    for file in workshop.sources:
        verdict = workshop.caught(file, workshop.sources[file]) if file.endswith(".cu") else ""
        if verdict:
            sys.exit(f"{file} as it is does not pass: {verdict}")
    results = {m.key: known[m.key] for m in every if m.key in known}
    for i, m in enumerate(every):
        named = arguments.only in f"{m.file} {m.function} {m.after or m.before}"
        done = known.get(m.key, "error").partition(":")[0] != "error" and (known[m.key] or reason(m))
        if not named or (done and not arguments.all and not arguments.only):
            continue
        start = time.time()
        results[m.key] = workshop.caught(m.file, m.source, m.function)
        print(
            f"{i + 1}/{len(every)} {m.file}:{m.line} {m.function}: {m.after or m.before}\n"
            f"    {results[m.key] or reason(m) or 'SURVIVES'}  ({time.time() - start:.0f} s)",
            flush=True,
        )
        write_table([m for m in every if m.key in results], results)
    write_table([m for m in every if m.key in results], results)
    open_ones = [
        m for m in every if not (results.get(m.key) or reason(m)) or results.get(m.key, "").startswith("error")
    ]
    for m in open_ones:
        print(f"NOT CAUGHT: {m.file}:{m.line} {m.function}: {m.after or m.before}: {results.get(m.key, 'not run')}")
    return 1 if open_ones else 0


def write_table(listed: Sequence[Mutant], results: dict[tuple, str]) -> None:
    """As data, a line each, and to be read."""
    fields = ("file", "function", "line", "what", "old", "new", "before", "after", "nth")
    rows = [
        json.dumps({**{f: getattr(m, f) for f in fields}, "caught": results[m.key], "harmless": reason(m)})
        for m in listed
    ]
    TABLE.write_text('{"mutants": [\n' + ",\n".join(rows) + "\n]}\n")
    who = Counter(results[m.key].partition(":")[0] or "nobody" for m in listed)
    out = [
        "# What happens when something is taken out of a kernel",
        "",
        "Written by `python tests/kernels/removals.py`: each barrier, atomic and test of a bound of the shipped",
        "kernels is removed, one at a time, and some things are changed (tests/kernels/mutations.py has the rules).",
        "Each mutant is built with the checker and run through the tests of tests/kernels.",
        "",
        f"{len(listed)} mutants: {who['checker']} are named by the checker, {who['test']} give a wrong result, "
        f"{who['crash'] + who['time']} crash or do not end, {who['nobody']} change nothing that could be noticed.",
        "",
    ]
    for file in dict.fromkeys(m.file for m in listed):
        out += [f"## {file}", "", "| line | function | removed or changed | in | caught by |", "|---:|---|---|---|---|"]
        for m in listed:
            if m.file == file:
                change = f"{m.what}: {code(m.old)}" + (f" → {code(m.new)}" if m.after else "")
                verdict = plain(results[m.key] or f"nobody: {reason(m)}")
                out.append(f"| {m.line} | {m.function} | {change} | {code(m.before)} | {verdict} |")
        out.append("")
    TABLE.with_suffix(".md").write_text("\n".join(out))


def plain(text: str) -> str:
    """A line's worth, inside a table."""
    text = " ".join(text.split()).replace("|", "\\|").replace("*", "\\*")
    return text if len(text) <= 150 else text[:147] + "..."


def code(text: str) -> str:
    """Inside a table."""
    return f"`{' '.join(text.split())}`".replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
