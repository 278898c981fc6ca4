"""Decode speed on a CPU of engines that people run, and of ours: the embedded model, its voices in one batch.

    loracle engines setup vllm; loracle engines setup llama_cpp
    python benchmarks/engines_speed.py [--json FILE]

All of them are driven as `loracle check` drives them (refimpl/engines/): one thread, float32, the same prompts and
adapters, greedy, and the scores of the whole vocabulary are handed over at every step. That costs each of them
something, and vLLM most, which makes Python objects of them. A step is (a run of LONG tokens - a run of 1) divided by
LONG - 1, so that starting and the prompts are not in it. Times are those of the processor, of all processes of an
engine: others on the machine do not take them. Runs take turns.

Before anything is timed, all produce their tokens; where an engine's differ from ours, the table says from which on.
"""

import argparse
import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"  # before numpy is imported, and for the engines that are started from here

from refimpl import tiny  # noqa: E402
from refimpl.engines.interface import Engine, EngineError, EngineRequest, Settings  # noqa: E402
from refimpl.engines.registry import make  # noqa: E402
from refimpl.loading.model_folder import load_model  # noqa: E402

ENGINES = {"numpy": {}, "vllm": {}, "llama_cpp": {"threads": "1"}}
LONG = 65  # tokens of a long run: more are steadier, and take longer
TICKS = os.sysconf("SC_CLK_TCK")


def processor_seconds() -> float:
    """Return the processor time of this process and of all that it started and that still run (Linux)."""
    used: dict[int, float] = {}
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            continue
        parents[int(folder.name)] = int(fields[1])
        used[int(folder.name)] = (int(fields[11]) + int(fields[12])) / TICKS

    def is_ours(process: int) -> bool:
        return process == os.getpid() or (process in parents and is_ours(parents[process]))

    return sum(seconds for process, seconds in used.items() if is_ours(process))


def requests(count: int) -> list[EngineRequest]:
    """Return one request for the base and one for each voice, for the same scene."""
    ids = load_model("tiny").tokenizer.encode(tiny.DEMO_PROMPTS[0])
    return [EngineRequest(tuple(ids), name, count) for name in (None, *tiny.VOICES)]


def start(name: str) -> Engine:
    """Return the engine with the embedded model and its voices."""
    engine = make(name, ENGINES[name])
    engine.start(Settings(tiny.base_path(), max_adapters=len(tiny.VOICES), max_requests=1 + len(tiny.VOICES)))
    for voice, folder in tiny.VOICES.items():
        engine.load(voice, Path(folder))
    return engine


def first_difference(tokens: Sequence[Sequence[int]], expected: Sequence[Sequence[int]]) -> int | None:
    """Return the first step at which some request produced another token, or None."""
    differing = [
        next(i for i, (x, y) in enumerate(zip(one, other, strict=True)) if x != y)
        for one, other in zip(tokens, expected, strict=True)
        if list(one) != list(other)
    ]
    return min(differing, default=None)


def run(engine: Engine, count: int) -> tuple[float, list[tuple[int, ...]]]:
    """Return the processor seconds of one run of so many tokens, and the tokens. EngineError if a request failed."""
    work, before = requests(count), processor_seconds()
    responses = engine.run(work)
    seconds = processor_seconds() - before
    if errors := [response.error for response in responses if response.error]:
        raise EngineError(errors[0])
    return seconds, [response.token_ids for response in responses]


def main() -> None:
    """Start, compare, then time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--engines", default=",".join(ENGINES), help="default: all")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    args = parser.parse_args()
    engines = {name: start(name) for name in args.engines.split(",")}
    try:
        tokens = {name: run(engine, LONG)[1] for name, engine in engines.items()}
        expected = next(iter(tokens.values()))
        steps: dict[str, list[float]] = {name: [] for name in engines}
        for _ in range(args.repeats):
            for name, engine in engines.items():
                steps[name].append((run(engine, LONG)[0] - run(engine, 1)[0]) / (LONG - 1))
        versions = {name: engine.versions() for name, engine in engines.items()}
    finally:
        for engine in engines.values():
            engine.close()
    ours = steps[next(iter(engines))]
    results = {}
    for name, times in steps.items():
        results[name] = {
            "step_ms": 1e3 * statistics.median(times),
            "over_ours": statistics.median(time / our for time, our in zip(times, ours, strict=True)),
            "first_different_token": first_difference(tokens[name], expected),
            "versions": versions[name],
        }
        r = results[name]
        print(
            f"{name:12} {r['step_ms']:8.2f} ms a step of {len(expected)} requests   {r['over_ours']:6.2f}x ours   "
            f"first different token {r['first_different_token']}"
        )
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
