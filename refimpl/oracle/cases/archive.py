"""Answers on disk: what an engine said to each case, so that a campaign can be resumed, and judged again without it."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from ...arrays import Array
from ...engines.interface import Capabilities, Computed, EngineResponse
from ...errors import LoracleError
from .case import Case, Exchange
from .case_json import from_json, to_json

VERSION = 1


ABOUT = "recording.json"


def describe(folder: Path, about: dict[str, Any], capabilities: Capabilities) -> None:
    """Write beside the responses what was asked: model, dtype and seed give the same adapters and requests again.

    LoracleError where the folder holds the responses to other requests."""
    can = {k: sorted(v) if isinstance(v, frozenset) else v for k, v in asdict(capabilities).items()}
    said = json.loads(json.dumps({**about, "capabilities": can}))
    described_before = described(folder)
    for key in described_before or {}:
        if described_before and key in said and described_before[key] != said[key]:
            raise LoracleError(
                f"{folder / ABOUT}: the answers there are for {key} {described_before[key]}, not {said[key]}"
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ABOUT).write_text(json.dumps({**(described_before or {}), **said}, indent=1) + "\n", "utf-8")
    except OSError as error:
        raise LoracleError(f"{folder}: cannot be written ({error})") from None


def described(folder: Path) -> dict[str, Any] | None:
    """What `describe` wrote; None if it was never there."""
    try:
        data = json.loads((folder / ABOUT).read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise LoracleError(f"{folder / ABOUT}: cannot be read ({error})") from None
    if not isinstance(data, dict):
        raise LoracleError(f"{folder / ABOUT}: expected an object")
    return data


def capabilities_of(about: dict[str, Any]) -> Capabilities:
    """Those that were described. LoracleError where they are none."""
    try:
        data = dict(about["capabilities"])
        for field in fields(Capabilities):
            kind = type(getattr(Capabilities(), field.name))
            if field.name in data and kind in (frozenset, tuple):
                data[field.name] = kind(data[field.name])
        return Capabilities(**data)
    except (KeyError, TypeError, ValueError) as error:
        raise LoracleError(f"{ABOUT}: no capabilities of an engine ({error})") from None


def save(folder: Path, case: Case, exchanges: Sequence[Exchange]) -> None:
    """Write one case and its responses: NAME.json and NAME.npz, the JSON last, so that what is there is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Array] = {}
    rows = []
    for i, exchange in enumerate(exchanges):
        response = exchange.response
        for kind, x in (("logits", response.logits), ("logprobs", response.logprobs)):
            if x is not None:
                arrays[f"{kind}_{i}"] = _narrowest(x)
        top = (
            None if response.top is None else [{str(t): repr(float(v)) for t, v in row.items()} for row in response.top]
        )
        rows.append(
            {
                "token_ids": list(response.token_ids),
                "first": response.first_position,
                "top": top,
                "steps": [list(one) for one in response.steps],
                "error": response.error,
                "raw": None if response.raw is None else repr(response.raw)[:20000],
                "adapters": [list(x) for x in exchange.adapters],
                "run": exchange.run,
                "index": exchange.index,
            }
        )
    stem = folder / _file_name(case.name)
    with open(f"{stem}.npz", "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    text = json.dumps({"version": VERSION, "case": to_json(case), "answers": rows})
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
    return "".join(character if character.isalnum() else "-" for character in name)


def saved(folder: Path, case: Case) -> list[Exchange] | None:
    """Return the responses to this very case; None unless they are there and whole."""
    data = _read(folder / _file_name(case.name))
    return data[1] if data is not None and data[0] == case else None


def everything(folder: Path) -> Iterator[tuple[Case, list[Exchange]]]:
    """Yield all that was saved under a folder."""
    for file in sorted(folder.glob("**/answers/*.json")):
        if (data := _read(file.with_suffix(""))) is not None:
            yield data


def _read(stem: Path) -> tuple[Case, list[Exchange]] | None:
    try:
        data = json.loads(Path(f"{stem}.json").read_text(encoding="utf-8"))
        if data["version"] != VERSION:
            return None
        with np.load(f"{stem}.npz", allow_pickle=False) as file:
            case = from_json(data["case"])
            return case, _exchanges(case, data["answers"], dict(file))
    except (OSError, ValueError, KeyError, TypeError, IndexError, LoracleError):
        return None


def _exchanges(case: Case, rows: Sequence[dict[str, Any]], arrays: dict[str, Array]) -> list[Exchange]:
    data = []
    for i, row in enumerate(rows):
        top = row["top"]
        response = EngineResponse(
            tuple(row["token_ids"]),
            row["first"],
            arrays.get(f"logits_{i}"),
            arrays.get(f"logprobs_{i}"),
            None if top is None else [{int(t): float(v) for t, v in r.items()} for r in top],
            steps=tuple(Computed(*one) for one in row.get("steps", ())),  # an older file has none
            error=row["error"],
            raw=row["raw"],
        )
        adapters = tuple((str(key), float(weight)) for key, weight in row["adapters"])
        data.append(
            Exchange(case.runs[row["run"]].requests[row["index"]], adapters, response, row["run"], row["index"])
        )
    return data
