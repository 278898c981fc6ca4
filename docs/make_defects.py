"""Makes docs/defects.md of docs/defects/*.toml and of what the scripts said, docs/defects/seen.json.

    python docs/make_defects.py              the page
    python docs/make_defects.py --run NAME   runs the script of this entry first, and notes what it says

A file has `engine`, `versions` and a [[defect]] for each: `name`, which is that of its script (tests/defects), `what`,
`cause` (not of a crash, which says its own) and `link` (if one is known). tests/defects holds the page against them.
"""

import argparse
import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DOCS = Path(__file__).resolve().parent
SEEN = DOCS / "defects" / "seen.json"
SHOW = "tests/defects/show.py"
KEYS = {"name", "what", "cause", "link"}

HEAD = """# Defects of engines, each with a command that shows it

{count} defects of engines as their users install them. A command makes a small base and adapters, asks the engine, and
compares its log-probabilities with the float64 reference: with the right answer, and where it can be computed with what
the **cause** predicts. A defect is listed while the engine is far from the first and as near to the second as its type
allows. The causes were written down by people; of a crash the engine's own words stand here. Other versions than those
that are named were not looked at.

```
python tests/defects/show.py              lists them
python tests/defects/show.py NAME...      exit 0: it is there; 1: it is not; 2: the engine is not installed
```
PEFT needs `pip install -e '.[test,peft]'`, the others `loracle engines setup NAME`
(whose torch llama.cpp's converter takes; [more on both](../tests/engines/README.md)). What an engine says that it does
not do is no defect: `loracle inspect ADAPTER --for ENGINE` has those.
[test_defects.py](../tests/defects/test_defects.py)
runs every command; one that no longer shows its defect fails there, and the entry goes. This page is made by
`python docs/make_defects.py`.
"""


def read() -> list[dict[str, Any]]:
    """Return the files' contents, by file. ValueError for an entry that lacks something or has a key too many."""
    files = [tomllib.loads(file.read_text("utf-8")) for file in sorted((DOCS / "defects").glob("*.toml"))]
    for content in files:
        for entry in content["defect"]:
            if not {"name", "what"} <= entry.keys() <= KEYS:
                raise ValueError(f"{entry.get('name')}: has {', '.join(entry)}")
    return files


def page() -> str:
    """Return docs/defects.md. KeyError for an entry whose command was never run."""
    seen, files = json.loads(SEEN.read_text("utf-8")), read()
    lines = [HEAD.format(count=sum(len(content["defect"]) for content in files))]
    for content in files:
        lines += [f"## {content['engine']}", f"{content['versions']}", ""]
        for entry in content["defect"]:
            note = seen[entry["name"]]
            what = entry["what"]
            lines += [f"**{what[0].upper() if what[0].isalpha() else what[0]}{what[1:]}.**"]
            if "cause" in entry:
                lines += [f"Cause: {entry['cause']}."]
            if "link" in entry:
                lines += [f"[Upstream]({entry['link']})."]
            lines += [
                f"Seen on {note['date']}: {note['said']}.",
                "```",
                f"python {SHOW} {entry['name']}",
                "```",
                "",
            ]
    return "\n".join(lines).rstrip() + "\n"


def note(name: str) -> None:
    """Run the script of an entry and note what it says. CalledProcessError unless the defect is there."""
    words = [sys.executable, str(DOCS.parent / SHOW), name]
    said = subprocess.run(words, check=True, capture_output=True, text=True, cwd=DOCS.parent).stdout
    line = next(line for line in said.splitlines() if line.startswith(f"{name}: "))
    seen = json.loads(SEEN.read_text("utf-8")) if SEEN.exists() else {}
    seen[name] = {"date": datetime.date.today().isoformat(), "said": line.removeprefix(f"{name}: ").rstrip(".")}
    SEEN.write_text(json.dumps(dict(sorted(seen.items())), indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", nargs="+", default=[], metavar="NAME")
    for name in parser.parse_args().run:
        print(name, flush=True)
        note(name)
    (DOCS / "defects.md").write_text(page(), "utf-8")
