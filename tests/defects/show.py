"""Shows defects of engines: python tests/defects/show.py NAME... ; without a name it lists them.

Each says how far the engine is from the right answer, and from what the cause in docs/defects.md predicts. Exit 0: the
defect is there; 1: it is not, or it is another one; 2: the engine is not installed."""

import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent), str(HERE)]

import pytest  # noqa: E402
from catalogue import find, listed  # noqa: E402


def main(names: list[str]) -> int:
    """Show these; return the exit status."""
    status = 0
    for name in names:
        try:
            show = find(name)
            with tempfile.TemporaryDirectory() as root:
                shown = show(Path(root))
        except KeyError:
            print(f"there is no {name}; there is {', '.join(listed())}")
            return 2
        except pytest.skip.Exception as why:
            print(f"{name}: {why}")
            return 2
        print(f"{name}: {shown}\n{name}: {'the defect is there' if shown.there else 'NOT THIS DEFECT'}", flush=True)
        status = max(status, 0 if shown.there else 1)
    return status


if __name__ == "__main__":
    if len(sys.argv) == 1:
        print("\n".join(listed()))
        raise SystemExit(0)
    raise SystemExit(main(sys.argv[1:]))
