"""Asks `loracle check` about bugs by somebody who has read nothing of it, and writes what it says beside what they are.

    python benchmarks/independent/measure.py                    all 452; p, y, w, g, k, r, a, c, i need that of PEFT
    python benchmarks/independent/measure.py n01 o05            these
    python benchmarks/independent/measure.py --list             what they are

Twenty-six engines, each a function `serve`: numpy_engine.py is the author's own (n01 to n24), peft_engine.py is
transformers and PEFT (p01 to p12), ops_engine.py is this package with steps exchanged (o01 to o12), second_engine.py is
that of a second author (m01 to m40), third_engine.py and third_peft_engine.py are a third one's, in NumPy (x01 to x28)
and inside transformers and PEFT (y01 to y12), fourth_engine.py and fourth_peft_engine.py a fourth one's (v01 to v28,
w01 to w12), fifth_engine.py and fifth_peft_engine.py a fifth one's (f01 to f28, g01 to g12), sixth_engine.py a sixth
one's (h01 to h24), seventh_engine.py, seventh_peft_engine.py and seventh_ops_engine.py a seventh one's (j01 to j26, k01
to k10, l01 to l08), eighth_engine.py, eighth_peft_engine.py and eighth_ops_engine.py an eighth one's (q01 to q26, r01
to r10, t01 to t08), ninth_engine.py, ninth_peft_engine.py and ninth_ops_engine.py those of two more (z01 to z26, a01 to
a10, b01 to b08), eleventh_engine.py, twelfth_peft_engine.py and twelfth_ops_engine.py of another two (u01 to u26, c01
to c10, d01 to d08), thirteenth_engine.py, fourteenth_peft_engine.py and thirteenth_ops_engine.py of two more (e01 to
e26, i01 to i10, s01 to s08). The variable BUG puts one in; truth.json says what each is. They measure how causes are
found only as long as nobody has read them who works on it: by now all have been (README.md says when), and show that
nothing gets worse; the next measure needs bugs of a new author. The result is benchmarks/results/independent.json;
whether a cause is the right one is for a reader to say there ("right", "in part", "none", "wrong", or "no effect" on
that base), and what was said once is kept as long as the cause is the same.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
RESULTS = HERE.parent / "results" / "independent.json"
ENGINES = {
    "n": "numpy_engine",
    "p": "peft_engine",
    "o": "ops_engine",
    "m": "second_engine",
    "x": "third_engine",
    "y": "third_peft_engine",
    "v": "fourth_engine",
    "w": "fourth_peft_engine",
    "f": "fifth_engine",
    "g": "fifth_peft_engine",
    "h": "sixth_engine",
    "j": "seventh_engine",
    "k": "seventh_peft_engine",
    "l": "seventh_ops_engine",
    "q": "eighth_engine",
    "r": "eighth_peft_engine",
    "t": "eighth_ops_engine",
    "z": "ninth_engine",
    "a": "ninth_peft_engine",
    "b": "ninth_ops_engine",
    "u": "eleventh_engine",
    "c": "twelfth_peft_engine",
    "d": "twelfth_ops_engine",
    "e": "thirteenth_engine",
    "i": "fourteenth_peft_engine",
    "s": "thirteenth_ops_engine",
}
ARGUMENTS = ["--model", "random", "--cases", "10", "--sequences", "8", "--no-power", "--json"]
SECONDS = 900  # of one check, at most


def ask(bug: str) -> dict[str, Any]:
    """One bug: how many cases failed, the cause, and the processor seconds of the check with all of its processes."""
    paths = os.pathsep.join([str(ROOT), str(HERE)])
    environment = {**os.environ, "BUG": bug, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "refimpl", "check", "--engine", f"{ENGINES[bug[0]]}:serve", *ARGUMENTS]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 1):
        sys.exit(f"{bug}: exit {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    report = json.loads(done.stdout)
    return {
        "verdict": report["verdict"],
        "failed": report["failed"],
        "cases": report["cases"],
        "cause": report["cause"] and report["cause"]["sentence"],
        "smallest": report["smallest_in_words"],
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
    }


def main() -> int:
    """Measure the bugs that are named."""
    parser = argparse.ArgumentParser(description="Asks the oracle about bugs that its authors have not seen.")
    parser.add_argument("bugs", nargs="*")
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args()
    truth = json.loads((HERE / "truth.json").read_text("utf-8"))
    if unknown := [bug for bug in arguments.bugs if bug not in truth]:
        parser.error(f"there is no bug {unknown[0]}; there are {', '.join(truth)}")
    if arguments.list:
        for bug, about in truth.items():
            print(f"{bug}  {about['sentence']}")
        return 0
    known = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {"bugs": {}}
    for bug in arguments.bugs or truth:
        found, before = ask(bug), known["bugs"].get(bug, {})
        grade = before.get("grade", "") if before.get("cause") == found["cause"] else ""
        known["bugs"][bug] = {
            "truth": truth[bug]["sentence"],
            **found,
            "grade": grade or ("" if found["cause"] else "none"),
        }
        print(f"{bug}  {found['verdict']}, {found['cpu_seconds']} s of CPU\n     is  {truth[bug]['sentence']}")
        print(f"     it says  {found['cause'] or 'no cause'}", flush=True)
        RESULTS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
