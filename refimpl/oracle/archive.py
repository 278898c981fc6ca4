"""Answers on disk: what an engine said to each case, so that a campaign can be resumed, and judged again without it."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import Array
from ..engines.interface import Answer, Ask
from ..errors import LoracleError
from .case import Case, Exchange, Load, Run, Step, Unload

VERSION = 1


def case_json(case: Case) -> dict[str, Any]:
    """A case as JSON."""
    return {"name": case.name, "stateless": case.stateless, "steps": [_step_json(step) for step in case.steps]}


def read_case(data: dict[str, Any]) -> Case:
    """The case that `case_json` wrote. LoracleError where it is none."""
    try:
        return Case(data["name"], tuple(_step(s) for s in data["steps"]), bool(data["stateless"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LoracleError(f"not a case: {type(error).__name__} {error}") from None


def _step_json(step: Step) -> dict[str, Any]:
    if isinstance(step, Load):
        return {"load": step.name, "adapter": step.adapter}
    if isinstance(step, Unload):
        return {"unload": step.name}
    return {
        "run": [
            {
                "prompt_ids": list(a.prompt_ids),
                "adapter": a.adapter,
                "max_new_tokens": a.max_new_tokens,
                "mix": [list(m) for m in a.mix],
                "arrives": a.arrives,
                "cancel_after": a.cancel_after,
            }
            for a in step.asks
        ]
    }


def _step(data: dict[str, Any]) -> Step:
    if "load" in data:
        return Load(str(data["load"]), str(data["adapter"]))
    if "unload" in data:
        return Unload(str(data["unload"]))
    return Run(
        tuple(
            Ask(
                tuple(int(t) for t in a["prompt_ids"]),
                a["adapter"],
                int(a["max_new_tokens"]),
                tuple((str(name), float(weight)) for name, weight in a["mix"]),
                int(a["arrives"]),
                a["cancel_after"],
            )
            for a in data["run"]
        )
    )


def save(folder: Path, case: Case, exchanges: Sequence[Exchange]) -> None:
    """One case and its answers: NAME.json and NAME.npz, the JSON last, so that what is there is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Array] = {}
    rows = []
    for i, e in enumerate(exchanges):
        a = e.answer
        for kind, x in (("logits", a.logits), ("logprobs", a.logprobs)):
            if x is not None:
                arrays[f"{kind}_{i}"] = _narrowest(x)
        top = None if a.top is None else [{str(t): repr(float(v)) for t, v in row.items()} for row in a.top]
        rows.append(
            {
                "token_ids": list(a.token_ids),
                "first": a.first,
                "top": top,
                "error": a.error,
                "raw": None if a.raw is None else repr(a.raw)[:20000],
                "adapters": [list(x) for x in e.adapters],
                "run": e.run,
                "index": e.index,
            }
        )
    stem = folder / _file_name(case.name)
    with open(f"{stem}.npz", "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    text = json.dumps({"version": VERSION, "case": case_json(case), "answers": rows})
    with open(f"{stem}.json.part", "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(f"{stem}.json.part", f"{stem}.json")


def _narrowest(x: Array) -> Array:
    """float32 where that loses nothing."""
    x = np.asarray(x)
    with np.errstate(over="ignore"):
        narrow = x.astype(np.float32)
    return narrow if np.array_equal(narrow.astype(x.dtype), x, equal_nan=True) else x


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name)


def saved(folder: Path, case: Case) -> list[Exchange] | None:
    """The answers to this very case, if they are there and whole."""
    stem = folder / _file_name(case.name)
    try:
        data = json.loads(Path(f"{stem}.json").read_text(encoding="utf-8"))
        if data["version"] != VERSION or read_case(data["case"]) != case:
            return None
        with np.load(f"{stem}.npz", allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError, KeyError, LoracleError):
        return None
    return _exchanges(case, data["answers"], arrays)


def _exchanges(case: Case, rows: Sequence[dict[str, Any]], arrays: dict[str, Array]) -> list[Exchange]:
    runs = [step for step in case.steps if isinstance(step, Run)]
    found = []
    for i, row in enumerate(rows):
        top = row["top"]
        answer = Answer(
            tuple(row["token_ids"]),
            row["first"],
            arrays.get(f"logits_{i}"),
            arrays.get(f"logprobs_{i}"),
            None if top is None else [{int(t): float(v) for t, v in r.items()} for r in top],
            error=row["error"],
            raw=row["raw"],
        )
        adapters = tuple((str(key), float(weight)) for key, weight in row["adapters"])
        found.append(Exchange(runs[row["run"]].asks[row["index"]], adapters, answer, row["run"], row["index"]))
    return found
